//! HTTP interface of the workspace.
//!
//! A handler reaches the workspace only through an extractor that authenticates its request (`extract`); each route has limits
//! of size and time (`endpoint`); each error is answered as problem details (`error`).

mod endpoint;
mod error;
mod extract;
mod livez;
mod metrics;
mod rates;
mod v1;

pub(crate) use extract::Connection;
pub(crate) use metrics::router as metrics_router;
pub(crate) use rates::RateLimits;

use crate::{
    health::Health,
    ingest::{BATCH_BYTES_MAX, Ingest},
    keys::Authority,
    metrics::Metrics,
    store::{ControlStore, PendingDirectives},
};
use anyhow::Result;
use axum::{
    Router,
    routing::{get, post, put},
};
use endpoint::{Endpoints, Limits};
use error::ApiError;
use extract::Gate;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use vedette_wire::{ProblemCode, geo::WorkspaceGeo};

/// What handlers work with.
pub(crate) struct Api {
    pub(crate) dir: PathBuf,
    pub(crate) control: ControlStore,
    pub(crate) ingest: Arc<Ingest>,
    pub(crate) authority: Authority,
    pub(crate) geo: WorkspaceGeo,
    /// Public policy key, hex.
    pub(crate) policy_key: String,
    pub(crate) pending: watch::Receiver<PendingDirectives>,
    /// Validity of agents' certificates.
    pub(crate) certificate_life: Duration,
    pub(crate) rate_limits: RateLimits,
    pub(crate) metrics: Arc<Metrics>,
}

impl Api {
    /// Refuses actions that only the primary of a pair may perform.
    async fn require_primary(&self) -> Result<(), ApiError> {
        match self.control.primary().await? {
            None => Ok(()),
            Some(primary) => {
                let title = format!("this workspace is the secondary of a pair; do this at the primary, {primary}");
                Err(ApiError::new(ProblemCode::Pair, title))
            }
        }
    }
}

/// Requests with a small body, or none. The store may be locked for 20 s, and a connection to it be waited for 30 s.
const SMALL: Limits =
    Limits { body_bytes_max: 64 << 10, body_time_max: Duration::from_secs(10), time_max: Duration::from_secs(70) };
/// Batches. Agents wait two minutes for an answer.
const BATCH: Limits = Limits {
    body_bytes_max: BATCH_BYTES_MAX,
    body_time_max: Duration::from_secs(110),
    time_max: Duration::from_secs(118),
};
/// Polls are held for 40 s.
const POLL: Limits = Limits { body_bytes_max: 0, time_max: Duration::from_secs(110), ..SMALL };
const POLICY: Limits = Limits { body_bytes_max: 1 << 20, ..SMALL };
/// The shared state of a pair.
const EXCHANGE: Limits = Limits { body_bytes_max: 16 << 20, ..SMALL };

/// The routes.
pub(crate) fn router(api: Api, health: Arc<Health>) -> Router {
    let metrics = Arc::clone(&api.metrics);
    let batch = Limits { body_bytes_max: api.ingest.batch_bytes_max(), ..BATCH };
    Endpoints::default()
        .route("/v1/{lane}/{epoch}/{seq}", batch, put(v1::batch::put))
        .route("/v1/positions", SMALL, get(v1::positions::first))
        .route("/v1/positions/{collector}/{source}", SMALL, get(v1::positions::after))
        .route("/v1/policy/{after}", POLL, get(v1::directives::next))
        .route("/v1/policy", POLICY, post(v1::policy::restore))
        .route("/v1/enroll", SMALL, post(v1::enroll::enroll))
        .route("/v1/renew", SMALL, post(v1::renew::renew))
        .route("/v1/rekey", SMALL, post(v1::rekey::rekey))
        .route("/v1/pair/join", SMALL, post(v1::pair_join::join))
        .route("/v1/pair", EXCHANGE, post(v1::pair_exchange::exchange))
        .into_router(Gate::new(api), metrics)
        .merge(livez::router(health))
}
