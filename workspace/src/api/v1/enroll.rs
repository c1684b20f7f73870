//! `POST /v1/enroll`: a certificate for a token and a signing request.

use super::{check_fields, signing_request};
use crate::{
    api::{
        Api, ApiError,
        extract::{TokenHolder, TokenRequest},
    },
    clock::now,
    keys::token_digest,
    store::{Enrollment, Organization},
};
use anyhow::Context as _;
use axum::Json;
use rcgen::CertificateSigningRequestParams;
use vedette_wire::{
    AgentId, OrganizationId, ProblemCode,
    reply::{EnrollReply, EnrollRequest},
};

impl TokenRequest for EnrollRequest {
    type Grant = OrganizationId;

    async fn authenticate(&self, api: &Api) -> Result<OrganizationId, ApiError> {
        let checked = api.control.check_token(&token_digest(&self.token), now()).await?;
        checked.map_err(|err| ApiError::new(ProblemCode::Token, err.to_string()))
    }
}

pub(in crate::api) async fn enroll(holder: TokenHolder<EnrollRequest>) -> Result<Json<EnrollReply>, ApiError> {
    let TokenHolder { api, request, grant: organization } = holder;
    api.rate_limits.check_enrollment(organization)?;
    check_fields(&[&request.hostname, &request.version, request.machine.as_ref().unwrap_or(&request.version)])?;
    let (signing, agent) = signing_request(&request.csr)?;
    let (hostname, version) = (request.hostname.as_str(), request.version.as_str());
    let enrollment = Enrollment { agent, hostname, machine: request.machine.as_deref(), version };
    let enrolled = api.control.enroll(&token_digest(&request.token), &enrollment, now()).await?;
    let organization = enrolled.map_err(|err| {
        tracing::warn!(%agent, hostname, error = %err, "enrollment refused");
        ApiError::new(ProblemCode::Token, err.to_string())
    })?;
    tracing::info!(%agent, hostname, organization = organization.name, "enrolled");
    reply(&api, organization, agent, signing).await.map(Json)
}

/// The answer to a newly admitted agent.
pub(super) async fn reply(
    api: &Api,
    organization: Organization,
    agent: AgentId,
    signing: CertificateSigningRequestParams,
) -> Result<EnrollReply, ApiError> {
    let policy = api.control.policy(organization.id, organization.policy_revision).await?;
    let (_, policy) = policy.context("the organization has no policy")?;
    let certificate = api.authority.sign_agent(signing, organization.id, agent, api.certificate_life)?;
    Ok(EnrollReply {
        organization: organization.id,
        organization_name: organization.name,
        agent,
        certificate,
        geo: api.geo,
        policy_revision: organization.policy_revision,
        compression: api.ingest.compression(),
        policy_key: Some(api.policy_key.clone()),
        policy: Some(policy),
    })
}
