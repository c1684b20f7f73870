//! What the tasks of a running agent share.

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
use tokio::{sync::watch, time::Instant};
use vedette_collectors::StopSignal;
use vedette_wire::{HostLabel, body::CloudInstance};

/// What the tasks of one run share.
pub(super) struct AgentContext {
    /// The configuration of this run.
    pub(super) config: Arc<Resolved>,
    /// The configuration in force. After a reload it may differ from `config` in collectors and log level.
    pub(super) in_force: watch::Sender<Arc<Resolved>>,
    pub(super) enrollment: Enrollment,
    pub(super) identity: IdentityDir,
    pub(super) host: HostLabel,
    pub(super) cloud: Option<Arc<CloudInstance>>,
    pub(super) client: Arc<WorkspaceClient>,
    /// The workspace as the destination of lane `records`.
    pub(super) delivery: Arc<LaneDelivery>,
    /// Queue and sink of lane `records`.
    pub(super) records: LaneSink,
    pub(super) events: Arc<AgentEvents>,
    pub(super) statuses: Arc<CollectorStatuses>,
    /// Stops all collectors.
    pub(super) stop: StopSignal,
    pub(super) started: Instant,
}
