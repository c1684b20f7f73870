//! Packed records: several records in one, whose body only this crate reads (docs/adr/0004-packed-lines.md,
//! docs/adr/0009-packed-entries.md).

use crate::{
    Body, Packer, Position,
    body::{Kind, Observation, Syslog},
    columns::{Packed, UnpackError},
    entries::{self, Entries, EntryPacker},
    lines::{self, Lines},
};
use rmp::decode::read_int;
use std::collections::BTreeMap;

/// A packed record with its envelope.
#[derive(Clone, Copy)]
pub(crate) struct Packing<'a> {
    pub(crate) source: u32,
    pub(crate) observed: i64,
    position: Position,
    packed: &'a [u8],
    is_journal: bool,
}

impl<'a> Packing<'a> {
    /// Decodes the envelope; also returns the remaining bytes. Absent if the bytes are another record. The envelope must be exactly
    /// as `codec::append_record` writes it.
    pub(crate) fn of(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut rest = bytes.strip_prefix(b"\x84\xa1s")?;
        let source = read_int(&mut rest).ok()?;
        rest = rest.strip_prefix(b"\xa1t")?;
        let observed = read_int(&mut rest).ok()?;
        rest = rest.strip_prefix(b"\xa1p\x92")?;
        let position = Position(read_int(&mut rest).ok()?, read_int(&mut rest).ok()?);
        let rest = rest.strip_prefix(b"\xa1b")?;
        let (rest, is_journal) = match rest.strip_prefix(lines::HEAD) {
            Some(rest) => (rest, false),
            None => (rest.strip_prefix(entries::HEAD)?, true),
        };
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (packed, behind) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some((Self { source, observed, position, packed, is_journal }, behind))
    }

    /// Its records, which may have `room` bytes, decoded.
    pub(crate) fn open(&self, room: usize) -> Result<PackedRecords<'a>, UnpackError> {
        Ok(if self.is_journal {
            let (entries, left) = Entries::open(self.packed, self.position, room)?;
            PackedRecords { left, columns: Columns::Entries(Box::new(entries)) }
        } else {
            let (lines, left) = Lines::open(self.packed, self.position)?;
            PackedRecords { left, columns: Columns::Lines(Box::new(lines)) }
        })
    }

    /// Packs its records in two of about equal size, whatever that is. Absent for a single record.
    pub(crate) fn halve(&self) -> Result<Option<[Packed; 2]>, UnpackError> {
        let records: Vec<Unpacked<'_>> = self.open(usize::MAX)?.collect::<Result<_, _>>()?;
        if records.len() < 2 {
            return Ok(None);
        }
        let whole: usize = records.iter().map(Unpacked::plain_bytes).sum();
        let mut bytes = 0;
        let middle = records.iter().position(|record| {
            bytes += record.plain_bytes();
            bytes > whole / 2
        });
        let (first, second) = records.split_at(middle.unwrap_or(0).clamp(1, records.len() - 1));
        Ok(Some([pack(first), pack(second)]))
    }
}

/// Packs records of one body that follow each other.
fn pack(records: &[Unpacked<'_>]) -> Packed {
    let (mut lines, mut entries, mut known) = (Packer::default(), EntryPacker::default(), BTreeMap::new());
    for record in records {
        let is_packed = match record {
            Unpacked::Line(line) => lines.push(line.whole, line.position, &line.line),
            Unpacked::Entry(entry) => {
                let begun = entries.begin(&entry.head, entry.position);
                for (name, value) in &entry.fields {
                    match known.get(&(*name, *value)) {
                        Some(number) => entries.repeat(*number),
                        None => drop(known.insert((*name, *value), entries.field(name, value))),
                    }
                }
                begun
            }
        };
        debug_assert!(is_packed, "records of one body follow each other");
    }
    lines.finish().or_else(|| entries.finish()).expect("there is a record")
}

/// The records of a packed one.
pub(crate) struct PackedRecords<'a> {
    left: u64,
    columns: Columns<'a>,
}

enum Columns<'a> {
    Lines(Box<Lines<'a>>),
    Entries(Box<Entries<'a>>),
}

impl<'a> Columns<'a> {
    /// The next record.
    fn next(&mut self) -> Result<Unpacked<'a>, UnpackError> {
        match self {
            Self::Lines(lines) => lines.next_line().map(Unpacked::Line),
            Self::Entries(entries) => entries.next_entry().map(Unpacked::Entry),
        }
    }

    /// Checks that nothing is behind the last record.
    fn check_end(&self) -> Result<(), UnpackError> {
        match self {
            Self::Lines(lines) => lines.check_end(),
            Self::Entries(entries) => entries.check_end(),
        }
    }
}

impl PackedRecords<'_> {
    /// Stated number of records; exactly as many are decoded, or decoding fails.
    pub(crate) fn number(&self) -> u64 {
        self.left
    }
}

impl<'a> Iterator for PackedRecords<'a> {
    type Item = Result<Unpacked<'a>, UnpackError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let next = match (self.columns.next(), self.left) {
            (Ok(record), 0) => self.columns.check_end().map(|()| record),
            (next, _) => next,
        };
        if next.is_err() {
            self.left = 0;
        }
        Some(next)
    }
}

/// One record of a packed one.
pub(crate) enum Unpacked<'a> {
    Line(lines::Unpacked<'a>),
    Entry(entries::Unpacked<'a>),
}

impl Unpacked<'_> {
    pub(crate) fn position(&self) -> Position {
        match self {
            Self::Line(line) => line.position,
            Self::Entry(entry) => entry.position,
        }
    }

    /// Size, decoded.
    pub(crate) fn plain_bytes(&self) -> usize {
        match self {
            Self::Line(line) => line.whole.len(),
            Self::Entry(entry) => entry.plain,
        }
    }

    pub(crate) fn kind(&self) -> &'static Kind {
        match self {
            Self::Line(_) => const { &<Syslog as Observation>::KIND },
            Self::Entry(_) => const { &<crate::body::Journal as Observation>::KIND },
        }
    }

    pub(crate) fn into_body(self) -> Body {
        match self {
            Self::Line(line) => Body::Syslog(line.into_line()),
            Self::Entry(entry) => Body::Journal(entry.into_entry()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
