//! Index of a batch: its header, and the position runs that the ledger merges.

use std::collections::BTreeMap;
use vedette_wire::{
    Batch, CursorUpdate, Header, Position, SourceRef,
    policy::StoreLevel,
    set_aside::RANGES_MAX,
    text::{LABEL_BYTES_MAX, is_printable},
};

/// Maximum number of position runs: each takes several statements while the control store is locked. An agent splits a batch
/// with more. Two thousand files with one line each fit.
const RUNS_MAX: usize = 2_000;

/// Maximum number of collectors; each takes a line per agent in answers.
const COLLECTORS_MAX: usize = 256;

/// Maximum number of cursors in a batch.
const CURSORS_MAX: usize = 20_000;

/// Maximum size of a cursor, in the collector's own format.
const CURSOR_BYTES_MAX: usize = 1 << 20;

/// Maximum size of a source's name: PATH_MAX is 4,096 bytes; a byte that is not UTF-8 takes three.
const NAME_BYTES_MAX: usize = 3 * 4096;
/// Maximum number of dropped position ranges in a batch.
const DROPPED_MAX: usize = 20_000;
/// Maximum number of sources in a batch.
const SOURCES_MAX: usize = 100_000;

/// Maximum of any sequence, count or position: SQLite and JSON readers can hold it, and sums of many.
const NUMBER_MAX: u64 = 1 << 53;

/// Consecutive positions of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PositionRun {
    pub(crate) collector: String,
    pub(crate) source: String,
    /// Position of each record, in order; empty if the records were dropped.
    pub(crate) positions: Vec<Position>,
    /// Positions of dropped records, and their number.
    pub(crate) dropped: Option<(Position, u64)>,
}

impl PositionRun {
    fn span(&self) -> Position {
        match (self.dropped, self.positions.first(), self.positions.last()) {
            (Some((span, _)), ..) => span,
            (None, Some(first), Some(last)) => Position(first.0, last.1),
            _ => Position(0, 0),
        }
    }

    /// Number of records, stored or dropped.
    pub(crate) fn count(&self) -> u64 {
        self.dropped.map_or(self.positions.len() as u64, |(_, count)| count)
    }

    /// First position.
    pub(crate) fn start(&self) -> u64 {
        self.span().0
    }

    /// Position after the last record.
    pub(crate) fn reached(&self) -> u64 {
        self.span().1
    }
}

/// What the ledger needs of a landed batch.
#[derive(Debug, Clone)]
pub(crate) struct BatchIndex {
    pub(crate) header: Header,
    pub(crate) runs: Vec<PositionRun>,
    /// Store level of the batch's policy.
    pub(crate) store: StoreLevel,
    /// Records that the store level leaves out, by collector.
    pub(crate) left_out: BTreeMap<String, u64>,
}

impl BatchIndex {
    /// Builds an index from the source and position of each record.
    pub(crate) fn new(header: Header, records: impl IntoIterator<Item = (u32, Position)>) -> Self {
        let sources = &header.sources;
        let mut runs: Vec<PositionRun> = Vec::new();
        // The open run of each source.
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        for (source, position) in records {
            let last = open.get(&source).copied();
            match last.filter(|last| runs[*last].reached() == position.0) {
                Some(last) => runs[last].positions.push(position),
                None => {
                    open.insert(source, runs.len());
                    let source = sources.get(source as usize);
                    runs.push(PositionRun {
                        collector: source.map_or_else(|| "unknown".to_owned(), |source| source.collector.clone()),
                        source: source.map_or_else(String::new, |source| source.id.clone()),
                        positions: vec![position],
                        dropped: None,
                    });
                }
            }
        }
        for source in sources {
            runs.extend(source.dropped.iter().map(|(from, to, count)| PositionRun {
                collector: source.collector.clone(),
                source: source.id.clone(),
                positions: Vec::new(),
                dropped: Some((Position(*from, *to), *count)),
            }));
        }
        Self { header, runs, store: StoreLevel::All, left_out: BTreeMap::new() }
    }

    /// Whether the batch has too many runs to merge while others wait for the control store.
    pub(crate) fn is_ragged(&self) -> bool {
        self.runs.iter().filter(|run| run.dropped.is_none()).count() > RUNS_MAX
    }

    /// Checks the size of a header before its sources are copied to runs.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check_sources(header: &Header) -> Result<(), &'static str> {
        let is_long = |source: &SourceRef| source.id.len() > 1024 || source.collector.len() > 64;
        let dropped: usize = header.sources.iter().map(|source| source.dropped.len()).sum();
        if header.sources.len() > SOURCES_MAX || dropped > DROPPED_MAX || header.sources.iter().any(is_long) {
            return Err("a source's id is too long, or there are too many sources or dropped positions");
        }
        Ok(())
    }

    /// Checks that the ledger can hold the batch: an enrolled agent may send anything.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let (header, most) = (&self.header, NUMBER_MAX);
        if !(1..most).contains(&header.seq) || header.lowest_held > most {
            return Err("the sequence is out of range");
        }
        for counters in header.ledger.0.values() {
            let dropped = counters.dropped.values().try_fold(0_u64, |sum, count| sum.checked_add(*count));
            if dropped.is_none_or(|dropped| dropped > counters.emitted) || counters.emitted > most {
                return Err("a collector dropped more than it emitted, or a number is above 2^53");
            }
        }
        let before = header.predecessor.as_ref();
        for set_aside in [Some(&header.set_aside), before.map(|before| &before.set_aside)].into_iter().flatten() {
            if set_aside.all().iter().any(|ranges| ranges.len() > RANGES_MAX) {
                return Err("more was set aside than a header names");
            }
        }
        if before.is_some_and(|before| before.last_seq.max(before.lowest_held.unwrap_or(0)) > most) {
            return Err("the sequence of the epoch before is out of range");
        }
        let host = &header.host;
        let texts = [&host.hostname, &host.os_name, &header.agent_version];
        let texts = texts.into_iter().chain([&host.os_version, &host.machine, &host.boot].into_iter().flatten());
        if !texts.into_iter().all(|text| text.len() <= LABEL_BYTES_MAX && text.chars().all(is_printable)) {
            return Err("the name or version of host, system or agent is too long or is not printable");
        }
        if header.sources.len() > SOURCES_MAX
            || header.sources.iter().filter_map(|source| source.name.as_ref()).any(|name| name.len() > NAME_BYTES_MAX)
        {
            return Err("a source's name is too long, or there are too many sources");
        }
        let is_cursor =
            |update: &CursorUpdate| update.cursor.as_ref().is_none_or(|cursor| cursor.len() <= CURSOR_BYTES_MAX);
        if header.cursors.len() > CURSORS_MAX || !header.cursors.iter().all(is_cursor) {
            return Err("a cursor is too large, or there are too many");
        }
        let collectors = header.ledger.0.keys().chain(self.runs.iter().map(|run| &run.collector));
        let collectors = collectors.chain(header.cursors.iter().map(|update| &update.collector));
        let is_name = |id: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            (1..=64).contains(&id.len()) && id.bytes().all(plain)
        };
        if header.ledger.0.len() > COLLECTORS_MAX || !collectors.into_iter().all(is_name) {
            return Err("a collector's name is not valid, or there are too many");
        }
        let mut ids = self.runs.iter().map(|run| &run.source).chain(header.cursors.iter().map(|update| &update.id));
        if !ids.all(|id| id.len() <= 1024 && !id.contains(char::is_control)) {
            return Err("a source's id is too long or has control characters");
        }
        let in_order = |position: &Position| position.0 <= position.1 && position.1 < most;
        let dropped = |run: &PositionRun| run.dropped.is_none_or(|(span, count)| in_order(&span) && count < most);
        if !self.runs.iter().all(|run| run.positions.iter().all(in_order) && dropped(run)) {
            return Err("a record's position ends before it begins, or is above 2^53");
        }
        Ok(())
    }

    /// Builds an index of a landed batch with the store level of its policy.
    pub(crate) fn of(Batch { header, records }: Batch, store: StoreLevel) -> Self {
        let mut index = Self::new(header, records.iter().map(|record| (record.source, record.position)));
        let mut left_out: BTreeMap<u32, u64> = BTreeMap::new();
        for record in records.iter().filter(|record| !store.keeps(&record.body)) {
            *left_out.entry(record.source).or_default() += 1;
        }
        index.leave_out(store, left_out);
        index
    }

    /// Records the store level, and the number of records that it leaves out, by source.
    pub(crate) fn leave_out(&mut self, store: StoreLevel, left_out: BTreeMap<u32, u64>) {
        self.store = store;
        for (source, count) in left_out {
            let source = self.header.sources.get(source as usize);
            let collector = source.map_or_else(|| "unknown".to_owned(), |source| source.collector.clone());
            *self.left_out.entry(collector).or_default() += count;
        }
    }

    /// Number of records by collector.
    pub(crate) fn records(&self) -> BTreeMap<&str, u64> {
        let mut out = BTreeMap::new();
        for run in &self.runs {
            *out.entry(run.collector.as_str()).or_default() += run.positions.len() as u64;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vedette_wire::{AgentId, Epoch, LaneName, OrganizationId, Reason, geo::WorkspaceGeo};

    fn index(positions: &[(u64, u64)]) -> BatchIndex {
        let header = Header {
            epoch: Epoch(5),
            seq: 1,
            sealed: 1,
            policy_revision: 1,
            lowest_held: 1,
            ..Header::new(
                OrganizationId::from_uuid(uuid::Uuid::nil()),
                AgentId([7; 16]),
                LaneName::Records,
                WorkspaceGeo::Europe,
            )
        };
        let run = |&(from, to): &(u64, u64)| PositionRun {
            collector: "syslog".to_owned(),
            source: "f".to_owned(),
            positions: vec![Position(from, to)],
            dropped: None,
        };
        BatchIndex { runs: positions.iter().map(run).collect(), ..BatchIndex::new(header, []) }
    }

    #[test]
    fn what_the_ledger_cannot_hold_is_refused() {
        assert_eq!(index(&[(0, 10), (20, 20)]).check(), Ok(()));
        for positions in [[(10, 5)], [(0, u64::MAX)], [(0, NUMBER_MAX)]] {
            index(&positions).check().expect_err("no position");
        }
        assert!(!index(&vec![(0, 1); RUNS_MAX]).is_ragged() && index(&vec![(0, 1); RUNS_MAX + 1]).is_ragged());
        for hostname in ["\u{1b}[31mred", "two\nlines", "\u{202e}", &"x".repeat(256)] {
            let mut index = index(&[(0, 1)]);
            index.header.host.hostname = hostname.to_owned();
            index.check().expect_err("no name");
        }
        for (seq, lowest_held) in [(0, 1), (NUMBER_MAX, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let mut index = index(&[]);
            (index.header.seq, index.header.lowest_held) = (seq, lowest_held);
            index.check().expect_err("no sequence");
        }
        for name in ["", "evil,\u{1b}[31mred\n", &"x".repeat(65)] {
            let mut index = index(&[(0, 1)]);
            index.runs[0].collector = name.to_owned();
            index.check().expect_err("no name");
        }
        for id in ["a\nb", &"x".repeat(1025)] {
            let mut index = index(&[(0, 1)]);
            index.runs[0].source = id.to_owned();
            index.check().expect_err("no id");
        }
        let mut noted_aside = index(&[]);
        noted_aside.header.set_aside.purged = vec![(0, u64::MAX); RANGES_MAX];
        noted_aside.check().expect("as many as may be");
        noted_aside.header.set_aside.purged.push((0, 1));
        noted_aside.check().expect_err("one more");
        for (emitted, dropped, rest) in [(1, 2, 0), (NUMBER_MAX + 1, 0, 0), (5, u64::MAX, 2)] {
            let mut index = index(&[]);
            index.header.ledger.emit("syslog", emitted);
            index.header.ledger.drop("syslog", Reason::Oversize, dropped);
            index.header.ledger.drop("syslog", Reason::Policy, rest);
            index.check().expect_err("no counters");
        }
    }
}
