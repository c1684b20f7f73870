//! The agent's own events: heartbeat and lifecycle.

use super::policy::PolicyStatus;
use crate::{config::Resolved, exit::VERSION, now};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use vedette_transport::Intake;
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Heartbeat, Lifecycle, LifecycleEvent},
};

/// Interval of heartbeats.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);
/// Collector name of these records.
const AGENT: &str = "agent";

/// A source with running numbers as positions; each start of a collector has its own.
pub(crate) fn positions_source(collector: &'static str) -> Arc<Source> {
    Arc::new(Source { collector, id: format!("run:{:016x}", fastrand::u64(..)), name: None })
}

/// Emits the agent's own events, each in its own chunk.
#[derive(Debug)]
pub(crate) struct AgentEvents {
    intake: Intake,
    source: Arc<Source>,
    next: AtomicU64,
    /// A heartbeat waits for room.
    beating: Arc<AtomicBool>,
    /// Whether collection is off: nothing is emitted then.
    policy: watch::Receiver<PolicyStatus>,
}

impl AgentEvents {
    pub(crate) fn new(intake: Intake, policy: watch::Receiver<PolicyStatus>) -> Self {
        Self { intake, source: positions_source(AGENT), next: AtomicU64::new(0), beating: Arc::default(), policy }
    }

    /// Emits a record and then calls `done`. If the intake is full, an async caller gets a task that waits in its place.
    fn emit(&self, body: impl Into<Body>, done: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
        if self.are_own_events_off() {
            done();
            return None;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let mut chunk = Chunk::new(Arc::clone(&self.source));
        chunk.push(now(), Position(at, at + 1), &body.into());
        let (intake, policy) = (self.intake.clone(), self.policy.clone());
        let put = move || {
            // Also discards a record that waited while collection was switched off.
            if let Err(err) = intake.put_unless(chunk, || policy.borrow().are_own_events_off) {
                tracing::debug!(error = %err, "the agent is stopping; one of its own records is discarded");
            }
            done();
        };
        if Handle::try_current().is_ok() {
            return Some(tokio::task::spawn_blocking(put));
        }
        put();
        None
    }

    /// Whether heartbeats and lifecycle records are suppressed.
    pub(crate) fn are_own_events_off(&self) -> bool {
        self.policy.borrow().are_own_events_off
    }

    /// Emits which collectors a configuration enables.
    pub(super) fn configuration(&self, config: &Resolved) {
        let enabled = config.enabled().into_iter().collect::<Vec<_>>().join(", ");
        let (message, digest) = (format!("collectors: {enabled}"), Some(config.digest.clone()));
        drop(self.lifecycle(LifecycleEvent::Configuration, message, None, digest));
    }

    /// Emits a lifecycle event. For an async caller the returned task ends when it is handed over.
    pub(crate) fn lifecycle(
        &self,
        event: LifecycleEvent,
        message: String,
        collector: Option<&str>,
        configuration: Option<String>,
    ) -> Option<JoinHandle<()>> {
        let collector = collector.map(str::to_owned);
        self.emit(Lifecycle { event, message, version: VERSION.to_owned(), collector, configuration }, || {})
    }

    /// Emits a heartbeat now and every minute.
    pub(crate) async fn beat(&self, make: impl Fn() -> Heartbeat) -> Infallible {
        let mut ticks = tokio::time::interval(HEARTBEAT_EVERY);
        loop {
            ticks.tick().await;
            self.heartbeat(&make);
        }
    }

    /// Emits a heartbeat unless one is waiting. While the queue is full for hours, waiting tasks must not use up the threads
    /// that the sender needs.
    pub(crate) fn heartbeat(&self, make: impl FnOnce() -> Heartbeat) {
        if self.beating.swap(true, Ordering::AcqRel) {
            return;
        }
        let beating = Arc::clone(&self.beating);
        self.emit(make(), move || beating.store(false, Ordering::Release));
    }
}

/// A policy that collects, for tests.
#[cfg(test)]
pub(super) fn collecting() -> watch::Receiver<PolicyStatus> {
    watch::channel(PolicyStatus::default()).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_that_find_no_room_do_not_use_up_the_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        let runtime = runtime.expect("builds");
        let intake = Intake::new(1);
        let events = AgentEvents::new(intake.clone(), collecting());
        events.lifecycle(LifecycleEvent::Start, String::new(), None, None);
        runtime.block_on(async {
            for _ in 0..10 {
                events.heartbeat(Heartbeat::default);
            }
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(5), other).await.expect("a thread is free").expect("no panic");
        });
        intake.close();
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_goes_at_start_and_every_minute() {
        let events = AgentEvents::new(Intake::new(1 << 20), collecting());
        let hour = tokio::time::timeout(Duration::from_secs(3600 - 1), events.beat(Heartbeat::default));
        hour.await.expect_err("it never ends");
        assert_eq!(events.next.load(Ordering::Relaxed), 60);
    }
}
