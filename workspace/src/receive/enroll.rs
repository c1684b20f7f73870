//! `POST /v1/enroll`: a token and a signing request for a certificate; `POST /v1/renew`: another one for the same key.

use super::{Peer, Receiver, batch::known, problem::Refusal};
use crate::{ca::Authority, commands::token_digest, control::Enrollment, now};
use anyhow::Context as _;
use axum::{Extension, Json, extract::State, extract::rejection::JsonRejection, http::StatusCode};
use rcgen::CertificateSigningRequestParams;
use std::sync::Arc;
use vedette_wire::{
    AgentId,
    reply::{EnrollReply, EnrollRequest, RenewReply, RenewRequest},
};

/// A host name has 64 characters at the most on Linux (gethostname(2)); others have longer ones.
const FIELD_BYTES_MAX: usize = 255;

pub(super) async fn enroll(
    State(receiver): State<Arc<Receiver>>,
    request: Result<Json<EnrollRequest>, JsonRejection>,
) -> Result<Json<EnrollReply>, Refusal> {
    receiver.enrolls()?;
    receiver.is_first().await?;
    let Json(request) =
        request.map_err(|err| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", err.body_text()))?;
    let fields = [&request.hostname, &request.version, request.machine.as_ref().unwrap_or(&request.version)];
    if fields.iter().any(|field| field.len() > FIELD_BYTES_MAX || field.chars().any(char::is_control)) {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "shape",
            "host name, version or machine is not valid",
        ));
    }
    let (signing, agent) = read(&request.csr)?;
    let enrollment = Enrollment {
        agent,
        hostname: &request.hostname,
        machine: request.machine.as_deref(),
        version: &request.version,
    };
    let organization = receiver
        .control
        .enroll(&token_digest(&request.token), &enrollment, now())
        .await
        .map_err(|err| Refusal::internal(&err))?
        .map_err(|err| {
            tracing::warn!(%agent, hostname = request.hostname, error = %err, "enrollment refused");
            Refusal::new(StatusCode::FORBIDDEN, "token", err.to_string())
        })?;
    let policy = receiver.control.policy(organization.id, organization.policy_revision).await;
    let (_, policy) = policy
        .and_then(|found| found.context("the organization has no policy"))
        .map_err(|err| Refusal::internal(&err))?;
    let certificate = receiver
        .authority
        .sign_agent(signing, organization.id, agent, receiver.settings.certificate_life)
        .map_err(|err| Refusal::internal(&err))?;
    tracing::info!(%agent, hostname = request.hostname, organization = organization.name, "enrolled");
    Ok(Json(EnrollReply {
        organization: organization.id,
        organization_name: organization.name,
        agent,
        certificate,
        geo: receiver.geo,
        policy_revision: organization.policy_revision,
        compression: receiver.settings.compression,
        policy_key: Some(receiver.policy_key.clone()),
        policy: Some(policy),
    }))
}

fn read(csr: &str) -> Result<(CertificateSigningRequestParams, AgentId), Refusal> {
    Authority::read_request(csr).map_err(|err| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "csr", format!("the signing request is not valid: {err:#}"))
    })
}

/// The certificate that asks is enough: it is checked by TLS, and the agent is not revoked.
pub(super) async fn renew(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    request: Result<Json<RenewRequest>, JsonRejection>,
) -> Result<Json<RenewReply>, Refusal> {
    let (peer, _) = known(&receiver, peer).await?;
    receiver.asks(peer.agent)?;
    let Json(request) =
        request.map_err(|err| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", err.body_text()))?;
    let (signing, agent) = read(&request.csr)?;
    if agent != peer.agent {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "identity", "the request is signed by another agent's key"));
    }
    let certificate =
        receiver.authority.sign_agent(signing, peer.organization, agent, receiver.settings.certificate_life);
    let certificate = certificate.map_err(|err| Refusal::internal(&err))?;
    tracing::info!(%agent, "certificate renewed");
    Ok(Json(RenewReply { certificate }))
}
