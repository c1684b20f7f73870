//! The key that signs policies and artifact requests: Ed25519, in `policy.key`.

use super::write_private;
use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use std::{fs, path::Path};
use vedette_wire::policy::{ArtifactRequest, Policy, SignedPolicy, SignedRequest};
use zeroize::Zeroizing;

/// Signs the policies of a workspace.
pub(crate) struct Signer(Zeroizing<KeyPair>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Creates the key of a new workspace.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?);
        write_private(&dir.join("policy.key"), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Self::load(dir)
    }

    /// Loads the key of a workspace. Agents would refuse any other key.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("policy.key");
        let pem = fs::read_to_string(&path).map(Zeroizing::new).with_context(|| {
            format!("{} cannot be read; restore it from a backup, since agents have its public key", path.display())
        })?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{} holds no key", path.display()))?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// Public key, hex.
    pub(crate) fn public(&self) -> String {
        hex::encode(self.0.der_bytes())
    }

    pub(crate) fn sign_request(&self, request: &ArtifactRequest) -> Result<SignedRequest> {
        let request = serde_json::to_string(request)?;
        let signature = hex::encode(self.0.sign(&SignedRequest::message(&request))?);
        Ok(SignedRequest { request, signature })
    }

    /// Whether this key signed a policy: Ed25519 signatures (RFC 8032) are deterministic.
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
