//! `vedette once`: prints what collectors observe; needs no enrollment and no network, and writes nothing to disk.

use super::print;
use crate::{
    cli::OnceFormat,
    config::{Resolved, collector_context},
    exit::{Exit, VERSION},
    runtime::{collectors::chunks_of, events::positions_source},
};
use parking_lot::Mutex;
use serde_json::json;
use std::{fmt::Write as _, sync::Arc};
use vedette_collectors::{AnySettings, CollectError, CollectorContext, Outlet, Plan, REGISTRY, Sink, StopSignal};
use vedette_wire::{
    Chunk, Record,
    body::RowContext,
    column::Value,
    record::HostLabel,
    render::{self, Origin},
    text::printable,
};

/// Maximum number of records per source of a watching collector.
const RECORDS_PER_SOURCE_MAX: usize = 100;

#[derive(Default)]
struct Collected {
    chunks: Mutex<Vec<Chunk>>,
    problems: Mutex<Vec<(&'static str, String)>>,
    /// A missing permission that reduces the collector's output.
    missing_permission: Mutex<Option<String>>,
}

impl Sink for Collected {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        self.chunks.lock().push(chunk);
        Ok(())
    }

    fn report_problem(&self, collector: &'static str, message: String) {
        self.problems.lock().push((collector, message));
    }
}

pub(super) fn once(config: &Resolved, ids: &[String], format: OnceFormat) -> Result<(), Exit> {
    for id in ids {
        if vedette_collectors::find(id).is_none() {
            let known: Vec<&str> = REGISTRY.iter().map(|spec| spec.id).collect();
            return Err(Exit::Usage(format!("unknown collector {id}; the collectors are {}", known.join(", "))));
        }
    }
    let mut context = CollectorContext { once: Some(RECORDS_PER_SOURCE_MAX), ..collector_context(config) };
    if !ids.is_empty() {
        // Hides collectors that are not named, so that a named one does not defer to them.
        context.enabled.retain(|id| ids.iter().any(|named| named == id));
    }
    let context = context;
    let host = vedette_collectors::host_label(&context);
    let (mut out, mut failed) = (String::new(), Vec::new());
    for collector in &config.collectors {
        if ids.is_empty() && !collector.settings.enabled()
            || !ids.is_empty() && !ids.iter().any(|id| id == collector.spec.id)
        {
            continue;
        }
        let settings = if ids.is_empty() { collector.settings.clone() } else { collector.settings.switched_on() };
        let collected = Arc::new(Collected::default());
        let why = match collect(collector.spec, settings, &context, &collected) {
            Ok(()) => None,
            Err(CollectFailure::Nothing(why)) => Some(why),
            Err(CollectFailure::Failed(why)) => {
                failed.push(format!("{}: {why}", collector.spec.id));
                Some(why)
            }
        };
        let problems = collected.problems.lock().clone();
        failed.extend(problems.into_iter().map(|(id, why)| format!("{id}: {why}")));
        append_output(&mut out, collector.spec.id, &host, &collected, why, format);
    }
    print(out.as_bytes())?;
    if failed.is_empty() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("not everything can be collected: {}", failed.join("; ")).into())
    }
}

/// Why a collector gave no records, or not all.
enum CollectFailure {
    /// It is off, or the host has nothing to observe.
    Nothing(String),
    /// It failed.
    Failed(String),
}

fn collect(
    spec: &'static vedette_collectors::Spec,
    settings: AnySettings,
    context: &CollectorContext,
    collected: &Arc<Collected>,
) -> Result<(), CollectFailure> {
    let sink: Arc<dyn Sink> = Arc::clone(collected) as Arc<dyn Sink>;
    let failed = |err: vedette_collectors::CollectError| match err {
        vedette_collectors::CollectError::Absent(why) => CollectFailure::Nothing(why),
        other => CollectFailure::Failed(other.to_string()),
    };
    match settings.build(context).map_err(|err| CollectFailure::Failed(err.to_string()))? {
        Plan::Off => Err(CollectFailure::Nothing("switched off".to_owned())),
        Plan::Absent(why) => Err(CollectFailure::Nothing(why)),
        Plan::Poll(_, mut poll) => {
            let bodies = poll.poll(context).map_err(failed)?;
            *collected.missing_permission.lock() = poll.missing_permission();
            for chunk in chunks_of(&positions_source(spec.id), &mut 0, bodies, context.now()) {
                sink.put(chunk, &StopSignal::default()).map_err(failed)?;
            }
            Ok(())
        }
        Plan::Watch(mut watch) => {
            let mut outlet = Outlet::new(sink, StopSignal::default());
            watch.watch(context, &mut outlet).map_err(failed)
        }
    }
}

fn append_output(
    out: &mut String,
    id: &'static str,
    host: &HostLabel,
    collected: &Collected,
    error: Option<String>,
    format: OnceFormat,
) {
    let chunks = collected.chunks.lock();
    let problems = collected.problems.lock();
    let records: u64 = chunks.iter().map(Chunk::count).sum();
    if format == OnceFormat::Table {
        let _ = writeln!(out, "\n{id}: {records} records");
    }
    let missing_permission = collected.missing_permission.lock();
    for why in error.iter().chain(problems.iter().map(|(_, why)| why)).chain(missing_permission.iter()) {
        match format {
            OnceFormat::Table => drop(writeln!(out, "  {}", printable(why))),
            // Standard output holds records only.
            _ => tracing::warn!(collector = id, "{why}"),
        }
    }
    let mut index = 0;
    for chunk in chunks.iter() {
        for record in chunk.decode().expect("just encoded") {
            let source_name = chunk.source.name.as_deref();
            match format {
                OnceFormat::Ocsf => {
                    let origin = Origin {
                        organization: None,
                        agent: None,
                        batch: None,
                        agent_version: VERSION,
                        host,
                        collector: id,
                        source_name,
                        index,
                    };
                    let _ = writeln!(out, "{}", render::render(&origin, &record));
                }
                OnceFormat::Json => {
                    let row = row(&record, source_name);
                    let mut object = json!({"collector": id, "kind": record.body.kind().name});
                    object.as_object_mut().expect("json! makes an object").extend(row);
                    let _ = writeln!(out, "{object}");
                }
                OnceFormat::Table => {
                    let cells: Vec<String> = row(&record, source_name)
                        .into_iter()
                        .filter(|(name, value)| !value.is_null() && !name.starts_with("snapshot"))
                        .map(|(name, value)| {
                            format!("{name}={}", printable(&value.as_str().map_or(value.to_string(), str::to_owned)))
                        })
                        .collect();
                    let _ = writeln!(out, "  {}", cells.join(" "));
                }
            }
            index += 1;
        }
    }
}

/// The time of a record, and the columns of its kind.
fn row(record: &Record, source_name: Option<&str>) -> serde_json::Map<String, serde_json::Value> {
    let context = RowContext { source_name, position: record.position };
    let mut out = serde_json::Map::new();
    out.insert("time".to_owned(), time(record.body.time().unwrap_or(record.observed)));
    for (column, value) in record.body.kind().columns.iter().zip(record.body.row(&context)) {
        let value = match value {
            Value::Null => json!(null),
            Value::Text(text) => json!(text),
            Value::Integer(number) => json!(number),
            Value::Boolean(boolean) => json!(boolean),
            Value::Time(nanoseconds) => time(nanoseconds),
        };
        out.insert(column.name.to_owned(), value);
    }
    out
}

/// Formats a time by RFC 3339 in UTC, with microseconds.
fn time(nanoseconds: i64) -> serde_json::Value {
    let timestamp = jiff::Timestamp::from_microsecond(nanoseconds.div_euclid(1000));
    timestamp.map_or(json!(null), |timestamp| json!(format!("{timestamp:.6}")))
}
