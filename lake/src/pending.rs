//! Landed batches as a table that is read during a query: each partition holds one decoded batch at a time.

use crate::{LakeError, LandedBatch, columns};
use datafusion::{
    arrow::{datatypes::SchemaRef, record_batch::RecordBatch},
    catalog::streaming::StreamingTable,
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use futures::{
    StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use std::sync::Arc;
use tokio::{sync::mpsc, task::JoinHandle};
use vedette_wire::{Batch, ocsf::OcsfClass, policy::StoreLevel};

/// Maximum number of partitions; each decodes one batch at a time.
const PARTITIONS_MAX: usize = 4;

/// Memory of a partition: a batch of the maximum size takes several hundred megabytes, decoded and as rows.
const PARTITION_BYTES: usize = 512 << 20;

/// A landed batch that is not in the tables yet.
#[derive(Debug, Clone)]
pub struct PendingBatch {
    /// Landing key.
    pub key: String,
    /// Day of the partition, `YYYY-MM-DD`.
    pub day: String,
    /// Time of landing, nanoseconds UTC.
    pub landed: i64,
    /// Store level of the batch's policy.
    pub store: StoreLevel,
}

/// Why a landed batch cannot be read now.
pub type ReadFailure = Box<dyn std::error::Error + Send + Sync>;

/// Reads landed batches.
pub trait LandedBatches: std::fmt::Debug + Send + Sync {
    /// Reads a batch; absent if it is damaged, which the implementation reports.
    ///
    /// # Errors
    /// The store is unavailable: the query fails, since an incomplete answer would look complete.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Batch>, ReadFailure>>;
}

/// Rows of a class in a part of the batches.
#[derive(Debug)]
struct Share {
    class: OcsfClass,
    schema: SchemaRef,
    pending: Vec<PendingBatch>,
    landing: Arc<dyn LandedBatches>,
}

/// Rows of a class in landed batches, in as many partitions as the memory of the query allows, in bytes.
pub(crate) fn table(
    class: OcsfClass,
    pending: &[&PendingBatch],
    landing: &Arc<dyn LandedBatches>,
    memory_max: usize,
) -> Result<StreamingTable, DataFusionError> {
    let partitions = (memory_max / PARTITION_BYTES).clamp(1, PARTITIONS_MAX);
    let schema = columns::schema(class);
    let share = |pending: Vec<PendingBatch>| -> Arc<dyn PartitionStream> {
        Arc::new(Share { class, schema: Arc::clone(&schema), pending, landing: Arc::clone(landing) })
    };
    let length = pending.len().div_ceil(partitions).max(1);
    let mut shares: Vec<_> =
        pending.chunks(length).map(|part| share(part.iter().map(|pending| (*pending).clone()).collect())).collect();
    if shares.is_empty() {
        shares.push(share(Vec::new()));
    }
    StreamingTable::try_new(Arc::clone(&schema), shares)
}

impl PartitionStream for Share {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (class, landing) = (self.class, Arc::clone(&self.landing));
        let rows = stream::iter(self.pending.clone())
            .then(move |pending| read(class, Arc::clone(&landing), pending))
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// Reads a batch. Its rows are made while they are taken, so that only a few record batches are in memory.
async fn read(
    class: OcsfClass,
    landing: Arc<dyn LandedBatches>,
    pending: PendingBatch,
) -> Result<BoxStream<'static, Result<RecordBatch, DataFusionError>>, DataFusionError> {
    let PendingBatch { key, day, landed, store } = pending;
    let read = landing.read(&key).await.map_err(|err| DataFusionError::Execution(format!("{key}: {err:#}")))?;
    let Some(batch) = read else { return Ok(stream::empty().boxed()) };
    let (give, rows) = mpsc::channel(1);
    let made = tokio::task::spawn_blocking(move || {
        let landed = LandedBatch { key, day, landed, store, batch };
        // Nobody takes rows any more when the answer is complete.
        columns::rows(class, &[&landed], |rows| give.blocking_send(rows).is_ok())
    });
    let next = async |(mut rows, made): (mpsc::Receiver<_>, Option<JoinHandle<Result<(), LakeError>>>)| {
        if let Some(batch) = rows.recv().await {
            return Some((Ok(batch), (rows, made)));
        }
        // The rows end here; a panic or an error must not look like the end.
        match made?.await {
            Ok(Ok(())) => None,
            Ok(Err(err)) => Some((Err(DataFusionError::External(Box::new(err))), (rows, None))),
            Err(err) => Some((Err(DataFusionError::External(Box::new(err))), (rows, None))),
        }
    };
    Ok(stream::unfold((rows, Some(made)), next).boxed())
}
