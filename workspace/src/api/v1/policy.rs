//! `POST /v1/policy`: an agent sends its policy, which this workspace lost in a restore from a backup.

use crate::{
    api::{
        ApiError,
        extract::{AuthenticatedAgent, PacedAgent, ValidJson},
    },
    clock::now,
    keys::Signer,
};
use axum::http::StatusCode;
use vedette_wire::{Policy, ProblemCode, policy::SignedPolicy};

/// Takes over a policy that bears the workspace's own signature.
pub(in crate::api) async fn restore(
    PacedAgent(AuthenticatedAgent { api, key, in_force }): PacedAgent,
    ValidJson(signed): ValidJson<SignedPolicy>,
) -> Result<StatusCode, ApiError> {
    let invalid = |why: &str| ApiError::new(ProblemCode::Policy, why);
    if !Signer::load(&api.dir)?.has_signed(&signed)? {
        return Err(invalid("the policy is not signed by this workspace"));
    }
    let policy: Policy = serde_json::from_str(&signed.policy).map_err(|err| invalid(&err.to_string()))?;
    if policy.organization != key.organization {
        return Err(invalid("the policy belongs to another organization"));
    }
    if api.control.primary().await?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    if api.control.adopt_policy(&policy, &signed, "another agent", now()).await? {
        tracing::error!(
            revision = policy.revision,
            in_force,
            "an agent sent a policy that this workspace had lost; was it restored from an old backup?"
        );
        let why = format!(
            "agents go by policy revision {}, which this workspace had lost: it was restored from an older backup. Revoke again what was revoked since and is not listed as revoked, and make tokens anew",
            policy.revision
        );
        api.control.alert(key, "restored", &why, now()).await?;
    }
    Ok(StatusCode::CREATED)
}
