//! The ledger: records emitted and dropped per collector since the epoch began, with reasons.
//!
//! `emitted = stored + dropped(reason) + in flight + quarantined`. Every loss is a number with a reason.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a record was not shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The queue reached its limit.
    QueueFull,
    /// The source overwrote data before it could be read.
    SourceOverrun,
    /// The kernel dropped events before they reached the agent.
    KernelLoss,
    /// The policy forbids it.
    Policy,
    /// Redaction removed the record.
    Redaction,
    /// Larger than one record may be.
    Oversize,
    /// Not decodable.
    Unparseable,
    /// Lost with a damaged queue. If the source can be read again, the record is emitted again.
    QueueDamaged,
    /// The file was rotated away before it was read to its end.
    RotatedAway,
    /// NUL bytes or a hole in place of a line: nothing was written there.
    Hole,
    /// Delivered to a workspace that was restored from an older backup; the source cannot be read again.
    Restored,
    /// A reason of a later release.
    #[serde(other)]
    Other,
}

impl Reason {
    /// Name on the wire and in output.
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
    /// Records handed to the transport, shipped or dropped.
    pub emitted: u64,
    /// Records not shipped, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<Reason, u64>,
}

impl Counters {
    /// Total of all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Counters by collector id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(pub BTreeMap<String, Counters>);

impl Ledger {
    /// Counts emitted records.
    pub fn emit(&mut self, collector: &str, count: u64) {
        self.entry(collector).emitted += count;
    }

    /// Counts dropped records; the caller counts them as emitted too.
    pub fn drop(&mut self, collector: &str, reason: Reason, count: u64) {
        if count > 0 {
            *self.entry(collector).dropped.entry(reason).or_default() += count;
        }
    }

    /// Adds another ledger's counts.
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
