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
    /// Why it does not run, or its last problem.
    pub(crate) why: Option<String>,
    /// `why` is a problem with a source that the collector should observe, and not a missing permission that only reduces
    /// its output.
    pub(crate) is_problem: bool,
    /// Why the collector counts as stuck; `None` if it does not.
    pub(crate) stuck: Option<String>,
    /// A conflict between configuration and policy.
    pub(crate) note: Option<String>,
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
                why: None,
                is_problem: false,
                stuck: None,
                note: None,
            },
        );
    }

    /// Marks a collector as stuck for a reason, or with `None` as running again. An earlier problem remains.
    pub(crate) fn set_stuck(&self, id: &str, stuck: Option<String>) {
        if let Some(line) = self.lock().get_mut(id) {
            line.state = if stuck.is_some() { CollectorState::Stuck } else { CollectorState::Running };
            line.stuck = stuck;
        }
    }

    /// Sets a state; returns whether it changed.
    pub(crate) fn set(&self, id: &str, state: CollectorState, why: Option<String>) -> bool {
        let mut lines = self.lock();
        let Some(line) = lines.get_mut(id) else { return false };
        let changed = line.state != state;
        line.state = state;
        line.why = why;
        line.stuck = None;
        line.is_problem = false;
        changed
    }

    /// Records why a collector runs in spite of its settings.
    pub(crate) fn note(&self, id: &str, why: Option<String>) {
        if let Some(line) = self.lock().get_mut(id) {
            line.note = why;
        }
    }

    /// Records a problem of a running collector.
    pub(crate) fn report_problem(&self, id: &str, why: String) {
        if let Some(line) = self.lock().get_mut(id) {
            line.why = Some(why);
            line.is_problem = true;
        }
    }

    /// Clears the last reported problem.
    pub(crate) fn recovered(&self, id: &str) {
        if let Some(line) = self.lock().get_mut(id) {
            line.why = None;
            line.is_problem = false;
        }
    }

    pub(crate) fn lines(&self) -> Vec<(&'static str, CollectorStatus)> {
        self.lock().iter().map(|(id, line)| (*id, line.clone())).collect()
    }
}
