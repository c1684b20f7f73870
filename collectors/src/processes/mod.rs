//! `processes`: a full snapshot at start and every hour, between them what started, ended or changed.
//!
//! Reading all of `/proc/PID` costs ten times what `/proc/PID/stat` costs, so `stat` is what tells that something
//! changed: the start time that it is another process, the memory layout that there was an exec under the same pid,
//! the parent that it was orphaned; the owner of the directory that it changed its user. Only then the rest is read.

mod read;
mod stat;

use crate::{
    Cx, Poll,
    settings::Interval,
    spec::{self, BuildError, Class, CollectError, Plan, Spec},
};
use read::{Accounts, Reader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stat::Stat;
use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};
use vedette_wire::{
    Body,
    body::{Change, Process, Snapshot},
};

pub(crate) const SPEC: Spec = Spec {
    id: "processes",
    class: Class::Inventory,
    kind: "process",
    summary: "running processes: a snapshot, then what started, ended or changed",
    reads: "/proc, /etc/passwd, /etc/group; executable, working directory and namespaces of other users' processes \
            with CAP_SYS_PTRACE",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
};

/// Settings of `[collectors.processes]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether it runs.
    enabled: bool,
    /// How often changes are looked for.
    every: Interval,
    /// How often a full snapshot is sent.
    snapshot_every: Interval,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            every: Interval(Duration::from_secs(60)),
            snapshot_every: Interval(Duration::from_secs(3600)),
        }
    }
}

fn build(table: toml::Table, cx: &Cx) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    if !settings.enabled {
        return Ok(Plan::Off);
    }
    if !cx.path("/proc/stat").exists() {
        return Ok(Plan::Absent("there is no /proc below the host's root".to_owned()));
    }
    let collector = Processes { known: HashMap::new(), snapshot_every: settings.snapshot_every.0, snapshot_at: None };
    Ok(Plan::Poll(settings.every.0, Box::new(collector)))
}

/// What is remembered of a process.
struct Known {
    stat: Stat,
    /// Effective user, the owner of `/proc/PID`.
    owner: u32,
    /// What was sent last, encoded: a machine may have thousands.
    sent: Box<[u8]>,
}

struct Processes {
    known: HashMap<u32, Known>,
    snapshot_every: Duration,
    snapshot_at: Option<Instant>,
}

impl Poll for Processes {
    fn poll(&mut self, cx: &Cx) -> Result<Vec<Body>, CollectError> {
        let mut reader = Reader::new(cx, Accounts::read(cx))?;
        let full = self.snapshot_at.is_none_or(|at| at.elapsed() >= self.snapshot_every);
        let mut before = std::mem::take(&mut self.known);
        let mut out: Vec<Process> = Vec::new();
        let entries = std::fs::read_dir(cx.path("/proc")).map_err(|err| CollectError::read("/proc", err))?;
        for entry in entries.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end at any moment between two reads: then it is gone, which is no error.
            let Some(stat) = reader.stat(pid) else { continue };
            let Ok(meta) = entry.metadata() else { continue };
            let owner = meta.uid();
            let known = before.remove(&pid).filter(|known| {
                let same = known.stat.is_same_process(&stat);
                if !same && !full {
                    out.extend(ended(&known.sent));
                }
                same
            });
            let change = match known {
                _ if full => Change::Snapshot,
                None => Change::Start,
                Some(known) if known.stat.looks_the_same(&stat) && known.owner == owner => {
                    self.known.insert(pid, known);
                    continue;
                }
                Some(_) => Change::Change,
            };
            let Some(process) = reader.process(pid, &stat, change) else { continue };
            let sent = rmp_serde::to_vec_named(&process).expect("a process has string keys and known lengths");
            self.known.insert(pid, Known { stat, owner, sent: sent.into() });
            out.push(process);
        }
        if full {
            self.snapshot_at = Some(Instant::now());
            let id = format!("{}/{}", reader.boot(), cx.now());
            let count = u32::try_from(out.len()).unwrap_or(u32::MAX);
            for process in &mut out {
                process.snapshot = Some(Snapshot { id: id.clone(), count });
            }
        } else {
            out.extend(before.values().filter_map(|known| ended(&known.sent)));
        }
        Ok(out.into_iter().map(Body::from).collect())
    }
}

/// The last that was known, as an end.
fn ended(sent: &[u8]) -> Option<Process> {
    let mut process: Process = rmp_serde::from_slice(sent).ok()?;
    process.change = Change::End;
    process.snapshot = None;
    Some(process)
}

#[cfg(test)]
mod tests;
