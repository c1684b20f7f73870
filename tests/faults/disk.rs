//! Faults of the disk below the queue, and of the queue's file.

use crate::campaign::{Campaign, Row, Run, Setup};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// A file system of limited size in memory; unmounted when dropped.
struct Volume(PathBuf);

impl Volume {
    /// Absent where this user cannot mount.
    fn mount(at: &Path, size: &str) -> Result<Option<Self>> {
        fs::create_dir_all(at)?;
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output()?;
        if !mounted.status.success() {
            eprintln!("skipped: no right to mount a tmpfs");
            return Ok(None);
        }
        Ok(Some(Self(at.to_owned())))
    }

    /// Fills the last byte.
    fn fill(&self) -> Result<()> {
        let file = fs::File::create(self.0.join("others"))?;
        let block = vec![1; 64 << 10];
        let mut at = 0;
        for size in [block.len(), 4096, 1] {
            while let Ok(written) = file.write_at(&block[..size], at) {
                at += written as u64;
            }
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("others"))?)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// Others fill the volume while the workspace is down; later they free it.
fn filled(campaign: &Campaign, config: &str, size: &str) -> Result<Option<Row>> {
    let mut run = Run::new(&Setup { config, rate: 2000, ..Setup::default() })?;
    let Some(volume) = Volume::mount(&run.world.path("state"), size)? else { return Ok(None) };
    run.start()?;
    run.until_stored(1000)?;
    let times = campaign.of(5, 2);
    let row = run.judge(|run| {
        for _ in 0..times {
            run.proxy.set(vedette_benches::proxy::Mode::Refuse);
            volume.fill()?;
            let began = Instant::now();
            let waits = loop {
                let status = run.world.status()?.context("the agent stays up on a full disk")?;
                if !status["queue"]["waiting"].is_null() {
                    break true;
                }
                if began.elapsed() > Duration::from_secs(30) {
                    break false;
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            if !waits {
                bail!("sources do not wait on a full disk");
            }
            std::thread::sleep(Duration::from_secs(2));
            volume.free()?;
            run.proxy.set(vedette_benches::proxy::Mode::Pass);
            let before = run.stored()?;
            run.until_stored(before + 1000)?;
        }
        if run.agent.as_mut().context("it runs")?.ended(Duration::ZERO)?.is_some() {
            bail!("the agent ended");
        }
        Ok(times)
    })?;
    Ok(Some(row))
}

pub(crate) fn full(campaign: &Campaign) -> Result<Option<Row>> {
    let config = "[transport]\ndisk_free_min = \"0B\"\ninodes_free_min = 0\nqueue_volume_percent_max = 100\n";
    filled(campaign, config, "24m")
}

pub(crate) fn floor(campaign: &Campaign) -> Result<Option<Row>> {
    let config = "[transport]\ndisk_free_min = \"8MiB\"\nqueue_volume_percent_max = 100\n";
    filled(campaign, config, "32m")
}

/// The queue holds the batches of an outage; the agent is killed, the file damaged, and the agent restarted.
fn harmed(campaign: &Campaign, times: u64, harm: impl Fn(&Path) -> Result<()>) -> Result<Option<Row>> {
    let mut run = Run::new(&Setup::default())?;
    run.start()?;
    run.until_stored(1000)?;
    let (mut slowest, mut found) = (Duration::ZERO, 0);
    let row = run.judge(|run| {
        for time in 0..times {
            run.proxy.set(vedette_benches::proxy::Mode::Refuse);
            std::thread::sleep(Duration::from_secs(campaign.of(4, 2)));
            run.kill()?;
            harm(&run.world.path("state/records.redb"))?;
            if time % 2 == 0 {
                run.proxy.set(vedette_benches::proxy::Mode::Pass);
            }
            run.start()?;
            slowest = slowest.max(run.until_status()?);
            run.proxy.set(vedette_benches::proxy::Mode::Pass);
            let before = run.written();
            run.until_stored(before)?;
        }
        let log = fs::read_to_string(run.world.path("agent.log"))?;
        found = log.matches("sources continue at the workspace's positions").count();
        Ok(times)
    });
    let mut row = row?;
    let slowest = slowest.as_secs_f64();
    row.note = format!("new queue {found} times, answers {slowest:.2} s after the start at most");
    Ok(Some(row))
}

pub(crate) fn flipped(campaign: &Campaign) -> Result<Option<Row>> {
    harmed(campaign, campaign.of(20, 2), |path| {
        let file = fs::File::options().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        for _ in 0..64 {
            let at = fastrand::u64(..length);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ (1 << fastrand::u8(..8))], at)?;
        }
        Ok(())
    })
}

pub(crate) fn truncated(campaign: &Campaign) -> Result<Option<Row>> {
    harmed(campaign, campaign.of(5, 1), |path| {
        let file = fs::File::options().write(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(file.set_len(fastrand::u64(1..length))?)
    })
}

pub(crate) fn emptied(campaign: &Campaign) -> Result<Option<Row>> {
    harmed(campaign, campaign.of(2, 1), |path| Ok(fs::File::options().write(true).open(path)?.set_len(0)?))
}

pub(crate) fn zeroed(campaign: &Campaign) -> Result<Option<Row>> {
    harmed(campaign, campaign.of(3, 1), |path| {
        let length = fs::metadata(path)?.len();
        Ok(fs::write(path, vec![0; usize::try_from(length)?])?)
    })
}

pub(crate) fn deleted(campaign: &Campaign) -> Result<Option<Row>> {
    if campaign.short {
        return Ok(None);
    }
    harmed(campaign, 2, |path| Ok(fs::remove_file(path)?))
}

pub(crate) fn directory(campaign: &Campaign) -> Result<Option<Row>> {
    if campaign.short {
        return Ok(None);
    }
    harmed(campaign, 2, |path| {
        fs::remove_file(path)?;
        fs::create_dir(path)?;
        Ok(fs::write(path.join("somebody's"), "own")?)
    })
}

/// The second agent is refused with a reason; the first continues.
pub(crate) fn second_agent(campaign: &Campaign) -> Result<Option<Row>> {
    let mut run = Run::new(&Setup::default())?;
    run.start()?;
    run.until_stored(1000)?;
    let times = campaign.of(5, 1);
    run.judge(|run| {
        for _ in 0..times {
            let output = run.world.vedette(&["run"])?;
            let message = String::from_utf8_lossy(&output.stderr);
            if output.status.success() || !message.contains("another agent runs under the identity") {
                bail!("a second agent is not refused: {message}");
            }
        }
        Ok(times)
    })
    .map(Some)
}
