//! `POST /v1/pair`: the shared state of a pair.

use crate::{
    api::{
        ApiError,
        extract::{PairPeer, ValidJson},
    },
    clock::now,
    keys::Signer,
    replication::{self, Exchange},
};
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// Takes over what the secondary decided, and answers with the shared state if that has changed.
pub(in crate::api) async fn exchange(
    PairPeer { api }: PairPeer,
    ValidJson(request): ValidJson<Exchange>,
) -> Result<Response, ApiError> {
    let control = &api.control;
    control.accept_revocations(&request.revoked, now()).await?;
    if !request.policies.is_empty() {
        control.accept_policies(&Signer::load(&api.dir)?, &request.policies, now()).await?;
    }
    control.accept_refused_boots(&request.refused, now()).await?;
    let (body, digest) = replication::answer(control).await?;
    Ok(if digest == request.state_digest { StatusCode::NO_CONTENT.into_response() } else { body.into_response() })
}
