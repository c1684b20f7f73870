//! `processes`: a full snapshot at start and every hour; in between, starts, ends and changes.
//!
//! A glance at a process is cheap and detects a change; only then the rest is read. What a glance sees is the platform's.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(windows)]
use windows as platform;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Permission, Poll,
    settings::Interval,
    spec::{self, Collector, Plan, Platform, Spec, collector_settings},
};
use platform::{Glance, Host, Reader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
    const READS: &'static str = platform::READS;
    const PERMISSIONS: &'static [Permission] = platform::PERMISSIONS;
    const PLATFORMS: &'static [Platform] = &[Platform::Linux, Platform::Windows];

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        if let Some(why) = platform::absent(context) {
            return Ok(Plan::Absent(why));
        }
        let every = settings.every.0;
        let snapshot_every = spec::interval(SPEC.id, "snapshot_every", settings.snapshot_every)?;
        Ok(Plan::Poll(every, Box::new(Processes { snapshot_every, ..Processes::default() })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

/// Known state of a process.
struct Known {
    glance: Glance,
    /// The last record sent, encoded to save memory.
    sent: Box<[u8]>,
}

#[derive(Default)]
struct Processes {
    known: HashMap<u32, Known>,
    host: Host,
    snapshot_every: Duration,
    snapshot_at: Option<Instant>,
    /// Some process could not be inspected.
    refused: bool,
}

impl Poll for Processes {
    fn poll(&mut self, context: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        let full = self.snapshot_at.is_none_or(|at| at.elapsed() >= self.snapshot_every);
        self.host.refresh(context, full);
        let mut reader = Reader::new(context, &self.host)?;
        // Changes since the last poll are reported with a snapshot, too; there are none before the first.
        let (tell, mut before) = (self.snapshot_at.is_some(), std::mem::take(&mut self.known));
        let (mut out, mut all): (Vec<Process>, Vec<Process>) = Default::default();
        for pid in reader.pids()? {
            // A process may end between two reads, which is not an error.
            let Some((handle, glance)) = reader.glance(pid) else { continue };
            let known = before.remove(&pid).filter(|known| {
                let same = known.glance.is_same_process(&glance);
                if !same {
                    out.extend(ended(&known.sent));
                }
                same
            });
            let change = match known {
                None => Some(Change::Start),
                Some(known) if known.glance.looks_the_same(&glance) => {
                    if !full {
                        self.known.insert(pid, known);
                        continue;
                    }
                    None
                }
                Some(_) => Some(Change::Change),
            };
            let change_or_snapshot = change.unwrap_or(Change::Snapshot);
            let Some(process) = reader.process(&handle, pid, &glance, change_or_snapshot) else { continue };
            self.known.insert(pid, Known { glance, sent: remembered(&process) });
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
            let id = format!("{}/{}", reader.snapshot_prefix(), context.now());
            let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
            for process in &mut all {
                process.snapshot = Some(Snapshot { id: id.clone(), count });
            }
        }
        out.extend(before.values().filter_map(|known| ended(&known.sent)));
        out.append(&mut all);
        Ok(out.into_iter().map(Body::from).collect())
    }

    fn missing_permission(&self) -> Option<String> {
        self.refused.then(platform::missing_permission)
    }
}

/// Maximum size of the arguments to remember.
const REMEMBERED_ARGS_BYTES: usize = 1 << 10;

/// The record to send at the end of a process; long command lines are cut to save memory.
fn remembered(process: &Process) -> Box<[u8]> {
    let mut left = REMEMBERED_ARGS_BYTES;
    let fits = |argument: &&String| {
        left = left.saturating_sub(argument.len());
        left > 0
    };
    let args: Vec<String> = process.args.iter().take_while(fits).cloned().collect();
    let args_cut = process.args_cut || args.len() < process.args.len();
    let remembered = Process { args, args_cut, ..process.clone() };
    rmp_serde::to_vec_named(&remembered).expect("a process has string keys and known lengths").into()
}

/// The last known state, as an end.
fn ended(sent: &[u8]) -> Option<Process> {
    let mut process: Process = rmp_serde::from_slice(sent).ok()?;
    process.change = Change::End;
    process.snapshot = None;
    Some(process)
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
