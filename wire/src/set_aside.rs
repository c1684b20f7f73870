//! Sequences that an agent does not try to deliver any more; without this the workspace would report them missing.

use serde::{Deserialize, Serialize};

/// Maximum number of ranges; the oldest are given up and then show as missing.
pub const RANGES_MAX: usize = 256;

/// First and last sequence.
pub type SequenceRange = (u64, u64);

/// Sequences of an epoch that the agent has set aside, as ascending ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SetAside {
    /// In quarantine: the workspace refused them for good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<SequenceRange>,
    /// Deleted because the policy forbids them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub purged: Vec<SequenceRange>,
    /// Lost with a damaged queue, or answered as a conflict; records that could be read again are in other batches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<SequenceRange>,
    /// Delivered and then lost by the workspace: their sources are read again into other batches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read_again: Vec<SequenceRange>,
}

impl SetAside {
    /// All kinds of ranges.
    pub fn all(&self) -> [&Vec<SequenceRange>; 4] {
        [&self.quarantined, &self.purged, &self.lost, &self.read_again]
    }

    /// Whether there are no ranges.
    pub fn is_empty(&self) -> bool {
        self.all().iter().all(|ranges| ranges.is_empty())
    }
}

/// Adds a sequence to ranges.
pub fn add(ranges: &mut Vec<SequenceRange>, seq: u64) {
    let at = ranges.partition_point(|(first, _)| *first <= seq);
    ranges.insert(at, (seq, seq));
    ranges.dedup_by(|behind, before| {
        let joins = behind.0 <= before.1.saturating_add(1);
        if joins {
            before.1 = before.1.max(behind.1);
        }
        joins
    });
    if ranges.len() > RANGES_MAX {
        ranges.remove(0);
    }
}

/// Number of sequences in the ranges, from `from` to before `to`.
pub fn count(ranges: &[SequenceRange], from: u64, to: u64) -> u64 {
    let inside = |(first, last): &SequenceRange| to.min(last.saturating_add(1)).saturating_sub(from.max(*first));
    ranges.iter().map(inside).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_in_any_order_become_ranges() {
        let mut ranges = Vec::new();
        for seq in [5, 1, 2, 9, 4, 5, 3] {
            add(&mut ranges, seq);
        }
        assert_eq!(ranges, [(1, 5), (9, 9)]);
        assert_eq!((count(&ranges, 0, 100), count(&ranges, 4, 9), count(&ranges, 6, 9)), (6, 2, 0));
    }

    #[test]
    fn ranges_are_bounded() {
        let mut ranges = Vec::new();
        for seq in 0..1000 {
            add(&mut ranges, seq * 2);
        }
        assert_eq!((ranges.len(), ranges.last()), (RANGES_MAX, Some(&(1998, 1998))));
    }
}
