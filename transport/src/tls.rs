//! TLS towards the workspace: TLS 1.2 as the floor and nothing as the ceiling, the agent's certificate, and the
//! workspace's geography checked before a byte of data is sent.

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc, time::Duration};
use vedette_wire::geo::WorkspaceGeo;
use zeroize::Zeroizing;

/// Whose certificates are taken for the workspace's authority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roots {
    /// Those of the CA file.
    #[default]
    Ca,
    /// Those that the platform trusts.
    Platform,
    /// Both.
    Both,
}

/// What a client needs to know of TLS and proxy.
#[derive(Debug, Default)]
pub struct ClientSettings {
    /// Whose certificates are taken.
    pub roots: Roots,
    /// Certificates of the workspace's CA, PEM; not looked at where the platform's alone are taken.
    pub ca_pem: Vec<u8>,
    /// The agent's certificate chain and key, PEM; absent before enrollment.
    pub identity_pem: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    /// Geography that the workspace's certificate must carry; where it is not known, before enrollment, any.
    pub geo: Option<WorkspaceGeo>,
    /// HTTP proxy towards the workspace.
    pub proxy: Option<Proxy>,
}

/// An HTTP proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// `http://host:port` or `http://user:password@host:port`.
    pub url: String,
    /// Who is reached without it, as in `NO_PROXY`: names, domains, addresses and networks, with commas between.
    pub not_for: String,
}

impl Proxy {
    /// Host and port, without what it is asked with.
    pub fn authority(&self) -> Option<&str> {
        let behind = self.url.split_once("://").map_or(self.url.as_str(), |(_, behind)| behind);
        let authority = behind.split(['/', '?', '#']).next()?;
        Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file has no usable certificate.
    #[error("the CA file holds no usable certificate ({0}); use the workspace's ca.pem")]
    Ca(String),
    /// The platform trusts nobody, as far as can be read.
    #[error("no root certificate of the platform can be used ({0}); install ca-certificates, or set [workspace] roots")]
    Platform(String),
    /// Certificate or key of the agent cannot be used.
    #[error("the agent's certificate or key cannot be used ({0}); enroll again")]
    Identity(String),
    /// The proxy's address is wrong.
    #[error("the proxy cannot be used ({0})")]
    Proxy(String),
    /// The client cannot be built.
    #[error("the HTTPS client cannot be made ({0})")]
    Client(String),
}

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take from the first byte to the last of the reply.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How long what was sent may remain unacknowledged by the other machine (TCP_USER_TIMEOUT, tcp(7)): a connection whose
/// other end is gone without a word is given up then, and one whose other end reads nothing for so long. A slow line
/// acknowledges, slowly.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// An HTTPS client that follows no redirect, reads no environment and talks to one workspace.
///
/// # Errors
/// [`TlsError`] says which file is wrong.
pub fn client(settings: &ClientSettings) -> Result<reqwest::Client, TlsError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(config(settings)?)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_keepalive(Duration::from_secs(30))
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .no_proxy();
    if let Some(proxy) = &settings.proxy {
        let not_for = reqwest::NoProxy::from_string(&proxy.not_for);
        let proxy = reqwest::Proxy::all(&proxy.url).map_err(|err| TlsError::Proxy(err.to_string()))?;
        builder = builder.proxy(proxy.no_proxy(not_for));
    }
    builder.build().map_err(|err| TlsError::Client(crate::post::root_cause(&err)))
}

fn config(settings: &ClientSettings) -> Result<ClientConfig, TlsError> {
    let roots = roots(settings)?;
    let provider = CryptoProvider::get_default().expect("main installs the provider first thing").clone();
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|err| TlsError::Ca(err.to_string()))?;
    let verifier = Arc::new(GeoVerifier { inner, geo: settings.geo });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|err| TlsError::Client(err.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &settings.identity_pem {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let wrong = |err: &dyn std::fmt::Display| TlsError::Identity(err.to_string());
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
            let chain = chain.map_err(|err| wrong(&err))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|err| wrong(&err))?;
            builder.with_client_auth_cert(chain, key).map_err(|err| wrong(&err))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(settings: &ClientSettings) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if settings.roots != Roots::Platform {
        for certificate in CertificateDer::pem_slice_iter(&settings.ca_pem) {
            let certificate = certificate.map_err(|err| TlsError::Ca(err.to_string()))?;
            roots.add(certificate).map_err(|err| TlsError::Ca(err.to_string()))?;
        }
        if roots.is_empty() {
            return Err(TlsError::Ca("no PEM certificate in it".to_owned()));
        }
    }
    if settings.roots != Roots::Ca {
        let found = rustls_native_certs::load_native_certs();
        // Old ones that cannot be read any more lie in every platform's store.
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
            return Err(TlsError::Platform(why));
        }
    }
    Ok(roots)
}

/// Read a PEM file, saying which one is missing.
///
/// # Errors
/// [`TlsError::Ca`] with the path.
pub fn read_ca(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|err| TlsError::Ca(format!("{}: {err}", path.display())))
}

/// The platform's verification of chain, name and dates, and then: is this a workspace of our geography?
#[derive(Debug)]
struct GeoVerifier {
    inner: Arc<WebPkiServerVerifier>,
    geo: Option<WorkspaceGeo>,
}

impl ServerCertVerifier for GeoVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match self.geo {
            Some(geo) if !names_uri(end_entity, &geo.uri()) => Err(rustls::Error::General(format!(
                "the server is not a workspace of geography {geo}; check [workspace] url"
            ))),
            None if !WorkspaceGeo::ALL.iter().any(|geo| names_uri(end_entity, &geo.uri())) => {
                Err(rustls::Error::General("the server's certificate names no geography".to_owned()))
            }
            _ => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether a certificate carries a URI among its subject alternative names (RFC 5280 §4.2.1.6).
fn names_uri(certificate: &CertificateDer<'_>, uri: &str) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(found) if *found == uri))
}
