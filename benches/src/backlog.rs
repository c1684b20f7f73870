//! A long backlog: duration of a start, and resources after it, with an intact and a damaged queue.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};
use vedette_benches::world::{self, World};

/// Maximum size of the log on disk.
const FILE_BYTES: u64 = 512 << 20;
/// Time of observation after each answer.
const OBSERVATION: Duration = Duration::from_secs(60);

pub(crate) fn backlog(gib: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let logs = dir.path().join("*.log");
    let mut world = World::new(&format!(
        "[collectors.syslog]\npaths = [{logs:?}]\nstart = \"beginning\"\n[transport]\nqueue_bytes_max = \"1TiB\"\n\
         queue_volume_percent_max = 90\ndisk_free_min = \"1GiB\"\n"
    ))?;
    measure_start(&world, "an empty queue")?;
    world.stop_serving();
    fill(&world, dir.path(), gib << 30)?;
    let queue = world.path("state/records.redb");
    println!("backlog            {:.1} GiB on disk", fs::metadata(&queue)?.len() as f64 / f64::from(1 << 30));
    measure_start(&world, "the backlog, after SIGKILL")?;
    // The first 4 KiB hold redb's header with both commit slots.
    File::options().write(true).open(&queue)?.write_all_at(&[0x55; 4096], 0)?;
    measure_start(&world, "the backlog, its first 4 KiB overwritten")?;
    Ok(())
}

/// Starts the agent; measures the time until it answers, and its resources in the minute after.
fn measure_start(world: &World, what: &str) -> Result<()> {
    let began = Instant::now();
    let agent = world.run()?;
    while world.status()?.is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            bail!("the agent does not answer after a minute");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let (answered, mut rss_max) = (began.elapsed().as_secs_f64(), 0);
    let began = Instant::now();
    while began.elapsed() < OBSERVATION {
        std::thread::sleep(Duration::from_millis(100));
        rss_max = rss_max.max(world::rss_bytes(agent.id())?);
    }
    let rss = rss_max as f64 / f64::from(1 << 20);
    println!("{what:<36} answers after {answered:.2} s, VmRSS {rss:.1} MiB at most in {} s", OBSERVATION.as_secs());
    Ok(())
}

/// Writes lines that hardly compress, until the queue's file has so many bytes.
fn fill(world: &World, dir: &Path, bytes: u64) -> Result<()> {
    let agent = world.run()?;
    let size_and_emitted = |world: &World| -> Result<(u64, u64)> {
        let status = world.status()?.context("the agent does not answer")?;
        let collectors = status["collectors"].as_array().context("the status has no collectors")?;
        let syslog =
            collectors.iter().find(|collector| collector["id"] == "syslog").context("the status has no syslog")?;
        let emitted = syslog["emitted"].as_u64().unwrap_or(0);
        Ok((status["queue"]["bytes"].as_u64().context("the status has no size of the queue")?, emitted))
    };
    while world.status()?.is_none() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (mut random, mut lines) = (fastrand::Rng::new(), size_and_emitted(world)?.1);
    for number in 0.. {
        let path = dir.join(format!("{number}.log"));
        let (mut out, mut written) = (BufWriter::with_capacity(1 << 20, File::create(&path)?), 0);
        while written < FILE_BYTES {
            let text: String = (0..8000).map(|_| random.alphanumeric()).collect();
            writeln!(out, "{text}")?;
            written += text.len() as u64 + 1;
            lines += 1;
        }
        out.flush()?;
        let began = Instant::now();
        while size_and_emitted(world)?.1 < lines {
            if began.elapsed() > Duration::from_secs(300) {
                let (bytes, emitted) = size_and_emitted(world)?;
                bail!("the agent has not read {}: queue {bytes} bytes, {emitted} of {lines} lines", path.display());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        fs::remove_file(&path)?;
        if size_and_emitted(world)?.0 >= bytes {
            break;
        }
    }
    // SIGKILL: nothing is cleaned up.
    drop(agent);
    Ok(())
}
