//! A process that crashed, from its dump: OCSF 6008 Application Error.

use super::{Kind, Observation, RowContext};
use crate::{
    column::{Column, Value, at, boolean, integer, text, time},
    ocsf::{Event, OcsfClass, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::borrow::Cow;

/// A crash dump. Facts that the dump does not hold are absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Crash {
    /// Path of the dump.
    pub file: String,
    /// `systemd-coredump`, `apport`, `kdump` or `core`.
    pub format: String,
    /// Size of the dump file in bytes, as stored.
    pub size: u64,
    /// SHA-256 of the dump file, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Time of the crash, nanoseconds UTC; the file's modification time where the dump holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Name of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd_line: Option<String>,
    /// Signal number (signal(7)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
    /// User id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<u32>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Package and version of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// The dump is truncated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

const COLUMNS: &[Column] = &[
    text("process", "name of the process"),
    integer("pid", "its process id"),
    text("path", "its executable"),
    text("cmd_line", "its command line"),
    text("signal", "signal name"),
    integer("signal_number", "signal number, signal(7)"),
    integer("size", "size of the dump file in bytes"),
    text("sha256", "SHA-256 of the dump file"),
    text("file", "where the dump was found"),
    text("format", "`systemd-coredump`, `apport`, `kdump` or `core`"),
    time("crashed", "when it crashed"),
    integer("user_id", "its user id"),
    text("unit", "its systemd unit"),
    text("package", "package and version of the executable"),
    boolean("truncated", "the dump is cut short"),
];

/// Name of a Linux signal (signal(7)).
fn signal_name(number: u32) -> Option<&'static str> {
    Some(match number {
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

impl Crash {
    fn signal_text(&self) -> Option<Cow<'static, str>> {
        let number = self.signal?;
        Some(signal_name(number).map_or_else(|| Cow::Owned(number.to_string()), Cow::Borrowed))
    }
}

impl Observation for Crash {
    const KIND: Kind = Kind {
        name: "crash",
        view: "crashes",
        help: "crash dumps, each once when it is found",
        classes: &[OcsfClass::ApplicationError],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        1
    }

    fn time(&self) -> Option<i64> {
        self.time
    }

    fn severity(&self) -> u8 {
        4
    }

    fn message(&self) -> Option<Cow<'_, str>> {
        let name = self.process.as_deref().unwrap_or("a process");
        let pid = self.pid.map(|pid| format!("[{pid}]")).unwrap_or_default();
        let signal = self.signal_text().unwrap_or(Cow::Borrowed("an unknown signal"));
        Some(Cow::Owned(format!("{name}{pid} ended by {signal}")))
    }

    fn render(&self, event: &mut Event) {
        event.set("status_code", self.signal_text().map(Cow::into_owned));
        if self.pid.is_some() || self.process.is_some() {
            let process = object([
                ("pid", json!(self.pid)),
                ("name", json!(self.process)),
                ("path", json!(self.path)),
                ("cmd_line", json!(self.cmd_line)),
                ("user", json!(self.user_id.map(|uid| json!({"uid": uid.to_string()})))),
            ]);
            event.set("actor", json!({"process": process}));
        }
        event.set_in(
            "unmapped",
            "crash",
            object([
                ("format", json!(self.format)),
                ("file", json!(self.file)),
                ("size", json!(self.size)),
                ("sha256", json!(self.sha256)),
                ("signal", json!(self.signal)),
                ("unit", json!(self.unit)),
                ("package", json!(self.package)),
                ("truncated", if self.truncated { json!(true) } else { json!(null) }),
            ]),
        );
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![
            self.process.as_ref().into(),
            self.pid.into(),
            self.path.as_ref().into(),
            self.cmd_line.as_ref().into(),
            self.signal_text().into(),
            self.signal.into(),
            self.size.into(),
            self.sha256.as_ref().into(),
            self.file.as_str().into(),
            self.format.as_str().into(),
            at(self.time),
            self.user_id.into(),
            self.unit.as_ref().into(),
            self.package.as_ref().into(),
            self.truncated.into(),
        ]
    }
}
