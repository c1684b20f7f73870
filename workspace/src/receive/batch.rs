//! `PUT /v1/{lane}/{epoch}/{seq}`: checks, lands, records and acknowledges a batch.

use super::{BATCH_BYTES_MAX, PLAIN_BYTES_MAX, Peer, ROWS_BYTES_MAX, Receiver, policy::pieces, problem::Refusal};
use crate::{
    batch_index::BatchIndex,
    landing::{LandOutcome, LandingStore, rows_bytes},
    now,
};
use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::BodyExt as _;
use std::{sync::Arc, time::Duration};
use vedette_wire::{
    Compression, Lane,
    codec::{self, DecodeError},
    frame::{self, FrameHead},
    reply::Ack,
};

/// Time limit for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(110);
/// Time limit for discarding an unwanted body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn put(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    Path((lane, epoch, seq)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Ack>, Refusal> {
    let admitted = admit(&receiver, peer, &headers).await;
    let (peer, policy_revision, compression) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            drain(body).await;
            return Err(refusal);
        }
    };
    // The body is read only after admission; a slow one does not block other organizations.
    let Some(reserved) = receiver.bodies.reserve(peer.organization, length(&headers, BATCH_BYTES_MAX as u64)) else {
        drain(body).await;
        let title = "the organization has too many bytes in transit";
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", title).retry_after(1));
    };
    let body = read(body, receiver.settings.batch_bytes_max).await?;
    let (expected, url) = (headers.get("content-digest").cloned(), format!("{lane}/{epoch}/{seq}"));
    // On its own task, which releases its resources when it is done, even if the client disconnects.
    let landing = tokio::spawn(async move {
        let landed = land(&receiver, (peer, policy_revision), (body, compression, expected), url).await;
        drop(reserved);
        landed
    });
    landing.await.map_err(|err| Refusal::internal(&err.into()))?
}

/// Checks, lands and records a complete body.
async fn land(
    receiver: &Receiver,
    (peer, policy_revision): (Peer, u64),
    (body, compression, expected): (Bytes, Compression, Option<HeaderValue>),
    url: String,
) -> Result<Json<Ack>, Refusal> {
    // The organization's own permit comes first: an organization with many batches waits for itself.
    let landing = receiver.landings(peer.organization).acquire_owned().await.expect("never closed");
    let permit = receiver.at_once.acquire().await.expect("never closed");
    let geo = receiver.geo;
    let checked = tokio::task::spawn_blocking(move || check(&body, compression, expected.as_ref(), peer, geo, &url));
    let checked = checked.await.map_err(|err| Refusal::internal(&err.into()))??;
    if let Err(refusal) = receiver.reject_clone(&checked.0.header).await {
        // The batch may have landed before, with a lost answer.
        let key = LandingStore::key(receiver.geo, &checked.0.header).0;
        if !receiver.landing.holds(&key, &checked.2).await.map_err(|err| Refusal::internal(&err))? {
            return Err(refusal);
        }
    }
    let (index, frame, digest) = receiver.permitted(checked, policy_revision).await?;
    let (key, day) = LandingStore::key(receiver.geo, &index.header);
    let (frame, pieces) = if index.header.lane == Lane::Blobs && index.header.records > 0 {
        let read = move || {
            let pieces = pieces(&frame);
            (frame, pieces)
        };
        let (frame, pieces) = tokio::task::spawn_blocking(read).await.map_err(|err| Refusal::internal(&err.into()))?;
        (frame, pieces.map_err(|err| Refusal::internal(&err))?)
    } else {
        (frame, Vec::new())
    };
    let bytes = frame.len();
    let landed = receiver.landing.land(&key, frame, &digest).await.map_err(|err| Refusal::internal(&err))?;
    drop((permit, landing));
    if landed == LandOutcome::Conflict {
        tracing::error!(key, "a batch arrived twice with different content");
        let why = "another batch has landed under a key of this agent: its disk was set back, or copied";
        let raised = receiver.control.alert((peer.organization, peer.agent), "conflict", why, now()).await;
        raised.map_err(|err| Refusal::internal(&err))?;
        return Err(Refusal::new(StatusCode::CONFLICT, "conflict", "another batch has landed under this key"));
    }
    // For a repeated batch, too: the first attempt may have ended between landing and recording.
    let noting = receiver.control.note_landed(&key, &day, bytes, &index, now()).await;
    noting.map_err(|err| Refusal::internal(&err))?;
    if !pieces.is_empty() {
        let noting = receiver.control.note_pieces((peer.organization, peer.agent), &key, &pieces).await;
        noting.map_err(|err| Refusal::internal(&err))?;
    }
    let lost = receiver.control.lost(&index.header).await.map_err(|err| Refusal::internal(&err))?;
    if let Some(lost) = lost {
        let raised = receiver.control.alert_lost(&index.header, lost, now()).await;
        raised.map_err(|err| Refusal::internal(&err))?;
    }
    Ok(Json(Ack { duplicate: landed == LandOutcome::Duplicate, policy_revision, limits: receiver.limits(), lost }))
}

/// Admits a batch before its body is read.
async fn admit(
    receiver: &Receiver,
    peer: Option<Peer>,
    headers: &HeaderMap,
) -> Result<(Peer, u64, Compression), Refusal> {
    let (peer, policy_revision) = admitted(receiver, peer).await?;
    let compression = compression(headers)?;
    Ok((peer, policy_revision, compression))
}

/// The peer and the policy revision in force; refused if the agent is unknown, or its organization sends too much.
pub(super) async fn admitted(receiver: &Receiver, peer: Option<Peer>) -> Result<(Peer, u64), Refusal> {
    let (peer, policy_revision) = known(receiver, peer).await?;
    if receiver.batches.check_key(&peer.organization).is_err() {
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "the organization sends too many batches")
            .retry_after(1));
    }
    Ok((peer, policy_revision))
}

/// The peer and the policy revision in force; refused if the agent is unknown or revoked.
pub(super) async fn known(receiver: &Receiver, peer: Option<Peer>) -> Result<(Peer, u64), Refusal> {
    let peer = peer.ok_or_else(|| {
        Refusal::new(StatusCode::UNAUTHORIZED, "certificate", "no client certificate").detail("run `vedette enroll`")
    })?;
    let revision =
        receiver.control.admit(peer.organization, peer.agent).await.map_err(|err| Refusal::internal(&err))?;
    let Some(policy_revision) = revision else {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "identity", "this agent is not admitted").detail(
            "it is unknown here or revoked: stop it, move key.pem away, run `vedette enroll --again`, start it",
        ));
    };
    Ok((peer, policy_revision))
}

/// Discards an unwanted body within limits: a client that is still sending may not see the answer.
pub(super) async fn drain(mut body: Body) {
    let passing = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > BATCH_BYTES_MAX {
                return;
            }
        }
    };
    drop(tokio::time::timeout(DRAIN_TIMEOUT, passing).await);
}

/// Announced length of a body, or the maximum.
fn length(headers: &HeaderMap, most: u64) -> u64 {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    announced.unwrap_or(most).min(most)
}

/// Reads the whole body, with limits of size and time.
async fn read(body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let read = axum::body::to_bytes(body, bytes_max);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(err)) if is_too_large(&err) => {
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "size", "the batch is too large"))
        }
        _ => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body", "the request ended too early or took too long")),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn compression(headers: &HeaderMap) -> Result<Compression, Refusal> {
    let name = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("");
    Compression::from_name(name).ok_or_else(|| {
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", "the batch must be compressed with zstd or gzip")
    })
}

/// Runs all checks that need no storage; CPU work, off the async threads.
fn check(
    sealed: &[u8],
    compression: Compression,
    expected: Option<&HeaderValue>,
    peer: Peer,
    geo: vedette_wire::geo::WorkspaceGeo,
    url: &str,
) -> Result<(BatchIndex, Vec<u8>, [u8; 32]), Refusal> {
    let digest = frame::sha256(sealed);
    let found = format!("sha-256=:{}:", BASE64_STANDARD.encode(digest));
    if expected.is_none_or(|expected| expected.as_bytes() != found.as_bytes()) {
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "digest", "Content-Digest does not match the body"));
    }
    let shape = |err: DecodeError| match err {
        DecodeError::Version { .. } => Refusal::new(StatusCode::BAD_REQUEST, "version", err.to_string())
            .detail("this workspace is of another major release than the agent"),
        DecodeError::TooLarge { .. } | DecodeError::Many => {
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "size", err.to_string())
        }
        _ => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", err.to_string()),
    };
    let plain = codec::decompress(sealed, compression, PLAIN_BYTES_MAX).map_err(shape)?;
    // Decoded completely: an acknowledged batch can be read back.
    let (header, positions) = codec::check(&plain).map_err(shape)?;
    let rows = rows_bytes(plain.len(), &header, positions.iter().map(|(source, _)| *source));
    drop(plain);
    let unsound = |wrong: &'static str| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", wrong);
    BatchIndex::check_sources(&header).map_err(unsound)?;
    let index = BatchIndex::new(header, positions);
    index.check().map_err(unsound)?;
    if rows > ROWS_BYTES_MAX {
        let title = format!("the batch has {rows} bytes as rows, and {ROWS_BYTES_MAX} are allowed");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "size", title).detail("the agent splits it"));
    }
    if index.is_ragged() {
        let title = "the positions of its records have too many gaps for one batch";
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "size", title).detail("the agent splits it"));
    }
    let header = &index.header;
    if (header.organization, header.agent) != (peer.organization, peer.agent) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "identity",
            "the batch names another organization or agent than the certificate",
        ));
    }
    if header.geo != geo {
        return Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "geo",
            format!("the batch is for geography {}, this workspace is in {geo}", header.geo),
        ));
    }
    if format!("{}/{}/{}", header.lane, header.epoch, header.seq) != url {
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "key", "the batch names another key than the path"));
    }
    let head = FrameHead { key: header.key(), compression, sealed: header.sealed, records: header.records, digest };
    Ok((index, frame::build(&head, sealed), digest))
}
