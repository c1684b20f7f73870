//! TLS 1.2 and 1.3 with client certificates of the workspace's authority, and the reload of changed certificates.

use crate::{keys::PAIR, store::AgentKey};
use anyhow::{Context, Result};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Poll interval for changed certificates.
pub(super) const CERTIFICATE_POLL: Duration = Duration::from_secs(1);

/// The server's TLS configuration, from the files of `init`.
fn config(dir: &Path) -> Result<Arc<ServerConfig>> {
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("{}/{name}", dir.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read("ca.pem")?) {
        roots.add(certificate?)?;
    }
    let provider = CryptoProvider::get_default().expect("main installs it").clone();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read("server.pem")?).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")?)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain?, key)?;
    // Tests decode captured traffic; a release build ignores this variable.
    #[cfg(debug_assertions)]
    {
        config.key_log = Arc::new(rustls::KeyLogFile::new());
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Identities of the certificate files: inode, time of change, size.
type Fingerprints = [Option<(u64, i64, i64, u64)>; 3];

fn fingerprints(dir: &Path) -> Fingerprints {
    ["ca.pem", "server.pem", "server.key"].map(|name| {
        let meta = std::fs::metadata(dir.join(name)).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    })
}

/// The server's certificates, reloaded when their files change.
pub(crate) struct Certificates {
    dir: PathBuf,
    acceptor: TlsAcceptor,
    loaded: Fingerprints,
    /// Files that cannot be used, so that they are reported once.
    refused: Fingerprints,
}

impl Certificates {
    /// Loads the certificates of a workspace.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let loaded = fingerprints(dir);
        let acceptor = TlsAcceptor::from(config(dir)?);
        Ok(Self { dir: dir.to_owned(), acceptor, loaded, refused: loaded })
    }

    /// Acceptor with the present certificates.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Loads changed files. The files may be half written: the old certificates stay until the new ones can be used.
    pub(super) fn reload(&mut self) {
        let found = fingerprints(&self.dir);
        if found == self.loaded {
            return;
        }
        match config(&self.dir) {
            Ok(tls) => {
                tracing::info!("certificates reloaded");
                (self.acceptor, self.loaded) = (TlsAcceptor::from(tls), found);
            }
            Err(err) if self.refused != found => {
                tracing::warn!(error = format!("{err:#}"), "new certificates cannot be used; keeping the old ones");
                self.refused = found;
            }
            Err(_) => {}
        }
    }
}

/// Whether a certificate is the other workspace's of the pair; names of agents never look like it.
pub(super) fn is_pair(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(PAIR))
}

/// Organization and agent in the subject of a certificate.
pub(super) fn agent_of(certificate: &CertificateDer<'_>) -> Option<AgentKey> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let organization = subject.iter_organization().next()?.as_str().ok()?.parse().ok()?;
    let agent = subject.iter_common_name().next()?.as_str().ok()?.parse().ok()?;
    Some(AgentKey { organization, agent })
}
