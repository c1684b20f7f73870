//! The policy in force: verified, stored on disk, and never replaced by an older one.

use crate::identity::{Enrollment, IdentityDir};
use rustls::{SignatureScheme, crypto::CryptoProvider};
use vedette_wire::policy::{Policy, SignedPolicy, Tier};

/// File in the identity directory.
const FILE: &str = "policy.json";

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The signature is not from the workspace of the enrollment.
    #[error("the policy is not signed by the workspace's key")]
    Forged,
    /// It is of another organization.
    #[error("the policy is of another organization, {0}")]
    Foreign(String),
    /// Its revision is not newer than the one in force.
    #[error("the policy has revision {0}, and {1} is in force")]
    Older(u64, u64),
    /// It cannot be read, or contains a forbidden setting.
    #[error("the policy cannot be used: {0}")]
    Torn(String),
    /// The agent was enrolled by a release without policies.
    #[error("this agent has no key to verify policies with; run `vedette enroll --again`")]
    NoKey,
    /// It cannot be stored.
    #[error("the policy cannot be stored: {0}")]
    Disk(String),
}

/// Upper bound of revisions: an honest workspace's are seconds of the clock.
const REVISION_MAX: u64 = 1 << 53;

/// The policy in force and its file.
#[derive(Debug)]
pub(crate) struct PolicyStore {
    identity: IdentityDir,
    enrollment: Enrollment,
    policy: Option<Policy>,
}

impl PolicyStore {
    /// Loads the stored policy. If it cannot be used, returns the reason; no policy is in force until the workspace sends one.
    pub(crate) fn load(identity: &IdentityDir, enrollment: &Enrollment) -> (Self, Option<Refused>) {
        let mut store = Self { identity: identity.clone(), enrollment: enrollment.clone(), policy: None };
        let unsigned =
            || Policy { revision: enrollment.policy_revision, ..Policy::first(enrollment.organization, Tier::Free, 0) };
        let bytes = match std::fs::read(identity.path(FILE)) {
            Ok(bytes) => bytes,
            // A release without policies enrolled this host.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && enrollment.policy_key.is_none() => {
                store.policy = Some(unsigned());
                return (store, Some(Refused::NoKey));
            }
            Err(err) => return (store, Some(Refused::Torn(format!("{}: {err}", identity.path(FILE).display())))),
        };
        let read = serde_json::from_slice(&bytes).map_err(|err| Refused::Torn(err.to_string()));
        match read.and_then(|signed| store.verify(&signed)) {
            Ok(policy) => {
                store.policy = Some(policy);
                (store, None)
            }
            Err(why) => (store, Some(why)),
        }
    }

    /// The policy in force; absent if the stored one is damaged.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Its revision; 0 without a policy.
    pub(crate) fn revision(&self) -> u64 {
        self.policy.as_ref().map_or(0, |policy| policy.revision)
    }

    /// The policy in force as signed, for a workspace that lost it.
    pub(crate) fn signed(&self) -> Option<SignedPolicy> {
        self.policy.as_ref()?;
        serde_json::from_slice(&std::fs::read(self.identity.path(FILE)).ok()?).ok()
    }

    /// Puts a newer policy in force, durably.
    ///
    /// # Errors
    /// [`Refused`]; nothing changes then.
    pub(crate) fn accept(&mut self, signed: &SignedPolicy) -> Result<&Policy, Refused> {
        let policy = self.verify(signed)?;
        if let Some(now) = &self.policy
            && policy.revision <= now.revision
        {
            return Err(Refused::Older(policy.revision, now.revision));
        }
        keep(&self.identity, signed).map_err(|err| Refused::Disk(format!("{err:#}")))?;
        Ok(self.policy.insert(policy))
    }

    fn verify(&self, signed: &SignedPolicy) -> Result<Policy, Refused> {
        let Some(key) = &self.enrollment.policy_key else { return Err(Refused::NoKey) };
        if !verified(key, &SignedPolicy::message(&signed.policy), &signed.signature) {
            return Err(Refused::Forged);
        }
        let policy: Policy = serde_json::from_str(&signed.policy).map_err(|err| Refused::Torn(err.to_string()))?;
        if policy.organization != self.enrollment.organization {
            return Err(Refused::Foreign(policy.organization.to_string()));
        }
        policy.check().map_err(Refused::Torn)?;
        if policy.revision > REVISION_MAX {
            return Err(Refused::Torn(format!("revision {} is too large", policy.revision)));
        }
        Ok(policy)
    }
}

/// Stores a policy for the next start.
pub(crate) fn keep(identity: &IdentityDir, signed: &SignedPolicy) -> anyhow::Result<()> {
    identity.write(FILE, &serde_json::to_vec(signed)?)
}

/// Whether an Ed25519 key (RFC 8032) signed a message; key and signature are hex.
pub(crate) fn verified(key: &str, message: &[u8], signature: &str) -> bool {
    let (Ok(key), Ok(signature)) = (hex::decode(key), hex::decode(signature)) else { return false };
    let provider = CryptoProvider::get_default().expect("main installs the provider first thing");
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithms = mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    algorithms.is_some_and(|(_, algorithms)| {
        algorithms.iter().any(|algorithm| algorithm.verify_signature(&key, message, &signature).is_ok())
    })
}
