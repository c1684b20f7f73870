//! Watches the state of delivery: a damaged or removed queue, batches that the workspace lost, a change of endpoint.

use super::{
    context::AgentContext,
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
    agent: Arc<AgentContext>,
    source: StatusSource,
    resumed: watch::Receiver<bool>,
    last_reread: Option<Instant>,
    database: PathBuf,
    opened: Option<FileIdentity>,
}

impl DeliveryWatch {
    /// `resumed` tells whether sources have resumed after the loss of a queue. `last_reread` is the time of the last re-read.
    pub(super) fn new(
        agent: Arc<AgentContext>,
        source: StatusSource,
        resumed: watch::Receiver<bool>,
        last_reread: Option<Instant>,
    ) -> Self {
        let database = agent.config.state_dir.join("records.redb");
        let opened = file_identity(&database);
        Self { agent, source, resumed, last_reread, database, opened }
    }

    /// Watches until the agent must end or restart its tasks.
    pub(super) async fn watch(&self) -> RunEnd {
        let mut poll = tokio::time::interval(STATE_POLL);
        let mut endpoint = self.agent.client.endpoints().in_use().url.clone();
        loop {
            poll.tick().await;
            self.follow_endpoint(&mut endpoint);
            if let Some(reason) = self.reason_to_end().await {
                return reason;
            }
        }
    }

    /// Reports another endpoint at once, and lets the sender try it.
    fn follow_endpoint(&self, endpoint: &mut String) {
        let now = self.agent.client.endpoints().in_use().url.clone();
        if now != *endpoint {
            *endpoint = now;
            if self.agent.client.endpoints().take_wake() {
                self.agent.records.lane.try_again();
            }
            self.agent.events.heartbeat(|| self.source.heartbeat());
        }
    }

    async fn reason_to_end(&self) -> Option<RunEnd> {
        let lane = &self.agent.records.lane;
        // A loss in an earlier epoch has already led to a re-read.
        let lost = self.agent.delivery.take_lost().filter(|(slot, _)| lane.queue().is_of_epoch(*slot));
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
        (file_identity(&self.database) != self.opened).then_some(RunEnd::Restart(RestartReason::QueueRemoved))
    }
}
