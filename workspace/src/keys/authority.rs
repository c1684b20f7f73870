//! The workspace's certificate authority: its own certificate, and those of the server and of agents.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{fs, io::Write, net::IpAddr, os::unix::fs::OpenOptionsExt, path::Path};
use time::{Duration, OffsetDateTime};
use vedette_wire::{AgentId, OrganizationId, geo::WorkspaceGeo};
use zeroize::Zeroizing;

/// Validity of the authority's certificate.
const CA_DAYS: i64 = 3650;
/// Validity of the server's certificate.
const SERVER_DAYS: i64 = 825;
/// Certificates start to be valid this long ago, or a third of their validity if less, since clocks of hosts are wrong.
const SKEW: Duration = Duration::hours(1);

/// Subject of the certificate that the secondary presents to the primary.
pub(crate) const PAIR: &str = "Vedette workspace pair";

/// A certificate authority with its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

fn params(life: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - SKEW.min(life / 3);
    params.not_after = now + life;
    params.distinguished_name = DistinguishedName::new();
    params
}

/// Creates the authority and the server's certificate in `dir`: `ca.pem`, `ca.key`, `server.pem`, `server.key`.
pub(crate) fn create(dir: &Path, geo: WorkspaceGeo, names: &[String]) -> Result<()> {
    // Checked before anything is written, so that creation is all or nothing.
    let names: Vec<SanType> = names.iter().map(|name| subject_alt_name(name)).collect::<Result<_>>()?;
    let key = Zeroizing::new(KeyPair::generate()?);
    let mut ca = params(Duration::days(CA_DAYS));
    ca.distinguished_name.push(DnType::CommonName, format!("Vedette workspace {geo} {}", uuid::Uuid::now_v7()));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = ca.self_signed(&*key)?;
    write_private(&dir.join("ca.key"), Zeroizing::new(key.serialize_pem()).as_bytes())?;
    write_public(&dir.join("ca.pem"), certificate.pem().as_bytes())?;
    let authority = Authority::load(dir)?;
    authority.issue_server(dir, geo, names)
}

/// Checks names for a certificate.
pub(crate) fn check_names(names: &[String]) -> Result<()> {
    names.iter().try_for_each(|name| subject_alt_name(name).map(drop))
}

/// Takes over another workspace's authority (certificate and key, PEM), and creates the server's certificate.
pub(crate) fn take_over(dir: &Path, (ca, key): (&str, &str), geo: WorkspaceGeo, names: &[String]) -> Result<()> {
    let names: Vec<SanType> = names.iter().map(|name| subject_alt_name(name)).collect::<Result<_>>()?;
    write_private(&dir.join("ca.key"), key.as_bytes())?;
    write_public(&dir.join("ca.pem"), ca.as_bytes())?;
    Authority::load(dir)?.issue_server(dir, geo, names)
}

fn subject_alt_name(name: &str) -> Result<SanType> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if !is_dns_name(name) => anyhow::bail!("--name {name:?} is not a DNS name"),
        Err(_) => SanType::DnsName(name.try_into().with_context(|| format!("--name {name:?} is not a DNS name"))?),
    })
}

/// Letters, digits, hyphens, underscores and dots; the first label may be a wildcard (RFC 1123 §2.1, RFC 6125 §6.4.3).
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

impl Authority {
    /// Loads the authority of a workspace.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let text = fs::read_to_string(dir.join(name)).map(Zeroizing::new);
            text.with_context(|| format!("{}/{name}", dir.display()))
        };
        let key = KeyPair::from_pem(&read("ca.key")?).context("ca.key holds no key")?;
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, key).context("ca.pem holds no certificate")?;
        Ok(Self { issuer })
    }

    /// Creates a new key and certificate for the server, with these names or the present ones.
    pub(crate) fn renew_server(&self, dir: &Path, geo: WorkspaceGeo, names: &[String]) -> Result<()> {
        let names: Vec<SanType> = match names {
            [] => served_names(dir)?,
            names => names.iter().map(|name| subject_alt_name(name)).collect::<Result<_>>()?,
        };
        self.issue_server(dir, geo, names)
    }

    fn issue_server(&self, dir: &Path, geo: WorkspaceGeo, names: Vec<SanType>) -> Result<()> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let mut server = params(Duration::days(SERVER_DAYS));
        server.distinguished_name.push(DnType::CommonName, format!("Vedette workspace {geo}"));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.use_authority_key_identifier_extension = true;
        server.subject_alt_names = names;
        server.subject_alt_names.push(SanType::URI(geo.uri().try_into()?));
        let certificate = server.signed_by(&*key, &self.issuer)?;
        write_private(&dir.join("server.key"), Zeroizing::new(key.serialize_pem()).as_bytes())?;
        write_public(&dir.join("server.pem"), certificate.pem().as_bytes())
    }

    /// Creates a certificate and key, PEM, for the secondary's requests to the primary.
    pub(crate) fn issue_pair(&self, life: std::time::Duration) -> Result<(String, String)> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let mut pair = params(life.try_into()?);
        pair.distinguished_name.push(DnType::CommonName, PAIR);
        pair.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        pair.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        pair.use_authority_key_identifier_extension = true;
        Ok((pair.signed_by(&*key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Parses a signing request and verifies its signature; also returns the agent.
    ///
    /// # Errors
    /// The text is not a PKCS #10 request, or is not signed by its own key.
    pub(crate) fn read_request(pem: &str) -> Result<(CertificateSigningRequestParams, AgentId)> {
        let request = CertificateSigningRequestParams::from_pem(pem)?;
        let agent = AgentId::of_public_key(&request.public_key.subject_public_key_info());
        Ok((request, agent))
    }

    /// Signs an agent's request. Takes only the key from the request; the workspace sets the names.
    pub(crate) fn sign_agent(
        &self,
        mut request: CertificateSigningRequestParams,
        organization: OrganizationId,
        agent: AgentId,
        life: std::time::Duration,
    ) -> Result<String> {
        let mut params = params(life.try_into()?);
        params.distinguished_name.push(DnType::OrganizationName, organization.to_string());
        params.distinguished_name.push(DnType::CommonName, agent.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// Names and addresses in the server's present certificate.
fn served_names(dir: &Path) -> Result<Vec<SanType>> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let path = dir.join("server.pem");
    let pem = fs::read(&path).with_context(|| path.display().to_string())?;
    let der =
        CertificateDer::from_pem_slice(&pem).with_context(|| format!("{} holds no certificate", path.display()))?;
    let (_, certificate) = X509Certificate::from_der(&der).context("the server's certificate cannot be read")?;
    let names = certificate.subject_alternative_name()?.context("the server's certificate has no names")?;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => subject_alt_name(name).ok(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(SanType::IpAddress(IpAddr::from(four))),
            Err(_) => Some(SanType::IpAddress(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?))),
        },
        _ => None,
    };
    Ok(names.value.general_names.iter().filter_map(name).collect())
}

pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o600)
}

fn write_public(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o644)
}

/// Writes a file atomically, by renaming a temporary one.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let part = path.with_added_extension("part");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
