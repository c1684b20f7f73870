//! `GET /v1/policy/{after}`: a long poll for directives.

use crate::{
    api::{
        ApiError,
        extract::{AuthenticatedAgent, PacedAgent},
    },
    clock::now,
    store::{Contact, DIRECTIVES_POLL},
};
use axum::{
    Json,
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::time::Duration;
use vedette_wire::policy::{COLLECTORS_HEADER, Directives, ReportedCollectors};

/// How long a poll is held; shorter than idle timeouts of connections.
const HOLD: Duration = Duration::from_secs(40);
/// Pause before an agent is asked to send its policy: one of an earlier release polls again at once.
const UPLOAD_PAUSE: Duration = Duration::from_secs(2);
/// Maximum length of an agent's version.
const VERSION_BYTES_MAX: usize = 64;

/// Answers as soon as there are directives for an agent: the policy, if its revision is greater than the agent's, and artifact
/// requests; or else with 204. The poll is the agent's minimal heartbeat: its identity, version and revision.
pub(in crate::api) async fn next(
    PacedAgent(agent): PacedAgent,
    Path(after): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if after > i64::MAX.cast_unsigned() {
        return Err(ApiError::shape("the policy revision is out of range"));
    }
    let (control, key) = (&agent.api.control, agent.key);
    let collectors = collectors(&headers);
    let contact = Contact { version: version(&headers)?, revision: after, collectors: collectors.as_ref() };
    control.record_contact(key, contact, now()).await?;
    if workspace_lost_revision(&agent, after).await? {
        tokio::time::sleep(UPLOAD_PAUSE).await;
        let wants_policy = true;
        return Ok(Json(Directives { wants_policy, ..Directives::default() }).into_response());
    }
    let mut pending = agent.api.pending.clone();
    let woken = pending.wait_for(|pending| pending.has(key, after));
    let revision = match tokio::time::timeout(HOLD, woken).await {
        Ok(Ok(pending)) => pending.revision(key.organization),
        _ => return Ok(StatusCode::NO_CONTENT.into_response()),
    };
    agent.check_still_admitted().await?;
    let mut directives = Directives { artifacts: control.offer(key, now()).await?, ..Directives::default() };
    if revision > after {
        directives.policy = control.policy(key.organization, revision).await?.map(|(_, signed)| signed);
    }
    if directives == Directives::default() {
        // Another poll of the same agent was answered just now.
        tokio::time::sleep(DIRECTIVES_POLL).await;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Json(directives).into_response())
}

/// Whether this workspace lost the policy revision of an agent in a restore from a backup. The secondary of a pair gets it from
/// the primary.
async fn workspace_lost_revision(agent: &AuthenticatedAgent, revision: u64) -> Result<bool, ApiError> {
    let control = &agent.api.control;
    Ok(revision > 0
        && revision != agent.in_force
        && control.policy(agent.key.organization, revision).await?.is_none()
        && control.primary().await?.is_none())
}

/// Version in `User-Agent: vedette/VERSION`.
fn version(headers: &HeaderMap) -> Result<&str, ApiError> {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let version = agent.strip_prefix("vedette/").filter(|version| (1..=VERSION_BYTES_MAX).contains(&version.len()));
    version.ok_or_else(|| ApiError::shape("the User-Agent is not vedette/VERSION"))
}

/// Collectors that the agent has; absent from agents of earlier releases, and if a later one writes them in another form.
fn collectors(headers: &HeaderMap) -> Option<ReportedCollectors> {
    headers.get(COLLECTORS_HEADER)?.to_str().ok()?.parse().ok()
}
