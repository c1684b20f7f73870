//! The record of an entry.

use std::collections::BTreeMap;
use vedette_journal::Field;
use vedette_wire::body::Journal;

/// Maximum size of an entry's values; the rest is cut. One value has [`vedette_journal::VALUE_BYTES_MAX`].
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Maximum length of the list of names of cut fields.
const CUT_BYTES_MAX: usize = 1 << 10;
/// Field that names the fields that were cut.
const CUT: &str = "VEDETTE_CUT";

/// Values of an entry by name; values of one name are joined by line ends.
#[derive(Default)]
struct Fields {
    values: BTreeMap<String, String>,
    bytes: usize,
    cut: String,
}

impl Fields {
    fn add(&mut self, field: &Field) {
        let room = ENTRY_BYTES_MAX - self.bytes.min(ENTRY_BYTES_MAX);
        let value = &field.value()[..field.value().len().min(room)];
        let name = String::from_utf8_lossy(field.name());
        if (field.is_cut() || value.len() < field.value().len()) && self.cut.len() < CUT_BYTES_MAX {
            if !self.cut.is_empty() {
                self.cut.push(' ');
            }
            self.cut.push_str(&name);
        }
        self.bytes += name.len() + value.len();
        let value = String::from_utf8_lossy(value);
        match self.values.get_mut(&*name) {
            None => drop(self.values.insert(name.into_owned(), value.into_owned())),
            Some(present) => {
                present.push('\n');
                present.push_str(&value);
            }
        }
    }
}

/// The record of an entry: fields that matter have their own columns, all others are in `more`.
pub(super) fn body(entry: &vedette_journal::Entry) -> Journal {
    let mut fields = Fields::default();
    for field in &entry.fields {
        fields.add(field);
    }
    let Fields { mut values, cut, .. } = fields;
    let mut take = |name: &str| values.remove(name);
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u32>().ok());
    let realtime = i64::try_from(entry.head.realtime).ok().and_then(|realtime| realtime.checked_mul(1000));
    // The entry has the boot itself.
    take("_BOOT_ID");
    let body = Journal {
        message: take("MESSAGE").unwrap_or_default(),
        time: realtime.unwrap_or_default(),
        cursor: entry.cursor().to_string(),
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
        boot_id: Some(entry.head.boot_id.to_string()),
        message_id: take("MESSAGE_ID"),
        more: BTreeMap::new(),
    };
    if !cut.is_empty() {
        values.insert(CUT.to_owned(), cut);
    }
    Journal { more: values, ..body }
}
