//! Packed entries of the systemd journal: several entries in one record, each field once.
//!
//! Most fields of an entry are those of the entry before, and journald itself stores each value once. A packed record is a
//! [`Record`] in the batch whose body is `{"journal_entries": bytes}` and whose position covers all its entries. It decodes to one
//! record per entry. The bytes:
//!
//! | part | content |
//! |---|---|
//! | ids | id of the sequence and id of the boot, 16 bytes each, the same for all entries |
//! | text | names and values of the fields, concatenated in the order in which they first occur |
//! | hashes | hash of each entry, `u64` little-endian |
//! | columns | number of entries, and the columns (`columns`) |
//! | length | length of the columns, `u32` little-endian |
//!
//! Columns: for each entry the length of its position, times of day and since the boot in microseconds as differences, and the number
//! of its fields; for each field of each entry the number of an earlier field, from 1, or 0 for the next one of the text; and for
//! each field of the text the lengths of its name and of its value.
//!
//! [`Record`]: crate::Record

use crate::{
    Position,
    body::Journal,
    columns::{self, Numbers, Packed, SHORT, UnpackError, column, put, unzigzag, zigzag},
};

/// `{"journal_entries": bin 32` (MessagePack), before the length.
pub(crate) const HEAD: &[u8] = b"\x81\xafjournal_entries\xc6";
const ID_BYTES: usize = 16;
const HASH_BYTES: usize = 8;
/// Counted for an entry beside its fields, and for each of its fields beside name and value: about their memory.
const ENTRY_BYTES: usize = 200;
const FIELD_BYTES: usize = 64;
/// Maximum number of fields of an entry; journald allows 1,024.
const FIELDS_MAX: u64 = 4096;
/// Maximum number of different fields in a body when an entry begins.
const TEXT_FIELDS_MAX: usize = 1 << 18;

/// The packed records are larger than a batch may be.
pub(crate) const TOO_LARGE: UnpackError = "packed entries are larger than a batch may be";

/// An entry without its fields (systemd.journal-fields(7), "Address Fields").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    /// Id of the sequence.
    pub sequence: [u8; ID_BYTES],
    /// Id of the boot.
    pub boot: [u8; ID_BYTES],
    /// Microseconds UTC.
    pub realtime: u64,
    /// Microseconds since the boot.
    pub monotonic: u64,
    /// Hash of all fields.
    pub hash: u64,
}

impl EntryHead {
    /// `__CURSOR`, as sd_journal_get_cursor(3) writes it.
    fn cursor(&self, number: u64) -> String {
        let Self { sequence, boot, realtime, monotonic, hash } = self;
        let (sequence, boot) = (hex::encode(sequence), hex::encode(boot));
        format!("s={sequence};i={number:x};b={boot};m={monotonic:x};t={realtime:x};x={hash:x}")
    }
}

/// Packs consecutive entries of a sequence and a boot.
#[derive(Debug, Default)]
pub struct EntryPacker {
    /// The body so far: head, ids and text.
    body: Vec<u8>,
    /// Length of the last body, as a hint for the next.
    length_hint: usize,
    position: Option<Position>,
    /// Ids and times of the last entry.
    last: Option<EntryHead>,
    count: u32,
    /// Fields of the last entry.
    fields: u64,
    /// Size of each field of the text.
    sizes: Vec<usize>,
    plain: usize,
    hashes: Vec<u8>,
    spans: Vec<u8>,
    realtimes: Vec<u8>,
    monotonics: Vec<u8>,
    counts: Vec<u8>,
    references: Vec<u8>,
    names: Vec<u8>,
    values: Vec<u8>,
}

impl EntryPacker {
    /// Begins an entry; its fields follow. The last number of its position is its own. Returns false and changes nothing if the
    /// packed entries are of another sequence or boot, end elsewhere, or have too many different fields, and must be taken out
    /// first.
    pub fn begin(&mut self, head: &EntryHead, position: Position) -> bool {
        let is_next = match (&self.last, self.position) {
            (Some(last), Some(Position(_, end))) => {
                (last.sequence, last.boot, end) == (head.sequence, head.boot, position.0)
            }
            _ => true,
        };
        if !is_next || position.1 < position.0 || self.sizes.len() > TEXT_FIELDS_MAX {
            return false;
        }
        self.end_entry();
        if self.last.is_none() {
            self.body.reserve(self.length_hint);
            columns::begin(HEAD, &mut self.body);
            self.body.extend_from_slice(&head.sequence);
            self.body.extend_from_slice(&head.boot);
        }
        let (realtime, monotonic) = self.last.map_or((0, 0), |last| (last.realtime, last.monotonic));
        let difference = |one: u64, other: u64| zigzag(one.wrapping_sub(other).cast_signed());
        put(difference(head.realtime, realtime), &mut self.realtimes);
        put(difference(head.monotonic, monotonic), &mut self.monotonics);
        put(position.1 - position.0, &mut self.spans);
        self.hashes.extend_from_slice(&head.hash.to_le_bytes());
        self.position.get_or_insert(position).1 = position.1;
        self.last = Some(*head);
        self.count += 1;
        self.plain += ENTRY_BYTES;
        true
    }

    /// Adds a field to the last entry, which has at most 4,096, and returns its number, which later entries of the same body may repeat.
    pub fn field(&mut self, name: &[u8], value: &[u8]) -> usize {
        self.body.extend_from_slice(name);
        self.body.extend_from_slice(value);
        put(name.len() as u64, &mut self.names);
        put(value.len() as u64, &mut self.values);
        self.refer(0, name.len() + value.len());
        self.sizes.push(name.len() + value.len());
        self.sizes.len()
    }

    /// Adds a field again, by the number that [`EntryPacker::field`] has returned since the last body.
    ///
    /// # Panics
    /// If there is no such field.
    pub fn repeat(&mut self, field: usize) {
        self.refer(field as u64, self.sizes[field - 1]);
    }

    fn refer(&mut self, reference: u64, bytes: usize) {
        debug_assert!(self.last.is_some() && self.fields < FIELDS_MAX, "an entry has begun, with few fields");
        put(reference, &mut self.references);
        self.fields += 1;
        self.plain += bytes + FIELD_BYTES;
    }

    fn end_entry(&mut self) {
        if self.last.is_some() {
            put(std::mem::take(&mut self.fields), &mut self.counts);
        }
    }

    /// Size of the entries, decoded.
    pub fn plain_bytes(&self) -> usize {
        self.plain
    }

    /// Encodes the packed entries as a body, and empties the packer.
    pub(crate) fn finish(&mut self) -> Option<Packed> {
        let position = self.position.take()?;
        self.end_entry();
        self.last = None;
        self.sizes.clear();
        let (count, plain) = (std::mem::take(&mut self.count), std::mem::take(&mut self.plain));
        let mut body = std::mem::take(&mut self.body);
        body.append(&mut self.hashes);
        let columns_at = body.len();
        put(u64::from(count), &mut body);
        let Self { spans, realtimes, monotonics, counts, references, names, values, .. } = self;
        for numbers in [spans, realtimes, monotonics, counts, references, names, values] {
            column(numbers, &mut body);
        }
        columns::finish(HEAD, columns_at, &mut body);
        self.length_hint = body.len();
        Some(Packed { body, position, count, plain })
    }
}

/// Name and value.
type TextField<'a> = (&'a [u8], &'a [u8]);

/// Decodes packed entries one after the other. Checks all numbers, since the bytes are untrusted.
pub(crate) struct Entries<'a> {
    text: &'a [u8],
    hashes: &'a [u8],
    /// Position of the next entry.
    at: u64,
    end: u64,
    /// Ids, and times of the last entry.
    head: EntryHead,
    /// Fields of the text so far, with their sizes.
    fields: Vec<(TextField<'a>, usize)>,
    spans: Numbers<'a>,
    realtimes: Numbers<'a>,
    monotonics: Numbers<'a>,
    counts: Numbers<'a>,
    references: Numbers<'a>,
    names: Numbers<'a>,
    values: Numbers<'a>,
    /// Number of bytes that the remaining entries may have, decoded.
    room: usize,
}

/// An entry, unpacked.
pub(crate) struct Unpacked<'a> {
    pub(crate) position: Position,
    pub(crate) head: EntryHead,
    pub(crate) fields: Vec<TextField<'a>>,
    /// Size, decoded.
    pub(crate) plain: usize,
}

impl Unpacked<'_> {
    /// The record's body.
    pub(crate) fn into_entry(self) -> Journal {
        let realtime = i64::try_from(self.head.realtime).ok().and_then(|realtime| realtime.checked_mul(1000));
        Journal {
            time: realtime.unwrap_or_default(),
            cursor: self.head.cursor(self.position.1.saturating_sub(1)),
            boot_id: Some(hex::encode(self.head.boot)),
            ..Journal::of_fields(self.fields.into_iter())
        }
    }
}

impl<'a> Entries<'a> {
    /// Opens the bytes of a body whose record has this position; also returns the stated number of entries, which may have `room`
    /// bytes, decoded.
    pub(crate) fn open(packed: &'a [u8], position: Position, room: usize) -> Result<(Self, u64), UnpackError> {
        let (rest, columns) = columns::open(packed)?;
        let (sequence, rest) = rest.split_first_chunk::<ID_BYTES>().ok_or(SHORT)?;
        let (boot, rest) = rest.split_first_chunk::<ID_BYTES>().ok_or(SHORT)?;
        let mut columns = Numbers::new(columns);
        let left = columns.next()?;
        let hashes = usize::try_from(left).ok().and_then(|left| left.checked_mul(HASH_BYTES)).ok_or(SHORT)?;
        let (text, hashes) = rest.split_at(rest.len().checked_sub(hashes).ok_or(SHORT)?);
        let mut next = || columns.column();
        let (spans, realtimes, monotonics, counts) = (next()?, next()?, next()?, next()?);
        let (references, names, values) = (next()?, next()?, next()?);
        if left == 0 || !columns.is_empty() {
            return Err("packed entries have no entries, or more columns than this build knows");
        }
        let head = EntryHead { sequence: *sequence, boot: *boot, realtime: 0, monotonic: 0, hash: 0 };
        let entries = Self {
            text,
            hashes,
            at: position.0,
            end: position.1,
            head,
            fields: Vec::new(),
            spans,
            realtimes,
            monotonics,
            counts,
            references,
            names,
            values,
            room,
        };
        Ok((entries, left))
    }

    /// The next one.
    pub(crate) fn next_entry(&mut self) -> Result<Unpacked<'a>, UnpackError> {
        let (hash, hashes) = self.hashes.split_first_chunk::<HASH_BYTES>().ok_or(SHORT)?;
        self.hashes = hashes;
        self.head.hash = u64::from_le_bytes(*hash);
        let add = |to: u64, difference: u64| to.wrapping_add_signed(unzigzag(difference));
        self.head.realtime = add(self.head.realtime, self.realtimes.next()?);
        self.head.monotonic = add(self.head.monotonic, self.monotonics.next()?);
        let span = self.spans.next()?;
        let end = self.at.checked_add(span).filter(|end| *end <= self.end);
        let position = Position(self.at, end.ok_or("packed entries are outside their position")?);
        self.at = position.1;
        let (mut plain, mut fields) = (ENTRY_BYTES, Vec::new());
        let count = self.counts.next()?;
        if count > FIELDS_MAX || self.fields.len() > TEXT_FIELDS_MAX {
            return Err("packed entries have more fields than an entry or a body may have");
        }
        for _ in 0..count {
            let (field, bytes) = match self.references.next()? {
                0 => self.field()?,
                earlier => {
                    let index = usize::try_from(earlier - 1).map_err(|_| SHORT)?;
                    *self.fields.get(index).ok_or("packed entries repeat a field that is not there")?
                }
            };
            plain += bytes + FIELD_BYTES;
            if plain > self.room {
                return Err(TOO_LARGE);
            }
            fields.push(field);
        }
        self.room = self.room.checked_sub(plain).ok_or(TOO_LARGE)?;
        Ok(Unpacked { position, head: self.head, fields, plain })
    }

    /// The next field of the text.
    fn field(&mut self) -> Result<(TextField<'a>, usize), UnpackError> {
        let mut take = |length: u64| {
            let (taken, rest) = self.text.split_at_checked(usize::try_from(length).ok()?)?;
            self.text = rest;
            Some(taken)
        };
        let name = take(self.names.next()?).ok_or(SHORT)?;
        let value = take(self.values.next()?).ok_or(SHORT)?;
        // U+FFFD has three bytes.
        let bytes = |text: &[u8]| if std::str::from_utf8(text).is_ok() { text.len() } else { 3 * text.len() };
        let field = ((name, value), bytes(name) + bytes(value));
        self.fields.push(field);
        Ok(field)
    }

    /// Checks that nothing is behind the last one.
    pub(crate) fn check_end(&self) -> Result<(), UnpackError> {
        let Self { spans, realtimes, monotonics, counts, references, names, values, .. } = self;
        let columns = [spans, realtimes, monotonics, counts, references, names, values];
        let is_empty = self.text.is_empty() && self.at == self.end && columns.iter().all(|column| column.is_empty());
        if is_empty { Ok(()) } else { Err("packed entries have bytes or positions after the last entry") }
    }
}

#[cfg(test)]
mod tests;
