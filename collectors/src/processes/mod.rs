//! `processes`: a full snapshot at start and every hour; in between, starts, ends and changes.
//!
//! Reading all of `/proc/PID` costs ten times as much as `/proc/PID/stat`, so `stat` detects changes: the start time another
//! process, the memory layout an exec under the same pid, the parent an orphan; the owner of the directory detects a change of
//! user. Only then the rest is read.

mod accounts;
mod read;
mod stat;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Poll,
    settings::Interval,
    spec::{self, Collector, Plan, Spec, collector_settings},
};
use accounts::Accounts;
use read::Reader;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stat::Stat;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use vedette_wire::{
    Body,
    body::{Change, Process, Snapshot},
};

/// Settings of `[collectors.processes]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Poll interval for changes.
    every: Interval,
    /// Interval of full snapshots.
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

collector_settings!(Settings, every);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "processes";
    const CLASS: CollectorClass = CollectorClass::Inventory;
    const KIND: &'static str = "process";
    const SUMMARY: &'static str = "running processes: a snapshot, then what started, ended or changed";
    const READS: &'static str = "/proc, /etc/passwd, /etc/group; executable, working directory and namespaces of other users' processes \
            with CAP_SYS_PTRACE";

    fn build(settings: &Settings, cx: &CollectorContext) -> Result<Plan, BuildError> {
        if !cx.path("/proc/stat").exists() {
            return Ok(Plan::Absent("there is no /proc below the host's root".to_owned()));
        }
        let every = settings.every.0;
        let snapshot_every = spec::interval(SPEC.id, "snapshot_every", settings.snapshot_every)?;
        Ok(Plan::Poll(every, Box::new(Processes { snapshot_every, ..Processes::default() })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

/// Known state of a process.
struct Known {
    stat: Stat,
    /// Effective user: owner of `/proc/PID`.
    owner: u32,
    /// The last record sent, encoded to save memory.
    sent: Box<[u8]>,
}

#[derive(Default)]
struct Processes {
    known: HashMap<u32, Known>,
    accounts: Accounts,
    snapshot_every: Duration,
    snapshot_at: Option<Instant>,
    /// Some process could not be inspected.
    refused: bool,
}

impl Poll for Processes {
    fn poll(&mut self, cx: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        let full = self.snapshot_at.is_none_or(|at| at.elapsed() >= self.snapshot_every);
        self.accounts.refresh(cx);
        if full {
            self.accounts.forget();
        }
        let mut reader = Reader::new(cx, &self.accounts)?;
        // Changes since the last poll are reported with a snapshot, too; there are none before the first.
        let (tell, mut before) = (self.snapshot_at.is_some(), std::mem::take(&mut self.known));
        let (mut out, mut all): (Vec<Process>, Vec<Process>) = Default::default();
        let entries = std::fs::read_dir(cx.path("/proc")).map_err(|err| CollectError::read("/proc", err))?;
        for entry in entries.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end between two reads, which is no error.
            let Some(dir) = reader.open(pid) else { continue };
            let Some(stat) = reader.stat(&dir) else { continue };
            let Ok(meta) = rustix::fs::fstat(&dir) else { continue };
            let owner = meta.st_uid;
            let known = before.remove(&pid).filter(|known| {
                let same = known.stat.is_same_process(&stat);
                if !same {
                    out.extend(ended(&known.sent));
                }
                same
            });
            let change = match known {
                None => Some(Change::Start),
                Some(known) if known.stat.looks_the_same(&stat) && known.owner == owner => {
                    if !full {
                        self.known.insert(pid, known);
                        continue;
                    }
                    None
                }
                Some(_) => Some(Change::Change),
            };
            let Some(process) = reader.process(&dir, pid, &stat, change.unwrap_or(Change::Snapshot)) else { continue };
            self.known.insert(pid, Known { stat, owner, sent: kept(&process) });
            match (full, change.is_some() && tell) {
                (true, true) => {
                    all.push(Process { change: Change::Snapshot, ..process.clone() });
                    out.push(process);
                }
                (true, false) => all.push(Process { change: Change::Snapshot, ..process }),
                (false, true) => out.push(process),
                (false, false) => {}
            }
        }
        self.refused |= reader.was_refused();
        if full {
            self.snapshot_at = Some(Instant::now());
            let id = format!("{}/{}", reader.boot(), cx.now());
            let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
            for process in &mut all {
                process.snapshot = Some(Snapshot { id: id.clone(), count });
            }
        }
        out.extend(before.values().filter_map(|known| ended(&known.sent)));
        out.append(&mut all);
        Ok(out.into_iter().map(Body::from).collect())
    }

    fn problem(&self) -> Option<String> {
        let todo = match read::may_ptrace() {
            false => "give the agent CAP_SYS_PTRACE",
            // ptrace(2): even then, processes with more capabilities or in an outer user namespace cannot be inspected.
            true => "they have capabilities that the agent lacks",
        };
        self.refused
            .then(|| format!("executable, working directory and namespaces of some processes cannot be read; {todo}"))
    }
}

/// Maximum size of the arguments to remember.
const REMEMBERED_ARGS_BYTES: usize = 1 << 10;

/// The record to send at the end of a process; long command lines are cut to save memory.
fn kept(process: &Process) -> Box<[u8]> {
    let mut left = REMEMBERED_ARGS_BYTES;
    let fits = |argument: &&String| {
        left = left.saturating_sub(argument.len());
        left > 0
    };
    let args: Vec<String> = process.args.iter().take_while(fits).cloned().collect();
    let args_cut = process.args_cut || args.len() < process.args.len();
    let kept = Process { args, args_cut, ..process.clone() };
    rmp_serde::to_vec_named(&kept).expect("a process has string keys and known lengths").into()
}

/// The last known state, as an end.
fn ended(sent: &[u8]) -> Option<Process> {
    let mut process: Process = rmp_serde::from_slice(sent).ok()?;
    process.change = Change::End;
    process.snapshot = None;
    Some(process)
}

#[cfg(test)]
mod tests;
