//! Starts and stops collectors, each on its own thread.

use super::{
    CollectorStatuses, LaneSink, QueueSink,
    runner::{Runner, STALL_DEADLINE},
};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::oneshot;
use vedette_collectors::{AnySettings, CollectError, CollectorContext, Outlet, Sink, Spec, StopSignal, Waker};

/// Time that stopped collectors have to end; later their threads are abandoned.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Time that one call waits for a skip. A skip that takes longer goes on in its thread, since a file system may hang.
const SKIP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running collector.
struct Running {
    thread: JoinHandle<()>,
    stop: StopSignal,
    waker: Waker,
    /// Settings from the policy decision; if they change, the collector is restarted.
    settings: AnySettings,
    /// Running collectors among those that it defers to.
    enabled: BTreeSet<&'static str>,
}

/// Running collectors.
pub(in crate::runtime) struct Supervisor {
    statuses: Arc<CollectorStatuses>,
    stop: StopSignal,
    running: BTreeMap<&'static str, Running>,
    /// Collectors that were stopped: what they emitted last may not be durable yet.
    stopped: BTreeSet<&'static str>,
    /// Skips in progress, on their own threads, since a file system may hang.
    skipping: BTreeMap<&'static str, oneshot::Receiver<Result<(), CollectError>>>,
}

/// A collector to start.
pub(in crate::runtime) struct StartRequest {
    pub(in crate::runtime) spec: &'static Spec,
    /// Settings from the policy decision; if they change, the collector is restarted.
    pub(in crate::runtime) decided: AnySettings,
    /// The same settings with `enabled` on.
    pub(in crate::runtime) settings: AnySettings,
    pub(in crate::runtime) context: CollectorContext,
    pub(in crate::runtime) destination: LaneSink,
}

impl Supervisor {
    /// A supervisor without running collectors; `stop` stops all.
    pub(in crate::runtime) fn new(statuses: Arc<CollectorStatuses>, stop: StopSignal) -> Self {
        Self { statuses, stop, running: BTreeMap::new(), stopped: BTreeSet::new(), skipping: BTreeMap::new() }
    }

    pub(in crate::runtime) fn is_running(&self, id: &str) -> bool {
        self.running.contains_key(id)
    }

    /// Whether a collector runs with other settings than these, or beside others than these of those that it defers to.
    pub(in crate::runtime) fn is_outdated(
        &self,
        id: &str,
        settings: &AnySettings,
        enabled: &BTreeSet<&'static str>,
    ) -> bool {
        self.running.get(id).is_some_and(|running| running.settings != *settings || running.enabled != *enabled)
    }

    /// Wakes a collector.
    pub(in crate::runtime) fn wake(&self, id: &str) {
        if let Some(running) = self.running.get(id) {
            running.waker.wake();
        }
    }

    /// Starts a collector's thread.
    pub(in crate::runtime) fn start(&mut self, request: StartRequest) -> Result<()> {
        let StartRequest { spec, decided, settings, context, destination } = request;
        let stop = self.stop.child();
        let enabled = context.enabled.clone();
        let runner = Runner {
            spec,
            is_replacement: self.stopped.contains(spec.id),
            settings,
            context,
            queue: Arc::clone(destination.lane.queue()),
            sink: destination.sink,
            statuses: Arc::clone(&self.statuses),
            stop: stop.clone(),
            deadline: STALL_DEADLINE,
        };
        let thread = runner.start().context("cannot start a collector's thread")?;
        self.running.insert(spec.id, Running { thread, waker: stop.waker(), stop, settings: decided, enabled });
        Ok(())
    }

    /// Stops collectors, and waits up to `STOP_GRACE` for their threads to end.
    pub(in crate::runtime) async fn stop(&mut self, ids: &[&'static str]) {
        self.stopped.extend(ids);
        let stopping: Vec<Running> = ids.iter().filter_map(|id| self.running.remove(id)).collect();
        stopping.iter().for_each(|running| running.stop.stop());
        Runner::join_all(stopping.into_iter().map(|running| running.thread).collect(), STOP_GRACE).await;
    }

    /// Skips, in a thread, what was written while the collector was off. Fails if that takes longer than `SKIP_TIMEOUT`; the
    /// next call awaits the same skip.
    pub(in crate::runtime) async fn skip(
        &mut self,
        id: &'static str,
        (settings, context): (AnySettings, CollectorContext),
        sink: Arc<QueueSink>,
    ) -> Result<()> {
        let mut skipped = match self.skipping.remove(id) {
            Some(skipped) => skipped,
            None => {
                let (sender, receiver) = oneshot::channel();
                let stop = self.stop.child();
                let work = move || {
                    let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, stop);
                    drop(sender.send(settings.skip(&context, &outlet).and_then(|()| sink.wait_durable())));
                };
                std::thread::Builder::new().name(format!("skip-{id}")).spawn(work)?;
                receiver
            }
        };
        match tokio::time::timeout(SKIP_TIMEOUT, &mut skipped).await {
            Ok(skipped) => Ok(skipped.with_context(|| {
                format!("a panic ended the thread that skips what was written while {id} was off")
            })??),
            Err(_) => {
                self.skipping.insert(id, skipped);
                anyhow::bail!("collector {id} is still skipping what was written while it was off; trying again");
            }
        }
    }

    /// Waits up to `STOP_GRACE` for all collectors to end, after the stop signal.
    pub(in crate::runtime) async fn join(self) {
        Runner::join_all(self.running.into_values().map(|running| running.thread).collect(), STOP_GRACE).await;
    }
}
