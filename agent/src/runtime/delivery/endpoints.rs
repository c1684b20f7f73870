//! Choice of the endpoint within a pair. The first endpoint is preferred. The agent fails over when the active endpoint has
//! accepted nothing for a while, and probes the preferred one with single batches. It fails back when the preferred endpoint
//! has accepted all probes for a longer while. TLS ensures that all endpoints are in the workspace's geography.

use crate::{identity::Enrollment, now};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Longest interval between probes of the preferred endpoint.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// Kind of request that tells whether an endpoint works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A batch.
    Delivery,
    /// A policy poll, which does not tell whether batches land.
    PolicyPoll,
}

/// The endpoint in use, for status and heartbeat.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct InUse {
    pub(crate) url: String,
    /// Start of its use, nanoseconds UTC.
    pub(crate) since: i64,
    pub(crate) why: String,
}

/// The endpoints of this agent.
#[derive(Debug)]
pub(in crate::runtime) struct Endpoints {
    enrolled: String,
    urls: Vec<String>,
    active: usize,
    in_use: InUse,
    fail_over_after: Duration,
    fail_back_after: Duration,
    /// Start of the active endpoint's failures, by kind of request.
    fails: [Option<Instant>; 2],
    /// Last batch that the active endpoint accepted.
    delivered: Option<Instant>,
    /// Start of the active endpoint's use.
    used: Option<Instant>,
    /// The endpoint changed for another reason than a batch: the sender may be resting.
    wake: bool,
    /// Start of the preferred endpoint's success, while another is active.
    preferred_healthy_since: Option<Instant>,
    /// Last probe, by kind of request.
    probed: [Option<Instant>; 2],
}

impl Endpoints {
    /// The endpoint of the enrollment alone.
    pub(super) fn new(enrollment: &Enrollment, (fail_over_after, fail_back_after): (Duration, Duration)) -> Self {
        let url = enrollment.workspace.clone();
        Self {
            enrolled: url.clone(),
            urls: vec![url.clone()],
            active: 0,
            in_use: InUse { url, since: now(), why: "preferred".to_owned() },
            fail_over_after,
            fail_back_after,
            fails: [None; 2],
            delivered: None,
            used: None,
            wake: false,
            preferred_healthy_since: None,
            probed: [None; 2],
        }
    }

    /// Takes over the endpoints of a policy. The enrollment's endpoint is the last if it is not named; otherwise a policy with
    /// wrong endpoints could never be replaced.
    pub(super) fn set(&mut self, named: &[String]) {
        let mut urls: Vec<String> = Vec::new();
        for url in named.iter().chain([&self.enrolled]).filter(|url| crate::config::parse_workspace_url(url).is_ok()) {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        if urls == self.urls || urls.is_empty() {
            return;
        }
        let active = urls.iter().position(|url| *url == self.in_use.url);
        self.urls = urls;
        self.preferred_healthy_since = None;
        match active {
            Some(active) => self.active = active,
            None => {
                self.go(0, "the policy names other endpoints".to_owned());
                self.wake = true;
            }
        }
    }

    /// All endpoints, the preferred one first.
    pub(super) fn all(&self) -> &[String] {
        &self.urls
    }

    /// The active endpoint.
    pub(in crate::runtime) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Whether the sender must be woken; resets the mark.
    pub(in crate::runtime) fn take_wake(&mut self) -> bool {
        std::mem::take(&mut self.wake)
    }

    /// Upper bound for an endpoint's rest, whatever `Retry-After` says: another one may be in use by then.
    pub(super) fn rest_max(&self) -> Option<Duration> {
        (self.urls.len() > 1).then_some(self.fail_over_after)
    }

    /// Whether a request to this endpoint is only a probe.
    pub(super) fn is_probe(&self, url: &str) -> bool {
        url != self.in_use.url
    }

    /// The endpoint for the next request: the active one, or from time to time the preferred one as a probe. A policy poll is a
    /// probe only if no batches are delivered.
    pub(super) fn next(&mut self, by: RequestKind, at: Instant) -> String {
        let every = PROBE_EVERY.min(self.fail_back_after / 3);
        let counts = by == RequestKind::Delivery || self.delivered.is_none();
        if self.active != 0 && counts && self.probed[by as usize].is_none_or(|probed| at - probed >= every) {
            self.probed[by as usize] = Some(at);
            return self.urls[0].clone();
        }
        self.in_use.url.clone()
    }

    /// Records a success.
    pub(super) fn record_success(&mut self, by: RequestKind, url: &str, at: Instant) {
        if url == self.in_use.url {
            self.fails[by as usize] = None;
            if by == RequestKind::Delivery {
                (self.fails, self.delivered) = ([None; 2], Some(at));
            }
        } else if url == self.urls[0] && (by == RequestKind::Delivery || self.delivered.is_none()) {
            let preferred_healthy_since = *self.preferred_healthy_since.get_or_insert(at);
            if at - preferred_healthy_since >= self.fail_back_after {
                self.go(
                    0,
                    format!(
                        "preferred; it has accepted every batch for {} s",
                        (at - preferred_healthy_since).as_secs()
                    ),
                );
                (self.used, self.wake) = (Some(at), by == RequestKind::PolicyPoll);
            }
        }
    }

    /// Records a failure of a request that began at `began`; returns whether another endpoint is active now.
    pub(super) fn record_failure(
        &mut self,
        by: RequestKind,
        url: &str,
        why: &str,
        (began, at): (Instant, Instant),
    ) -> bool {
        if url != self.in_use.url {
            if url == self.urls[0] {
                self.preferred_healthy_since = None;
            }
            return false;
        }
        let began = self.delivered.max(self.used).map_or(began, |known| began.max(known));
        let since = *self.fails[by as usize].get_or_insert(began);
        let delivers = self.delivered.is_some_and(|delivered| at - delivered < self.fail_over_after);
        if self.urls.len() < 2 || at - since < self.fail_over_after || by == RequestKind::PolicyPoll && delivers {
            return false;
        }
        let why = format!("{url} has failed for {} s: {why}", (at - since).as_secs());
        self.go((self.active + 1) % self.urls.len(), why);
        (self.probed, self.used, self.wake) = ([Some(at); 2], Some(at), by == RequestKind::PolicyPoll);
        true
    }

    fn go(&mut self, active: usize, why: String) {
        let url = self.urls[active].clone();
        tracing::warn!(from = self.in_use.url, to = url, why, "switched to another endpoint");
        self.active = active;
        self.in_use = InUse { url, since: now(), why };
        (self.fails, self.delivered, self.preferred_healthy_since, self.probed) = ([None; 2], None, None, [None; 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "https://one:8443";
    const TWO: &str = "https://two:8443";

    fn endpoints() -> Endpoints {
        let enrollment = Enrollment::sample(ONE);
        let mut endpoints = Endpoints::new(&enrollment, (Duration::from_secs(60), Duration::from_secs(300)));
        endpoints.set(&[ONE.to_owned(), TWO.to_owned()]);
        endpoints
    }

    #[test]
    fn after_a_minute_without_a_delivery_the_pair_is_used_and_after_five_good_ones_the_first_again() {
        let (mut e, begin) = (endpoints(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "refused", (at(0), at(0))));
        e.record_success(RequestKind::Delivery, ONE, at(30));
        // It did not fail for a full minute.
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "refused", (at(40), at(40))));
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "refused", (at(99), at(99))));
        assert!(e.record_failure(RequestKind::Delivery, ONE, "refused", (at(100), at(100))));
        assert_eq!((e.in_use().url.as_str(), e.in_use().why.contains("60 s: refused")), (TWO, true), "{e:?}");
        // The preferred endpoint is probed every half minute, and must succeed for five minutes.
        let next = |e: &mut Endpoints, seconds| e.next(RequestKind::Delivery, at(seconds));
        assert_eq!([next(&mut e, 101), next(&mut e, 130), next(&mut e, 131)], [TWO, ONE, TWO]);
        e.record_success(RequestKind::Delivery, ONE, at(131));
        e.record_success(RequestKind::Delivery, TWO, at(200));
        // Policy polls are not probes while batches are delivered.
        assert_eq!([e.next(RequestKind::PolicyPoll, at(201)), next(&mut e, 202)], [TWO, ONE]);
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "refused", (at(400), at(400))));
        e.record_success(RequestKind::Delivery, ONE, at(432));
        e.record_success(RequestKind::Delivery, ONE, at(731));
        assert_eq!(e.in_use().url, TWO);
        e.record_success(RequestKind::Delivery, ONE, at(732));
        assert_eq!(e.in_use().url, ONE, "{e:?}");
    }

    #[test]
    fn one_that_hangs_is_left_when_its_first_request_is_given_up() {
        let (mut e, begin) = (endpoints(), Instant::now());
        assert!(e.record_failure(RequestKind::Delivery, ONE, "timed out", (begin, begin + Duration::from_secs(120))));
        assert_eq!((e.in_use().url.as_str(), e.is_probe(ONE), e.is_probe(TWO)), (TWO, true, false));
        assert_eq!(e.rest_max(), Some(Duration::from_secs(60)));
        // One request that hung while others succeeded is not a failure.
        let (mut e, at) = (endpoints(), |seconds| begin + Duration::from_secs(seconds));
        e.record_success(RequestKind::Delivery, ONE, at(119));
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "timed out", (begin, at(120))));
        e.set(&[]);
        assert_eq!(e.rest_max(), None);
    }

    #[test]
    fn with_both_away_it_goes_from_one_to_the_other_and_nowhere_else() {
        let (mut e, begin) = (endpoints(), Instant::now());
        let mut seen = Vec::new();
        for seconds in 0..400 {
            let at = begin + Duration::from_secs(seconds);
            let url = e.next(RequestKind::Delivery, at);
            if e.record_failure(RequestKind::Delivery, &url, "timed out", (at, at)) {
                seen.push(e.in_use().url.clone());
            }
        }
        assert!(seen.len() >= 5 && seen.iter().zip([TWO, ONE].iter().cycle()).all(|(a, b)| a == b), "{seen:?}");
    }

    #[test]
    fn questions_count_where_nothing_is_delivered() {
        let (mut e, begin) = (endpoints(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        e.record_success(RequestKind::Delivery, ONE, at(0));
        assert!(!e.record_failure(RequestKind::PolicyPoll, ONE, "timed out", (at(1), at(1))));
        e.record_success(RequestKind::Delivery, ONE, at(50));
        assert!(!e.record_failure(RequestKind::PolicyPoll, ONE, "timed out", (at(61), at(61))), "batches land");
        // Deliveries fail while polls succeed: deliveries count.
        assert!(!e.record_failure(RequestKind::Delivery, ONE, "503", (at(70), at(70))));
        e.record_success(RequestKind::PolicyPoll, ONE, at(100));
        assert!(e.record_failure(RequestKind::Delivery, ONE, "503", (at(130), at(130))));
        // With collection off on the secondary there are only polls.
        e.record_success(RequestKind::PolicyPoll, ONE, at(200));
        e.record_success(RequestKind::PolicyPoll, ONE, at(500));
        assert_eq!(e.in_use().url, ONE);
    }

    #[test]
    fn a_policy_cannot_take_the_endpoint_of_the_enrollment_away() {
        let mut e = endpoints();
        e.set(&["https://three:1".to_owned(), "http://plain:1".to_owned(), "https://three:1".to_owned()]);
        assert_eq!(e.all(), ["https://three:1", ONE]);
        assert_eq!(e.in_use().url, ONE, "it was in use and is still named");
        e.set(&[]);
        assert_eq!(e.all(), [ONE]);
    }
}
