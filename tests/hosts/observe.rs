//! What happens on a host, and is seen.

use crate::{Scene, core_pattern::Forward, eventually};
use anyhow::{Result, ensure};

/// A user logs in by ssh over loopback, and at a terminal.
pub(crate) fn log_in(scene: &mut Scene) -> Result<String> {
    let host = &scene.host;
    host.must(
        "useradd -m -s /bin/sh alice && ssh-keygen -A && (systemctl restart ssh || systemctl restart ssh.socket)",
    )?;
    host.must(
        "mkdir -p /root/.ssh ~alice/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id && \
         cp /root/.ssh/id.pub ~alice/.ssh/authorized_keys && chown -R alice: ~alice/.ssh && chmod 700 ~alice/.ssh",
    )?;
    let ssh = "ssh -i /root/.ssh/id -o StrictHostKeyChecking=no -o BatchMode=yes alice@127.0.0.1 sleep 3";
    eventually("a log-in by ssh", || host.must(ssh).map(Some))?;
    host.must("(sleep 3; echo exit; sleep 1) | script -qec 'login -f alice' /dev/null > /dev/null")?;
    for (service, program) in [("sshd", "sshd"), ("login", "login")] {
        let sql = format!("SELECT session FROM sessions WHERE \"user\" = 'alice' AND service = '{service}'");
        eventually(&format!("the session of {program}"), || {
            Ok((!scene.workspace.query(&sql)?.is_empty()).then_some(()))
        })?;
    }
    let sql = "SELECT count(*) AS n FROM authentication WHERE \"user\" = 'alice' AND remote_host = '127.0.0.1'";
    eventually(
        "the log-in in the logs",
        || Ok((scene.workspace.query(sql)?[0]["n"].as_u64() > Some(0)).then_some(())),
    )?;
    Ok(String::new())
}

/// Through syslog(3), and with fields of the journal's own.
pub(crate) fn write_logs(scene: &mut Scene) -> Result<String> {
    let count = scene.of(5000, 500);
    scene.host.log("syslogged", count)?;
    scene.host.must(&format!("seq -f 'journaled %.0f' 1 {count} | systemd-cat -t journaled -p warning"))?;
    scene.workspace.has_lines("journal", "syslogged", count)?;
    scene.workspace.has_lines("journal", "journaled", count)?;
    let written = scene.host.lines_in_syslog("syslogged")?;
    scene.workspace.has_lines("syslog", "syslogged", written)?;
    Ok(format!("{count} lines each, {written} of them forwarded to rsyslog"))
}

/// Collectors that are off by default, switched on by a reload: logs of containers, which root alone can read, and sockets for anyone.
pub(crate) fn listen_and_read_containers(scene: &mut Scene) -> Result<String> {
    let host = &scene.host;
    let (pods, docker) = ("/var/log/pods/shop_web-1_9a1c/app", "/var/lib/docker/containers/4f5c");
    host.must(&format!(
        "mkdir -p {pods} {docker} && chmod 0710 /var/lib/docker /var/lib/docker/containers {docker} && umask 027 && \
         printf '%s\\n' '2026-11-28T08:00:00.000000000Z stdout F of a pod' > {pods}/0.log && \
         printf '%s\\n' '{{\"log\":\"of docker\\n\",\"stream\":\"stderr\",\"time\":\"2026-11-28T08:00:01Z\"}}' > {docker}/4f5c-json.log"
    ))?;
    let restarts = || host.must("journalctl -u vedette -o cat | grep -c 'restarts its tasks' || true");
    let before = restarts()?;
    let config = "[collectors.container_logs]\\nenabled = true\\nstart = \"beginning\"\\n[collectors.syslog_listener]\\nenabled = true\\n\
                  datagram = \"/run/vedette/syslog.sock\"\\nudp = \"127.0.0.1:5514\"\\n";
    host.must(&format!("printf '{config}' > /etc/vedette/conf.d/30-more.toml && systemctl reload vedette"))?;
    eventually("the sockets", || {
        host.must("test -S /run/vedette/syslog.sock && ss -lun | grep -q 127.0.0.1:5514").map(Some)
    })?;
    host.must("su nobody -s /bin/sh -c 'logger -u /run/vedette/syslog.sock -t local one'")?;
    host.must("logger -n 127.0.0.1 -P 5514 -d -t remote one")?;
    for (sql, what) in [
        (
            "SELECT 1 FROM container_logs WHERE pod = 'web-1' AND container = 'app' AND message = 'of a pod'",
            "the pod's line",
        ),
        ("SELECT 1 FROM container_logs WHERE message = 'of docker'", "docker's line"),
        ("SELECT 1 FROM syslog WHERE app = 'local' AND message = 'one'", "the local message"),
        ("SELECT 1 FROM syslog WHERE app = 'remote' AND message = 'one'", "the message by UDP"),
    ] {
        eventually(what, || Ok((!scene.workspace.query(sql)?.is_empty()).then_some(())))?;
    }
    host.must("rm /etc/vedette/conf.d/30-more.toml && systemctl reload vedette")?;
    eventually("the socket to be closed", || host.must("! ss -lun | grep -q 127.0.0.1:5514").map(Some))?;
    ensure!(restarts()? == before, "all tasks were restarted");
    Ok(String::new())
}

/// A program that the kernel ends, through the machine's core_pattern to the host's systemd-coredump.
pub(crate) fn crash(scene: &mut Scene) -> Result<String> {
    let forward = Forward::to(scene.host.init())?;
    scene.host.must("ulimit -c unlimited; cp /bin/sleep /usr/local/bin/crasher; /usr/local/bin/crasher 100 & sleep 0.5; kill -SEGV $!; wait")?;
    let row = eventually("the dump", || {
        let sql = "SELECT process, signal, path, size, sha256, file FROM crashes WHERE process = 'crasher'";
        Ok(scene.workspace.query(sql)?.into_iter().next())
    })?;
    drop(forward);
    ensure!(row["signal"] == "SIGSEGV" && row["path"] == "/usr/local/bin/crasher", "{row}");
    let sum = scene.host.must(&format!("sha256sum '{}'", row["file"].as_str().unwrap_or_default()))?;
    ensure!(row["sha256"].as_str() == sum.split(' ').next(), "{row}: {sum}");
    Ok(format!("{} bytes", row["size"]))
}

/// The distribution's own configuration of logrotate, several times while lines are written.
pub(crate) fn rotate_logs(scene: &mut Scene) -> Result<String> {
    let count = scene.of(400, 100);
    scene.host.log_slowly("rotated", count, "0.03")?;
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_secs(1));
        scene.host.must("logrotate -f /etc/logrotate.conf")?;
    }
    scene.workspace.has_lines("journal", "rotated", count)?;
    let written = scene.host.lines_in_syslog("rotated")?;
    ensure!(written > count / 2, "rsyslog wrote {written} of {count} lines");
    scene.workspace.has_lines("syslog", "rotated", written)?;
    Ok(format!("{written} lines, 3 rotations"))
}

/// journald deletes a file, and frees its content, before the agent gets to it: each entry has arrived or is counted as rotated away,
/// and nothing is taken for damage.
pub(crate) fn vacuum_unread(scene: &mut Scene) -> Result<String> {
    let count = scene.of(2000, 300);
    let lost = |dropped: &serde_json::Value| dropped["rotated_away"].as_u64().unwrap_or(0);
    let (pid, before) = (scene.host.property("MainPID")?, lost(&scene.workspace.dropped("journal")?));
    scene.host.must(&format!("kill -STOP {pid}"))?;
    scene.host.log("unread", count)?;
    scene.host.must(&format!(
        "journalctl --sync; journalctl --rotate --quiet; journalctl --vacuum-files=1 --quiet; kill -CONT {pid}"
    ))?;
    scene.host.log("behind", 1)?;
    scene.workspace.has_lines("journal", "behind", 1)?;
    let row =
        scene.workspace.query("SELECT count(*) AS n FROM journal WHERE app = 'unread' AND message LIKE 'unread %'")?;
    let arrived = row[0]["n"].as_u64().unwrap_or(0);
    let lost = lost(&scene.workspace.dropped("journal")?) - before;
    ensure!(arrived + lost >= count, "{arrived} of {count} arrived, {lost} are counted as lost");
    let status = scene.host.must("vedette status")?;
    ensure!(!status.contains("damaged"), "{status}");
    Ok(format!("{arrived} of {count} lines arrived, {lost} entries counted as rotated away"))
}

/// Archived files go after they were read.
pub(crate) fn rotate_journal(scene: &mut Scene) -> Result<String> {
    let (rounds, count) = (scene.of(10, 3), scene.of(2000, 300));
    let before = scene.workspace.dropped("journal")?;
    for round in 0..rounds {
        scene.host.log(&format!("vacuumed{round}"), count)?;
        scene.host.must("journalctl --rotate --quiet")?;
        scene.workspace.has_lines("journal", &format!("vacuumed{round}"), count)?;
        scene.host.must("journalctl --vacuum-files=1 --quiet")?;
    }
    let after = scene.workspace.dropped("journal")?;
    ensure!(before == after, "entries are counted as lost: {before} {after}");
    Ok(format!("{rounds} times {count} lines"))
}
