//! TLS to the workspace: TLS 1.2 or later, with the agent's certificate. The workspace's geography is verified before any data
//! is sent.

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

/// Which certificate authorities to trust for the workspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roots {
    /// The CA file's.
    #[default]
    Ca,
    /// The platform's.
    Platform,
    /// Both.
    Both,
}

/// TLS and proxy settings of a client.
#[derive(Debug, Default)]
pub struct ClientSettings {
    /// Trusted authorities.
    pub roots: Roots,
    /// Certificates of the workspace's CA, PEM; ignored if only the platform's are trusted.
    pub ca_pem: Vec<u8>,
    /// The agent's certificate chain and key, PEM; absent before enrollment.
    pub identity_pem: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    /// Required geography in the workspace's certificate; absent before enrollment, when any is accepted.
    pub geo: Option<WorkspaceGeo>,
    /// HTTP proxy.
    pub proxy: Option<Proxy>,
}

/// An HTTP proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// `http://host:port` or `http://user:password@host:port`.
    pub url: String,
    /// Hosts to reach directly, as in `NO_PROXY`: comma-separated names, domains, addresses and networks.
    pub no_proxy: String,
}

impl Proxy {
    /// Host and port, without credentials.
    pub fn authority(&self) -> Option<&str> {
        let behind = self.url.split_once("://").map_or(self.url.as_str(), |(_, behind)| behind);
        let authority = behind.split(['/', '?', '#']).next()?;
        Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
    }
}

/// Why a client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file has no usable certificate.
    #[error("the CA file holds no usable certificate ({0}); use the workspace's ca.pem")]
    Ca(String),
    /// The platform's trust store has no readable certificate.
    #[error("no root certificate of the platform can be used ({0}); install ca-certificates, or set [workspace] roots")]
    Platform(String),
    /// The agent's certificate or key is unusable.
    #[error("the agent's certificate or key cannot be used ({0}); enroll again")]
    Identity(String),
    /// The proxy URL is wrong.
    #[error("the proxy cannot be used ({0})")]
    Proxy(String),
    /// The client cannot be built.
    #[error("the HTTPS client cannot be made ({0})")]
    Client(String),
}

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a request, up to the last byte of the reply.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum time that sent data may stay unacknowledged (TCP_USER_TIMEOUT, tcp(7)). Ends connections whose peer is gone or reads
/// nothing; a slow line still acknowledges.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Builds an HTTPS client for one workspace that follows no redirects and reads no environment variables.
///
/// # Errors
/// [`TlsError`] names the wrong file.
pub fn client(settings: &ClientSettings) -> Result<reqwest::Client, TlsError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(config(settings)?)
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(90))
        .tcp_keepalive(Duration::from_secs(30))
        .no_proxy();
    let mut builder = limit_unacknowledged(builder);
    if let Some(proxy) = &settings.proxy {
        let no_proxy = reqwest::NoProxy::from_string(&proxy.no_proxy);
        let proxy = reqwest::Proxy::all(&proxy.url).map_err(|err| TlsError::Proxy(err.to_string()))?;
        builder = builder.proxy(proxy.no_proxy(no_proxy));
    }
    builder.build().map_err(|err| TlsError::Client(root_cause(&err)))
}

/// Ends a connection whose peer acknowledges nothing (`TCP_USER_TIMEOUT` of tcp(7)).
#[cfg(target_os = "linux")]
fn limit_unacknowledged(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder.tcp_user_timeout(UNACKNOWLEDGED_MAX)
}

/// Windows has no such option: keep-alive and the time limit of a request end the connection.
#[cfg(windows)]
fn limit_unacknowledged(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder
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
        // Platform stores contain old certificates that cannot be parsed.
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
            return Err(TlsError::Platform(why));
        }
    }
    Ok(roots)
}

/// Reads a PEM file.
///
/// # Errors
/// [`TlsError::Ca`] with the path.
pub fn read_ca(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|err| TlsError::Ca(format!("{}: {err}", path.display())))
}

/// Verifies chain, name and dates with rustls's WebPKI verifier, and then the workspace's geography.
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

/// Whether a certificate has a URI among its subject alternative names (RFC 5280 §4.2.1.6).
fn names_uri(certificate: &CertificateDer<'_>, uri: &str) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(found) if *found == uri))
}
/// The innermost error is the most specific: `connection refused`, `certificate expired`.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
