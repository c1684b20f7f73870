//! A workspace as the destination of a lane: what its answers mean for the lane, and what it says besides.

use super::WorkspaceClient;
use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::watch;
use vedette_transport::{Answer, Outcome, Post, Queue};
use vedette_wire::Compression;

/// Pause after an answer that time alone does not cure.
const PAUSE: Duration = Duration::from_secs(60);

/// Posts the batches of one lane to the workspace.
pub(in crate::runtime) struct LaneDelivery {
    client: Arc<WorkspaceClient>,
    /// The lane's queue, once the lane has started.
    queue: OnceLock<Arc<Queue>>,
    codec: watch::Sender<Option<Compression>>,
    notices: Mutex<Notices>,
}

/// What the workspace last said, until it is taken.
#[derive(Debug, Default)]
struct Notices {
    policy_revision: Option<u64>,
    needs_rekey: bool,
    lost: Option<(u64, u64)>,
}

impl LaneDelivery {
    pub(in crate::runtime) fn new(client: &Arc<WorkspaceClient>) -> Arc<Self> {
        let (client, codec) = (Arc::clone(client), watch::Sender::new(None));
        Arc::new(Self { client, queue: OnceLock::new(), codec, notices: Mutex::default() })
    }

    /// Names the queue of the lane, in which batches are sealed again.
    pub(in crate::runtime) fn attach(&self, queue: &Arc<Queue>) {
        // A lane starts once.
        drop(self.queue.set(Arc::clone(queue)));
    }

    /// The codec that the workspace requests; absent, the agent's setting applies.
    pub(in crate::runtime) fn codec(&self) -> watch::Receiver<Option<Compression>> {
        self.codec.subscribe()
    }

    /// Whether an acknowledgement named a policy with a later revision.
    pub(in crate::runtime) fn has_newer_policy(&self, after: u64) -> bool {
        self.notices.lock().policy_revision.is_some_and(|revision| revision > after)
    }

    /// Whether the workspace has demanded a new key since the last call.
    pub(in crate::runtime) fn take_rekey(&self) -> bool {
        std::mem::take(&mut self.notices.lock().needs_rekey)
    }

    /// First and last sequence that the workspace acknowledged and lost, reported since the last call.
    pub(in crate::runtime) fn take_lost(&self) -> Option<(u64, u64)> {
        self.notices.lock().lost.take()
    }

    /// What an answer means for the lane. Remembers what it says besides.
    pub(super) async fn outcome(&self, slot: u64, answer: Answer) -> Outcome {
        match answer {
            Answer::Acknowledged { policy_revision, compression, lost, .. } => {
                // A loss of an earlier epoch is read again already.
                let lost = lost.filter(|_| self.queue.get().is_some_and(|queue| queue.is_of_epoch(slot)));
                let mut notices = self.notices.lock();
                notices.policy_revision = Some(policy_revision);
                notices.lost = lost.or(notices.lost);
                drop(notices);
                self.codec.send_if_modified(|codec| std::mem::replace(codec, compression) != compression);
                Outcome::Accepted
            }
            Answer::Retry { after, why } => Outcome::Retry { after, why },
            Answer::Quarantine { code, why } => Outcome::Rejected { code: code.to_string(), why },
            Answer::Purge => Outcome::Forbidden,
            Answer::TooLarge { why } => Outcome::Split { why },
            Answer::Damaged { why } => Outcome::Damaged { why },
            Answer::Conflict { why } => self.reseal(slot, why).await,
            Answer::Rekey { why } => {
                self.notices.lock().needs_rekey = true;
                Outcome::Retry { after: Some(PAUSE), why }
            }
            Answer::Renew { why } | Answer::Identity { why } | Answer::Misdirected { why } => {
                Outcome::Retry { after: Some(PAUSE), why }
            }
        }
    }

    /// Seals a batch again, whose number another batch has at the workspace.
    async fn reseal(&self, slot: u64, why: String) -> Outcome {
        tracing::error!(
            slot,
            error = why,
            "another batch has landed under this key; is this agent's identity in use on another machine?"
        );
        let Some(queue) = self.queue.get().cloned() else { return Outcome::Retry { after: None, why } };
        match tokio::task::spawn_blocking(move || queue.reseal(slot)).await.expect("the queue does not panic") {
            Ok(()) => Outcome::Retry { after: None, why },
            Err(err) => {
                tracing::error!(slot, error = %err, "the batch cannot be sealed again; trying again");
                Outcome::Retry { after: Some(PAUSE), why: err.to_string() }
            }
        }
    }
}

impl Post for LaneDelivery {
    fn post(&self, slot: u64, frame: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        Box::pin(async move {
            let answer = self.client.deliver(frame).await;
            self.outcome(slot, answer).await
        })
    }
}
