//! Agents, by client certificate.

use super::{Gate, connection};
use crate::{
    api::{Api, ApiError},
    store::AgentKey,
};
use axum::{extract::FromRequestParts, http::request::Parts};
use std::sync::Arc;
use vedette_wire::ProblemCode;

/// An agent that is enrolled here and not revoked.
pub(in crate::api) struct AuthenticatedAgent {
    pub(in crate::api) api: Arc<Api>,
    pub(in crate::api) key: AgentKey,
    /// Policy revision in force.
    pub(in crate::api) in_force: u64,
}

async fn admitted(api: &Api, key: AgentKey) -> Result<u64, ApiError> {
    api.control.admitted_revision(key).await?.ok_or_else(|| {
        ApiError::new(ProblemCode::Identity, "this agent is not admitted")
            .detail("it is unknown here or revoked: stop it, move key.pem away, run `vedette enroll --again`, start it")
    })
}

impl AuthenticatedAgent {
    /// Checks the agent again after a wait: it may have been revoked meanwhile.
    pub(in crate::api) async fn check_still_admitted(&self) -> Result<(), ApiError> {
        admitted(&self.api, self.key).await.map(drop)
    }
}

impl FromRequestParts<Gate> for AuthenticatedAgent {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let key = connection(parts).agent.ok_or_else(|| {
            ApiError::new(ProblemCode::Certificate, "no client certificate").detail("run `vedette enroll`")
        })?;
        let in_force = admitted(&gate.0, key).await?;
        Ok(Self { api: Arc::clone(&gate.0), key, in_force })
    }
}

/// An agent that does not send requests other than batches too often.
pub(in crate::api) struct PacedAgent(pub(in crate::api) AuthenticatedAgent);

impl FromRequestParts<Gate> for PacedAgent {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        let agent = AuthenticatedAgent::from_request_parts(parts, gate).await?;
        agent.api.rate_limits.check_poll(agent.key.agent)?;
        Ok(Self(agent))
    }
}
