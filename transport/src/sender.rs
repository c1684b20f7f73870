//! The sender: takes batches from the queue in order, posts several at a time, and acts on what comes back.
//!
//! Nothing has a retry budget: a batch is tried until it is landed, quarantined or purged. After a failure the whole
//! endpoint rests, with full jitter and at least as long as `Retry-After` says, and is then probed with one batch: a
//! breaker. How many are in flight adapts to the endpoint's latency, from one on (`sender::window`).

mod window;

use crate::{Outcome, Post, Queue, QueueError, failpoint, queue::Found};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use vedette_wire::Compression;
use window::Window;

/// The first pause after a failure is drawn from zero to this.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// No pause is drawn from more than this.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// `Retry-After` is honoured up to this: what is between may say a year, and the workspace must be found again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Of so many batches that are posted one is the oldest of all; the others are the oldest that are not bulk.
const OLDEST_EACH: u64 = 4;
/// Pause after an answer that time alone does not cure.
const PAUSE: Duration = Duration::from_secs(60);

/// What the sender is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Batches landed since the start.
    pub delivered: u64,
    /// When the last one did; absent before the first.
    pub delivered_at: Option<Instant>,
    /// Batches put into quarantine since the start.
    pub quarantined: u64,
    /// Batches purged by policy since the start.
    pub purged: u64,
    /// Batches that met another under their key since the start.
    pub conflicts: u64,
    /// How many may be in flight now.
    pub in_flight_max: usize,
    /// Bytes of a batch before compression that the workspace was found to take; absent until one was too large.
    pub batch_bytes_max: Option<usize>,
    /// Why the agent has to make another key, until somebody takes notice of it ([`crate::Lane::take_rekey`]).
    pub rekey: Option<String>,
    /// What the workspace said that it had acknowledged and has no more, until somebody takes notice of it
    /// ([`crate::Lane::take_lost`]).
    pub lost: Option<(u64, u64)>,
    /// Why the last attempt failed; absent while deliveries succeed.
    pub last_error: Option<String>,
    /// Policy revision that the workspace told last.
    pub policy_revision: Option<u64>,
    /// Codec that the workspace asked for last; absent, the agent's own setting holds.
    pub compression: Option<Compression>,
}

/// The sender's parts, put together by [`crate::Lane`].
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) queue: Arc<Queue>,
    /// Bytes of frames in flight at the most; one goes whatever its size.
    pub(crate) in_flight_bytes_max: usize,
    /// Told when a batch is committed.
    pub(crate) committed: Arc<Notify>,
    /// Told when what failed may work now.
    pub(crate) again: Arc<Notify>,
    pub(crate) status: Arc<Mutex<SenderStatus>>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// What is in hand.
struct Work {
    posting: JoinSet<(u64, usize, Duration, Outcome)>,
    /// Slots of the batches in flight.
    in_flight: BTreeSet<u64>,
    /// Bytes of their frames.
    bytes: usize,
    /// The last slot posted while the endpoint fails.
    probed: u64,
    /// Batches posted.
    posted: u64,
    /// Failures in a row.
    failures: u32,
    /// The endpoint rests until then.
    rests_until: Option<Instant>,
    /// How many may be in flight.
    window: Window,
}

impl Sender {
    /// Send until told to stop. Batches in flight then are sent again after the next start.
    pub(crate) async fn run(self, post: Arc<dyn Post>) {
        let mut stop = self.stop.clone();
        let mut work = Work {
            posting: JoinSet::new(),
            in_flight: BTreeSet::new(),
            bytes: 0,
            probed: 0,
            posted: 0,
            failures: 0,
            rests_until: None,
            window: Window::default(),
        };
        loop {
            if let Err(err) = self.fill(&mut work, &post).await {
                self.failed(&mut work, None, PAUSE, &err.to_string());
            }
            let rest = work.rests_until;
            tokio::select! {
                () = stopped(&mut stop) => return,
                Some(done) = work.posting.join_next() => self.settle(&mut work, done).await,
                () = self.committed.notified() => {}
                () = self.again.notified() => work.rests_until = None,
                () = async { tokio::time::sleep_until(rest.expect("checked below")).await }, if rest.is_some() => {
                    work.rests_until = None;
                }
            }
        }
    }

    /// Post as much as may be in flight: one batch as a probe after a failure.
    async fn fill(&self, work: &mut Work, post: &Arc<dyn Post>) -> Result<(), QueueError> {
        let room = if work.failures > 0 { 1 } else { work.window.limit() };
        while work.rests_until.is_none() && work.posting.len() < room {
            let left = self.in_flight_bytes_max.saturating_sub(work.bytes);
            let bytes_max = if work.posting.is_empty() { usize::MAX } else { left };
            // In turn: one batch that is never taken must not stand before all others.
            let behind = if work.failures > 0 { work.probed } else { 0 };
            // What fills the queue is passed by the rest, and is not kept waiting by it for ever.
            let quiet_first = work.failures == 0 && !work.posted.is_multiple_of(OLDEST_EACH);
            let (queue, except) = (Arc::clone(&self.queue), work.in_flight.clone());
            let next = move || {
                if quiet_first
                    && let found @ (Found::Batch(..) | Found::Larger) = queue.next_quiet(&except, bytes_max)?
                {
                    return Ok(found);
                }
                match queue.next_except(behind, &except, bytes_max)? {
                    Found::Nothing if behind > 0 => queue.next_except(0, &except, bytes_max),
                    found => Ok(found),
                }
            };
            let found = tokio::task::spawn_blocking(next).await.expect("reading does not panic")?;
            let Found::Batch(slot, frame) = found else { return Ok(()) };
            work.probed = slot;
            work.posted += 1;
            work.in_flight.insert(slot);
            let (post, bytes) = (Arc::clone(post), frame.len());
            work.bytes += bytes;
            failpoint::reached("post");
            work.posting.spawn(async move {
                let began = Instant::now();
                let outcome = post.post(frame).await;
                (slot, bytes, began.elapsed(), outcome)
            });
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
                // A panic in the client: whose is unknown, so begin again with nothing in flight.
                tracing::error!(error = %err, "posting ended unexpectedly");
                work.posting.shutdown().await;
                work.bytes = 0;
                work.in_flight.clear();
                self.failed(work, None, PAUSE, "posting ended unexpectedly");
                return;
            }
        };
        let queue = Arc::clone(&self.queue);
        let stored = match outcome {
            Outcome::Done { policy_revision, compression, lost, .. } => {
                failpoint::reached("landed");
                if lost.is_some() && queue.is_of_epoch(slot) {
                    self.update(|status| status.lost = lost);
                }
                work.window.succeeded(took, full, Instant::now());
                self.succeeded(work, policy_revision, compression);
                let deleted = blocking(move || queue.delete(slot)).await;
                failpoint::reached("deleted");
                deleted
            }
            Outcome::Quarantine { code, why } => {
                tracing::error!(slot, code, error = why, "the workspace does not take a batch; kept in quarantine");
                self.update(|status| status.quarantined += 1);
                blocking(move || queue.quarantine(slot, &code, &why)).await
            }
            Outcome::Purge => {
                tracing::warn!(slot, "the workspace refused a batch that the policy forbids; purged");
                self.update(|status| status.purged += 1);
                blocking(move || queue.purge(slot)).await
            }
            Outcome::Conflict { why } => {
                tracing::error!(
                    slot,
                    error = why,
                    "another batch has landed under this key; is this agent's identity in use on another machine?"
                );
                self.update(|status| status.conflicts += 1);
                blocking(move || queue.reseal(slot)).await
            }
            Outcome::TooLarge { why } => self.split(slot, why).await,
            Outcome::Damaged { why } => {
                queue.found_damaged(&why);
                self.failed(work, None, PAUSE, &why);
                Ok(())
            }
            Outcome::Retry { after, why } => {
                work.window.failed();
                let pause = jitter(work.failures, after);
                self.failed(work, after, pause, &why);
                Ok(())
            }
            Outcome::Rekey { why } => {
                self.update(|status| status.rekey = Some(why.clone()));
                self.failed(work, None, PAUSE.mul_f64(0.5 + fastrand::f64()), &why);
                Ok(())
            }
            Outcome::Renew { why } | Outcome::Identity { why } | Outcome::Misdirected { why } => {
                self.failed(work, None, PAUSE.mul_f64(0.5 + fastrand::f64()), &why);
                Ok(())
            }
        };
        if let Err(err) = stored {
            tracing::error!(slot, error = %err, "the queue cannot be updated; the batch is sent again");
            self.failed(work, None, PAUSE, &err.to_string());
        }
    }

    /// Halve a batch, and make no larger ones from now on.
    async fn split(&self, slot: u64, why: String) -> Result<(), QueueError> {
        let queue = Arc::clone(&self.queue);
        let half =
            tokio::task::spawn_blocking(move || queue.split(slot, &why)).await.expect("the queue does not panic")?;
        match half {
            Some(half) => {
                tracing::warn!(
                    slot,
                    half,
                    "a batch was too large; split, and records of later ones have so many bytes at the most"
                );
                self.update(|status| {
                    let learned = status.batch_bytes_max.map_or(half, |known| known.min(half));
                    status.batch_bytes_max = Some(learned);
                });
            }
            None => {
                tracing::error!(slot, "one record alone is too large for the workspace; kept in quarantine");
                self.update(|status| status.quarantined += 1);
            }
        }
        Ok(())
    }

    fn succeeded(&self, work: &mut Work, policy_revision: u64, compression: Option<Compression>) {
        if work.failures > 0 {
            tracing::info!("delivery works again");
        }
        work.failures = 0;
        self.update(|status| {
            status.delivered += 1;
            status.delivered_at = Some(Instant::now());
            status.last_error = None;
            status.in_flight_max = work.window.limit();
            status.policy_revision = Some(policy_revision);
            status.compression = compression;
        });
    }

    /// The endpoint rests. What it asked for is honoured, and not by all agents to the same moment.
    fn failed(&self, work: &mut Work, after: Option<Duration>, pause: Duration, why: &str) {
        if work.failures == 0 {
            tracing::warn!(error = why, "delivery fails; batches wait on disk");
        }
        work.failures = work.failures.saturating_add(1);
        work.rests_until = Some(Instant::now() + after.unwrap_or_default().min(RETRY_AFTER_MAX) + pause);
        self.update(|status| status.last_error = Some(why.to_owned()));
    }

    fn update(&self, change: impl FnOnce(&mut SenderStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the lane is gone, which is a stop too.
    drop(stop.wait_for(|stop| *stop).await);
}

async fn blocking(work: impl FnOnce() -> Result<(), QueueError> + Send + 'static) -> Result<(), QueueError> {
    tokio::task::spawn_blocking(work).await.expect("the queue does not panic")
}

/// Full jitter: anything from zero to a bound that doubles with each failure. On top of `Retry-After` up to a quarter of
/// it at the least: a fleet that was told the same does not come back in the same second.
fn jitter(failures: u32, after: Option<Duration>) -> Duration {
    let bound = BACKOFF_BASE.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    let bound = bound.max(after.unwrap_or_default().min(RETRY_AFTER_MAX) / 4);
    bound.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
