//! The workspace moves to another address under the same name, and the host's clock jumps.

use crate::support::{Process, VEDETTE, World, eventually};
use std::{fs, path::Path, process::Command};

fn line(number: usize) -> String {
    format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number:04}\n")
}

fn lines_come_once(world: &World, count: u64) {
    eventually("all lines", || {
        let rows = world.query("SELECT count(*) AS n, count(DISTINCT message) AS d FROM syslog");
        (rows[0]["d"] == count).then(|| assert_eq!(rows[0]["n"], count, "none came twice"))
    });
    for account in world.ledger() {
        assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    }
}

/// The agent's program with another /etc/hosts.
fn with_hosts(hosts: &Path) -> Option<Command> {
    let mut command = Command::new("unshare");
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
    let mut may = Command::new("unshare");
    may.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", "true"]);
    may.output().is_ok_and(|output| output.status.success()).then_some(command)
}

#[test]
fn a_workspace_whose_name_points_elsewhere_is_found_again() {
    let mut world = World::with_names(&["workspace.test"]);
    let hosts = world.path("hosts");
    let names = |address: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{address} workspace.test\n"));
    names("127.0.0.1").expect("writes");
    let Some(mut enroll) = with_hosts(&hosts) else {
        println!("skipped: no right to mount over /etc/hosts");
        return;
    };
    let port = world.address().rsplit_once(':').expect("a port").1.to_owned();
    let (config, ca) = (world.path("vedette.toml"), world.path("workspace/ca.pem"));
    enroll.arg(VEDETTE).args(["enroll", "--workspace", &format!("https://workspace.test:{port}"), "--config"]);
    enroll.arg(&config).arg("--ca").arg(ca).arg("--token-file").arg(world.token("token"));
    let enrolled = enroll.output().expect("runs");
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let mut agent = with_hosts(&hosts).expect("it may");
    agent.arg(VEDETTE).args(["run", "--config"]).arg(&config);
    let _agent = Process::start(&mut agent, &world.path("agent.log"));
    world.append("a.log", &line(0));
    lines_come_once(&world, 1);
    for (move_to, number) in [("127.0.0.2", 1), ("127.0.0.3", 2)] {
        world.serve = None;
        world.append("a.log", &line(number));
        names(move_to).expect("writes");
        world.serve(&format!("{move_to}:{port}"));
        lines_come_once(&world, number as u64 + 1);
    }
}

/// `libfaketime`, from Debian's package `faketime`.
fn faketime() -> Option<String> {
    let libraries = glob_one("/usr/lib", "faketime/libfaketimeMT.so.1");
    libraries.map(|path| path.display().to_string())
}

fn glob_one(dir: &str, below: &str) -> Option<std::path::PathBuf> {
    fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path().join(below))).find(|path| path.exists())
}

#[test]
fn a_clock_that_jumps_a_day_either_way_costs_and_repeats_no_line() {
    let Some(library) = faketime() else {
        println!("skipped: libfaketime is not installed");
        return;
    };
    let world = World::new();
    world.enroll();
    let clock = world.path("clock");
    // Not before the certificates were issued, so it starts a day ahead.
    fs::write(&clock, "+1d").expect("writes");
    let mut agent = Command::new(VEDETTE);
    agent.args(["run", "--config"]).arg(world.path("vedette.toml"));
    agent.envs([("LD_PRELOAD", library.as_str()), ("FAKETIME_NO_CACHE", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    agent.env("FAKETIME_TIMESTAMP_FILE", &clock);
    let _agent = Process::start(&mut agent, &world.path("agent.log"));
    for (number, offset) in ["+1d", "+2d", "+1d", "+0d", "+1d"].iter().enumerate() {
        fs::write(&clock, offset).expect("writes");
        world.append("a.log", &line(number));
        lines_come_once(&world, number as u64 + 1);
    }
    let observed = world.query("SELECT min(observed_time) AS low, max(observed_time) AS high FROM syslog");
    let day = |key: &str| observed[0][key].as_str().and_then(|time| time.get(8..10)).map(str::to_owned);
    assert_ne!(day("low"), day("high"), "the clock did jump: {observed:?}");
}
