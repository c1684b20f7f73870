//! `GET /metrics`, on its own loopback listener.

use super::ApiError;
use crate::{
    clock::now,
    metrics::{CONTENT_TYPE, Metrics},
    store::ControlStore,
};
use axum::{
    Router,
    extract::State,
    http::{HeaderName, header},
    routing::get,
};
use std::sync::Arc;

type Text = ([(HeaderName, &'static str); 1], String);

async fn metrics(State((metrics, control)): State<(Arc<Metrics>, ControlStore)>) -> Result<Text, ApiError> {
    let organizations = control.organization_states(now()).await?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let resident = kib.map(|kib: u64| kib.saturating_mul(1024));
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.render(&organizations, resident)))
}

/// Needs no authentication: it is served on loopback alone.
pub(crate) fn router(state: Arc<Metrics>, control: ControlStore) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state((state, control))
}
