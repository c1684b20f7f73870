//! Real hosts; `tests/hosts/run` builds what it needs and starts it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a table is printed, and progress")]
#![expect(clippy::disallowed_methods, reason = "scratch files need not be durable")]

mod accidents;
mod core_pattern;
mod footprint;
mod host;
mod journal;
mod life;
mod observe;
mod workspace;

use anyhow::{Context, Result, bail};
use host::Host;
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use workspace::Workspace;

/// Options of a run.
pub(crate) struct Options {
    /// Root file system to boot.
    root: PathBuf,
    /// Directory with the release's repositories: the package of this tree (0.1.0), and of the commit before (0.0.9).
    packages: PathBuf,
    short: bool,
    /// Time of each measurement of the footprint.
    footprint: Option<Duration>,
}

/// A host, and the workspace that it reports to.
pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) workspace: Workspace,
    pub(crate) packages: PathBuf,
    pub(crate) short: bool,
}

impl Scene {
    /// Selects the full or the short value.
    pub(crate) fn of<T>(&self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }
}

type Step = (&'static str, fn(&mut Scene) -> Result<String>);

/// In the order of a host's life. Each looks into the tables, and the ledger has to be whole after it.
const STEPS: &[Step] = &[
    ("installed with apt-get", life::install),
    ("enrolled over the link", life::enroll),
    ("users log in (ssh, login)", observe::log_in),
    ("syslog and journal written", observe::write_logs),
    ("sockets and logs of containers", observe::listen_and_read_containers),
    ("a program crashes", observe::crash),
    ("logs rotated by logrotate", observe::rotate_logs),
    ("journal rotated and vacuumed while it is read", observe::rotate_journal),
    ("journal vacuumed before it is read", observe::vacuum_unread),
    ("agent killed while the journal is written and rotated", accidents::kill),
    ("link cut", accidents::cut_link),
    ("disk of the queue full", accidents::fill_disk),
    ("configuration reloaded", life::reload),
    ("upgraded while logs are written", life::upgrade),
    ("host rebooted", accidents::reboot),
    // Late, since a million records make the queries behind them slow.
    ("journal equals journalctl's", journal::equals),
    ("removed and purged", life::remove),
];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("hosts: {err:#}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options { root: PathBuf::new(), packages: PathBuf::new(), short: false, footprint: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--root" => options.root = value()?.into(),
            "--packages" => options.packages = value()?.into(),
            "--short" => options.short = true,
            "--footprint" => options.footprint = Some(Duration::from_secs(value()?.parse()?)),
            other => bail!("{other:?} is not known; see tests/hosts/run"),
        }
    }
    Ok(options)
}

fn run() -> Result<bool> {
    let options = options()?;
    let host = Host::boot(&options.root)?;
    let workspace = Workspace::start(host.machine_address())?;
    println!("{}, systemd {}, booted in {:.1} s", host.name()?, host.systemd()?, host.boot_time.as_secs_f64());
    let mut scene = Scene { host, workspace, packages: options.packages, short: options.short };
    if let Some(time) = options.footprint {
        return footprint::measure(&mut scene, time).map(|()| true);
    }
    println!("\n| step | seconds | |\n|---|---:|---|");
    let (began, mut is_good) = (Instant::now(), true);
    for (name, step) in STEPS {
        let began = Instant::now();
        let done = step(&mut scene).and_then(|text| scene.workspace.wait_until_nothing_is_missing().map(|()| text));
        let seconds = began.elapsed().as_secs_f64();
        match done {
            Ok(text) => println!("| {name} | {seconds:.1} | {text} |"),
            Err(err) => {
                is_good = false;
                println!("| {name} | {seconds:.1} | **failed** |");
                eprintln!("hosts: {name}: {err:#}\n{}", scene.host.diagnosis());
                break;
            }
        }
    }
    println!("\n{:.0} s in all", began.elapsed().as_secs_f64());
    Ok(is_good)
}

/// Waits until something is there, for at most a minute and a half.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        let last = probe();
        match last {
            Ok(Some(found)) => return Ok(found),
            _ if began.elapsed() < Duration::from_secs(90) => std::thread::sleep(Duration::from_millis(100)),
            Ok(None) => bail!("{what} did not happen"),
            Err(err) => return Err(err.context(format!("{what} did not happen"))),
        }
    }
}
