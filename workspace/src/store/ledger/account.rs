//! Output of the ledger.

use serde::Serialize;
use std::collections::BTreeMap;
use vedette_wire::Reason;

/// A line of `vedette-workspace ledger`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Account {
    pub(crate) agent: String,
    pub(crate) collector: String,
    /// Records that the agent emitted, shipped or dropped.
    pub(crate) emitted: u64,
    /// Stored records, including repeated ones, without those that the store level leaves out.
    pub(crate) stored: u64,
    /// Records that the agent dropped or purged, or that the store level leaves out, by reason.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Records that the agent holds.
    pub(crate) in_flight: u64,
    /// Records in the agent's quarantine.
    pub(crate) quarantined: u64,
    /// Records neither stored, dropped nor held. A gap in a file counts as one, since its number of lines is unknown.
    pub(crate) missing: u64,
    /// Records whose positions were stored before.
    pub(crate) repeated: u64,
    pub(crate) gaps: Vec<Gap>,
}

impl Account {
    /// Counts dropped records.
    pub(super) fn add_dropped(&mut self, reason: Reason, records: u64) {
        if records > 0 {
            let sum = self.dropped.entry(reason.name().to_owned()).or_default();
            *sum = sum.saturating_add(records);
        }
    }
}

/// Accounts of one agent under construction, by collector.
#[derive(Default)]
pub(super) struct AgentAccounts(pub(super) BTreeMap<String, Account>);

impl AgentAccounts {
    pub(super) fn account_mut(&mut self, agent: &str, collector: &str) -> &mut Account {
        self.0.entry(collector.to_owned()).or_insert_with(|| Account {
            agent: agent.to_owned(),
            collector: collector.to_owned(),
            ..Account::default()
        })
    }
}

/// A gap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Gap {
    /// `sequences` for batches that never arrived, `positions` for a gap in a source.
    pub(crate) what: &'static str,
    /// Lane and epoch of the sequences, or source of the positions.
    pub(crate) of: String,
    /// First missing sequence or position, and the one after the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Lane, epoch and sequence of the batches right before and after it.
    pub(crate) after: String,
    pub(crate) before: String,
    /// When these landed, earlier first; nanoseconds UTC.
    #[serde(serialize_with = "rfc3339")]
    pub(crate) since: i64,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) until: i64,
}

fn rfc3339<S: serde::Serializer>(nanoseconds: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::clock::rfc3339(*nanoseconds))
}
