//! Pauses between attempts.

use std::time::Duration;

/// Pauses that double with each failure, between a first and a longest one.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Upper bound of the next pause.
    pub fn bound(&self) -> Duration {
        self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest)
    }

    /// Counts a failure.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Counts a failure, and returns the pause after it: half of its bound to all of it, so that agents do not return together.
    pub fn pause(&mut self) -> Duration {
        let bound = self.bound();
        self.failed();
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Begins again, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_again_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        let bounds: Vec<u64> = (0..10)
            .map(|_| {
                let bound = backoff.bound();
                let pause = backoff.pause();
                assert!(bound / 2 <= pause && pause <= bound, "{pause:?} of {bound:?}");
                bound.as_secs()
            })
            .collect();
        assert_eq!(bounds, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        for _ in 0..100 {
            backoff.failed();
        }
        assert_eq!((backoff.bound(), backoff.is_failing()), (Duration::from_secs(300), true));
        backoff.reset();
        assert_eq!((backoff.bound(), backoff.is_failing()), (Duration::from_secs(2), false));
    }
}
