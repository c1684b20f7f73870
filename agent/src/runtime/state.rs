//! Watches the state of delivery: a damaged or removed queue, batches that the workspace lost, a change of endpoint.

use super::{
    parts::Parts,
    status::StatusSource,
    tasks::{RestartReason, RunEnd},
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use vedette_platform::{FileIdentity, file_identity};

/// Poll interval.
const STATE_POLL: Duration = Duration::from_secs(1);
/// Minimum time between two re-readings of sources, whatever the workspace says.
const REREAD_EVERY: Duration = Duration::from_secs(3600);

/// Watches the state of delivery.
pub(super) struct DeliveryWatch {
    parts: Arc<Parts>,
    source: StatusSource,
    resumed: watch::Receiver<bool>,
    last_reread: Option<Instant>,
    database: PathBuf,
    opened: Option<FileIdentity>,
}

impl DeliveryWatch {
    /// `resumed` tells whether sources have resumed after the loss of a queue. `last_reread` is the time of the last re-read.
    pub(super) fn new(
        parts: Arc<Parts>,
        source: StatusSource,
        resumed: watch::Receiver<bool>,
        last_reread: Option<Instant>,
    ) -> Self {
        let database = parts.config.state_dir.join("records.redb");
        let opened = file_identity(&database);
        Self { parts, source, resumed, last_reread, database, opened }
    }

    /// Watches until the agent must end or restart its tasks.
    pub(super) async fn watch(&self) -> RunEnd {
        let mut poll = tokio::time::interval(STATE_POLL);
        let mut endpoint = self.parts.client.endpoints().in_use().url.clone();
        loop {
            poll.tick().await;
            self.follow_endpoint(&mut endpoint);
            if let Some(end) = self.end().await {
                return end;
            }
        }
    }

    /// Reports another endpoint at once, and lets the sender try it.
    fn follow_endpoint(&self, endpoint: &mut String) {
        let now = self.parts.client.endpoints().in_use().url.clone();
        if now != *endpoint {
            *endpoint = now;
            if self.parts.client.endpoints().take_wake() {
                self.parts.records.lane.try_again();
            }
            self.parts.events.heartbeat(|| self.source.heartbeat());
        }
    }

    async fn end(&self) -> Option<RunEnd> {
        let lane = &self.parts.records.lane;
        // A loss in an earlier epoch has already led to a re-read.
        let lost = self.parts.delivery.take_lost().filter(|(slot, _)| lane.queue().is_of_epoch(*slot));
        let lost = lost.map(|(_, range)| range).filter(|_| *self.resumed.borrow());
        if let Some(lost) = lost.filter(|_| self.last_reread.is_none_or(|at| at.elapsed() >= REREAD_EVERY)) {
            let queue = Arc::clone(lane.queue());
            match tokio::task::spawn_blocking(move || queue.record_lost(lost)).await.expect("the queue does not panic")
            {
                Ok(()) => return Some(RunEnd::Restart(RestartReason::BatchesLost)),
                Err(err) => tracing::error!(error = %err, "the queue cannot be updated; trying again"),
            }
        }
        if lane.queue().is_damaged() {
            return Some(RunEnd::Restart(RestartReason::QueueDamaged));
        }
        if lane.is_broken() {
            return Some(RunEnd::Fatal("a thread of the queue or the sender ended unexpectedly".to_owned()));
        }
        (file_identity(&self.database) != self.opened).then_some(RunEnd::Restart(RestartReason::StateRemoved))
    }
}
