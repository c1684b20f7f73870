//! The effective policy, and the only place that decides whether a collector runs.

use vedette_collectors::Class;

/// What the organization wants. Enrollment brings the first revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Grows with every change.
    pub(crate) revision: u64,
    /// Whether collectors of class inventory, event and crash run.
    pub(crate) collect: bool,
}

impl Policy {
    /// Whether a collector of this class runs.
    pub(crate) fn allows(&self, class: Class) -> bool {
        match class {
            Class::Inventory | Class::Event | Class::Crash => self.collect,
            Class::Artifact => true,
        }
    }
}
