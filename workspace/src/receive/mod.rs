//! Receive: TLS with client certificates, HTTP/1.1 and 2, and the requests that agents make.
//!
//! A batch is acknowledged only when it lies durably in the landing store and is noted in control.

mod batch;
mod enroll;
mod pair;
mod policy;
mod positions;
mod problem;
mod tls;

pub(crate) use policy::{News, follow_news};
pub(crate) use tls::{config as tls_config, serve};

use crate::{ca::Authority, control::Control, landing::Landing, now};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    routing::{get, post, put},
};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use vedette_wire::{
    AgentId, Compression, Epoch, Header, HostLabel, Lane, OrganizationId, geo::WorkspaceGeo, reply::Limits,
};

/// Largest sealed batch.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// Largest enrollment request; whoever sends it is not known yet.
const ENROLLMENT_BYTES_MAX: usize = 64 << 10;
/// Largest list of revocations.
const EXCHANGE_BYTES_MAX: usize = 16 << 20;
/// Largest batch when decompressed.
pub(crate) const PLAIN_BYTES_MAX: usize = 128 << 20;
/// Batches that are being checked and landed at the same time: a bound on memory.
const LANDING_AT_ONCE: usize = 16;
/// Bodies of one organization that are read at the same time: its slow ones stand before its own alone.
const READING_AT_ONCE: usize = 64;
/// Enrollments a minute, over all tokens: guessing a token is hopeless and shall not be cheap either.
const ENROLLMENTS_PER_MINUTE: u32 = 600;

/// Agents of which it is remembered where they seal, and for how long.
const OWN_MAX: usize = 100_000;
const OWN_FOR: Duration = Duration::from_secs(120);

/// Questions of one agent a minute; one that is told at once asks again at once.
const QUESTIONS_PER_MINUTE: u32 = 120;

/// Whether the client certificate is of the other workspace of the pair.
#[derive(Debug, Clone, Copy)]
struct OfPair(bool);

/// Whom a client certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    enrollments: governor::DefaultDirectRateLimiter,
    reading: Mutex<HashMap<OrganizationId, Arc<Semaphore>>>,
    /// Of each agent's lane, the last.
    own: Mutex<HashMap<(OrganizationId, AgentId, Lane), Sealed>>,
    at_once: Semaphore,
}

impl Receiver {
    pub(crate) fn new(
        dir: &Path,
        (control, landing): (Control, Landing),
        authority: Authority,
        geo: WorkspaceGeo,
        (policy_key, news): (String, watch::Receiver<News>),
        settings: Settings,
    ) -> Self {
        let enrollments = NonZeroU32::new(ENROLLMENTS_PER_MINUTE).expect("not zero");
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
            questions: RateLimiter::keyed(Quota::per_minute(NonZeroU32::new(QUESTIONS_PER_MINUTE).expect("not zero"))),
            enrollments: RateLimiter::direct(Quota::per_minute(enrollments)),
            reading: Mutex::default(),
            own: Mutex::default(),
            at_once: Semaphore::new(LANDING_AT_ONCE),
        }
    }

    /// Refuse where too many enroll.
    fn enrolls(&self) -> Result<(), problem::Refusal> {
        let refused = |_| problem::Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many enrollments");
        self.enrollments.check().map_err(|err| refused(err).retry_after(10))
    }

    /// Refuse what the first workspace of a pair does alone.
    async fn is_first(&self) -> Result<(), problem::Refusal> {
        match self.control.pair_of().await.map_err(|err| problem::Refusal::internal(&err))? {
            None => Ok(()),
            Some(first) => {
                let title = format!("this workspace is the second of a pair; do this at the first, {first}");
                Err(problem::Refusal::new(StatusCode::MISDIRECTED_REQUEST, "pair", title))
            }
        }
    }

    /// Refuse what was sealed on another machine than the agent's own.
    async fn is_its_own(&self, header: &Header) -> Result<(), problem::Refusal> {
        let lane = (header.organization, header.agent, header.lane);
        let last = self.own.lock().unwrap_or_else(PoisonError::into_inner).get(&lane).cloned();
        let same =
            |last: &Sealed| (last.epoch, &last.host) == (header.epoch, &header.host) && last.found.elapsed() < OWN_FOR;
        if last.as_ref().is_some_and(same) {
            return Ok(());
        }
        let judged = self.control.is_its_own(header, now()).await.map_err(|err| problem::Refusal::internal(&err))?;
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
                let refusal = problem::Refusal::new(StatusCode::FORBIDDEN, "clone", why);
                return Err(refusal.detail("the agent makes another key by itself, and sends what it holds under that"));
            }
        }
        Ok(())
    }

    /// Refuse an agent that asks too often.
    fn asks(&self, agent: AgentId) -> Result<(), problem::Refusal> {
        let refused = || problem::Refusal::new(StatusCode::TOO_MANY_REQUESTS, "rate", "this agent asks too often");
        self.questions.check_key(&agent).map_err(|_| refused().retry_after(1))
    }

    /// A place to read a body of this organization; it waits for one of its own.
    async fn reading(&self, organization: OrganizationId) -> OwnedSemaphorePermit {
        let places = {
            let mut all = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(organization).or_insert_with(|| Arc::new(Semaphore::new(READING_AT_ONCE))))
        };
        places.acquire_owned().await.expect("never closed")
    }

    fn limits(&self) -> Limits {
        Limits {
            batch_bytes_max: self.settings.batch_bytes_max as u64,
            plain_bytes_max: PLAIN_BYTES_MAX as u64,
            compression: self.settings.compression,
        }
    }
}

fn router(receiver: Arc<Receiver>) -> Router {
    Router::new()
        .route("/v1/{lane}/{epoch}/{seq}", put(batch::put))
        .route("/v1/positions", get(positions::first))
        .route("/v1/positions/{collector}/{source}", get(positions::behind))
        .route("/v1/policy/{behind}", get(policy::next))
        .route("/v1/enroll", post(enroll::enroll).layer(DefaultBodyLimit::max(ENROLLMENT_BYTES_MAX)))
        .route("/v1/renew", post(enroll::renew).layer(DefaultBodyLimit::max(ENROLLMENT_BYTES_MAX)))
        .route("/v1/rekey", post(enroll::rekey).layer(DefaultBodyLimit::max(ENROLLMENT_BYTES_MAX)))
        .route("/v1/pair/join", post(pair::join).layer(DefaultBodyLimit::max(ENROLLMENT_BYTES_MAX)))
        .route("/v1/pair", post(pair::exchange).layer(DefaultBodyLimit::max(EXCHANGE_BYTES_MAX)))
        .route("/livez", get(|| async { "ok\n" }))
        .fallback(problem::not_found)
        .with_state(receiver)
}
