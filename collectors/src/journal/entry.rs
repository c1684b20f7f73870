//! The record of an entry.

use std::{borrow::Cow, str::FromStr};
use vedette_journal::Field;
use vedette_wire::body::Journal;

/// Maximum size of an entry's values; the rest is cut. One value has [`vedette_journal::VALUE_BYTES_MAX`].
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Maximum length of the list of names of cut fields.
const CUT_BYTES_MAX: usize = 1 << 10;
/// Field that names the fields that were cut.
const CUT: &str = "VEDETTE_CUT";

/// The record of an entry while its fields are added.
#[derive(Default)]
struct Builder<'a> {
    body: Journal<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
    /// Fields without a column, in the entry's order.
    more: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    bytes: usize,
    /// Names of cut fields.
    cut: String,
}

impl<'a> Builder<'a> {
    /// Adds a field to its column. A field without a column goes to `more`, as does a text where a number is expected.
    fn add(&mut self, field: &'a Field) {
        let room = ENTRY_BYTES_MAX - self.bytes.min(ENTRY_BYTES_MAX);
        let length = field.value().len().min(room);
        self.bytes += field.name().len() + length;
        if (field.is_cut() || length < field.value().len()) && self.cut.len() < CUT_BYTES_MAX {
            if !self.cut.is_empty() {
                self.cut.push(' ');
            }
            self.cut.push_str(&String::from_utf8_lossy(field.name()));
        }
        let value = match field.text().filter(|text| text.len() == length) {
            Some(text) => Cow::Borrowed(text),
            None => String::from_utf8_lossy(&field.value()[..length]),
        };
        let body = &mut self.body;
        let column = match field.name() {
            b"MESSAGE" => &mut self.message,
            b"SYSLOG_IDENTIFIER" => &mut body.identifier,
            b"_SYSTEMD_UNIT" => &mut body.unit,
            b"_TRANSPORT" => &mut body.transport,
            b"_COMM" => &mut body.comm,
            b"_EXE" => &mut body.exe,
            b"_CMDLINE" => &mut body.cmd_line,
            b"_HOSTNAME" => &mut body.hostname,
            b"MESSAGE_ID" => &mut body.message_id,
            // The entry has the boot itself.
            b"_BOOT_ID" => return,
            // It is the agent's own.
            name if name == CUT.as_bytes() => return,
            name => {
                let is_number = match name {
                    b"PRIORITY" => set_number(&mut body.priority, &value),
                    b"SYSLOG_FACILITY" => set_number(&mut body.facility, &value),
                    b"_PID" => set_number(&mut body.pid, &value),
                    b"_UID" => set_number(&mut body.uid, &value),
                    b"_GID" => set_number(&mut body.gid, &value),
                    b"_AUDIT_SESSION" => set_number(&mut body.audit_session, &value),
                    b"_AUDIT_LOGINUID" => set_number(&mut body.login_uid, &value),
                    _ => false,
                };
                if !is_number {
                    let name = std::str::from_utf8(name).map_or_else(|_| String::from_utf8_lossy(name), Cow::Borrowed);
                    self.more.push((name, value));
                }
                return;
            }
        };
        match column {
            Some(present) => join(present, &value),
            None => *column = Some(value),
        }
    }
}

/// Appends another value of the same name on a line of its own.
fn join(present: &mut Cow<'_, str>, value: &str) {
    let present = present.to_mut();
    present.push('\n');
    present.push_str(value);
}

/// Sets a number that is not set yet; false if the value is none, or there is one already.
fn set_number<T: FromStr>(column: &mut Option<T>, value: &str) -> bool {
    if column.is_none() {
        *column = value.parse().ok();
        return column.is_some();
    }
    false
}

/// The record of an entry with its cursor: fields that matter have their own columns, all others are in `more`.
pub(super) fn body<'a>(entry: &'a vedette_journal::Entry, cursor: &'a str) -> Journal<Cow<'a, str>> {
    let mut builder = Builder::default();
    for field in &entry.fields {
        builder.add(field);
    }
    let Builder { mut body, message, mut more, cut, .. } = builder;
    if !cut.is_empty() {
        more.push((CUT.into(), cut.into()));
    }
    // Sorted, so that the map is built in one go.
    more.sort_by(|(one, _), (other, _)| one.cmp(other));
    more.dedup_by(|(name, value), (first_name, first)| {
        name == first_name && {
            join(first, value);
            true
        }
    });
    body.more = more.into_iter().collect();
    let realtime = i64::try_from(entry.head.realtime).ok().and_then(|realtime| realtime.checked_mul(1000));
    body.message = message.unwrap_or_default();
    body.time = realtime.unwrap_or_default();
    body.cursor = cursor.into();
    body.boot_id = Some(entry.head.boot_id.to_string().into());
    body
}
