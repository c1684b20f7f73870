//! kill -9.

use crate::campaign::{Campaign, Row, Run, Setup};
use anyhow::{Result, bail};
use std::time::Duration;
use vedette_benches::world::Process;

/// Failpoints, and at which pass the agent dies there.
const STEPS: [&str; 8] = ["read", "batch", "seal", "commit", "committed", "post", "landed", "deleted"];

pub(crate) fn at_random(campaign: &Campaign) -> Result<Option<Row>> {
    let times = campaign.of(200, 12);
    let run = Run::new(&Setup::default())?;
    run.judge(|run| {
        for _ in 0..times {
            run.start()?;
            std::thread::sleep(Duration::from_millis(fastrand::u64(100..2500)));
            run.kill()?;
        }
        Ok(times)
    })
    .map(Some)
}

/// With an agent built with failpoints.
pub(crate) fn at_each_step(campaign: &Campaign) -> Result<Option<Row>> {
    let Some(agent) = campaign.failpoints.as_ref().filter(|path| path.exists()) else {
        eprintln!("skipped: no agent with failpoints is built");
        return Ok(None);
    };
    let run = Run::new(&Setup { rate: 2000, ..Setup::default() })?;
    run.judge(|run| {
        let mut times = 0;
        for step in STEPS {
            for nth in campaign.of(vec![1_u64, 2, 3, 5, 8], vec![2]) {
                let mut command = std::process::Command::new(agent);
                command.args(["run", "--config"]).arg(run.world.path("vedette.toml"));
                command.env("VEDETTE_FAILPOINT", format!("{step}:{nth}"));
                let mut agent = Process::start(&mut command, &run.world.path("agent.log"))?;
                match agent.ended(Duration::from_secs(30))? {
                    Some(status) if status.code().is_none() => times += 1,
                    other => bail!("the agent did not die at {step}: {other:?}"),
                }
            }
        }
        Ok(times)
    })
    .map(Some)
}
