//! `sessions`: who is logged in, from logind where it runs, else from utmp.
//!
//! logind's session files are what `loginctl` would say, without a bus: `UID=1000`, `USER=alice`, `TTY=pts/0`,
//! `REMOTE_HOST=192.0.2.7`, `REALTIME=…` (microseconds). utmp(5) is gone from newer distributions.

mod utmp;

use crate::{
    Cx, Poll,
    settings::Interval,
    spec::{self, BuildError, Class, CollectError, Plan, Spec},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};
use vedette_wire::{
    Body,
    body::{Change, Session, Snapshot},
};

pub(crate) const SPEC: Spec = Spec {
    id: "sessions",
    class: Class::Inventory,
    kind: "session",
    summary: "who is logged in, and log-ins and log-outs between two looks",
    reads: "/run/systemd/sessions, else /run/utmp",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
    skip: None,
};

const LOGIND: &str = "/run/systemd/sessions";
const UTMP: [&str; 2] = ["/run/utmp", "/var/run/utmp"];
/// How often all sessions are sent.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(3600);

/// Settings of `[collectors.sessions]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether it runs.
    enabled: bool,
    /// How often sessions are looked at.
    every: Interval,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(10)) }
    }
}

fn build(table: toml::Table, cx: &Cx) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    if !settings.enabled {
        return Ok(Plan::Off);
    }
    let has_utmp = || UTMP.iter().any(|path| cx.host().is_ok_and(|root| root.find(Path::new(path)).is_ok()));
    if !cx.path(LOGIND).is_dir() && !has_utmp() {
        return Ok(Plan::Absent(format!("this host has neither {LOGIND} (logind) nor {} (utmp)", UTMP[0])));
    }
    Ok(Plan::Poll(spec::interval(SPEC.id, "every", settings.every)?, Box::new(Sessions::default())))
}

#[derive(Default)]
struct Sessions {
    known: BTreeMap<String, Session>,
    snapshot_at: Option<Instant>,
}

impl Poll for Sessions {
    fn poll(&mut self, cx: &Cx) -> Result<Vec<Body>, CollectError> {
        let now = read(cx)?;
        let mut out = Vec::new();
        // What changed is told also when a snapshot is due; before the first look nothing did.
        if self.snapshot_at.is_some() {
            for (id, session) in &now {
                if !self.known.contains_key(id) {
                    out.push(Session { change: Change::Start, ..session.clone() });
                }
            }
            for (id, session) in &self.known {
                if !now.contains_key(id) {
                    out.push(Session { change: Change::End, ..session.clone() });
                }
            }
        }
        if self.snapshot_at.is_none_or(|at| at.elapsed() >= SNAPSHOT_EVERY) {
            self.snapshot_at = Some(Instant::now());
            let snapshot = Snapshot { id: format!("sessions/{}", cx.now()), count: now.len() as u32 };
            out.extend(now.values().map(|session| Session { snapshot: Some(snapshot.clone()), ..session.clone() }));
        }
        self.known = now;
        Ok(out.into_iter().map(Body::from).collect())
    }
}

/// Sessions by id.
fn read(cx: &Cx) -> Result<BTreeMap<String, Session>, CollectError> {
    let dir = cx.path(LOGIND);
    if dir.is_dir() {
        let entries = std::fs::read_dir(&dir).map_err(|err| CollectError::read(LOGIND, err))?;
        return Ok(entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|ty| ty.is_file()))
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.to_owned();
                // A session may end between listing and reading.
                let session = logind(&id, &std::fs::read_to_string(entry.path()).ok()?)?;
                Some((session.id.clone(), session))
            })
            .collect());
    }
    for path in UTMP {
        match read_whole(cx, path) {
            Ok(bytes) => return Ok(utmp::sessions(&bytes).map(|session| (session.id.clone(), session)).collect()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
            Err(err) => return Err(CollectError::read(path, err)),
        }
    }
    Err(CollectError::Absent(format!("{LOGIND} is gone")))
}

/// utmp(5) has some hundred records; what is larger is none.
const UTMP_BYTES_MAX: u64 = 16 << 20;

fn read_whole(cx: &Cx, path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    cx.host()?.read(Path::new(path))?.take(UTMP_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One session file; absent for what is no log-in of a person (`manager` runs a user's services).
fn logind(id: &str, text: &str) -> Option<Session> {
    let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let field = |key: &str| fields.get(key).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
    let class = field("CLASS");
    if class.as_deref().is_some_and(|class| class.starts_with("manager"))
        || field("STATE").as_deref() == Some("closing")
    {
        return None;
    }
    let user_id: u32 = field("UID")?.parse().ok()?;
    Some(Session {
        change: Change::Snapshot,
        snapshot: None,
        // A session id is used again after a reboot.
        id: id.to_owned(),
        user: field("USER").unwrap_or_else(|| user_id.to_string()),
        user_id: Some(user_id),
        terminal: field("TTY"),
        display: field("DISPLAY"),
        remote_host: field("REMOTE_HOST").and_then(|host| utmp::display_and_host(&host).1),
        since: field("REALTIME").and_then(|text| text.parse::<i64>().ok()?.checked_mul(1000)),
        service: field("SERVICE"),
        class,
        source: "logind".to_owned(),
        leader: field("LEADER").and_then(|text| text.parse().ok()),
    })
}

#[cfg(test)]
mod tests;
