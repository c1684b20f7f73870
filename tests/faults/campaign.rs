//! Common parts of all faults: a world, a writer, a proxy, a watch for stalls, and the final count.

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_benches::{
    numbered::{Rotation, Writer, Written},
    proxy::Proxy,
    world::{Process, World},
};

/// Maximum time from the last fault until everything has landed.
const CATCH_UP: Duration = Duration::from_secs(240);

/// Options of the campaign.
#[derive(Debug, Default)]
pub(crate) struct Campaign {
    pub(crate) short: bool,
    /// An agent built with failpoints.
    pub(crate) failpoints: Option<PathBuf>,
}

impl Campaign {
    /// Selects the full or the short value.
    pub(crate) fn of<T>(&self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }
}

/// Result of a fault.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) times: u64,
    emitted: u64,
    stored: u64,
    dropped: BTreeMap<String, u64>,
    missing: u64,
    repeated: u64,
    stall: Duration,
    /// Longest time from writing a line until it is stored.
    wait: Duration,
    /// Additional remark.
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn is_clean(&self) -> bool {
        self.missing == 0 && self.repeated == 0
    }

    pub(crate) fn summary(&self, took: Duration) -> String {
        format!(
            "{} times, {} emitted, {} stored, {} missing, {} repeated, {:.0} s",
            self.times,
            self.emitted,
            self.stored,
            self.missing,
            self.repeated,
            took.as_secs_f64()
        )
    }
}

/// The table of docs/reliability.md.
pub(crate) fn table(rows: &[(&str, Row)]) -> String {
    let mut out = String::from(
        "| fault | times | emitted | stored | dropped | missing | repeated | longest stall | longest wait | |\n\
         |---|---:|---:|---:|---|---:|---:|---:|---:|---|\n",
    );
    for (name, row) in rows {
        let dropped: Vec<String> = row.dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {} | {} | {} | {} | {:.1} s | {:.1} s | {} |",
            row.times,
            row.emitted,
            row.stored,
            if dropped.is_empty() { "0".to_owned() } else { dropped.join(", ") },
            row.missing,
            row.repeated,
            row.stall.as_secs_f64(),
            row.wait.as_secs_f64(),
            row.note
        );
    }
    out
}

/// A running scenario.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) proxy: Proxy,
    pub(crate) agent: Option<Process>,
    writer: Option<Writer>,
    watch: Arc<Watch>,
    /// No one else writes into the same collector.
    is_alone: bool,
}

#[derive(Debug, Default)]
struct Watch {
    over: AtomicBool,
    longest: Mutex<Duration>,
}

/// Setup of a scenario.
pub(crate) struct Setup<'a> {
    /// Additional configuration of the agent.
    pub(crate) config: &'a str,
    pub(crate) rate: u64,
    pub(crate) rotation: Rotation,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { config: "", rate: 5000, rotation: Rotation::Rename(20_000) }
    }
}

impl Run {
    /// A workspace behind a proxy, an enrolled agent that does not run yet, and a running writer.
    pub(crate) fn new(setup: &Setup<'_>) -> Result<Self> {
        Self::with_glob(setup, "a.log")
    }

    /// As `new`, with an agent that reads other files of the log's directory.
    pub(crate) fn with_glob(setup: &Setup<'_>, glob: &str) -> Result<Self> {
        let world = World::serving()?;
        let log = world.path("log");
        std::fs::create_dir(&log)?;
        let paths = log.join(glob);
        world
            .configure(&format!("[collectors.syslog]\npaths = [{paths:?}]\nstart = \"beginning\"\n{}", setup.config))?;
        let proxy = Proxy::start(world.address()?.parse()?)?;
        world.enroll(&format!("https://{}", proxy.address()))?;
        let writer = Writer::start(&log.join("a.log"), setup.rate, setup.rotation);
        let is_alone = glob == "a.log";
        Ok(Self { world, proxy, agent: None, writer: Some(writer), watch: Arc::default(), is_alone })
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.agent = Some(self.world.run()?);
        Ok(())
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        match self.agent.take() {
            Some(mut agent) => agent.kill(),
            None => Ok(()),
        }
    }

    /// Lines written so far.
    pub(crate) fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::written)
    }

    /// Waits until the agent answers; returns the time.
    pub(crate) fn until_status(&self) -> Result<Duration> {
        let began = Instant::now();
        while self.world.status()?.is_none() {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("the agent does not answer: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(began.elapsed())
    }

    /// The writer's lines that the ledger counts as stored.
    pub(crate) fn stored(&self) -> Result<u64> {
        Ok(syslog(&self.world.ledger()?).map_or(0, |account| number(account, "stored")))
    }

    /// Waits until a number of lines is stored.
    pub(crate) fn until_stored(&self, lines: u64) -> Result<()> {
        let began = Instant::now();
        loop {
            let stored = if self.is_alone { self.stored()? } else { self.in_tables()? };
            if stored >= lines {
                return Ok(());
            }
            if began.elapsed() > CATCH_UP {
                bail!("{stored} of {lines} lines are stored: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(if self.is_alone { 250 } else { 1000 }));
        }
    }

    /// Filter for the writer's lines, if others write as well.
    fn numbered(&self) -> &'static str {
        if self.is_alone { "" } else { "WHERE message LIKE '____________ Accepted publickey for %'" }
    }

    /// The writer's lines in the tables.
    pub(crate) fn in_tables(&self) -> Result<u64> {
        let rows = self.world.query(&format!("SELECT count(*) AS stored FROM syslog {}", self.numbered()))?;
        Ok(rows.first().map_or(0, |row| number(row, "stored")))
    }

    /// Longest time from writing a line to its landing, over the first lines of all batches.
    fn longest_wait(&self, written: &Written) -> Result<Duration> {
        let rows = self.world.query(&format!(
            "SELECT CAST(landed_time AS BIGINT) AS landed, min(substr(message, 1, 12)) AS low FROM syslog \
             {} GROUP BY landed_time",
            self.numbered()
        ))?;
        let wait = |row: &Value| {
            let low = row["low"].as_str()?.parse::<u64>().ok()?;
            let burst = written.bursts.get(written.bursts.partition_point(|(behind, _)| *behind <= low))?;
            u64::try_from(row["landed"].as_i64()? - burst.1).ok()
        };
        Ok(Duration::from_micros(rows.iter().filter_map(wait).max().unwrap_or(0)))
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.world.path("agent.log")).unwrap_or_default();
        let from = log.len().saturating_sub(1500);
        log.get(from..).unwrap_or_default().to_owned()
    }

    /// Injects the fault, heals it, waits until everything has landed, and counts.
    pub(crate) fn judge(mut self, inject: impl FnOnce(&mut Self) -> Result<u64>) -> Result<Row> {
        let watch = Arc::clone(&self.watch);
        // The watch runs on its own thread, with only the directory.
        let (dir, watching) = (self.world.path("workspace"), Arc::clone(&watch));
        let thread = std::thread::spawn(move || watching.run(&dir));
        let done = inject(&mut self);
        let counted = done.and_then(|times| {
            self.proxy.set(vedette_benches::proxy::Mode::Pass);
            if self.agent.is_none() {
                self.start()?;
            }
            let written = self.writer.take().context("it writes until now")?.stop_with_bursts()?;
            self.until_stored(written.lines)?;
            self.count(times, &written)
        });
        watch.over.store(true, Ordering::Release);
        thread.join().expect("the watch does not panic");
        let mut row = counted?;
        row.stall = *watch.longest.lock();
        Ok(row)
    }

    /// Counts the writer's numbers through SQL; the ledger must agree for every collector.
    fn count(&self, times: u64, written: &Written) -> Result<Row> {
        // A repeated line would arrive after the first one.
        std::thread::sleep(Duration::from_secs(3));
        let rows = self.world.query(&format!(
            "SELECT count(*) AS stored, count(DISTINCT CAST(substr(message, 1, 12) AS BIGINT)) AS numbers, \
             min(substr(message, 1, 12)) AS low, max(substr(message, 1, 12)) AS high FROM syslog {}",
            self.numbered()
        ))?;
        let answer = rows.first().context("one row")?;
        let (stored, numbers) = (number(answer, "stored"), number(answer, "numbers"));
        let mut row = Row {
            times,
            emitted: written.lines,
            stored,
            missing: written.lines.saturating_sub(numbers),
            repeated: stored.saturating_sub(numbers),
            wait: self.longest_wait(written)?,
            ..Row::default()
        };
        let bound = |key: &str| answer[key].as_str().and_then(|text| text.parse::<u64>().ok());
        if row.missing == 0 && (bound("low"), bound("high")) != (Some(0), written.lines.checked_sub(1)) {
            bail!("other numbers arrived than were written: {answer}");
        }
        for account in self.world.ledger()? {
            for (reason, count) in account["dropped"].as_object().into_iter().flatten() {
                *row.dropped.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
            let (missing, repeated) = (number(&account, "missing"), number(&account, "repeated"));
            if missing + repeated > 0 {
                eprintln!("  ledger: {account}");
            }
            if account["collector"] != "syslog" {
                row.missing += missing;
                row.repeated += repeated;
            // The ledger includes lines of a flood beside the writer's.
            } else if (missing == 0 && row.missing > 0) || (repeated == 0 && row.repeated > 0) {
                bail!("ledger and SQL disagree: {account}, by SQL {} missing, {} repeated", row.missing, row.repeated);
            }
        }
        if !row.is_clean() {
            eprintln!("{}", self.last_words());
        }
        Ok(row)
    }
}

impl Watch {
    /// The longest time in which nothing was stored.
    fn run(&self, dir: &std::path::Path) {
        let (mut last, mut since) = (0, Instant::now());
        while !self.over.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(500));
            let Ok(binary) = vedette_benches::world::binary("vedette-workspace") else { return };
            let output = std::process::Command::new(binary)
                .args(["ledger", "--org", vedette_benches::world::ORG, "--format", "json", "--dir"])
                .arg(dir)
                .output();
            let Ok(answer) = output else { continue };
            let accounts: Vec<Value> = String::from_utf8_lossy(&answer.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            let stored = syslog(&accounts).map_or(0, |account| number(account, "stored"));
            if stored > last {
                let mut longest = self.longest.lock();
                *longest = (*longest).max(since.elapsed());
                (last, since) = (stored, Instant::now());
            }
        }
    }
}

fn syslog(accounts: &[Value]) -> Option<&Value> {
    accounts.iter().find(|account| account["collector"] == "syslog")
}

pub(crate) fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}
