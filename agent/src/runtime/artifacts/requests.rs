//! Artifact requests: verified, stored until they are answered, and passed to the collector.

use crate::{
    identity::{Enrollment, IdentityDir},
    now,
    runtime::{collectors::QueueSink, policy::is_signature_valid},
};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use vedette_collectors::{ApprovedRequest, Requests};
use vedette_wire::policy::{ArtifactLimits, ArtifactRequest, SignedRequest};

/// File in the identity directory.
const FILE: &str = "artifacts.json";
/// Maximum number of answered requests to remember, so that none is answered twice.
const REMEMBERED_MAX: usize = 10_000;
/// Maximum number of requests taken from one reply of the workspace, and of open requests.
const REQUESTS_MAX: usize = 1000;
/// One hour, the unit of the rate.
const HOUR_NS: i64 = 3600 * 1_000_000_000;

/// Open and answered requests.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RequestLog {
    open: BTreeMap<String, SignedRequest>,
    /// Time at which each request was answered, nanoseconds UTC.
    answered: BTreeMap<String, i64>,
}

/// Requests to this agent.
#[derive(Debug)]
pub(super) struct ArtifactRequests {
    identity: IdentityDir,
    enrollment: Enrollment,
    log: RequestLog,
    requests: Requests,
    /// Requests passed to the collector since the start.
    passed: BTreeSet<String>,
    /// Why a request was last refused.
    refused: Option<String>,
}

impl ArtifactRequests {
    pub(in crate::runtime) fn load(identity: &IdentityDir, enrollment: &Enrollment) -> Self {
        let log = std::fs::read(identity.path(FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            identity: identity.clone(),
            enrollment: enrollment.clone(),
            log: log.unwrap_or_default(),
            requests: Requests::default(),
            passed: BTreeSet::new(),
            refused: None,
        }
    }

    /// The collector's view of the requests.
    pub(in crate::runtime) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Whether a request is open.
    pub(in crate::runtime) fn is_open(&self) -> bool {
        !self.log.open.is_empty()
    }

    /// Adds requests; true if one is new. Reports requests that are not signed by the workspace or are for another agent.
    pub(in crate::runtime) fn take(
        &mut self,
        signed: Vec<SignedRequest>,
        limits: &ArtifactLimits,
    ) -> anyhow::Result<bool> {
        let (mut new, mut refused) = (false, None);
        for signed in signed.into_iter().take(REQUESTS_MAX) {
            if self.log.open.len() >= REQUESTS_MAX {
                break;
            }
            match self.verify(&signed) {
                Ok(request)
                    if self.log.open.contains_key(&request.id) || self.log.answered.contains_key(&request.id) => {}
                Ok(request) => {
                    tracing::info!(request = request.id, path = request.path, "artifact requested");
                    self.log.open.insert(request.id, signed);
                    new = true;
                }
                Err(why) => refused = Some(format!("{why:#}")),
            }
        }
        // Reported once, until the reason changes.
        if refused != self.refused {
            if let Some(why) = &refused {
                tracing::error!(why, "ignoring an artifact request that cannot be verified");
            }
            self.refused = refused;
        }
        if new {
            self.save()?;
        }
        self.hand_over(limits);
        Ok(new)
    }

    fn verify(&self, signed: &SignedRequest) -> anyhow::Result<ArtifactRequest> {
        let key = self.enrollment.policy_key.as_deref().context("this agent has no key to verify it with")?;
        if !is_signature_valid(key, &SignedRequest::message(&signed.request), &signed.signature) {
            bail!("it is not signed by the workspace's key");
        }
        let request: ArtifactRequest = serde_json::from_str(&signed.request)?;
        if (request.organization, request.agent) != (self.enrollment.organization, self.enrollment.agent) {
            bail!("it is for another agent");
        }
        Ok(request)
    }

    /// Passes new requests to the collector. A request that is refused here carries the reason.
    fn hand_over(&mut self, limits: &ArtifactLimits) {
        let now = now();
        // Answers of the next hour count too, since the clock may have been set back. Later ones would count for too long.
        let is_recent = |at: &&i64| (-HOUR_NS..HOUR_NS).contains(&now.saturating_sub(**at));
        let answered_within_hour = self.log.answered.values().filter(is_recent).count();
        let open = self.log.open.values().filter_map(|signed| self.verify(signed).ok()).enumerate();
        let new = open.filter(|(_, request)| !self.passed.contains(&request.id));
        let approved = new.map(|(at, request)| {
            let refused = if request.expires <= now {
                Some("the request has expired".to_owned())
            } else if answered_within_hour + at >= limits.per_hour_max as usize {
                Some(format!("the policy allows {} per hour", limits.per_hour_max))
            } else {
                None
            };
            ApprovedRequest {
                request: request.id,
                path: request.path,
                paths: limits.paths.clone(),
                bytes_max: limits.bytes_max,
                refused,
            }
        });
        let approved: Vec<ApprovedRequest> = approved.collect();
        self.passed.extend(approved.iter().map(|approved| approved.request.clone()));
        self.requests.add(approved);
    }

    /// Records answered requests, after the answers are durable.
    pub(in crate::runtime) async fn settle(&mut self, sink: &Arc<QueueSink>) -> anyhow::Result<()> {
        let waiting = self.requests.ids();
        let answered = self.log.open.keys().filter(|id| self.passed.contains(*id) && !waiting.contains(id));
        let answered: Vec<String> = answered.cloned().collect();
        if answered.is_empty() {
            return Ok(());
        }
        let sink = Arc::clone(sink);
        tokio::task::spawn_blocking(move || sink.wait_durable()).await??;
        for id in answered {
            self.log.open.remove(&id);
            self.passed.remove(&id);
            self.log.answered.insert(id, now());
        }
        while self.log.answered.len() > REMEMBERED_MAX {
            // Ids are UUIDv7, so the first is the oldest.
            self.log.answered.pop_first();
        }
        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        self.identity.write(FILE, &serde_json::to_vec(&self.log)?)
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
        let mut artifacts = ArtifactRequests::load(&identity, &enrollment);
        let theirs = ArtifactRequest { agent: AgentId([8; 16]), ..request("theirs") };
        let foreign = ArtifactRequest { organization: OrganizationId(Default::default()), ..request("foreign") };
        let forged = sign(&KeyPair::generate_for(&PKCS_ED25519).expect("makes"), &request("forged"));
        let refused = vec![sign(&key, &theirs), sign(&key, &foreign), forged];
        assert!(!artifacts.take(refused, &limits).expect("keeps"));
        assert!(!artifacts.is_open() && artifacts.requests().ids().is_empty());

        let late = ArtifactRequest { expires: now() - 1, ..request("1-late") };
        let all = vec![sign(&key, &late), sign(&key, &request("2")), sign(&key, &request("3"))];
        assert!(artifacts.take(all.clone(), &limits).expect("keeps"));
        let passed = artifacts.requests().waiting();
        let why: Vec<&str> = passed.iter().map(|approved| approved.refused.as_deref().unwrap_or_default()).collect();
        assert!(why[0].contains("expired") && why[1].is_empty() && why[2].contains("2 per hour"), "{why:?}");
        assert!(!artifacts.take(all, &limits).expect("keeps"), "they are known");
        assert_eq!(artifacts.requests().ids().len(), 3, "and told once");
        // After a restart open requests are passed again, answered ones are not.
        artifacts.log.open.remove("2");
        artifacts.log.answered.insert("2".to_owned(), now());
        artifacts.save().expect("writes");
        let mut artifacts = ArtifactRequests::load(&identity, &enrollment);
        assert!(!artifacts.take(vec![sign(&key, &request("2"))], &limits).expect("keeps"));
        assert_eq!(artifacts.requests().ids(), ["1-late", "3"]);
        // Answers within an hour count, also of a clock that was a little ahead; those of one that was far ahead do not.
        let minute = HOUR_NS / 60;
        for (answered, is_refused) in [
            (now() - minute, true),
            (now() + minute, true),
            (now() + 100 * HOUR_NS, false),
            (now() - 2 * HOUR_NS, false),
        ] {
            let answered = [("a".to_owned(), answered), ("b".to_owned(), answered)].into();
            let log = RequestLog { open: [].into(), answered };
            identity.write(FILE, &serde_json::to_vec(&log).expect("serializes")).expect("writes");
            let mut artifacts = ArtifactRequests::load(&identity, &enrollment);
            assert!(artifacts.take(vec![sign(&key, &request("4"))], &limits).expect("keeps"));
            assert_eq!(artifacts.requests().waiting()[0].refused.is_some(), is_refused);
        }
    }
}
