//! Cursors, as journalctl and sd_journal_get_cursor(3) write them.

use crate::Id;
use std::{cmp::Ordering, fmt};

/// An entry without its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHead {
    /// Id of the sequence.
    pub seqnum_id: Id,
    /// Number in the sequence.
    pub seqnum: u64,
    /// Microseconds UTC.
    pub realtime: u64,
    /// Microseconds since the boot.
    pub monotonic: u64,
    /// Id of the boot.
    pub boot_id: Id,
    /// Hash of all fields, the same in copies of the entry.
    pub xor_hash: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl EntryHead {
    /// Place of the entry.
    pub fn cursor(&self) -> Cursor {
        Cursor::of(self)
    }
}

/// The place of an entry: `s=ID;i=HEX;b=ID;m=HEX;t=HEX;x=HEX`. Parts may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Sequence: its id and the number in it.
    pub seqnum: Option<(Id, u64)>,
    /// Boot, and microseconds since it.
    pub monotonic: Option<(Id, u64)>,
    /// Microseconds UTC.
    pub realtime: Option<u64>,
    /// Hash of the entry's fields.
    pub xor_hash: Option<u64>,
}

impl Cursor {
    /// Parses a cursor; unknown parts are ignored, as sd_journal_seek_cursor(3) does. Absent if no part is valid.
    pub fn parse(text: &str) -> Option<Self> {
        let part = |key: &str| text.split(';').find_map(|part| part.strip_prefix(key));
        let id = |key: &str| part(key).and_then(|text| text.parse::<Id>().ok());
        let number = |key: &str| part(key).and_then(|text| u64::from_str_radix(text, 16).ok());
        let cursor = Self {
            seqnum: id("s=").zip(number("i=")),
            monotonic: id("b=").zip(number("m=")),
            realtime: number("t="),
            xor_hash: number("x="),
        };
        (cursor != Self::default()).then_some(cursor)
    }

    /// The cursor of an entry.
    pub(crate) fn of(head: &EntryHead) -> Self {
        Self {
            seqnum: Some((head.seqnum_id, head.seqnum)),
            monotonic: Some((head.boot_id, head.monotonic)),
            realtime: Some(head.realtime),
            xor_hash: Some(head.xor_hash),
        }
    }

    /// Whether an entry is behind this place, or the place says nothing of it.
    pub fn is_before(&self, head: &EntryHead) -> bool {
        self.order_of(head).is_none_or(Ordering::is_gt)
    }

    /// Order of an entry and this place, by the rules of sd_journal_next(3): by number within a sequence, by monotonic time
    /// within a boot, and otherwise by the clock and by content. Absent if the place says nothing of the entry.
    pub(crate) fn order_of(&self, head: &EntryHead) -> Option<Ordering> {
        let is_same = self.seqnum.is_some_and(|(id, _)| id == head.seqnum_id)
            || self.monotonic.is_some_and(|(boot, _)| boot == head.boot_id);
        (is_same || self.realtime.is_some()).then(|| self.compare(head))
    }

    fn compare(&self, head: &EntryHead) -> Ordering {
        if let Some((id, seqnum)) = self.seqnum
            && id == head.seqnum_id
            && head.seqnum != seqnum
        {
            return head.seqnum.cmp(&seqnum);
        }
        if let Some((boot, monotonic)) = self.monotonic
            && boot == head.boot_id
            && head.monotonic != monotonic
        {
            return head.monotonic.cmp(&monotonic);
        }
        if let Some(realtime) = self.realtime
            && head.realtime != realtime
        {
            return head.realtime.cmp(&realtime);
        }
        self.xor_hash.map_or(Ordering::Equal, |hash| head.xor_hash.cmp(&hash))
    }
}

/// Writes without the formatting machinery: each entry has a cursor.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(160);
        if let Some((id, seqnum)) = self.seqnum {
            push_id(&mut text, "s=", id);
            push_number(&mut text, "i=", seqnum);
        }
        if let Some((boot, monotonic)) = self.monotonic {
            push_id(&mut text, "b=", boot);
            push_number(&mut text, "m=", monotonic);
        }
        if let Some(realtime) = self.realtime {
            push_number(&mut text, "t=", realtime);
        }
        if let Some(hash) = self.xor_hash {
            push_number(&mut text, "x=", hash);
        }
        f.write_str(&text)
    }
}

fn push_key(text: &mut String, key: &str) {
    if !text.is_empty() {
        text.push(';');
    }
    text.push_str(key);
}

fn push_id(text: &mut String, key: &str, id: Id) {
    push_key(text, key);
    let mut digits = [0; 32];
    hex::encode_to_slice(id.0, &mut digits).expect("32 digits");
    text.push_str(std::str::from_utf8(&digits).expect("digits"));
}

fn push_number(text: &mut String, key: &str, number: u64) {
    push_key(text, key);
    for at in (0..=number.checked_ilog2().unwrap_or(0) / 4).rev() {
        text.push(char::from(b"0123456789abcdef"[(number >> (4 * at) & 15) as usize]));
    }
}
