//! Makes batches durable and delivers them. Knows a record's envelope, never its body.
//!
//! ```text
//! Chunk ──▶ intake ──▶ batcher ──▶ queue (redb: batch + cursors + ledger in one transaction) ──▶ sender ──▶ Post
//! ```
//!
//! The intake is bounded in bytes: when it is full, sources wait. The batcher and the queue live on one thread, since
//! redb has one writer; the sender is a task.

pub mod batcher;
pub mod failpoint;
pub mod intake;
pub mod lane;
pub mod outcome;
pub mod post;
pub mod queue;
pub mod sender;
pub mod tls;

pub use batcher::{BatchLimits, SEALED_BYTES_MAX, Stamp};
pub use intake::{Intake, Stopped};
pub use lane::{Lane, LaneConfig, LaneStatus};
pub use outcome::Outcome;
pub use post::{HttpPost, Post};
pub use queue::{CACHE_BYTES, Queue, QueueError, Quota};
