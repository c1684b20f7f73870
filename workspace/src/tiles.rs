//! What a batch covers of its sources: the tiles that the ledger lays side by side.

use std::collections::BTreeMap;
use vedette_wire::{
    Batch, Header, Position, Record, SourceRef, Told,
    policy::Store,
    set_aside::RANGES_MAX,
    text::{LABEL_BYTES_MAX, is_printable},
};

/// Each takes a few statements while the control store is locked. What has more is split by its agent: two thousand files
/// with a line each fit.
const TILES_MAX: usize = 2_000;

/// More than there will ever be; each agent has a line in the answer for each.
const COLLECTORS_MAX: usize = 256;

/// Cursors of one batch.
const CURSORS_MAX: usize = 20_000;

/// A cursor, in the collector's own format.
const CURSOR_BYTES_MAX: usize = 1 << 20;

/// A path has 4,096 bytes at the most (PATH_MAX); three for each where it is no UTF-8.
const NAME_BYTES_MAX: usize = 3 * 4096;
/// Positions without records of one batch.
const SKIPPED_MAX: usize = 20_000;
/// Sources of one batch.
const SOURCES_MAX: usize = 100_000;

/// No sequence, count or position is larger: what SQLite and JSON readers can hold, added up many times.
const NUMBER_MAX: u64 = 1 << 53;

/// Positions of one source, one behind the other without a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) collector: String,
    pub(crate) source: String,
    /// Of each record, in order; none where the records were dropped.
    pub(crate) positions: Vec<Position>,
    /// Positions that have no record, and how many records were dropped there.
    pub(crate) skipped: Option<(Position, u64)>,
}

impl Tile {
    fn span(&self) -> Position {
        match (self.skipped, self.positions.first(), self.positions.last()) {
            (Some((span, _)), ..) => span,
            (None, Some(first), Some(last)) => Position(first.0, last.1),
            _ => Position(0, 0),
        }
    }

    /// Records that it stands for, stored or dropped.
    pub(crate) fn count(&self) -> u64 {
        self.skipped.map_or(self.positions.len() as u64, |(_, count)| count)
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> u64 {
        self.span().0
    }

    /// Just behind its last record.
    pub(crate) fn reached(&self) -> u64 {
        self.span().1
    }
}

/// A landed batch as the ledger sees it.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    pub(crate) header: Header,
    pub(crate) tiles: Vec<Tile>,
    /// The store level that it was observed under.
    pub(crate) store: Store,
    /// Records by collector that the level leaves out.
    pub(crate) left_out: BTreeMap<String, u64>,
}

impl Noted {
    /// Of a batch with these records, each its source and its position.
    pub(crate) fn new(header: Header, records: impl IntoIterator<Item = (u32, Position)>) -> Self {
        let sources = &header.sources;
        let mut tiles: Vec<Tile> = Vec::new();
        // The tile of each source that is being laid.
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        for (source, position) in records {
            let last = open.get(&source).copied();
            match last.filter(|last| tiles[*last].reached() == position.0) {
                Some(last) => tiles[last].positions.push(position),
                None => {
                    open.insert(source, tiles.len());
                    let source = sources.get(source as usize);
                    tiles.push(Tile {
                        collector: source.map_or_else(|| "unknown".to_owned(), |source| source.collector.clone()),
                        source: source.map_or_else(String::new, |source| source.id.clone()),
                        positions: vec![position],
                        skipped: None,
                    });
                }
            }
        }
        for source in sources {
            tiles.extend(source.skipped.iter().map(|(from, to, count)| Tile {
                collector: source.collector.clone(),
                source: source.id.clone(),
                positions: Vec::new(),
                skipped: Some((Position(*from, *to), *count)),
            }));
        }
        Self { header, tiles, store: Store::All, left_out: BTreeMap::new() }
    }

    /// Whether laying its positions would keep others from the control store for too long.
    pub(crate) fn is_ragged(&self) -> bool {
        self.tiles.iter().filter(|tile| tile.skipped.is_none()).count() > TILES_MAX
    }

    /// Whether a header is small enough to be laid out: before anything of it is copied for each of its tiles.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_sources(header: &Header) -> Result<(), &'static str> {
        let is_long = |source: &SourceRef| source.id.len() > 1024 || source.collector.len() > 64;
        let skipped: usize = header.sources.iter().map(|source| source.skipped.len()).sum();
        if header.sources.len() > SOURCES_MAX || skipped > SKIPPED_MAX || header.sources.iter().any(is_long) {
            return Err("a source's id is too long, or there are too many sources or skipped positions");
        }
        Ok(())
    }

    /// Whether the ledger can hold it. An agent may be enrolled and send anything all the same.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let (header, most) = (&self.header, NUMBER_MAX);
        if !(1..most).contains(&header.seq) || header.lowest_held > most {
            return Err("the sequence is out of range");
        }
        for counters in header.ledger.0.values() {
            let dropped = counters.dropped.values().try_fold(0_u64, |sum, count| sum.checked_add(*count));
            if dropped.is_none_or(|dropped| dropped > counters.emitted) || counters.emitted > most {
                return Err("a collector dropped more than it emitted");
            }
        }
        let before = header.predecessor.as_ref();
        for aside in [Some(&header.set_aside), before.map(|before| &before.set_aside)].into_iter().flatten() {
            if aside.all().iter().any(|ranges| ranges.len() > RANGES_MAX) {
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
            return Err("a source's name is too long, or there are too many");
        }
        let is_cursor = |told: &Told| told.cursor.as_ref().is_none_or(|cursor| cursor.len() <= CURSOR_BYTES_MAX);
        if header.cursors.len() > CURSORS_MAX || !header.cursors.iter().all(is_cursor) {
            return Err("a cursor is too large, or there are too many");
        }
        let collectors = header.ledger.0.keys().chain(self.tiles.iter().map(|tile| &tile.collector));
        let collectors = collectors.chain(header.cursors.iter().map(|told| &told.collector));
        let is_name = |id: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            (1..=64).contains(&id.len()) && id.bytes().all(plain)
        };
        if header.ledger.0.len() > COLLECTORS_MAX || !collectors.into_iter().all(is_name) {
            return Err("a collector's name is no name, or there are too many");
        }
        let mut ids = self.tiles.iter().map(|tile| &tile.source).chain(header.cursors.iter().map(|told| &told.id));
        if !ids.all(|id| id.len() <= 1024 && !id.contains(char::is_control)) {
            return Err("a source's id is too long or has control characters");
        }
        let in_order = |position: &Position| position.0 <= position.1 && position.1 < most;
        let skipped = |tile: &Tile| tile.skipped.is_none_or(|(span, count)| in_order(&span) && count < most);
        if !self.tiles.iter().all(|tile| tile.positions.iter().all(in_order) && skipped(tile)) {
            return Err("a record's position ends before it begins");
        }
        Ok(())
    }

    /// Of a landed batch that was observed under a store level.
    pub(crate) fn of(Batch { header, records }: Batch, store: Store) -> Self {
        let mut noted = Self::new(header, records.iter().map(|record| (record.source, record.position)));
        noted.leave_out(store, &records);
        noted
    }

    /// Note which of its records a store level leaves out.
    pub(crate) fn leave_out(&mut self, store: Store, records: &[Record]) {
        self.store = store;
        for record in records.iter().filter(|record| !store.keeps(&record.body)) {
            let source = self.header.sources.get(record.source as usize);
            let collector = source.map_or_else(|| "unknown".to_owned(), |source| source.collector.clone());
            *self.left_out.entry(collector).or_default() += 1;
        }
    }

    /// Records by collector.
    pub(crate) fn records(&self) -> BTreeMap<&str, u64> {
        let mut out = BTreeMap::new();
        for tile in &self.tiles {
            *out.entry(tile.collector.as_str()).or_default() += tile.positions.len() as u64;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vedette_wire::{AgentId, Epoch, Lane, OrganizationId, Reason, geo::WorkspaceGeo};

    fn noted(positions: &[(u64, u64)]) -> Noted {
        let header = Header {
            epoch: Epoch(5),
            seq: 1,
            sealed: 1,
            policy_revision: 1,
            lowest_held: 1,
            ..Header::new(
                OrganizationId::from_uuid(uuid::Uuid::nil()),
                AgentId([7; 16]),
                Lane::Records,
                WorkspaceGeo::Europe,
            )
        };
        let tile = |&(from, to): &(u64, u64)| Tile {
            collector: "syslog".to_owned(),
            source: "f".to_owned(),
            positions: vec![Position(from, to)],
            skipped: None,
        };
        Noted { tiles: positions.iter().map(tile).collect(), ..Noted::new(header, []) }
    }

    #[test]
    fn what_the_ledger_cannot_hold_is_refused() {
        assert_eq!(noted(&[(0, 10), (20, 20)]).check(), Ok(()));
        for positions in [[(10, 5)], [(0, u64::MAX)], [(0, NUMBER_MAX)]] {
            noted(&positions).check().expect_err("no position");
        }
        assert!(!noted(&vec![(0, 1); TILES_MAX]).is_ragged() && noted(&vec![(0, 1); TILES_MAX + 1]).is_ragged());
        for hostname in ["\u{1b}[31mred", "two\nlines", "\u{202e}", &"x".repeat(256)] {
            let mut noted = noted(&[(0, 1)]);
            noted.header.host.hostname = hostname.to_owned();
            noted.check().expect_err("no name");
        }
        for (seq, lowest_held) in [(0, 1), (NUMBER_MAX, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let mut noted = noted(&[]);
            (noted.header.seq, noted.header.lowest_held) = (seq, lowest_held);
            noted.check().expect_err("no sequence");
        }
        for name in ["", "evil,\u{1b}[31mred\n", &"x".repeat(65)] {
            let mut noted = noted(&[(0, 1)]);
            noted.tiles[0].collector = name.to_owned();
            noted.check().expect_err("no name");
        }
        for id in ["a\nb", &"x".repeat(1025)] {
            let mut noted = noted(&[(0, 1)]);
            noted.tiles[0].source = id.to_owned();
            noted.check().expect_err("no id");
        }
        let mut noted_aside = noted(&[]);
        noted_aside.header.set_aside.purged = vec![(0, u64::MAX); RANGES_MAX];
        noted_aside.check().expect("as many as may be");
        noted_aside.header.set_aside.purged.push((0, 1));
        noted_aside.check().expect_err("one more");
        for (emitted, dropped, rest) in [(1, 2, 0), (NUMBER_MAX + 1, 0, 0), (5, u64::MAX, 2)] {
            let mut noted = noted(&[]);
            noted.header.ledger.emit("syslog", emitted);
            noted.header.ledger.drop("syslog", Reason::Oversize, dropped);
            noted.header.ledger.drop("syslog", Reason::Policy, rest);
            noted.check().expect_err("no counters");
        }
    }
}
