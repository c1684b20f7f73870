//! The secondary of a pair: created with the primary's keys (`init --pair-with`), and synchronised with it while it serves.
//! Both are in one geography, and batches land under the same keys in either.

use crate::{
    clock::now,
    keys::{self, Authority, Signer},
    store::{ControlStore, Refused, Revocation, Shared},
};
use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use vedette_wire::{Problem, geo::WorkspaceGeo, policy::SignedPolicy};

/// Interval of synchronisation.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Timeout of a request to the primary.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Validity of the secondary's client certificate; it is replaced after half of that.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(86_400);

/// `POST /v1/pair/join`.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    /// Token that `vedette-workspace token pair` printed.
    pub(crate) token: String,
    pub(crate) geo: WorkspaceGeo,
}

/// What a secondary is created from: keys, PEM, and the shared state.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinReply {
    ca: String,
    ca_key: String,
    policy_key: String,
    geo: WorkspaceGeo,
    shared: Shared,
}

/// `POST /v1/pair`, every two seconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Exchange {
    /// SHA-256 of the last answer that the secondary took over, hex. The same state is answered with 204.
    #[serde(rename = "have")]
    pub(crate) state_digest: String,
    /// Revocations at the secondary.
    pub(crate) revoked: Vec<Revocation>,
    /// Starts that the secondary refuses; the primary makes their machines other agents.
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
    /// Policies that the primary lost in a restore from a backup.
    #[serde(default)]
    pub(crate) policies: Vec<SignedPolicy>,
}

/// Keys for the secondary.
pub(crate) async fn join_reply(dir: &Path, control: &ControlStore) -> Result<JoinReply> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(JoinReply {
        ca: read("ca.pem")?,
        ca_key: read("ca.key")?,
        policy_key: read("policy.key")?,
        geo: control.geo().await?,
        shared: control.shared(now()).await?,
    })
}

/// The shared state in encoded form, and its digest.
pub(crate) async fn answer(control: &ControlStore) -> Result<(Vec<u8>, String)> {
    let body = serde_json::to_vec(&control.shared(now()).await?)?;
    let digest = hex::encode(Sha256::digest(&body));
    Ok((body, digest))
}

/// Where the primary is.
#[derive(Debug, Clone)]
pub(crate) enum Primary {
    /// Directory on this machine.
    Dir(PathBuf),
    /// URL, CA, and a file with a token of `token pair`.
    Url { url: String, ca: PathBuf, token: PathBuf },
}

/// Takes the primary's keys and organizations over into an empty directory.
pub(crate) async fn join(dir: &Path, geo: WorkspaceGeo, names: &[String], primary: &Primary) -> Result<()> {
    // Checked before a token is used.
    keys::check_names(names)?;
    let (reply, at) = match primary {
        Primary::Dir(primary) => {
            let primary = std::path::absolute(primary)?;
            let control = ControlStore::open(&primary).await?;
            control.require_primary().await?;
            // Creates the policy key of a workspace of a release without policies.
            control.signer(&primary).await?;
            (join_reply(&primary, &control).await?, primary.display().to_string())
        }
        Primary::Url { url, ca, token } => {
            let url = url.trim_end_matches('/');
            let ca = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
            let token = std::fs::read_to_string(token).with_context(|| format!("cannot read {}", token.display()))?;
            let client = client(&ca, None)?;
            let request = JoinRequest { token: token.trim().to_owned(), geo };
            let answered = post(&client, &format!("{url}/v1/pair/join"), &request).await?;
            let answered = answered.with_context(|| format!("{url} sent no answer"))?;
            (
                serde_json::from_slice(&answered).with_context(|| format!("{url} answered, but is not a workspace"))?,
                url.to_owned(),
            )
        }
    };
    if reply.geo != geo {
        bail!(
            "--geo {geo}: the workspace at {at} is in {}; both workspaces of a pair must be in the same geography",
            reply.geo
        );
    }
    keys::take_over(dir, (&reply.ca, &reply.ca_key), geo, names)?;
    keys::write_private(&dir.join("policy.key"), reply.policy_key.as_bytes())?;
    Signer::load(dir)?;
    let control = ControlStore::create(dir, geo).await?;
    control.set_primary(Some(&at)).await?;
    control.take_over(&reply.shared).await?;
    control.close().await;
    Ok(())
}

/// Whether the primary exists: any answer, or a served directory.
pub(crate) async fn answers(dir: &Path, primary: &str) -> Result<bool> {
    if primary.starts_with("https://") {
        let client = client(&std::fs::read(dir.join("ca.pem"))?, None)?;
        let request = client.get(format!("{primary}/livez")).timeout(ASK_EVERY * 2).send();
        return Ok(request.await.is_ok());
    }
    let lock = match std::fs::File::open(Path::new(primary).join("serve.lock")) {
        Ok(lock) => lock,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(err).with_context(|| format!("cannot tell whether {primary} is served")),
    };
    Ok(matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Synchronises a secondary with its primary until a stop, or until it stands alone.
pub(crate) async fn follow(dir: PathBuf, control: ControlStore, mut stop: watch::Receiver<bool>) {
    let (mut follower, mut failed) = (
        Follower {
            dir,
            control,
            state_digest: String::new(),
            sent: Default::default(),
            lost_policies: Vec::new(),
            local_primary: None,
            client: None,
        },
        false,
    );
    loop {
        let done = follower.step().await;
        match &done {
            Ok(false) => return,
            Ok(true) if failed => tracing::info!("synchronising with the primary workspace again"),
            Err(err) if !failed => {
                let error = format!("{err:#}");
                tracing::warn!(error, "cannot synchronise with the primary workspace; using the last shared state");
            }
            Ok(true) | Err(_) => {}
        }
        failed = done.is_err();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

struct Follower {
    dir: PathBuf,
    control: ControlStore,
    state_digest: String,
    /// Revocations and refusals that the primary has.
    sent: (Vec<Revocation>, Vec<Refused>),
    /// Policies that the primary has lost.
    lost_policies: Vec<SignedPolicy>,
    /// Control store of a primary on this machine, with its inode.
    local_primary: Option<(u64, ControlStore)>,
    /// Client, with its time of creation.
    client: Option<(reqwest::Client, Instant)>,
}

impl Follower {
    /// Synchronises once; false if this workspace is not a secondary any more.
    async fn step(&mut self) -> Result<bool> {
        let Some(primary) = self.control.primary().await? else { return Ok(false) };
        let present = (self.control.revocations().await?, self.control.refused_boots().await?);
        let (revoked, refused) = if present == self.sent { Default::default() } else { present.clone() };
        let lost_policies = self.lost_policies.clone();
        let body = if primary.starts_with("https://") {
            self.exchange(&primary, (revoked, refused), lost_policies).await?
        } else {
            // A restore from a backup replaces the file.
            let dir = Path::new(&primary);
            let file = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join("control.sqlite"))?);
            let primary = match self.local_primary.take().filter(|(opened, _)| *opened == file) {
                Some(primary) => self.local_primary.insert(primary),
                None => self.local_primary.insert((file, ControlStore::open(dir).await?)),
            };
            let primary = &primary.1;
            primary.accept_revocations(&revoked, now()).await?;
            primary.accept_policies(&Signer::load(&self.dir)?, &lost_policies, now()).await?;
            primary.accept_refused_boots(&refused, now()).await?;
            let (body, digest) = answer(primary).await?;
            (digest != self.state_digest).then_some(body)
        };
        self.sent = present;
        if let Some(body) = body {
            let shared: Shared = serde_json::from_slice(&body)?;
            let (lost_policies, lost) = self.control.lost_by_primary(&shared, &self.sent.0).await?;
            if lost || !lost_policies.is_empty() {
                tracing::error!("the primary workspace lost policies or revocations; sending them");
                self.sent = Default::default();
            }
            self.lost_policies = lost_policies;
            self.control.take_over(&shared).await?;
            self.state_digest = hex::encode(Sha256::digest(&body));
        }
        Ok(true)
    }

    async fn exchange(
        &mut self,
        primary: &str,
        (revoked, refused): (Vec<Revocation>, Vec<Refused>),
        policies: Vec<SignedPolicy>,
    ) -> Result<Option<Vec<u8>>> {
        let client = match &self.client {
            Some((client, made)) if made.elapsed() < CERTIFICATE_LIFE / 2 => client.clone(),
            _ => {
                let ca = std::fs::read(self.dir.join("ca.pem"))?;
                let identity = Authority::load(&self.dir)?.issue_pair(CERTIFICATE_LIFE)?;
                let client = client(&ca, Some(identity))?;
                self.client = Some((client.clone(), Instant::now()));
                client
            }
        };
        post(
            &client,
            &format!("{primary}/v1/pair"),
            &Exchange { state_digest: self.state_digest.clone(), revoked, refused, policies },
        )
        .await
    }
}

/// A client that trusts one authority, with an optional certificate and key, PEM.
fn client(ca: &[u8], identity: Option<(String, String)>) -> Result<reqwest::Client> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate?)?;
    }
    let provider = CryptoProvider::get_default().expect("main installs it").clone();
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
    };
    let client = reqwest::Client::builder().tls_backend_preconfigured(config).https_only(true).timeout(TIMEOUT);
    Ok(client.redirect(reqwest::redirect::Policy::none()).no_proxy().build()?)
}

/// Sends a request; absent if there is nothing new.
async fn post(client: &reqwest::Client, url: &str, request: &impl Serialize) -> Result<Option<Vec<u8>>> {
    let response = client.post(url).json(request).send().await;
    let response = response.with_context(|| format!("cannot reach {url}"))?;
    match response.status().as_u16() {
        200 => Ok(Some(response.bytes().await?.to_vec())),
        204 => Ok(None),
        status => {
            let problem: Option<Problem> = response.json().await.ok();
            bail!("{url} answered {status}: {}", problem.map_or_else(String::new, |problem| problem.title))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workspaces of earlier releases read this name.
    #[test]
    fn the_digest_keeps_its_name_between_workspaces() {
        let (revoked, refused, policies) = (Vec::new(), Vec::new(), Vec::new());
        let exchange = Exchange { state_digest: "d1".to_owned(), revoked, refused, policies };
        assert_eq!(serde_json::to_value(exchange).expect("serializes")["have"], "d1");
    }
}
