//! The key that policies and requests for artifacts are signed with: Ed25519, `policy.key` beside the authority's.

use crate::ca::write_private;
use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use std::{fs, path::Path};
use vedette_wire::policy::{ArtifactRequest, Policy, SignedPolicy, SignedRequest};
use zeroize::Zeroizing;

/// Signs policies of one workspace.
pub(crate) struct Signer(Zeroizing<KeyPair>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Make the key of a workspace that has none yet.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?);
        write_private(&dir.join("policy.key"), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Self::load(dir)
    }

    /// The key of a workspace. Another in its place would be refused by every agent.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("policy.key");
        let pem = fs::read_to_string(&path).map(Zeroizing::new).with_context(|| {
            format!("{} cannot be read; put it back from a backup: agents know its public half", path.display())
        })?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{} holds no key", path.display()))?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// Its public half, hex.
    pub(crate) fn public(&self) -> String {
        hex::encode(self.0.der_bytes())
    }

    pub(crate) fn sign_request(&self, request: &ArtifactRequest) -> Result<SignedRequest> {
        let request = serde_json::to_string(request)?;
        let signature = hex::encode(self.0.sign(&SignedRequest::message(&request))?);
        Ok(SignedRequest { request, signature })
    }

    /// Whether a policy was signed with this key: a signature of Ed25519 (RFC 8032) is always the same.
    pub(crate) fn has_signed(&self, signed: &SignedPolicy) -> Result<bool> {
        let signature = hex::encode(self.0.sign(&SignedPolicy::message(&signed.policy))?);
        Ok(signature == signed.signature)
    }

    pub(crate) fn sign(&self, policy: &Policy) -> Result<SignedPolicy> {
        let policy = serde_json::to_string(policy)?;
        let signature = hex::encode(self.0.sign(&SignedPolicy::message(&policy))?);
        Ok(SignedPolicy { policy, signature })
    }
}
