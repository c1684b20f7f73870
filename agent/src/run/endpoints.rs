//! Which workspace of the pair is delivered to. The first of the list is preferred. One that has taken nothing for a while is
//! left for the next; the preferred one is tried with a batch now and then, and is gone back to when it has taken all of
//! them for a longer while. All stand in the workspace's geography: TLS sees to that.

use crate::{identity::Enrollment, now};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How often the preferred one is tried, where going back does not ask for more.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// How an endpoint was found to work or to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A batch.
    Delivery,
    /// The question for the policy, which says nothing of whether batches land.
    Question,
}

/// The endpoint in use, for status and heartbeat.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct InUse {
    pub(crate) url: String,
    /// Nanoseconds UTC.
    pub(crate) since: i64,
    pub(crate) why: String,
}

/// The endpoints of this agent.
#[derive(Debug)]
pub(super) struct Endpoints {
    enrolled: String,
    urls: Vec<String>,
    active: usize,
    in_use: InUse,
    fail_over_after: Duration,
    fail_back_after: Duration,
    /// Since when the active one fails, by delivery and by question.
    fails: [Option<Instant>; 2],
    /// When the active one took a batch last.
    delivered: Option<Instant>,
    /// Since when the active one is in use.
    used: Option<Instant>,
    /// Another one is in use since something else than a batch said so: the sender may rest.
    wake: bool,
    /// Since when the preferred one works, while it is not the active one.
    well: Option<Instant>,
    /// When it was tried last, by delivery and by question.
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
            well: None,
            probed: [None; 2],
        }
    }

    /// Go by the endpoints of a policy. The one of the enrollment comes last where it is not named: a policy that names wrong
    /// ones alone could never be replaced.
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
        self.well = None;
        match active {
            Some(active) => self.active = active,
            None => {
                self.go(0, "the policy names other endpoints".to_owned());
                self.wake = true;
            }
        }
    }

    /// All of them, the preferred one first.
    pub(super) fn all(&self) -> &[String] {
        &self.urls
    }

    /// The one in use.
    pub(super) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Whether the sender is to be woken, told once.
    pub(super) fn wakes(&mut self) -> bool {
        std::mem::take(&mut self.wake)
    }

    /// How long the endpoints are let rest at the most, whatever one of them says: another may be used by then.
    pub(super) fn rest_max(&self) -> Option<Duration> {
        (self.urls.len() > 1).then_some(self.fail_over_after)
    }

    /// Whether this is not the one in use: it is only tried.
    pub(super) fn is_probe(&self, url: &str) -> bool {
        url != self.in_use.url
    }

    /// Where the next request goes: to the active one, or now and then to the preferred one, to see whether it works; a
    /// question only where nothing is delivered.
    pub(super) fn next(&mut self, by: By, at: Instant) -> String {
        let every = PROBE_EVERY.min(self.fail_back_after / 3);
        let counts = by == By::Delivery || self.delivered.is_none();
        if self.active != 0 && counts && self.probed[by as usize].is_none_or(|probed| at - probed >= every) {
            self.probed[by as usize] = Some(at);
            return self.urls[0].clone();
        }
        self.in_use.url.clone()
    }

    /// One answered as it should.
    pub(super) fn works(&mut self, by: By, url: &str, at: Instant) {
        if url == self.in_use.url {
            self.fails[by as usize] = None;
            if by == By::Delivery {
                (self.fails, self.delivered) = ([None; 2], Some(at));
            }
        } else if url == self.urls[0] && (by == By::Delivery || self.delivered.is_none()) {
            let well = *self.well.get_or_insert(at);
            if at - well >= self.fail_back_after {
                self.go(0, format!("preferred; it has taken every batch for {} s", (at - well).as_secs()));
                (self.used, self.wake) = (Some(at), by == By::Question);
            }
        }
    }

    /// One did not, though it was given the time from `began` on. True where another is in use from now on.
    pub(super) fn fails(&mut self, by: By, url: &str, why: &str, (began, at): (Instant, Instant)) -> bool {
        if url != self.in_use.url {
            if url == self.urls[0] {
                self.well = None;
            }
            return false;
        }
        let began = self.delivered.max(self.used).map_or(began, |known| began.max(known));
        let since = *self.fails[by as usize].get_or_insert(began);
        let delivers = self.delivered.is_some_and(|delivered| at - delivered < self.fail_over_after);
        if self.urls.len() < 2 || at - since < self.fail_over_after || by == By::Question && delivers {
            return false;
        }
        let why = format!("{url} has failed for {} s: {why}", (at - since).as_secs());
        self.go((self.active + 1) % self.urls.len(), why);
        (self.probed, self.used, self.wake) = ([Some(at); 2], Some(at), by == By::Question);
        true
    }

    fn go(&mut self, active: usize, why: String) {
        let url = self.urls[active].clone();
        tracing::warn!(from = self.in_use.url, to = url, why, "another endpoint is in use");
        self.active = active;
        self.in_use = InUse { url, since: now(), why };
        (self.fails, self.delivered, self.well, self.probed) = ([None; 2], None, None, [None; 2]);
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
        assert!(!e.fails(By::Delivery, ONE, "refused", (at(0), at(0))));
        e.works(By::Delivery, ONE, at(30));
        // Not a minute in one piece.
        assert!(!e.fails(By::Delivery, ONE, "refused", (at(40), at(40))));
        assert!(!e.fails(By::Delivery, ONE, "refused", (at(99), at(99))));
        assert!(e.fails(By::Delivery, ONE, "refused", (at(100), at(100))));
        assert_eq!((e.in_use().url.as_str(), e.in_use().why.contains("60 s: refused")), (TWO, true), "{e:?}");
        // The first is tried each half minute, and has to work for five minutes without a failure.
        let next = |e: &mut Endpoints, seconds| e.next(By::Delivery, at(seconds));
        assert_eq!([next(&mut e, 101), next(&mut e, 130), next(&mut e, 131)], [TWO, ONE, TWO]);
        e.works(By::Delivery, ONE, at(131));
        e.works(By::Delivery, TWO, at(200));
        // Where batches say it, a question takes no turn of theirs.
        assert_eq!([e.next(By::Question, at(201)), next(&mut e, 202)], [TWO, ONE]);
        assert!(!e.fails(By::Delivery, ONE, "refused", (at(400), at(400))));
        e.works(By::Delivery, ONE, at(432));
        e.works(By::Delivery, ONE, at(731));
        assert_eq!(e.in_use().url, TWO);
        e.works(By::Delivery, ONE, at(732));
        assert_eq!(e.in_use().url, ONE, "{e:?}");
    }

    #[test]
    fn one_that_hangs_is_left_when_its_first_request_is_given_up() {
        let (mut e, begin) = (endpoints(), Instant::now());
        assert!(e.fails(By::Delivery, ONE, "timed out", (begin, begin + Duration::from_secs(120))));
        assert_eq!((e.in_use().url.as_str(), e.is_probe(ONE), e.is_probe(TWO)), (TWO, true, false));
        assert_eq!(e.rest_max(), Some(Duration::from_secs(60)));
        // One of several that hung while the others were taken says nothing.
        let (mut e, at) = (endpoints(), |seconds| begin + Duration::from_secs(seconds));
        e.works(By::Delivery, ONE, at(119));
        assert!(!e.fails(By::Delivery, ONE, "timed out", (begin, at(120))));
        e.set(&[]);
        assert_eq!(e.rest_max(), None);
    }

    #[test]
    fn with_both_away_it_goes_from_one_to_the_other_and_nowhere_else() {
        let (mut e, begin) = (endpoints(), Instant::now());
        let mut seen = Vec::new();
        for seconds in 0..400 {
            let at = begin + Duration::from_secs(seconds);
            let url = e.next(By::Delivery, at);
            if e.fails(By::Delivery, &url, "timed out", (at, at)) {
                seen.push(e.in_use().url.clone());
            }
        }
        assert!(seen.len() >= 5 && seen.iter().zip([TWO, ONE].iter().cycle()).all(|(a, b)| a == b), "{seen:?}");
    }

    #[test]
    fn questions_count_where_nothing_is_delivered() {
        let (mut e, begin) = (endpoints(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        e.works(By::Delivery, ONE, at(0));
        assert!(!e.fails(By::Question, ONE, "timed out", (at(1), at(1))));
        e.works(By::Delivery, ONE, at(50));
        assert!(!e.fails(By::Question, ONE, "timed out", (at(61), at(61))), "batches land");
        // Deliveries fail, and the question is answered: what counts is whether batches land.
        assert!(!e.fails(By::Delivery, ONE, "503", (at(70), at(70))));
        e.works(By::Question, ONE, at(100));
        assert!(e.fails(By::Delivery, ONE, "503", (at(130), at(130))));
        // On the pair with collection off: nothing but questions.
        e.works(By::Question, ONE, at(200));
        e.works(By::Question, ONE, at(500));
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
