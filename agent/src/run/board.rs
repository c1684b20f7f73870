//! What each collector is doing, for status and heartbeat.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use vedette_collectors::Class;

/// State of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CollectorState {
    /// Being started.
    Starting,
    /// It waits for the workspace to say what it has of its sources.
    Waiting,
    /// It observes.
    Running,
    /// The host has nothing to observe.
    Absent,
    /// It failed and is tried again.
    Failing,
    /// It does not come back from the host.
    Stuck,
    /// Settings or policy say off.
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

/// One line of the board.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) class: Class,
    pub(crate) state: CollectorState,
    /// Why it is not running, or what it could not do last.
    pub(crate) why: Option<String>,
    /// What it could not do is a source that it should observe, and not a right that it lacks for a part of what it tells.
    pub(crate) is_trouble: bool,
    /// That it makes no step.
    pub(crate) stuck: Option<String>,
    /// That the configuration says what the policy does not allow.
    pub(crate) note: Option<String>,
}

/// Every collector's line, in the registry's order of addition.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<BTreeMap<&'static str, Line>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, id: &'static str, class: Class) {
        self.lock().insert(
            id,
            Line { class, state: CollectorState::Starting, why: None, is_trouble: false, stuck: None, note: None },
        );
    }

    /// A collector makes no step, or makes one again; what it could not do before is still so then.
    pub(crate) fn set_stuck(&self, id: &str, stuck: Option<String>) {
        if let Some(line) = self.lock().get_mut(id) {
            line.state = if stuck.is_some() { CollectorState::Stuck } else { CollectorState::Running };
            line.stuck = stuck;
        }
    }

    /// Set a state; true where it is another than before.
    pub(crate) fn set(&self, id: &str, state: CollectorState, why: Option<String>) -> bool {
        let mut lines = self.lock();
        let Some(line) = lines.get_mut(id) else { return false };
        let changed = line.state != state;
        line.state = state;
        line.why = why;
        line.stuck = None;
        line.is_trouble = false;
        changed
    }

    /// Note why a collector runs all the same.
    pub(crate) fn note(&self, id: &str, why: Option<String>) {
        if let Some(line) = self.lock().get_mut(id) {
            line.note = why;
        }
    }

    /// Note what a collector could not do while it goes on.
    pub(crate) fn complain(&self, id: &str, why: String) {
        if let Some(line) = self.lock().get_mut(id) {
            line.why = Some(why);
            line.is_trouble = true;
        }
    }

    /// What it could not do is over.
    pub(crate) fn recovered(&self, id: &str) {
        if let Some(line) = self.lock().get_mut(id) {
            line.why = None;
            line.is_trouble = false;
        }
    }

    pub(crate) fn lines(&self) -> Vec<(&'static str, Line)> {
        self.lock().iter().map(|(id, line)| (*id, line.clone())).collect()
    }
}
