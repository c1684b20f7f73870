//! Requests for artifacts: verified, kept until they are answered, and handed to the collector. What is sent travels on a lane
//! of its own, which is opened when the first request comes.

use super::QueueSink;
use crate::{
    identity::{Enrollment, IdentityDir},
    now,
    policy::verified,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use vedette_collectors::{Requests, Wanted};
use vedette_wire::policy::{ArtifactLimits, ArtifactRequest, SignedRequest};

/// Its file in the identity directory.
const FILE: &str = "artifacts.json";
/// Answered requests that are remembered: a repeat of one of them is not answered again.
const REMEMBERED_MAX: usize = 10_000;
/// Requests of one answer that are looked at, and that may be open.
const REQUESTS_MAX: usize = 1000;
/// The rate is per hour.
const HOUR_NS: i64 = 3600 * 1_000_000_000;

/// Requests of this agent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    open: BTreeMap<String, SignedRequest>,
    /// When each came that was answered, nanoseconds UTC.
    answered: BTreeMap<String, i64>,
}

/// What was asked of this agent.
#[derive(Debug)]
pub(super) struct Asked {
    identity: IdentityDir,
    enrollment: Enrollment,
    kept: Kept,
    requests: Requests,
    /// What the collector was told since the start.
    told: BTreeSet<String>,
    /// Why a request was refused last.
    refused: Option<String>,
}

impl Asked {
    pub(super) fn load(identity: &IdentityDir, enrollment: &Enrollment) -> Self {
        let kept = std::fs::read(identity.path(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            identity: identity.clone(),
            enrollment: enrollment.clone(),
            kept: kept.unwrap_or_default(),
            requests: Requests::default(),
            told: BTreeSet::new(),
            refused: None,
        }
    }

    /// Where the collector finds them.
    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Whether any waits for its answer.
    pub(super) fn is_open(&self) -> bool {
        !self.kept.open.is_empty()
    }

    /// Take requests in; true where one is new. What is not signed by the workspace, or is for another, is reported.
    pub(super) fn take(&mut self, signed: Vec<SignedRequest>, limits: &ArtifactLimits) -> anyhow::Result<bool> {
        let (mut new, mut refused, count) = (false, None, signed.len());
        for signed in signed.into_iter().take(REQUESTS_MAX) {
            if self.kept.open.len() >= REQUESTS_MAX {
                break;
            }
            match self.read(&signed) {
                Ok(request)
                    if self.kept.open.contains_key(&request.id) || self.kept.answered.contains_key(&request.id) => {}
                Ok(request) => {
                    tracing::info!(request = request.id, path = request.path, "an artifact is asked for");
                    self.kept.open.insert(request.id, signed);
                    new = true;
                }
                Err(why) => refused = Some(why),
            }
        }
        // Once, until something else is wrong or nothing is.
        if refused != self.refused {
            if let Some(why) = &refused {
                tracing::error!(why, count, "requests for artifacts were refused");
            }
            self.refused = refused;
        }
        if new {
            self.keep()?;
        }
        self.hand_over(limits);
        Ok(new)
    }

    fn read(&self, signed: &SignedRequest) -> Result<ArtifactRequest, String> {
        let key = self.enrollment.policy_key.as_deref().ok_or("this agent has no key to verify it with")?;
        if !verified(key, &SignedRequest::message(&signed.request), &signed.signature) {
            return Err("it is not signed by the workspace's key".to_owned());
        }
        let request: ArtifactRequest = serde_json::from_str(&signed.request).map_err(|err| err.to_string())?;
        if (request.organization, request.agent) != (self.enrollment.organization, self.enrollment.agent) {
            return Err("it is for another agent".to_owned());
        }
        Ok(request)
    }

    /// Tell the collector what it has not been told, and why what is refused at once is.
    fn hand_over(&mut self, limits: &ArtifactLimits) {
        let now = now();
        let before = self.kept.answered.values().filter(|at| now.saturating_sub(**at) < HOUR_NS).count();
        let open = self.kept.open.values().filter_map(|signed| self.read(signed).ok()).enumerate();
        let new = open.filter(|(_, request)| !self.told.contains(&request.id));
        let wanted = new.map(|(at, request)| {
            let refused = if request.expires <= now {
                Some("the request came too late; it has expired".to_owned())
            } else if before + at >= limits.per_hour_max as usize {
                Some(format!("the policy allows {} in an hour", limits.per_hour_max))
            } else {
                None
            };
            Wanted {
                request: request.id,
                path: request.path,
                paths: limits.paths.clone(),
                bytes_max: limits.bytes_max,
                refused,
            }
        });
        let wanted: Vec<Wanted> = wanted.collect();
        self.told.extend(wanted.iter().map(|wanted| wanted.request.clone()));
        self.requests.add(wanted);
    }

    /// Note what the collector has answered, once that is durable.
    pub(super) async fn settle(&mut self, sink: &std::sync::Arc<QueueSink>) -> anyhow::Result<()> {
        let waiting = self.requests.ids();
        let answered = self.kept.open.keys().filter(|id| self.told.contains(*id) && !waiting.contains(id));
        let answered: Vec<String> = answered.cloned().collect();
        if answered.is_empty() {
            return Ok(());
        }
        let sink = std::sync::Arc::clone(sink);
        tokio::task::spawn_blocking(move || sink.wait_durable()).await??;
        for id in answered {
            self.kept.open.remove(&id);
            self.told.remove(&id);
            self.kept.answered.insert(id, now());
        }
        while self.kept.answered.len() > REMEMBERED_MAX {
            // Ids are UUIDv7: the first is the oldest.
            self.kept.answered.pop_first();
        }
        self.keep()
    }

    fn keep(&self) -> anyhow::Result<()> {
        self.identity.write(FILE, &serde_json::to_vec(&self.kept)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
    use vedette_wire::{AgentId, OrganizationId};

    fn sign(key: &KeyPair, request: &ArtifactRequest) -> SignedRequest {
        let request = serde_json::to_string(request).expect("serializes");
        let signature = hex::encode(key.sign(&SignedRequest::message(&request)).expect("signs"));
        SignedRequest { request, signature }
    }

    #[test]
    fn a_request_is_for_one_agent_expires_is_limited_and_is_answered_once() {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let (dir, key) = (tempfile::tempdir().expect("temp dir"), KeyPair::generate_for(&PKCS_ED25519).expect("makes"));
        let enrollment = Enrollment { policy_key: Some(hex::encode(key.der_bytes())), ..Enrollment::sample("") };
        let identity = IdentityDir::new(dir.path());
        let request = |id: &str| ArtifactRequest {
            id: id.to_owned(),
            organization: enrollment.organization,
            agent: enrollment.agent,
            path: "/usr/bin/tool".to_owned(),
            issued: now(),
            expires: now() + HOUR_NS,
        };
        let limits = ArtifactLimits { per_hour_max: 2, ..ArtifactLimits::default() };
        let mut asked = Asked::load(&identity, &enrollment);
        let theirs = ArtifactRequest { agent: AgentId([8; 16]), ..request("theirs") };
        let foreign = ArtifactRequest { organization: OrganizationId(Default::default()), ..request("foreign") };
        let forged = sign(&KeyPair::generate_for(&PKCS_ED25519).expect("makes"), &request("forged"));
        let refused = vec![sign(&key, &theirs), sign(&key, &foreign), forged];
        assert!(!asked.take(refused, &limits).expect("keeps"));
        assert!(!asked.is_open() && asked.requests().ids().is_empty());

        let late = ArtifactRequest { expires: now() - 1, ..request("1-late") };
        let all = vec![sign(&key, &late), sign(&key, &request("2")), sign(&key, &request("3"))];
        assert!(asked.take(all.clone(), &limits).expect("keeps"));
        let told = asked.requests().waiting();
        let why: Vec<&str> = told.iter().map(|wanted| wanted.refused.as_deref().unwrap_or_default()).collect();
        assert!(why[0].contains("expired") && why[1].is_empty() && why[2].contains("2 in an hour"), "{why:?}");
        assert!(!asked.take(all, &limits).expect("keeps"), "they are known");
        assert_eq!(asked.requests().ids().len(), 3, "and told once");
        // After a restart they are told again, those that were answered are not.
        asked.kept.open.remove("2");
        asked.kept.answered.insert("2".to_owned(), now());
        asked.keep().expect("writes");
        let mut asked = Asked::load(&identity, &enrollment);
        assert!(!asked.take(vec![sign(&key, &request("2"))], &limits).expect("keeps"));
        assert_eq!(asked.requests().ids(), ["1-late", "3"]);
    }
}
