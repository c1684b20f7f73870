//! The way out of a collector, and the way it is told to look again or to stop.

use crate::{Class, CollectError};
use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Source};

/// Where chunks go: the transport, the screen, or a test's list.
pub trait Sink: Send + Sync {
    /// Take a chunk; waits while there is no room. Nothing is taken from a collector that is told to stop: what it hands
    /// over later would count under another policy.
    ///
    /// # Errors
    /// [`CollectError::Stopped`] where the collector or the agent is stopped before there is room.
    fn put(&self, chunk: Chunk, stop: &StopSignal) -> Result<(), CollectError>;

    /// Take a chunk of a source that cannot wait: where there is no room, the lowest class is dropped first and counted.
    ///
    /// # Errors
    /// [`CollectError::Stopped`] where the agent has stopped.
    fn offer(&self, chunk: Chunk, _class: Class) -> Result<(), CollectError> {
        self.put(chunk, &StopSignal::default())
    }

    /// Whether the queue takes more of a source; false where that holds its share of it. One that `waits` goes on when it holds
    /// less than what it stopped at.
    fn has_room(&self, _source: &Source, _waits: bool) -> bool {
        true
    }

    /// Report what a collector could not do while it goes on with the rest.
    fn complain(&self, collector: &'static str, message: String);

    /// What it complained of last is over.
    fn recovered(&self, _collector: &'static str) {}
}

#[derive(Debug, Default)]
struct Flags {
    stop: bool,
    woken: bool,
    /// Signals that stop with this one.
    children: Vec<StopSignal>,
}

/// Tells a collector to stop. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StopSignal(Arc<(Mutex<Flags>, Condvar)>);

/// Tells a collector to look again at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Waker(StopSignal);

/// Why [`Outlet::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Stop.
    Stop,
    /// Somebody saw something.
    Look,
    /// Time has passed.
    Time,
}

impl StopSignal {
    /// Stop, with every child.
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

    /// A signal that stops with this one and is woken by itself.
    pub fn child(&self) -> Self {
        let child = Self::default();
        let stopped = self.is_stopped();
        self.set(|flags| flags.children.push(child.clone()));
        if stopped {
            child.stop();
        }
        child
    }

    /// For whoever sees that there is something to look at.
    pub fn waker(&self) -> Waker {
        Waker(self.clone())
    }

    /// Whether it was told.
    pub fn is_stopped(&self) -> bool {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    /// Wait for `most`, or shorter where something is told meanwhile.
    pub fn wait(&self, most: Duration) -> Wake {
        let (flags, changed) = &*self.0;
        let flags = flags.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut flags, _) = changed
            .wait_timeout_while(flags, most, |flags| !flags.stop && !flags.woken)
            .unwrap_or_else(PoisonError::into_inner);
        if flags.stop {
            Wake::Stop
        } else if std::mem::take(&mut flags.woken) {
            Wake::Look
        } else {
            Wake::Time
        }
    }

    /// Wait for `most` whatever comes, or until told to stop; true then.
    pub fn pause(&self, most: Duration) -> bool {
        let (flags, changed) = &*self.0;
        let flags = flags.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(flags, most, |flags| !flags.stop);
        waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    fn set(&self, change: impl FnOnce(&mut Flags)) {
        let (flags, changed) = &*self.0;
        change(&mut flags.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }
}

impl Waker {
    /// Look again.
    pub fn wake(&self) {
        self.0.set(|flags| flags.woken = true);
    }
}

/// Whether a collector that owns a loop goes round in it: each call of its outlet is a step.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<(AtomicU64, AtomicBool)>);

impl Progress {
    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Whether it waits for others: for time to pass, or for room.
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

/// A source that has waited for room in the queue for so long is to be reported: while batches leave, it goes on sooner.
const REPORTED_AFTER: Duration = Duration::from_secs(5);

/// Whether a source may be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// The queue takes more of it.
    Free,
    /// It holds its share of the queue.
    Full,
    /// It has done so for some time.
    LongFull,
}

/// Since when a source waits for room in the queue; absent where it does not.
#[derive(Debug, Default)]
pub(crate) struct RoomWait(Option<Instant>);

impl RoomWait {
    /// Whether there is room for the source now.
    pub(crate) fn check(&mut self, outlet: &Outlet, source: &Source) -> Room {
        if outlet.sink.has_room(source, self.0.is_some()) {
            self.0 = None;
            return Room::Free;
        }
        let since = *self.0.get_or_insert_with(Instant::now);
        if since.elapsed() < REPORTED_AFTER { Room::Full } else { Room::LongFull }
    }

    /// Whether it waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }
}

/// A collector's outlet.
pub struct Outlet {
    sink: Arc<dyn Sink>,
    signal: StopSignal,
    progress: Progress,
}

impl Outlet {
    /// An outlet into a sink.
    pub fn new(sink: Arc<dyn Sink>, signal: StopSignal) -> Self {
        Self { sink, signal, progress: Progress::default() }
    }

    /// For whoever watches that the collector goes on.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Hand a chunk over; waits while there is no room.
    ///
    /// # Errors
    /// [`CollectError::Stopped`].
    pub fn emit(&self, chunk: Chunk) -> Result<(), CollectError> {
        self.progress.waiting(|| self.sink.put(chunk, &self.signal))
    }

    /// Hand over a chunk of a source that cannot wait.
    ///
    /// # Errors
    /// [`CollectError::Stopped`].
    pub fn offer(&self, chunk: Chunk, class: Class) -> Result<(), CollectError> {
        self.progress.waiting(|| self.sink.offer(chunk, class))
    }

    /// Report what could not be done while the collector goes on with the rest.
    pub fn complain(&self, collector: &'static str, what: &impl std::fmt::Display) {
        self.sink.complain(collector, what.to_string());
    }

    /// What was reported last is over.
    pub fn recovered(&self, collector: &'static str) {
        self.sink.recovered(collector);
    }

    /// For whoever sees first that there is something to look at.
    pub fn waker(&self) -> Waker {
        Waker(self.signal.clone())
    }

    /// Wait until something is to be done, `most` at the most.
    pub fn wait(&self, most: Duration) -> Wake {
        self.progress.waiting(|| self.signal.wait(most))
    }

    /// Wait for `most` whatever comes, or until told to stop; true then.
    pub fn pause(&self, most: Duration) -> bool {
        self.progress.waiting(|| self.signal.pause(most))
    }

    /// Whether the collector is to stop.
    pub fn is_stopped(&self) -> bool {
        self.progress.step();
        self.signal.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has room down to one half for who waits, and down to a quarter for others.
    struct Half(AtomicU64);

    impl Sink for Half {
        fn put(&self, _: Chunk, _: &StopSignal) -> Result<(), CollectError> {
            Ok(())
        }

        fn has_room(&self, _: &Source, waits: bool) -> bool {
            self.0.load(Ordering::Relaxed) > if waits { 50 } else { 25 }
        }

        fn complain(&self, _: &'static str, _: String) {}
    }

    #[test]
    fn whoever_waited_goes_on_when_there_is_more_room_than_it_stopped_at() {
        let sink = Arc::new(Half(AtomicU64::new(30)));
        let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, StopSignal::default());
        let source = Source { collector: "test", id: "a".to_owned(), name: None };
        let mut wait = RoomWait::default();
        for (free, expected) in
            [(30, Room::Free), (20, Room::Full), (30, Room::Full), (60, Room::Free), (30, Room::Free)]
        {
            sink.0.store(free, Ordering::Relaxed);
            assert_eq!(wait.check(&outlet, &source), expected, "{free}");
            assert_eq!(wait.is_waiting(), expected != Room::Free);
        }
        let mut wait = RoomWait(Instant::now().checked_sub(REPORTED_AFTER));
        sink.0.store(0, Ordering::Relaxed);
        assert_eq!(wait.check(&outlet, &source), Room::LongFull);
    }
}
