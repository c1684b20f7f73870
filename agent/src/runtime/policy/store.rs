//! The policy in force: verified, stored on disk, and never replaced by an older one.

use crate::identity::{Enrollment, IdentityDir};
use rustls::{SignatureScheme, crypto::CryptoProvider};
use std::sync::Arc;
use tokio::sync::watch;
use vedette_wire::policy::{Policy, SignedPolicy, Tier};

/// File in the identity directory.
const FILE: &str = "policy.json";

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The signature is not from the workspace of the enrollment.
    #[error("the policy is not signed by the workspace's key")]
    Forged,
    /// It is of another organization.
    #[error("the policy belongs to another organization, {0}")]
    OtherOrganization(String),
    /// Its revision is not newer than the one in force.
    #[error("the policy has revision {0}, which is not newer than revision {1} in force")]
    NotNewer(u64, u64),
    /// It cannot be read, or contains a forbidden setting.
    #[error("the policy cannot be used: {0}")]
    Invalid(String),
    /// The agent was enrolled by a release without policies.
    #[error("this agent has no key to verify policies with; run `vedette enroll --again`")]
    NoKey,
    /// It cannot be stored.
    #[error("the policy cannot be stored: {0}")]
    NotStored(String),
}

/// Maximum revision. A workspace numbers revisions by its clock in seconds, so a larger one is an error.
const REVISION_MAX: u64 = 1 << 53;

/// The policy in force and the one applied, for all parts of the agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyStatus {
    /// The policy in force; absent if the stored one is damaged.
    pub(crate) policy: Option<Arc<Policy>>,
    /// The policy that collectors and batches follow: the same one, or the one before until it has been applied.
    pub(crate) applied: Option<Arc<Policy>>,
    /// The agent emits no heartbeats and no lifecycle records: collection is off, or no policy is in force.
    pub(crate) are_own_events_off: bool,
    /// Why the last policy was refused, the stored one cannot be used, or policies cannot be verified.
    pub(crate) problem: Option<String>,
}

/// The policy in force and its file.
#[derive(Debug)]
pub(crate) struct PolicyStore {
    identity: IdentityDir,
    enrollment: Enrollment,
    status: watch::Sender<PolicyStatus>,
}

impl PolicyStore {
    /// Loads the stored policy. If it cannot be used, the status has the reason, and no policy is in force until the workspace
    /// sends one.
    pub(crate) fn load(identity: &IdentityDir, enrollment: &Enrollment) -> Self {
        let status = watch::Sender::default();
        let store = Self { identity: identity.clone(), enrollment: enrollment.clone(), status };
        let (policy, problem) = match store.read() {
            Ok(policy) => (Some(policy), None),
            // A release without policies enrolled this host.
            Err(PolicyError::NoKey) if !identity.path(FILE).exists() => {
                let first = Policy::first(enrollment.organization, Tier::Free, 0);
                (Some(Policy { revision: enrollment.policy_revision, ..first }), Some(PolicyError::NoKey))
            }
            Err(why) => (None, Some(why)),
        };
        let are_own_events_off = policy.as_ref().is_none_or(|policy| !policy.collect);
        store.status.send_modify(|status| {
            (status.policy, status.are_own_events_off) = (policy.map(Arc::new), are_own_events_off);
            status.problem = problem.map(|problem| problem.to_string());
        });
        store
    }

    fn read(&self) -> Result<Policy, PolicyError> {
        let path = self.identity.path(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && self.enrollment.policy_key.is_none() => {
                return Err(PolicyError::NoKey);
            }
            Err(err) => return Err(PolicyError::Invalid(format!("{}: {err}", path.display()))),
        };
        self.verify(&serde_json::from_slice(&bytes).map_err(|err| PolicyError::Invalid(err.to_string()))?)
    }

    /// Changes of the policy in force or applied.
    pub(crate) fn subscribe(&self) -> watch::Receiver<PolicyStatus> {
        self.status.subscribe()
    }

    /// The policy in force; absent if the stored one is damaged.
    pub(crate) fn policy(&self) -> Option<Arc<Policy>> {
        self.status.borrow().policy.clone()
    }

    /// The policy that collectors and batches follow.
    pub(crate) fn applied(&self) -> Option<Arc<Policy>> {
        self.status.borrow().applied.clone()
    }

    /// Why the stored or the last policy cannot be used.
    pub(crate) fn problem(&self) -> Option<String> {
        self.status.borrow().problem.clone()
    }

    /// Revision of the policy in force; 0 without one.
    pub(crate) fn revision(&self) -> u64 {
        self.status.borrow().policy.as_ref().map_or(0, |policy| policy.revision)
    }

    /// Records that collectors and batches follow a policy now.
    pub(crate) fn set_applied(&self, policy: Arc<Policy>) {
        self.status.send_modify(|status| status.applied = Some(policy));
    }

    /// Suppresses or resumes heartbeats and lifecycle records.
    pub(crate) fn set_own_events_off(&self, are_own_events_off: bool) {
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.are_own_events_off, are_own_events_off) != are_own_events_off
        });
    }

    /// The policy in force as signed, for a workspace that lost it.
    pub(crate) fn signed(&self) -> Option<SignedPolicy> {
        self.policy()?;
        serde_json::from_slice(&std::fs::read(self.identity.path(FILE)).ok()?).ok()
    }

    /// Puts a newer policy in force, durably. The status has the reason if it is refused.
    ///
    /// # Errors
    /// [`PolicyError`]; the policy in force stays then.
    pub(crate) fn accept(&self, signed: &SignedPolicy) -> Result<Arc<Policy>, PolicyError> {
        let accepted = self.check(signed).map(Arc::new);
        self.status.send_modify(|status| match &accepted {
            Ok(policy) => (status.policy, status.problem) = (Some(Arc::clone(policy)), None),
            Err(why) => status.problem = Some(why.to_string()),
        });
        accepted
    }

    fn check(&self, signed: &SignedPolicy) -> Result<Policy, PolicyError> {
        let policy = self.verify(signed)?;
        if let Some(current) = self.policy()
            && policy.revision <= current.revision
        {
            return Err(PolicyError::NotNewer(policy.revision, current.revision));
        }
        store_policy(&self.identity, signed).map_err(|err| PolicyError::NotStored(format!("{err:#}")))?;
        Ok(policy)
    }

    fn verify(&self, signed: &SignedPolicy) -> Result<Policy, PolicyError> {
        let Some(key) = &self.enrollment.policy_key else { return Err(PolicyError::NoKey) };
        if !is_signature_valid(key, &SignedPolicy::message(&signed.policy), &signed.signature) {
            return Err(PolicyError::Forged);
        }
        let policy: Policy =
            serde_json::from_str(&signed.policy).map_err(|err| PolicyError::Invalid(err.to_string()))?;
        if policy.organization != self.enrollment.organization {
            return Err(PolicyError::OtherOrganization(policy.organization.to_string()));
        }
        policy.check().map_err(PolicyError::Invalid)?;
        if policy.revision > REVISION_MAX {
            return Err(PolicyError::Invalid(format!("revision {} is too large", policy.revision)));
        }
        Ok(policy)
    }
}

/// Stores a policy for the next start.
pub(crate) fn store_policy(identity: &IdentityDir, signed: &SignedPolicy) -> anyhow::Result<()> {
    identity.write(FILE, &serde_json::to_vec(signed)?)
}

/// Whether an Ed25519 key (RFC 8032) signed a message; key and signature are hex.
pub(crate) fn is_signature_valid(key: &str, message: &[u8], signature: &str) -> bool {
    let (Ok(key), Ok(signature)) = (hex::decode(key), hex::decode(signature)) else { return false };
    let provider = CryptoProvider::get_default().expect("main installs the provider first thing");
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithms = mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    algorithms.is_some_and(|(_, algorithms)| {
        algorithms.iter().any(|algorithm| algorithm.verify_signature(&key, message, &signature).is_ok())
    })
}
