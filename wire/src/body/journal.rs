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
use std::{borrow::Cow, collections::BTreeMap};

/// Fields that matter for security (systemd.journal-fields(7)); all others are in `more`. `S` is the type of texts: an agent encodes
/// borrowed ones ([`crate::Chunk::push_journal`]).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, bound(deserialize = "S: Deserialize<'de> + Default + Ord"))]
pub struct Journal<S: Ord = String> {
    /// `MESSAGE`; invalid UTF-8 is replaced by U+FFFD.
    pub message: S,
    /// `__REALTIME_TIMESTAMP`, nanoseconds UTC.
    pub time: i64,
    /// `__CURSOR`.
    pub cursor: S,
    /// `PRIORITY`, 0 to 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// `SYSLOG_FACILITY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facility: Option<u8>,
    /// `SYSLOG_IDENTIFIER`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identifier: Option<S>,
    /// `_SYSTEMD_UNIT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<S>,
    /// `_TRANSPORT`: `kernel`, `syslog`, `journal`, `stdout`, `audit`, `driver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<S>,
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
    pub comm: Option<S>,
    /// `_EXE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<S>,
    /// `_CMDLINE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd_line: Option<S>,
    /// `_AUDIT_SESSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_session: Option<u32>,
    /// `_AUDIT_LOGINUID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// `_HOSTNAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<S>,
    /// `_BOOT_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<S>,
    /// `MESSAGE_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<S>,
    /// All other fields of the entry.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<S, S>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Chunk, Position, Source};
    use std::sync::Arc;

    #[test]
    fn an_entry_with_borrowed_texts_is_encoded_as_one_with_its_own() {
        let whole: Journal<Cow<'_, str>> = Journal {
            message: "m".into(),
            time: 1,
            cursor: "s=1".into(),
            priority: Some(3),
            unit: Some("ssh.service".into()),
            pid: Some(7),
            more: [("A".into(), "1".into()), ("B".into(), "2".into())].into(),
            ..Journal::default()
        };
        for entry in [Journal::default(), whole] {
            let mut chunk = Chunk::new(Arc::new(Source { collector: "journal", id: "s".to_owned(), name: None }));
            chunk.push_journal(5, Position(0, 1), &entry);
            let record = chunk.decode().expect("a record").remove(0);
            let bytes = chunk.bodies.clone();
            chunk.push(5, Position(1, 2), &record.body);
            assert_eq!(bytes, chunk.bodies[bytes.len()..]);
            let Body::Journal(decoded) = record.body else { panic!("another kind") };
            assert_eq!((decoded.message, decoded.more.len()), (entry.message.into_owned(), entry.more.len()));
        }
    }
}
