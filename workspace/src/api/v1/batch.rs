//! `PUT /v1/{lane}/{epoch}/{seq}`: receives a batch.

use crate::{
    api::{
        ApiError,
        extract::{AuthenticatedAgent, read},
    },
    ingest::{BATCH_BYTES_MAX, Delivery},
};
use anyhow::Context as _;
use axum::{
    Json,
    body::Body,
    extract::Path,
    http::{HeaderMap, header},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use std::sync::Arc;
use vedette_wire::{Compression, Epoch, LaneName, ProblemCode, reply::Ack};

pub(in crate::api) async fn put(
    agent: AuthenticatedAgent,
    Path((lane, epoch, seq)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Ack>, ApiError> {
    let AuthenticatedAgent { api, key: agent, in_force } = agent;
    let ingest = Arc::clone(&api.ingest);
    ingest.check_rate(agent.organization)?;
    let compression = compression(&headers)?;
    let key = batch_key(&lane, &epoch, &seq)
        .ok_or_else(|| ApiError::new(ProblemCode::Key, "the path does not name lane, epoch and sequence of a batch"))?;
    // Reserves memory before it reads the body. A slow body does not block other organizations.
    let reservation = ingest.reserve(agent.organization, length(&headers))?;
    let body = read(body).await?;
    let delivery = Delivery { agent, in_force, body, compression, digest: digest(&headers), key };
    // The batch lands on its own task. The task releases its resources when it ends, even if the client disconnects.
    let landing = tokio::spawn(async move {
        let landed = ingest.land(delivery).await.map_err(ApiError::from);
        drop(reservation);
        if let Err(error) = &landed {
            api.metrics.outcome(agent.organization, error.code().name());
        }
        landed
    });
    Ok(Json(landing.await.context("the task that lands a batch panicked")??))
}

fn batch_key(lane: &str, epoch: &str, seq: &str) -> Option<(LaneName, Epoch, u64)> {
    let key: (LaneName, Epoch, u64) = (lane.parse().ok()?, epoch.parse().ok()?, seq.parse().ok()?);
    // Refuses other spellings of the numbers, as in `007`.
    (key.1.to_string() == epoch && key.2.to_string() == seq).then_some(key)
}

/// Announced length of the body, or the maximum.
fn length(headers: &HeaderMap) -> u64 {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    announced.unwrap_or(BATCH_BYTES_MAX as u64)
}

/// SHA-256 in `Content-Digest` (RFC 9530).
fn digest(headers: &HeaderMap) -> Option<[u8; 32]> {
    let text = headers.get("content-digest")?.to_str().ok()?.strip_prefix("sha-256=:")?.strip_suffix(':')?;
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

fn compression(headers: &HeaderMap) -> Result<Compression, ApiError> {
    let name = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("");
    Compression::from_name(name)
        .ok_or_else(|| ApiError::new(ProblemCode::Encoding, "the batch must be compressed with zstd or gzip"))
}
