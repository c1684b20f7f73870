//! A process: OCSF 5040 Live Evidence Info in a snapshot, 1007 Process Activity for a start, an end or a change.

use super::{Change, Kind, Observation, RowContext, Snapshot, snapshot};
use crate::{
    column::{Column, Value, at, boolean, integer, list, text, time},
    ocsf::{Event, OcsfClass, milliseconds, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;

/// A process as the operating system shows it: `/proc/PID` (proc(5)), or a snapshot of Windows. Fields that cannot be read are
/// absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Why the record was made.
    pub change: Change,
    /// The snapshot that the record belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Pid and start time, on Linux with the boot: unique across reuse of the pid.
    pub uid: String,
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Parent's process id; 0 for init and kthreadd.
    pub ppid: u32,
    /// `comm` of proc(5), or the name of the executable's file.
    pub name: String,
    /// Executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The executable was deleted or replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// Command line; invalid UTF-8 is replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `args` is shorter than the command line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_cut: bool,
    /// Real user; on Windows the user of the process's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Principal>,
    /// Real group; absent on Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Principal>,
    /// Start time, nanoseconds UTC, to one clock tick; on Windows to a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<i64>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Session id (setsid(2)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u32>,
    /// Control group path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Container id, from the control group path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Namespaces (namespaces(7)).
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Kernel thread.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kernel: bool,
    /// State; absent where processes have none (Windows: threads have).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ProcessState>,
}

/// State of a process, by its letter in proc(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// Running or waiting for a processor.
    #[serde(rename = "R")]
    Running,
    /// In an interruptible wait.
    #[serde(rename = "S")]
    Sleeping,
    /// In an uninterruptible wait.
    #[serde(rename = "D")]
    DiskSleep,
    /// Stopped by a signal.
    #[serde(rename = "T")]
    Stopped,
    /// Stopped by a debugger.
    #[serde(rename = "t")]
    Traced,
    /// Ended, but not waited for.
    #[serde(rename = "Z")]
    Zombie,
    /// An idle kernel thread.
    #[serde(rename = "I")]
    Idle,
    /// About to disappear.
    #[serde(rename = "X", alias = "x")]
    Dead,
    /// Another letter; `?` is one that releases before this type decode as well.
    #[serde(rename = "?", other)]
    Unknown,
}

impl ProcessState {
    /// The state of a letter.
    pub fn of_letter(letter: char) -> Self {
        match letter {
            'R' => Self::Running,
            'S' => Self::Sleeping,
            'D' => Self::DiskSleep,
            'T' => Self::Stopped,
            't' => Self::Traced,
            'Z' => Self::Zombie,
            'I' => Self::Idle,
            'X' | 'x' => Self::Dead,
            _ => Self::Unknown,
        }
    }

    /// Name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::DiskSleep => "disk_sleep",
            Self::Stopped => "stopped",
            Self::Traced => "traced",
            Self::Zombie => "zombie",
            Self::Idle => "idle",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Id.
    pub id: PrincipalId,
    /// Name; absent for an id without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Id of a user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PrincipalId {
    /// Number of a user or a group (credentials(7)).
    Number(u32),
    /// Security identifier of Windows: `S-1-5-18` (MS-DTYP §2.4.2.1).
    Sid(String),
}

impl PrincipalId {
    /// The number, if it is one.
    fn number(&self) -> Option<u32> {
        match self {
            Self::Number(id) => Some(*id),
            Self::Sid(_) => None,
        }
    }

    /// The security identifier, if it is one.
    fn sid(&self) -> Option<&str> {
        match self {
            Self::Number(_) => None,
            Self::Sid(sid) => Some(sid),
        }
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(id) => id.fmt(f),
            Self::Sid(sid) => sid.fmt(f),
        }
    }
}

/// Inode numbers of a process's namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Mount namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mnt: Option<u64>,
    /// Process id namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<u64>,
    /// User namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u64>,
}

const COLUMNS: &[Column] = &[
    snapshot::CHANGE,
    snapshot::SNAPSHOT,
    snapshot::SNAPSHOT_COUNT,
    text("process_uid", "id that stays unique when the pid is used again"),
    integer("pid", "process id"),
    integer("ppid", "parent's process id"),
    text("name", "`comm` of proc(5), or the name of the executable's file"),
    text("cmd_line", "command line, arguments joined by spaces"),
    text("args", "command line as a JSON list"),
    boolean("args_cut", "the command line was longer than the 16 KiB that are kept"),
    text("path", "executable"),
    boolean("path_deleted", "the executable's file is gone"),
    text("user", "real user's name, or its id where it has none"),
    integer("user_id", "real user id; `unknown`; null on Windows"),
    text("user_sid", "user's security identifier on Windows; otherwise null"),
    text("group_name", "real group's name, or its number where it has none"),
    integer("group_id", "real group id"),
    time("started", "when it started"),
    text(
        "state",
        "sleeping, running, disk_sleep, stopped, traced, zombie, idle, dead; `ended` in an end record; null on Windows",
    ),
    text("cwd", "working directory"),
    integer("session_id", "session id"),
    text("cgroup", "control group path"),
    text("container_id", "container id"),
    integer("namespace_mnt", "mount namespace"),
    integer("namespace_pid", "process id namespace"),
    integer("namespace_net", "network namespace"),
    integer("namespace_user", "user namespace"),
    boolean("kernel_thread", "it is a kernel thread"),
];

impl Process {
    fn state_name(&self) -> Option<&'static str> {
        if self.change == Change::End { Some("ended") } else { self.state.map(ProcessState::name) }
    }

    fn cmd_line(&self) -> Option<String> {
        (!self.args.is_empty()).then(|| self.args.join(" "))
    }

    fn to_ocsf(&self) -> serde_json::Value {
        let file = self.path.as_deref().map(|path| {
            object([
                ("name", json!(file_name(path))),
                ("path", json!(path)),
                ("type_id", json!(1)),
                ("is_deleted", if self.deleted { json!(true) } else { json!(null) }),
            ])
        });
        object([
            ("pid", json!(self.pid)),
            ("uid", json!(self.uid)),
            ("name", json!(self.name)),
            ("cmd_line", json!(self.cmd_line())),
            ("path", json!(self.path)),
            ("file", json!(file)),
            ("created_time", json!(self.started.map(milliseconds))),
            ("user", principal(self.user.as_ref())),
            ("parent_process", json!({"pid": self.ppid})),
            ("working_directory", json!(self.cwd)),
            ("session", json!(self.session.map(|id| json!({"uid": id.to_string()})))),
        ])
    }
}

/// Last component of a path of Windows (`C:\…`, `\\host\…`) or of Linux, where a backslash is a letter like others.
fn file_name(path: &str) -> Option<&str> {
    let is_windows = path.as_bytes().get(1) == Some(&b':') || path.starts_with("\\\\");
    path.rsplit(if is_windows { '\\' } else { '/' }).next()
}

fn principal(who: Option<&Principal>) -> serde_json::Value {
    json!(who.map(|who| object([("uid", json!(who.id.to_string())), ("name", json!(who.name))])))
}

fn name_or_number(who: Option<&Principal>) -> Value<'_> {
    match who {
        None => Value::Null,
        Some(Principal { name: Some(name), .. }) => name.into(),
        Some(Principal { id, .. }) => id.to_string().into(),
    }
}

impl Observation for Process {
    const KIND: Kind = Kind {
        name: "process",
        view: "processes",
        help: "processes: a full snapshot every hour, between them what started, ended or changed",
        classes: &[OcsfClass::LiveEvidenceInfo, OcsfClass::ProcessActivity],
        columns: COLUMNS,
    };

    fn class(&self) -> OcsfClass {
        match self.change {
            Change::Snapshot => OcsfClass::LiveEvidenceInfo,
            Change::Start | Change::Change | Change::End => OcsfClass::ProcessActivity,
        }
    }

    fn activity(&self) -> u8 {
        match self.change {
            Change::Snapshot | Change::Start => 1,
            Change::End => 2,
            Change::Change => 99,
        }
    }

    fn time(&self) -> Option<i64> {
        if self.change == Change::Start { self.started } else { None }
    }

    fn render(&self, event: &mut Event) {
        if self.change == Change::Snapshot {
            event.set("query_result_id", 1);
            event.set("query_evidence", json!({"query_type_id": 10, "process": self.to_ocsf()}));
        } else {
            event.set("process", self.to_ocsf());
            event.set("actor", json!({"process": {"pid": self.ppid}}));
            if self.change == Change::Change {
                event.set("activity_name", "Change");
            }
        }
        let namespaces = &self.namespaces;
        for (name, value) in [
            ("snapshot", json!(self.snapshot)),
            ("args", json!(self.args)),
            ("args_cut", if self.args_cut { json!(true) } else { json!(null) }),
            ("group", principal(self.group.as_ref())),
            ("cgroup", json!(self.cgroup)),
            ("container_id", json!(self.container)),
            ("namespaces", json!(namespaces)),
            ("state", json!(self.state_name())),
            ("kernel_thread", if self.kernel { json!(true) } else { json!(null) }),
        ] {
            event.set_in("unmapped", name, value);
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        let namespaces = &self.namespaces;
        vec![
            self.change.name().into(),
            snapshot::id(self.snapshot.as_ref()),
            snapshot::count(self.snapshot.as_ref()),
            self.uid.as_str().into(),
            self.pid.into(),
            self.ppid.into(),
            self.name.as_str().into(),
            self.cmd_line().into(),
            list(&self.args),
            self.args_cut.into(),
            self.path.as_ref().into(),
            self.deleted.into(),
            name_or_number(self.user.as_ref()),
            self.user.as_ref().and_then(|user| user.id.number()).into(),
            self.user.as_ref().and_then(|user| user.id.sid()).into(),
            name_or_number(self.group.as_ref()),
            self.group.as_ref().and_then(|group| group.id.number()).into(),
            at(self.started),
            self.state_name().into(),
            self.cwd.as_ref().into(),
            self.session.into(),
            self.cgroup.as_ref().into(),
            self.container.as_ref().into(),
            namespaces.mnt.into(),
            namespaces.pid.into(),
            namespaces.net.into(),
            namespaces.user.into(),
            self.kernel.into(),
        ]
    }
}
