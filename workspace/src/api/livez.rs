//! `GET /livez`: health of the workspace, as text for people and probes.

use super::ApiError;
use crate::health::Health;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use std::sync::Arc;

async fn livez(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    let (is_alive, text) = health.report();
    (if is_alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

/// Needs neither a client certificate nor anything of the workspace, reads no body, and never waits.
pub(super) fn router(health: Arc<Health>) -> Router {
    let refused = async || ApiError::of_status(StatusCode::METHOD_NOT_ALLOWED);
    Router::new().route("/livez", get(livez).fallback(refused)).with_state(health)
}
