//! Identity of the agent: files in `[identity] dir`, which only `vedette enroll` and the agent write.
//!
//! `key.pem` (0600), `cert.pem`, `ca.pem`, and `enrollment.json`, which is written last and marks the others as complete.
//! `next.json` is a complete new identity in one file until it has replaced these.

use crate::{config::Resolved, exit::Exit, platform};
use anyhow::{Context, Result};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};
use vedette_collectors::CollectorContext;
use vedette_wire::{AgentId, Compression, OrganizationId, geo::WorkspaceGeo, reply::EnrollReply};
use zeroize::Zeroizing;

/// What the workspace answered at enrollment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrollment {
    pub(crate) organization: OrganizationId,
    pub(crate) organization_name: String,
    pub(crate) agent: AgentId,
    pub(crate) workspace: String,
    pub(crate) geo: WorkspaceGeo,
    pub(crate) policy_revision: u64,
    /// Codec that the workspace requested; an acknowledgement may request another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compression: Option<Compression>,
    /// Key to verify policies with: Ed25519, hex. Absent if the agent was enrolled by a release that had no policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy_key: Option<String>,
    /// Former agents of this machine, whose keys another machine uses as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) replaces: Vec<AgentId>,
}

impl Enrollment {
    /// Builds an enrollment from the answer of a workspace at this URL.
    pub(crate) fn of(reply: EnrollReply, workspace: &str) -> Self {
        Self {
            organization: reply.organization,
            organization_name: reply.organization_name,
            agent: reply.agent,
            workspace: workspace.to_owned(),
            geo: reply.geo,
            policy_revision: reply.policy_revision,
            compression: reply.compression,
            policy_key: reply.policy_key,
            replaces: Vec::new(),
        }
    }
}

#[cfg(test)]
impl Enrollment {
    /// An enrollment for tests.
    pub(crate) fn sample(workspace: &str) -> Self {
        Self {
            organization: OrganizationId("01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a UUID")),
            organization_name: "acme".to_owned(),
            agent: AgentId([7; 16]),
            workspace: workspace.to_owned(),
            geo: WorkspaceGeo::Europe,
            policy_revision: 1,
            compression: None,
            policy_key: None,
            replaces: Vec::new(),
        }
    }
}

/// A new identity of this machine.
#[derive(Serialize, Deserialize)]
pub(crate) struct PendingIdentity {
    /// PEM, like the certificate.
    pub(crate) key: String,
    pub(crate) certificate: String,
    pub(crate) enrollment: Enrollment,
}

/// File of a new identity.
const PENDING: &str = "next.json";
/// File of the key of a new identity until it is certified.
const PENDING_KEY: &str = "next-key.pem";

/// The identity directory.
#[derive(Debug, Clone)]
pub(crate) struct IdentityDir(PathBuf);

impl IdentityDir {
    pub(crate) fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Reads a key; its memory is overwritten after use.
    pub(crate) fn secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>> {
        self.read(name).map(Zeroizing::new)
    }

    /// Creates the directory for the agent's user only.
    pub(crate) fn create(&self) -> Result<()> {
        // A key must not be written where others can read it, whoever made the directory.
        let created = platform::create_private_dir(&self.0).and_then(|()| platform::make_private(&self.0));
        created.with_context(|| format!("cannot create {}; check [identity] dir and its owner", self.0.display()))
    }

    /// Locks the identity for as long as the file is open.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let locked = platform::lock_dir(&self.0).with_context(|| format!("cannot lock {}", self.0.display()))?;
        locked.with_context(|| format!("another agent runs under the identity in {}; stop it first", self.0.display()))
    }

    /// Writes a file atomically: to a temporary file, fsync, rename, fsync of the directory.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        platform::write_private(&self.0, name, bytes)
            .with_context(|| format!("cannot write {}; check its owner", self.path(name).display()))
    }

    /// Reads the key, or creates one (P-256, RFC 5480) and stores it before it is used.
    pub(crate) fn key(&self) -> Result<Zeroizing<KeyPair>> {
        self.key_in("key.pem")
    }

    /// Reads the key of a new identity, or creates one.
    pub(crate) fn pending_key(&self) -> Result<Zeroizing<KeyPair>> {
        self.key_in(PENDING_KEY)
    }

    /// Deletes the key of a new identity.
    pub(crate) fn delete_pending_key(&self) -> Result<()> {
        self.delete(PENDING_KEY)
    }

    fn delete(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                Err(err).with_context(|| format!("cannot delete {}", self.path(name).display()))
            }
            _ => Ok(()),
        }
    }

    /// The enrollment to replace, if it can be read. First completes a pending new identity, or deletes a damaged one.
    pub(crate) fn take_previous(&self) -> Result<Option<Enrollment>> {
        if let Err(err) = self.complete_pending() {
            tracing::warn!(error = format!("{err:#}"), "the pending new identity is damaged; deleting it");
            self.delete(PENDING)?;
        }
        Ok(self.enrollment().unwrap_or_else(|err| {
            tracing::warn!(
                error = format!("{err:#}"),
                "the old enrollment cannot be read; its queued batches go into quarantine if key or organization changes"
            );
            None
        }))
    }

    fn key_in(&self, name: &str) -> Result<Zeroizing<KeyPair>> {
        let path = self.path(name);
        if path.exists() {
            let pem = self.secret(name)?;
            return KeyPair::from_pem(std::str::from_utf8(&pem)?).map(Zeroizing::new).with_context(|| {
                format!("{} does not hold a valid key; move it aside to create a new key", path.display())
            });
        }
        let key = Zeroizing::new(KeyPair::generate()?);
        self.write(name, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        Ok(key)
    }

    /// Stores a new identity and replaces the present one with it. After a crash [`IdentityDir::complete_pending`] completes this.
    pub(crate) fn store_pending(&self, next: &PendingIdentity) -> Result<()> {
        self.write(PENDING, &serde_json::to_vec(next)?)?;
        self.complete_pending()
    }

    /// Replaces the present identity with a stored new one, if there is one.
    pub(crate) fn complete_pending(&self) -> Result<()> {
        let bytes = match fs::read(self.path(PENDING)) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(err).with_context(|| format!("cannot read {}", self.path(PENDING).display())),
        };
        let damaged = || format!("{} is damaged; run `vedette enroll --again`", self.path(PENDING).display());
        let next: PendingIdentity = serde_json::from_slice(&bytes).with_context(damaged)?;
        self.write("key.pem", next.key.as_bytes())?;
        self.write("cert.pem", next.certificate.as_bytes())?;
        self.write("enrollment.json", &serde_json::to_vec_pretty(&next.enrollment)?)?;
        // Deletes artifact requests to the old identity; the machine that keeps its key answers them.
        for name in ["artifacts.json", PENDING_KEY, PENDING] {
            self.delete(name)?;
        }
        Ok(())
    }

    /// The enrollment; absent if the host is not enrolled.
    pub(crate) fn enrollment(&self) -> Result<Option<Enrollment>> {
        let path = self.path("enrollment.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let parsed = serde_json::from_slice(&bytes);
                parsed.map(Some).with_context(|| format!("{} is damaged; run `vedette enroll --again`", path.display()))
            }
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Completes a pending identity, and returns the enrollment. Fails if the host is not enrolled, or if
    /// the configuration contradicts the enrollment.
    pub(crate) fn enrolled(&self, config: &Resolved) -> Result<Enrollment, Exit> {
        self.complete_pending()?;
        let Some(enrollment) = self.enrollment()? else {
            return Err(Exit::NotEnrolled(format!(
                "not enrolled: {} does not exist; run `vedette enroll`",
                self.path("enrollment.json").display()
            )));
        };
        let differs = |what: &str, configured: &str, enrolled: &str| {
            Exit::config(format!(
                "workspace.{what}: the configuration says {configured}, the enrollment says {enrolled}; change the \
                 configuration, or run `vedette enroll --again`"
            ))
        };
        if let Some(url) = &config.workspace_url
            && url.as_str().trim_end_matches('/') != enrollment.workspace
        {
            return Err(differs("url", url.as_str(), &enrollment.workspace));
        }
        if let Some(geo) = config.workspace_geo
            && geo != enrollment.geo
        {
            return Err(differs("geo", geo.name(), enrollment.geo.name()));
        }
        if let Some(ca) = &config.workspace_ca {
            let configured =
                fs::read(ca).map_err(|err| Exit::config(format!("workspace.ca: {}: {err}", ca.display())))?;
            if configured != self.read("ca.pem")? {
                return Err(differs("ca", &ca.display().to_string(), "another certificate"));
            }
        }
        Ok(enrollment)
    }
}

/// Hash of the machine's id: machine-id(5) asks not to reveal it, and an application-specific hash also identifies a machine.
pub(crate) fn machine(context: &CollectorContext) -> Option<String> {
    hashed("machine", &vedette_collectors::machine_id(context)?)
}

/// Hash of the boot's id.
pub(crate) fn boot(context: &CollectorContext) -> Option<String> {
    hashed("boot", &vedette_collectors::boot_id(context)?)
}

fn hashed(what: &str, id: &str) -> Option<String> {
    Some(hex::encode(&Sha256::digest(format!("vedette {what} {id}"))[..16]))
}

/// A certificate signing request (RFC 2986), PEM. The workspace sets the names in the certificate.
pub(crate) fn signing_request(key: &KeyPair) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next start completes the change, wherever the agent was killed.
    #[test]
    fn a_new_identity_replaces_the_current_one_completely_or_not_at_all() {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let config = crate::config::load(&crate::config::Sources::default()).expect("defaults");
        for done in 0..=4 {
            let dir = tempfile::tempdir().expect("temp dir");
            let identity = IdentityDir::new(dir.path());
            let previous = Enrollment::sample("https://one:1");
            let old = [("key.pem", "old"), ("cert.pem", "old"), ("ca.pem", "ca"), ("artifacts.json", "{}")];
            for (name, text) in old {
                identity.write(name, text.as_bytes()).expect("writes");
            }
            identity.write("enrollment.json", &serde_json::to_vec(&previous).expect("serializes")).expect("writes");
            let key = identity.pending_key().expect("makes").serialize_pem();
            assert_eq!(
                identity.pending_key().expect("reads").serialize_pem(),
                key,
                "the second call returns the same key"
            );
            let enrollment = Enrollment { agent: AgentId([9; 16]), replaces: vec![previous.agent], ..previous.clone() };
            let next =
                PendingIdentity { key: key.clone(), certificate: "new".to_owned(), enrollment: enrollment.clone() };
            let steps: [(&str, Vec<u8>); 4] = [
                (PENDING, serde_json::to_vec(&next).expect("serializes")),
                ("key.pem", key.clone().into_bytes()),
                ("cert.pem", b"new".to_vec()),
                ("enrollment.json", serde_json::to_vec(&enrollment).expect("serializes")),
            ];
            for (name, bytes) in &steps[..done] {
                identity.write(name, bytes).expect("writes");
            }
            let found = identity.enrolled(&config).map_err(|exit| format!("{exit:?}")).expect("is enrolled");
            let text = |name: &str| String::from_utf8(identity.read(name).expect("reads")).expect("text");
            if done == 0 {
                assert_eq!((found, text("key.pem")), (previous, "old".to_owned()), "nothing is kept yet");
                continue;
            }
            assert_eq!((found, text("key.pem"), text("cert.pem")), (enrollment, key, "new".to_owned()), "{done}");
            for gone in [PENDING, PENDING_KEY, "artifacts.json"] {
                assert!(!identity.path(gone).exists(), "{done}: {gone}");
            }
        }
    }
}
