//! A workspace as the destination of a lane: what its answers mean for the lane, and what it says besides.

use super::WorkspaceClient;
use parking_lot::Mutex;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::watch;
use vedette_transport::{Answer, Outcome, Post};
use vedette_wire::Compression;

/// Pause after an answer that time alone does not cure; the sender adds up to half of it. Spread, so that a fleet does not
/// return at once.
const PAUSE: Duration = Duration::from_secs(60);

fn pause() -> Duration {
    PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Posts the batches of one lane to the workspace.
pub(in crate::runtime) struct LaneDelivery {
    client: Arc<WorkspaceClient>,
    codec: watch::Sender<Option<Compression>>,
    notices: Mutex<Notices>,
}

/// What the workspace last said, until it is taken.
#[derive(Debug, Default)]
struct Notices {
    policy_revision: Option<u64>,
    needs_rekey: bool,
    /// Slot of the acknowledged batch, and the range.
    lost: Option<(u64, (u64, u64))>,
}

impl LaneDelivery {
    pub(in crate::runtime) fn new(client: &Arc<WorkspaceClient>) -> Arc<Self> {
        let (client, codec) = (Arc::clone(client), watch::Sender::new(None));
        Arc::new(Self { client, codec, notices: Mutex::default() })
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

    /// First and last sequence that the workspace acknowledged and lost, reported since the last call, and the slot of the batch
    /// whose acknowledgement said so.
    pub(in crate::runtime) fn take_lost(&self) -> Option<(u64, (u64, u64))> {
        self.notices.lock().lost.take()
    }

    /// What an answer means for the lane. Remembers what it says besides.
    pub(super) fn outcome(&self, slot: u64, answer: Answer) -> Outcome {
        match answer {
            Answer::Acknowledged { policy_revision, compression, lost, .. } => {
                let mut notices = self.notices.lock();
                notices.policy_revision = Some(policy_revision);
                notices.lost = lost.map(|range| (slot, range)).or(notices.lost);
                drop(notices);
                self.codec.send_if_modified(|codec| std::mem::replace(codec, compression) != compression);
                Outcome::Accepted
            }
            Answer::Retry { after, why } => Outcome::Retry { after, why },
            Answer::Quarantine { code, why } => Outcome::Rejected { code: code.to_string(), why },
            Answer::Purge => Outcome::Forbidden,
            Answer::TooLarge { why } => Outcome::Split { why },
            Answer::Damaged { why } => Outcome::Damaged { why },
            Answer::Conflict { why } => Outcome::Reseal { why },
            Answer::Rekey { why } => {
                self.notices.lock().needs_rekey = true;
                Outcome::Retry { after: Some(pause()), why }
            }
            Answer::Renew { why } | Answer::Identity { why } | Answer::Misdirected { why } => {
                Outcome::Retry { after: Some(pause()), why }
            }
        }
    }
}

impl Post for LaneDelivery {
    fn post(&self, slot: u64, frame: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        Box::pin(async move {
            let answer = self.client.deliver(frame).await;
            self.outcome(slot, answer)
        })
    }
}
