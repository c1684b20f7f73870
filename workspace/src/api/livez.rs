//! `GET /livez`: health of the workspace, as text for people and probes.

use crate::health::Health;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use std::sync::Arc;

async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    let (goes_on, text) = health.report();
    (if goes_on { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

/// Needs neither a client certificate nor anything of the workspace, reads no body, and never waits.
pub(super) fn router(health: Arc<Health>) -> Router {
    Router::new().route("/livez", get(livez)).with_state(health)
}
