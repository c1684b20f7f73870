//! One journal file: its entries in order.

use crate::{
    Cursor, EntryHead, Field, Header,
    data::{self, PLAIN_BYTES_MAX},
    format::{ARRAY_BYTES, DATA_BYTES, ENTRY_BYTES, HEADER_BYTES, HeaderError, id_at, object, u32_at, u64_at},
    pages::{Pages, ReadAt, read_full},
};
use std::{io, ops::Range, rc::Rc};

/// Maximum number of entry arrays; each is about twice as large as the one before.
const ARRAYS_MAX: usize = 4096;
/// Maximum number of fields of an entry, as journald has it.
const FIELDS_MAX: u64 = 1024;
/// Number of sets of cached fields, a power of two, and of fields in a set: so many fields of one hash do not replace each other.
const CACHE_SETS: usize = 128;
const CACHE_WAYS: usize = 4;
/// Maximum size of a cached field in bytes.
const CACHED_BYTES_MAX: usize = 512;
/// Fields that fewer entries have are not cached.
const CACHED_USES_MIN: u64 = 3;
/// Number of consecutive damaged entries that a search skips.
const DAMAGED_MAX: usize = 100;
/// Number of consecutive damaged entries after which the rest of a file is given up.
const CONSECUTIVE_MAX: u64 = 10_000;
/// Maximum size of an entry's fields; the rest is missing.
const ENTRY_FIELDS_MAX: usize = 1 << 20;

/// Why a file cannot be read as a journal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its header is not that of a journal, or of a later release.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// What could not be read, since the file was last asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Number of entries that were skipped.
    pub entries: u64,
    /// Number of fields that are missing from entries.
    pub fields: u64,
    /// The first of it: what, and at which offset.
    pub first: Option<String>,
}

/// An entry array of the main chain.
#[derive(Debug, Clone, Copy)]
struct EntryArray {
    offset: u64,
    /// Number of items that it has room for.
    capacity: u64,
    next: u64,
}

/// A journal file, open at an entry.
pub struct JournalFile<S> {
    source: S,
    size: u64,
    header: Header,
    pages: Pages,
    arrays: Vec<EntryArray>,
    /// Index of the next entry.
    next: u64,
    /// Entries before this index are visible.
    visible: u64,
    head: Option<EntryHead>,
    /// Entries up to this number were read before.
    skip_to: Option<u64>,
    /// Number of the last entry since the last move; numbers grow within a file.
    number: u64,
    /// The last visible entry, once it was looked for.
    last: Option<Option<EntryHead>>,
    /// Fields that several entries have, in sets by offset, the last used first; 0 for a free slot. Empty while none is cached.
    cache: Vec<(u64, Option<Rc<Field>>)>,
    /// Buffer for the items of an entry.
    items: Vec<u8>,
    damage: Damage,
}

impl<S: ReadAt> JournalFile<S> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(source: S) -> Result<Self, OpenError> {
        let header = read_header(&source)?;
        let size = source.size()?;
        let visible = entries(&header, size);
        Ok(Self {
            source,
            size,
            header,
            pages: Pages::default(),
            arrays: Vec::new(),
            next: 0,
            visible,
            head: None,
            skip_to: None,
            number: 0,
            last: None,
            cache: Vec::new(),
            items: Vec::new(),
            damage: Damage::default(),
        })
    }

    /// What the file is read from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The header, as of the last [`JournalFile::refresh`].
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Number of entries that are not read yet, damaged ones included.
    pub fn remaining(&self) -> u64 {
        self.visible.saturating_sub(self.next) + u64::from(self.head.is_some())
    }

    /// Number of fields that could not be read since [`JournalFile::take_damage`].
    pub(crate) fn bad_fields(&self) -> u64 {
        self.damage.fields
    }

    /// What could not be read since the last call.
    pub fn take_damage(&mut self) -> Damage {
        std::mem::take(&mut self.damage)
    }

    /// Reads the header again. Entries that it counts are complete: journald raises the count last.
    ///
    /// # Errors
    /// [`OpenError`]; what was visible before stays readable.
    pub fn refresh(&mut self) -> Result<(), OpenError> {
        let header = read_header(&self.source)?;
        if header == self.header {
            return Ok(());
        }
        self.size = self.source.size()?;
        self.pages.clear();
        // The last array may have got a successor.
        self.arrays.pop();
        // A count that falls is damage, or another file under the same descriptor; entries are not read twice.
        self.visible = entries(&header, self.size).max(self.visible);
        self.last = None;
        self.header = header;
        Ok(())
    }

    /// Frees buffers; they are filled again when they are needed.
    pub fn release(&mut self) {
        self.pages.clear();
        self.cache = Vec::new();
        self.items = Vec::new();
    }

    /// Moves to the first entry behind a place. Entries that the place says nothing of count as behind it.
    pub fn seek_after(&mut self, place: &Cursor) {
        self.seek(|head| place.is_before(head));
        if let Some((id, number)) = place.seqnum
            && id == self.header.seqnum_id
        {
            if number >= self.header.tail_seqnum && self.header.tail_seqnum > 0 && self.peek_number() != Some(number) {
                self.next = self.visible;
            }
            self.skip_to = Some(number).filter(|_| self.peek_number() != Some(number));
        }
    }

    /// Number of the next entry, if it can be read.
    fn peek_number(&mut self) -> Option<u64> {
        (self.next < self.visible).then(|| self.read_head(self.next).ok()).flatten().map(|head| head.seqnum)
    }

    /// Moves to the first entry for which `is_behind` is true; it is true for all entries after that one.
    pub fn seek(&mut self, is_behind: impl Fn(&EntryHead) -> bool) {
        (self.head, self.skip_to, self.number) = (None, None, 0);
        let (mut low, mut high) = (0, self.visible);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_good(middle..high) {
                Some((_, head)) if is_behind(&head) => high = middle,
                Some((index, _)) => low = index + 1,
                None => high = middle,
            }
        }
        self.next = low;
    }

    /// The first of some entries that is not damaged, if it is near.
    fn first_good(&mut self, range: Range<u64>) -> Option<(u64, EntryHead)> {
        for index in range.take(DAMAGED_MAX) {
            match self.read_head(index) {
                Ok(head) => return Some((index, head)),
                Err(EntryError::Entry(_)) => {}
                Err(EntryError::Chain(_)) => break,
            }
        }
        None
    }

    /// Moves so that at most `count` entries follow.
    pub fn seek_last(&mut self, count: u64) {
        (self.head, self.skip_to, self.number) = (None, None, 0);
        self.next = self.visible.saturating_sub(count);
    }

    /// The next entry, without its fields; absent at the end. Skips damaged entries.
    pub fn peek(&mut self) -> Option<EntryHead> {
        let mut consecutive = 0;
        while self.head.is_none() && self.next < self.visible {
            // Without its array no later entry can be found either, and so many bad ones are not entries.
            let (why, lost) = match self.read_head(self.next).and_then(|head| self.in_order(head)) {
                Ok(head) if self.skip_to.is_some_and(|number| head.seqnum <= number) => {
                    self.next += 1;
                    continue;
                }
                Ok(head) => {
                    (self.head, self.skip_to) = (Some(head), None);
                    self.next += 1;
                    break;
                }
                Err(EntryError::Entry(why)) if consecutive < CONSECUTIVE_MAX => (why, 1),
                Err(EntryError::Entry(why) | EntryError::Chain(why)) => (why, self.visible - self.next),
            };
            consecutive += 1;
            self.next += lost;
            // What is bad before the place of a search was counted when it was read.
            if self.skip_to.is_none() {
                self.note(lost, 0, &why);
            }
        }
        self.head
    }

    /// Checks that an entry's number is higher than that of the one before: one entry cannot stand for many.
    fn in_order(&mut self, head: EntryHead) -> Result<EntryHead, EntryError> {
        if head.seqnum <= self.number {
            return Err(EntryError::Entry(format!("the entry at {:#x} is not in order", head.offset)));
        }
        self.number = head.seqnum;
        Ok(head)
    }

    /// The last visible entry; absent if there is none that can be read.
    pub fn last(&mut self) -> Option<EntryHead> {
        if self.last.is_none() {
            let first = self.visible.saturating_sub(DAMAGED_MAX as u64);
            self.last = Some((first..self.visible).rev().find_map(|index| self.read_head(index).ok()));
        }
        self.last.flatten()
    }

    /// The entry before the next one, if it can be read.
    pub fn before(&mut self) -> Option<EntryHead> {
        let index = self.index().checked_sub(1)?;
        self.read_head(index).ok()
    }

    /// Index of the next entry; see [`JournalFile::seek_index`].
    pub fn index(&self) -> u64 {
        self.next - u64::from(self.head.is_some())
    }

    /// Moves to an index of [`JournalFile::index`], also of an earlier opening of the same file.
    pub fn seek_index(&mut self, index: u64) {
        (self.head, self.skip_to, self.number) = (None, None, 0);
        self.next = index;
    }

    /// Moves behind the next entry.
    pub fn advance(&mut self) {
        self.head = None;
    }

    /// Reads the fields of an entry, in its order. Fields that cannot be read are missing, and counted.
    pub fn fields(&mut self, head: &EntryHead) -> Vec<Rc<Field>> {
        let item_bytes = if self.header.is_compact { 4 } else { 16 };
        let stated = (head.size - ENTRY_BYTES) / item_bytes;
        let count = stated.min(FIELDS_MAX);
        if stated > count {
            self.note(0, stated - count, &"an entry has too many fields");
        }
        let mut items = std::mem::take(&mut self.items);
        items.resize((count * item_bytes) as usize, 0);
        let mut fields = Vec::with_capacity(count as usize);
        if self.read(head.offset + ENTRY_BYTES, &mut items).is_err() {
            // One by one; there is no object at 0, so what cannot be read is counted below.
            for (index, item) in items.chunks_exact_mut(item_bytes as usize).enumerate() {
                if self.read(head.offset + ENTRY_BYTES + index as u64 * item_bytes, item).is_err() {
                    item.fill(0);
                }
            }
        }
        let offset_of = |item: &[u8]| if item_bytes == 4 { u64::from(u32_at(item, 0)) } else { u64_at(item, 0) };
        let offsets = || items.chunks_exact(item_bytes as usize).map(offset_of);
        let (mut highest, mut bytes) = (0, 0);
        for (index, offset) in offsets().enumerate() {
            // journald sorts them, so the search is rare.
            let is_repeated = offset <= highest && offsets().take(index).any(|before| before == offset);
            if is_repeated || bytes > ENTRY_FIELDS_MAX {
                let why = format!("field at {offset:#x}: it is there twice, or the entry is too large");
                self.note(0, 1, &why);
                continue;
            }
            highest = offset.max(highest);
            match self.field(offset) {
                Ok(field) => {
                    bytes += field.bytes();
                    fields.push(field);
                }
                Err(why) => self.note(0, 1, &format!("field at {offset:#x}: {why}")),
            }
        }
        self.items = items;
        fields
    }

    fn note(&mut self, entries: u64, fields: u64, why: &dyn std::fmt::Display) {
        self.damage.entries += entries;
        self.damage.fields += fields;
        if self.damage.first.is_none() {
            self.damage.first = Some(why.to_string());
        }
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.pages.read(&self.source, offset, out)
    }

    /// Reads the first bytes of an object, and checks its type, and that its size lies within the file.
    fn object<const N: usize>(&mut self, offset: u64, kind: u8, size_min: u64) -> Result<([u8; N], u64), String> {
        if offset < self.header.header_size || !offset.is_multiple_of(8) {
            return Err(format!("no object can be at {offset:#x}"));
        }
        let mut head = [0; N];
        self.read(offset, &mut head).map_err(|err| err.to_string())?;
        let size = u64_at(&head, 8);
        if head[0] != kind {
            return Err(format!("the object at {offset:#x} is of type {} instead of {kind}", head[0]));
        }
        if size < size_min || offset.checked_add(size).is_none_or(|end| end > self.size) {
            return Err(format!("the object at {offset:#x} has an impossible size of {size}"));
        }
        Ok((head, size))
    }

    fn field(&mut self, offset: u64) -> Result<Rc<Field>, String> {
        // Objects are at multiples of eight; the constant spreads them over the sets (Fibonacci hashing).
        let set = (offset / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - CACHE_SETS.ilog2());
        let ways = set as usize * CACHE_WAYS..(set as usize + 1) * CACHE_WAYS;
        let known = self.cache.get_mut(ways.clone()).unwrap_or_default();
        if let Some(way) = known.iter().position(|(of, _)| *of == offset)
            && let Some(field) = &known[way].1
        {
            let field = Rc::clone(field);
            // The least recently used one is last.
            known[..=way].rotate_right(1);
            return Ok(field);
        }
        let payload_at = if self.header.is_compact { DATA_BYTES + 8 } else { DATA_BYTES };
        let (head, size) = self.object::<{ DATA_BYTES as usize }>(offset, object::DATA, payload_at + 1)?;
        let (flags, uses) = (head[1], u64_at(&head, 56));
        let place = (offset + payload_at, size - payload_at);
        let field = if flags == 0 && place.1 <= PLAIN_BYTES_MAX {
            let mut payload = vec![0; place.1 as usize];
            self.read(place.0, &mut payload).map_err(|err| err.to_string())?;
            data::plain(payload).ok_or_else(|| "it is not a field".to_owned())?
        } else {
            data::decode(&self.source, place, flags).map_err(|err| err.to_string())?
        };
        let field = Rc::new(field);
        if uses >= CACHED_USES_MIN && field.bytes() <= CACHED_BYTES_MAX {
            self.cache.resize(CACHE_SETS * CACHE_WAYS, (0, None));
            let known = &mut self.cache[ways];
            known.rotate_right(1);
            known[0] = (offset, Some(Rc::clone(&field)));
        }
        Ok(field)
    }

    /// Reads the entry with an index.
    fn read_head(&mut self, index: u64) -> Result<EntryHead, EntryError> {
        let item_bytes = if self.header.is_compact { 4 } else { 8 };
        let place = self.place_of(index, item_bytes).map_err(EntryError::Chain)?;
        let mut item = [0; 8];
        self.read(place, &mut item[..item_bytes as usize]).map_err(|err| EntryError::Entry(err.to_string()))?;
        let offset = u64::from_le_bytes(item);
        let object = self.object::<{ ENTRY_BYTES as usize }>(offset, object::ENTRY, ENTRY_BYTES);
        let (bytes, size) = object.map_err(EntryError::Entry)?;
        let head = EntryHead {
            seqnum_id: self.header.seqnum_id,
            seqnum: u64_at(&bytes, 16),
            realtime: u64_at(&bytes, 24),
            monotonic: u64_at(&bytes, 32),
            boot_id: id_at(&bytes, 40),
            xor_hash: u64_at(&bytes, 56),
            offset,
            size,
        };
        // As journald checks: journal_file_check_object(). journald raises the header's last number before it links an entry.
        let (first, last) = (self.header.head_seqnum, self.header.tail_seqnum);
        let is_within = first == 0 || last < first || (first..=last).contains(&head.seqnum);
        if head.seqnum == 0 || head.seqnum == u64::MAX || !is_within {
            return Err(EntryError::Entry(format!("the entry at {offset:#x} has an impossible number")));
        }
        if head.realtime == 0 || head.realtime >= 1 << 55 || head.monotonic >= 1 << 55 {
            return Err(EntryError::Entry(format!("the entry at {offset:#x} has an impossible time")));
        }
        Ok(head)
    }

    /// Offset of the array item of an entry.
    fn place_of(&mut self, index: u64, item_bytes: u64) -> Result<u64, String> {
        let (mut first, mut at) = (0, 0);
        loop {
            if at == self.arrays.len() {
                let array = self.next_array(item_bytes)?;
                self.arrays.push(array);
            }
            let array = self.arrays[at];
            if index - first < array.capacity {
                return Ok(array.offset + ARRAY_BYTES + (index - first) * item_bytes);
            }
            first += array.capacity;
            at += 1;
        }
    }

    /// Reads the array behind those that are known.
    fn next_array(&mut self, item_bytes: u64) -> Result<EntryArray, String> {
        let last = self.arrays.last().copied();
        let offset = last.map_or(self.header.entry_array_offset, |last| last.next);
        if offset == 0 {
            return Err("the chain of entry arrays ends before its last entry".to_owned());
        }
        if last.is_some_and(|last| offset <= last.offset) || self.arrays.len() == ARRAYS_MAX {
            return Err(format!("the chain of entry arrays is not in order at {offset:#x}"));
        }
        let (head, size) =
            self.object::<{ ARRAY_BYTES as usize }>(offset, object::ENTRY_ARRAY, ARRAY_BYTES + item_bytes)?;
        Ok(EntryArray { offset, capacity: (size - ARRAY_BYTES) / item_bytes, next: u64_at(&head, 16) })
    }
}

/// Why an entry cannot be read.
enum EntryError {
    /// Only this one.
    Entry(String),
    /// Nor those behind it.
    Chain(String),
}

/// Number of entries, as far as a file of this size and with these numbers can have them.
fn entries(header: &Header, size: u64) -> u64 {
    let numbers = match header.tail_seqnum.checked_sub(header.head_seqnum) {
        Some(numbers) if header.head_seqnum > 0 => numbers.saturating_add(1),
        _ => u64::MAX,
    };
    header.n_entries.min(size / ENTRY_BYTES).min(numbers)
}

fn read_header(source: &impl ReadAt) -> Result<Header, OpenError> {
    let mut bytes = [0; HEADER_BYTES];
    let length = read_full(source, 0, &mut bytes)?;
    Ok(Header::parse(&bytes[..length])?)
}
