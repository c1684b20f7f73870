//! Landed batches as a table, read while a query runs: each partition holds one decoded batch at a time, however many
//! have landed.

use crate::{Landed, columns};
use datafusion::{
    arrow::{datatypes::SchemaRef, record_batch::RecordBatch},
    catalog::streaming::StreamingTable,
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_plan::{stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use std::sync::Arc;
use vedette_wire::{Batch, ocsf::Class, policy::Store};

/// Streams at the most; each decodes one batch at a time.
const PARTITIONS_MAX: usize = 4;

/// A landed batch that has not been read.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Its landing key.
    pub key: String,
    /// Day of the partition, `YYYY-MM-DD`.
    pub day: String,
    /// When it landed, nanoseconds UTC.
    pub landed: i64,
    /// The store level that it was observed under.
    pub store: Store,
}

/// Where landed batches are read.
pub trait Landing: std::fmt::Debug + Send + Sync {
    /// Read one; absent where it is damaged, which the implementation reports.
    ///
    /// # Errors
    /// Where the store cannot be read now: the query ends, an answer with holes would not be told from a whole one.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Batch>, String>>;
}

/// The rows of one class in a share of the batches.
#[derive(Debug)]
struct Share {
    class: Class,
    schema: SchemaRef,
    fresh: Vec<Fresh>,
    landing: Arc<dyn Landing>,
}

/// The rows of one class in some landed batches.
pub(crate) fn table(
    class: Class,
    fresh: &[&Fresh],
    landing: &Arc<dyn Landing>,
) -> Result<StreamingTable, DataFusionError> {
    let schema = columns::schema(class);
    let share = |fresh: Vec<Fresh>| -> Arc<dyn PartitionStream> {
        Arc::new(Share { class, schema: Arc::clone(&schema), fresh, landing: Arc::clone(landing) })
    };
    let length = fresh.len().div_ceil(PARTITIONS_MAX).max(1);
    let mut shares: Vec<_> =
        fresh.chunks(length).map(|part| share(part.iter().map(|fresh| (*fresh).clone()).collect())).collect();
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
        let rows = stream::iter(self.fresh.clone())
            .then(move |fresh| read(class, Arc::clone(&landing), fresh))
            .map_ok(|rows| stream::iter(rows.into_iter().map(Ok)))
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

async fn read(class: Class, landing: Arc<dyn Landing>, fresh: Fresh) -> Result<Vec<RecordBatch>, DataFusionError> {
    let Fresh { key, day, landed, store } = fresh;
    let read = landing.read(&key).await.map_err(|err| DataFusionError::Execution(format!("{key}: {err}")))?;
    let Some(batch) = read else { return Ok(Vec::new()) };
    let rows = move || columns::rows(class, &[&Landed { key, day, landed, store, batch }]);
    // Cancelled where the answer has all it asked for and the program ends.
    let rows = tokio::task::spawn_blocking(rows).await.map_err(|err| DataFusionError::External(Box::new(err)))?;
    rows.map_err(|err| DataFusionError::External(Box::new(err)))
}
