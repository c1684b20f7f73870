//! Runs one collector on its own thread, with jitter, deadline, panic isolation, restarts with backoff, and stop.

use super::{CollectorState, CollectorStatuses, QueueSink};
use crate::{now, runtime::events::positions_source};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use vedette_collectors::{
    AnySettings, CollectorContext, Outlet, Plan, Poll, Progress, Sink, Spec, StopSignal, Wake, Watch,
};
use vedette_transport::{Backoff, Queue};
use vedette_wire::{Body, Chunk, Position, Source, body::LifecycleEvent};

/// Bounds of the pause after a failure.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Poll interval for a source that the host lacks.
const ABSENT_EVERY: Duration = Duration::from_secs(300);
/// A poll or a watch without progress for this long counts as stuck.
pub(crate) const STALL_DEADLINE: Duration = Duration::from_secs(60);

/// A collector and its dependencies.
pub(crate) struct Runner {
    pub(crate) spec: &'static Spec,
    /// An earlier runner of this collector was stopped: what it emitted may not be durable yet.
    pub(crate) is_replacement: bool,
    pub(crate) settings: AnySettings,
    pub(crate) context: CollectorContext,
    pub(crate) sink: Arc<QueueSink>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) statuses: Arc<CollectorStatuses>,
    pub(crate) stop: StopSignal,
    /// [`STALL_DEADLINE`], or a test's value.
    pub(crate) deadline: Duration,
}

/// Why one execution of the collector ended.
enum RunnerExit {
    Stopped,
    Absent(String),
    Failed(String),
}

impl Runner {
    /// Starts the thread.
    pub(crate) fn start(mut self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(self.spec.id.to_owned()).stack_size(512 << 10).spawn(move || self.run())
    }

    /// Waits for threads to end, up to a limit: one that hangs in the kernel must not delay the stop.
    pub(crate) async fn join_all(threads: Vec<JoinHandle<()>>, grace: Duration) {
        let deadline = Instant::now() + grace;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if !thread.is_finished() {
                tracing::warn!(
                    collector = thread.thread().name(),
                    "the collector did not stop in time; abandoning its thread"
                );
            }
        }
    }

    fn run(&mut self) {
        let id = self.spec.id;
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut has_predecessor = self.is_replacement;
        if has_predecessor && self.spec.has_cursors() {
            let why = "what it emitted before is not durable yet";
            self.statuses.set(id, CollectorState::Waiting, Some(why.to_owned()));
        }
        loop {
            let loaded = self.load_cursors(std::mem::replace(&mut has_predecessor, true));
            let began = Instant::now();
            let end = match catch_unwind(AssertUnwindSafe(|| match loaded {
                Ok(()) => self.run_once(),
                Err(end) => end,
            })) {
                Ok(end) => end,
                Err(panic) => RunnerExit::Failed(format!("panicked: {}", panic_text(&*panic))),
            };
            let pause = match end {
                RunnerExit::Stopped => return,
                RunnerExit::Absent(why) => {
                    tracing::debug!(collector = id, why, "nothing to observe");
                    self.statuses.set(id, CollectorState::Absent, Some(why));
                    ABSENT_EVERY
                }
                RunnerExit::Failed(why) => {
                    // A collector that ran longer than the longest pause has recovered.
                    if began.elapsed() > BACKOFF_MAX {
                        backoff.reset();
                    }
                    let pause = backoff.bound();
                    backoff.failed();
                    if self.statuses.set(id, CollectorState::Failing, Some(why.clone())) {
                        tracing::error!(collector = id, error = why, "collector failed; restarting it after a pause");
                        self.sink.lifecycle(LifecycleEvent::CollectorError, id, why);
                    }
                    pause
                }
            };
            if self.wait_or_stop(pause) {
                return;
            }
        }
    }

    /// Loads the cursors of a collector that has any. Those of a predecessor are complete once everything in the lane is durable, which
    /// it waits for until a stop; other collectors start even while nothing can become durable.
    fn load_cursors(&mut self, has_predecessor: bool) -> Result<(), RunnerExit> {
        if !self.spec.has_cursors() {
            return Ok(());
        }
        if has_predecessor {
            self.sink.wait_durable_unless(&self.stop).map_err(|_| RunnerExit::Stopped)?;
        }
        let cursors =
            self.queue.cursors(self.spec.id).and_then(|cursors| Ok((cursors, self.queue.stored(self.spec.id)?)));
        (self.context.cursors, self.context.stored) =
            cursors.map_err(|err| RunnerExit::Failed(format!("cursors cannot be read: {err}")))?;
        Ok(())
    }

    /// Waits for `pause`; returns true if the collector is to stop.
    fn wait_or_stop(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.stop.wait(left) {
                Wake::Stop => return true,
                Wake::Notified if !left.is_zero() => {}
                Wake::Notified | Wake::Timeout => return false,
            }
        }
    }

    fn run_once(&mut self) -> RunnerExit {
        match self.settings.build(&self.context) {
            Err(err) => RunnerExit::Failed(err.to_string()),
            Ok(Plan::Off) => RunnerExit::Absent("switched off".to_owned()),
            Ok(Plan::Absent(why)) => RunnerExit::Absent(why),
            Ok(Plan::Poll(every, poll)) => self.poll(every, poll),
            Ok(Plan::Watch(watch)) => self.watch(watch),
        }
    }

    fn watch(&mut self, mut watch: Box<dyn Watch>) -> RunnerExit {
        self.set_running(None);
        let sink: Arc<dyn Sink> = Arc::clone(&self.sink) as Arc<dyn Sink>;
        let mut outlet = Outlet::new(sink, self.stop.clone());
        let watchdog = Watchdog::for_watch(self.spec.id, &self.statuses, self.deadline, outlet.progress());
        let ended = watch.watch(&self.context, &mut outlet);
        drop(watchdog);
        self.exit_of(ended)
    }

    fn poll(&mut self, every: Duration, mut poll: Box<dyn Poll>) -> RunnerExit {
        let source = positions_source(self.spec.id);
        let (mut next, mut reported) = (0, None);
        loop {
            let watchdog = Watchdog::for_poll(self.spec.id, &self.statuses, self.deadline);
            let polled = poll.poll(&self.context);
            drop(watchdog);
            if self.stop.is_stopped() {
                return RunnerExit::Stopped;
            }
            let bodies = match polled {
                Ok(bodies) => bodies,
                Err(err) => return self.exit_of(Err(err)),
            };
            let problem = poll.missing_permission();
            self.set_running(problem.clone());
            if problem != reported
                && let Some(why) = &problem
            {
                tracing::warn!(collector = self.spec.id, why, "the collector lacks permissions");
                self.sink.lifecycle(LifecycleEvent::CollectorError, self.spec.id, why.clone());
            }
            reported = problem;
            for chunk in chunks_of(&source, &mut next, bodies, now()) {
                if let Err(err) = self.sink.put(chunk, &self.stop) {
                    return self.exit_of(Err(err));
                }
            }
            if self.wait_or_stop(with_jitter(every)) {
                return RunnerExit::Stopped;
            }
        }
    }

    /// Sets the state to running; `problem` is one that remains.
    fn set_running(&self, problem: Option<String>) {
        let was_failing = self
            .statuses
            .all()
            .iter()
            .any(|(id, status)| *id == self.spec.id && status.state == CollectorState::Failing);
        self.statuses.set(self.spec.id, CollectorState::Running, problem);
        if was_failing {
            self.sink.lifecycle(
                LifecycleEvent::CollectorRecovered,
                self.spec.id,
                "the collector works again".to_owned(),
            );
        }
    }

    fn exit_of(&self, result: Result<(), vedette_collectors::CollectError>) -> RunnerExit {
        use vedette_collectors::CollectError::{Absent, Stopped};
        match result {
            Ok(()) | Err(Stopped) => RunnerExit::Stopped,
            Err(Absent(why)) => RunnerExit::Absent(why),
            Err(err) => RunnerExit::Failed(err.to_string()),
        }
    }
}

/// Spreads an interval by a tenth in either direction, so that hosts do not poll in step.
fn with_jitter(every: Duration) -> Duration {
    every.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Size at which a chunk of a poll is closed. Small chunks limit the intake's memory and the size of a batch.
const CHUNK_BYTES: usize = 128 << 10;

/// Encodes the bodies of a poll as chunks with consecutive positions, lazily.
pub(crate) fn chunks_of(
    source: &Arc<Source>,
    next: &mut u64,
    bodies: Vec<Body>,
    observed: i64,
) -> impl Iterator<Item = Chunk> {
    let mut bodies = bodies.into_iter();
    std::iter::from_fn(move || {
        let mut chunk = Chunk::new(Arc::clone(source));
        for body in bodies.by_ref() {
            chunk.push(observed, Position(*next, *next + 1), &body);
            *next += 1;
            if chunk.bodies.len() >= CHUNK_BYTES {
                break;
            }
        }
        (!chunk.entries.is_empty()).then_some(chunk)
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Marks a poll or watch as stuck. It does not end it, since a thread cannot be ended from outside.
struct Watchdog(StopSignal);

impl Watchdog {
    fn for_watch(id: &'static str, statuses: &Arc<CollectorStatuses>, deadline: Duration, progress: Progress) -> Self {
        let (signal, statuses) = (StopSignal::default(), Arc::clone(statuses));
        let ended = signal.clone();
        let watch_progress = move || {
            let (mut steps, mut is_stuck) = (progress.steps(), false);
            while ended.wait(deadline) == Wake::Timeout {
                let count = progress.steps();
                let is_stalled = count == steps && !progress.is_waiting();
                if is_stalled != is_stuck {
                    is_stuck = is_stalled;
                    if is_stalled {
                        let why = format!("no progress for {deadline:?}");
                        tracing::error!(collector = id, "{why}");
                        statuses.set_stuck(id, Some(why));
                    } else {
                        statuses.set_stuck(id, None);
                    }
                }
                steps = count;
            }
        };
        if let Err(err) = std::thread::Builder::new().stack_size(128 << 10).spawn(watch_progress) {
            tracing::warn!(collector = id, error = %err, "cannot start the watchdog thread; a stuck collector will not be reported");
        }
        Self(signal)
    }

    fn for_poll(id: &'static str, statuses: &Arc<CollectorStatuses>, deadline: Duration) -> Self {
        let (signal, statuses) = (StopSignal::default(), Arc::clone(statuses));
        let ended = signal.clone();
        let watch_deadline = move || {
            if ended.wait(deadline) == Wake::Timeout {
                let why = format!("the poll has not returned for {deadline:?}");
                tracing::error!(collector = id, "{why}");
                statuses.set_stuck(id, Some(why));
            }
        };
        if let Err(err) = std::thread::Builder::new().stack_size(128 << 10).spawn(watch_deadline) {
            tracing::warn!(collector = id, error = %err, "cannot start the watchdog thread; a stuck collector will not be reported");
        }
        Self(signal)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests;
