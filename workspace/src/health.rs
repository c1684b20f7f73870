//! Whether the parts of `serve` go on; `GET /livez` answers by it.
//!
//! What fails for one organization is no reason to end the process that serves the others: the answer is 200 then, and
//! says that something fails. It is 503 where no table of anybody is written any more.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use vedette_wire::OrganizationId;

/// Without a step for so long materialising stands still.
const STALLED: Duration = Duration::from_secs(600);

/// What materialising does.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When it last wrote something, or there was nothing to write; absent where nothing is materialised here.
    step: Option<Instant>,
    /// Organizations whose batches are not written: since when, and why.
    failing: BTreeMap<OrganizationId, (Instant, String)>,
}

impl Health {
    /// Nothing hinders it to write an organization's tables; or, without one, something was written, or nothing was to be.
    pub(crate) fn works(&self, organization: Option<OrganizationId>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match organization {
            Some(organization) => drop(state.failing.remove(&organization)),
            None => state.step = Some(Instant::now()),
        }
    }

    /// Whether an organization's tables cannot be written.
    pub(crate) fn is_failing(&self) -> bool {
        !self.0.lock().unwrap_or_else(PoisonError::into_inner).failing.is_empty()
    }

    /// An organization's tables cannot be written; true where that is new.
    pub(crate) fn fails(&self, organization: OrganizationId, why: &str) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = state.failing.get(&organization).map(|(since, _)| *since);
        let before = state.failing.insert(organization, (since.unwrap_or_else(Instant::now), why.to_owned()));
        before.is_none_or(|(_, before)| before != why)
    }

    /// Whether it goes on, and what there is to say.
    pub(crate) fn report(&self) -> (bool, String) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = state.step.map_or(Duration::ZERO, |step| step.elapsed());
        if stands > STALLED {
            return (false, format!("no table was written for {} s; see the log\n", stands.as_secs()));
        }
        let mut text = "ok\n".to_owned();
        // Whoever asks may be anybody: no names.
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
        assert!(health.fails(one, "disk full") && !health.fails(one, "disk full") && health.fails(one, "damaged"));
        tokio::time::sleep(Duration::from_secs(70)).await;
        health.works(None);
        assert!(health.is_failing());
        assert_eq!(
            health.report(),
            (true, "ok\norganizations whose tables cannot be written: 1, for 70 s; see the log\n".to_owned())
        );
        health.works(Some(one));
        assert!(!health.is_failing());
        assert_eq!(health.report(), (true, "ok\n".to_owned()));
        tokio::time::sleep(STALLED + Duration::from_secs(1)).await;
        assert_eq!(health.report(), (false, "no table was written for 601 s; see the log\n".to_owned()));
        health.works(None);
        assert!(health.report().0);
    }
}
