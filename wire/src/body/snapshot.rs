//! Snapshots and changes: a reader takes the last complete snapshot and applies the changes after it.

use crate::column::{Column, Value, integer, text};
use serde::{Deserialize, Serialize};

/// The snapshot that a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Id of the snapshot, the same in all its records.
    pub id: String,
    /// Number of records in the snapshot; it is complete with that many.
    pub count: u32,
}

/// Why a record was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Part of a full snapshot.
    Snapshot,
    /// New since the last poll.
    Start,
    /// Changed since the last poll.
    Change,
    /// Gone since the last poll; the record holds the last known state.
    End,
}

impl Change {
    /// Value of column `change`.
    pub fn name(self) -> &'static str {
        match self {
            Change::Snapshot => "snapshot",
            Change::Start => "start",
            Change::Change => "change",
            Change::End => "end",
        }
    }
}

pub(super) const CHANGE: Column = text("change", "`snapshot`, `start`, `change` or `end`");
pub(super) const SNAPSHOT: Column = text("snapshot", "id of the snapshot that the record is part of");
pub(super) const SNAPSHOT_COUNT: Column = integer("snapshot_count", "number of records in that snapshot");

pub(super) fn id(snapshot: Option<&Snapshot>) -> Value<'_> {
    snapshot.map(|snapshot| snapshot.id.as_str()).into()
}

pub(super) fn count(snapshot: Option<&Snapshot>) -> Value<'static> {
    snapshot.map(|snapshot| snapshot.count).into()
}
