//! Known failures of other agents that no other test covers: a living process that does nothing, a backlog lost to a bad
//! configuration, unbounded labels, and idle spin.

use crate::support::{VEDETTE, World, eventually, refusal};
use std::{
    fs,
    net::UdpSocket,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn the_probe_is_red_where_nothing_is_collected_or_nothing_arrives() {
    let mut world = World::new();
    refusal(&world.vedette(&["health"]), 4);
    let taken = UdpSocket::bind("127.0.0.1:0").expect("opens");
    let udp = taken.local_addr().expect("is bound");
    world.write_config(&format!("\n[collectors.syslog_listener]\nenabled = true\nudp = \"{udp}\"\n"));
    world.enroll();
    let mut agent = world.run();
    let probe = |world: &World| world.vedette(&["health", "--stalled-after", "1s"]);
    let message = eventually("a red probe", || {
        let output = probe(&world);
        (output.status.code() == Some(1))
            .then(|| refusal(&output, 1))
            .filter(|message| message.contains("syslog_listener"))
    });
    assert!(message.contains("is failing"), "{message}");
    agent.terminate();

    world.write_config("");
    let agent = world.run();
    eventually("a green probe", || probe(&world).status.success().then_some(()));
    let address = world.address();
    world.serve = None;
    world.append("a.log", "a line that waits\n");
    let message = eventually("a red probe", || {
        let output = probe(&world);
        (output.status.code() == Some(1)).then(|| refusal(&output, 1))
    });
    assert!(message.contains("delivery: "), "{message}");
    world.serve(&address);
    eventually("a green probe", || probe(&world).status.success().then_some(()));
    drop(agent);
}

#[test]
fn a_bad_configuration_at_a_restart_costs_nothing_of_the_backlog() {
    let mut world = World::new();
    world.enroll();
    let address = world.address();
    world.serve = None;
    world.append("a.log", "one\ntwo\nthree\n");
    let mut agent = world.run();
    eventually("a backlog", || world.status()["queue"]["batches"].as_u64().filter(|batches| *batches > 0));
    eventually("every line in it", || {
        let syslog = world.status()["collectors"].as_array()?.iter().find(|c| c["id"] == "syslog")?.clone();
        (syslog["emitted"] == 3).then_some(())
    });
    agent.terminate();
    // Read already and deleted: only the queue has it.
    fs::remove_file(world.path("log/a.log")).expect("removes");
    for wrong in ["[trasport]\n", "\n[transport]\nqueue_bytes_max = \"1KiB\"\n", "a = = b\n"] {
        world.write_config(wrong);
        refusal(&world.vedette(&["run"]), 78);
    }
    world.write_config("");
    world.serve(&address);
    let agent = world.run();
    eventually("the backlog", || (world.count("syslog") == 3).then_some(()));
    drop(agent);
}

#[test]
fn what_the_agent_says_of_itself_does_not_grow_with_files_that_come_and_go() {
    let world = World::new();
    world.enroll();
    world.append("a.log", "first\n");
    let agent = world.run();
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    let size = |world: &World| world.status().to_string().len();
    let (before, rounds, files) = (size(&world), 3, 200);
    for round in 0..rounds {
        for file in 0..files {
            world.append(&format!("{round}-{file}.log"), "a line\n");
        }
        eventually("its lines", || (world.count("syslog") == 1 + (round + 1) * files).then_some(()));
        for file in 0..files {
            fs::remove_file(world.path(&format!("log/{round}-{file}.log"))).expect("removes");
        }
    }
    // Numbers have more digits; there are no additional lines.
    assert!(size(&world) < before + 500, "{}", world.status());
    assert!(world.ledger().len() < 20, "the ledger has a line for each collector, not for each file");
    drop(agent);
}

#[test]
fn an_idle_agent_does_not_spin() {
    let world = World::new();
    world.append("a.log", "first\n");
    world.write_config("\n[collectors.processes]\nenabled = false\n");
    world.enroll();
    let agent = world.run();
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    // utime and stime in ticks of 10 ms (proc_pid_stat(5)).
    let ticks = |agent: u32| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{agent}/stat")).expect("runs");
        let fields = stat.rsplit_once(") ").expect("has a name").1.split(' ');
        fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = ticks(agent.id());
    std::thread::sleep(Duration::from_secs(10));
    let spent = ticks(agent.id()) - before;
    assert!(spent < 20, "{spent} ticks of 10 ms in 10 s");
}

/// What other agents call a reload is a policy change here: collectors start and stop while lines arrive, and while nothing can
/// be delivered. Every revision is applied, or replaced by a later one, and no line is lost or repeated.
#[test]
fn many_policies_under_load_are_all_followed_and_cost_no_line() {
    let mut world = World::new();
    world.enroll();
    let agent = world.run();
    let (address, mut lines, mut revision) = (world.address(), 0, 1);
    for round in 0..60 {
        for _ in 0..50 {
            world.append("a.log", &format!("line {lines}\n"));
            lines += 1;
        }
        let setting = format!("{}.every={}s", ["sessions", "addresses", "processes"][round % 3], 5 + round);
        revision = crate::policy::set(&world, &["--collector", &setting]);
        match round {
            20 => world.serve = None,
            40 => world.serve(&address),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    eventually("the last policy", || (world.status()["policy"]["revision"] == revision).then_some(()));
    eventually("every line", || (world.count("syslog") == lines).then_some(()));
    let account = world.ledger().into_iter().find(|account| account["collector"] == "syslog").expect("is there");
    assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    let running = world.status()["collectors"].as_array().cloned().unwrap_or_default();
    for id in ["sessions", "addresses", "processes", "syslog"] {
        let state = running.iter().find(|collector| collector["id"] == id).map(|collector| collector["state"].clone());
        assert!(state.is_some_and(|state| state == "running" || state == "absent"), "{id}");
    }
    drop(agent);
}

/// A log that cannot be written is not a reason to stop: standard error is a full disk.
#[test]
fn an_agent_whose_log_is_on_a_full_disk_collects() {
    let world = World::new();
    world.enroll();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let mut agent = Command::new(VEDETTE)
        .args(["run", "--config"])
        .arg(world.path("vedette.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(full)
        .spawn()
        .expect("starts");
    world.append("a.log", "one\n");
    let landed = eventually("the line to land, or the end", || {
        (world.count("syslog") == 1).then_some(true).or_else(|| agent.try_wait().ok()?.map(|_| false))
    });
    drop(agent.kill());
    agent.wait().expect("ends");
    assert!(landed);
}

/// The policy may switch on what the host switched off, so its settings are checked too.
#[test]
fn the_settings_of_a_collector_that_is_off_are_checked() {
    let world = World::new();
    world.write_config("\n[collectors.sessions]\nenabled = false\nevery = \"1ms\"\n");
    let refused = refusal(&world.vedette(&["check"]), 78);
    assert!(refused.contains("collectors.sessions.every"), "{refused}");
}

/// Collectors of logs parse every line, the last one too.
#[test]
fn a_log_in_json_is_json_to_the_last_line() {
    let world = World::new();
    let output = world.vedette(&["run", "--set", "log.format=json"]);
    assert_eq!(output.status.code(), Some(3), "it is not enrolled");
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert!(log.contains("enroll") && log.lines().all(is_json), "{log}");
}
