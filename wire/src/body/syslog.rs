//! A log line, with recognised fields as spans: OCSF 0 Base Event, or 3002 Authentication for a log-in.
//!
//! The line is sent once. `<13>1 2026-11-23T03:21:19.5Z web1 sshd 812 - - Accepted …` is `raw`; `host` is the span of `web1` in
//! it, and so on. The workspace renders the fields.

use super::{Kind, Observation, RowContext, login};
use crate::{
    column::{Column, Value, boolean, integer, text},
    ocsf::{Event, OcsfClass, severity_of_syslog},
    stamp,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Half-open byte range in the raw line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub u32, pub u32);

/// Parts of the time that the line omits and the host supplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inferred {
    /// None: the line has a full time with zone.
    #[default]
    Nothing,
    /// The zone.
    Zone,
    /// Year and zone (RFC 3164).
    YearAndZone,
}

impl Inferred {
    fn is_nothing(&self) -> bool {
        *self == Inferred::Nothing
    }
}

/// A log line. Field names are short: a batch holds thousands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Syslog {
    /// The line without its line end.
    #[serde(with = "serde_bytes")]
    pub raw: Vec<u8>,
    /// Original time, nanoseconds UTC.
    #[serde(rename = "ts", skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Parts of the time that the host supplied.
    #[serde(rename = "inf", skip_serializing_if = "Inferred::is_nothing")]
    pub inferred: Inferred,
    /// Facility number (RFC 5424 §6.2.1); absent without a PRI.
    #[serde(rename = "fac", skip_serializing_if = "Option::is_none")]
    pub facility: Option<u8>,
    /// Severity number (RFC 5424 §6.2.1); absent without a PRI.
    #[serde(rename = "sev", skip_serializing_if = "Option::is_none")]
    pub severity: Option<u8>,
    /// Host name in the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Span>,
    /// Application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<Span>,
    /// Process id, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<Span>,
    /// RFC 5424 MSGID.
    #[serde(rename = "mid", skip_serializing_if = "Option::is_none")]
    pub message_id: Option<Span>,
    /// RFC 5424 structured data.
    #[serde(rename = "sd", skip_serializing_if = "Option::is_none")]
    pub structured_data: Option<Span>,
    /// The message; absent where it is the whole line.
    #[serde(rename = "msg", skip_serializing_if = "Option::is_none")]
    pub message: Option<Span>,
    /// Number of this part, from 1, of a line longer than one record may be; absent for a whole line.
    #[serde(rename = "pt", skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// The line has no end, and its file is gone.
    #[serde(rename = "unf", skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// Source address and port of a datagram.
    #[serde(rename = "sa", skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// User id of the process that wrote to the local socket, from the kernel (unix(7), `SCM_CREDENTIALS`).
    #[serde(rename = "su", skip_serializing_if = "Option::is_none")]
    pub sender_uid: Option<u32>,
    /// Process id of that process.
    #[serde(rename = "sp", skip_serializing_if = "Option::is_none")]
    pub sender_pid: Option<u32>,
}

const COLUMNS: &[Column] = &[
    text("log_hostname", "host that the line names"),
    text("facility", "facility keyword; null where the line carries no PRI"),
    text("severity", "severity keyword; null where the line carries no PRI"),
    text("app", "application"),
    text("pid", "process id, as the line has it"),
    text("message_id", "RFC 5424 MSGID"),
    text("structured_data", "RFC 5424 structured data"),
    text("message", "the message; the whole line where nothing was recognised"),
    text("raw", "the line as it was; invalid UTF-8 is replaced by U+FFFD, the landed batch has the bytes"),
    text("file", "path of the file"),
    integer("file_offset", "offset of the line's first byte"),
    integer("part", "number of this part, from 1, of a line longer than 1 MiB; null where the line is whole"),
    boolean("unfinished", "true where the file was gone before the line had its end"),
    text("original_time", "the time stamp as the line has it, with its zone where it names one"),
    text("time_inferred", "what of the time the host supplied: `zone`, `year_and_zone`, or all of it: `observed`"),
    integer(
        "repeat",
        "how many times the line says that it happened: `message repeated 5 times`; null where it does not",
    ),
    text("sender", "address and port that a datagram came from"),
    integer("sender_user_id", "user id of the process that wrote to the local socket, as the kernel says"),
    integer("sender_pid", "its process id"),
    login::COLUMNS[0],
    login::COLUMNS[1],
    login::COLUMNS[2],
    login::COLUMNS[3],
    login::COLUMNS[4],
    login::COLUMNS[5],
];

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// Keyword of a facility number (RFC 5424 §6.2.1, syslog(3)).
pub(super) fn facility_name(number: u8) -> Option<&'static str> {
    FACILITIES.get(usize::from(number)).copied()
}

/// Keyword of a severity number (RFC 5424 §6.2.1, syslog(3)).
pub(super) fn severity_name(number: u8) -> Option<&'static str> {
    SEVERITIES.get(usize::from(number)).copied()
}

/// Parses `auth.info`, busybox's form of facility and severity.
pub fn severity_and_facility(word: &[u8]) -> Option<(u8, u8)> {
    let (facility, severity) = std::str::from_utf8(word).ok()?.split_once('.')?;
    let severity = match severity {
        "panic" => "emerg",
        "error" => "err",
        "warn" => "warning",
        other => other,
    };
    let number = |names: &[&str], name: &str| names.iter().position(|known| *known == name);
    let (severity, facility) = number(&SEVERITIES, severity).zip(number(&FACILITIES, facility))?;
    u8::try_from(severity).ok().zip(u8::try_from(facility).ok())
}

impl Syslog {
    /// The text of a span; absent where the span is absent or out of range.
    pub fn text(&self, span: Option<Span>) -> Option<Cow<'_, str>> {
        let Span(start, end) = span?;
        self.raw.get(start as usize..end as usize).map(String::from_utf8_lossy)
    }

    /// The message, or the whole line.
    pub fn message_text(&self) -> Cow<'_, str> {
        self.text(self.message).unwrap_or_else(|| String::from_utf8_lossy(&self.raw))
    }

    /// The time stamp as written, where it states a time.
    fn original_time(&self) -> Option<Cow<'_, str>> {
        self.time?;
        self.raw.get(stamp::head(&self.raw).stamp?.text).map(String::from_utf8_lossy)
    }

    /// The local socket's sender is known: only root runs programs that log users in.
    fn login(&self) -> Option<login::Login> {
        if self.sender_uid.is_some_and(|uid| uid != 0) {
            return None;
        }
        login::recognise(&self.text(self.app)?, &self.message_text())
    }

    fn repeat(&self) -> Option<u64> {
        login::repeated(&self.message_text()).map(|(count, _)| count)
    }
}

impl Observation for Syslog {
    const KIND: Kind = Kind {
        name: "syslog",
        view: "syslog",
        help: "lines of the system's log files",
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
        self.time
    }

    fn severity(&self) -> u8 {
        severity_of_syslog(self.severity)
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        Some(self.message_text())
    }

    fn render(&self, event: &mut Event) {
        event.set("raw_data", String::from_utf8_lossy(&self.raw).into_owned());
        event.set_in("metadata", "log_name", self.facility.and_then(facility_name));
        event.set_in("metadata", "log_level", self.severity.and_then(severity_name));
        event.set_in("metadata", "log_provider", self.text(self.app).map(Cow::into_owned));
        event.set_in("metadata", "event_code", self.text(self.message_id).map(Cow::into_owned));
        event.set_in("metadata", "original_time", self.original_time().map(Cow::into_owned));
        event.set_in("unmapped", "log_hostname", self.text(self.host).map(Cow::into_owned));
        event.set_in("unmapped", "procid", self.text(self.pid).map(Cow::into_owned));
        event.set_in("unmapped", "structured_data", self.text(self.structured_data).map(Cow::into_owned));
        event.set("count", self.repeat());
        event.set_in("unmapped", "sender", self.sender.clone());
        event.set_in("unmapped", "sender_uid", self.sender_uid);
        event.set_in("unmapped", "sender_pid", self.sender_pid);
        event.set_in("unmapped", "part", self.part);
        event.set_in("unmapped", "unfinished", self.unfinished.then_some(true));
        if let Some(login) = self.login() {
            login.render(event);
        }
    }

    fn row<'a>(&'a self, context: &RowContext<'a>) -> Vec<Value<'a>> {
        let mut row = vec![
            self.text(self.host).into(),
            self.facility.and_then(facility_name).into(),
            self.severity.and_then(severity_name).into(),
            self.text(self.app).into(),
            self.text(self.pid).into(),
            self.text(self.message_id).into(),
            self.text(self.structured_data).into(),
            self.message_text().into(),
            String::from_utf8_lossy(&self.raw).into(),
            context.source_name.into(),
            context.position.0.into(),
            self.part.map_or(Value::Null, |part| u64::from(part).into()),
            if self.unfinished { true.into() } else { Value::Null },
            self.original_time().into(),
            match self.inferred {
                _ if self.time.is_none() => "observed".into(),
                Inferred::Nothing => Value::Null,
                Inferred::Zone => "zone".into(),
                Inferred::YearAndZone => "year_and_zone".into(),
            },
            self.repeat().into(),
            self.sender.as_ref().into(),
            self.sender_uid.into(),
            self.sender_pid.into(),
        ];
        row.extend(login::values(self.login()));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_time_is_the_text_of_the_line() {
        for (raw, time, expected) in [
            ("<34>1 2026-10-11T22:14:15.003+02:00 web1 su - - - x", Some(1), Some("2026-10-11T22:14:15.003+02:00")),
            ("<34>Oct 11 22:14:15 web1 su: x", Some(1), Some("Oct 11 22:14:15")),
            ("2026-11-23T03:21:19.123456+00:00 web1 systemd[1]: x", Some(1), Some("2026-11-23T03:21:19.123456+00:00")),
            ("Nov  3 22:14:15 web1 sshd[812]: x", Some(1), Some("Nov  3 22:14:15")),
            ("<34>1 - web1 su - - - x", None, None),
            ("<", Some(1), None),
            ("Oct", Some(1), None),
        ] {
            let line = Syslog { raw: raw.as_bytes().to_vec(), time, ..Syslog::default() };
            assert_eq!(line.original_time().as_deref(), expected, "{raw}");
        }
    }
}
