//! The way to the workspace, with certificates that are read again when they change on disk.

use super::endpoints::{By, Endpoints};
use crate::{
    config::Resolved,
    exit::Exit,
    identity::{Enrollment, IdentityDir},
};
use std::{
    future::Future,
    os::unix::fs::MetadataExt,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_transport::{
    HttpPost, Outcome, Post,
    tls::{self, ClientSettings, Proxy, Roots},
};
use vedette_wire::policy::Directives;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A workspace that is tried is given so long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client is made of.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// Inode, modification time and size of each.
type Stamps = [Option<(u64, i64, i64, u64)>; FILES.len()];

/// Through which proxy, and by whose certificates.
type Way = (Option<Proxy>, Roots);

/// Posts with the certificate that is on disk; the old one is used on while the new one cannot be.
pub(super) struct Reloading {
    identity: IdentityDir,
    enrollment: Enrollment,
    way: Way,
    state: Mutex<State>,
    /// A renewed certificate that has not delivered yet; the one on disk stays until it has.
    trial: Mutex<Option<Trial>>,
    endpoints: Mutex<Endpoints>,
    /// A batch is out to see whether the preferred workspace works.
    probing: AtomicBool,
    /// What is queued is being purged: nothing is posted.
    closed: AtomicBool,
}

/// A renewed certificate.
#[derive(Clone)]
struct Trial {
    post: HttpPost,
    certificate: String,
}

struct State {
    post: HttpPost,
    stamps: Stamps,
    looked: Instant,
    /// Files that could not be used, said once.
    refused: Stamps,
}

impl Reloading {
    pub(super) fn new(identity: &IdentityDir, enrollment: &Enrollment, config: &Resolved) -> Result<Self, Exit> {
        let way = (config.proxy.clone(), config.roots);
        let stamps = stamps(identity);
        let post = client(identity, enrollment, way.clone())?;
        let state = Mutex::new(State { post, stamps, looked: Instant::now(), refused: stamps });
        Ok(Self {
            identity: identity.clone(),
            enrollment: enrollment.clone(),
            way,
            state,
            trial: Mutex::default(),
            endpoints: Mutex::new(Endpoints::new(enrollment, config.fail_over)),
            probing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Post nothing until it is opened again.
    pub(super) fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Release);
    }

    /// The endpoints.
    pub(super) fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Towards the endpoint in use.
    pub(super) fn current(&self) -> HttpPost {
        let url = self.endpoints().in_use().url.clone();
        self.client().at(&url)
    }

    /// Towards each endpoint.
    pub(super) fn all(&self) -> Vec<HttpPost> {
        let urls = self.endpoints().all().to_vec();
        let client = self.client();
        urls.iter().map(|url| client.at(url)).collect()
    }

    /// Ask the workspace that is next in turn for what it has for this agent.
    pub(super) async fn directives(&self, behind: u64, version: &str) -> Result<Directives, String> {
        let (began, url) = (Instant::now(), self.endpoints().next(By::Question, Instant::now()));
        let answer = self.client().at(&url).directives(behind, version).await;
        match &answer {
            Ok(_) => self.endpoints().works(By::Question, &url, Instant::now()),
            Err(why) => drop(self.endpoints().fails(By::Question, &url, why, (began, Instant::now()))),
        }
        answer
    }

    /// The client of now.
    fn client(&self) -> HttpPost {
        let mut state = self.lock();
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let now = stamps(&self.identity);
            if now != state.stamps {
                match client(&self.identity, &self.enrollment, self.way.clone()) {
                    Ok(post) => {
                        tracing::info!("certificates were read again");
                        (state.post, state.stamps) = (post, now);
                    }
                    // Half of it may be written: it is looked at again.
                    Err(why) if state.refused != now => {
                        tracing::warn!(?why, "new certificates cannot be used; the old ones stay");
                        state.refused = now;
                    }
                    Err(_) => {}
                }
            }
        }
        state.post.clone()
    }
}

impl Post for Reloading {
    fn post(&self, frame: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        if self.closed.load(Ordering::Acquire) {
            let why = "policy has what is queued purged".to_owned();
            return Box::pin(async { Outcome::Retry { after: Some(Duration::from_secs(1)), why } });
        }
        Box::pin(async move {
            let mut url = self.endpoints().next(By::Delivery, Instant::now());
            if self.endpoints().is_probe(&url) {
                match self.probe(&url, frame.clone()).await {
                    Some(outcome) => return outcome,
                    None => url = self.endpoints().in_use().url.clone(),
                }
            }
            let copy = self.endpoints().rest_max().map(|_| frame.clone());
            let outcome = self.deliver(&url, frame).await;
            // Another is in use: this was the last attempt at the one before.
            let now = self.endpoints().in_use().url.clone();
            let failed = matches!(outcome, Outcome::Retry { .. } | Outcome::Misdirected { .. });
            let outcome = match copy.filter(|_| now != url && failed) {
                Some(frame) => self.deliver(&now, frame).await,
                None => outcome,
            };
            rested(outcome, self.endpoints().rest_max())
        })
    }
}

/// What one workspace asks for does not keep batches from the other for longer than it takes until that is used.
fn rested(outcome: Outcome, most: Option<Duration>) -> Outcome {
    match (outcome, most) {
        (Outcome::Retry { after: Some(after), why }, Some(most)) => {
            Outcome::Retry { after: Some(after.min(most)), why }
        }
        (Outcome::Misdirected { why }, Some(_)) => Outcome::Retry { after: None, why },
        (outcome, _) => outcome,
    }
}

/// Ends a probe, however it ends.
struct Probing<'a>(&'a AtomicBool);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Reloading {
    /// Try the preferred workspace with a batch, one at a time and not for long; what came of it where it took the batch.
    async fn probe(&self, url: &str, frame: Vec<u8>) -> Option<Outcome> {
        if self.probing.swap(true, Ordering::AcqRel) {
            return None;
        }
        let _probing = Probing(&self.probing);
        let (began, answer) = (Instant::now(), tokio::time::timeout(PROBE_TIMEOUT, self.deliver(url, frame)).await);
        match answer {
            Ok(outcome @ Outcome::Done { .. }) => Some(outcome),
            Ok(_) => None,
            Err(_) => {
                self.endpoints().fails(By::Delivery, url, "it does not answer", (began, Instant::now()));
                None
            }
        }
    }

    /// Deliver to one workspace, and note what that says of it.
    async fn deliver(&self, url: &str, frame: Vec<u8>) -> Outcome {
        let began = Instant::now();
        let outcome = self.post_to(url, frame).await;
        let (now, mut endpoints) = (Instant::now(), self.endpoints());
        match &outcome {
            Outcome::Retry { why, .. } | Outcome::Misdirected { why } => {
                endpoints.fails(By::Delivery, url, why, (began, now));
            }
            Outcome::Done { .. }
            | Outcome::Purge
            | Outcome::Conflict { .. }
            | Outcome::TooLarge { .. }
            | Outcome::Rekey { .. } => endpoints.works(By::Delivery, url, now),
            _ => {}
        }
        drop(endpoints);
        outcome
    }

    /// Post to one workspace, with the renewed certificate where there is one.
    async fn post_to(&self, url: &str, frame: Vec<u8>) -> Outcome {
        let current = self.client().at(url);
        let Some(trial) = self.lock_trial().clone() else { return current.post(frame).await };
        let outcome = trial.post.at(url).post(frame.clone()).await;
        if matches!(outcome, Outcome::Done { .. }) {
            self.promote(&trial);
            return outcome;
        }
        // Is it the certificate, or would the old one fare no better?
        let outcome = current.post(frame).await;
        if matches!(outcome, Outcome::Done { .. }) {
            tracing::error!("the renewed certificate does not deliver and the old one does; it is given up");
            *self.lock_trial() = None;
        }
        outcome
    }

    fn lock_trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deliver with a renewed certificate, and keep it once it has delivered.
    pub(super) fn try_certificate(&self, certificate: String) -> Result<(), Exit> {
        let post = client_with(&self.identity, certificate.clone().into_bytes(), &self.enrollment, self.way.clone())?;
        *self.lock_trial() = Some(Trial { post, certificate });
        Ok(())
    }

    /// Whether a renewed certificate has yet to deliver.
    pub(super) fn is_trying(&self) -> bool {
        self.lock_trial().is_some()
    }

    /// Keep a renewed certificate: it has delivered.
    fn promote(&self, trial: &Trial) {
        let mut trying = self.lock_trial();
        if trying.as_ref().is_none_or(|now| now.certificate != trial.certificate) {
            return;
        }
        match self.identity.write("cert.pem", trial.certificate.as_bytes()) {
            Ok(()) => {
                tracing::info!("the renewed certificate has delivered and is kept");
                let mut state = self.lock();
                (state.post, state.stamps) = (trial.post.clone(), stamps(&self.identity));
                *trying = None;
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "the renewed certificate cannot be kept; tried again")
            }
        }
    }

    /// Where nothing is delivered, collection being off: have the renewed certificate ask for the policy, which counts.
    pub(super) async fn prove(&self, version: &str) {
        let Some(trial) = self.lock_trial().clone() else { return };
        let url = self.endpoints().in_use().url.clone();
        match trial.post.at(&url).directives(0, version).await {
            Ok(_) => self.promote(&trial),
            Err(why) => tracing::warn!(why, "the renewed certificate is not taken yet"),
        }
    }
}

fn stamps(identity: &IdentityDir) -> Stamps {
    FILES.map(|name| {
        let meta = std::fs::metadata(identity.path(name)).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    })
}

fn client(identity: &IdentityDir, enrollment: &Enrollment, way: Way) -> Result<HttpPost, Exit> {
    client_with(identity, identity.read("cert.pem")?, enrollment, way)
}

fn client_with(
    identity: &IdentityDir,
    certificate: Vec<u8>,
    enrollment: &Enrollment,
    (proxy, roots): Way,
) -> Result<HttpPost, Exit> {
    let settings = ClientSettings {
        ca_pem: identity.read("ca.pem")?,
        identity_pem: Some((certificate, identity.secret("key.pem")?)),
        geo: Some(enrollment.geo),
        roots,
        proxy,
    };
    Ok(HttpPost::new(tls::client(&settings)?, &enrollment.workspace).through(settings.proxy.as_ref()))
}

#[cfg(test)]
mod tests;
