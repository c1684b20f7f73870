//! The policy poll: a long poll for policy and artifact requests.

use crate::{
    exit::VERSION,
    runtime::delivery::{LaneDelivery, WorkspaceClient},
};
use std::{ops::RangeInclusive, time::Duration};
use tokio::time::Instant;
use vedette_transport::Backoff;
use vedette_wire::policy::{Directives, SignedPolicy};

/// First and longest pause between polls while the workspace does not answer.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Poll interval for acknowledgements that name a newer policy.
const POLICY_WAIT_POLL: Duration = Duration::from_millis(500);

/// Pauses after answers without news; short enough to learn of another policy soon.
const PACE: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// Pauses after a refused policy, which every answer repeats.
const REFUSED_PACE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);

/// Pause before the next poll; grows while answers bring nothing new, or a refused policy.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PollPace {
    pause: Duration,
    /// The last policy was refused.
    pub(super) is_refused: bool,
}

impl PollPace {
    /// Adjusts the pause after an answer.
    pub(super) fn answered(&mut self, is_new: bool) {
        let bounds = if self.is_refused { REFUSED_PACE } else { PACE };
        self.pause = if is_new { Duration::ZERO } else { (self.pause * 2).clamp(*bounds.start(), *bounds.end()) };
    }

    /// Waits for the pause, or until an acknowledgement names a newer revision. A refused policy is always newer, so it does
    /// not shorten the pause.
    pub(super) async fn wait(self, delivery: &LaneDelivery, after: u64) {
        wait(self.pause, || !self.is_refused && delivery.has_newer_policy(after)).await;
    }
}

/// Waits for a pause, or until a condition holds.
async fn wait(pause: Duration, ends: impl Fn() -> bool) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !ends() {
        tokio::time::sleep(POLICY_WAIT_POLL.min(until - Instant::now())).await;
    }
}

/// The next directives. Pauses grow while the workspace does not answer; an acknowledgement with a newer revision ends them.
pub(super) async fn next(client: &WorkspaceClient, delivery: &LaneDelivery, after: u64) -> Directives {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        match client.directives(after, VERSION).await {
            Ok(directives) if directives == Directives::default() => {
                backoff.reset();
                // The poll ran to its end, or the workspace is stopping.
                tokio::time::sleep(POLICY_WAIT_POLL).await;
            }
            Ok(directives) => return directives,
            Err(why) => {
                if !backoff.is_failing() {
                    tracing::debug!(why = format!("{why:#}"), "the policy poll fails");
                }
                wait(backoff.pause(), || delivery.has_newer_policy(after)).await;
            }
        }
    }
}

/// Sends the policy in force to a workspace that was restored from a backup and lacks it.
pub(super) async fn upload_policy(client: &WorkspaceClient, signed: Option<SignedPolicy>) {
    let Some(signed) = signed else { return };
    for post in client.all() {
        match post.upload_policy(&signed).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(
                    "this agent sent the policy in force to a workspace that lacks it; check whether the workspace was restored from a backup"
                )
            }
            Err(why) => tracing::warn!(
                why = format!("{why:#}"),
                "the workspace lost the policy in force and refused this agent's copy"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_that_says_the_same_for_ever_is_asked_less_and_less_often() {
        let mut pace = PollPace::default();
        let pauses = |pace: &mut PollPace, count: usize| -> Vec<u64> {
            (0..count)
                .map(|_| {
                    pace.answered(false);
                    pace.pause.as_millis() as u64
                })
                .collect()
        };
        assert_eq!(pauses(&mut pace, 8), [500, 1000, 2000, 4000, 5000, 5000, 5000, 5000]);
        pace.answered(true);
        assert_eq!(pace.pause, Duration::ZERO);
        pace.is_refused = true;
        assert_eq!(pauses(&mut pace, 2), [5000, 10_000]);
    }
}
