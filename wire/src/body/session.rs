//! A log-in session: OCSF 5040 Live Evidence Info (query type 12) in a snapshot, 3002 Authentication for a start or an end.

use super::{Change, Kind, Observation, RowContext, Snapshot, snapshot};
use crate::{
    column::{Column, Value, at, boolean, integer, text, time},
    ocsf::{Event, OcsfClass, milliseconds, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A session of logind or utmp(5).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Why the record was made.
    pub change: Change,
    /// The snapshot that the record belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Session id of logind, or line and pid of utmp.
    pub id: String,
    /// User name.
    pub user: String,
    /// User id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<u32>,
    /// Terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// X11 or Wayland display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<String>,
    /// Remote host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_host: Option<String>,
    /// Start, nanoseconds UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
    /// PAM service: `sshd`, `login`, `gdm-password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Session class of logind: `user`, `greeter`, `lock-screen`, `manager`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `logind` or `utmp`.
    pub source: String,
    /// Process id of the session leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u32>,
}

const COLUMNS: &[Column] = &[
    snapshot::CHANGE,
    snapshot::SNAPSHOT,
    snapshot::SNAPSHOT_COUNT,
    text("session", "session id"),
    text("user", "user name"),
    integer("user_id", "user id"),
    text("terminal", "terminal"),
    text("display", "X11 or Wayland display"),
    text("remote_host", "host that the user came from; null when local"),
    boolean("is_remote", "the user came from another host"),
    time("since", "when the session began"),
    text("service", "PAM service that opened it"),
    text("session_class", "logind's class of session"),
    text("session_source", "`logind` or `utmp`"),
    integer("leader", "process id of the session's leader"),
];

impl Session {
    /// Whether a person logged in. `greeter` is the log-in screen, `lock-screen` the lock screen, `background` a job
    /// (sd_session_get_class(3)). utmp(5) holds persons only.
    pub fn is_user_session(&self) -> bool {
        self.class.as_deref().is_none_or(|class| class.starts_with("user"))
    }

    fn user_object(&self) -> serde_json::Value {
        object([("name", json!(self.user)), ("uid", json!(self.user_id.map(|id| id.to_string())))])
    }

    fn session_object(&self) -> serde_json::Value {
        object([
            ("uid", json!(self.id)),
            ("terminal", json!(self.terminal)),
            ("created_time", json!(self.since.map(milliseconds))),
            ("is_remote", json!(self.remote_host.is_some())),
            ("issuer", json!(self.service)),
        ])
    }
}

impl Observation for Session {
    const KIND: Kind = Kind {
        name: "session",
        view: "sessions",
        help: "login sessions: a snapshot at start and every hour, between them what began or ended",
        classes: &[OcsfClass::LiveEvidenceInfo, OcsfClass::Authentication],
        columns: COLUMNS,
    };

    fn class(&self) -> OcsfClass {
        match self.change {
            Change::Start | Change::End if self.is_user_session() => OcsfClass::Authentication,
            _ => OcsfClass::LiveEvidenceInfo,
        }
    }

    fn activity(&self) -> u8 {
        if self.change == Change::End && self.is_user_session() { 2 } else { 1 }
    }

    fn time(&self) -> Option<i64> {
        if self.change == Change::Start { self.since } else { None }
    }

    fn render(&self, event: &mut Event) {
        if self.class() == OcsfClass::LiveEvidenceInfo {
            event.set("query_result_id", 1);
            event.set("query_evidence", json!({"query_type_id": 12, "session": self.session_object()}));
            event.set_in("unmapped", "user", self.user_object());
        } else {
            event.set("user", self.user_object());
            event.set("session", self.session_object());
            event.set("service", json!({"name": self.service.as_deref().unwrap_or(&self.source)}));
            event.set("is_remote", self.remote_host.is_some());
            event.set("status_id", 1);
            event.set("logon_type_id", if self.remote_host.is_some() { 10 } else { 2 });
        }
        for (name, value) in [
            ("change", json!(self.change)),
            ("snapshot", json!(self.snapshot)),
            ("remote_host", json!(self.remote_host)),
            ("display", json!(self.display)),
            ("session_class", json!(self.class)),
            ("session_source", json!(self.source)),
            ("leader", json!(self.leader)),
        ] {
            event.set_in("unmapped", name, value);
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        vec![
            self.change.name().into(),
            snapshot::id(self.snapshot.as_ref()),
            snapshot::count(self.snapshot.as_ref()),
            self.id.as_str().into(),
            self.user.as_str().into(),
            self.user_id.into(),
            self.terminal.as_ref().into(),
            self.display.as_ref().into(),
            self.remote_host.as_ref().into(),
            self.remote_host.is_some().into(),
            at(self.since),
            self.service.as_ref().into(),
            self.class.as_ref().into(),
            self.source.as_str().into(),
            self.leader.into(),
        ]
    }
}
