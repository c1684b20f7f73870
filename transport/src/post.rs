//! The destination of batches, as the sender sees it.

use std::{future::Future, pin::Pin, time::Duration};

/// What to do with a batch after it was posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has stored the batch durably: delete it here.
    Accepted,
    /// Try again, without limit, but not before `after`.
    Retry {
        /// Pause that the destination asks for.
        after: Option<Duration>,
        /// Reason, for status and log.
        why: String,
    },
    /// The destination will never accept the batch: keep it in quarantine.
    Rejected {
        /// Code of the reason.
        code: String,
        /// Reason, for status and log.
        why: String,
    },
    /// The batch is too large: split it.
    Split {
        /// Reason, for status and log.
        why: String,
    },
    /// The destination has another batch under this sequence: begin another epoch, and reseal the batch there.
    Reseal {
        /// Reason, for status and log.
        why: String,
    },
    /// The batch must not be delivered: delete and count it.
    Forbidden,
    /// The batch differs from what was queued: the queue is damaged.
    Damaged {
        /// Reason, for status and log.
        why: String,
    },
}

/// A destination: a workspace, or a fake on a paused clock.
pub trait Post: Send + Sync + 'static {
    /// Posts the frame of a batch in a slot of the queue. The implementation handles the rest of the reply (policy revision,
    /// codec) itself.
    fn post(&self, slot: u64, frame: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>>;
}
