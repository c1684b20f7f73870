//! Snapshots and the changes between them: a reader takes the last whole snapshot and applies what changed since.

use crate::column::{Column, Value, integer, text};
use serde::{Deserialize, Serialize};

/// The snapshot that a record is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id: the same in all its records, another in each snapshot.
    pub id: String,
    /// Number of records it has: with so many of one id it is whole.
    pub count: u32,
}

/// What a record says of the thing that it describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is part of a full snapshot.
    Snapshot,
    /// It is new since the last look.
    Start,
    /// It is not the same as at the last look.
    Change,
    /// It is gone since the last look; the record holds what was last known.
    End,
}

impl Change {
    /// Name in the column `change`.
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
