//! Where collectors hand over chunks: bounded in bytes, so that sources wait when the queue cannot keep up.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use vedette_wire::Chunk;

/// The transport has stopped; what was handed over last is not durable, and its source has not been told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transport has stopped")]
pub struct Stopped;

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    closed: bool,
    flush: bool,
    /// Chunks put in, taken out, and made durable, ever.
    put: u64,
    taken: u64,
    settled: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
}

/// The collectors' end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake(Arc<Shared>);

/// What the batcher finds.
#[derive(Debug)]
pub(crate) enum Next {
    /// A chunk.
    Chunk(Box<Chunk>),
    /// Nothing came in time.
    Nothing,
    /// Everything before this is to be made durable now.
    Flush,
    /// The intake is closed and empty.
    Closed,
}

impl Intake {
    /// An intake that holds up to `bytes_max` bytes, or one chunk where that is larger.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), bytes_max }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hand a chunk over; waits while the intake is full. For threads of collectors, not for async tasks.
    ///
    /// # Errors
    /// [`Stopped`] where the transport ends before there is room.
    pub fn put(&self, chunk: Chunk) -> Result<(), Stopped> {
        let weight = chunk.weight();
        let mut state = self.lock();
        while !state.closed && state.bytes > 0 && state.bytes + weight > self.0.bytes_max {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(Stopped);
        }
        state.bytes += weight;
        state.put += 1;
        state.chunks.push_back(chunk);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Refuse further chunks; those that are in are still taken out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// Wait until everything put in so far is durable; whoever then reads cursors finds those of all of it.
    ///
    /// # Errors
    /// [`Stopped`] where the transport ends before that.
    pub fn wait_durable(&self) -> Result<(), Stopped> {
        let mut state = self.lock();
        let wanted = state.put;
        while state.settled < wanted {
            if state.closed {
                return Err(Stopped);
            }
            state.flush = true;
            self.0.changed.notify_all();
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// What was taken out is durable.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        state.settled = state.taken;
        self.0.changed.notify_all();
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The next chunk, waiting until `deadline` at the most, or for ever without one.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.bytes -= chunk.weight();
                state.taken += 1;
                self.0.changed.notify_all();
                return Next::Chunk(Box::new(chunk));
            }
            if state.closed {
                return Next::Closed;
            }
            if std::mem::take(&mut state.flush) {
                return Next::Flush;
            }
            let wait = match deadline {
                None => Duration::from_secs(3600),
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                return Next::Nothing;
            }
            state = self.0.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait for `wait`, or shorter where the intake is closed meanwhile.
    pub(crate) fn pause(&self, wait: Duration) {
        let state = self.lock();
        if !state.closed {
            drop(self.0.changed.wait_timeout_while(state, wait, |state| !state.closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vedette_wire::Source;

    fn chunk(bytes: usize) -> Chunk {
        let source = Arc::new(Source { collector: "test", id: "a".to_owned(), name: None });
        Chunk { bodies: vec![0; bytes], ..Chunk::new(source) }
    }

    #[test]
    fn a_full_intake_makes_the_source_wait_until_there_is_room() {
        let intake = Intake::new(1000);
        intake.put(chunk(500)).expect("open");
        let other = intake.clone();
        let waiting = std::thread::spawn(move || other.put(chunk(500)));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished(), "the second chunk waits");
        assert!(matches!(intake.take(None), Next::Chunk(_)));
        assert_eq!(waiting.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn closing_wakes_those_who_wait_and_keeps_what_is_in() {
        let intake = Intake::new(10);
        intake.put(chunk(500)).expect("one chunk always fits");
        let other = intake.clone();
        let waiting = std::thread::spawn(move || other.put(chunk(500)));
        intake.close();
        assert_eq!(waiting.join().expect("no panic"), Err(Stopped));
        assert!(matches!(intake.take(None), Next::Chunk(_)));
        assert!(matches!(intake.take(None), Next::Closed));
    }
}
