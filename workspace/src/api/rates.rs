//! Rate limits of requests other than batches, so that no peer delays others.

use super::error::ApiError;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::{net::IpAddr, num::NonZeroU32};
use vedette_wire::{AgentId, OrganizationId};

/// Maximum number of polls and renewals per minute and agent; an agent polls again at once after an answer.
const POLLS_PER_MINUTE: u32 = 120;
/// Maximum number of enrollments per minute and organization.
const ENROLLMENTS_PER_MINUTE: u32 = 600;
/// Maximum number of refused tokens per minute and address: guessing one is hopeless, and must not be cheap.
const FAILURES_PER_MINUTE: u32 = 30;
/// Number of these to log per minute.
const FAILURES_LOGGED_PER_MINUTE: u32 = 3;

/// Rate limits of polls, enrollments and refused tokens.
pub(crate) struct RateLimits {
    polls: DefaultKeyedRateLimiter<AgentId>,
    enrollments: DefaultKeyedRateLimiter<OrganizationId>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    logged_failures: DefaultKeyedRateLimiter<IpAddr>,
}

impl Default for RateLimits {
    fn default() -> Self {
        let per_minute = |count| Quota::per_minute(NonZeroU32::new(count).expect("not zero"));
        Self {
            polls: RateLimiter::keyed(per_minute(POLLS_PER_MINUTE)),
            enrollments: RateLimiter::keyed(per_minute(ENROLLMENTS_PER_MINUTE)),
            failures: RateLimiter::keyed(per_minute(FAILURES_PER_MINUTE)),
            logged_failures: RateLimiter::keyed(per_minute(FAILURES_LOGGED_PER_MINUTE)),
        }
    }
}

impl RateLimits {
    /// Refuses an agent that polls too often.
    pub(super) fn check_poll(&self, agent: AgentId) -> Result<(), ApiError> {
        self.polls.check_key(&agent).map_err(|_| ApiError::rate("this agent polls too often", 1))
    }

    /// Refuses too many enrollments with valid tokens of an organization.
    pub(super) fn check_enrollment(&self, organization: OrganizationId) -> Result<(), ApiError> {
        let refused = |_| ApiError::rate("too many enrollments of this organization", 10);
        self.enrollments.check_key(&organization).map_err(refused)
    }

    /// The answer to a refused token; an address with many of them has to wait.
    pub(super) fn token_refused(&self, from: IpAddr, error: ApiError) -> ApiError {
        if self.logged_failures.check_key(&from).is_ok() {
            tracing::warn!(%from, why = error.title(), "a token was refused");
        }
        match self.failures.check_key(&from) {
            Ok(()) => error,
            Err(_) => ApiError::rate("too many unknown tokens from this address", 10),
        }
    }
}
