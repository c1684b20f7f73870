//! A chunk: encoded bodies of one source on their way from a collector to the queue.
//!
//! Bodies are encoded where they are made, so that what waits in memory is bytes that can be counted, and so that the
//! transport never sees a body.

use crate::{
    Body, Packer, Position, Reason, Record,
    codec::{self, DecodeError},
    lines::Packed,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A source, as its collector names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// Collector that reads it.
    pub collector: &'static str,
    /// Identity of the source.
    pub id: String,
    /// What a person calls it: a path.
    pub name: Option<String>,
}

/// Positions of a source that the workspace had when it was asked: what is read of them again is not to be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Identity of the source.
    pub id: String,
    /// Half-open, ascending, apart.
    pub ranges: Vec<(u64, u64)>,
    /// A cursor was kept since: it is to be gone on with. Else reading begins anew at the first hole.
    pub begun: bool,
    /// Positions below are never read again, whatever is stored: policy had them passed over.
    #[serde(default)]
    pub floor: u64,
}

impl Stored {
    /// Whether a record that begins here is stored.
    pub fn has(&self, position: u64) -> bool {
        let at = self.ranges.partition_point(|(_, to)| *to <= position);
        self.ranges.get(at).is_some_and(|(from, _)| *from <= position)
    }

    /// Where the first record is missing of a source that was begun at `begin`; where that is not known, the end of what is
    /// stored first stands for it. `None` where nothing is stored.
    pub fn first_hole(&self, begin: Option<u64>) -> Option<u64> {
        let first = self.ranges.first()?;
        let mut hole = begin.or(Some(first.1).filter(|end| *end > 0))?;
        for (from, to) in &self.ranges {
            if (*from..*to).contains(&hole) {
                hole = *to;
            }
        }
        Some(hole)
    }

    /// The same, where what lies below the floor counts as stored: of a source that is read again because the workspace lost
    /// what it had. A source of which nothing is stored is read from where it was begun.
    pub fn above_floor(mut self) -> Self {
        let floor = self.floor;
        self.ranges.retain(|(_, to)| *to > floor);
        match self.ranges.first_mut() {
            Some(first) if floor > 0 && first.0 <= floor => first.0 = 0,
            Some(_) if floor == 0 => {}
            _ => self.ranges.insert(0, (0, floor)),
        }
        self
    }
}

/// The envelope of one body in a chunk: of a record, or of packed lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When it was observed, nanoseconds UTC.
    pub observed: i64,
    /// Where it was read.
    pub position: Position,
    /// Records that the body holds.
    pub count: u32,
    /// End of its body in [`Chunk::bodies`]; it begins where the one before ends.
    pub end: usize,
}

/// Records of one source with what must be made durable in the same transaction.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Where the records come from.
    pub source: Arc<Source>,
    /// Encoded bodies, one behind the other.
    pub bodies: Vec<u8>,
    /// Their envelopes.
    pub entries: Vec<Entry>,
    /// Where to go on after a restart, in the collector's own format; kept under the source's id.
    pub cursor: Option<Vec<u8>>,
    /// Cursors of sources of this collector that are gone, by id.
    pub forget: Vec<String>,
    /// Records that could not be shipped, counted as emitted and dropped.
    pub dropped: Vec<Dropped>,
}

/// Records of a source that are not shipped, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: Reason,
    /// How many; 1 where it is not known how many lines there were.
    pub count: u64,
    /// Their positions, half-open: there is no record, and none is missing. Absent where they had none.
    pub positions: Option<Position>,
}

impl Chunk {
    /// An empty chunk.
    pub fn new(source: Arc<Source>) -> Self {
        Self { source, bodies: Vec::new(), entries: Vec::new(), cursor: None, forget: Vec::new(), dropped: Vec::new() }
    }

    /// Add a record.
    pub fn push(&mut self, observed: i64, position: Position, body: &Body) {
        codec::append_body(body, &mut self.bodies);
        self.entries.push(Entry { observed, position, count: 1, end: self.bodies.len() });
    }

    /// Add what a packer holds, and empty it.
    pub fn push_packed(&mut self, observed: i64, packer: &mut Packer) {
        let Some(Packed { mut body, position, count }) = packer.finish() else { return };
        if self.bodies.is_empty() {
            self.bodies = body;
        } else {
            self.bodies.append(&mut body);
        }
        self.entries.push(Entry { observed, position, count, end: self.bodies.len() });
    }

    /// How many records it has.
    pub fn count(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.count)).sum()
    }

    /// The records as a workspace will read them, of the first source of a batch.
    ///
    /// # Errors
    /// [`DecodeError::Record`].
    pub fn decode(&self) -> Result<Vec<Record>, DecodeError> {
        let mut encoded = Vec::new();
        for (entry, body) in self.bodies() {
            codec::append_record(0, entry.observed, entry.position, body, &mut encoded);
        }
        codec::decode_records(&encoded)
    }

    /// Bytes that it occupies in memory, about.
    pub fn weight(&self) -> usize {
        self.bodies.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.cursor.as_ref().map_or(0, Vec::capacity)
            + self.dropped.capacity() * size_of::<Dropped>()
            + 256
    }

    /// Give up the records, counting them under a reason; the cursor and what was dropped before stay.
    pub fn give_up(&mut self, reason: Reason) {
        let count = self.count();
        if let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) {
            let positions = Some(Position(first.position.0, last.position.1));
            self.dropped.push(Dropped { reason, count, positions });
        }
        (self.entries, self.bodies) = (Vec::new(), Vec::new());
    }

    /// The bodies' bytes with their envelopes.
    pub fn bodies(&self) -> impl Iterator<Item = (Entry, &[u8])> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let body = &self.bodies[start..entry.end];
            start = entry.end;
            (*entry, body)
        })
    }
}
