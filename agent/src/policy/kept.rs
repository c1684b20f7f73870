//! The policy that this agent goes by: verified, kept on disk, and never an older one than before.

use crate::identity::{Enrollment, IdentityDir};
use rustls::{SignatureScheme, crypto::CryptoProvider};
use vedette_wire::policy::{Policy, SignedPolicy, Tier};

/// Its file in the identity directory.
const FILE: &str = "policy.json";

/// Why a policy changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Not signed by the workspace that the agent enrolled with.
    #[error("the policy is not signed by the workspace's key")]
    Forged,
    /// Of another organization.
    #[error("the policy is of another organization, {0}")]
    Foreign(String),
    /// Older than the one in force, or the same.
    #[error("the policy has revision {0}, and {1} is in force")]
    Older(u64, u64),
    /// Signed, and yet it cannot be read or says what it may not.
    #[error("the policy cannot be used: {0}")]
    Torn(String),
    /// The agent was enrolled by a release without policies.
    #[error("this agent has no key to verify policies with; run `vedette enroll --again`")]
    NoKey,
    /// It cannot be kept.
    #[error("the policy cannot be kept: {0}")]
    Disk(String),
}

/// Revisions are counted one by one: no policy of an honest workspace has a larger one.
const REVISION_MAX: u64 = 1 << 53;

/// The policy in force and its file.
#[derive(Debug)]
pub(crate) struct Kept {
    identity: IdentityDir,
    enrollment: Enrollment,
    policy: Option<Policy>,
}

impl Kept {
    /// What was kept; where that cannot be used, why, and no policy is in force until the workspace sends one.
    pub(crate) fn load(identity: &IdentityDir, enrollment: &Enrollment) -> (Self, Option<Refused>) {
        let mut kept = Self { identity: identity.clone(), enrollment: enrollment.clone(), policy: None };
        let unsigned =
            || Policy { revision: enrollment.policy_revision, ..Policy::first(enrollment.organization, Tier::Free, 0) };
        let bytes = match std::fs::read(identity.path(FILE)) {
            Ok(bytes) => bytes,
            // Enrolled by a release without policies.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && enrollment.policy_key.is_none() => {
                kept.policy = Some(unsigned());
                return (kept, Some(Refused::NoKey));
            }
            Err(err) => return (kept, Some(Refused::Torn(format!("{}: {err}", identity.path(FILE).display())))),
        };
        let read = serde_json::from_slice(&bytes).map_err(|err| Refused::Torn(err.to_string()));
        match read.and_then(|signed| kept.verify(&signed)) {
            Ok(policy) => {
                kept.policy = Some(policy);
                (kept, None)
            }
            Err(why) => (kept, Some(why)),
        }
    }

    /// The policy in force; absent where what was kept is damaged.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Its revision; 0 where none is in force.
    pub(crate) fn revision(&self) -> u64 {
        self.policy.as_ref().map_or(0, |policy| policy.revision)
    }

    /// The policy in force as it was signed, for a workspace that has lost it.
    pub(crate) fn signed(&self) -> Option<SignedPolicy> {
        self.policy.as_ref()?;
        serde_json::from_slice(&std::fs::read(self.identity.path(FILE)).ok()?).ok()
    }

    /// Put another policy in force, durably.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub(crate) fn consider(&mut self, signed: &SignedPolicy) -> Result<&Policy, Refused> {
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
            return Err(Refused::Torn(format!("revision {} leaves room for no other", policy.revision)));
        }
        Ok(policy)
    }
}

/// Write a policy where it is found at the next start.
pub(crate) fn keep(identity: &IdentityDir, signed: &SignedPolicy) -> anyhow::Result<()> {
    identity.write(FILE, &serde_json::to_vec(signed)?)
}

/// Whether a message was signed by an Ed25519 key (RFC 8032); both as hex.
pub(crate) fn verified(key: &str, message: &[u8], signature: &str) -> bool {
    let (Ok(key), Ok(signature)) = (hex::decode(key), hex::decode(signature)) else { return false };
    let provider = CryptoProvider::get_default().expect("main installs the provider first thing");
    let mapping = provider.signature_verification_algorithms.mapping;
    let algorithms = mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519);
    algorithms.is_some_and(|(_, algorithms)| {
        algorithms.iter().any(|algorithm| algorithm.verify_signature(&key, message, &signature).is_ok())
    })
}
