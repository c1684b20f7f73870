//! Faults between agent and workspace.

use crate::campaign::{Campaign, Row, Run, Setup, number};
use anyhow::{Result, bail};
use std::time::Duration;
use vedette_benches::{numbered::Rotation, proxy::Mode};

/// Faults of the proxy for a while, with healthy periods in between.
fn proxied(mode: Mode, times: u64, length: Duration) -> Result<Option<Row>> {
    let mut run = Run::new(&Setup::default())?;
    run.start()?;
    run.until_stored(1000)?;
    run.judge(|run| {
        let before = run.proxy.bitten();
        for _ in 0..times {
            run.proxy.set(mode);
            std::thread::sleep(length);
            run.proxy.set(Mode::Pass);
            std::thread::sleep(Duration::from_millis(fastrand::u64(500..2500)));
        }
        let bitten = run.proxy.bitten() - before;
        Ok(if mode == Mode::BlackHole { times } else { bitten })
    })
    .map(Some)
}

pub(crate) fn workspace_killed(campaign: &Campaign) -> Result<Option<Row>> {
    let times = campaign.of(10, 2);
    let mut run = Run::new(&Setup::default())?;
    run.start()?;
    run.until_stored(1000)?;
    run.judge(|run| {
        for _ in 0..times {
            run.world.stop_serving();
            std::thread::sleep(Duration::from_millis(fastrand::u64(100..3000)));
            run.world.serve("127.0.0.1:0")?;
            run.proxy.aim(run.world.address()?.parse()?);
            std::thread::sleep(Duration::from_millis(fastrand::u64(500..3000)));
        }
        Ok(times)
    })
    .map(Some)
}

pub(crate) fn answers_lost(campaign: &Campaign) -> Result<Option<Row>> {
    proxied(Mode::LoseAnswers, campaign.of(20, 4), Duration::from_millis(1500))
}

pub(crate) fn bodies_cut(campaign: &Campaign) -> Result<Option<Row>> {
    proxied(Mode::CutAfter(30_000), campaign.of(10, 2), Duration::from_millis(2500))
}

pub(crate) fn refused(campaign: &Campaign) -> Result<Option<Row>> {
    proxied(Mode::Refuse, campaign.of(10, 2), Duration::from_millis(2000))
}

/// Longer than the client waits for an answer.
pub(crate) fn half_open(campaign: &Campaign) -> Result<Option<Row>> {
    if campaign.short {
        return Ok(None);
    }
    proxied(Mode::BlackHole, 1, Duration::from_secs(125))
}

/// Agent and workspace get new certificates in turn, and reconnect.
pub(crate) fn certificates(campaign: &Campaign) -> Result<Option<Row>> {
    let times = campaign.of(10, 2);
    let mut run = Run::new(&Setup::default())?;
    run.start()?;
    run.until_stored(1000)?;
    run.judge(|run| {
        for time in 0..times {
            if time % 2 == 0 {
                run.world.workspace(&["certificate"])?;
            } else {
                run.world.enroll_again(&format!("https://{}", run.proxy.address()))?;
            }
            std::thread::sleep(Duration::from_millis(1500));
            run.proxy.set(Mode::Refuse);
            std::thread::sleep(Duration::from_millis(100));
            run.proxy.set(Mode::Pass);
            let before = run.stored()?;
            run.until_stored(before + 1000)?;
        }
        Ok(times)
    })
    .map(Some)
}

/// More lines than can be delivered, until the queue is full: sources wait, and nothing is lost.
pub(crate) fn overload(campaign: &Campaign) -> Result<Option<Row>> {
    let (rate, limit, length) = campaign.of((100_000, 256, 60), (20_000, 16, 10));
    let config = format!("[transport]\nqueue_bytes_max = \"{limit}MiB\"\n");
    let setup = Setup { config: &config, rate, rotation: Rotation::Never };
    let mut run = Run::new(&setup)?;
    run.proxy.set(Mode::Slow(campaign.of(1_000_000, 100_000)));
    run.start()?;
    let mut most = (0, 0);
    let row = run.judge(|run| {
        for _ in 0..length {
            std::thread::sleep(Duration::from_secs(1));
            let Some(status) = run.world.status()? else { bail!("the agent does not answer") };
            most.0 = most.0.max(number(&status["queue"], "bytes"));
            most.1 = most.1.max(number(&status, "rss_bytes"));
        }
        Ok(1)
    });
    let mut row = row?;
    row.note = format!("queue {} MiB, VmRSS {} MiB at most", most.0 >> 20, most.1 >> 20);
    Ok(Some(row))
}
