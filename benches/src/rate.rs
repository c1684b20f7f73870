//! Measures the agent's CPU time and memory at a constant rate of lines, and the time from appending a line to its landing.

use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};
use vedette_benches::{
    numbered::{Rotation, Writer, Written},
    world::{self, World, cpu_seconds},
};

/// Time before the measurement, which excludes the agent's start.
const WARM_UP: Duration = Duration::from_secs(5);

pub(crate) fn rate(lines_per_second: u64, duration: Duration) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("a.log");
    let world = World::new(&format!("[collectors.syslog]\npaths = [{log:?}]\nstart = \"beginning\"\n"))?;
    let agent = world.run()?;
    let writer = Writer::start(&log, lines_per_second, Rotation::Rename(lines_per_second * 60));
    std::thread::sleep(WARM_UP);
    let (began, before, first) = (Instant::now(), cpu_seconds(agent.id())?, writer.written());
    let mut rss_max = 0;
    while began.elapsed() < duration {
        std::thread::sleep(Duration::from_millis(500));
        rss_max = rss_max.max(world::rss_bytes(agent.id())?);
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(agent.id())? - before);
    let rate = (writer.written() - first) as f64 / wall;
    let written = writer.stop_with_bursts()?;
    let mut seconds = latencies(&world, &written)?;
    seconds.sort_by(f64::total_cmp);
    let quantile = |fraction: f64| seconds[((seconds.len() - 1) as f64 * fraction) as usize];
    println!("{rate:.0} lines/s for {wall:.0} s, {} lines in all, rotated by rename each minute", written.lines);
    println!("CPU                {:.2} % of a core", cpu / wall * 100.0);
    println!("VmRSS              {:.1} MiB at most", rss_max as f64 / f64::from(1 << 20));
    println!(
        "append to landed   p50 {:.2} s, p99 {:.2} s, at most {:.2} s",
        quantile(0.5),
        quantile(0.99),
        quantile(1.0)
    );
    Ok(())
}

/// Seconds from just before each line was written until its batch was durable in the workspace.
fn latencies(world: &World, written: &Written) -> Result<Vec<f64>> {
    let began = Instant::now();
    let batches = loop {
        let rows = world.query(
            "SELECT min(n) AS first, max(n) AS last, count(*) AS lines, max(l) AS landed FROM (SELECT epoch, seq,
             CAST(substr(message, 1, 12) AS BIGINT) AS n, CAST(landed_time AS BIGINT) AS l FROM syslog)
             GROUP BY epoch, seq",
        )?;
        let lines: u64 = rows.iter().filter_map(|row| row["lines"].as_u64()).sum();
        if lines == written.lines {
            break rows;
        }
        if began.elapsed() > Duration::from_secs(60) {
            bail!(
                "a minute after the last line was written, the workspace has {lines} lines instead of {}",
                written.lines
            );
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    let mut seconds = Vec::new();
    for batch in batches {
        let number = |name: &str| batch[name].as_i64().with_context(|| format!("{name} of {batch}"));
        let (first, last, landed) = (number("first")?, number("last")?, number("landed")?);
        for line in first..=last {
            let burst = written.bursts.partition_point(|(end, _)| end.cast_signed() <= line);
            let (_, appended) = written.bursts.get(burst).context("a line belongs to no burst")?;
            seconds.push((landed - appended) as f64 / 1e6);
        }
    }
    Ok(seconds)
}
