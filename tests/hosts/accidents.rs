//! What goes wrong: link, disk, power.

use crate::{Scene, eventually, host::on_machine};
use anyhow::{Result, ensure};
use std::time::Duration;

pub(crate) fn cut_link(scene: &mut Scene) -> Result<String> {
    let (seconds, count) = (scene.of(30, 5), scene.of(2000, 200));
    on_machine(&format!("ip link set {} down", scene.host.cable()))?;
    scene.host.log("cut", count)?;
    std::thread::sleep(Duration::from_secs(seconds));
    on_machine(&format!("ip link set {} up", scene.host.cable()))?;
    scene.workspace.has_lines("journal", "cut", count)?;
    Ok(format!("{seconds} s, {count} lines"))
}

/// kill -9 of the agent while the journal is written and rotated.
pub(crate) fn kill(scene: &mut Scene) -> Result<String> {
    let rounds = scene.of(30, 5);
    let count = rounds * 40;
    scene.host.log_slowly("killed", count, "0.02")?;
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(500 + 37 * (round % 10)));
        scene
            .host
            .must("systemctl kill --signal=KILL vedette; systemctl reset-failed vedette; systemctl start vedette")?;
        if round % 5 == 0 {
            scene.host.must("journalctl --rotate --quiet")?;
        }
    }
    scene.workspace.has_lines("journal", "killed", count)?;
    Ok(format!("{rounds} times, {count} lines"))
}

pub(crate) fn fill_disk(scene: &mut Scene) -> Result<String> {
    let count = scene.of(5000, 500);
    scene.host.must("dd if=/dev/zero of=/var/lib/vedette/filler bs=64k 2>/dev/null; ! dd if=/dev/zero of=/var/lib/vedette/one bs=1M count=1 2>/dev/null")?;
    scene.host.log("full", count)?;
    // The queue's file may have room left for so few lines.
    let arrived = "SELECT count(*) AS n FROM journal WHERE app = 'full'";
    let said = eventually("the agent to say so, or the lines to arrive", || {
        if scene.workspace.query(arrived)?[0]["n"].as_u64() == Some(count) {
            return Ok(Some(false));
        }
        let health = scene.host.must("vedette health 2>&1; true")?;
        Ok((!health.trim().is_empty() && !health.contains("healthy")).then_some(true))
    })?;
    ensure!(scene.host.property("ActiveState")? == "active", "a full disk ended the agent");
    scene.host.must("rm -f /var/lib/vedette/filler /var/lib/vedette/one")?;
    scene.workspace.has_lines("journal", "full", count)?;
    let written = scene.host.lines_in_syslog("full")?;
    scene.workspace.has_lines("syslog", "full", written)?;
    Ok(format!("{count} lines, {}", if said { "the agent waited and said so" } else { "they fitted" }))
}

pub(crate) fn reboot(scene: &mut Scene) -> Result<String> {
    let count = scene.of(2000, 200);
    let before = scene.host.status()?["agent"].clone();
    scene.host.log("down", count)?;
    scene.host.reboot()?;
    scene.host.log("up", count)?;
    scene.workspace.has_lines("journal", "down", count)?;
    scene.workspace.has_lines("journal", "up", count)?;
    ensure!(scene.host.status()?["agent"] == before, "it is another agent");
    eventually("entries of two boots", || {
        Ok((scene.workspace.query("SELECT DISTINCT boot_id FROM journal")?.len() == 2).then_some(()))
    })?;
    Ok(format!("{count} lines before and behind"))
}
