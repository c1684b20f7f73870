//! Parts of a running agent that its tasks share.

use super::{
    collectors::{CollectorStatuses, LaneSink},
    delivery::{LaneDelivery, WorkspaceClient},
    events::AgentEvents,
};
use crate::{
    config::Resolved,
    identity::{Enrollment, IdentityDir},
};
use std::sync::Arc;
use tokio::time::Instant;
use vedette_collectors::StopSignal;
use vedette_wire::{HostLabel, body::CloudInstance};

/// The parts.
pub(super) struct Parts {
    pub(super) config: Arc<Resolved>,
    pub(super) enrollment: Enrollment,
    pub(super) identity: IdentityDir,
    pub(super) host: HostLabel,
    pub(super) cloud: Option<Arc<CloudInstance>>,
    pub(super) client: Arc<WorkspaceClient>,
    /// The workspace as the destination of lane `records`.
    pub(super) delivery: Arc<LaneDelivery>,
    /// Lane `records`.
    pub(super) records: LaneSink,
    pub(super) events: Arc<AgentEvents>,
    pub(super) statuses: Arc<CollectorStatuses>,
    /// Stops all collectors.
    pub(super) stop: StopSignal,
    pub(super) started: Instant,
}
