//! Makes batches durable and delivers them. Reads the envelopes of records, never their bodies.
//!
//! ```text
//! Chunk ──▶ intake ──▶ batcher ──▶ queue (redb: batch + cursors + ledger in one transaction) ──▶ sender ──▶ Post
//! ```
//!
//! The intake is limited in bytes; sources wait when it is full. The batcher commits on its own thread; the sender is
//! a task that deletes what was delivered. A lock serialises their transactions, since redb has one writer.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use vedette_transport::{BatchContext, BatchLimits, Lane, LaneConfig, Queue, Quota};
//! use vedette_wire::{Body, Chunk, HostLabel, Position, Source, body::Syslog, geo::WorkspaceGeo};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let context = BatchContext {
//!     organization: "019ac0de-0000-7000-8000-000000000001".parse()?,
//!     agent: vedette_wire::AgentId([7; 16]),
//!     geo: WorkspaceGeo::Europe,
//!     agent_version: "1.0.0".to_owned(),
//!     host: HostLabel::default(),
//!     policy_revision: 1,
//! };
//! let lane = Lane::start(LaneConfig {
//!     queue: Queue::open(dir.path(), vedette_wire::LaneName::Records, Quota::bytes(64 << 20), 42)?,
//!     limits: BatchLimits {
//!         bytes_max: 1 << 20,
//!         records_max: 10_000,
//!         age_max: Duration::from_millis(10),
//!         compression: vedette_wire::Compression::Zstd,
//!     },
//!     context: tokio::sync::watch::channel(context).1,
//!     intake_bytes_max: 1 << 20,
//!     codec: tokio::sync::watch::channel(None).1,
//!     in_flight_bytes_max: 8 << 20,
//!     now: Arc::new(|| 1_764_242_000_000_000_000),
//!     // A destination would be here; without one batches stay in the queue.
//!     post: None,
//! })?;
//! let source = Source { collector: "syslog", id: "8:1:2:0".to_owned(), name: Some("/var/log/syslog".to_owned()) };
//! let mut chunk = Chunk::new(Arc::new(source));
//! chunk.push(0, Position(0, 6), &Body::Syslog(Syslog { raw: b"hello".to_vec(), ..Syslog::default() }));
//! lane.intake().put(chunk)?;
//! lane.intake().wait_durable()?;
//! assert_eq!(lane.status().queue.batches, 1);
//! lane.stop(Duration::ZERO).await;
//! # Ok(())
//! # }
//! ```

pub mod backoff;
pub mod batcher;
pub mod failpoint;
pub mod intake;
pub mod lane;
pub mod post;
pub mod queue;
pub mod sender;
pub mod tls;
pub mod workspace;

pub use backoff::Backoff;
pub use batcher::{BatchContext, BatchLimits, SEALED_BYTES_MAX};
pub use intake::{Intake, Stopped};
pub use lane::{Lane, LaneConfig, LaneStatus, Progress};
pub use post::{Outcome, Post};
pub use queue::{CACHE_BYTES, Queue, QueueError, Quota};
pub use workspace::{Answer, RequestError, WorkspaceApi};
