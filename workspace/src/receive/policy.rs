//! `GET /v1/policy/{behind}`, a long poll, and the check that a batch holds nothing that its policy forbids.

use super::{PLAIN_BYTES_MAX, Peer, Receiver, batch::known, problem::Refusal, read_json};
use crate::{control::Control, now, signer::Signer, tiles::Noted};
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

/// How long a question waits for another revision; shorter than what gives up an idle connection.
const HOLD: Duration = Duration::from_secs(40);
/// How often the control store is asked for revisions: `policy set` is another process.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How old the switching off may be when something arrives that was observed before it.
const LATE_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Policies that are remembered.
const REMEMBERED_MAX: usize = 1000;
/// Before an agent is told to bring its policy.
const BRING_PAUSE: Duration = Duration::from_secs(2);
/// A signed policy is not larger.
const POLICY_BYTES_MAX: usize = 1 << 20;
/// The version of an agent is not longer.
const VERSION_BYTES_MAX: usize = 64;

/// What is to be told, and policies that were read.
pub(super) struct Policies {
    news: watch::Receiver<News>,
    read: Mutex<HashMap<(OrganizationId, u64), Arc<Policy>>>,
}

impl Policies {
    pub(super) fn new(news: watch::Receiver<News>) -> Self {
        Self { news, read: Mutex::default() }
    }
}

/// What is to be told: the revisions in force, and agents that something is asked of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct News {
    revisions: HashMap<OrganizationId, u64>,
    asked: HashSet<(OrganizationId, AgentId)>,
}

impl News {
    async fn read(control: &Control) -> anyhow::Result<Self> {
        let (revisions, asked) = (control.policy_revisions().await?, control.agents_asked(now()).await?);
        Ok(Self { revisions, asked })
    }
}

/// Keep what is to be told up to date until nobody looks, or the workspace stops.
pub(crate) fn follow_news(control: Control, mut stop: watch::Receiver<bool>) -> watch::Receiver<News> {
    let (news, followed) = watch::channel(News::default());
    tokio::spawn(async move {
        loop {
            match News::read(&control).await {
                Ok(now) => drop(news.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                })),
                Err(err) => tracing::error!(error = format!("{err:#}"), "policies and requests cannot be read"),
            }
            tokio::select! {
                () = news.closed() => return,
                // Whoever waits is answered now.
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    });
    followed
}

/// What there is for an agent, as soon as there is something: the policy, where its revision is larger than the one that the
/// agent has, and requests for artifacts; 204 where nothing came meanwhile. The question is the agent's bare heartbeat: who it
/// is, its version, its revision.
pub(super) async fn next(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    Path(behind): Path<u64>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let (peer, in_force) = known(&receiver, peer).await?;
    receiver.asks(peer.agent)?;
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let version = agent.strip_prefix("vedette/").unwrap_or_default();
    if version.is_empty() || version.len() > VERSION_BYTES_MAX || behind > i64::MAX.cast_unsigned() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "shape", "the User-Agent is not vedette/VERSION"));
    }
    let (who, internal) = ((peer.organization, peer.agent), |err: anyhow::Error| Refusal::internal(&err));
    receiver.control.heard_of(who, version, behind, now()).await.map_err(internal)?;
    // The second of a pair has it from the first.
    if behind > in_force && receiver.control.pair_of().await.map_err(internal)?.is_none() {
        // An agent of an earlier release asks again at once.
        tokio::time::sleep(BRING_PAUSE).await;
        let bring_policy = true;
        return Ok(Json(Directives { bring_policy, ..Directives::default() }).into_response());
    }
    let mut news = receiver.policies.news.clone();
    let told = news.wait_for(|news| {
        news.asked.contains(&who) || news.revisions.get(&peer.organization).is_some_and(|revision| *revision > behind)
    });
    let revision = match tokio::time::timeout(HOLD, told).await {
        Ok(Ok(news)) => news.revisions.get(&peer.organization).copied().unwrap_or(0),
        _ => return Ok(StatusCode::NO_CONTENT.into_response()),
    };
    // It may have been revoked meanwhile.
    known(&receiver, Some(peer)).await?;
    let artifacts = receiver.control.offer(who, now()).await.map_err(internal)?;
    let mut directives = Directives { artifacts, ..Directives::default() };
    if revision > behind {
        let policy = receiver.control.policy(peer.organization, revision).await.map_err(internal)?;
        directives.policy = policy.map(|(_, signed)| signed);
    }
    if directives == Directives::default() {
        // Another question of the same agent was told a moment ago.
        tokio::time::sleep(LOOK_EVERY).await;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Json(directives).into_response())
}

/// `POST /v1/policy`: an agent brings the policy that it goes by, since this workspace does not know it. The signature is this
/// workspace's own: it was restored from a backup that is older than the policy.
pub(super) async fn brought(
    State(receiver): State<Arc<Receiver>>,
    Extension(peer): Extension<Option<Peer>>,
    body: RequestBody,
) -> Result<StatusCode, Refusal> {
    let (peer, in_force) = known(&receiver, peer).await?;
    receiver.asks(peer.agent)?;
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
    if policy.revision <= in_force || receiver.control.pair_of().await.map_err(internal)?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    if receiver.control.adopt_policy(&policy, &signed, now()).await.map_err(internal)? {
        tracing::error!(revision = policy.revision, in_force, "an agent brought a policy that this workspace had lost");
        let why = format!(
            "agents go by policy revision {}, and this workspace knew {in_force} at the most: it was restored from an older \
             backup. Revoke again what was revoked since and is not listed as revoked, and make tokens anew",
            policy.revision
        );
        receiver.control.alert((peer.organization, peer.agent), "restored", &why, now()).await.map_err(internal)?;
    }
    Ok(StatusCode::CREATED)
}

impl Receiver {
    /// A checked batch, where the policy that it was observed under allows what it holds.
    pub(super) async fn permitted(
        &self,
        (noted, frame, digest): (Noted, Vec<u8>, [u8; 32]),
        in_force: u64,
    ) -> Result<(Noted, Vec<u8>, [u8; 32]), Refusal> {
        let header = &noted.header;
        if header.policy_revision > in_force {
            let title = format!("policy revision {} is not known here", header.policy_revision);
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "policy_revision", title).retry_after(5));
        }
        if header.records == 0 {
            return Ok((noted, frame, digest));
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
            return Ok((noted, frame, digest));
        }
        let look = move || {
            let (mut noted, records) = (noted, records(&frame)?);
            noted.leave_out(store, &records);
            Ok((noted, frame, digest))
        };
        tokio::task::spawn_blocking(look).await.map_err(|err| internal(err.into()))?.map_err(internal)
    }

    /// The policy that a batch was observed under; none where there never was one. A revision between two that are known was
    /// lost when this workspace was restored: what either of the two allows is taken, since nobody knows what it said.
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

    /// The frame again, and why the policy forbids what is in it.
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
            let cursor = header.cursors.iter().find(|told| told.collector != "artifacts");
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
        // Its own policy allows it; another may have forbidden the like for long.
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

/// The kind of a record in it that collection yields.
fn collected(bytes: &[u8]) -> anyhow::Result<Option<&'static str>> {
    let records = records(bytes)?;
    let mut kinds = records.iter().map(|record| record.body.kind().name);
    Ok(kinds.find(|kind| !matches!(*kind, "heartbeat" | "artifact")))
}

/// The pieces of artifacts in a batch.
pub(super) fn pieces(bytes: &[u8]) -> anyhow::Result<Vec<Artifact>> {
    let piece = |record: Record| match record.body {
        Body::Artifact(piece) => Some(piece),
        _ => None,
    };
    Ok(records(bytes)?.into_iter().filter_map(piece).collect())
}
