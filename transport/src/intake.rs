//! Where collectors hand over chunks: bounded in bytes, so that sources wait when the queue cannot keep up.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Compression, Ledger, Reason, codec::Piece};

/// The transport has stopped; what was handed over last is not durable, and its source has not been told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transport has stopped")]
pub struct Stopped;

/// How long a source that cannot wait for ever waits for the batcher, which may be at a commit, before what it brings is
/// given up. Meanwhile the kernel's buffer takes what comes.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a source that waits looks whether it is told to stop.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A chunk that waits.
#[derive(Debug)]
struct Waiting {
    chunk: Chunk,
    /// Its body, compressed.
    piece: Option<Piece>,
    /// Of its class, where its source cannot wait.
    rank: Option<u8>,
}

impl Waiting {
    fn weight(&self) -> usize {
        self.chunk.weight() + self.piece.as_ref().map_or(0, Piece::sealed_bytes)
    }
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Waiting>,
    compression: Compression,
    bytes: usize,
    closed: bool,
    /// What was put in up to here is to be made durable now.
    flush: Option<u64>,
    /// Nothing was taken out for [`PATIENCE`] while a source waited for it, and not since.
    stuck: bool,
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
    /// A chunk, and its one body where that is compressed already.
    Chunk(Box<Chunk>, Option<Piece>),
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
        self.put_unless(chunk, || false)
    }

    /// The same, where the source is not told to stop, which is looked at also while it waits.
    ///
    /// # Errors
    /// [`Stopped`] where the transport ends before there is room, or the source is told to stop.
    pub fn put_unless(&self, mut chunk: Chunk, stopped: impl Fn() -> bool) -> Result<(), Stopped> {
        // On the source's thread, while the bytes lie in its core's cache, and nobody waits for the lock.
        let compression = self.lock().compression;
        let piece = match chunk.entries.as_slice() {
            [_] => Piece::of(&chunk.bodies, compression),
            _ => None,
        };
        if piece.is_some() {
            chunk.bodies = Vec::new();
        }
        let waiting = Waiting { chunk, piece, rank: None };
        let weight = waiting.weight();
        let mut state = self.lock();
        while !state.closed && !stopped() && state.bytes > 0 && state.bytes + weight > self.0.bytes_max {
            state = self.0.changed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.closed || stopped() {
            return Err(Stopped);
        }
        state.bytes += weight;
        state.put += 1;
        state.chunks.push_back(waiting);
        self.0.changed.notify_all();
        Ok(())
    }

    /// The codec of batches from now on.
    pub(crate) fn set_compression(&self, compression: Compression) {
        self.lock().compression = compression;
    }

    /// Hand over a chunk of a source that cannot wait for long: where no room comes in a while, chunks of such sources are
    /// given up, the lowest rank first and this one last of its own, and counted as `queue_full`.
    ///
    /// # Errors
    /// [`Stopped`] where the transport has ended.
    pub fn offer(&self, mut chunk: Chunk, rank: u8) -> Result<(), Stopped> {
        let mut state = self.lock();
        if state.closed {
            return Err(Stopped);
        }
        let full = |state: &State, weight: usize| state.bytes > 0 && state.bytes + weight > self.0.bytes_max;
        let deadline = Instant::now() + PATIENCE;
        while full(&state, chunk.weight()) && !state.stuck {
            let wait = deadline.saturating_duration_since(Instant::now());
            state.stuck = wait.is_zero();
            state = self.0.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            if state.closed {
                return Err(Stopped);
            }
        }
        while full(&state, chunk.weight()) {
            let lower =
                |other: &Waiting| other.rank.filter(|other_rank| *other_rank < rank && !other.chunk.entries.is_empty());
            let victim = state.chunks.iter().enumerate().filter_map(|(at, entry)| Some((lower(entry)?, at))).min();
            let Some((_, at)) = victim else { break };
            let given_up = &mut state.chunks[at].chunk;
            let before = given_up.weight();
            given_up.give_up(Reason::QueueFull);
            let after = given_up.weight();
            state.bytes = state.bytes + after - before;
        }
        if full(&state, chunk.weight()) {
            chunk.give_up(Reason::QueueFull);
            // What was given up before it says the same: one chunk for all.
            let same = state
                .chunks
                .iter_mut()
                .map(|other| &mut other.chunk)
                .rfind(|other| other.entries.is_empty() && other.source == chunk.source && other.cursor.is_none());
            if let (Some(other), [lost]) = (same, chunk.dropped.as_slice())
                && let Some(last) = other.dropped.last_mut()
                && let (Some(before), Some(behind)) = (&mut last.positions, lost.positions)
                && (before.1, last.reason) == (behind.0, lost.reason)
            {
                before.1 = behind.1;
                last.count += lost.count;
                return Ok(());
            }
        }
        state.bytes += chunk.weight();
        state.put += 1;
        state.chunks.push_back(Waiting { chunk, piece: None, rank: Some(rank) });
        self.0.changed.notify_all();
        Ok(())
    }

    /// What was given up and waits to be counted durably, behind what was handed over before.
    pub(crate) fn given_up(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for Waiting { chunk, .. } in &self.lock().chunks {
            for dropped in &chunk.dropped {
                ledger.emit(chunk.source.collector, dropped.count);
                ledger.drop(chunk.source.collector, dropped.reason, dropped.count);
            }
        }
        ledger
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
            state.flush = Some(state.flush.unwrap_or(0).max(wanted));
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
            // Before what comes behind it, which may come without end.
            let taken = state.taken;
            if state.flush.take_if(|wanted| *wanted <= taken).is_some() {
                return Next::Flush;
            }
            if let Some(waiting) = state.chunks.pop_front() {
                state.bytes -= waiting.weight();
                state.taken += 1;
                state.stuck = false;
                // A source that waits is woken for a good piece of work, not for each chunk.
                if state.bytes <= self.0.bytes_max / 2 {
                    self.0.changed.notify_all();
                }
                return Next::Chunk(Box::new(waiting.chunk), waiting.piece);
            }
            if state.closed {
                return Next::Closed;
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
mod tests;
