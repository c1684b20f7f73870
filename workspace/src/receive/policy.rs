//! `GET /v1/policy/{after}`, a long poll; and the check that a batch holds nothing that its policy forbids.

use super::{PLAIN_BYTES_MAX, Peer, Receiver, batch::known, problem::Refusal, read_json};
use crate::{batch_index::BatchIndex, control::Control, now, signer::Signer};
use axum::{
    Extension, Json,
    body::Body as RequestBody,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use vedette_wire::{
    AgentId, Body, Header, HostLabel, Lane, OrganizationId, Policy, Record,
    body::Artifact,
    codec, frame,
    policy::{Directives, SignedPolicy, Store},
};

/// How long a poll is held; shorter than idle timeouts of connections.
const HOLD: Duration = Duration::from_secs(40);
/// Poll interval for revisions in the control store, since `policy set` is another process.
const DIRECTIVES_POLL: Duration = Duration::from_secs(1);
/// Maximum delay of batches that were observed before collection was switched off, nanoseconds.
const LATE_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Maximum number of cached policies.
const REMEMBERED_MAX: usize = 1000;
/// Pause before an agent is asked to send its policy.
const BRING_PAUSE: Duration = Duration::from_secs(2);
/// Maximum size of a signed policy.
const POLICY_BYTES_MAX: usize = 1 << 20;
/// Maximum length of an agent's version.
const VERSION_BYTES_MAX: usize = 64;

/// Pending directives, and cached policies.
pub(super) struct Policies {
    pending: watch::Receiver<PendingDirectives>,
    read: Mutex<HashMap<(OrganizationId, u64), Arc<Policy>>>,
}

impl Policies {
    pub(super) fn new(pending: watch::Receiver<PendingDirectives>) -> Self {
        Self { pending, read: Mutex::default() }
    }
}

/// Revisions in force, and agents with pending requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PendingDirectives {
    revisions: HashMap<OrganizationId, u64>,
    requested: HashSet<(OrganizationId, AgentId)>,
}

impl PendingDirectives {
    async fn read(control: &Control) -> anyhow::Result<Self> {
        let (revisions, requested) = (control.policy_revisions().await?, control.agents_with_requests(now()).await?);
        Ok(Self { revisions, requested })
    }
}

/// Updates pending directives until nobody reads them, or the workspace stops.
pub(crate) fn watch_directives(
    control: Control,
    mut stop: watch::Receiver<bool>,
) -> watch::Receiver<PendingDirectives> {
    let (pending, followed) = watch::channel(PendingDirectives::default());
    tokio::spawn(async move {
        loop {
            match PendingDirectives::read(&control).await {
                Ok(now) => drop(pending.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                })),
                Err(err) => tracing::error!(error = format!("{err:#}"), "policies and requests cannot be read"),
            }
            tokio::select! {
                () = pending.closed() => return,
                // Held polls are answered now.
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(DIRECTIVES_POLL) => {}
            }
        }
    });
    followed
}

/// Directives for an agent, as soon as there are any: the policy, if its revision is greater than the agent's, and artifact
/// requests; or else 204. The poll is the agent's minimal heartbeat: its identity, version and revision.
pub(super) async fn next(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    Path(after): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (peer, in_force) = known(&receiver, peer).await?;
    receiver.check_poll_rate(peer.agent)?;
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let version = agent.strip_prefix("vedette/").unwrap_or_default();
    if version.is_empty() || version.len() > VERSION_BYTES_MAX || after > i64::MAX.cast_unsigned() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "shape", "the User-Agent is not vedette/VERSION"));
    }
    let (who, internal) = ((peer.organization, peer.agent), |err: anyhow::Error| Refusal::internal(&err));
    receiver.control.heard_of(who, version, after, now()).await.map_err(internal)?;
    // The secondary of a pair gets it from the primary.
    let is_lost = after > 0
        && after != in_force
        && receiver.control.policy(peer.organization, after).await.map_err(internal)?.is_none();
    if is_lost && receiver.control.pair_of().await.map_err(internal)?.is_none() {
        // An agent of an earlier release polls again at once.
        tokio::time::sleep(BRING_PAUSE).await;
        let bring_policy = true;
        return Ok(Json(Directives { bring_policy, ..Directives::default() }).into_response());
    }
    let mut pending = receiver.policies.pending.clone();
    let woken = pending.wait_for(|pending| {
        pending.requested.contains(&who)
            || pending.revisions.get(&peer.organization).is_some_and(|revision| *revision > after)
    });
    let revision = match tokio::time::timeout(HOLD, woken).await {
        Ok(Ok(pending)) => pending.revisions.get(&peer.organization).copied().unwrap_or(0),
        _ => return Ok(StatusCode::NO_CONTENT.into_response()),
    };
    // It may have been revoked meanwhile.
    known(&receiver, Some(peer)).await?;
    let artifacts = receiver.control.offer(who, now()).await.map_err(internal)?;
    let mut directives = Directives { artifacts, ..Directives::default() };
    if revision > after {
        let policy = receiver.control.policy(peer.organization, revision).await.map_err(internal)?;
        directives.policy = policy.map(|(_, signed)| signed);
    }
    if directives == Directives::default() {
        // Another poll of the same agent was answered just now.
        tokio::time::sleep(DIRECTIVES_POLL).await;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Json(directives).into_response())
}

/// `POST /v1/policy`: an agent sends its policy, which this workspace lost in a restore from a backup. The signature is the
/// workspace's own.
pub(super) async fn brought(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    body: RequestBody,
) -> Result<StatusCode, Refusal> {
    let (peer, in_force) = known(&receiver, peer).await?;
    receiver.check_poll_rate(peer.agent)?;
    let signed: SignedPolicy = read_json(body, POLICY_BYTES_MAX).await?;
    let internal = |err: anyhow::Error| Refusal::internal(&err);
    let unsound = |why: &str| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "policy", why);
    let signer = Signer::load(&receiver.dir).map_err(internal)?;
    if !signer.has_signed(&signed).map_err(internal)? {
        return Err(unsound("the policy is not signed by this workspace"));
    }
    let policy: Policy = serde_json::from_str(&signed.policy).map_err(|err| unsound(&err.to_string()))?;
    if policy.organization != peer.organization {
        return Err(unsound("the policy is of another organization"));
    }
    if receiver.control.pair_of().await.map_err(internal)?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    if receiver.control.adopt_policy(&policy, &signed, "another agent", now()).await.map_err(internal)? {
        tracing::error!(revision = policy.revision, in_force, "an agent sent a policy that this workspace had lost");
        let why = format!(
            "agents go by policy revision {}, which this workspace had lost: it was restored from an older backup. Revoke again what was revoked since and is not listed as revoked, and make tokens anew",
            policy.revision
        );
        receiver.control.alert((peer.organization, peer.agent), "restored", &why, now()).await.map_err(internal)?;
    }
    Ok(StatusCode::CREATED)
}

impl Receiver {
    /// A checked batch whose content its policy allows.
    pub(super) async fn permitted(
        &self,
        (index, frame, digest): (BatchIndex, Vec<u8>, [u8; 32]),
        in_force: u64,
    ) -> Result<(BatchIndex, Vec<u8>, [u8; 32]), Refusal> {
        let header = &index.header;
        if header.policy_revision > in_force {
            let title = format!("policy revision {} is unknown here", header.policy_revision);
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "policy_revision", title).retry_after(5));
        }
        if header.records == 0 {
            return Ok((index, frame, digest));
        }
        let internal = |err: anyhow::Error| Refusal::internal(&err);
        let policies = self.policies_of(header).await.map_err(internal)?;
        let (mut frame, mut why) =
            (frame, Some(format!("there never was a policy revision {}", header.policy_revision)));
        for policy in &policies {
            if why.is_some() {
                (frame, why) = self.forbidden(header, policy, frame, in_force).await.map_err(internal)?;
            }
        }
        if let Some(why) = why {
            let who = (header.organization, header.agent);
            tracing::warn!(agent = %header.agent, why, "a batch was refused");
            self.control.alert(who, "policy", &why, now()).await.map_err(internal)?;
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "policy", why));
        }
        let store = policies.iter().map(|policy| policy.store).min().unwrap_or(Store::All);
        if store == Store::All {
            return Ok((index, frame, digest));
        }
        let look = move || {
            let (mut index, records) = (index, records(&frame)?);
            index.leave_out(store, &records);
            Ok((index, frame, digest))
        };
        tokio::task::spawn_blocking(look).await.map_err(|err| internal(err.into()))?.map_err(internal)
    }

    /// The policy of a batch; none if there never was one. If a restore lost the revision, the two neighbouring ones apply, and
    /// what either allows is accepted.
    async fn policies_of(&self, header: &Header) -> anyhow::Result<Vec<Arc<Policy>>> {
        let (organization, revision) = (header.organization, header.policy_revision);
        if let Some(policy) = self.policy_of(organization, revision).await? {
            return Ok(vec![policy]);
        }
        let mut beside = Vec::new();
        for revision in self.control.revisions_beside(organization, revision).await? {
            beside.extend(self.policy_of(organization, revision).await?);
        }
        Ok(beside)
    }

    async fn policy_of(&self, organization: OrganizationId, revision: u64) -> anyhow::Result<Option<Arc<Policy>>> {
        let key = (organization, revision);
        let remembered = self.policies.read.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if remembered.is_some() {
            return Ok(remembered);
        }
        let Some((policy, _)) = self.control.policy(key.0, key.1).await? else { return Ok(None) };
        let policy = Arc::new(policy);
        let mut read = self.policies.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() >= REMEMBERED_MAX {
            read.clear();
        }
        read.insert(key, Arc::clone(&policy));
        Ok(Some(policy))
    }

    /// The frame, and why the policy forbids its content.
    async fn forbidden(
        &self,
        header: &Header,
        policy: &Policy,
        frame: Vec<u8>,
        in_force: u64,
    ) -> anyhow::Result<(Vec<u8>, Option<String>)> {
        let revision = header.policy_revision;
        if !policy.collect {
            let of_host =
                header.sources.iter().find(|source| !matches!(source.collector.as_str(), "agent" | "artifacts"));
            let cursor = header.cursors.iter().find(|update| update.collector != "artifacts");
            if of_host.is_some() || cursor.is_some() || header.host != HostLabel::default() {
                return Ok((
                    frame,
                    Some(format!("policy revision {revision} forbids what the header says of the host")),
                ));
            }
            let look = move || {
                let holds = collected(&frame);
                (frame, holds)
            };
            let (frame, holds) = tokio::task::spawn_blocking(look).await?;
            return Ok((frame, holds?.map(|kind| format!("policy revision {revision} forbids a {kind}"))));
        }
        if let Some(source) = header.sources.iter().find(|source| !policy.allows(&source.collector)) {
            let why = format!("policy revision {revision} switches collector {} off", source.collector);
            return Ok((frame, Some(why)));
        }
        if revision == in_force {
            return Ok((frame, None));
        }
        // Its own policy allows it; a later one may have forbidden it long ago.
        let off = self.control.switched_off_behind(header.organization, revision).await?;
        let late = off.filter(|issued| now().saturating_sub(*issued) > LATE_NS);
        if late.is_some() && header.lane == Lane::Blobs {
            // Artifacts are never late.
            let look = move || {
                let holds = collected(&frame);
                (frame, holds)
            };
            let (frame, holds) = tokio::task::spawn_blocking(look).await?;
            return Ok((frame, holds?.map(|kind| format!("a {kind} of policy revision {revision} comes too late"))));
        }
        Ok((frame, late.map(|_| format!("policy revision {revision} was followed by switching off too long ago"))))
    }
}

fn records(bytes: &[u8]) -> anyhow::Result<Vec<Record>> {
    let (head, sealed) = frame::parse(bytes)?;
    Ok(codec::decode(&codec::decompress(sealed, head.compression, PLAIN_BYTES_MAX)?)?.records)
}

/// Kind of the first record that collection emits.
fn collected(bytes: &[u8]) -> anyhow::Result<Option<&'static str>> {
    let records = records(bytes)?;
    let mut kinds = records.iter().map(|record| record.body.kind().name);
    Ok(kinds.find(|kind| !matches!(*kind, "heartbeat" | "artifact")))
}

/// Pieces of artifacts in a batch.
pub(super) fn pieces(bytes: &[u8]) -> anyhow::Result<Vec<Artifact>> {
    let piece = |record: Record| match record.body {
        Body::Artifact(piece) => Some(piece),
        _ => None,
    };
    Ok(records(bytes)?.into_iter().filter_map(piece).collect())
}
