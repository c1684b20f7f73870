//! The second workspace of a pair: made with the keys of the first (`init --pair-with`), and kept in step with it while it
//! serves. Both stand in one geography, and what agents send lands under the same keys in either.

use crate::{
    ca::{self, Authority},
    control::{Control, Refused, Revocation, Shared},
    now,
    signer::Signer,
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
use vedette_wire::{geo::WorkspaceGeo, policy::SignedPolicy, reply::Problem};

/// How often the second asks the first.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Life of the certificate that the second asks with; it makes another when half of it is over.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(86_400);

/// `POST /v1/pair/join`.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    /// As `vedette-workspace token pair` printed it.
    pub(crate) token: String,
    pub(crate) geo: WorkspaceGeo,
}

/// What the second is made of: keys, PEM, and what is shared.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinReply {
    ca: String,
    ca_key: String,
    policy_key: String,
    geo: WorkspaceGeo,
    shared: Shared,
}

/// `POST /v1/pair`, each other second.
#[derive(Serialize, Deserialize)]
pub(crate) struct Exchange {
    /// What the second has: SHA-256 of the answer that it took over last, hex. The same again is answered 204.
    pub(crate) have: String,
    /// What was revoked at the second.
    pub(crate) revoked: Vec<Revocation>,
    /// Starts of machines that the second takes nothing of: the first makes other agents of them.
    #[serde(default)]
    pub(crate) refused: Vec<Refused>,
    /// Policies that the first has lost: it was restored from a backup.
    #[serde(default)]
    pub(crate) policies: Vec<SignedPolicy>,
}

/// What the second of a pair is given.
pub(crate) async fn keys(dir: &Path, control: &Control) -> Result<JoinReply> {
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

/// What is shared as it is told, and its digest.
pub(crate) async fn answer(control: &Control) -> Result<(Vec<u8>, String)> {
    let body = serde_json::to_vec(&control.shared(now()).await?)?;
    let digest = hex::encode(Sha256::digest(&body));
    Ok((body, digest))
}

/// The first workspace of a pair, as the second is told of it.
#[derive(Debug, Clone)]
pub(crate) enum First {
    /// Its directory, on this machine.
    Dir(PathBuf),
    /// Its address, its CA, and a file with a token of `token pair`.
    Url { url: String, ca: PathBuf, token: PathBuf },
}

/// Take keys and organizations of the first over into an empty directory.
pub(crate) async fn join(dir: &Path, geo: WorkspaceGeo, names: &[String], first: &First) -> Result<()> {
    // Before a token is used up.
    ca::check_names(names)?;
    let (reply, at) = match first {
        First::Dir(of) => {
            let of = std::path::absolute(of)?;
            let control = Control::open(&of).await?;
            control.must_be_first().await?;
            // The key of a workspace of a release without policies is made now.
            crate::commands::signer(&of, &control).await?;
            (keys(&of, &control).await?, of.display().to_string())
        }
        First::Url { url, ca, token } => {
            let url = url.trim_end_matches('/');
            let ca = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
            let token = std::fs::read_to_string(token).with_context(|| format!("cannot read {}", token.display()))?;
            let client = client(&ca, None)?;
            let request = JoinRequest { token: token.trim().to_owned(), geo };
            let answered = post(&client, &format!("{url}/v1/pair/join"), &request).await?;
            let answered = answered.with_context(|| format!("{url} said nothing"))?;
            (serde_json::from_slice(&answered).context("it answered, but not as a workspace")?, url.to_owned())
        }
    };
    if reply.geo != geo {
        bail!("--geo {geo}: the workspace at {at} is in {}; a pair stands in one geography", reply.geo);
    }
    ca::take_over(dir, (&reply.ca, &reply.ca_key), geo, names)?;
    ca::write_private(&dir.join("policy.key"), reply.policy_key.as_bytes())?;
    Signer::load(dir)?;
    let control = Control::create(dir, geo).await?;
    control.set_pair_of(Some(&at)).await?;
    control.take_over(&reply.shared).await?;
    control.close().await;
    Ok(())
}

/// Whether the first workspace of the pair is there: whatever it answers, or while its directory is served.
pub(crate) async fn answers(dir: &Path, first: &str) -> Result<bool> {
    if first.starts_with("https://") {
        let client = client(&std::fs::read(dir.join("ca.pem"))?, None)?;
        let asked = client.get(format!("{first}/livez")).timeout(ASK_EVERY * 2).send();
        return Ok(asked.await.is_ok());
    }
    let lock = match std::fs::File::open(Path::new(first).join("serve.lock")) {
        Ok(lock) => lock,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(err).with_context(|| format!("cannot look whether {first} is served")),
    };
    Ok(matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Keep a second workspace in step with the first until told to stop, or until it stands alone.
pub(crate) async fn follow(dir: PathBuf, control: Control, mut stop: watch::Receiver<bool>) {
    let (mut follower, mut failed) = (
        Follower {
            dir,
            control,
            have: String::new(),
            told: Default::default(),
            ahead: Vec::new(),
            beside: None,
            client: None,
        },
        false,
    );
    loop {
        let done = follower.step().await;
        match &done {
            Ok(false) => return,
            Ok(true) if failed => tracing::info!("the first workspace of the pair answers again"),
            Err(err) if !failed => {
                let error = format!("{err:#}");
                tracing::warn!(error, "the first workspace of the pair cannot be asked; this one goes by what it has");
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
    control: Control,
    have: String,
    /// What the first was told of revocations and refusals, which it keeps.
    told: (Vec<Revocation>, Vec<Refused>),
    /// Policies that the first does not know any more.
    ahead: Vec<SignedPolicy>,
    /// The first's control store, and its inode, where it is on this machine.
    beside: Option<(u64, Control)>,
    /// And when it was made.
    client: Option<(reqwest::Client, Instant)>,
}

impl Follower {
    /// Ask once; false where this workspace is the pair of none any more.
    async fn step(&mut self) -> Result<bool> {
        let Some(first) = self.control.pair_of().await? else { return Ok(false) };
        let news = (self.control.revocations().await?, self.control.refused_starts().await?);
        let (revoked, refused) = if news == self.told { Default::default() } else { news.clone() };
        let ahead = self.ahead.clone();
        let body = if first.starts_with("https://") {
            self.exchange(&first, (revoked, refused), ahead).await?
        } else {
            // Another file where it was put back from a backup.
            let dir = Path::new(&first);
            let file = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join("control.sqlite"))?);
            let first = match self.beside.take().filter(|(opened, _)| *opened == file) {
                Some(first) => self.beside.insert(first),
                None => self.beside.insert((file, Control::open(dir).await?)),
            };
            let first = &first.1;
            first.note_revocations(&revoked, now()).await?;
            first.note_policies(&Signer::load(&self.dir)?, &ahead, now()).await?;
            first.note_refused(&refused, now()).await?;
            let (body, digest) = answer(first).await?;
            (digest != self.have).then_some(body)
        };
        self.told = news;
        if let Some(body) = body {
            let shared: Shared = serde_json::from_slice(&body)?;
            let (ahead, lost) = self.control.ahead_of(&shared, &self.told.0).await?;
            if lost || !ahead.is_empty() {
                tracing::error!("the first workspace of the pair lost policies or revocations; it is given them");
                self.told = Default::default();
            }
            self.ahead = ahead;
            self.control.take_over(&shared).await?;
            self.have = hex::encode(Sha256::digest(&body));
        }
        Ok(true)
    }

    async fn exchange(
        &mut self,
        first: &str,
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
        post(&client, &format!("{first}/v1/pair"), &Exchange { have: self.have.clone(), revoked, refused, policies })
            .await
    }
}

/// A client that trusts one authority, and shows a certificate and its key, PEM, where there is one.
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

/// The answer; absent where there is nothing new.
async fn post(client: &reqwest::Client, url: &str, request: &impl Serialize) -> Result<Option<Vec<u8>>> {
    let response = client.post(url).json(request).send().await;
    let response = response.with_context(|| format!("{url} cannot be asked"))?;
    match response.status().as_u16() {
        200 => Ok(Some(response.bytes().await?.to_vec())),
        204 => Ok(None),
        status => {
            let problem: Option<Problem> = response.json().await.ok();
            bail!("{url} answered {status}: {}", problem.map_or_else(String::new, |problem| problem.title))
        }
    }
}
