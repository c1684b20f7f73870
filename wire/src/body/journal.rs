//! An entry of the systemd journal: OCSF 0 Base Event, or 3002 Authentication for a log-in.

use super::{
    Kind, Observation, RowContext, login,
    syslog::{facility_name, severity_name},
};
use crate::{
    column::{Column, Value, integer, text},
    ocsf::{Event, OcsfClass, object, severity_of_syslog},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map},
    str::FromStr,
};

/// Fields that matter for security (systemd.journal-fields(7)); all others are in `more`. Agents send entries packed
/// ([`crate::entries`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// `MESSAGE`; invalid UTF-8 is replaced by U+FFFD.
    pub message: String,
    /// `__REALTIME_TIMESTAMP`, nanoseconds UTC.
    pub time: i64,
    /// `__CURSOR`.
    pub cursor: String,
    /// `PRIORITY`, 0 to 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// `SYSLOG_FACILITY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facility: Option<u8>,
    /// `SYSLOG_IDENTIFIER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// `_SYSTEMD_UNIT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// `_TRANSPORT`: `kernel`, `syslog`, `journal`, `stdout`, `audit`, `driver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// `_PID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// `_UID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// `_GID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// `_COMM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// `_EXE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// `_CMDLINE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd_line: Option<String>,
    /// `_AUDIT_SESSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_session: Option<u32>,
    /// `_AUDIT_LOGINUID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// `_HOSTNAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `_BOOT_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// `MESSAGE_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// All other fields of the entry.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, String>,
}

const COLUMNS: &[Column] = &[
    text("message", "`MESSAGE`"),
    text("severity", "`PRIORITY` as keyword"),
    text("facility", "`SYSLOG_FACILITY` as keyword"),
    text("app", "`SYSLOG_IDENTIFIER`, or `_COMM`"),
    text("unit", "`_SYSTEMD_UNIT`"),
    text("transport", "`_TRANSPORT`"),
    text("pid", "`_PID`"),
    integer("user_id", "`_UID`"),
    integer("group_id", "`_GID`"),
    text("comm", "`_COMM`"),
    text("path", "`_EXE`"),
    text("cmd_line", "`_CMDLINE`"),
    integer("audit_session", "`_AUDIT_SESSION`"),
    integer("login_uid", "`_AUDIT_LOGINUID`"),
    text("log_hostname", "`_HOSTNAME`"),
    text("boot_id", "`_BOOT_ID`"),
    text("message_id", "`MESSAGE_ID`"),
    text("cursor", "`__CURSOR`"),
    text("fields", "every other field of the entry, JSON object"),
    integer("repeat", "how many times the entry says that it happened; null where it does not"),
    login::COLUMNS[0],
    login::COLUMNS[1],
    login::COLUMNS[2],
    login::COLUMNS[3],
    login::COLUMNS[4],
    login::COLUMNS[5],
];

impl Journal {
    /// An entry from its fields. A field without a column goes to `more`, as does a text where a number is expected. A name that
    /// occurs several times has its values on lines of their own.
    pub(crate) fn of_fields<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let (mut entry, mut message) = (Self::default(), None);
        for (name, value) in fields {
            let value = String::from_utf8_lossy(value);
            let column = match name {
                b"MESSAGE" => &mut message,
                b"SYSLOG_IDENTIFIER" => &mut entry.identifier,
                b"_SYSTEMD_UNIT" => &mut entry.unit,
                b"_TRANSPORT" => &mut entry.transport,
                b"_COMM" => &mut entry.comm,
                b"_EXE" => &mut entry.exe,
                b"_CMDLINE" => &mut entry.cmd_line,
                b"_HOSTNAME" => &mut entry.hostname,
                b"MESSAGE_ID" => &mut entry.message_id,
                name => {
                    let is_number = match name {
                        b"PRIORITY" => set_number(&mut entry.priority, &value),
                        b"SYSLOG_FACILITY" => set_number(&mut entry.facility, &value),
                        b"_PID" => set_number(&mut entry.pid, &value),
                        b"_UID" => set_number(&mut entry.uid, &value),
                        b"_GID" => set_number(&mut entry.gid, &value),
                        b"_AUDIT_SESSION" => set_number(&mut entry.audit_session, &value),
                        b"_AUDIT_LOGINUID" => set_number(&mut entry.login_uid, &value),
                        _ => false,
                    };
                    if !is_number {
                        match entry.more.entry(String::from_utf8_lossy(name).into_owned()) {
                            btree_map::Entry::Vacant(new) => drop(new.insert(value.into_owned())),
                            btree_map::Entry::Occupied(present) => join(present.into_mut(), &value),
                        }
                    }
                    continue;
                }
            };
            match column {
                Some(present) => join(present, &value),
                None => *column = Some(value.into_owned()),
            }
        }
        Self { message: message.unwrap_or_default(), ..entry }
    }

    fn app(&self) -> Option<&str> {
        self.identifier.as_deref().or(self.comm.as_deref())
    }

    /// Anyone can write `SYSLOG_IDENTIFIER=sshd` (logger(1)), so the sender that the kernel names decides. `_EXE` is missing
    /// when the sender exited before journald looked; the sender must be root then.
    pub(super) fn login(&self) -> Option<login::Login> {
        let login = login::recognise(self.app()?, &self.message)?;
        let is_sender = match &self.exe {
            Some(exe) => login::is_login_program(exe, self.uid),
            None => self.uid == Some(0),
        };
        is_sender.then_some(login)
    }
}

/// Appends another value of the same name on a line of its own.
fn join(present: &mut String, value: &str) {
    present.push('\n');
    present.push_str(value);
}

/// Sets a number that is not set yet; false if the value is not a number, or there is one already.
fn set_number<T: FromStr>(column: &mut Option<T>, value: &str) -> bool {
    if column.is_none() {
        *column = value.parse().ok();
        return column.is_some();
    }
    false
}

impl Observation for Journal {
    const KIND: Kind = Kind {
        name: "journal",
        view: "journal",
        help: "entries of the systemd journal",
        classes: &[OcsfClass::BaseEvent, OcsfClass::Authentication],
        columns: COLUMNS,
    };

    fn class(&self) -> OcsfClass {
        if self.login().is_some() { OcsfClass::Authentication } else { OcsfClass::BaseEvent }
    }

    fn activity(&self) -> u8 {
        self.login().map_or(0, |login| login.activity)
    }

    fn time(&self) -> Option<i64> {
        Some(self.time)
    }

    fn severity(&self) -> u8 {
        severity_of_syslog(self.priority)
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&self.message))
    }

    fn render(&self, event: &mut Event) {
        event.set_in("metadata", "log_name", self.facility.and_then(facility_name));
        event.set_in("metadata", "log_level", self.priority.and_then(severity_name));
        event.set_in("metadata", "log_provider", self.app());
        event.set_in("metadata", "event_code", self.message_id.clone());
        event.set("count", login::repeated(&self.message).map(|(count, _)| count));
        event.set_in("metadata", "original_event_uid", self.cursor.as_str());
        if let Some(login) = self.login() {
            login.render(event);
        }
        let process = object([
            ("pid", json!(self.pid)),
            ("name", json!(self.comm)),
            ("path", json!(self.exe)),
            ("cmd_line", json!(self.cmd_line)),
            ("user", json!(self.uid.map(|uid| json!({"uid": uid.to_string()})))),
        ]);
        if self.pid.is_some() {
            event.set_in("actor", "process", process);
        }
        for (name, value) in [
            ("unit", json!(self.unit)),
            ("transport", json!(self.transport)),
            ("gid", json!(self.gid)),
            ("audit_session", json!(self.audit_session)),
            ("login_uid", json!(self.login_uid)),
            ("boot_id", json!(self.boot_id)),
            ("log_hostname", json!(self.hostname)),
            ("fields", json!(self.more)),
        ] {
            event.set_in("unmapped", name, value);
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        let more = (!self.more.is_empty()).then(|| serde_json::to_string(&self.more).unwrap_or_default());
        let mut row = vec![
            self.message.as_str().into(),
            self.priority.and_then(severity_name).into(),
            self.facility.and_then(facility_name).into(),
            self.app().into(),
            self.unit.as_ref().into(),
            self.transport.as_ref().into(),
            self.pid.map(|pid| pid.to_string()).into(),
            self.uid.into(),
            self.gid.into(),
            self.comm.as_ref().into(),
            self.exe.as_ref().into(),
            self.cmd_line.as_ref().into(),
            self.audit_session.into(),
            self.login_uid.into(),
            self.hostname.as_ref().into(),
            self.boot_id.as_ref().into(),
            self.message_id.as_ref().into(),
            self.cursor.as_str().into(),
            more.into(),
            login::repeated(&self.message).map(|(count, _)| count).into(),
        ];
        row.extend(login::values(self.login()));
        row
    }
}
