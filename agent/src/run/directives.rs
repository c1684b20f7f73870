//! The policy poll: a long poll for policy and artifact requests.

use super::{VERSION, post::WorkspaceClient};
use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};
use vedette_transport::Lane;
use vedette_wire::policy::{Directives, SignedPolicy};

/// Longest pause between polls while the workspace does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Poll interval for acknowledgements that name a newer policy.
const POLICY_WAIT_POLL: Duration = Duration::from_millis(500);

/// Pauses after answers without news; short enough to learn of another policy soon.
const REST: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// Pauses after a refused policy, which every answer repeats.
const REFUSED_REST: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);

/// Pause before the next poll; grows while answers bring nothing new, or a refused policy.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    pause: Duration,
    /// The last policy was refused.
    pub(super) is_refused: bool,
}

impl Rest {
    /// Adjusts the pause after an answer.
    pub(super) fn answered(&mut self, is_new: bool) {
        let bounds = if self.is_refused { REFUSED_REST } else { REST };
        self.pause = if is_new { Duration::ZERO } else { (self.pause * 2).clamp(*bounds.start(), *bounds.end()) };
    }

    /// Waits for the pause, or until an acknowledgement names a newer revision. A refused policy is always newer, so it does
    /// not shorten the pause.
    pub(super) async fn wait(self, lane: &Lane, after: u64) {
        let until = tokio::time::Instant::now() + self.pause;
        let newer = || lane.sender().policy_revision.is_some_and(|revision| revision > after);
        while tokio::time::Instant::now() < until && (self.is_refused || !newer()) {
            tokio::time::sleep(POLICY_WAIT_POLL.min(until - tokio::time::Instant::now())).await;
        }
    }
}

/// The next directives. Pauses grow while the workspace does not answer; an acknowledgement with a newer revision ends them.
pub(super) async fn next(post: &WorkspaceClient, lane: &Lane, after: u64) -> Directives {
    let (mut pause, mut said) = (Duration::from_millis(500), false);
    loop {
        match post.directives(after, VERSION).await {
            Ok(directives) if directives == Directives::default() => {
                pause = Duration::from_millis(500);
                // The poll ran to its end, or the workspace is stopping.
                tokio::time::sleep(POLICY_WAIT_POLL).await;
                continue;
            }
            Ok(directives) => return directives,
            Err(why) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::debug!(why, "the policy poll fails");
                }
            }
        }
        let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        let newer = || lane.sender().policy_revision.is_some_and(|revision| revision > after);
        while Instant::now() < until && !newer() {
            tokio::time::sleep(POLICY_WAIT_POLL).await;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Sends the policy in force to a workspace that was restored from a backup and lacks it.
pub(super) async fn bring_policy(post: &WorkspaceClient, signed: Option<SignedPolicy>) {
    let Some(signed) = signed else { return };
    for post in post.all() {
        match post.bring_policy(&signed).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!("sent the policy in force to a workspace that lost it; was it restored from a backup?")
            }
            Err(why) => tracing::warn!(why, "the workspace lost the policy in force, and does not accept it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_that_says_the_same_for_ever_is_asked_less_and_less_often() {
        let mut rest = Rest::default();
        let pauses = |rest: &mut Rest, count: usize| -> Vec<u64> {
            (0..count)
                .map(|_| {
                    rest.answered(false);
                    rest.pause.as_millis() as u64
                })
                .collect()
        };
        assert_eq!(pauses(&mut rest, 8), [500, 1000, 2000, 4000, 5000, 5000, 5000, 5000]);
        rest.answered(true);
        assert_eq!(rest.pause, Duration::ZERO);
        rest.is_refused = true;
        assert_eq!(pauses(&mut rest, 2), [5000, 10_000]);
    }
}
