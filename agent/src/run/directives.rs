//! The long poll: asks the workspace for what it has for this agent.

use super::{VERSION, post::Reloading};
use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};
use vedette_transport::Lane;
use vedette_wire::policy::{Directives, SignedPolicy};

/// The longest pause between two questions while nothing answers.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether an acknowledgement tells of a newer policy.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pauses after answers that change nothing; not so long that another policy is heard of late.
const REST: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// The same after a policy that was refused, which comes for ever.
const REFUSED_REST: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);

/// How long the workspace is not asked: one that says the same for ever, or what is refused, is asked less and less often.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    pause: Duration,
    /// The last policy was refused.
    pub(super) is_refused: bool,
}

impl Rest {
    /// After an answer.
    pub(super) fn answered(&mut self, is_new: bool) {
        let bounds = if self.is_refused { REFUSED_REST } else { REST };
        self.pause = if is_new { Duration::ZERO } else { (self.pause * 2).clamp(*bounds.start(), *bounds.end()) };
    }

    /// Until the pause is over, or an acknowledgement tells of a newer revision. A refused policy is newer for ever: that is
    /// no reason to hurry.
    pub(super) async fn wait(self, lane: &Lane, behind: u64) {
        let until = tokio::time::Instant::now() + self.pause;
        let newer = || lane.sender().policy_revision.is_some_and(|revision| revision > behind);
        while tokio::time::Instant::now() < until && (self.is_refused || !newer()) {
            tokio::time::sleep(LOOK_EVERY.min(until - tokio::time::Instant::now())).await;
        }
    }
}

/// What the workspace has next for this agent. While nothing answers, pauses grow; an acknowledgement that tells of a newer
/// revision ends them.
pub(super) async fn next(post: &Reloading, lane: &Lane, behind: u64) -> Directives {
    let (mut pause, mut said) = (Duration::from_millis(500), false);
    loop {
        match post.directives(behind, VERSION).await {
            Ok(directives) if directives == Directives::default() => {
                pause = Duration::from_millis(500);
                // It was held, or the workspace stops.
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Ok(directives) => return directives,
            Err(why) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::debug!(why, "the workspace cannot be asked for the policy");
                }
            }
        }
        let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        let newer = || lane.sender().policy_revision.is_some_and(|revision| revision > behind);
        while Instant::now() < until && !newer() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Give the workspace the policy that this agent goes by: it was restored from a backup, and does not know it.
pub(super) async fn bring_policy(post: &Reloading, signed: Option<SignedPolicy>) {
    let Some(signed) = signed else { return };
    for post in post.all() {
        match post.bring_policy(&signed).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!("the workspace lost the policy in force, and has it from this agent; was it restored?")
            }
            Err(why) => tracing::warn!(why, "the workspace lost the policy in force, and does not take it"),
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
