//! Why a batch is refused.

use super::ROWS_BYTES_MAX;
use vedette_wire::{codec::DecodeError, geo::WorkspaceGeo};

/// Why a batch is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    /// The organization exceeds its rate.
    #[error("the organization sends too many batches")]
    TooManyBatches,
    /// The organization exceeds its memory for bodies.
    #[error("the bodies of the organization's current requests exceed its share of memory")]
    TooManyBytes,
    /// The body is not what its sender stated.
    #[error("Content-Digest does not match the body")]
    Digest,
    /// The body is not a batch.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The batch holds impossible values.
    #[error("{0}")]
    Shape(&'static str),
    /// The batch is too large as rows.
    #[error("the batch has {0} bytes as rows, and {ROWS_BYTES_MAX} are allowed")]
    TooLargeAsRows(usize),
    /// The batch has too many position runs.
    #[error("the batch has too many position runs")]
    TooManyRuns,
    /// The batch is another agent's.
    #[error("the organization or agent of the batch differs from that of the certificate")]
    IdentityMismatch,
    /// The batch is for another geography.
    #[error("the batch is for geography {batch}, but this workspace is in {workspace}")]
    GeoMismatch { batch: WorkspaceGeo, workspace: WorkspaceGeo },
    /// The batch has another key.
    #[error("lane, epoch and sequence of the batch differ from those in the path")]
    KeyMismatch,
    /// The batch was sealed on another machine than the agent's.
    #[error("{0}")]
    Clone(&'static str),
    /// The policy revision will be known later.
    #[error("policy revision {0} is unknown here")]
    PolicyRevision(u64),
    /// The policy forbids the content.
    #[error("{0}")]
    Policy(String),
    /// Another batch has this key.
    #[error("another batch has landed under this key")]
    Conflict,
    /// A store failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}
