//! `sessions`: log-in sessions, from logind if it runs, or else from utmp.
//!
//! logind's session files hold what `loginctl` shows, without D-Bus: `UID=1000`, `USER=alice`, `TTY=pts/0`,
//! `REMOTE_HOST=192.0.2.7`, `REALTIME=…` (microseconds). Newer distributions have no utmp(5).

mod utmp;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Poll,
    settings::Interval,
    spec::{Collector, Plan, Spec, collector_settings},
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

const LOGIND: &str = "/run/systemd/sessions";
const UTMP: [&str; 2] = ["/run/utmp", "/var/run/utmp"];
/// Interval of full snapshots.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(3600);

/// Settings of `[collectors.sessions]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Poll interval.
    every: Interval,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(10)) }
    }
}

collector_settings!(Settings, every);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "sessions";
    const CLASS: CollectorClass = CollectorClass::Inventory;
    const KIND: &'static str = "session";
    const SUMMARY: &'static str = "log-in sessions, and log-ins and log-outs between two polls";
    const READS: &'static str = "/run/systemd/sessions, else /run/utmp";

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        let has_utmp = || UTMP.iter().any(|path| context.host().is_ok_and(|root| root.find(Path::new(path)).is_ok()));
        if !context.path(LOGIND).is_dir() && !has_utmp() {
            return Ok(Plan::Absent(format!("this host has neither {LOGIND} (logind) nor {} (utmp)", UTMP[0])));
        }
        Ok(Plan::Poll(settings.every.0, Box::new(Sessions::default())))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

#[derive(Default)]
struct Sessions {
    known: BTreeMap<String, Session>,
    snapshot_at: Option<Instant>,
}

impl Poll for Sessions {
    fn poll(&mut self, context: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        let now = read(context)?;
        let mut out = Vec::new();
        // Changes are reported with a snapshot, too; there are none before the first poll.
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
            let snapshot = Snapshot { id: format!("sessions/{}", context.now()), count: now.len() as u32 };
            out.extend(now.values().map(|session| Session { snapshot: Some(snapshot.clone()), ..session.clone() }));
        }
        self.known = now;
        Ok(out.into_iter().map(Body::from).collect())
    }
}

/// Sessions by id.
fn read(context: &CollectorContext) -> Result<BTreeMap<String, Session>, CollectError> {
    let dir = context.path(LOGIND);
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
        match read_whole(context, path) {
            Ok(bytes) => return Ok(utmp::sessions(&bytes).map(|session| (session.id.clone(), session)).collect()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
            Err(err) => return Err(CollectError::read(path, err)),
        }
    }
    Err(CollectError::Absent(format!("{LOGIND} is gone")))
}

/// Maximum size of utmp(5), which has some hundred records.
const UTMP_BYTES_MAX: u64 = 16 << 20;

fn read_whole(context: &CollectorContext, path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    context.host()?.read(Path::new(path))?.take(UTMP_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses a session file; absent for a session that is not a person's log-in (`manager` runs a user's services).
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
        // Session ids are reused after a reboot.
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
