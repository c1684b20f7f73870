//! `POST /v1/enroll`: a certificate for a token and a signing request. `POST /v1/renew`: a new certificate for the same key.
//! `POST /v1/rekey`: a certificate for another key, for a clone.

use super::{ENROLLMENT_BYTES_MAX, From, Peer, Receiver, batch::known, problem::Refusal, read_json};
use crate::{
    ca::Authority,
    commands::token_digest,
    control::{Enrollment, Organization, Rekeyed},
    now,
};
use anyhow::Context as _;
use axum::{Extension, Json, body::Body, extract::State, http::StatusCode};
use rcgen::CertificateSigningRequestParams;
use std::sync::Arc;
use vedette_wire::{
    AgentId,
    reply::{EnrollReply, EnrollRequest, RekeyRequest, RenewReply, RenewRequest},
    text::is_printable,
};

/// Maximum length of fields. Host names have at most 64 characters on Linux (gethostname(2)), and more elsewhere.
const FIELD_BYTES_MAX: usize = 255;

pub(super) async fn enroll(
    State(receiver): State<Arc<Receiver>>,
    Extension(from): Extension<From>,
    body: Body,
) -> Result<Json<EnrollReply>, Refusal> {
    receiver.require_primary().await?;
    let request: EnrollRequest = read_json(body, ENROLLMENT_BYTES_MAX).await?;
    // Checked before anything else of the request.
    let known = receiver.control.check_token(&token_digest(&request.token), now()).await;
    let organization = known
        .map_err(|err| Refusal::internal(&err))?
        .map_err(|err| receiver.token_refused(from, Refusal::new(StatusCode::FORBIDDEN, "token", err.to_string())))?;
    receiver.check_enroll_rate(organization)?;
    sound(&[&request.hostname, &request.version, request.machine.as_ref().unwrap_or(&request.version)])?;
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
    tracing::info!(%agent, hostname = request.hostname, organization = organization.name, "enrolled");
    admitted_as(&receiver, organization, agent, signing).await.map(Json)
}

/// Refuses fields that are not printable.
fn sound(fields: &[&String]) -> Result<(), Refusal> {
    if !fields.iter().all(|field| field.len() <= FIELD_BYTES_MAX && field.chars().all(is_printable)) {
        let title = "host name, version or machine is not valid";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", title));
    }
    Ok(())
}

/// The answer to a newly admitted agent.
async fn admitted_as(
    receiver: &Receiver,
    organization: Organization,
    agent: AgentId,
    signing: CertificateSigningRequestParams,
) -> Result<EnrollReply, Refusal> {
    let policy = receiver.control.policy(organization.id, organization.policy_revision).await;
    let (_, policy) = policy
        .and_then(|found| found.context("the organization has no policy"))
        .map_err(|err| Refusal::internal(&err))?;
    let certificate = receiver
        .authority
        .sign_agent(signing, organization.id, agent, receiver.settings.certificate_life)
        .map_err(|err| Refusal::internal(&err))?;
    Ok(EnrollReply {
        organization: organization.id,
        organization_name: organization.name,
        agent,
        certificate,
        geo: receiver.geo,
        policy_revision: organization.policy_revision,
        compression: receiver.settings.compression,
        policy_key: Some(receiver.policy_key.clone()),
        policy: Some(policy),
    })
}

fn read(csr: &str) -> Result<(CertificateSigningRequestParams, AgentId), Refusal> {
    Authority::read_request(csr).map_err(|err| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "csr", format!("the signing request is not valid: {err:#}"))
    })
}

/// The present certificate suffices: TLS verifies it, and the agent is not revoked.
pub(super) async fn renew(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    body: Body,
) -> Result<Json<RenewReply>, Refusal> {
    let (peer, _) = known(&receiver, peer).await?;
    receiver.check_poll_rate(peer.agent)?;
    let request: RenewRequest = read_json(body, ENROLLMENT_BYTES_MAX).await?;
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

/// Makes a clone another agent. Its certificate suffices, since nothing else is accepted under it.
pub(super) async fn rekey(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    body: Body,
) -> Result<Json<EnrollReply>, Refusal> {
    let (peer, _) = known(&receiver, peer).await?;
    receiver.check_poll_rate(peer.agent)?;
    receiver.require_primary().await?;
    let request: RekeyRequest = read_json(body, ENROLLMENT_BYTES_MAX).await?;
    sound(&[&request.hostname, &request.version, &request.machine])?;
    let (signing, agent) = read(&request.csr)?;
    if agent == peer.agent {
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "csr", "the request is signed by the old key"));
    }
    let (hostname, version) = (request.hostname.as_str(), request.version.as_str());
    let enrollment = Enrollment { agent, hostname, machine: Some(&request.machine), version };
    let internal = |err: anyhow::Error| Refusal::internal(&err);
    let organization = receiver.control.organization_of(peer.organization).await.map_err(internal)?;
    let was = (peer.organization, peer.agent);
    let title = match receiver.control.rekey(was, &request.machine, &enrollment, now()).await.map_err(internal)? {
        Rekeyed::Done => None,
        Rekeyed::NotDemanded => Some(("not-told", "this machine was not told to re-key")),
        Rekeyed::Many => Some(("identity", "too many machines have used this key; enroll this one with a token")),
    };
    if let Some((code, title)) = title {
        return Err(Refusal::new(StatusCode::FORBIDDEN, code, title));
    }
    tracing::warn!(was = %peer.agent, %agent, hostname, "a clone became another agent");
    admitted_as(&receiver, organization, agent, signing).await.map(Json)
}
