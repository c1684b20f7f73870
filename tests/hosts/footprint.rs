//! Memory and processor time of the unit as it is shipped.

use crate::{Scene, life};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Entries per second of the journal, and how a shell writes them.
const RATES: [(&str, &str); 4] = [
    ("idle", "exit 0"),
    ("10/s", "while :; do echo entry; sleep 0.1; done"),
    ("1,000/s", "while :; do seq -f 'entry %.0f' 1 100; sleep 0.1; done"),
    ("10,000/s", "while :; do seq -f 'entry %.0f' 1 1000; sleep 0.1; done"),
];

struct Sample {
    cpu_seconds: f64,
    at: Instant,
    entries: u64,
}

/// Measures each rate for `time`, after 20 s to settle.
pub(crate) fn measure(scene: &mut Scene, time: Duration) -> Result<()> {
    life::install(scene)?;
    life::enroll(scene)?;
    let config = "[collectors.container_logs]\\nenabled = true\\n";
    scene.host.must(&format!("printf '{config}' > /etc/vedette/conf.d/10-hosts.toml; systemctl restart vedette"))?;
    println!(
        "\n| journal | PSS | memory.current | VmRSS | processor time | entries/s |\n|---|---:|---:|---:|---:|---:|"
    );
    for (name, writer) in RATES {
        let unit = "footprint-writer";
        scene.host.must(&format!("systemd-run --quiet --unit={unit} sh -c \"({writer}) | logger -t footprint\""))?;
        std::thread::sleep(Duration::from_secs(20));
        let before = sample(scene)?;
        std::thread::sleep(time);
        let after = sample(scene)?;
        println!("| {name} | {} |", row(scene, &before, &after)?);
        scene
            .host
            .must(&format!("systemctl stop {unit} 2>/dev/null; systemctl reset-failed {unit} 2>/dev/null; true"))?;
        std::thread::sleep(Duration::from_secs(5));
    }
    scene.workspace.wait_until_nothing_is_missing()
}

fn pid(scene: &Scene) -> Result<String> {
    scene.host.property("MainPID")
}

fn sample(scene: &Scene) -> Result<Sample> {
    let stat = scene.host.must(&format!("cat /proc/{}/stat", pid(scene)?))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat has no name")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let status = scene.host.status()?;
    let journal = status["collectors"].as_array().into_iter().flatten().find(|one| one["id"] == "journal");
    let entries = journal.and_then(|one| one["emitted"].as_u64()).unwrap_or(0);
    Ok(Sample { cpu_seconds: ticks / rustix::param::clock_ticks_per_second() as f64, at: Instant::now(), entries })
}

fn row(scene: &Scene, before: &Sample, after: &Sample) -> Result<String> {
    let pid = pid(scene)?;
    let kib = |file: &str, key: &str| -> Result<f64> {
        let text = scene.host.must(&format!("grep '^{key}:' /proc/{pid}/{file}"))?;
        Ok(text.split_whitespace().nth(1).context("a number")?.parse::<f64>()? / 1024.0)
    };
    // With cgroup v1 the container has no memory controller.
    let current = scene.host.property("MemoryCurrent")?.parse::<f64>();
    let current = current.map_or("–".to_owned(), |bytes| format!("{:.1} MiB", bytes / f64::from(1 << 20)));
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let cpu = (after.cpu_seconds - before.cpu_seconds) / seconds * 100.0;
    let rate = (after.entries - before.entries) as f64 / seconds;
    Ok(format!(
        "{:.1} MiB | {current} | {:.1} MiB | {cpu:.2} % of a core | {rate:.0}",
        kib("smaps_rollup", "Pss")?,
        kib("status", "VmRSS")?
    ))
}
