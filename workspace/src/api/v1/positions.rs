//! `GET /v1/positions[/{collector}/{source}]`: stored positions of an agent's sources, from the first or after one.

use crate::api::{ApiError, extract::AuthenticatedAgent};
use anyhow::Context as _;
use axum::{
    extract::Path,
    http::{HeaderName, header},
};

type Page = ([(HeaderName, &'static str); 1], Vec<u8>);

pub(in crate::api) async fn first(agent: AuthenticatedAgent) -> Result<Page, ApiError> {
    page(&agent, ("", "")).await
}

pub(in crate::api) async fn after(
    agent: AuthenticatedAgent,
    Path((collector, source)): Path<(String, String)>,
) -> Result<Page, ApiError> {
    page(&agent, (&collector, &source)).await
}

async fn page(agent: &AuthenticatedAgent, after: (&str, &str)) -> Result<Page, ApiError> {
    agent.api.ingest.check_rate(agent.key.organization)?;
    let page = agent.api.control.positions(agent.key, after).await?;
    let bytes = rmp_serde::to_vec_named(&page).context("positions cannot be encoded")?;
    Ok(([(header::CONTENT_TYPE, "application/vnd.msgpack")], bytes))
}
