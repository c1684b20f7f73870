//! SQL over an organization's tables and its batches that are not materialised yet; read-only, with limits.

use crate::{
    Lake, LakeError, LandedBatches, PendingBatch, Versions, columns::DAY, mark_of, minutes::Minutes, pending, table,
};
use datafusion::{
    arrow::{datatypes::SchemaRef, record_batch::RecordBatch},
    catalog::TableProvider,
    error::DataFusionError,
    execution::{
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::{DataFrame, Expr, SQLOptions, SessionConfig, SessionContext, col, lit},
};
use deltalake_core::{
    DeltaTable,
    delta_datafusion::{DeltaScanConfig, DeltaScanNext},
};
use futures::StreamExt;
use std::{collections::BTreeSet, num::NonZeroUsize, sync::Arc, time::Duration};
use vedette_wire::{OrganizationId, body::KINDS, column::COMMON, ocsf::OcsfClass};

/// Limits of a query.
#[derive(Debug, Clone, Copy)]
pub struct QueryLimits {
    /// Maximum number of rows.
    pub rows_max: usize,
    /// Wall clock.
    pub time_max: Duration,
    /// Memory of operators in bytes, beyond which they spill to disk, and of the answer.
    pub memory_max: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self { rows_max: 1_000_000, time_max: Duration::from_secs(60), memory_max: 512 << 20 }
    }
}

/// The answer.
#[derive(Debug)]
pub struct Output {
    /// Columns.
    pub schema: SchemaRef,
    /// Rows.
    pub batches: Vec<RecordBatch>,
    /// The answer was cut at the maximum number of rows.
    pub cut: bool,
}

/// Why a query fails.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The SQL is wrong, forbidden, or failed.
    #[error("{0}")]
    Sql(String),
    /// The time is exceeded.
    #[error("the query took longer than {0:?}; restrict it to a time range or an agent")]
    Timeout(Duration),
    /// The memory is exceeded, and the operator cannot spill to disk.
    #[error("the query needs more than {0} bytes of memory; restrict it to a time range or an agent")]
    Memory(usize),
    /// The tables cannot be read.
    #[error(transparent)]
    Lake(#[from] LakeError),
}

impl From<DataFusionError> for QueryError {
    fn from(err: DataFusionError) -> Self {
        QueryError::Sql(err.strip_backtrace())
    }
}

impl Lake {
    /// Runs one SQL statement. `pending` are the batches that were not marked as materialised when `known` was read; they are
    /// read from `landing` during the query.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn query(
        &self,
        organization: OrganizationId,
        sql: &str,
        pending: &[PendingBatch],
        landing: &Arc<dyn LandedBatches>,
        known: &Versions,
        limits: QueryLimits,
    ) -> Result<Output, QueryError> {
        let context = session(limits)?;
        for class in OcsfClass::ALL {
            let rows =
                self.rows_of(&context, organization, class, (pending, landing), known, limits.memory_max).await?;
            context.register_table(class.table(), rows.into_view())?;
        }
        register_views(&context).await?;
        // On its own task: an operator that does not yield must not block the timer.
        let sql = sql.to_owned();
        let mut work = tokio::spawn(async move { collect(&context, &sql, limits).await });
        match tokio::time::timeout(limits.time_max, &mut work).await {
            Ok(Ok(Err(err))) if matches!(err.find_root(), DataFusionError::ResourcesExhausted(_)) => {
                Err(QueryError::Memory(limits.memory_max))
            }
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(err)) => Err(QueryError::Sql(format!("the query ended unexpectedly: {err}"))),
            Err(_) => {
                work.abort();
                Err(QueryError::Timeout(limits.time_max))
            }
        }
    }

    /// The table at its newest version, and the landed batches that it lacks.
    async fn rows_of(
        &self,
        context: &SessionContext,
        organization: OrganizationId,
        class: OcsfClass,
        (pending, landing): (&[PendingBatch], &Arc<dyn LandedBatches>),
        known: &Versions,
        memory_max: usize,
    ) -> Result<DataFrame, QueryError> {
        let dir = self.table_dir(organization, class);
        let mark = mark_of(known, class);
        let table = table::open(&dir).await?;
        table::check(table.as_ref(), &dir, mark)?;
        let held: BTreeSet<String> = match &table {
            None => BTreeSet::new(),
            Some(table) => table::keys_since(table, &dir, mark.version).await?.into_iter().collect(),
        };
        let pending: Vec<&PendingBatch> = pending.iter().filter(|pending| !held.contains(&pending.key)).collect();
        let pending = context.read_table(Arc::new(pending::table(class, &pending, landing, memory_max)?))?;
        let Some(table) = table else { return Ok(pending) };
        let table = context.read_table(provider(&table, &dir)?)?;
        Ok(table.union_by_name(pending)?)
    }
}

/// The table with plain strings, as in [`crate::columns::schema`].
fn provider(table: &DeltaTable, dir: &std::path::Path) -> Result<Arc<dyn TableProvider>, QueryError> {
    let config =
        DeltaScanConfig { wrap_partition_values: false, schema_force_view_types: false, ..DeltaScanConfig::new() };
    let failed = |source| LakeError::Table { table: dir.to_owned(), source: Box::new(source) };
    let snapshot = table.snapshot().map_err(failed)?.snapshot().clone();
    Ok(Arc::new(DeltaScanNext::new(snapshot, config)?))
}

fn session(limits: QueryLimits) -> Result<SessionContext, DataFusionError> {
    let pool = TrackConsumersPool::new(FairSpillPool::new(limits.memory_max), NonZeroUsize::MIN);
    let runtime: Arc<RuntimeEnv> = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc()?;
    let mut config = SessionConfig::new().with_information_schema(true);
    let options = config.options_mut();
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".to_owned());
    runtime.register_object_store(&url::Url::parse("file:///").expect("it is one"), table::store());
    let context = SessionContext::new_with_config_rt(config, runtime);
    context.add_analyzer_rule(Arc::new(Minutes));
    // Functions that make large values from small ones use memory that no operator accounts for.
    for name in [
        "generate_series",
        "range",
        "repeat",
        "array_repeat",
        "list_repeat",
        "lpad",
        "rpad",
        "array_resize",
        "list_resize",
    ] {
        context.deregister_udtf(name);
        context.deregister_udf(name);
    }
    Ok(context)
}

/// Registers a view per kind: the common columns and its own, over all tables that can hold its records.
async fn register_views(context: &SessionContext) -> Result<(), DataFusionError> {
    for kind in KINDS {
        let names: Vec<&str> = COMMON.iter().chain(kind.columns).map(|column| column.name).chain([DAY]).collect();
        let mut view: Option<DataFrame> = None;
        for class in kind.classes {
            let own: Vec<Expr> = names.iter().map(|name| col(format!("\"{name}\""))).collect();
            let rows = context.table(class.table()).await?.filter(col("kind").eq(lit(kind.name)))?.select(own)?;
            view = Some(match view {
                None => rows,
                Some(view) => view.union_by_name(rows)?,
            });
        }
        if let Some(view) = view {
            context.register_table(kind.view, view.into_view())?;
        }
    }
    Ok(())
}

async fn collect(
    context: &SessionContext,
    sql: &str,
    QueryLimits { rows_max, memory_max, .. }: QueryLimits,
) -> Result<Output, DataFusionError> {
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(sql, read_only).await?;
    let schema = Arc::clone(frame.schema().inner());
    let mut stream = frame.execute_stream().await?;
    let (mut batches, mut rows, mut bytes, mut cut) = (Vec::new(), 0, 0, false);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        bytes += batch.get_array_memory_size();
        if bytes > memory_max {
            return Err(DataFusionError::ResourcesExhausted("the answer".to_owned()));
        }
        if rows + batch.num_rows() > rows_max {
            batches.push(batch.slice(0, rows_max - rows));
            cut = true;
            break;
        }
        rows += batch.num_rows();
        batches.push(batch);
    }
    Ok(Output { schema, batches, cut })
}
