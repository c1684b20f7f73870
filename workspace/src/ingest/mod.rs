//! Ingest: the bytes of a batch in, an acknowledgement or the reason for refusal out.
//!
//! A batch is acknowledged only when it is durable in the landing store and recorded in the control store.

mod admission;
mod authorize;
mod bodies;
mod check;
mod clones;
mod error;
mod landing;

pub(crate) use bodies::Reserved;
pub(crate) use error::IngestError;
pub(crate) use landing::{LandingKey, LandingStore, ReadError};

use crate::{
    clock::now,
    metrics::Metrics,
    store::{AgentKey, ControlStore},
};
use admission::Admission;
use authorize::PolicyCache;
use bytes::Bytes;
use clones::Origins;
use landing::LandOutcome;
use std::{num::NonZeroU32, sync::Arc};
use vedette_wire::{
    Compression, Epoch, LaneName, OrganizationId,
    geo::WorkspaceGeo,
    reply::{Ack, ReceiveLimits},
};

/// Maximum size of a sealed batch.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// Maximum size of a decompressed batch.
const PLAIN_BYTES_MAX: usize = 48 << 20;
/// Maximum size of a batch as rows of tables; agents split larger ones.
const ROWS_BYTES_MAX: usize = 256 << 20;

/// Options of ingest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IngestSettings {
    /// Maximum number of batches per second and organization.
    pub(crate) batches_per_second: NonZeroU32,
    /// Maximum size of a sealed batch.
    pub(crate) batch_bytes_max: usize,
    /// Codec to request from agents.
    pub(crate) compression: Option<Compression>,
    /// Memory for the process, bytes.
    pub(crate) memory_max: u64,
}

/// A batch as it arrived, from an admitted agent.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) agent: AgentKey,
    /// Policy revision in force for the agent.
    pub(crate) in_force: u64,
    /// Sealed batch.
    pub(crate) body: Bytes,
    pub(crate) compression: Compression,
    /// Stated SHA-256 of the body.
    pub(crate) digest: Option<[u8; 32]>,
    /// Stated lane, epoch and sequence.
    pub(crate) key: (LaneName, Epoch, u64),
}

/// Checks, lands and records batches.
pub(crate) struct Ingest {
    control: ControlStore,
    landing: LandingStore,
    geo: WorkspaceGeo,
    settings: IngestSettings,
    admission: Admission,
    origins: Origins,
    policies: PolicyCache,
    metrics: Arc<Metrics>,
}

impl Ingest {
    pub(crate) fn new(
        (control, landing): (ControlStore, LandingStore),
        geo: WorkspaceGeo,
        settings: IngestSettings,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (admission, origins, policies) = (Admission::new(&settings), Origins::default(), PolicyCache::default());
        Self { control, landing, geo, settings, admission, origins, policies, metrics }
    }

    /// Refuses an organization that sends too many requests.
    pub(crate) fn check_rate(&self, organization: OrganizationId) -> Result<(), IngestError> {
        self.admission.check_rate(organization)
    }

    /// Reserves memory for a body of this length, until the result is dropped.
    pub(crate) fn reserve(&self, organization: OrganizationId, bytes: u64) -> Result<Reserved, IngestError> {
        self.admission.reserve(organization, bytes.min(BATCH_BYTES_MAX as u64))
    }

    /// Codec to request from agents.
    pub(crate) fn compression(&self) -> Option<Compression> {
        self.settings.compression
    }

    /// Maximum size of a sealed batch.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        self.settings.batch_bytes_max
    }

    /// Checks, lands and records a batch.
    #[tracing::instrument(
        name = "batch",
        level = "debug",
        skip_all,
        fields(agent = %delivery.agent.agent, lane = %delivery.key.0, epoch = %delivery.key.1, seq = delivery.key.2)
    )]
    pub(crate) async fn land(&self, delivery: Delivery) -> Result<Ack, IngestError> {
        let (agent, in_force, geo) = (delivery.agent, delivery.in_force, self.geo);
        let turn = self.admission.turn(agent.organization).await;
        let opened = blocking(move || check::open(delivery, geo)).await??;
        let policies = self.policies_of(&opened.header, in_force).await?;
        let store = authorize::store_level(&policies);
        let checked = blocking(move || opened.scan(store)).await??;
        let key = LandingKey::new(geo, &checked.index.header);
        self.reject_clone(&checked, &key).await?;
        self.authorize(&checked, &policies, in_force).await?;
        let bytes = checked.frame.len();
        let landed = self.landing.land(&key, checked.frame, &checked.digest).await?;
        drop(turn);
        if landed == LandOutcome::Conflict {
            tracing::error!(key = key.as_str(), "a batch arrived twice with different content");
            let why = "another batch has landed under a key of this agent: its disk was set back, or copied";
            self.control.alert(agent, "conflict", why, now()).await?;
            return Err(IngestError::Conflict);
        }
        // For a repeated batch, too: the first attempt may have ended between landing and recording.
        self.control.record_landed(key.as_str(), &key.day, bytes, &checked.index, now()).await?;
        if !checked.contents.pieces.is_empty() {
            self.control.record_pieces(agent, key.as_str(), &checked.contents.pieces).await?;
        }
        let lost = self.control.lost(&checked.index.header).await?;
        if let Some(lost) = lost {
            self.control.alert_lost(&checked.index.header, lost, now()).await?;
        }
        let limits = ReceiveLimits {
            batch_bytes_max: self.settings.batch_bytes_max as u64,
            plain_bytes_max: PLAIN_BYTES_MAX as u64,
            compression: self.settings.compression,
        };
        let duplicate = landed == LandOutcome::Duplicate;
        self.metrics.landed(agent.organization, checked.index.header.records.into(), bytes as u64, duplicate);
        Ok(Ack { duplicate, policy_revision: in_force, limits, lost })
    }
}

/// Runs CPU work off the async threads; a panic ends this work alone.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, IngestError> {
    tokio::task::spawn_blocking(work).await.map_err(|err| IngestError::Internal(err.into()))
}
