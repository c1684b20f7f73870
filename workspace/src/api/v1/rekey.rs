//! `POST /v1/rekey`: a certificate for another key, for a clone. Its certificate suffices, since nothing else is accepted under
//! it.

use super::{check_fields, enroll::reply, signing_request};
use crate::{
    api::{
        ApiError,
        extract::{AuthenticatedAgent, PacedAgent, ValidJson},
    },
    clock::now,
    store::{Enrollment, Rekeyed},
};
use axum::Json;
use vedette_wire::{
    ProblemCode,
    reply::{EnrollReply, RekeyRequest},
};

pub(in crate::api) async fn rekey(
    PacedAgent(AuthenticatedAgent { api, key, .. }): PacedAgent,
    ValidJson(request): ValidJson<RekeyRequest>,
) -> Result<Json<EnrollReply>, ApiError> {
    api.require_primary().await?;
    check_fields(&[&request.hostname, &request.version, &request.machine])?;
    let (signing, agent) = signing_request(&request.csr)?;
    if agent == key.agent {
        return Err(ApiError::new(ProblemCode::Csr, "the request is signed by the old key"));
    }
    let (hostname, version) = (request.hostname.as_str(), request.version.as_str());
    let enrollment = Enrollment { agent, hostname, machine: Some(&request.machine), version };
    let organization = api.control.organization_of(key.organization).await?;
    match api.control.rekey(key, &request.machine, &enrollment, now()).await? {
        Rekeyed::Done => {}
        Rekeyed::NotDemanded => {
            return Err(ApiError::new(ProblemCode::RekeyNotDemanded, "this machine was not told to re-key"));
        }
        Rekeyed::Many => {
            let title = "too many machines have used this key; enroll this one with a token";
            return Err(ApiError::new(ProblemCode::Identity, title));
        }
    }
    tracing::warn!(old_agent = %key.agent, %agent, hostname, "a clone was re-keyed and has a new agent id");
    reply(&api, organization, agent, signing).await.map(Json)
}
