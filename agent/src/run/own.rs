//! The agent's own records: heartbeat and lifecycle.

use super::{VERSION, positions_source};
use crate::now;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Handle, task::JoinHandle};
use vedette_transport::Intake;
use vedette_wire::{
    Body, Chunk, Position, Source,
    body::{Heartbeat, Lifecycle, LifecycleEvent},
};

/// How often a heartbeat goes.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);
/// The collector's name that they carry.
const AGENT: &str = "agent";

/// Emits them; each is its own chunk.
#[derive(Debug)]
pub(crate) struct OwnRecords {
    intake: Intake,
    source: Arc<Source>,
    next: AtomicU64,
    /// A heartbeat waits for room.
    beating: Arc<AtomicBool>,
    /// The policy switches collection off: nothing is said.
    silent: Arc<AtomicBool>,
}

impl OwnRecords {
    pub(crate) fn new(intake: Intake) -> Self {
        Self {
            intake,
            source: positions_source(AGENT),
            next: AtomicU64::new(0),
            beating: Arc::default(),
            silent: Arc::default(),
        }
    }

    /// Hand a record over, and then do `done`. The intake may be full: a caller on the async thread gets a task that
    /// waits instead of it.
    fn emit(&self, body: impl Into<Body>, done: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
        if self.silent.load(Ordering::Acquire) {
            done();
            return None;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let mut chunk = Chunk::new(Arc::clone(&self.source));
        chunk.push(now(), Position(at, at + 1), &body.into());
        let (intake, silent) = (self.intake.clone(), Arc::clone(&self.silent));
        let put = move || {
            // Also where it waited for room while collection was switched off.
            if let Err(err) = intake.put_unless(chunk, || silent.load(Ordering::Acquire)) {
                tracing::debug!(error = %err, "a record of the agent itself comes too late");
            }
            done();
        };
        if Handle::try_current().is_ok() {
            return Some(tokio::task::spawn_blocking(put));
        }
        put();
        None
    }

    /// Say nothing from now on, or speak again.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Release);
    }

    /// Whether nothing is said.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
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
        self.emit(Lifecycle { event, message, version: VERSION.to_owned(), collector, configuration }, || {})
    }

    /// A heartbeat now and every minute.
    pub(crate) async fn beat(&self, make: impl Fn() -> Heartbeat) -> Infallible {
        let mut ticks = tokio::time::interval(HEARTBEAT_EVERY);
        loop {
            ticks.tick().await;
            self.heartbeat(&make);
        }
    }

    /// One heartbeat waits at the most: while the queue is full for hours, tasks that wait must not take the threads
    /// that the sender needs to empty it.
    pub(super) fn heartbeat(&self, make: impl FnOnce() -> Heartbeat) {
        if self.beating.swap(true, Ordering::AcqRel) {
            return;
        }
        let beating = Arc::clone(&self.beating);
        self.emit(make(), move || beating.store(false, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_that_find_no_room_do_not_use_up_the_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(2).build();
        let runtime = runtime.expect("builds");
        let intake = Intake::new(1);
        let own = OwnRecords::new(intake.clone());
        own.lifecycle(LifecycleEvent::Start, String::new(), None, None);
        runtime.block_on(async {
            for _ in 0..10 {
                own.heartbeat(Heartbeat::default);
            }
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(5), other).await.expect("a thread is free").expect("no panic");
        });
        intake.close();
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_goes_at_start_and_every_minute() {
        let own = OwnRecords::new(Intake::new(1 << 20));
        let hour = tokio::time::timeout(Duration::from_secs(3600 - 1), own.beat(Heartbeat::default));
        hour.await.expect_err("it never ends");
        assert_eq!(own.next.load(Ordering::Relaxed), 60);
    }
}
