//! Delivery: the client of the workspace with fail-over and renewal and recovery after a lost queue.

mod client;
mod destination;
mod endpoints;
pub(super) mod rekey;
pub(super) mod renew;
pub(super) mod resume;

pub(super) use client::WorkspaceClient;
pub(super) use destination::LaneDelivery;
