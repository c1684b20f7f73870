//! `POST /v1/pair/join`: the keys of this workspace, for a new secondary. `POST /v1/pair`: the shared state.

use super::{ENROLLMENT_BYTES_MAX, EXCHANGE_BYTES_MAX, From, OfPair, Receiver, problem::Refusal, read_json};
use crate::{
    commands::token_digest,
    now,
    pair::{self, Exchange, JoinReply, JoinRequest},
    signer::Signer,
};
use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use std::sync::Arc;

pub(super) async fn join(
    State(receiver): State<Arc<Receiver>>,
    Extension(from): Extension<From>,
    body: Body,
) -> Result<Json<JoinReply>, Refusal> {
    receiver.require_primary().await?;
    let request: JoinRequest = read_json(body, ENROLLMENT_BYTES_MAX).await?;
    if request.geo != receiver.geo {
        let title = format!("a pair stands in one geography, and this workspace is in {}", receiver.geo);
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "geo", title));
    }
    let known = receiver.control.use_pair_token(&token_digest(&request.token), now()).await;
    if !known.map_err(|err| Refusal::internal(&err))? {
        tracing::warn!("refused a workspace that tried to join as secondary");
        let title = "the token is unknown, used up or expired; create one with `vedette-workspace token pair`";
        return Err(receiver.token_refused(from, Refusal::new(StatusCode::FORBIDDEN, "token", title)));
    }
    let keys = pair::keys(&receiver.dir, &receiver.control).await.map_err(|err| Refusal::internal(&err))?;
    tracing::info!("a secondary workspace has joined");
    Ok(Json(keys))
}

pub(super) async fn exchange(
    State(receiver): State<Arc<Receiver>>,
    Extension(OfPair(of_pair)): Extension<OfPair>,
    body: Body,
) -> Result<Response, Refusal> {
    if !of_pair {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "identity", "this is not the pair of this workspace"));
    }
    let request: Exchange = read_json(body, EXCHANGE_BYTES_MAX).await?;
    let internal = |err: anyhow::Error| Refusal::internal(&err);
    receiver.control.note_revocations(&request.revoked, now()).await.map_err(internal)?;
    if !request.policies.is_empty() {
        let signer = Signer::load(&receiver.dir).map_err(internal)?;
        receiver.control.note_policies(&signer, &request.policies, now()).await.map_err(internal)?;
    }
    receiver.control.note_refused(&request.refused, now()).await.map_err(internal)?;
    let (body, digest) = pair::answer(&receiver.control).await.map_err(internal)?;
    Ok(if digest == request.have { StatusCode::NO_CONTENT.into_response() } else { body.into_response() })
}
