//! Classes of collectors.

use serde::Serialize;

/// Class of a collector, for policies. In the order in which push sources drop chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectorClass {
    /// State of the host.
    Inventory,
    /// Events on the host.
    Event,
    /// Crash dumps.
    Crash,
    /// Requested files.
    Artifact,
}
