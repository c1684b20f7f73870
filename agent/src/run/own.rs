//! The agent's own records: heartbeat and lifecycle.

use super::{VERSION, positions_source, status};
use crate::now;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{runtime::Handle, task::JoinHandle};
use vedette_transport::Intake;
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Heartbeat, Lifecycle, LifecycleEvent},
};

/// The collector's name that they carry.
const AGENT: &str = "agent";

/// Emits them; each is its own chunk.
#[derive(Debug)]
pub(crate) struct OwnRecords {
    intake: Intake,
    source: Arc<Source>,
    next: AtomicU64,
}

impl OwnRecords {
    pub(crate) fn new(intake: Intake) -> Self {
        Self { intake, source: positions_source(AGENT), next: AtomicU64::new(0) }
    }

    /// Hand a record over. The intake may be full: a caller on the async thread gets a task that waits instead of it.
    fn emit(&self, body: impl Into<Body>) -> Option<JoinHandle<()>> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let mut chunk = Chunk::new(Arc::clone(&self.source));
        chunk.push(now(), Position(at, at + 1), &body.into());
        let intake = self.intake.clone();
        let put = move || {
            if let Err(err) = intake.put(chunk) {
                tracing::debug!(error = %err, "a record of the agent itself comes too late");
            }
        };
        if Handle::try_current().is_ok() {
            return Some(tokio::task::spawn_blocking(put));
        }
        put();
        None
    }

    /// The task, on the async thread, ends when the record is handed over.
    pub(crate) fn lifecycle(
        &self,
        event: LifecycleEvent,
        message: String,
        collector: Option<&str>,
        configuration: Option<String>,
    ) -> Option<JoinHandle<()>> {
        let collector = collector.map(str::to_owned);
        self.emit(Lifecycle { event, message, version: VERSION.to_owned(), collector, configuration })
    }

    pub(crate) fn heartbeat(&self, source: &status::Source) {
        let report = source.report();
        self.emit(Heartbeat {
            version: VERSION.to_owned(),
            policy_revision: report.policy_revision,
            endpoint: Some(report.endpoint),
            queue_bytes: report.queue.bytes,
            queue_batches: report.queue.batches,
            oldest_unsent: report.oldest_sealed,
            rss_bytes: report.rss_bytes,
            collectors: report.collectors.into_iter().map(status::Collector::health).collect(),
        });
    }
}
