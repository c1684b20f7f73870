//! The API of a workspace for agents, over HTTPS.

mod answer;

use crate::tls::{Proxy, root_cause};
pub use answer::Answer;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use vedette_wire::{
    Problem, ProblemCode, frame,
    policy::{COLLECTORS_HEADER, Directives, ReportedCollectors, SignedPolicy},
    reply::{Ack, EnrollReply, Positions, RekeyRequest, RenewReply, RenewRequest},
};

/// A workspace, reached with the agent's certificate.
#[derive(Debug, Clone)]
pub struct WorkspaceApi {
    client: reqwest::Client,
    /// Base URL without a trailing slash.
    base: String,
    /// Host and port of the proxy, if one is used.
    proxy: Option<Arc<str>>,
}

/// Maximum size of a reply body.
const REPLY_BYTES_MAX: usize = 64 << 10;

/// Maximum size of a policy with artifact requests.
const DIRECTIVES_BYTES_MAX: usize = 4 << 20;

/// Maximum size of a page of positions. The workspace ends a page at 1 MiB, unless it has a single source.
const POSITIONS_BYTES_MAX: usize = 8 << 20;

/// Why a request to the workspace failed, for status and log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no connection, or it ended.
    #[error("{0}")]
    Connection(String),
    /// The workspace refuses.
    #[error("the workspace answered {status}: {title}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Title of the problem details, if there are any.
        title: String,
    },
    /// The answer exceeds a limit.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The answer is not what the protocol says.
    #[error("the answer cannot be decoded: {0}")]
    Decode(String),
}

/// Reads the body of an answer up to a limit, since the workspace may be broken or hostile.
///
/// # Errors
/// [`RequestError::Connection`] and [`RequestError::TooLarge`].
pub async fn bounded(response: &mut reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, RequestError> {
    let mut body = Vec::new();
    let connection = |err: reqwest::Error| RequestError::Connection(root_cause(&err));
    while let Some(chunk) = response.chunk().await.map_err(connection)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(RequestError::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Many times the size of a certificate chain and a policy.
const JSON_BYTES_MAX: usize = 1 << 20;

async fn json<T: DeserializeOwned>(response: &mut reqwest::Response, bytes_max: usize) -> Result<T, RequestError> {
    let body = bounded(response, bytes_max).await?;
    serde_json::from_slice(&body).map_err(|err| RequestError::Decode(err.to_string()))
}

/// The problem in an answer, as an error.
async fn refused(mut response: reqwest::Response) -> RequestError {
    let problem: Option<Problem> = json(&mut response, JSON_BYTES_MAX).await.ok();
    let title = problem.map_or_else(|| "without an explanation".to_owned(), |problem| problem.title);
    RequestError::Refused { status: response.status().as_u16(), title }
}

impl WorkspaceApi {
    /// Posts to a workspace at `https://host:port` with a client from [`crate::tls::client`].
    pub fn new(client: reqwest::Client, workspace: &str) -> Self {
        Self { client, base: workspace.trim_end_matches('/').to_owned(), proxy: None }
    }

    /// Names the client's proxy in connection errors.
    pub fn through(self, proxy: Option<&Proxy>) -> Self {
        let named = proxy.filter(|proxy| proxy.no_proxy.is_empty()).and_then(Proxy::authority);
        Self { proxy: named.map(Arc::from), ..self }
    }

    /// The same client for another workspace.
    pub fn at(&self, workspace: &str) -> Self {
        Self { proxy: self.proxy.clone(), ..Self::new(self.client.clone(), workspace) }
    }

    fn why(&self, error: &reqwest::Error) -> String {
        match &self.proxy {
            Some(proxy) if error.is_connect() => format!("through the proxy {proxy}: {}", root_cause(error)),
            _ => root_cause(error),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, RequestError> {
        request.send().await.map_err(|err| RequestError::Connection(self.why(&err)))
    }

    /// Fetches a page of this agent's positions, after a (collector, source id). Absent if the workspace's release lacks the
    /// endpoint.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn positions(&self, after: Option<(&str, &str)>) -> Result<Option<Positions>, RequestError> {
        let url = format!("{}/v1/positions", self.base);
        let mut url = reqwest::Url::parse(&url).map_err(|err| RequestError::Connection(err.to_string()))?;
        if let (Some((collector, source)), Ok(mut path)) = (after, url.path_segments_mut()) {
            path.extend([collector, source]);
        }
        let mut response = self.send(self.client.get(url)).await?;
        if matches!(response.status().as_u16(), 404 | 405) {
            return Ok(None);
        }
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let body = bounded(&mut response, POSITIONS_BYTES_MAX).await?;
        rmp_serde::from_slice(&body).map(Some).map_err(|err| RequestError::Decode(err.to_string()))
    }

    /// Polls for directives: a policy with a revision above `after`, and artifact requests. The workspace holds the poll until
    /// it has some, or answers with none. The poll reports the agent's version and its collectors.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn directives(
        &self,
        after: u64,
        version: &str,
        collectors: &ReportedCollectors,
    ) -> Result<Directives, RequestError> {
        let request = self.client.get(format!("{}/v1/policy/{after}", self.base));
        let request = request.header("user-agent", format!("vedette/{version}"));
        let mut response = self.send(request.header(COLLECTORS_HEADER, collectors.to_string())).await?;
        match response.status().as_u16() {
            200 => json(&mut response, DIRECTIVES_BYTES_MAX).await,
            204 => Ok(Directives::default()),
            _ => Err(refused(response).await),
        }
    }

    /// Sends the policy in force to a workspace that lacks it; false if the workspace has it.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn upload_policy(&self, signed: &SignedPolicy) -> Result<bool, RequestError> {
        let response = self.send(self.client.post(format!("{}/v1/policy", self.base)).json(signed)).await?;
        match response.status().as_u16() {
            201 => Ok(true),
            200..=299 => Ok(false),
            _ => Err(refused(response).await),
        }
    }

    /// Renews the certificate for the same key.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn renew(&self, csr: String) -> Result<String, RequestError> {
        let request = self.client.post(format!("{}/v1/renew", self.base)).json(&RenewRequest { csr });
        let mut response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let reply: RenewReply = json(&mut response, JSON_BYTES_MAX).await?;
        Ok(reply.certificate)
    }

    /// Becomes another agent, since the key is in use on another machine. Absent if the workspace has not demanded it of this
    /// machine.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn rekey(&self, request: &RekeyRequest) -> Result<Option<EnrollReply>, RequestError> {
        let mut response = self.send(self.client.post(format!("{}/v1/rekey", self.base)).json(request)).await?;
        let status = response.status();
        if status.is_success() {
            return json(&mut response, JSON_BYTES_MAX).await.map(Some);
        }
        match json::<Problem>(&mut response, JSON_BYTES_MAX).await {
            Ok(problem) if problem.code == ProblemCode::RekeyNotDemanded => Ok(None),
            problem => {
                let title = problem.map_or_else(|_| "without an explanation".to_owned(), |problem| problem.title);
                Err(RequestError::Refused { status: status.as_u16(), title })
            }
        }
    }

    /// Posts the frame of a batch: `PUT /v1/{lane}/{epoch}/{seq}`.
    pub async fn put(&self, bytes: Vec<u8>) -> Answer {
        let (head, sealed_bytes) = match frame::parse_head(&bytes) {
            Ok((head, length)) => (head, length),
            Err(err) => return Answer::Damaged { why: err.to_string() },
        };
        let sealed = Bytes::from(bytes).split_off(frame::HEAD_BYTES);
        let damaged = || Answer::Damaged { why: "a batch was damaged on disk".to_owned() };
        if sealed.len() != sealed_bytes {
            return damaged();
        }
        let url = format!("{}/v1/{}/{}/{}", self.base, head.key.lane, head.key.epoch, head.key.seq);
        let sent = self
            .client
            .put(url)
            .header("content-type", "application/vnd.vedette.batch")
            .header("content-encoding", head.compression.name())
            // RFC 9530.
            .header("content-digest", format!("sha-256=:{}:", BASE64_STANDARD.encode(head.digest)))
            .body(sealed.clone())
            .send()
            .await;
        match sent {
            Ok(response) => match judge(response).await {
                // The workspace verifies each body; only a reported mismatch is verified here.
                Answer::Quarantine { code, .. }
                    if code == ProblemCode::Digest && frame::sha256(&sealed) != head.digest =>
                {
                    damaged()
                }
                Answer::Quarantine { code: ProblemCode::Digest, why } => Answer::Retry { after: None, why },
                answer => answer,
            },
            Err(err) => Answer::Retry { after: None, why: self.why(&err) },
        }
    }
}

async fn judge(mut response: reqwest::Response) -> Answer {
    let status = response.status();
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| parse_retry_after(value.to_str().ok()?, SystemTime::now()));
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= REPLY_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) | Ok(None) => break,
            Err(err) => return Answer::Retry { after: None, why: root_cause(&err) },
        }
    }
    if !status.is_success() {
        return answer::of_status(status.as_u16(), serde_json::from_slice::<Problem>(&body).ok(), retry_after);
    }
    match serde_json::from_slice::<Ack>(&body) {
        Ok(ack) => Answer::Acknowledged {
            duplicate: ack.duplicate,
            policy_revision: ack.policy_revision,
            compression: ack.limits.compression,
            lost: ack.lost,
        },
        // A server that is not a workspace answered 200: the batch may not have landed.
        Err(err) => Answer::Retry { after: None, why: format!("{status} with an unexpected body: {err}") },
    }
}

/// Parses `Retry-After` (RFC 9110 §10.2.3): seconds, or an HTTP date.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    match value.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers one request with a status and a problem code.
    async fn answered(status: u16, code: &str, frame: Vec<u8>) -> Answer {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("is bound"));
        let client = reqwest::Client::builder().no_proxy().build().expect("builds");
        let body = format!("{{\"status\":{status},\"code\":\"{code}\",\"title\":\"t\"}}");
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let (mut seen, mut block) = (Vec::new(), [0; 4096]);
            while !seen.ends_with(b"sealed") {
                let got = socket.read(&mut block).await.expect("reads");
                seen.extend_from_slice(&block[..got]);
            }
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await.expect("writes");
        });
        let outcome = WorkspaceApi::new(client, &base).put(frame).await;
        server.await.expect("answers");
        outcome
    }

    #[tokio::test]
    async fn what_the_workspace_finds_to_be_another_is_looked_at() {
        let key = vedette_wire::BatchKey {
            organization: crate::queue::tests_support::context().organization,
            agent: vedette_wire::AgentId([7; 16]),
            lane: vedette_wire::LaneName::Records,
            epoch: vedette_wire::Epoch(1),
            seq: 1,
        };
        let frame = |digest| {
            let compression = vedette_wire::Compression::Zstd;
            frame::build(&frame::FrameHead { key, compression, sealed: 1, records: 1, digest }, b"sealed")
        };
        let (whole, damaged) = (frame(frame::sha256(b"sealed")), frame(frame::sha256(b"other")));
        let came = answered(422, "digest", damaged.clone()).await;
        assert!(matches!(came, Answer::Damaged { .. }), "of the disk: {came:?}");
        let came = answered(422, "digest", whole).await;
        assert!(matches!(came, Answer::Retry { .. }), "on the way: {came:?}");
        let came = answered(422, "shape", damaged).await;
        assert!(matches!(came, Answer::Quarantine { .. }), "{came:?}");
        let short = WorkspaceApi::new(reqwest::Client::new(), "http://127.0.0.1:1").put(vec![0; 3]).await;
        assert!(matches!(short, Answer::Damaged { .. }), "nothing is sent of it: {short:?}");
    }

    /// Answers every request with an endless body.
    async fn endless() -> WorkspaceApi {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("is bound"));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    drop(socket.read(&mut [0; 4096]).await);
                    drop(socket.write_all(b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n").await);
                    while socket.write_all(&[b' '; 64 << 10]).await.is_ok() {}
                });
            }
        });
        WorkspaceApi::new(reqwest::Client::builder().no_proxy().build().expect("builds"), &base)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_without_end_is_given_up_at_each_endpoint() {
        let post = endless().await;
        let (csr, text) = (String::new(), String::new());
        let rekey = RekeyRequest { csr, hostname: text.clone(), machine: text.clone(), version: text };
        for refused in [
            post.renew(String::new()).await.expect_err("renew"),
            post.rekey(&rekey).await.expect_err("rekey"),
            post.positions(None).await.expect_err("positions"),
            post.directives(1, "1", &ReportedCollectors::default()).await.expect_err("policy"),
        ] {
            assert!(matches!(refused, RequestError::TooLarge(_)), "{refused}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(parse_retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:39 GMT", now), Some(Duration::from_secs(2)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:30 GMT", now), None);
        assert_eq!(parse_retry_after("soon", now), None);
    }
}
