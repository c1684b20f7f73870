//! Measures the figures of `docs/performance.md` with the release binaries beside it.
//!
//! ```text
//! vedette-bench generate FILE MIB          a reproducible syslog file with 200 to 250 bytes per line
//! vedette-bench catch-up FILE [zstd|gzip]  the floor and the agent on the same file, in one run
//! vedette-bench journal DIRECTORY          journalctl, our reader and the agent on the same journal files, in one run
//! vedette-bench rate LINES SECONDS         lines per second: processor time, memory, time from append to landed
//! vedette-bench backlog GIB                start with a queue of this size, intact and damaged
//! vedette-bench idle SECONDS               memory and processor time with all collectors on
//! vedette-bench start [RUNS]               from start to the first landed record
//! vedette-bench answer [RUNS]              from an appended line to its row in an answer of `query`
//! vedette-bench processes COUNT            processor time of a snapshot and of a poll without changes
//! ```

#![expect(clippy::print_stdout, reason = "figures are printed")]

mod backlog;
mod floor;
mod journal;
mod rate;

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use vedette_benches::{
    generate,
    world::{self, World, cpu_seconds},
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["generate", file, mib] => generate::generate(Path::new(file), mib.parse::<u64>()? << 20),
        ["catch-up", file] => catch_up(Path::new(file), "zstd"),
        ["catch-up", file, codec @ ("zstd" | "gzip")] => catch_up(Path::new(file), codec),
        ["journal", directory] => journal::journal(Path::new(directory)),
        ["rate", lines, seconds] => rate::rate(lines.parse()?, Duration::from_secs(seconds.parse()?)),
        ["backlog", gib] => backlog::backlog(gib.parse()?),
        ["idle", seconds] => idle(Duration::from_secs(seconds.parse()?)),
        ["processes", count] => processes(count.parse()?),
        ["answer"] => answer(20),
        ["answer", runs] => answer(runs.parse()?),
        ["start"] => start(5),
        ["start", runs] => start(runs.parse()?),
        _ => bail!(
            "usage: vedette-bench generate FILE MIB | catch-up FILE [zstd|gzip] | journal DIRECTORY | rate LINES SECONDS | backlog GIB | idle SECONDS | start [RUNS] | answer \
             [RUNS] | processes COUNT"
        ),
    }
}

fn catch_up(file: &Path, codec: &str) -> Result<()> {
    let file = std::fs::canonicalize(file).context("make it with `vedette-bench generate`")?;
    let bytes = std::fs::metadata(&file)?.len();
    let gib = bytes as f64 / f64::from(1 << 30);
    let floor = floor::floor(&file)?;
    println!("file          {:.2} GiB, {} lines", gib, floor.lines);
    println!(
        "floor         {:.2} CPU-s/GiB (read, split, zstd-1), {} bytes compressed",
        floor.cpu_seconds / gib,
        floor.compressed
    );
    let config = format!(
        "[collectors.syslog]\npaths = [{file:?}]\nstart = \"beginning\"\n[transport]\ncompression = \"{codec}\"\n"
    );
    let world = World::new(&config)?;
    let began = Instant::now();
    let agent = world.run()?;
    let mut rss_max = 0;
    loop {
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(50));
            rss_max = rss_max.max(world::rss_bytes(agent.id())?);
        }
        let Some(status) = world.status()? else { continue };
        let collectors = status["collectors"].as_array().cloned().unwrap_or_default();
        let emitted =
            collectors.iter().find(|collector| collector["id"] == "syslog").and_then(|c| c["emitted"].as_u64());
        if emitted >= Some(floor.lines) && status["queue"]["batches"] == 0 {
            break;
        }
        if began.elapsed() > Duration::from_secs(1800) {
            bail!("not landed after half an hour: {status}");
        }
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(agent.id())?);
    println!("to landed     {:.1} MB/s, {wall:.1} s ({codec})", bytes as f64 / 1e6 / wall);
    println!("agent         {:.2} CPU-s/GiB, {:.2} x floor", cpu / gib, cpu / floor.cpu_seconds);
    let (serve, materialise) = (world.serve_cpu_seconds()?, world.materialise_cpu_seconds()?);
    println!("receiving     {:.2} CPU-s/GiB", (serve - materialise) / gib);
    println!("materialising {:.2} CPU-s/GiB meanwhile, at the lowest priority", materialise / gib);
    println!("agent VmRSS   {:.1} MiB at most", rss_max as f64 / f64::from(1 << 20));
    drop(agent);
    let (seconds, serve_at_rest) = until_at_rest(&world)?;
    println!(
        "materialised  after {:.0} s more, {:.2} CPU-s/GiB in all",
        seconds,
        (serve_at_rest - serve + materialise) / gib
    );
    Ok(())
}

/// Waits until the workspace has been idle for longer than batches wait to share a commit; returns the seconds until it last
/// worked, and its processor time.
fn until_at_rest(world: &World) -> Result<(f64, f64)> {
    let began = Instant::now();
    let (mut busy, mut cpu) = (0.0, world.serve_cpu_seconds()?);
    while began.elapsed().as_secs_f64() - busy < 40.0 {
        std::thread::sleep(Duration::from_secs(1));
        let now = world.serve_cpu_seconds()?;
        if now - cpu > 0.05 {
            busy = began.elapsed().as_secs_f64();
        }
        cpu = now;
    }
    Ok((busy, cpu))
}

fn idle(length: Duration) -> Result<()> {
    let world = World::new("")?;
    let agent = world.run()?;
    std::thread::sleep(Duration::from_secs(60));
    let status = world.status()?.context("the agent does not answer")?;
    println!("VmRSS after 60 s   {:.1} MiB", status["rss_bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20));
    let (began, before) = (Instant::now(), cpu_seconds(agent.id())?);
    std::thread::sleep(length);
    let (after, wall) = (cpu_seconds(agent.id())?, began.elapsed().as_secs_f64());
    println!("CPU over {wall:.0} s     {:.3} % of a core", (after - before) / wall * 100.0);
    let status = world.status()?.context("the agent does not answer")?;
    println!("VmRSS at the end   {:.1} MiB", status["rss_bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20));
    Ok(())
}

fn start(runs: usize) -> Result<()> {
    let mut seconds: Vec<f64> = Vec::new();
    for _ in 0..runs {
        let world = World::new("")?;
        let began = Instant::now();
        let _agent = world.run()?;
        while !landed(&world.landing())? {
            std::thread::sleep(Duration::from_millis(2));
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    spread("start to first record landed", seconds);
    Ok(())
}

/// With default settings, each line separately; an answer includes a whole run of `vedette-workspace query`.
fn answer(runs: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("a.log");
    let world = World::new(&format!("[collectors.syslog]\npaths = [{log:?}]\n"))?;
    let _agent = world.run()?;
    let (mut seconds, mut asking) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        // At any phase of the agent's own rhythm.
        std::thread::sleep(Duration::from_millis(fastrand::u64(500..2500)));
        let line = format!("<13>1 2026-11-25T00:00:00Z h bench - - - line {run}\n");
        std::io::Write::write_all(
            &mut std::fs::File::options().append(true).create(true).open(&log)?,
            line.as_bytes(),
        )?;
        let began = Instant::now();
        loop {
            let began_query = Instant::now();
            let rows = world.query(&format!("SELECT 1 FROM syslog WHERE message = 'line {run}'"))?;
            asking.push(began_query.elapsed().as_secs_f64());
            if !rows.is_empty() {
                break;
            }
            if began.elapsed() > Duration::from_secs(60) {
                bail!("line {run} is not answered for");
            }
        }
        // The first one includes the agent's start.
        if run > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    spread("line appended to answered", seconds);
    spread("of that, one `query`", asking);
    Ok(())
}

fn spread(what: &str, mut seconds: Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    let (runs, last) = (seconds.len(), seconds.len() - 1);
    println!("{what:<30} {:.2} s (median of {runs}; {:.2} to {:.2})", seconds[runs / 2], seconds[0], seconds[last]);
}

/// The agent with only the processes collector, on a machine with this many sleeping processes.
fn processes(count: usize) -> Result<()> {
    let mut sleepers = Vec::with_capacity(count);
    for _ in 0..count {
        sleepers.push(world::sleeper()?);
    }
    let others = ["host", "addresses", "sessions", "syslog", "journal", "crash_dumps"];
    let mut config: String = others.iter().map(|id| format!("[collectors.{id}]\nenabled = false\n")).collect();
    // The first poll, at the start, is the snapshot; later ones follow after 10 s, plus or minus a tenth.
    config.push_str("[collectors.processes]\nevery = \"10s\"\n");
    let world = World::new(&config)?;
    let idle = World::new(&config.replace("[collectors.processes]", "[collectors.processes]\nenabled = false"))?;
    let (agent, without) = (world.run()?, idle.run()?);
    std::thread::sleep(Duration::from_secs(8));
    let snapshot = cpu_seconds(agent.id())? - cpu_seconds(without.id())?;
    let before = (cpu_seconds(agent.id())?, cpu_seconds(without.id())?);
    let looks = 6;
    std::thread::sleep(Duration::from_secs(10 * looks));
    let after = (cpu_seconds(agent.id())?, cpu_seconds(without.id())?);
    let look = ((after.0 - before.0) - (after.1 - before.1)) / looks as f64;
    println!("{count} processes beside this machine's own");
    println!("full snapshot, encoded, queued and sent   {:.0} ms CPU", snapshot * 1000.0);
    println!("a look at which nothing changed           {:.0} ms CPU (mean of {looks})", look * 1000.0);
    Ok(())
}

/// Whether a directory contains any object.
fn landed(dir: &Path) -> Result<bool> {
    let mut dirs: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.to_string_lossy().contains('#') {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
