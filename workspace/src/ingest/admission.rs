//! Shares of organizations: requests per second, memory for bodies, and batches that are checked at once.

use super::{
    BATCH_BYTES_MAX, IngestError, IngestSettings, PLAIN_BYTES_MAX,
    bodies::{Bodies, Reserved},
};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vedette_wire::OrganizationId;

/// Memory for checking and landing a batch: its decompressed bytes, the positions of its records, the body.
const LANDING_BYTES: u64 = 2 * PLAIN_BYTES_MAX as u64;
/// Limits for the number of batches that are checked and landed at once, by the available memory.
const LANDING_AT_ONCE: std::ops::RangeInclusive<u64> = 2..=16;
/// Maximum number of batches of one organization that are checked and landed at once.
const LANDING_OF_ONE: usize = 2;
/// Minimum of memory for bodies in transit.
const BODIES_BYTES_MIN: u64 = 4 * BATCH_BYTES_MAX as u64;

pub(super) struct Admission {
    requests: DefaultKeyedRateLimiter<OrganizationId>,
    bodies: Arc<Bodies>,
    /// Permits for checking and landing: of each organization, and of all.
    of: Mutex<HashMap<OrganizationId, Arc<Semaphore>>>,
    all: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(settings: &IngestSettings) -> Self {
        let at_once = (settings.memory_max / 4 / LANDING_BYTES).clamp(*LANDING_AT_ONCE.start(), *LANDING_AT_ONCE.end());
        Self {
            requests: RateLimiter::keyed(Quota::per_second(settings.batches_per_second)),
            bodies: Bodies::new((settings.memory_max / 8).max(BODIES_BYTES_MIN)),
            of: Mutex::default(),
            all: Arc::new(Semaphore::new(usize::try_from(at_once).expect("it is small"))),
        }
    }

    pub(super) fn check_rate(&self, organization: OrganizationId) -> Result<(), IngestError> {
        self.requests.check_key(&organization).map_err(|_| IngestError::TooManyBatches)
    }

    pub(super) fn reserve(&self, organization: OrganizationId, bytes: u64) -> Result<Reserved, IngestError> {
        self.bodies.reserve(organization, bytes).ok_or(IngestError::TooManyBytes)
    }

    /// Waits for the right to check and land a batch, until the result is dropped. Batches of one organization wait for each
    /// other first, so that they do not wait before others.
    pub(super) async fn turn(&self, organization: OrganizationId) -> [OwnedSemaphorePermit; 2] {
        let own = {
            let mut of = self.of.lock();
            Arc::clone(of.entry(organization).or_insert_with(|| Arc::new(Semaphore::new(LANDING_OF_ONE))))
        };
        let own = own.acquire_owned().await.expect("never closed");
        [own, Arc::clone(&self.all).acquire_owned().await.expect("never closed")]
    }
}
