//! What the ledger says.

use serde::Serialize;
use std::collections::BTreeMap;
use vedette_wire::Reason;

/// One line of `vedette-workspace ledger`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Account {
    pub(crate) agent: String,
    pub(crate) collector: String,
    /// Records that the agent counted, shipped or dropped.
    pub(crate) emitted: u64,
    /// Records stored; repeated ones once more each, and not those that the store level leaves out.
    pub(crate) stored: u64,
    /// Records that the agent dropped or purged, or that the store level leaves out, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Records that the agent still holds.
    pub(crate) in_flight: u64,
    /// Records that the agent keeps in quarantine.
    pub(crate) quarantined: u64,
    /// Records that are neither stored nor dropped nor held. Of a hole in a file it is not known how many lines it has:
    /// it counts as one.
    pub(crate) missing: u64,
    /// Records whose positions were stored before.
    pub(crate) repeated: u64,
    pub(crate) gaps: Vec<Gap>,
}

impl Account {
    /// Count records as dropped.
    pub(super) fn drop(&mut self, reason: Reason, records: u64) {
        if records > 0 {
            let sum = self.dropped.entry(reason.name().to_owned()).or_default();
            *sum = sum.saturating_add(records);
        }
    }
}

/// Accounts of one agent while they are added up, by collector.
#[derive(Default)]
pub(super) struct Books(pub(super) BTreeMap<String, Account>);

impl Books {
    pub(super) fn of(&mut self, agent: &str, collector: &str) -> &mut Account {
        self.0.entry(collector.to_owned()).or_insert_with(|| Account {
            agent: agent.to_owned(),
            collector: collector.to_owned(),
            ..Account::default()
        })
    }
}

/// What is missing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Gap {
    /// `sequences`: batches that never came; `positions`: a hole in what was read of a source.
    pub(crate) what: &'static str,
    /// Lane and epoch of the sequences, or the source of the positions.
    pub(crate) of: String,
    /// The first sequence or position missing, and just behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Lane, epoch and sequence of what landed right before it and right behind it.
    pub(crate) after: String,
    pub(crate) before: String,
    /// When these landed, the earlier first; nanoseconds UTC.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) since: i64,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) until: i64,
}

fn rfc3339<S: serde::Serializer>(nanoseconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::commands::rfc3339(*nanoseconds))
}
