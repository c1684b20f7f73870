//! Receive: TLS with client certificates, HTTP/1.1 and 2, and the requests that agents make.
//!
//! A batch is acknowledged only when it lies durably in the landing store and is noted in control.

mod batch;
mod bodies;
mod connections;
mod enroll;
mod pair;
mod policy;
mod positions;
mod problem;
mod tls;

pub(crate) use connections::raise_file_limit;
pub(crate) use policy::{News, follow_news};
pub(crate) use tls::{config as tls_config, serve};

use crate::{ca::Authority, control::Control, health::Health, landing::Landing, now};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::StatusCode,
    routing::{get, post, put},
};
use bodies::Bodies;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use problem::Refusal;
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use vedette_wire::{
    AgentId, Compression, Epoch, Header, HostLabel, Lane, OrganizationId, geo::WorkspaceGeo, reply::Limits,
};

/// Largest sealed batch.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// Largest enrollment request; whoever sends it is not known yet.
const ENROLLMENT_BYTES_MAX: usize = 64 << 10;
/// Largest list of revocations.
const EXCHANGE_BYTES_MAX: usize = 16 << 20;
/// Largest batch when decompressed. One that landed under an earlier release may have [`LANDED_PLAIN_BYTES_MAX`].
pub(crate) const PLAIN_BYTES_MAX: usize = 48 << 20;
pub(crate) const LANDED_PLAIN_BYTES_MAX: usize = 128 << 20;
/// Largest batch as rows of a table; the agent splits a larger one.
const ROWS_BYTES_MAX: usize = 256 << 20;
/// Memory that checking and landing a batch may take: its plain bytes, the positions of its records, what was sent.
const LANDING_BYTES: u64 = 2 * PLAIN_BYTES_MAX as u64;
/// Batches that are being checked and landed at the same time, by the memory there is.
const LANDING_AT_ONCE: std::ops::RangeInclusive<u64> = 2..=16;
/// Batches of one organization that are being checked and landed at the same time.
const LANDING_OF_ONE: usize = 2;
/// Memory for bodies that are on their way, by the memory there is.
const BODIES_BYTES_MIN: u64 = 4 * BATCH_BYTES_MAX as u64;
/// Enrollments a minute with tokens of one organization.
const ENROLLMENTS_PER_MINUTE: u32 = 600;
/// Tokens that are not known, a minute, from one address: guessing one is hopeless and shall not be cheap either.
const FAILURES_PER_MINUTE: u32 = 30;
/// Of these, so many a minute are logged.
const FAILURES_LOGGED_PER_MINUTE: u32 = 3;
/// A request other than a batch has to come whole within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Agents of which it is remembered where they seal, and for how long.
const OWN_MAX: usize = 100_000;
const OWN_FOR: Duration = Duration::from_secs(120);

/// Questions of one agent a minute; one that is told at once asks again at once.
const QUESTIONS_PER_MINUTE: u32 = 120;

/// Whether the client certificate is of the other workspace of the pair.
#[derive(Debug, Clone, Copy)]
struct OfPair(bool);

/// The address that a connection comes from.
#[derive(Debug, Clone, Copy)]
struct From(IpAddr);

/// Whom a client certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) organization: OrganizationId,
    pub(crate) agent: AgentId,
}

/// What `serve` is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Batches that one organization may send in a second.
    pub(crate) batches_per_second: NonZeroU32,
    /// Largest sealed batch.
    pub(crate) batch_bytes_max: usize,
    /// What agents are asked to compress with.
    pub(crate) compression: Option<Compression>,
    /// Life of an agent's certificate.
    pub(crate) certificate_life: Duration,
    /// Memory that the process may take, bytes.
    pub(crate) memory_max: u64,
}

/// Where a batch was sealed that was found to be its agent's own, and when it was found.
#[derive(Clone)]
struct Sealed {
    epoch: Epoch,
    host: HostLabel,
    found: Instant,
}

/// What the handlers share.
pub(crate) struct Receiver {
    dir: PathBuf,
    control: Control,
    landing: Landing,
    authority: Authority,
    geo: WorkspaceGeo,
    /// What policies are verified with, hex.
    policy_key: String,
    policies: policy::Policies,
    settings: Settings,
    batches: DefaultKeyedRateLimiter<OrganizationId>,
    /// Questions for the policy, and renewals: of each agent, so that none stands before others.
    questions: DefaultKeyedRateLimiter<AgentId>,
    enrollments: DefaultKeyedRateLimiter<OrganizationId>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    logged_failures: DefaultKeyedRateLimiter<IpAddr>,
    bodies: Arc<Bodies>,
    /// Batches of each organization that are checked and landed.
    landings: Mutex<HashMap<OrganizationId, Arc<Semaphore>>>,
    /// Of each agent's lane, the last.
    own: Mutex<HashMap<(OrganizationId, AgentId, Lane), Sealed>>,
    at_once: Semaphore,
    health: Arc<Health>,
}

impl Receiver {
    pub(crate) fn new(
        dir: &Path,
        (control, landing): (Control, Landing),
        authority: Authority,
        geo: WorkspaceGeo,
        (policy_key, news): (String, watch::Receiver<News>),
        settings: Settings,
        health: Arc<Health>,
    ) -> Self {
        let per_minute = |count| Quota::per_minute(NonZeroU32::new(count).expect("not zero"));
        let at_once = (settings.memory_max / 4 / LANDING_BYTES).clamp(*LANDING_AT_ONCE.start(), *LANDING_AT_ONCE.end());
        Self {
            dir: dir.to_owned(),
            control,
            landing,
            authority,
            geo,
            policy_key,
            policies: policy::Policies::new(news),
            settings,
            batches: RateLimiter::keyed(Quota::per_second(settings.batches_per_second)),
            questions: RateLimiter::keyed(per_minute(QUESTIONS_PER_MINUTE)),
            enrollments: RateLimiter::keyed(per_minute(ENROLLMENTS_PER_MINUTE)),
            failures: RateLimiter::keyed(per_minute(FAILURES_PER_MINUTE)),
            logged_failures: RateLimiter::keyed(per_minute(FAILURES_LOGGED_PER_MINUTE)),
            bodies: Bodies::new((settings.memory_max / 8).max(BODIES_BYTES_MIN)),
            landings: Mutex::default(),
            own: Mutex::default(),
            at_once: Semaphore::new(usize::try_from(at_once).expect("it is small")),
            health,
        }
    }

    /// Refuse where too many enroll with good tokens of an organization.
    fn check_enroll_rate(&self, organization: OrganizationId) -> Result<(), Refusal> {
        let refused =
            |_| Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many enrollments of this organization");
        self.enrollments.check_key(&organization).map_err(|err| refused(err).retry_after(10))
    }

    /// A token that is not good: the refusal, or where its address sends many of them, that it has to wait.
    fn token_refused(&self, From(from): From, refusal: Refusal) -> Refusal {
        if self.logged_failures.check_key(&from).is_ok() {
            tracing::warn!(%from, why = refusal.title(), "a token was refused");
        }
        if self.failures.check_key(&from).is_ok() {
            return refusal;
        }
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many tokens that are not known came from this address")
            .retry_after(10)
    }

    /// Refuse what the first workspace of a pair does alone.
    async fn is_first(&self) -> Result<(), Refusal> {
        match self.control.pair_of().await.map_err(|err| Refusal::internal(&err))? {
            None => Ok(()),
            Some(first) => {
                let title = format!("this workspace is the second of a pair; do this at the first, {first}");
                Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "pair", title))
            }
        }
    }

    /// Refuse what was sealed on another machine than the agent's own.
    async fn is_its_own(&self, header: &Header) -> Result<(), Refusal> {
        let lane = (header.organization, header.agent, header.lane);
        let last = self.own.lock().unwrap_or_else(PoisonError::into_inner).get(&lane).cloned();
        let same =
            |last: &Sealed| (last.epoch, &last.host) == (header.epoch, &header.host) && last.found.elapsed() < OWN_FOR;
        if last.as_ref().is_some_and(same) {
            return Ok(());
        }
        let judged = self.control.is_its_own(header, now()).await.map_err(|err| Refusal::internal(&err))?;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.len() >= OWN_MAX {
            own.clear();
        }
        if !matches!(judged, Ok(false)) {
            // Something of this agent is refused from now on.
            for lane in [Lane::Records, Lane::Blobs] {
                own.remove(&(header.organization, header.agent, lane));
            }
        }
        match judged {
            Ok(_) => {
                let (epoch, host, found) = (header.epoch, header.host.clone(), Instant::now());
                own.insert(lane, Sealed { epoch, host, found });
            }
            Err(why) => {
                tracing::warn!(agent = %header.agent, why, "a batch was refused");
                let refusal = Refusal::new(StatusCode::FORBIDDEN, "clone", why);
                return Err(refusal.detail("the agent makes another key by itself, and sends what it holds under that"));
            }
        }
        Ok(())
    }

    /// Refuse an agent that asks too often.
    fn asks(&self, agent: AgentId) -> Result<(), Refusal> {
        let refused = || Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "this agent asks too often");
        self.questions.check_key(&agent).map_err(|_| refused().retry_after(1))
    }

    /// Places of an organization's batches that are checked and landed: it waits for one of its own.
    fn landings(&self, organization: OrganizationId) -> Arc<Semaphore> {
        let mut all = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(organization).or_insert_with(|| Arc::new(Semaphore::new(LANDING_OF_ONE))))
    }

    fn limits(&self) -> Limits {
        Limits {
            batch_bytes_max: self.settings.batch_bytes_max as u64,
            plain_bytes_max: PLAIN_BYTES_MAX as u64,
            compression: self.settings.compression,
        }
    }
}

/// The body of a request as JSON, within limits of size and time.
async fn read_json<T: DeserializeOwned>(body: Body, bytes_max: usize) -> Result<T, Refusal> {
    let bytes = match tokio::time::timeout(REQUEST_TIMEOUT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let title = format!("the request ended too early, or has more than {bytes_max} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "size", title));
        }
        Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body", "the request took too long")),
    };
    serde_json::from_slice(&bytes).map_err(|err| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "shape", format!("the request cannot be decoded: {err}"))
    })
}

/// Whether the workspace goes on, as text.
async fn livez(State(receiver): State<Arc<Receiver>>) -> (StatusCode, String) {
    let (goes_on, text) = receiver.health.report();
    (if goes_on { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

fn router(receiver: Arc<Receiver>) -> Router {
    Router::new()
        .route("/v1/{lane}/{epoch}/{seq}", put(batch::put))
        .route("/v1/positions", get(positions::first))
        .route("/v1/positions/{collector}/{source}", get(positions::behind))
        .route("/v1/policy/{behind}", get(policy::next))
        .route("/v1/policy", post(policy::brought))
        .route("/v1/enroll", post(enroll::enroll))
        .route("/v1/renew", post(enroll::renew))
        .route("/v1/rekey", post(enroll::rekey))
        .route("/v1/pair/join", post(pair::join))
        .route("/v1/pair", post(pair::exchange))
        .route("/livez", get(livez))
        .fallback(problem::not_found)
        .with_state(receiver)
}
