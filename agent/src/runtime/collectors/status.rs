//! State of each collector, for status and heartbeat.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use vedette_collectors::CollectorClass;

/// State of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CollectorState {
    /// It starts.
    Starting,
    /// It waits for a policy, for the workspace's positions, or for a retry.
    Waiting,
    /// It runs.
    Running,
    /// The host has nothing to observe.
    Absent,
    /// It failed and waits for its restart.
    Failing,
    /// It made no progress for the stall deadline.
    Stuck,
    /// Settings or policy switch it off.
    Disabled,
}

impl CollectorState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            CollectorState::Starting => "starting",
            CollectorState::Waiting => "waiting",
            CollectorState::Running => "running",
            CollectorState::Absent => "absent",
            CollectorState::Failing => "failing",
            CollectorState::Stuck => "stuck",
            CollectorState::Disabled => "disabled",
        }
    }
}

/// State of one collector.
#[derive(Debug, Clone)]
pub(crate) struct CollectorStatus {
    pub(crate) class: CollectorClass,
    pub(crate) state: CollectorState,
    /// Why the collector does not run; or its last problem, if `is_problem`.
    pub(crate) reason: Option<String>,
    /// `reason` is a problem with a source that the collector should observe, and not a missing permission that only reduces
    /// its output.
    pub(crate) is_problem: bool,
    /// Why the collector counts as stuck; `None` if it does not.
    pub(crate) stuck: Option<String>,
    /// Why the collector runs although the configuration or the policy switches it off.
    pub(crate) runs_because: Option<String>,
}

/// States of all collectors, by id.
#[derive(Debug, Default)]
pub(crate) struct CollectorStatuses(Mutex<BTreeMap<&'static str, CollectorStatus>>);

impl CollectorStatuses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, CollectorStatus>> {
        self.0.lock()
    }

    pub(crate) fn add(&self, id: &'static str, class: CollectorClass) {
        self.lock().insert(
            id,
            CollectorStatus {
                class,
                state: CollectorState::Starting,
                reason: None,
                is_problem: false,
                stuck: None,
                runs_because: None,
            },
        );
    }

    /// Marks a collector as stuck for a reason, or with `None` as running again. An earlier problem remains.
    pub(crate) fn set_stuck(&self, id: &str, stuck: Option<String>) {
        if let Some(status) = self.lock().get_mut(id) {
            status.state = if stuck.is_some() { CollectorState::Stuck } else { CollectorState::Running };
            status.stuck = stuck;
        }
    }

    /// Sets a state; returns whether it changed.
    pub(crate) fn set(&self, id: &str, state: CollectorState, why: Option<String>) -> bool {
        let mut statuses = self.lock();
        let Some(status) = statuses.get_mut(id) else { return false };
        let changed = status.state != state;
        status.state = state;
        status.reason = why;
        status.stuck = None;
        status.is_problem = false;
        changed
    }

    /// Records why a collector runs although the configuration or the policy switches it off; `None` clears it.
    pub(crate) fn set_runs_because(&self, id: &str, why: Option<String>) {
        if let Some(status) = self.lock().get_mut(id) {
            status.runs_because = why;
        }
    }

    /// Records a problem of a running collector.
    pub(crate) fn report_problem(&self, id: &str, why: String) {
        if let Some(status) = self.lock().get_mut(id) {
            status.reason = Some(why);
            status.is_problem = true;
        }
    }

    /// Clears the last reported problem.
    pub(crate) fn clear_problem(&self, id: &str) {
        if let Some(status) = self.lock().get_mut(id) {
            status.reason = None;
            status.is_problem = false;
        }
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, CollectorStatus)> {
        self.lock().iter().map(|(id, status)| (*id, status.clone())).collect()
    }
}
