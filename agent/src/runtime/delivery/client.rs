//! The client of the workspace; reloads certificates when they change on disk.

use super::endpoints::{Endpoints, RequestKind};
use crate::{
    config::Resolved,
    exit::Exit,
    identity::{Enrollment, IdentityDir},
    runtime::policy::PolicyStatus,
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use vedette_collectors::{REGISTRY, Spec};
use vedette_platform::{FileFingerprint, file_fingerprint};
use vedette_transport::{
    Answer, RequestError, WorkspaceApi,
    tls::{self, ClientSettings, Proxy, Roots},
};
use vedette_wire::policy::{Directives, ReportedCollectors};

/// Poll interval for changed certificates.
const CERTIFICATE_POLL: Duration = Duration::from_secs(1);
/// Timeout of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Files that the client is built from.
const FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// Fingerprint of each file.
type Fingerprints = [Option<FileFingerprint>; FILES.len()];

/// Proxy and trusted authorities.
type ConnectionOptions = (Option<Proxy>, Roots);

/// Posts with the certificate on disk; keeps the old one while the new one cannot be used.
pub(in crate::runtime) struct WorkspaceClient {
    identity: IdentityDir,
    enrollment: Enrollment,
    options: ConnectionOptions,
    state: Mutex<State>,
    /// A renewed certificate that has not delivered yet; the one on disk stays until then.
    trial: Mutex<Option<Trial>>,
    endpoints: Mutex<Endpoints>,
    /// The effective policy, which names the endpoints.
    policy: Mutex<watch::Receiver<PolicyStatus>>,
    /// A probe of the preferred workspace is under way.
    probing: AtomicBool,
    /// The queue is being purged: nothing is posted.
    closed: AtomicBool,
}

/// A renewed certificate.
#[derive(Clone)]
struct Trial {
    post: WorkspaceApi,
    certificate: String,
}

struct State {
    post: WorkspaceApi,
    fingerprints: Fingerprints,
    checked: Instant,
    /// Unusable files, logged once.
    refused: Fingerprints,
}

impl WorkspaceClient {
    pub(in crate::runtime) fn new(
        identity: &IdentityDir,
        enrollment: &Enrollment,
        config: &Resolved,
        mut policy: watch::Receiver<PolicyStatus>,
    ) -> Result<Self, Exit> {
        policy.mark_changed();
        let options = (config.proxy.clone(), config.roots);
        let fingerprints = fingerprints(identity);
        let post = client(identity, enrollment, options.clone())?;
        let state = Mutex::new(State { post, fingerprints, checked: Instant::now(), refused: fingerprints });
        Ok(Self {
            identity: identity.clone(),
            enrollment: enrollment.clone(),
            options,
            state,
            trial: Mutex::default(),
            endpoints: Mutex::new(Endpoints::new(enrollment, config.fail_over)),
            policy: Mutex::new(policy),
            probing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Suspends or resumes posting.
    pub(in crate::runtime) fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Release);
    }

    /// The endpoints that the policy names.
    pub(in crate::runtime) fn endpoints(&self) -> MutexGuard<'_, Endpoints> {
        let mut endpoints = self.endpoints.lock();
        let mut policy = self.policy.lock();
        // An error means that the agent is stopping.
        if policy.has_changed().unwrap_or(false)
            && let Some(policy) = policy.borrow_and_update().policy.as_deref()
        {
            endpoints.set(&policy.endpoints);
        }
        endpoints
    }

    /// The client of the active endpoint.
    pub(in crate::runtime) fn current(&self) -> WorkspaceApi {
        let url = self.endpoints().in_use().url.clone();
        self.client().at(&url)
    }

    /// The clients of all endpoints.
    pub(in crate::runtime) fn all(&self) -> Vec<WorkspaceApi> {
        let urls = self.endpoints().all().to_vec();
        let client = self.client();
        urls.iter().map(|url| client.at(url)).collect()
    }

    /// Polls the next endpoint for directives.
    pub(in crate::runtime) async fn directives(&self, after: u64, version: &str) -> Result<Directives, RequestError> {
        let (began, url) = (Instant::now(), self.endpoints().next(RequestKind::PolicyPoll, Instant::now()));
        let answer = self.client().at(&url).directives(after, version, &reported_collectors()).await;
        match &answer {
            Ok(_) => self.endpoints().record_success(RequestKind::PolicyPoll, &url, Instant::now()),
            Err(why) => {
                self.endpoints().record_failure(
                    RequestKind::PolicyPoll,
                    &url,
                    &why.to_string(),
                    (began, Instant::now()),
                );
            }
        }
        answer
    }

    /// The present client.
    fn client(&self) -> WorkspaceApi {
        let mut state = self.lock();
        if state.checked.elapsed() >= CERTIFICATE_POLL {
            state.checked = Instant::now();
            let now = fingerprints(&self.identity);
            if now != state.fingerprints {
                match client(&self.identity, &self.enrollment, self.options.clone()) {
                    Ok(post) => {
                        tracing::info!("certificates reloaded");
                        (state.post, state.fingerprints) = (post, now);
                    }
                    // The files may be half written: try again later.
                    Err(why) if state.refused != now => {
                        tracing::warn!(
                            error = why.reasons().join("; "),
                            "new certificates cannot be used; keeping the old ones"
                        );
                        state.refused = now;
                    }
                    Err(_) => {}
                }
            }
        }
        state.post.clone()
    }
}

impl WorkspaceClient {
    /// Delivers the frame of a batch to an endpoint, by fail-over to the other one of a pair.
    pub(in crate::runtime) async fn deliver(&self, frame: Vec<u8>) -> Answer {
        if self.closed.load(Ordering::Acquire) {
            let why = "the queue is being purged by policy".to_owned();
            return Answer::Retry { after: Some(Duration::from_secs(1)), why };
        }
        let mut url = self.endpoints().next(RequestKind::Delivery, Instant::now());
        if self.endpoints().is_probe(&url) {
            match self.probe(&url, frame.clone()).await {
                Some(answer) => return answer,
                None => url = self.endpoints().in_use().url.clone(),
            }
        }
        let copy = self.endpoints().rest_max().map(|_| frame.clone());
        let answer = self.deliver_to(&url, frame).await;
        // Another endpoint became active during this last attempt.
        let now = self.endpoints().in_use().url.clone();
        let failed = matches!(answer, Answer::Retry { .. } | Answer::Misdirected { .. });
        let answer = match copy.filter(|_| now != url && failed) {
            Some(frame) => self.deliver_to(&now, frame).await,
            None => answer,
        };
        limit_retry_after(answer, self.endpoints().rest_max())
    }
}

/// Limits `Retry-After` of one endpoint to the time after which the other is used.
fn limit_retry_after(answer: Answer, most: Option<Duration>) -> Answer {
    match (answer, most) {
        (Answer::Retry { after: Some(after), why }, Some(most)) => Answer::Retry { after: Some(after.min(most)), why },
        (Answer::Misdirected { why }, Some(_)) => Answer::Retry { after: None, why },
        (answer, _) => answer,
    }
}

/// Ends a probe when dropped.
struct Probing<'a>(&'a AtomicBool);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl WorkspaceClient {
    /// Probes the preferred workspace with a batch, one at a time and with a timeout; returns the answer if it accepted the
    /// batch.
    async fn probe(&self, url: &str, frame: Vec<u8>) -> Option<Answer> {
        if self.probing.swap(true, Ordering::AcqRel) {
            return None;
        }
        let _probing = Probing(&self.probing);
        let (began, answer) = (Instant::now(), tokio::time::timeout(PROBE_TIMEOUT, self.deliver_to(url, frame)).await);
        match answer {
            Ok(answer @ Answer::Acknowledged { .. }) => Some(answer),
            Ok(_) => None,
            Err(_) => {
                self.endpoints().record_failure(RequestKind::Delivery, url, "no answer", (began, Instant::now()));
                None
            }
        }
    }

    /// Delivers to an endpoint and records success or failure.
    async fn deliver_to(&self, url: &str, frame: Vec<u8>) -> Answer {
        let began = Instant::now();
        tracing::debug!(url, "delivering");
        let answer = self.post_to(url, frame).await;
        let (now, mut endpoints) = (Instant::now(), self.endpoints());
        match &answer {
            Answer::Retry { why, .. } | Answer::Misdirected { why } => {
                endpoints.record_failure(RequestKind::Delivery, url, why, (began, now));
            }
            Answer::Acknowledged { .. }
            | Answer::Purge
            | Answer::Conflict { .. }
            | Answer::TooLarge { .. }
            | Answer::Rekey { .. } => endpoints.record_success(RequestKind::Delivery, url, now),
            _ => {}
        }
        drop(endpoints);
        answer
    }

    /// Posts to an endpoint, with the renewed certificate if there is one.
    async fn post_to(&self, url: &str, frame: Vec<u8>) -> Answer {
        let current = self.client().at(url);
        let Some(trial) = self.lock_trial().clone() else { return current.put(frame).await };
        let answer = trial.post.at(url).put(frame.clone()).await;
        if matches!(answer, Answer::Acknowledged { .. }) {
            self.promote(&trial);
            return answer;
        }
        // Tells whether the certificate is at fault, or the old one fails as well.
        let answer = current.put(frame).await;
        if matches!(answer, Answer::Acknowledged { .. }) {
            tracing::error!(
                "delivery works with the old certificate but not with the renewed one; discarding the renewed one"
            );
            *self.lock_trial() = None;
        }
        answer
    }

    fn lock_trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.trial.lock()
    }

    /// Uses a renewed certificate, and keeps it once it has delivered.
    pub(in crate::runtime) fn try_certificate(&self, certificate: String) -> Result<(), Exit> {
        let post =
            client_with(&self.identity, certificate.clone().into_bytes(), &self.enrollment, self.options.clone())?;
        *self.lock_trial() = Some(Trial { post, certificate });
        Ok(())
    }

    /// Whether a renewed certificate has not delivered yet.
    pub(in crate::runtime) fn has_trial(&self) -> bool {
        self.lock_trial().is_some()
    }

    /// Keeps a renewed certificate that has delivered.
    fn promote(&self, trial: &Trial) {
        let mut trying = self.lock_trial();
        if trying.as_ref().is_none_or(|now| now.certificate != trial.certificate) {
            return;
        }
        match self.identity.write("cert.pem", trial.certificate.as_bytes()) {
            Ok(()) => {
                tracing::info!("delivery works with the renewed certificate; keeping it");
                let mut state = self.lock();
                (state.post, state.fingerprints) = (trial.post.clone(), fingerprints(&self.identity));
                *trying = None;
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "the renewed certificate cannot be stored; trying again")
            }
        }
    }

    /// With collection off nothing is delivered: tests the renewed certificate with a policy poll.
    pub(in crate::runtime) async fn prove(&self, version: &str) {
        let Some(trial) = self.lock_trial().clone() else { return };
        let url = self.endpoints().in_use().url.clone();
        match trial.post.at(&url).directives(0, version, &reported_collectors()).await {
            Ok(_) => self.promote(&trial),
            Err(why) => tracing::warn!(%why, "the renewed certificate is not accepted yet"),
        }
    }
}

/// All collectors of this agent.
fn reported_collectors() -> ReportedCollectors {
    let has_interval = |spec: &Spec| (spec.defaults)().contains_key("every");
    ReportedCollectors(REGISTRY.iter().map(|spec| (spec.id.to_owned(), has_interval(spec))).collect())
}

fn fingerprints(identity: &IdentityDir) -> Fingerprints {
    FILES.map(|name| file_fingerprint(&identity.path(name)))
}

fn client(identity: &IdentityDir, enrollment: &Enrollment, options: ConnectionOptions) -> Result<WorkspaceApi, Exit> {
    client_with(identity, identity.read("cert.pem")?, enrollment, options)
}

fn client_with(
    identity: &IdentityDir,
    certificate: Vec<u8>,
    enrollment: &Enrollment,
    (proxy, roots): ConnectionOptions,
) -> Result<WorkspaceApi, Exit> {
    let settings = ClientSettings {
        ca_pem: identity.read("ca.pem")?,
        identity_pem: Some((certificate, identity.secret("key.pem")?)),
        geo: Some(enrollment.geo),
        roots,
        proxy,
    };
    Ok(WorkspaceApi::new(tls::client(&settings)?, &enrollment.workspace).through(settings.proxy.as_ref()))
}

#[cfg(test)]
mod tests;
