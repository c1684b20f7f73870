//! Health of `serve`, for `GET /livez`.
//!
//! A failure for one organization must not end the process that serves the others: the answer is 200 and states the failure. It
//! is 503 when no table at all is being written.

use parking_lot::Mutex;
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};
use tokio::time::Instant;
use vedette_wire::OrganizationId;

/// Materialising counts as stalled without progress for this long.
const STALLED: Duration = Duration::from_secs(600);

/// State of materialising.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Last progress: something was written, or there was nothing to write; absent if nothing is materialised here.
    last_progress: Option<Instant>,
    /// Organizations whose tables cannot be written: since when, and why.
    failing: BTreeMap<OrganizationId, (Instant, String)>,
}

impl Health {
    /// Records success for an organization, or progress in general.
    pub(crate) fn record_success(&self, organization: Option<OrganizationId>) {
        let mut state = self.0.lock();
        match organization {
            Some(organization) => drop(state.failing.remove(&organization)),
            None => state.last_progress = Some(Instant::now()),
        }
    }

    /// Whether writing an organization's tables fails.
    pub(crate) fn is_failing(&self) -> bool {
        !self.0.lock().failing.is_empty()
    }

    /// Records a failure for an organization; true if it is new.
    pub(crate) fn record_failure(&self, organization: OrganizationId, why: &str) -> bool {
        let mut state = self.0.lock();
        let since = state.failing.get(&organization).map(|(since, _)| *since);
        let before = state.failing.insert(organization, (since.unwrap_or_else(Instant::now), why.to_owned()));
        before.is_none_or(|(_, before)| before != why)
    }

    /// Whether materialising makes progress, and a text for people.
    pub(crate) fn report(&self) -> (bool, String) {
        let state = self.0.lock();
        let since_progress = state.last_progress.map_or(Duration::ZERO, |progress| progress.elapsed());
        if since_progress > STALLED {
            return (false, format!("no table was written for {} s; see the log\n", since_progress.as_secs()));
        }
        let mut text = "ok\n".to_owned();
        // Anyone may ask, so no names.
        if let Some(since) = state.failing.values().map(|(since, _)| *since).min() {
            let (count, seconds) = (state.failing.len(), since.elapsed().as_secs());
            let _ =
                writeln!(text, "organizations whose tables cannot be written: {count}, for {seconds} s; see the log");
        }
        (true, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_organization_s_trouble_is_said_and_a_standstill_is_red() {
        let (health, one) = (Health::default(), OrganizationId::from_uuid(uuid::Uuid::from_bytes([1; 16])));
        assert_eq!(health.report(), (true, "ok\n".to_owned()));
        assert!(
            health.record_failure(one, "disk full")
                && !health.record_failure(one, "disk full")
                && health.record_failure(one, "damaged")
        );
        tokio::time::sleep(Duration::from_secs(70)).await;
        health.record_success(None);
        assert!(health.is_failing());
        assert_eq!(
            health.report(),
            (true, "ok\norganizations whose tables cannot be written: 1, for 70 s; see the log\n".to_owned())
        );
        health.record_success(Some(one));
        assert!(!health.is_failing());
        assert_eq!(health.report(), (true, "ok\n".to_owned()));
        tokio::time::sleep(STALLED + Duration::from_secs(1)).await;
        assert_eq!(health.report(), (false, "no table was written for 601 s; see the log\n".to_owned()));
        health.record_success(None);
        assert!(health.report().0);
    }
}
