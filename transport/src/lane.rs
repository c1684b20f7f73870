//! A lane: intake, batcher thread, queue and sender put together.

use crate::{
    BatchLimits, Intake, Post, Queue, QueueError, Stamp,
    batcher::Open,
    failpoint,
    intake::Next,
    queue::QueueStats,
    sender::{Sender, SenderStatus},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};
use vedette_wire::{Chunk, Compression, Ledger, codec::Piece};

/// How often a full queue or a failing disk is tried again.
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(250);

/// What a lane is made of.
pub struct LaneConfig {
    /// Its queue, open.
    pub queue: Queue,
    /// When a batch is sealed.
    pub limits: BatchLimits,
    /// What every header carries; a new value closes the open batch.
    pub stamp: watch::Receiver<Stamp>,
    /// Bytes that may wait before the batcher.
    pub intake_bytes_max: usize,
    /// Bytes of batches that may be in flight; one goes whatever its size.
    pub in_flight_bytes_max: usize,
    /// Wall clock, nanoseconds UTC.
    pub now: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Where batches go; absent, they stay in the queue.
    pub post: Option<Arc<dyn Post>>,
}

/// State of a lane.
#[derive(Debug, Clone, Default)]
pub struct LaneStatus {
    /// The queue.
    pub queue: QueueStats,
    /// The sender.
    pub sender: SenderStatus,
    /// Counters since the epoch began.
    pub ledger: Ledger,
    /// Why sources wait; absent while the queue takes batches.
    pub waiting: Option<String>,
}

/// A running lane.
#[derive(Debug)]
pub struct Lane {
    intake: Intake,
    queue: Arc<Queue>,
    status: Arc<Mutex<SenderStatus>>,
    waiting: Arc<Mutex<Option<String>>>,
    committed: Arc<Notify>,
    again: Arc<Notify>,
    batcher: Option<JoinHandle<()>>,
    sender: Option<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Lane {
    /// Start the batcher's thread, and the sender on the current tokio runtime.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(config: LaneConfig) -> std::io::Result<Self> {
        let LaneConfig { queue, limits, stamp, intake_bytes_max, in_flight_bytes_max, now, post } = config;
        let queue = Arc::new(queue);
        let intake = Intake::new(intake_bytes_max);
        intake.set_compression(limits.compression);
        let (committed, again) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let status = Arc::new(Mutex::new(SenderStatus::default()));
        let (stop, stopped) = watch::channel(false);
        let waiting = Arc::default();
        let batcher = Batcher {
            intake: intake.clone(),
            queue: Arc::clone(&queue),
            limits,
            stamp,
            now,
            committed: Arc::clone(&committed),
            sender: Arc::clone(&status),
            waiting: Arc::clone(&waiting),
        };
        let batcher =
            std::thread::Builder::new().name(format!("queue-{}", queue.lane())).spawn(move || batcher.run())?;
        let sender = Sender {
            queue: Arc::clone(&queue),
            in_flight_bytes_max,
            committed: Arc::clone(&committed),
            again: Arc::clone(&again),
            status: Arc::clone(&status),
            stop: stopped,
        };
        let sender = post.map(|post| tokio::spawn(sender.run(post)));
        Ok(Self { intake, queue, status, waiting, committed, again, batcher: Some(batcher), sender, stop })
    }

    /// Where collectors hand chunks over.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// The queue, for cursors.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Have the sender look into the queue, after something was put there past the batcher.
    pub fn wake(&self) {
        self.committed.notify_one();
    }

    /// Have the sender try at once, whatever it waits for: batches go elsewhere now.
    pub fn try_again(&self) {
        self.again.notify_one();
    }

    /// Whether the workspace has said since this was asked last that the agent has to make another key.
    pub fn take_rekey(&self) -> bool {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).rekey.take().is_some()
    }

    /// What the workspace has said since this was asked last that it had acknowledged and has no more: first and last sequence.
    pub fn take_lost(&self) -> Option<(u64, u64)> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).lost.take()
    }

    /// What the sender is doing; unlike the whole state, it asks no disk.
    pub fn sender(&self) -> SenderStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// State now.
    pub fn status(&self) -> LaneStatus {
        let mut ledger = self.queue.ledger();
        ledger.add(&self.intake.given_up());
        LaneStatus {
            queue: self.queue.stats(),
            sender: self.sender(),
            ledger,
            waiting: self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Whether a part of it ended though nobody stopped it: a defect, after which nothing is queued or nothing is sent.
    pub fn is_broken(&self) -> bool {
        self.batcher.as_ref().is_some_and(JoinHandle::is_finished)
            || self.sender.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
    }

    /// Take nothing more; what is in is still made durable.
    pub fn close(&self) {
        self.intake.close();
    }

    /// Make what was handed over durable, and stop. Does not wait for the network: what is not delivered stays on
    /// disk. Deliveries get `grace` to empty the queue where it is nearly empty.
    pub async fn stop(mut self, grace: Duration) {
        self.intake.close();
        if let Some(batcher) = self.batcher.take() {
            let joined = tokio::task::spawn_blocking(move || batcher.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the batcher ended unexpectedly");
            }
        }
        let Some(sender) = self.sender.take() else { return };
        let until = tokio::time::Instant::now() + grace;
        while self.queue.stats().batches > 0 && tokio::time::Instant::now() < until && !sender.is_finished() {
            if self.status.lock().unwrap_or_else(PoisonError::into_inner).last_error.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop.send_replace(true);
        if sender.await.is_err() {
            tracing::error!("the sender ended unexpectedly");
        }
    }
}

/// Batches that are being filled: one of sources that fill the queue, and one of all others, which goes before it.
#[derive(Default)]
struct OpenBatches {
    quiet: Open,
    bulk: Open,
}

impl OpenBatches {
    fn deadline(&self, limits: &BatchLimits) -> Option<Instant> {
        self.quiet.deadline(limits).into_iter().chain(self.bulk.deadline(limits)).min()
    }
}

struct Batcher {
    intake: Intake,
    queue: Arc<Queue>,
    limits: BatchLimits,
    stamp: watch::Receiver<Stamp>,
    now: Arc<dyn Fn() -> i64 + Send + Sync>,
    committed: Arc<Notify>,
    sender: Arc<Mutex<SenderStatus>>,
    waiting: Arc<Mutex<Option<String>>>,
}

impl Batcher {
    fn run(mut self) {
        let mut open_batches = OpenBatches::default();
        let mut stamp = self.stamp.borrow_and_update().clone();
        loop {
            let next = self.intake.take(open_batches.deadline(&self.limits));
            if self.stamp.has_changed().unwrap_or(false) {
                // Records of one revision share a batch: close the open ones under the old stamp.
                if !self.commit_all(&mut open_batches, &stamp) {
                    return;
                }
                stamp = self.stamp.borrow_and_update().clone();
            }
            let goes_on = match next {
                Next::Chunk(chunk, piece) => self.add(&mut open_batches, &stamp, *chunk, piece),
                Next::Nothing => true,
                Next::Flush => self.commit_all(&mut open_batches, &stamp),
                Next::Closed => {
                    self.commit_all(&mut open_batches, &stamp);
                    false
                }
            };
            // Also while chunks come without end, which may all go into the other.
            if !goes_on || !self.commit_due(&mut open_batches, &stamp) {
                return;
            }
            if open_batches.quiet.is_empty() && open_batches.bulk.is_empty() {
                self.intake.settle();
            }
        }
    }

    /// Take a chunk in; false where what it goes into cannot be committed.
    fn add(&mut self, open_batches: &mut OpenBatches, stamp: &Stamp, chunk: Chunk, piece: Option<Piece>) -> bool {
        failpoint::reached("read");
        let compression = self.learn();
        // A cursor is forgotten behind what was read under it.
        if !chunk.forget.is_empty() && !self.commit_all(open_batches, stamp) {
            return false;
        }
        let (open, is_bulk) = loop {
            // What there is of a source is committed in turn: its cursor stands behind all of it.
            let is_bulk = open_batches.bulk.holds(&chunk.source)
                || !open_batches.quiet.holds(&chunk.source) && self.queue.is_bulk(&chunk.source);
            let open = if is_bulk { &mut open_batches.bulk } else { &mut open_batches.quiet };
            if open.is_empty() || !open.is_full_for(&chunk, piece.as_ref(), &self.limits) {
                break (open, is_bulk);
            }
            if !self.commit(open, stamp) {
                return false;
            }
        };
        open.set_compression(compression);
        open.add_pressed(chunk, piece);
        open.is_bulk = is_bulk;
        failpoint::reached("batch");
        !open.is_full(&self.limits) || self.commit(open, stamp)
    }

    fn commit_due(&self, open_batches: &mut OpenBatches, stamp: &Stamp) -> bool {
        let now = Instant::now();
        let is_due = |open: &Open| open.deadline(&self.limits).is_some_and(|at| at <= now);
        (!is_due(&open_batches.quiet) || self.commit(&mut open_batches.quiet, stamp))
            && (!is_due(&open_batches.bulk) || self.commit(&mut open_batches.bulk, stamp))
    }

    fn commit_all(&self, open_batches: &mut OpenBatches, stamp: &Stamp) -> bool {
        self.commit(&mut open_batches.quiet, stamp) && self.commit(&mut open_batches.bulk, stamp)
    }

    /// Make batches as the workspace was found to take them, with the codec that it asked for.
    fn learn(&mut self) -> Compression {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(most) = sender.batch_bytes_max {
            self.limits.bytes_max = self.limits.bytes_max.min(most);
        }
        let compression = sender.compression.unwrap_or(self.limits.compression);
        drop(sender);
        self.intake.set_compression(compression);
        compression
    }

    fn waits(&self, why: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Try until it is durable. While it cannot be, the intake fills and sources wait. When the agent stops meanwhile,
    /// the batch is given up with its cursors: sources that can be read again are read again from the old ones. False
    /// then: nothing behind it may be committed, since a later cursor of the same source would pass over it.
    fn commit(&self, open: &mut Open, stamp: &Stamp) -> bool {
        if open.is_empty() {
            return true;
        }
        let mut said = false;
        loop {
            let header = open.header(stamp, self.queue.lane(), (self.now)());
            match self.queue.commit(open, header) {
                Ok(()) => {
                    if said {
                        tracing::info!(lane = %self.queue.lane(), "the queue takes batches again");
                        self.waits(None);
                    }
                    self.committed.notify_one();
                    open.clear();
                    return true;
                }
                Err(err) if err.is_damage() => {
                    // Sources are read again from where the workspace's end, by an agent that begins again.
                    tracing::error!(lane = %self.queue.lane(), error = %describe(&err), "the lane ends");
                    self.intake.close();
                    return false;
                }
                Err(err @ QueueError::TooLarge { .. }) => {
                    tracing::error!(lane = %self.queue.lane(), error = %err, "records dropped and counted");
                    open.drop_records();
                }
                Err(err) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(lane = %self.queue.lane(), error = %describe(&err), "sources wait for the queue");
                        self.waits(Some(describe(&err)));
                    }
                    if self.intake.is_closed() {
                        tracing::warn!(lane = %self.queue.lane(), error = %describe(&err),
                            "stopped before the last batch could be queued; it is read again at the next start");
                        return false;
                    }
                    self.intake.pause(TRY_AGAIN_EVERY);
                }
            }
        }
    }
}

fn describe(error: &QueueError) -> String {
    match std::error::Error::source(error) {
        None => error.to_string(),
        Some(_) => format!("{error}: {}", crate::post::root_cause(error)),
    }
}

#[cfg(test)]
mod tests;
