//! Columns of the tables, and rows from records.

use crate::{LakeError, LandedBatch};
use datafusion::arrow::{
    array::{
        ArrayRef, BooleanBuilder, Int64Builder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondBuilder,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use std::{collections::BTreeMap, sync::Arc};
use vedette_wire::{
    body::{KINDS, RowContext},
    column::{COMMON, Column, ColumnType, Value},
    ocsf::OcsfClass,
    render::Origin,
};

/// Partition column, the last one of every table.
pub(crate) const DAY: &str = "day";

/// A table in `docs/tables.md`.
#[derive(Debug, Clone)]
pub struct TableColumns {
    /// OCSF class.
    pub class: OcsfClass,
    /// Columns in order, except the partition column.
    pub columns: Vec<Column>,
}

/// All tables.
pub fn tables() -> Vec<TableColumns> {
    OcsfClass::ALL.into_iter().map(|class| TableColumns { class, columns: columns(class) }).collect()
}

/// The common columns, and those of all kinds that render to the class.
pub(crate) fn columns(class: OcsfClass) -> Vec<Column> {
    let mut out: Vec<Column> = COMMON.to_vec();
    for column in KINDS.iter().filter(|kind| kind.classes.contains(&class)).flat_map(|kind| kind.columns) {
        if out.iter().all(|known| known.name != column.name) {
            out.push(*column);
        }
    }
    out
}

pub(crate) fn schema(class: OcsfClass) -> SchemaRef {
    let mut fields: Vec<Field> = columns(class).iter().map(|column| field(column.name, column.ty)).collect();
    fields.push(Field::new(DAY, DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

fn field(name: &str, ty: ColumnType) -> Field {
    let ty = match ty {
        ColumnType::Text => DataType::Utf8,
        ColumnType::Integer => DataType::Int64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    };
    Field::new(name, ty, true)
}

enum Builder {
    Text(StringBuilder),
    Integer(Int64Builder),
    Boolean(BooleanBuilder),
    Time(TimestampMicrosecondBuilder),
}

impl Builder {
    fn new(ty: ColumnType) -> Self {
        match ty {
            ColumnType::Text => Builder::Text(StringBuilder::new()),
            ColumnType::Integer => Builder::Integer(Int64Builder::new()),
            ColumnType::Boolean => Builder::Boolean(BooleanBuilder::new()),
            ColumnType::Time => Builder::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC")),
        }
    }

    /// A value of another type than its column's counts as absent; tests of `wire` exclude it.
    fn push(&mut self, value: &Value<'_>) {
        match (self, value) {
            (Builder::Text(builder), Value::Text(text)) => builder.append_value(text),
            (Builder::Integer(builder), Value::Integer(number)) => builder.append_value(*number),
            (Builder::Boolean(builder), Value::Boolean(truth)) => builder.append_value(*truth),
            (Builder::Time(builder), Value::Time(nanoseconds)) => builder.append_value(nanoseconds.div_euclid(1000)),
            (Builder::Text(builder), _) => builder.append_null(),
            (Builder::Integer(builder), _) => builder.append_null(),
            (Builder::Boolean(builder), _) => builder.append_null(),
            (Builder::Time(builder), _) => builder.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Text(builder) => Arc::new(builder.finish()),
            Builder::Integer(builder) => Arc::new(builder.finish()),
            Builder::Boolean(builder) => Arc::new(builder.finish()),
            Builder::Time(builder) => Arc::new(builder.finish()),
        }
    }
}

/// Maximum size of text in a record batch: a text column is limited to 2 GiB, and a query holds several batches in memory.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Rows of one day under construction.
struct Building {
    rows: usize,
    text_bytes: usize,
    builders: Vec<Builder>,
}

impl Building {
    fn new(columns: &[Column]) -> Self {
        let builders = columns.iter().map(|column| Builder::new(column.ty)).collect();
        Self { rows: 0, text_bytes: 0, builders }
    }

    fn push(&mut self, row: &[&Value<'_>]) {
        for (builder, value) in self.builders.iter_mut().zip(row) {
            if let Value::Text(text) = value {
                self.text_bytes += text.len();
            }
            builder.push(value);
        }
        self.rows += 1;
    }

    fn finish(self, schema: &SchemaRef, day: &str) -> Result<RecordBatch, LakeError> {
        let mut arrays: Vec<ArrayRef> = self.builders.into_iter().map(|mut builder| builder.finish()).collect();
        arrays.push(Arc::new(StringArray::from(vec![day; self.rows])));
        RecordBatch::try_new(Arc::clone(schema), arrays).map_err(|err| LakeError::Rows(err.to_string()))
    }
}

/// Passes the rows of a class to `take`, in record batches of one day and of at most [`TEXT_BYTES_MAX`] plus one row, until it
/// returns false.
pub(crate) fn rows(
    class: OcsfClass,
    batches: &[&LandedBatch],
    mut take: impl FnMut(RecordBatch) -> bool,
) -> Result<(), LakeError> {
    let (columns, schema) = (columns(class), schema(class));
    let mut days: BTreeMap<&str, Building> = BTreeMap::new();
    // Column positions of each kind in the table.
    let mut columns_of: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
    for landed in batches {
        let day = landed.day.as_str();
        for (index, record) in landed.stored_records() {
            if record.body.class() != class {
                continue;
            }
            let kind = record.body.kind();
            let own_columns = columns_of.entry(kind.name).or_insert_with(|| {
                let find = |name| columns.iter().position(|column| column.name == name);
                kind.columns.iter().filter_map(|column| find(column.name)).collect()
            });
            let header = &landed.batch.header;
            let origin = Origin::in_batch(header, index, record);
            let common = common(landed, &origin, record);
            let mut row: Vec<&Value<'_>> = vec![&Value::Null; columns.len()];
            for (column, value) in common.iter().enumerate() {
                row[column] = value;
            }
            let own = record.body.row(&RowContext { source_name: origin.source_name, position: record.position });
            for (column, value) in own_columns.iter().zip(&own) {
                row[*column] = value;
            }
            let building = days.entry(day).or_insert_with(|| Building::new(&columns));
            building.push(&row);
            if building.text_bytes >= TEXT_BYTES_MAX
                && let Some(full) = days.remove(day)
                && !take(full.finish(&schema, day)?)
            {
                return Ok(());
            }
        }
    }
    for (day, building) in days {
        if !take(building.finish(&schema, day)?) {
            break;
        }
    }
    Ok(())
}

/// Values of [`COMMON`], in its order.
fn common<'a>(
    landed: &'a LandedBatch,
    origin: &Origin<'a>,
    record: &'a vedette_wire::Record,
) -> [Value<'a>; COMMON.len()] {
    let header = &landed.batch.header;
    let body = &record.body;
    [
        header.organization.to_string().into(),
        header.agent.to_string().into(),
        origin.collector.into(),
        header.lane.name().into(),
        header.epoch.to_string().into(),
        header.seq.into(),
        Value::Integer(origin.index as i64),
        Value::Time(body.time().unwrap_or(record.observed)),
        Value::Time(record.observed),
        Value::Time(landed.landed),
        body.kind().name.into(),
        header.host.hostname.as_str().into(),
        body.class().uid().into(),
        body.activity().into(),
        body.severity().into(),
    ]
}
