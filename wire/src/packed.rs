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
            PackedRecords::Entries(Box::new(Entries::open(self.packed, self.position, room)?))
        } else {
            PackedRecords::Lines(Box::new(Lines::open(self.packed, self.position)?))
        })
    }

    /// Packs its records in two of about equal size, whatever that is. Absent for a single record.
    pub(crate) fn halve(&self) -> Result<Option<[Packed; 2]>, UnpackError> {
        match self.open(usize::MAX)? {
            records if records.number() < 2 => Ok(None),
            PackedRecords::Lines(lines) => halve_lines(*lines, self.position).map(Some),
            PackedRecords::Entries(entries) => halve_entries(*entries).map(Some),
        }
    }
}

fn halve_lines(lines: Lines<'_>, position: Position) -> Result<[Packed; 2], UnpackError> {
    let (mut packers, middle) = ([Packer::default(), Packer::default()], position.0.midpoint(position.1));
    for line in lines {
        let line = line?;
        // The first line always goes to the first half.
        let second = packers[0].count() > 0 && line.position.1 > middle;
        packers[usize::from(second)].push(line.whole, line.position, &line.line);
    }
    Ok(packers.map(|mut packer| packer.finish().expect("each has a line")))
}

fn halve_entries(entries: Entries<'_>) -> Result<[Packed; 2], UnpackError> {
    let entries: Vec<_> = entries.collect::<Result<_, _>>()?;
    let whole: usize = entries.iter().map(|entry| entry.plain).sum();
    let (mut packers, mut before) = ([EntryPacker::default(), EntryPacker::default()], 0);
    let mut known = [const { std::collections::BTreeMap::new() }; 2];
    for (index, entry) in entries.iter().enumerate() {
        before += entry.plain;
        // Each half has an entry.
        let half = usize::from(index > 0 && (before > whole / 2 || index + 1 == entries.len()));
        let (packer, known) = (&mut packers[half], &mut known[half]);
        let begun = packer.begin(&entry.head, entry.position);
        debug_assert!(begun, "entries of one body follow each other");
        for (name, value) in &entry.fields {
            match known.get(&(*name, *value)) {
                Some(number) => packer.repeat(*number),
                None => drop(known.insert((*name, *value), packer.field(name, value))),
            }
        }
    }
    Ok(packers.map(|mut packer| packer.finish().expect("each has an entry")))
}

/// The records of a packed one.
pub(crate) enum PackedRecords<'a> {
    Lines(Box<Lines<'a>>),
    Entries(Box<Entries<'a>>),
}

impl PackedRecords<'_> {
    /// Stated number of records; exactly as many are decoded, or decoding fails.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.number(),
            Self::Entries(entries) => entries.number(),
        }
    }
}

impl<'a> Iterator for PackedRecords<'a> {
    type Item = Result<Unpacked<'a>, UnpackError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self {
            Self::Lines(lines) => lines.next()?.map(Unpacked::Line),
            Self::Entries(entries) => entries.next()?.map(Unpacked::Entry),
        })
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
