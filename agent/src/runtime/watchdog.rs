//! Signs of life for the supervisor: they stop if collectors or delivery hang, so that it restarts the agent.
//!
//! What a restart does not mend is not a reason: a workspace that is down, a full queue, one collector that hangs in the kernel.

use super::{collectors::CollectorState, context::AgentContext};
use crate::platform;
use std::{convert::Infallible, time::Duration};
use tokio::time::Instant;
use vedette_transport::Progress;

/// Time without progress, while there is work, after which signs of life stop.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Feeds the watchdog of the supervisor, if it has one.
pub(super) async fn feed(agent: &AgentContext) -> Infallible {
    let Some(interval) = platform::watchdog() else { return std::future::pending().await };
    let mut poll = tokio::time::interval(interval / 3);
    let mut watched = Watched::new(agent.records.lane.progress());
    let mut is_stalled = false;
    loop {
        poll.tick().await;
        let states: Vec<CollectorState> = agent.statuses.all().into_iter().map(|(_, status)| status.state).collect();
        match watched.stalled(agent.records.lane.progress(), &states) {
            None => {
                is_stalled = false;
                platform::feed_watchdog();
            }
            Some(what) => {
                if !std::mem::replace(&mut is_stalled, true) {
                    tracing::error!(what, "no progress; the service manager will restart the agent");
                }
            }
        }
    }
}

/// Progress as it was last seen, and since when it has not changed.
struct Watched {
    batcher: (u64, Instant),
    sender: (u64, Instant),
    collectors: Option<Instant>,
}

impl Watched {
    fn new(progress: Progress) -> Self {
        let now = Instant::now();
        Self { batcher: (progress.batcher, now), sender: (progress.sender, now), collectors: None }
    }

    /// What has stalled; absent while there is progress, or nothing to do.
    fn stalled(&mut self, progress: Progress, states: &[CollectorState]) -> Option<&'static str> {
        let now = Instant::now();
        let stalls = |seen: &mut (u64, Instant), steps: u64, has_work: bool| {
            if seen.0 != steps || !has_work {
                *seen = (steps, now);
            }
            now - seen.1 >= STALLED_AFTER
        };
        let batcher = stalls(&mut self.batcher, progress.batcher, progress.has_intake);
        let sender = stalls(&mut self.sender, progress.sender, progress.has_batches);
        let count = |wanted| states.iter().filter(|state| **state == wanted).count();
        // One may hang in the kernel, where no restart reaches it.
        let all_hang = count(CollectorState::Stuck) >= 2 && count(CollectorState::Running) == 0;
        let since = all_hang.then(|| *self.collectors.get_or_insert(now));
        self.collectors = since;
        let collectors = since.is_some_and(|since| now - since >= STALLED_AFTER);
        [(batcher, "queueing"), (sender, "delivery"), (collectors, "collectors")]
            .into_iter()
            .find_map(|(stalls, what)| stalls.then_some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CollectorState::{Absent, Running, Stuck};

    const IDLE: Progress = Progress { batcher: 1, sender: 1, has_intake: false, has_batches: false };

    async fn after(
        watched: &mut Watched,
        seconds: u64,
        progress: Progress,
        states: &[CollectorState],
    ) -> Option<&'static str> {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        watched.stalled(progress, states)
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_with_work_to_do_is_found_and_what_waits_is_not() {
        let mut watched = Watched::new(IDLE);
        assert_eq!(after(&mut watched, 3600, IDLE, &[Running, Absent]).await, None, "there is nothing to do");
        let work = Progress { has_batches: true, ..IDLE };
        assert_eq!(after(&mut watched, 100, work, &[Running]).await, None);
        assert_eq!(after(&mut watched, 100, Progress { sender: 2, ..work }, &[Running]).await, None, "it tries");
        assert_eq!(after(&mut watched, 119, Progress { sender: 2, ..work }, &[Running]).await, None);
        assert_eq!(after(&mut watched, 1, Progress { sender: 2, ..work }, &[Running]).await, Some("delivery"));
        let full = Progress { has_intake: true, ..IDLE };
        assert_eq!(after(&mut watched, 1, full, &[]).await, None);
        assert_eq!(after(&mut watched, 120, full, &[]).await, Some("queueing"));
        assert_eq!(after(&mut watched, 1, IDLE, &[Stuck, Running]).await, None, "the others work");
        assert_eq!(after(&mut watched, 500, IDLE, &[Stuck, Absent]).await, None, "a single one");
        assert_eq!(after(&mut watched, 500, IDLE, &[Stuck, Stuck]).await, None);
        assert_eq!(after(&mut watched, 120, IDLE, &[Stuck, Stuck]).await, Some("collectors"));
        assert_eq!(after(&mut watched, 1, IDLE, &[Running, Absent]).await, None);
    }
}
