//! The ledger: per collector, how many records were emitted and dropped since the epoch began, and why.
//!
//! `emitted = stored + dropped(reason) + in flight + quarantined`. Loss is never silent: it is a number with a reason.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a record was not shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The queue had reached its quota.
    QueueFull,
    /// The source overwrote data before it could be read.
    SourceOverrun,
    /// The kernel dropped events before they reached the agent.
    KernelLoss,
    /// The organization's policy forbids it.
    Policy,
    /// Redaction removed the record.
    Redaction,
    /// Larger than the limit for one record.
    Oversize,
    /// Could not be decoded at all.
    Unparseable,
    /// In a batch that was lost with a damaged queue. Where the source can be read again, the record is emitted again.
    QueueDamaged,
    /// In a file that was rotated away before it could be read to its end.
    RotatedAway,
    /// Zeros, or a hole, where a line would be: nothing was written there.
    Hole,
    /// Delivered to a workspace that was restored from an older backup, of a source that cannot be read again.
    Restored,
    /// What a later release gives as a reason.
    #[serde(other)]
    Other,
}

impl Reason {
    /// As it is written on the wire and shown.
    pub fn name(self) -> &'static str {
        match self {
            Reason::QueueFull => "queue_full",
            Reason::SourceOverrun => "source_overrun",
            Reason::KernelLoss => "kernel_loss",
            Reason::Policy => "policy",
            Reason::Redaction => "redaction",
            Reason::Oversize => "oversize",
            Reason::Unparseable => "unparseable",
            Reason::QueueDamaged => "queue_damaged",
            Reason::RotatedAway => "rotated_away",
            Reason::Hole => "hole",
            Reason::Restored => "restored",
            Reason::Other => "other",
        }
    }
}

/// Counters of one collector since the epoch began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Records handed to the transport, whether shipped or dropped later.
    pub emitted: u64,
    /// Records not shipped, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<Reason, u64>,
}

impl Counters {
    /// All drops, whatever the reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Counters by collector id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(pub BTreeMap<String, Counters>);

impl Ledger {
    /// Count records handed over by a collector.
    pub fn emit(&mut self, collector: &str, count: u64) {
        self.entry(collector).emitted += count;
    }

    /// Count records dropped, which must have been counted as emitted too.
    pub fn drop(&mut self, collector: &str, reason: Reason, count: u64) {
        *self.entry(collector).dropped.entry(reason).or_default() += count;
    }

    /// Add another ledger's counts to this one's.
    pub fn add(&mut self, other: &Ledger) {
        for (collector, counters) in &other.0 {
            let mine = self.entry(collector);
            mine.emitted += counters.emitted;
            for (&reason, count) in &counters.dropped {
                *mine.dropped.entry(reason).or_default() += count;
            }
        }
    }

    fn entry(&mut self, collector: &str) -> &mut Counters {
        if !self.0.contains_key(collector) {
            self.0.insert(collector.to_owned(), Counters::default());
        }
        self.0.get_mut(collector).expect("inserted above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_shown_as_it_is_written() {
        use Reason::*;
        for reason in [
            QueueFull,
            SourceOverrun,
            KernelLoss,
            Policy,
            Redaction,
            Oversize,
            Unparseable,
            QueueDamaged,
            RotatedAway,
            Hole,
        ] {
            let written = rmp_serde::to_vec(&reason).expect("serializes");
            assert_eq!(written[1..], *reason.name().as_bytes());
            assert_eq!(rmp_serde::from_slice::<Reason>(&written).expect("reads"), reason);
        }
        let later = rmp_serde::to_vec("of_a_later_release").expect("serializes");
        assert_eq!(rmp_serde::from_slice::<Reason>(&later).expect("reads"), Other);
    }
}
