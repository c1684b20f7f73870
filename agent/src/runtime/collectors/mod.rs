//! Collectors of a running agent: their threads, restarts, states, and their way into the transport.

mod runner;
mod sink;
mod status;
mod supervisor;

pub(crate) use runner::chunks_of;
pub(super) use sink::{LaneSink, QueueSink};
pub(super) use status::{CollectorState, CollectorStatuses};
pub(super) use supervisor::{StartRequest, Supervisor};
