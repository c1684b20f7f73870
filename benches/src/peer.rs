//! A simulated agent: sends good and bad requests, and opens idle connections.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use std::{fs, net::TcpStream, path::Path, sync::Arc, time::Duration};
use vedette_transport::tls::{self, ClientSettings};
use vedette_wire::{
    Compression, Epoch, Header, LaneName, Position, SourceRef,
    body::{Body, Syslog},
    codec, frame,
    geo::WorkspaceGeo,
    record::HostLabel,
};

/// An agent without a process: its certificate and its requests.
#[derive(Debug)]
pub struct Peer {
    /// HTTP client.
    pub client: reqwest::Client,
    /// URL of the workspace.
    pub url: String,
    /// Header of its batches, before a test changes it.
    pub header: Header,
}

/// HTTP client with an agent's identity directory, for a workspace of this geography.
pub fn client(identity: &Path, geo: WorkspaceGeo) -> reqwest::Client {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let read = |name: &str| fs::read(identity.join(name)).expect("is there after enrollment");
    let (ca_pem, identity) = (read("ca.pem"), (read("cert.pem"), read("key.pem").into()));
    let settings = ClientSettings { ca_pem, identity_pem: Some(identity), geo: Some(geo), ..ClientSettings::default() };
    tls::client(&settings).expect("builds")
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// HTTP version.
    pub http: reqwest::Version,
    /// Header `Retry-After`.
    pub retry_after: Option<String>,
    /// Body as JSON.
    pub body: Value,
}

impl Answer {
    /// Status and code of a refusal.
    pub fn code(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or(""))
    }
}

impl Peer {
    /// The agent with an identity directory, at a workspace.
    pub fn at(identity: &Path, url: String) -> Self {
        let enrollment = identity.join("enrollment.json");
        let enrollment = fs::read(enrollment).expect("is there after enrollment");
        let enrollment: Value = serde_json::from_slice(&enrollment).expect("JSON");
        let id = |key: &str| enrollment[key].as_str().expect("an id").to_owned();
        let header = Header {
            epoch: Epoch(7),
            seq: 1,
            sealed: 1_795_404_079_000_000_000,
            policy_revision: 1,
            agent_version: "0.1.0".to_owned(),
            host: HostLabel { hostname: "peer".to_owned(), ..HostLabel::default() },
            sources: vec![SourceRef {
                collector: "syslog".into(),
                id: "f".into(),
                name: None,
                reached: 1,
                dropped: Vec::new(),
            }],
            records: 1,
            lowest_held: 1,
            ..Header::new(
                id("organization").parse().expect("an organization"),
                id("agent").parse().expect("an agent"),
                LaneName::Records,
                WorkspaceGeo::Europe,
            )
        };
        Self { client: client(identity, WorkspaceGeo::Europe), url, header }
    }

    /// A sealed batch of one line, with a changed header.
    pub fn sealed(&self, text: &str, change: impl FnOnce(&mut Header)) -> Vec<u8> {
        self.sealed_with(Syslog { raw: text.as_bytes().to_vec(), ..Syslog::default() }.into(), change)
    }

    /// A sealed batch of one body, with a changed header.
    pub fn sealed_with(&self, of: Body, change: impl FnOnce(&mut Header)) -> Vec<u8> {
        let (mut records, mut body) = (Vec::new(), Vec::new());
        codec::append_body(&of, &mut body);
        codec::append_record(0, 1, Position(0, 1), &body, &mut records);
        let mut header = self.header.clone();
        change(&mut header);
        vedette_wire::seal::seal(&header, &records, Compression::Zstd).expect("seals")
    }

    /// Status and body of an answer to an agent of this build.
    pub async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let request = self.client.get(format!("{}/v1/{path}", self.url)).header("user-agent", "vedette/0.1.0");
        let response = request.send().await.expect("is answered");
        (response.status().as_u16(), response.bytes().await.expect("a body").to_vec())
    }

    /// Status and answer to a JSON request.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}/v1/{path}", self.url)).json(body);
        let response = request.send().await.expect("is answered");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Sends a batch.
    pub async fn put(&self, path: &str, sealed: Vec<u8>) -> Answer {
        let digest = BASE64_STANDARD.encode(frame::sha256(&sealed));
        self.put_with(path, sealed, &digest).await
    }

    /// Sends a batch with a digest.
    pub async fn put_with(&self, path: &str, sealed: Vec<u8>, digest: &str) -> Answer {
        let request = self
            .client
            .put(format!("{}/v1/{path}", self.url))
            .header("content-encoding", "zstd")
            .header("content-digest", format!("sha-256=:{digest}:"))
            .body(sealed);
        let response = request.send().await.expect("is answered");
        Answer {
            status: response.status().as_u16(),
            http: response.version(),
            retry_after: response.headers().get("retry-after").map(|value| value.to_str().expect("ASCII").to_owned()),
            body: response.json().await.expect("JSON"),
        }
    }

    /// A sealed batch of `count` lines, each with content `line` and `apart` positions after the previous one.
    pub fn lines(&self, seq: u64, count: u64, line: &str, apart: u64, change: impl FnOnce(&mut Header)) -> Vec<u8> {
        let (mut records, mut body) = (Vec::new(), Vec::new());
        codec::append_body(&Syslog { raw: line.as_bytes().to_vec(), ..Syslog::default() }.into(), &mut body);
        for number in 0..count {
            codec::append_record(0, 1, Position(number * apart, number * apart + 1), &body, &mut records);
        }
        let mut header = self.header.clone();
        header.seq = seq;
        header.records = u32::try_from(count).expect("it is small");
        change(&mut header);
        vedette_wire::seal::seal(&header, &records, Compression::Zstd).expect("seals")
    }
}

/// A TLS connection.
pub type Silent = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// A TLS connection without a certificate, after its handshake.
///
/// # Errors
/// No connection.
pub fn silent(ca: &[u8], address: &str) -> std::io::Result<Silent> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate.expect("PEM")).expect("a root");
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    client.complete_io(&mut socket)?;
    Ok(rustls::StreamOwned::new(client, socket))
}
