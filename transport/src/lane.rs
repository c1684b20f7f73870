//! A lane: an intake, a batcher thread, a queue and a sender.

use crate::{
    BatchContext, BatchLimits, Intake, Post, Queue, QueueError,
    batcher::BatchBuilder,
    failpoint,
    intake::Next,
    queue::QueueStats,
    sender::{Sender, SenderStatus},
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};
use vedette_wire::{Chunk, Compression, Ledger, seal::CompressedBody};

/// Retry interval for a full queue or a failing disk.
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(250);

/// Settings of a lane.
pub struct LaneConfig {
    /// The open queue.
    pub queue: Queue,
    /// Limits at which a batch is sealed, and its codec.
    pub limits: BatchLimits,
    /// Fields of all headers. A change seals the open batches.
    pub context: watch::Receiver<BatchContext>,
    /// Codec that the destination requests; absent, that of the limits applies.
    pub codec: watch::Receiver<Option<Compression>>,
    /// Limit of the intake in bytes.
    pub intake_bytes_max: usize,
    /// Limit of batches in flight in bytes; a single batch may exceed it.
    pub in_flight_bytes_max: usize,
    /// Wall clock, nanoseconds UTC.
    pub now: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Where to send batches; absent, they stay in the queue.
    pub post: Option<Arc<dyn Post>>,
}

/// Status of a lane.
#[derive(Debug, Clone, Default)]
pub struct LaneStatus {
    /// Status of the queue.
    pub queue: QueueStats,
    /// Status of the sender.
    pub sender: SenderStatus,
    /// Counters since the epoch began.
    pub ledger: Ledger,
    /// Why sources wait; absent while the queue has room.
    pub waiting: Option<String>,
}

/// Steps of a lane's batcher and sender; they grow while there is work, unless something hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps of the batcher.
    pub batcher: u64,
    /// Steps of the sender.
    pub sender: u64,
    /// Chunks wait for the batcher.
    pub has_intake: bool,
    /// Batches wait for the sender.
    pub has_batches: bool,
}

/// A running lane.
#[derive(Debug)]
pub struct Lane {
    intake: Intake,
    queue: Arc<Queue>,
    status: Arc<Mutex<SenderStatus>>,
    waiting: Arc<Mutex<Option<String>>>,
    batcher_steps: Arc<AtomicU64>,
    committed: Arc<Notify>,
    retry_now: Arc<Notify>,
    batcher: Option<JoinHandle<()>>,
    sender: Option<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Lane {
    /// Starts the batcher thread, and the sender on the current tokio runtime.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(config: LaneConfig) -> std::io::Result<Self> {
        let LaneConfig { queue, limits, context, codec, intake_bytes_max, in_flight_bytes_max, now, post } = config;
        let queue = Arc::new(queue);
        let intake = Intake::new(intake_bytes_max);
        intake.set_compression(limits.compression);
        let (committed, retry_now) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let status = Arc::new(Mutex::new(SenderStatus::default()));
        let (stop, stopped) = watch::channel(false);
        let (waiting, batcher_steps) = (Arc::default(), Arc::default());
        let batcher = Batcher {
            intake: intake.clone(),
            queue: Arc::clone(&queue),
            limits,
            context,
            codec,
            now,
            committed: Arc::clone(&committed),
            sender: Arc::clone(&status),
            waiting: Arc::clone(&waiting),
            steps: Arc::clone(&batcher_steps),
        };
        let batcher =
            std::thread::Builder::new().name(format!("queue-{}", queue.lane())).spawn(move || batcher.run())?;
        let sender = Sender {
            queue: Arc::clone(&queue),
            in_flight_bytes_max,
            committed: Arc::clone(&committed),
            retry_now: Arc::clone(&retry_now),
            status: Arc::clone(&status),
            stop: stopped,
        };
        let sender = post.map(|post| tokio::spawn(sender.run(post)));
        let batcher = Some(batcher);
        Ok(Self { intake, queue, status, waiting, batcher_steps, committed, retry_now, batcher, sender, stop })
    }

    /// The intake for collectors.
    pub fn intake(&self) -> &Intake {
        &self.intake
    }

    /// The queue.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Wakes the sender after a batch was added past the batcher.
    pub fn wake(&self) {
        self.committed.notify_one();
    }

    /// Makes the sender try at once: the endpoint has changed.
    pub fn try_again(&self) {
        self.retry_now.notify_one();
    }

    /// Status of the sender, without disk access.
    pub fn sender(&self) -> SenderStatus {
        self.status.lock().clone()
    }

    /// Status of the lane.
    pub fn status(&self) -> LaneStatus {
        let mut ledger = self.queue.ledger();
        ledger.add(&self.intake.given_up());
        LaneStatus { queue: self.queue.stats(), sender: self.sender(), ledger, waiting: self.waiting.lock().clone() }
    }

    /// How far batcher and sender have come.
    pub fn progress(&self) -> Progress {
        Progress {
            batcher: self.batcher_steps.load(Ordering::Relaxed),
            sender: self.status.lock().steps,
            has_intake: self.intake.bytes() > 0,
            has_batches: self.queue.stats().batches > 0,
        }
    }

    /// Whether the batcher or the sender ended by itself. That is a defect, and stops queueing or sending.
    pub fn is_broken(&self) -> bool {
        self.batcher.as_ref().is_some_and(JoinHandle::is_finished)
            || self.sender.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
    }

    /// Closes the intake; its content still becomes durable.
    pub fn close(&self) {
        self.intake.close();
    }

    /// Makes the intake's content durable and stops. Waits for deliveries for up to `grace`, unless the last one failed.
    /// Undelivered batches stay on disk.
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
            if self.status.lock().last_error.is_some() {
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

/// The open batches: one of bulk sources, and one of all others, which is committed first.
#[derive(Default)]
struct OpenBatches {
    quiet: BatchBuilder,
    bulk: BatchBuilder,
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
    context: watch::Receiver<BatchContext>,
    codec: watch::Receiver<Option<Compression>>,
    now: Arc<dyn Fn() -> i64 + Send + Sync>,
    committed: Arc<Notify>,
    sender: Arc<Mutex<SenderStatus>>,
    waiting: Arc<Mutex<Option<String>>>,
    steps: Arc<AtomicU64>,
}

impl Batcher {
    fn run(mut self) {
        let mut open_batches = OpenBatches::default();
        let mut context = self.context.borrow_and_update().clone();
        loop {
            self.steps.fetch_add(1, Ordering::Relaxed);
            let next = self.intake.take(open_batches.deadline(&self.limits));
            if self.context.has_changed().unwrap_or(false) {
                // A batch holds one revision: the open batches are sealed with the old one.
                if !self.commit_all(&mut open_batches, &context) {
                    return;
                }
                context = self.context.borrow_and_update().clone();
            }
            let goes_on = match next {
                Next::Chunk(chunk, compressed) => self.add(&mut open_batches, &context, *chunk, compressed),
                Next::Nothing => true,
                Next::Flush => self.commit_all(&mut open_batches, &context),
                Next::Closed => {
                    self.commit_all(&mut open_batches, &context);
                    false
                }
            };
            // Chunks may keep arriving for one batch; the other must still be sealed by age.
            if !goes_on || !self.commit_due(&mut open_batches, &context) {
                return;
            }
            if open_batches.quiet.is_empty() && open_batches.bulk.is_empty() {
                self.intake.settle();
            }
        }
    }

    /// Adds a chunk; false if its batch cannot be committed.
    fn add(
        &mut self,
        open_batches: &mut OpenBatches,
        context: &BatchContext,
        chunk: Chunk,
        compressed: Option<CompressedBody>,
    ) -> bool {
        failpoint::reached("read");
        let compression = self.learn();
        // A cursor is deleted only after its records are committed.
        if !chunk.forget.is_empty() && !self.commit_all(open_batches, context) {
            return false;
        }
        let (open, is_bulk) = loop {
            // Batches of a source are committed in order: its cursor covers all of them.
            let is_bulk = open_batches.bulk.holds(&chunk.source)
                || !open_batches.quiet.holds(&chunk.source) && self.queue.is_bulk(&chunk.source);
            let open = if is_bulk { &mut open_batches.bulk } else { &mut open_batches.quiet };
            if open.is_empty() || !open.is_full_for(&chunk, compressed.as_ref(), &self.limits) {
                break (open, is_bulk);
            }
            if !self.commit(open, context) {
                return false;
            }
        };
        open.set_compression(compression);
        open.add_compressed(chunk, compressed);
        open.is_bulk = is_bulk;
        failpoint::reached("batch");
        !open.is_full(&self.limits) || self.commit(open, context)
    }

    fn commit_due(&self, open_batches: &mut OpenBatches, context: &BatchContext) -> bool {
        let now = Instant::now();
        let is_due = |open: &BatchBuilder| open.deadline(&self.limits).is_some_and(|at| at <= now);
        (!is_due(&open_batches.quiet) || self.commit(&mut open_batches.quiet, context))
            && (!is_due(&open_batches.bulk) || self.commit(&mut open_batches.bulk, context))
    }

    fn commit_all(&self, open_batches: &mut OpenBatches, context: &BatchContext) -> bool {
        self.commit(&mut open_batches.quiet, context) && self.commit(&mut open_batches.bulk, context)
    }

    /// Takes over the size limit that splits have shown, and the codec that the destination requests.
    fn learn(&mut self) -> Compression {
        if let Some(most) = self.sender.lock().batch_bytes_max {
            self.limits.bytes_max = self.limits.bytes_max.min(most);
        }
        let compression = self.codec.borrow().unwrap_or(self.limits.compression);
        self.intake.set_compression(compression);
        compression
    }

    fn waits(&self, why: Option<String>) {
        *self.waiting.lock() = why;
    }

    /// Commits a batch, and retries until it succeeds. Meanwhile the intake fills up and sources wait. Returns false if the
    /// agent stops first: the batch is dropped with its cursors, and its sources are read again from the old ones. Nothing may
    /// be committed after that, since a later cursor of a source would skip its records.
    fn commit(&self, open: &mut BatchBuilder, context: &BatchContext) -> bool {
        if open.is_empty() {
            return true;
        }
        let mut is_reported = false;
        loop {
            self.steps.fetch_add(1, Ordering::Relaxed);
            let header = open.header(context, self.queue.lane(), (self.now)());
            let records = header.records;
            match self.queue.commit(open, header) {
                Ok(()) => {
                    if is_reported {
                        tracing::info!(lane = %self.queue.lane(), "the queue accepts batches again");
                        self.waits(None);
                    }
                    tracing::debug!(lane = %self.queue.lane(), records, "a batch is durable");
                    self.committed.notify_one();
                    open.clear();
                    return true;
                }
                Err(err) if err.is_damage() => {
                    // The agent restarts, and reads sources again from the workspace's positions.
                    tracing::error!(lane = %self.queue.lane(), error = %describe(&err), "the queue is damaged; this lane stops and the agent restarts");
                    self.intake.close();
                    return false;
                }
                Err(err @ QueueError::TooLarge { .. }) => {
                    tracing::error!(lane = %self.queue.lane(), error = %err, "the batch is larger than the queue; its records are dropped and counted; raise [transport] queue_bytes_max");
                    open.drop_records();
                }
                Err(err) => {
                    if !std::mem::replace(&mut is_reported, true) {
                        tracing::warn!(lane = %self.queue.lane(), error = %describe(&err), "sources wait for room in the queue");
                        self.waits(Some(describe(&err)));
                    }
                    if self.intake.is_closed() {
                        tracing::warn!(lane = %self.queue.lane(), error = %describe(&err),
                            "stopped before the last batch was queued; its sources are read again at the next start");
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
        Some(_) => format!("{error}: {}", crate::tls::root_cause(error)),
    }
}

#[cfg(test)]
mod tests;
