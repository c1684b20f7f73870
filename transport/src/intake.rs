//! The intake: collectors hand over chunks, up to a limit in bytes. Sources wait when the queue cannot keep up.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Compression, Ledger, Reason, seal::CompressedBody};

/// The transport has stopped. The last chunks are not durable, and their source is not notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transport has stopped")]
pub struct Stopped;

/// How long a push source waits for the batcher, which may be committing, before chunks are dropped. The kernel's buffer holds
/// new data meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// Poll interval for a stop signal while a source waits for room.
const STOP_POLL: Duration = Duration::from_millis(250);

/// A chunk in the intake.
#[derive(Debug)]
struct Waiting {
    chunk: Chunk,
    /// The body, compressed.
    compressed: Option<CompressedBody>,
    /// Rank of a push source's chunk.
    rank: Option<u8>,
}

impl Waiting {
    fn weight(&self) -> usize {
        self.chunk.weight() + self.compressed.as_ref().map_or(0, CompressedBody::sealed_bytes)
    }
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Waiting>,
    compression: Compression,
    bytes: usize,
    closed: bool,
    /// Everything up to this number must be made durable now.
    flush: Option<u64>,
    /// The batcher has taken nothing for [`PATIENCE`] while a source waited.
    stuck: bool,
    /// Total numbers of chunks put in, taken out and made durable.
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

/// The handle of collectors. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake(Arc<Shared>);

/// What the batcher receives.
#[derive(Debug)]
pub(crate) enum Next {
    /// A chunk, with its only body compressed if it is large.
    Chunk(Box<Chunk>, Option<CompressedBody>),
    /// Nothing arrived before the deadline.
    Nothing,
    /// Everything before this must be made durable now.
    Flush,
    /// The intake is closed and empty.
    Closed,
}

impl Intake {
    /// Creates an intake for up to `bytes_max` bytes, or for one larger chunk.
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), bytes_max }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// Puts a chunk in; waits while the intake is full. For collector threads, not for async tasks.
    ///
    /// # Errors
    /// [`Stopped`] if the transport ends first.
    pub fn put(&self, chunk: Chunk) -> Result<(), Stopped> {
        self.put_unless(chunk, || false)
    }

    /// Puts a chunk in; stops waiting when `stopped` returns true.
    ///
    /// # Errors
    /// [`Stopped`] if the transport or the source ends first.
    pub fn put_unless(&self, mut chunk: Chunk, stopped: impl Fn() -> bool) -> Result<(), Stopped> {
        // Compresses on the source's thread, while the bytes are in its core's cache and without the lock.
        let compression = self.lock().compression;
        let compressed = match chunk.entries.as_slice() {
            [_] => CompressedBody::of(&chunk.bodies, compression),
            _ => None,
        };
        if compressed.is_some() {
            chunk.bodies = Vec::new();
        }
        let waiting = Waiting { chunk, compressed, rank: None };
        let weight = waiting.weight();
        let mut state = self.lock();
        while !state.closed && !stopped() && state.bytes > 0 && state.bytes + weight > self.0.bytes_max {
            self.0.changed.wait_for(&mut state, STOP_POLL);
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

    /// Sets the codec of later batches.
    pub(crate) fn set_compression(&self, compression: Compression) {
        self.lock().compression = compression;
    }

    /// Puts in a chunk of a push source. If no room is freed in time, drops chunks of push sources, counted as `queue_full`:
    /// lowest rank first, and the oldest of a rank first; the new chunk if no other ranks lower.
    ///
    /// # Errors
    /// [`Stopped`] if the transport has ended.
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
            self.0.changed.wait_for(&mut state, wait);
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
            // Losses of the same kind share one chunk.
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
        state.chunks.push_back(Waiting { chunk, compressed: None, rank: Some(rank) });
        self.0.changed.notify_all();
        Ok(())
    }

    /// Dropped records that are not yet counted durably.
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

    /// Refuses further chunks; the batcher still takes those in the intake.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// Waits until all chunks put in so far are durable. Cursors read after that cover them.
    ///
    /// # Errors
    /// [`Stopped`] if the transport ends first.
    pub fn wait_durable(&self) -> Result<(), Stopped> {
        self.wait_durable_unless(|| false)
    }

    /// Waits as [`Intake::wait_durable`] does; stops waiting when `stopped` returns true.
    ///
    /// # Errors
    /// [`Stopped`] if the transport or the caller ends first.
    pub fn wait_durable_unless(&self, stopped: impl Fn() -> bool) -> Result<(), Stopped> {
        let mut state = self.lock();
        let target = state.put;
        while state.settled < target {
            if state.closed || stopped() {
                return Err(Stopped);
            }
            state.flush = Some(state.flush.unwrap_or(0).max(target));
            self.0.changed.notify_all();
            self.0.changed.wait_for(&mut state, STOP_POLL);
        }
        Ok(())
    }

    /// Marks everything taken out as durable.
    pub(crate) fn settle(&self) {
        let mut state = self.lock();
        state.settled = state.taken;
        self.0.changed.notify_all();
    }

    /// Bytes in the intake.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes the next chunk; waits until `deadline`, or without limit if there is none.
    pub(crate) fn take(&self, deadline: Option<Instant>) -> Next {
        let mut state = self.lock();
        loop {
            // The flush comes before later chunks, which may arrive without end.
            let taken = state.taken;
            if state.flush.take_if(|target| *target <= taken).is_some() {
                return Next::Flush;
            }
            if let Some(waiting) = state.chunks.pop_front() {
                state.bytes -= waiting.weight();
                state.taken += 1;
                state.stuck = false;
                // Wakes waiting sources when half of the intake is free, not at each chunk.
                if state.bytes <= self.0.bytes_max / 2 {
                    self.0.changed.notify_all();
                }
                return Next::Chunk(Box::new(waiting.chunk), waiting.compressed);
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
            self.0.changed.wait_for(&mut state, wait);
        }
    }

    /// Waits for `wait`, or until the intake is closed.
    pub(crate) fn pause(&self, wait: Duration) {
        let mut state = self.lock();
        if !state.closed {
            self.0.changed.wait_while_for(&mut state, |state| !state.closed, wait);
        }
    }
}

#[cfg(test)]
mod tests;
