//! Limit of requests in flight: grows while the endpoint answers as fast as before, shrinks when it slows down or fails
//! (additive increase, multiplicative decrease on round-trip times).

use std::time::Duration;
use tokio::time::Instant;

/// Upper bound, however fast the endpoint is.
const MOST: f64 = 8.0;
/// Weight of a new round-trip time in the mean.
const ALPHA: f64 = 0.4;
/// A round-trip time this many deviations above the mean is slow.
const DEVIATIONS: f64 = 2.5;
/// Factor for the window when the endpoint slows down.
const SLOWER: f64 = 0.9;

#[derive(Debug)]
pub(super) struct Window {
    limit: f64,
    mean: Option<f64>,
    variance: f64,
    /// When the window last changed. It changes once per round trip: earlier requests say nothing about it.
    moved: Option<Instant>,
}

impl Default for Window {
    fn default() -> Self {
        Self { limit: 1.0, mean: None, variance: 0.0, moved: None }
    }
}

impl Window {
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Records a success; `full` says that the window was used up.
    pub(super) fn succeeded(&mut self, took: Duration, full: bool, now: Instant) {
        let took = took.as_secs_f64();
        let mean = *self.mean.get_or_insert(took);
        let due = self.moved.is_none_or(|moved| now.duration_since(moved).as_secs_f64() >= mean);
        if due && took > mean + DEVIATIONS * self.variance.sqrt().max(mean * 0.1) {
            self.limit = (self.limit * SLOWER).max(1.0);
            self.moved = Some(now);
        } else if due && full && took <= mean + self.variance.sqrt().max(mean * 0.1) {
            self.limit = (self.limit + 1.0).min(MOST);
            self.moved = Some(now);
        }
        let off = took - mean;
        self.mean = Some(mean + ALPHA * off);
        self.variance = (1.0 - ALPHA) * (self.variance + ALPHA * off * off);
    }

    /// Records a failure: restarts as for an unknown endpoint.
    pub(super) fn failed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint that serves a number of requests at once and queues the others.
    fn run(window: &mut Window, at_once: usize, rounds: usize, from: Instant) -> Instant {
        let mut now = from;
        for _ in 0..rounds {
            let flying = window.limit();
            let took = Duration::from_millis(50).mul_f64((flying as f64 / at_once as f64).max(1.0));
            now += took;
            for _ in 0..flying {
                window.succeeded(took, true, now);
            }
        }
        now
    }

    #[test]
    fn it_opens_while_the_endpoint_keeps_up_and_no_further() {
        let mut window = Window::default();
        assert_eq!(window.limit(), 1);
        let mut now = run(&mut window, 100, 50, Instant::now());
        assert_eq!(window.limit(), MOST as usize);
        // With two at once the window shrinks.
        let mut seen = Vec::new();
        window.failed();
        for _ in 0..200 {
            now = run(&mut window, 2, 1, now);
            seen.push(window.limit());
        }
        assert!(seen.iter().all(|limit| *limit >= 1), "{seen:?}");
        assert!(seen.iter().any(|limit| *limit > 1), "{seen:?}");
    }

    #[test]
    fn a_sudden_slowness_makes_it_smaller() {
        let mut window = Window::default();
        let now = run(&mut window, 100, 50, Instant::now());
        let slow = Duration::from_millis(500);
        window.succeeded(slow, true, now + slow);
        assert!(window.limit() < MOST as usize, "{window:?}");
    }

    #[test]
    fn a_failure_makes_it_one() {
        let mut window = Window::default();
        run(&mut window, 100, 50, Instant::now());
        window.failed();
        assert_eq!(window.limit(), 1);
    }
}
