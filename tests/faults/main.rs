//! The fault campaign; `tests/faults/run` builds what it needs and starts it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is printed, and progress told")]
#![expect(clippy::disallowed_methods, reason = "scratch files need not be durable")]

mod campaign;
mod disk;
mod files;
mod kills;
mod neighbours;
mod network;

use anyhow::{Result, bail};
use campaign::{Campaign, Row};
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

type Fault = (&'static str, fn(&Campaign) -> Result<Option<Row>>);

/// In the order of the table.
const FAULTS: &[Fault] = &[
    ("kill -9 at random moments", kills::at_random),
    ("kill -9 at each step", kills::at_each_step),
    ("workspace killed", network::workspace_killed),
    ("answer lost after landing", network::answers_lost),
    ("body cut in the middle", network::bodies_cut),
    ("connections refused", network::refused),
    ("half-open connections", network::half_open),
    ("certificates replaced", network::certificates),
    ("rotation by copy and truncation", files::copy_truncate),
    ("disk full (ENOSPC)", disk::full),
    ("free space at the floor", disk::floor),
    ("bits flipped in the queue", disk::flipped),
    ("queue truncated", disk::truncated),
    ("queue emptied", disk::emptied),
    ("queue zero-filled", disk::zeroed),
    ("queue deleted", disk::deleted),
    ("queue replaced by a directory", disk::directory),
    ("queue in use by a second agent", disk::second_agent),
    ("queue at its limit", network::overload),
    ("batches that become gigabytes, of another organization", neighbours::bombs),
    ("batches full of holes, of another organization", neighbours::holes),
    ("1,000 idle connections, and junk enrollments", neighbours::connections),
    ("a flood, holes and 400 files beside the log", neighbours::files),
    ("links that loop below `**`", neighbours::links),
    ("a workspace that answers without end", neighbours::endless),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("faults: {err:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let mut campaign = Campaign::default();
    let mut only = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--short", next) => {
                campaign.short = true;
                campaign.failpoints = Some(std::env::current_exe()?.with_file_name("vedette"));
                if next.is_some() {
                    bail!("--short stands last");
                }
            }
            ("--only", Some(prefix)) => only = Some(prefix),
            ("--failpoints", Some(path)) => campaign.failpoints = Some(PathBuf::from(path)),
            (other, _) => bail!("{other:?} is not known; see tests/faults/run"),
        }
    }
    let selected: Vec<&Fault> = FAULTS
        .iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|prefix| name.starts_with(prefix.as_str())))
        .collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // Two at a time only if the longest stall is not a figure.
    std::thread::scope(|scope| {
        for _ in 0..campaign.of(1, 2) {
            scope.spawn(|| {
                while let Some((name, fault)) = selected.get(next.fetch_add(1, Ordering::Relaxed)) {
                    eprintln!("{name} …");
                    let began = Instant::now();
                    let came = fault(&campaign);
                    if let Ok(Some(row)) = &came {
                        eprintln!("{name}: {}", row.summary(began.elapsed()));
                    }
                    done.lock().push((*name, came));
                }
            });
        }
    });
    let mut done = done.into_inner();
    done.sort_by_key(|(name, _)| FAULTS.iter().position(|(other, _)| other == name));
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, came) in done {
        match came {
            Ok(Some(row)) => rows.push((name, row)),
            Ok(None) => {}
            Err(err) => failed.push(format!("{name}: {err:#}")),
        }
    }
    println!("{}", campaign::table(&rows));
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(rows.iter().all(|(_, row)| row.is_clean()))
}
