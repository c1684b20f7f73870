//! Chunks: encoded bodies of one source between a collector and the queue.
//!
//! Collectors encode bodies where they make them. So memory is counted in bytes, and the transport never sees a body.

use crate::{
    Body, PACKED_ENTRIES, PACKED_LINES, Packer, Position, Reason, Record,
    codec::{self, DecodeError},
    columns::Packed,
    entries::EntryPacker,
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
    /// Display name: a path, or the address of a socket.
    pub name: Option<String>,
}

/// Positions of a source that the workspace has stored. Records at these positions are not sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Identity of the source.
    pub id: String,
    /// Half-open ranges, ascending and disjoint.
    pub ranges: Vec<(u64, u64)>,
    /// A cursor was kept since, and reading continues from it. Otherwise reading starts at the first hole.
    pub begun: bool,
    /// Positions below are excluded by policy and never read again, stored or not.
    #[serde(default)]
    pub floor: u64,
}

impl Stored {
    /// Whether the record at a position is stored.
    pub fn has(&self, position: u64) -> bool {
        let at = self.ranges.partition_point(|(_, to)| *to <= position);
        self.ranges.get(at).is_some_and(|(from, _)| *from <= position)
    }

    /// Position of the first missing record of a source that was read from `begin` on; the end of the first stored range
    /// replaces an unknown `begin`. `None` if nothing is stored.
    pub fn first_missing(&self, begin: Option<u64>) -> Option<u64> {
        let first = self.ranges.first()?;
        let mut hole = begin.or(Some(first.1).filter(|end| *end > 0))?;
        for (from, to) in &self.ranges {
            if (*from..*to).contains(&hole) {
                hole = *to;
            }
        }
        Some(hole)
    }

    /// Marks everything below the floor as stored, for a source that is read again because the workspace lost records. A source
    /// without stored records is read from its start.
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

/// Envelope of one body in a chunk: a record, or packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Time of observation, nanoseconds UTC.
    pub observed: i64,
    /// Position in the source.
    pub position: Position,
    /// Number of records in the body.
    pub count: u32,
    /// End of the body in [`Chunk::bodies`]; it starts at the end of the previous one.
    pub end: usize,
    /// Size of the records, decoded, and of the envelope.
    pub plain: usize,
}

/// Approximate size of an encoded envelope.
const ENVELOPE_BYTES: usize = 40;

/// Records of one source, with everything that must become durable in the same transaction.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Source of the records.
    pub source: Arc<Source>,
    /// Encoded bodies, concatenated.
    pub bodies: Vec<u8>,
    /// Envelopes of the bodies.
    pub entries: Vec<Entry>,
    /// Where to continue after a restart, in the collector's own format; stored under the source's id.
    pub cursor: Option<Vec<u8>>,
    /// Ids of this collector's sources that are gone; their cursors are deleted.
    pub forget: Vec<String>,
    /// Records that are not shipped, counted as emitted and dropped.
    pub dropped: Vec<Dropped>,
    /// Lowest format version that has the bodies.
    pub version: u16,
}

/// Records of a source that are not shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Reason.
    pub reason: Reason,
    /// Number of records; 1 where the number of lines is unknown.
    pub count: u64,
    /// Half-open range of their positions, which is not a gap. Absent where they have none.
    pub positions: Option<Position>,
}

impl Chunk {
    /// An empty chunk.
    pub fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            bodies: Vec::new(),
            entries: Vec::new(),
            cursor: None,
            forget: Vec::new(),
            dropped: Vec::new(),
            version: 1,
        }
    }

    /// Appends a record.
    pub fn push(&mut self, observed: i64, position: Position, body: &Body) {
        let start = self.bodies.len();
        codec::append_body(body, &mut self.bodies);
        let end = self.bodies.len();
        self.entries.push(Entry { observed, position, count: 1, end, plain: end - start + ENVELOPE_BYTES });
    }

    /// Appends the packer's lines, and empties the packer.
    pub fn push_packed(&mut self, observed: i64, packer: &mut Packer) {
        self.push_body(observed, packer.finish(), PACKED_LINES);
    }

    /// Appends the packer's entries of the journal, and empties the packer.
    pub fn push_entries(&mut self, observed: i64, packer: &mut EntryPacker) {
        self.push_body(observed, packer.finish(), PACKED_ENTRIES);
    }

    fn push_body(&mut self, observed: i64, packed: Option<Packed>, version: u16) {
        let Some(Packed { mut body, position, count, plain }) = packed else { return };
        if self.bodies.is_empty() {
            self.bodies = body;
        } else {
            self.bodies.append(&mut body);
        }
        self.entries.push(Entry { observed, position, count, end: self.bodies.len(), plain: plain + ENVELOPE_BYTES });
        self.version = self.version.max(version);
    }

    /// Size of the records, decoded, with their envelopes.
    pub fn plain_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.plain).sum()
    }

    /// Number of records.
    pub fn count(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.count)).sum()
    }

    /// The encoded records as in a batch, with source index 0.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (entry, body) in self.bodies() {
            codec::append_record(0, entry.observed, entry.position, body, &mut encoded);
        }
        encoded
    }

    /// Decodes the records as a workspace does, with source index 0.
    ///
    /// # Errors
    /// [`DecodeError::Record`].
    pub fn decode(&self) -> Result<Vec<Record>, DecodeError> {
        codec::decode_records(&self.encode())
    }

    /// Approximate size in memory, bytes.
    pub fn weight(&self) -> usize {
        self.bodies.capacity()
            + self.entries.capacity() * size_of::<Entry>()
            + self.cursor.as_ref().map_or(0, Vec::capacity)
            + self.dropped.capacity() * size_of::<Dropped>()
            + 256
    }

    /// Drops all records for a reason; keeps the cursor and earlier drops.
    pub fn give_up(&mut self, reason: Reason) {
        let count = self.count();
        if let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) {
            let positions = Some(Position(first.position.0, last.position.1));
            self.dropped.push(Dropped { reason, count, positions });
        }
        (self.entries, self.bodies, self.version) = (Vec::new(), Vec::new(), 1);
    }

    /// Encoded bodies with their envelopes.
    pub fn bodies(&self) -> impl Iterator<Item = (Entry, &[u8])> {
        let mut start = 0;
        self.entries.iter().map(move |entry| {
            let body = &self.bodies[start..entry.end];
            start = entry.end;
            (*entry, body)
        })
    }
}
