//! The way to the workspace, with certificates that are read again when they change on disk.

use crate::{
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
    tls::{self, ClientSettings, Proxy},
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a client is made of.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// Inode, modification time and size of each.
type Stamps = [Option<(u64, i64, i64, u64)>; FILES.len()];

/// Posts with the certificate that is on disk; the old one is used on while the new one cannot be.
pub(super) struct Reloading {
    identity: IdentityDir,
    enrollment: Enrollment,
    proxy: Option<Proxy>,
    state: Mutex<State>,
    /// A renewed certificate that has not delivered yet; the one on disk stays until it has.
    trial: Mutex<Option<Trial>>,
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
    pub(super) fn new(identity: &IdentityDir, enrollment: &Enrollment, proxy: Option<Proxy>) -> Result<Self, Exit> {
        let stamps = stamps(identity);
        let post = client(identity, enrollment, proxy.clone())?;
        let state = Mutex::new(State { post, stamps, looked: Instant::now(), refused: stamps });
        Ok(Self {
            identity: identity.clone(),
            enrollment: enrollment.clone(),
            proxy,
            state,
            trial: Mutex::default(),
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

    /// The client of now.
    pub(super) fn current(&self) -> HttpPost {
        let mut state = self.lock();
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let now = stamps(&self.identity);
            if now != state.stamps {
                match client(&self.identity, &self.enrollment, self.proxy.clone()) {
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
        let current = self.current();
        let Some(trial) = self.lock_trial().clone() else {
            return Box::pin(async move { current.post(frame).await });
        };
        Box::pin(async move {
            let outcome = trial.post.post(frame.clone()).await;
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
        })
    }
}

impl Reloading {
    fn lock_trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deliver with a renewed certificate, and keep it once it has delivered.
    pub(super) fn try_certificate(&self, certificate: String) -> Result<(), Exit> {
        let post = client_with(&self.identity, certificate.clone().into_bytes(), &self.enrollment, self.proxy.clone())?;
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
        match trial.post.directives(0, version).await {
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

fn client(identity: &IdentityDir, enrollment: &Enrollment, proxy: Option<Proxy>) -> Result<HttpPost, Exit> {
    client_with(identity, identity.read("cert.pem")?, enrollment, proxy)
}

fn client_with(
    identity: &IdentityDir,
    certificate: Vec<u8>,
    enrollment: &Enrollment,
    proxy: Option<Proxy>,
) -> Result<HttpPost, Exit> {
    let client = tls::client(&ClientSettings {
        ca_pem: identity.read("ca.pem")?,
        identity_pem: Some((certificate, identity.read("key.pem")?)),
        geo: Some(enrollment.geo),
        proxy,
    })?;
    Ok(HttpPost::new(client, &enrollment.workspace))
}
