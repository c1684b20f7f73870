//! The sender: takes batches from the queue in order, posts several at a time, and acts on the answers.
//!
//! There is no retry limit: a batch is tried until it is landed, in quarantine or purged. After a failure the endpoint rests,
//! with full jitter and for at least `Retry-After`, and is then probed with one batch, as with a circuit breaker. The number in
//! flight adapts to the endpoint's latency (`sender::window`).

mod window;

use crate::{Backoff, Outcome, Post, Queue, QueueError, failpoint, queue::NextBatch};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tracing::Instrument;
use vedette_wire::frame;
use window::Window;

/// Upper bound of the first backoff.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Upper bound of any backoff.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Longest time between two steps while an endpoint rests.
const STEP_MAX: Duration = Duration::from_secs(30);
/// Upper bound for `Retry-After`: a proxy may say a year.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// One of this many posted batches is the oldest of all; the others are the oldest that are not bulk.
const OLDEST_EVERY: u64 = 4;
/// Pause after a failure of the queue or of posting itself.
const PAUSE: Duration = Duration::from_secs(60);

/// Status of the sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Number of batches landed since the start.
    pub delivered: u64,
    /// When the last batch landed; absent before the first.
    pub delivered_at: Option<Instant>,
    /// Number of batches put into quarantine since the start.
    pub quarantined: u64,
    /// Number of batches purged by policy since the start.
    pub purged: u64,
    /// Present limit of batches in flight.
    pub in_flight_max: usize,
    /// Limit of a batch's records in bytes, decoded, learned from a refusal; absent until one was too large.
    pub batch_bytes_max: Option<usize>,
    /// Why the last attempt failed; absent while deliveries succeed.
    pub last_error: Option<String>,
    /// Number of steps since the start: posts, their ends, and half minutes in which an endpoint rests.
    pub steps: u64,
}

/// The sender of a [`crate::Lane`].
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) queue: Arc<Queue>,
    /// Limit of frames in flight in bytes; a single frame may exceed it.
    pub(crate) in_flight_bytes_max: usize,
    /// Notified when a batch is committed.
    pub(crate) committed: Arc<Notify>,
    /// Notified when a retry may succeed now.
    pub(crate) retry_now: Arc<Notify>,
    pub(crate) status: Arc<Mutex<SenderStatus>>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// State of the sender.
struct Work {
    posting: JoinSet<(u64, usize, Duration, Outcome)>,
    /// Slots in flight.
    in_flight: BTreeSet<u64>,
    /// Bytes in flight.
    bytes: usize,
    /// Slot of the last posted batch. Probes continue after it.
    last_posted: u64,
    /// Number of posted batches.
    posted: u64,
    /// Consecutive failures.
    backoff: Backoff,
    /// End of the endpoint's rest.
    rests_until: Option<Instant>,
    /// Limit of batches in flight.
    window: Window,
}

impl Sender {
    /// Sends until the stop signal. Batches in flight then are sent again after the next start.
    pub(crate) async fn run(self, post: Arc<dyn Post>) {
        let mut stop = self.stop.clone();
        let mut work = Work {
            posting: JoinSet::new(),
            in_flight: BTreeSet::new(),
            bytes: 0,
            last_posted: 0,
            posted: 0,
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            rests_until: None,
            window: Window::default(),
        };
        loop {
            if let Err(err) = self.fill(&mut work, &post).await {
                self.failed(&mut work, None, PAUSE, &err.to_string());
            }
            let step = work.rests_until.map(|until| until.min(Instant::now() + STEP_MAX));
            tokio::select! {
                () = stopped(&mut stop) => return,
                Some(done) = work.posting.join_next() => {
                    self.step();
                    self.settle(&mut work, done).await;
                }
                () = self.committed.notified() => {}
                () = self.retry_now.notified() => work.rests_until = None,
                () = async { tokio::time::sleep_until(step.expect("checked below")).await }, if step.is_some() => {
                    self.step();
                    work.rests_until = work.rests_until.filter(|until| *until > Instant::now());
                }
            }
        }
    }

    /// Counts a step: a post, its end, or a part of a rest.
    fn step(&self) {
        self.status.lock().steps += 1;
    }

    /// Posts as many batches as may be in flight: a single one as a probe after a failure.
    async fn fill(&self, work: &mut Work, post: &Arc<dyn Post>) -> Result<(), QueueError> {
        let room = if work.backoff.is_failing() { 1 } else { work.window.limit() };
        while work.rests_until.is_none() && work.posting.len() < room {
            let left = self.in_flight_bytes_max.saturating_sub(work.bytes);
            let bytes_max = if work.posting.is_empty() { usize::MAX } else { left };
            // Probes take turns, so that a batch that always fails does not block the others.
            let after = if work.backoff.is_failing() { work.last_posted } else { 0 };
            // Other batches pass bulk ones, which still get their turn.
            let quiet_first = !work.backoff.is_failing() && !work.posted.is_multiple_of(OLDEST_EVERY);
            let (queue, except) = (Arc::clone(&self.queue), work.in_flight.clone());
            let next = move || {
                if quiet_first
                    && let found @ (NextBatch::Batch(..) | NextBatch::Larger) = queue.next_quiet(&except, bytes_max)?
                {
                    return Ok(found);
                }
                match queue.next_except(after, &except, bytes_max)? {
                    NextBatch::Nothing if after > 0 => queue.next_except(0, &except, bytes_max),
                    found => Ok(found),
                }
            };
            let found = tokio::task::spawn_blocking(next).await.expect("reading does not panic")?;
            let NextBatch::Batch(slot, frame) = found else { return Ok(()) };
            work.last_posted = slot;
            work.posted += 1;
            self.step();
            work.in_flight.insert(slot);
            let (post, bytes) = (Arc::clone(post), frame.len());
            work.bytes += bytes;
            failpoint::reached("post");
            // Names the batch in the log, from the queue to the destination's answer.
            let key = frame::parse_head(&frame).map(|(head, _)| head.key).ok();
            let (epoch, seq) = (key.map(|key| tracing::field::display(key.epoch)), key.map(|key| key.seq));
            let span = tracing::debug_span!("batch", lane = %self.queue.lane(), epoch, seq, slot, bytes);
            let posting = async move {
                let began = Instant::now();
                let outcome = post.post(slot, frame).await;
                tracing::debug!(milliseconds = began.elapsed().as_millis() as u64, ?outcome, "posted");
                (slot, bytes, began.elapsed(), outcome)
            };
            work.posting.spawn(posting.instrument(span));
        }
        Ok(())
    }

    async fn settle(&self, work: &mut Work, done: Result<(u64, usize, Duration, Outcome), tokio::task::JoinError>) {
        let full = work.posting.len() + 1 >= work.window.limit();
        let (slot, took, outcome) = match done {
            Ok((slot, bytes, took, outcome)) => {
                work.bytes -= bytes;
                work.in_flight.remove(&slot);
                (slot, took, outcome)
            }
            Err(err) => {
                // The client panicked; the slot is unknown, so nothing counts as in flight.
                tracing::error!(error = %err, "posting ended unexpectedly");
                work.posting.shutdown().await;
                work.bytes = 0;
                work.in_flight.clear();
                self.failed(work, None, PAUSE, "posting ended unexpectedly");
                return;
            }
        };
        if outcome == Outcome::Accepted {
            work.window.succeeded(took, full, Instant::now());
        }
        if let Err(err) = self.apply(work, slot, outcome).await {
            tracing::error!(slot, error = %err, "the queue cannot be updated; sending the batch again");
            self.failed(work, None, PAUSE, &err.to_string());
        }
    }

    /// Applies an outcome to its batch in the queue.
    async fn apply(&self, work: &mut Work, slot: u64, outcome: Outcome) -> Result<(), QueueError> {
        let queue = Arc::clone(&self.queue);
        match outcome {
            Outcome::Accepted => {
                failpoint::reached("landed");
                self.succeeded(work);
                let deleted = blocking(move || queue.delete(slot)).await;
                failpoint::reached("deleted");
                deleted
            }
            Outcome::Rejected { code, why } => {
                tracing::error!(slot, code, error = why, "the destination refuses a batch; moving it to quarantine");
                self.update(|status| status.quarantined += 1);
                blocking(move || queue.quarantine(slot, &code, &why)).await
            }
            Outcome::Forbidden => {
                tracing::warn!(slot, "the destination refuses a batch that the policy forbids; deleting it");
                self.update(|status| status.purged += 1);
                blocking(move || queue.purge(slot)).await
            }
            Outcome::Reseal { why } => {
                tracing::error!(
                    slot,
                    error = why,
                    "another batch has landed with the same epoch and sequence; check whether another machine uses this \
                     agent's identity"
                );
                blocking(move || queue.reseal(slot)).await
            }
            Outcome::Split { why } => self.split(slot, why).await,
            Outcome::Damaged { why } => {
                queue.report_damage(&why);
                self.failed(work, None, PAUSE, &why);
                Ok(())
            }
            Outcome::Retry { after, why } => {
                work.window.failed();
                let pause = jitter(work.backoff.bound(), after);
                self.failed(work, after, pause, &why);
                Ok(())
            }
        }
    }

    /// Splits a batch, and limits the size of later ones.
    async fn split(&self, slot: u64, why: String) -> Result<(), QueueError> {
        let queue = Arc::clone(&self.queue);
        let half =
            tokio::task::spawn_blocking(move || queue.split(slot, &why)).await.expect("the queue does not panic")?;
        match half {
            Some(half) => {
                tracing::warn!(
                    slot,
                    bytes_max = half,
                    "a batch is too large; it is split now, and later ones are smaller"
                );
                self.update(|status| {
                    let learned = status.batch_bytes_max.map_or(half, |known| known.min(half));
                    status.batch_bytes_max = Some(learned);
                });
            }
            None => {
                tracing::error!(slot, "a single record is too large for the destination; it is in quarantine");
                self.update(|status| status.quarantined += 1);
            }
        }
        Ok(())
    }

    fn succeeded(&self, work: &mut Work) {
        if work.backoff.is_failing() {
            tracing::info!("delivery works again");
        }
        work.backoff.reset();
        self.update(|status| {
            status.delivered += 1;
            status.delivered_at = Some(Instant::now());
            status.last_error = None;
            status.in_flight_max = work.window.limit();
        });
    }

    /// Lets the endpoint rest. Honours its `Retry-After`, but spreads agents over time.
    fn failed(&self, work: &mut Work, after: Option<Duration>, pause: Duration, why: &str) {
        if !work.backoff.is_failing() {
            tracing::warn!(error = why, "delivery fails; batches wait on disk");
        }
        work.backoff.failed();
        work.rests_until = Some(Instant::now() + after.unwrap_or_default().min(RETRY_AFTER_MAX) + pause);
        self.update(|status| status.last_error = Some(why.to_owned()));
    }

    fn update(&self, change: impl FnOnce(&mut SenderStatus)) {
        change(&mut self.status.lock());
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the lane is gone, which is a stop too.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn blocking(work: impl FnOnce() -> Result<(), QueueError> + Send + 'static) -> Result<(), QueueError> {
    tokio::task::spawn_blocking(work).await.expect("the queue does not panic")
}

/// Full jitter: between zero and the bound of the backoff. The bound is at least a quarter of `Retry-After`, so that a fleet does
/// not return in the same second.
fn jitter(bound: Duration, after: Option<Duration>) -> Duration {
    let bound = bound.max(after.unwrap_or_default().min(RETRY_AFTER_MAX) / 4);
    bound.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
