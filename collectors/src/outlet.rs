//! The outlet of a collector: emits chunks, and receives wake-ups and the stop signal.

use crate::{CollectError, CollectorClass};
use parking_lot::{Condvar, Mutex};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use vedette_wire::{Chunk, Source};

/// Destination of chunks: the transport, the screen, or a test's list.
pub trait Sink: Send + Sync {
    /// Accepts a chunk; waits while there is no room. A stopped collector emits nothing more, since a later policy might apply
    /// to it.
    ///
    /// # Errors
    /// [`CollectError::Stopped`] if the collector or the agent stops first.
    fn put(&self, chunk: Chunk, stop: &StopSignal) -> Result<(), CollectError>;

    /// Accepts a chunk of a push source. If there is no room, the lowest class is dropped first and counted.
    ///
    /// # Errors
    /// [`CollectError::Stopped`] if the agent has stopped.
    fn offer(&self, chunk: Chunk, _class: CollectorClass) -> Result<(), CollectError> {
        self.put(chunk, &StopSignal::default())
    }

    /// Whether the queue has room for a source. A source that `waits` gets room again when it holds less than a smaller share.
    fn has_room(&self, _source: &Source, _waits: bool) -> bool {
        true
    }

    /// Reports a problem of a running collector.
    fn report_problem(&self, collector: &'static str, message: String);

    /// Clears the last reported problem.
    fn recovered(&self, _collector: &'static str) {}
}

#[derive(Debug, Default)]
struct Flags {
    stop: bool,
    woken: bool,
    /// Signals that stop together with this one.
    children: Vec<StopSignal>,
}

/// Stop signal of a collector. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<(Mutex<Flags>, Condvar)>);

/// Wakes a collector. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Waker(StopSignal);

/// Why [`Outlet::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A stop was requested.
    Stop,
    /// A wake-up arrived.
    Notified,
    /// The time has passed.
    Timeout,
}

impl StopSignal {
    /// Stops the collector, and every child signal.
    pub fn stop(&self) {
        let mut children = Vec::new();
        self.set(|flags| {
            flags.stop = true;
            children.append(&mut flags.children);
        });
        for child in children {
            child.stop();
        }
    }

    /// A signal that stops together with this one, and has its own wake-ups.
    pub fn child(&self) -> Self {
        let child = Self::default();
        let stopped = self.is_stopped();
        self.set(|flags| flags.children.push(child.clone()));
        if stopped {
            child.stop();
        }
        child
    }

    /// A handle for wake-ups.
    pub fn waker(&self) -> Waker {
        Waker(self.clone())
    }

    /// Whether a stop was requested.
    pub fn is_stopped(&self) -> bool {
        self.0.0.lock().stop
    }

    /// Waits for `most`, for a wake-up or for a stop.
    pub fn wait(&self, most: Duration) -> Wake {
        let (flags, changed) = &*self.0;
        let mut flags = flags.lock();
        changed.wait_while_for(&mut flags, |flags| !flags.stop && !flags.woken, most);
        if flags.stop {
            Wake::Stop
        } else if std::mem::take(&mut flags.woken) {
            Wake::Notified
        } else {
            Wake::Timeout
        }
    }

    /// Waits for `most` or for a stop, not for wake-ups; true on a stop.
    pub fn pause(&self, most: Duration) -> bool {
        let (flags, changed) = &*self.0;
        let mut flags = flags.lock();
        changed.wait_while_for(&mut flags, |flags| !flags.stop, most);
        flags.stop
    }

    fn set(&self, change: impl FnOnce(&mut Flags)) {
        let (flags, changed) = &*self.0;
        change(&mut flags.lock());
        changed.notify_all();
    }
}

impl Waker {
    /// Wakes the collector.
    pub fn wake(&self) {
        self.0.set(|flags| flags.woken = true);
    }
}

/// Progress of a collector that runs its own loop: each call of its outlet is a step.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<(AtomicU64, AtomicBool)>);

impl Progress {
    /// Number of steps.
    pub fn steps(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Whether it waits for time to pass or for room.
    pub fn is_waiting(&self) -> bool {
        self.0.1.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }

    fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.1.store(true, Ordering::Relaxed);
        let done = wait();
        self.0.1.store(false, Ordering::Relaxed);
        self.step();
        done
    }
}

/// Outlet of a collector.
pub struct Outlet {
    sink: Arc<dyn Sink>,
    signal: StopSignal,
    progress: Progress,
}

impl Outlet {
    /// Creates an outlet into a sink.
    pub fn new(sink: Arc<dyn Sink>, signal: StopSignal) -> Self {
        Self { sink, signal, progress: Progress::default() }
    }

    /// Progress, for a watchdog.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Emits a chunk; waits while there is no room.
    ///
    /// # Errors
    /// [`CollectError::Stopped`].
    pub fn emit(&self, chunk: Chunk) -> Result<(), CollectError> {
        self.progress.waiting(|| self.sink.put(chunk, &self.signal))
    }

    /// Emits a chunk of a push source.
    ///
    /// # Errors
    /// [`CollectError::Stopped`].
    pub fn offer(&self, chunk: Chunk, class: CollectorClass) -> Result<(), CollectError> {
        self.progress.waiting(|| self.sink.offer(chunk, class))
    }

    /// Reports a problem while the collector continues.
    pub fn report_problem(&self, collector: &'static str, what: &impl std::fmt::Display) {
        self.sink.report_problem(collector, what.to_string());
    }

    /// Clears the last reported problem.
    pub fn recovered(&self, collector: &'static str) {
        self.sink.recovered(collector);
    }

    /// A handle for wake-ups.
    pub fn waker(&self) -> Waker {
        Waker(self.signal.clone())
    }

    /// Waits for a wake-up, a stop, or at most `most`.
    pub fn wait(&self, most: Duration) -> Wake {
        self.progress.waiting(|| self.signal.wait(most))
    }

    /// Waits for `most` or for a stop, not for wake-ups; true on a stop.
    pub fn pause(&self, most: Duration) -> bool {
        self.progress.waiting(|| self.signal.pause(most))
    }

    /// Whether the queue has room for a source: more of it for one that waits already.
    pub fn has_room(&self, source: &Source, waits: bool) -> bool {
        self.sink.has_room(source, waits)
    }

    /// Whether a stop was requested.
    pub fn is_stopped(&self) -> bool {
        self.progress.step();
        self.signal.is_stopped()
    }
}

/// Stores the cursors of a chunk in a test's list, as the queue does.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn store_cursors(cursors: &mut std::collections::BTreeMap<String, Vec<u8>>, chunk: &Chunk) {
    for id in &chunk.forget {
        cursors.remove(id);
    }
    if let Some(cursor) = &chunk.cursor {
        cursors.insert(chunk.source.id.clone(), cursor.clone());
    }
}
