//! The sender: takes batches from the queue in order, posts several at a time, and acts on what comes back.
//!
//! Nothing has a retry budget: a batch is tried until it is landed, quarantined or purged. After a failure the whole
//! endpoint rests, with full jitter and at least as long as `Retry-After` says, and is then probed with one batch.

use crate::{Outcome, Post, Queue, QueueError, queue::Found};
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

/// Requests in flight at the most.
const IN_FLIGHT_MAX: usize = 4;
/// The first pause after a failure is drawn from zero to this.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// No pause is drawn from more than this.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// `Retry-After` is honoured up to this: what is between may say a year, and the workspace must be found again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Pause after an answer that time alone does not cure.
const PAUSE: Duration = Duration::from_secs(60);

/// What the sender is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SenderStatus {
    /// Batches landed since the start.
    pub delivered: u64,
    /// Batches put into quarantine since the start.
    pub quarantined: u64,
    /// Batches purged by policy since the start.
    pub purged: u64,
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
    pub(crate) status: Arc<Mutex<SenderStatus>>,
    pub(crate) stop: watch::Receiver<bool>,
}

/// What is in hand.
struct Work {
    posting: JoinSet<(u64, usize, Outcome)>,
    /// Bytes of the frames in flight.
    bytes: usize,
    /// Sequences to post again, before new ones.
    again: BTreeSet<u64>,
    /// The last sequence taken from the queue.
    taken: u64,
    /// The last sequence posted.
    probed: u64,
    /// Failures in a row.
    failures: u32,
    /// The endpoint rests until then.
    rests_until: Option<Instant>,
}

impl Sender {
    /// Send until told to stop. Batches in flight then are sent again after the next start.
    pub(crate) async fn run(self, post: Arc<dyn Post>) {
        let mut stop = self.stop.clone();
        let mut work = Work {
            posting: JoinSet::new(),
            bytes: 0,
            again: BTreeSet::new(),
            taken: 0,
            probed: 0,
            failures: 0,
            rests_until: None,
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
                () = async { tokio::time::sleep_until(rest.expect("checked below")).await }, if rest.is_some() => {
                    work.rests_until = None;
                }
            }
        }
    }

    /// Post as much as may be in flight: one batch as a probe after a failure.
    async fn fill(&self, work: &mut Work, post: &Arc<dyn Post>) -> Result<(), QueueError> {
        let room = if work.failures > 0 { 1 } else { IN_FLIGHT_MAX };
        while work.rests_until.is_none() && work.posting.len() < room {
            // In turn: one batch that is never taken must not stand before all others.
            let again = work.again.range(work.probed + 1..).next().or(work.again.first()).copied();
            let after = again.map_or(work.taken, |seq| seq - 1);
            let left = self.in_flight_bytes_max.saturating_sub(work.bytes);
            let bytes_max = if work.posting.is_empty() { usize::MAX } else { left };
            let queue = Arc::clone(&self.queue);
            let found = tokio::task::spawn_blocking(move || queue.next_within(after, bytes_max)).await;
            let found = found.expect("reading does not panic")?;
            if let Some(again) = again
                && found.seq() != Some(again)
            {
                // It is not in the queue any more.
                work.again.remove(&again);
                continue;
            }
            let Found::Batch(seq, frame) = found else { return Ok(()) };
            work.again.remove(&seq);
            work.probed = seq;
            work.taken = work.taken.max(seq);
            let (post, bytes) = (Arc::clone(post), frame.len());
            work.bytes += bytes;
            work.posting.spawn(async move { (seq, bytes, post.post(frame).await) });
        }
        Ok(())
    }

    async fn settle(&self, work: &mut Work, done: Result<(u64, usize, Outcome), tokio::task::JoinError>) {
        let (seq, outcome) = match done {
            Ok((seq, bytes, outcome)) => {
                work.bytes -= bytes;
                (seq, outcome)
            }
            Err(err) => {
                // A panic in the client: the sequence is unknown, so begin again from the lowest with nothing in flight.
                tracing::error!(error = %err, "posting ended unexpectedly");
                work.posting.shutdown().await;
                (work.bytes, work.taken) = (0, 0);
                self.failed(work, None, PAUSE, "posting ended unexpectedly");
                return;
            }
        };
        let queue = Arc::clone(&self.queue);
        let stored = match outcome {
            Outcome::Done { policy_revision, compression, .. } => {
                self.succeeded(work, policy_revision, compression);
                blocking(move || queue.delete(seq)).await
            }
            Outcome::Quarantine { code, why } => {
                tracing::error!(seq, code, error = why, "the workspace does not take a batch; kept in quarantine");
                self.update(|status| status.quarantined += 1);
                blocking(move || queue.quarantine(seq, &code, &why)).await
            }
            Outcome::Purge => {
                tracing::info!(seq, "policy forbids a batch; purged");
                self.update(|status| status.purged += 1);
                blocking(move || queue.purge(seq)).await
            }
            Outcome::Retry { after, why } => {
                work.again.insert(seq);
                let pause = jitter(work.failures);
                self.failed(work, after, pause, &why);
                Ok(())
            }
            Outcome::Renew { why } | Outcome::Identity { why } | Outcome::Misdirected { why } => {
                work.again.insert(seq);
                self.failed(work, None, PAUSE, &why);
                Ok(())
            }
        };
        if let Err(err) = stored {
            tracing::error!(seq, error = %err, "the queue cannot be updated; the batch is sent again");
            work.again.insert(seq);
            self.failed(work, None, PAUSE, &err.to_string());
        }
    }

    fn succeeded(&self, work: &mut Work, policy_revision: u64, compression: Option<Compression>) {
        if work.failures > 0 {
            tracing::info!("delivery works again");
        }
        work.failures = 0;
        self.update(|status| {
            status.delivered += 1;
            status.last_error = None;
            status.policy_revision = Some(policy_revision);
            status.compression = compression;
        });
    }

    fn failed(&self, work: &mut Work, after: Option<Duration>, pause: Duration, why: &str) {
        if work.failures == 0 {
            tracing::warn!(error = why, "delivery fails; batches wait on disk");
        }
        work.failures = work.failures.saturating_add(1);
        work.rests_until = Some(Instant::now() + pause.max(after.unwrap_or_default().min(RETRY_AFTER_MAX)));
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

/// Full jitter: anything from zero to a bound that doubles with each failure.
fn jitter(failures: u32) -> Duration {
    let bound = BACKOFF_BASE.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    bound.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests;
