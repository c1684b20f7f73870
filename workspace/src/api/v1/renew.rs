//! `POST /v1/renew`: a new certificate for the same key. The present certificate suffices.

use super::signing_request;
use crate::api::{
    ApiError,
    extract::{AuthenticatedAgent, PacedAgent, ValidJson},
};
use axum::Json;
use vedette_wire::{
    ProblemCode,
    reply::{RenewReply, RenewRequest},
};

pub(in crate::api) async fn renew(
    PacedAgent(AuthenticatedAgent { api, key, .. }): PacedAgent,
    ValidJson(request): ValidJson<RenewRequest>,
) -> Result<Json<RenewReply>, ApiError> {
    let (signing, agent) = signing_request(&request.csr)?;
    if agent != key.agent {
        return Err(ApiError::new(ProblemCode::Identity, "the request is signed by another agent's key"));
    }
    let certificate = api.authority.sign_agent(signing, key.organization, agent, api.certificate_life)?;
    tracing::info!(%agent, "certificate renewed");
    Ok(Json(RenewReply { certificate }))
}
