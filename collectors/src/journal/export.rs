//! The Journal Export Format (<https://systemd.io/JOURNAL_EXPORT_FORMATS/>).
//!
//! ```text
//! __CURSOR=s=…;i=4ece7;b=…          a text field: NAME=value
//! MESSAGE                           a binary field: NAME, the length as 64-bit little-endian, the bytes
//! \x0f\0\0\0\0\0\0\0two\nlines of it
//!                                   an empty line ends the entry
//! ```

use std::collections::BTreeMap;
use vedette_wire::body::Journal;

/// Longer values are cut and marked; journald itself allows 768 MiB per field.
const VALUE_BYTES_MAX: usize = 256 << 10;
/// Maximum size of an entry's values; the rest is cut.
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Maximum length of a field name; journald allows 64 bytes.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Field that names the fields that were cut.
const CUT: &str = "VEDETTE_CUT";

/// An entry, as far as it was parsed.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) cursor: String,
    fields: BTreeMap<String, String>,
    bytes: usize,
}

/// Parses entries from a stream of bytes.
#[derive(Debug, Default)]
pub(super) struct Parser {
    pending: Vec<u8>,
    entry: Entry,
    /// Remaining bytes of a binary value that is too large.
    skip: u64,
    /// Skips the rest of a text value that is too large.
    skip_line: bool,
    /// Number of bytes in `pending` without a line end.
    searched: usize,
}

impl Parser {
    pub(super) fn push(&mut self, bytes: &[u8], mut give: impl FnMut(Entry)) {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(next) = self.step(at, &mut give) {
            at = next;
        }
        self.pending.drain(..at);
        self.searched = self.searched.saturating_sub(at);
    }

    /// Parses a field or the end of an entry; absent if more bytes are needed.
    fn step(&mut self, at: usize, give: &mut impl FnMut(Entry)) -> Option<usize> {
        let rest = &self.pending[at..];
        if self.skip > 0 {
            let skipped = rest.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            return (skipped > 0).then_some(at + skipped);
        }
        // Continues where the last search ended, so that a long line in small pieces is searched once.
        let from = self.searched.saturating_sub(at).min(rest.len());
        let Some(end) = memchr::memchr(b'\n', &rest[from..]) else {
            if self.skip_line {
                return (!rest.is_empty()).then_some(self.pending.len());
            }
            if rest.len() > VALUE_BYTES_MAX + NAME_BYTES_MAX
                && let Some(equals) = memchr::memchr(b'=', &rest[..NAME_BYTES_MAX])
            {
                self.entry.set(&rest[..equals], &rest[equals + 1..]);
                self.skip_line = true;
                return Some(self.pending.len());
            }
            self.searched = self.pending.len();
            return None;
        };
        let end = from + end;
        if std::mem::take(&mut self.skip_line) {
            return Some(at + end + 1);
        }
        if end == 0 {
            let entry = std::mem::take(&mut self.entry);
            if !entry.cursor.is_empty() {
                give(entry);
            }
            return Some(at + 1);
        }
        let line = &rest[..end];
        if let Some(equals) = memchr::memchr(b'=', line) {
            self.entry.set(&line[..equals], &line[equals + 1..]);
            return Some(at + end + 1);
        }
        let length = rest.get(end + 1..end + 9)?;
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        let start = end + 9;
        if length > VALUE_BYTES_MAX as u64 {
            let present = rest.get(start..)?;
            // Keeps the start of the value and skips the rest.
            let value = present.get(..VALUE_BYTES_MAX)?;
            self.entry.cut(line);
            self.entry.set(line, value);
            // The value and the newline after it.
            self.skip = length.saturating_add(1);
            return Some(at + start);
        }
        let value = rest.get(start..start + length as usize)?;
        // The newline after the value.
        rest.get(start + length as usize)?;
        self.entry.set(line, value);
        Some(at + start + length as usize + 1)
    }
}

impl Entry {
    fn cut(&mut self, name: &[u8]) {
        let cut = self.fields.entry(CUT.to_owned()).or_default();
        if cut.len() < NAME_BYTES_MAX {
            if !cut.is_empty() {
                cut.push(' ');
            }
            cut.push_str(&String::from_utf8_lossy(name));
        }
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        let room = VALUE_BYTES_MAX.min(ENTRY_BYTES_MAX - self.bytes.min(ENTRY_BYTES_MAX));
        if value.len() > room {
            self.cut(name);
        }
        let value = &value[..value.len().min(room)];
        self.bytes += name.len() + value.len();
        let name = String::from_utf8_lossy(name);
        let value = String::from_utf8_lossy(value).into_owned();
        if name == "__CURSOR" {
            self.cursor = value;
        } else {
            // A field may occur more than once: the first one counts, the others are kept with it.
            match self.fields.get_mut(&*name) {
                None => drop(self.fields.insert(name.into_owned(), value)),
                Some(present) => {
                    present.push('\n');
                    present.push_str(&value);
                }
            }
        }
    }

    pub(super) fn into_body(mut self) -> Journal {
        let mut take = |name: &str| self.fields.remove(name);
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u32>().ok());
        let time = take("__REALTIME_TIMESTAMP").and_then(|text| text.parse::<i64>().ok()?.checked_mul(1000));
        let body = Journal {
            message: take("MESSAGE").unwrap_or_default(),
            time: time.unwrap_or_default(),
            cursor: self.cursor,
            priority: take("PRIORITY").and_then(|text| text.parse().ok()),
            facility: take("SYSLOG_FACILITY").and_then(|text| text.parse().ok()),
            identifier: take("SYSLOG_IDENTIFIER"),
            unit: take("_SYSTEMD_UNIT"),
            transport: take("_TRANSPORT"),
            pid: number(take("_PID")),
            uid: number(take("_UID")),
            gid: number(take("_GID")),
            comm: take("_COMM"),
            exe: take("_EXE"),
            cmd_line: take("_CMDLINE"),
            audit_session: number(take("_AUDIT_SESSION")),
            login_uid: number(take("_AUDIT_LOGINUID")),
            hostname: take("_HOSTNAME"),
            boot_id: take("_BOOT_ID"),
            message_id: take("MESSAGE_ID"),
            more: BTreeMap::new(),
        };
        // Address fields; the cursor contains them.
        self.fields.retain(|name, _| !name.starts_with("__"));
        Journal { more: self.fields, ..body }
    }
}
