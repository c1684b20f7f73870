//! Receiving: TLS with client certificates, HTTP/1.1 and 2, and the requests of agents.
//!
//! A batch is acknowledged only when it is durable in the landing store and recorded in the control store.

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
pub(crate) use policy::{PendingDirectives, watch_directives};
pub(crate) use tls::{config as tls_config, serve};

use crate::{ca::Authority, control::Control, health::Health, landing::LandingStore, now};
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
    AgentId, Compression, Epoch, Header, HostLabel, Lane, OrganizationId, geo::WorkspaceGeo, reply::ReceiveLimits,
};

/// Maximum size of a sealed batch.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// Maximum size of an enrollment request; its sender is unknown.
const ENROLLMENT_BYTES_MAX: usize = 64 << 10;
/// Maximum size of an exchange within a pair: revocations, refused starts, policies.
const EXCHANGE_BYTES_MAX: usize = 16 << 20;
/// Maximum size of a decompressed batch. Batches of earlier releases may have up to [`LANDED_PLAIN_BYTES_MAX`].
pub(crate) const PLAIN_BYTES_MAX: usize = 48 << 20;
pub(crate) const LANDED_PLAIN_BYTES_MAX: usize = 128 << 20;
/// Maximum size of a batch as rows of tables; agents split larger ones.
const ROWS_BYTES_MAX: usize = 256 << 20;
/// Memory for checking and landing a batch: its decompressed bytes, the positions of its records, the body.
const LANDING_BYTES: u64 = 2 * PLAIN_BYTES_MAX as u64;
/// Limits for the number of batches that are checked and landed at once, by the available memory.
const LANDING_AT_ONCE: std::ops::RangeInclusive<u64> = 2..=16;
/// Maximum number of batches of one organization that are checked and landed at once.
const LANDING_OF_ONE: usize = 2;
/// Minimum of memory for bodies in transit.
const BODIES_BYTES_MIN: u64 = 4 * BATCH_BYTES_MAX as u64;
/// Maximum number of enrollments per minute and organization.
const ENROLLMENTS_PER_MINUTE: u32 = 600;
/// Maximum number of unknown tokens per minute and address: guessing one is hopeless, and must not be cheap.
const FAILURES_PER_MINUTE: u32 = 30;
/// Number of these to log per minute.
const FAILURES_LOGGED_PER_MINUTE: u32 = 3;
/// Time limit for requests other than batches.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of agents whose origin is remembered, and for how long.
const ORIGINS_MAX: usize = 100_000;
const ORIGIN_LIFE: Duration = Duration::from_secs(120);

/// Maximum number of polls per minute and agent; an agent polls again at once after an answer.
const POLLS_PER_MINUTE: u32 = 120;

/// Whether the client certificate is the other workspace's of the pair.
#[derive(Debug, Clone, Copy)]
struct OfPair(bool);

/// Source address of a connection.
#[derive(Debug, Clone, Copy)]
struct From(IpAddr);

/// Organization and agent of a client certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    pub(crate) organization: OrganizationId,
    pub(crate) agent: AgentId,
}

/// Options of `serve`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Maximum number of batches per second and organization.
    pub(crate) batches_per_second: NonZeroU32,
    /// Maximum size of a sealed batch.
    pub(crate) batch_bytes_max: usize,
    /// Codec to request from agents.
    pub(crate) compression: Option<Compression>,
    /// Validity of agents' certificates.
    pub(crate) certificate_life: Duration,
    /// Memory for the process, bytes.
    pub(crate) memory_max: u64,
}

/// Origin of an accepted batch, and when it was checked.
#[derive(Clone)]
struct Sealed {
    epoch: Epoch,
    host: HostLabel,
    found: Instant,
}

/// State of the handlers.
pub(crate) struct Receiver {
    dir: PathBuf,
    control: Control,
    landing: LandingStore,
    authority: Authority,
    geo: WorkspaceGeo,
    /// Public policy key, hex.
    policy_key: String,
    policies: policy::Policies,
    settings: Settings,
    batches: DefaultKeyedRateLimiter<OrganizationId>,
    /// Rate of polls and renewals, per agent, so that no agent delays others.
    polls: DefaultKeyedRateLimiter<AgentId>,
    enrollments: DefaultKeyedRateLimiter<OrganizationId>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    logged_failures: DefaultKeyedRateLimiter<IpAddr>,
    bodies: Arc<Bodies>,
    /// Permits for checking and landing, by organization.
    landings: Mutex<HashMap<OrganizationId, Arc<Semaphore>>>,
    /// Last accepted origin, by agent and lane.
    origins: Mutex<HashMap<(OrganizationId, AgentId, Lane), Sealed>>,
    at_once: Semaphore,
    health: Arc<Health>,
}

impl Receiver {
    pub(crate) fn new(
        dir: &Path,
        (control, landing): (Control, LandingStore),
        authority: Authority,
        geo: WorkspaceGeo,
        (policy_key, pending): (String, watch::Receiver<PendingDirectives>),
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
            policies: policy::Policies::new(pending),
            settings,
            batches: RateLimiter::keyed(Quota::per_second(settings.batches_per_second)),
            polls: RateLimiter::keyed(per_minute(POLLS_PER_MINUTE)),
            enrollments: RateLimiter::keyed(per_minute(ENROLLMENTS_PER_MINUTE)),
            failures: RateLimiter::keyed(per_minute(FAILURES_PER_MINUTE)),
            logged_failures: RateLimiter::keyed(per_minute(FAILURES_LOGGED_PER_MINUTE)),
            bodies: Bodies::new((settings.memory_max / 8).max(BODIES_BYTES_MIN)),
            landings: Mutex::default(),
            origins: Mutex::default(),
            at_once: Semaphore::new(usize::try_from(at_once).expect("it is small")),
            health,
        }
    }

    /// Refuses too many enrollments with valid tokens of an organization.
    fn check_enroll_rate(&self, organization: OrganizationId) -> Result<(), Refusal> {
        let refused =
            |_| Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many enrollments of this organization");
        self.enrollments.check_key(&organization).map_err(|err| refused(err).retry_after(10))
    }

    /// Refuses an invalid token; an address with many of them has to wait.
    fn token_refused(&self, From(from): From, refusal: Refusal) -> Refusal {
        if self.logged_failures.check_key(&from).is_ok() {
            tracing::warn!(%from, why = refusal.title(), "a token was refused");
        }
        if self.failures.check_key(&from).is_ok() {
            return refusal;
        }
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many unknown tokens from this address").retry_after(10)
    }

    /// Refuses actions that only the primary of a pair may perform.
    async fn require_primary(&self) -> Result<(), Refusal> {
        match self.control.pair_of().await.map_err(|err| Refusal::internal(&err))? {
            None => Ok(()),
            Some(primary) => {
                let title = format!("this workspace is the secondary of a pair; do this at the primary, {primary}");
                Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "pair", title))
            }
        }
    }

    /// Refuses batches that were sealed on another machine than the agent's own.
    async fn reject_clone(&self, header: &Header) -> Result<(), Refusal> {
        let lane = (header.organization, header.agent, header.lane);
        let last = self.origins.lock().unwrap_or_else(PoisonError::into_inner).get(&lane).cloned();
        let same = |last: &Sealed| {
            (last.epoch, &last.host) == (header.epoch, &header.host) && last.found.elapsed() < ORIGIN_LIFE
        };
        if last.as_ref().is_some_and(same) {
            return Ok(());
        }
        let judged = self.control.judge_origin(header, now()).await.map_err(|err| Refusal::internal(&err))?;
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if origins.len() >= ORIGINS_MAX {
            origins.clear();
        }
        if !matches!(judged, Ok(false)) {
            // Something of this agent is refused from now on.
            for lane in [Lane::Records, Lane::Blobs] {
                origins.remove(&(header.organization, header.agent, lane));
            }
        }
        match judged {
            Ok(_) => {
                let (epoch, host, found) = (header.epoch, header.host.clone(), Instant::now());
                origins.insert(lane, Sealed { epoch, host, found });
            }
            Err(why) => {
                tracing::warn!(agent = %header.agent, why, "a batch was refused");
                let refusal = Refusal::new(StatusCode::FORBIDDEN, "clone", why);
                return Err(refusal.detail("the agent re-keys by itself, and then sends its queue"));
            }
        }
        Ok(())
    }

    /// Refuses an agent that polls too often.
    fn check_poll_rate(&self, agent: AgentId) -> Result<(), Refusal> {
        let refused = || Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "this agent polls too often");
        self.polls.check_key(&agent).map_err(|_| refused().retry_after(1))
    }

    /// Permits for an organization's batches, which wait for each other.
    fn landings(&self, organization: OrganizationId) -> Arc<Semaphore> {
        let mut all = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(organization).or_insert_with(|| Arc::new(Semaphore::new(LANDING_OF_ONE))))
    }

    fn limits(&self) -> ReceiveLimits {
        ReceiveLimits {
            batch_bytes_max: self.settings.batch_bytes_max as u64,
            plain_bytes_max: PLAIN_BYTES_MAX as u64,
            compression: self.settings.compression,
        }
    }
}

/// Reads a body as JSON, with limits of size and time.
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

/// Health of the workspace, as text.
async fn livez(State(receiver): State<Arc<Receiver>>) -> (StatusCode, String) {
    let (goes_on, text) = receiver.health.report();
    (if goes_on { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

fn router(receiver: Arc<Receiver>) -> Router {
    Router::new()
        .route("/v1/{lane}/{epoch}/{seq}", put(batch::put))
        .route("/v1/positions", get(positions::first))
        .route("/v1/positions/{collector}/{source}", get(positions::after))
        .route("/v1/policy/{after}", get(policy::next))
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
