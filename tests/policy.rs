//! Policies with the real binaries: who may switch off what, what still leaves the host then, and what is collected after
//! switching on again.

use crate::support::{ORG, Process, World, eventually, refusal};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// An organization on a tier, whose agent runs and has sent a first line.
fn collecting(tier: &str, config: &str) -> (World, Process) {
    let world = World::new();
    set(&world, &["--tier", tier]);
    world.write_config(config);
    world.enroll();
    world.append("a.log", "before\n");
    let agent = world.run();
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    (world, agent)
}

/// Sets a policy; returns its revision.
pub(crate) fn set(world: &World, change: &[&str]) -> u64 {
    let output = world.workspace_output(&[&["policy", "set", "--org", ORG, "--reason", "a test"], change].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("nothing was changed") {
        let policy: Value =
            serde_json::from_str(&world.workspace(&["policy", "show", "--org", ORG])).expect("an object");
        return policy["revision"].as_u64().expect("a number");
    }
    assert!(output.status.success(), "{change:?}: {message}");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a revision")
}

pub(crate) fn state(world: &World, id: &str) -> String {
    let status = world.status();
    let found = status["collectors"].as_array().and_then(|all| all.iter().find(|c| c["id"] == id).cloned());
    found.map_or_else(String::new, |collector| collector["state"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the agent uses a revision, which takes at most 10 s while it is connected.
pub(crate) fn in_force(world: &World, revision: u64) {
    let began = Instant::now();
    eventually("the policy to be followed", || {
        let policy = &world.status()["policy"];
        (policy["revision"] == revision).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Waits until no collector runs; returns the files that the agent has open.
fn all_off(world: &World, agent: u32) -> Vec<String> {
    eventually("every collector to be off", || {
        let status = world.status();
        status["collectors"]
            .as_array()?
            .iter()
            .all(|c| c["state"] == "disabled" || c["class"] == "artifact")
            .then_some(())
    });
    let names = fs::read_dir(format!("/proc/{agent}/fd")).expect("it runs");
    names.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).map(|path| path.display().to_string()).collect()
}

/// Counts of what has landed: lifecycle events with the last time, lines, heartbeats, processes.
fn landed(world: &World) -> (String, u64, u64, u64) {
    let sql = "SELECT count(*) AS n, max(time) AS t FROM application_lifecycle";
    let lifecycle = world.workspace(&["query", "--log", "error", "--org", ORG, "--format", "json", sql]);
    (lifecycle, world.count("syslog"), world.count("heartbeats"), world.count("processes"))
}

#[test]
fn with_collection_off_no_collector_runs_and_what_was_written_meanwhile_is_never_collected() {
    let (mut world, mut agent) = collecting("free", "");
    let log = world.path("log").display().to_string();
    let open = |agent: &Process| fs::read_dir(format!("/proc/{}/fd", agent.id())).expect("runs").count();
    assert!(open(&agent) > 0);
    let began = Instant::now();
    let revision = set(&world, &["--collect", "off"]);
    in_force(&world, revision);
    let held = all_off(&world, agent.id());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!held.iter().any(|path| path.starts_with(&log) || path.contains("inotify")), "{held:?}");
    // Nothing more lands, not even a heartbeat, a start or a stop; the policy poll shows that the agent lives.
    eventually("what was queued to be sent", || (world.status()["queue"]["batches"] == 0).then_some(()));
    let before = landed(&world);
    world.append("a.log", "while it was off\n");
    world.append("new.log", "in a file that is new meanwhile\n");
    std::thread::sleep(Duration::from_secs(3));
    agent.terminate();
    let mut agent = world.run();
    in_force(&world, revision);
    all_off(&world, agent.id());
    world.append("a.log", "and after a restart\n");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(landed(&world), before);
    let agents: Value =
        serde_json::from_str(&world.workspace(&["agents", "--org", ORG, "--format", "json"])).expect("one");
    assert_eq!((&agents["state"], &agents["policy_revision"]), (&"active".into(), &revision.into()), "{agents}");

    assert_eq!(
        world.workspace(&["alerts", "--org", ORG, "--format", "json"]),
        "",
        "nothing was sent that the workspace had to refuse"
    );

    // Killed in between, and the workspace down for a moment: none of it is collected later.
    agent.kill();
    let address = world.address();
    world.serve = None;
    let mut agent = world.run();
    all_off(&world, agent.id());
    world.append("a.log", "and while nobody answers\n");
    world.serve(&address);
    let on = set(&world, &["--collect", "on"]);
    in_force(&world, on);
    eventually("the tailer", || (state(&world, "syslog") == "running").then_some(()));
    world.append("a.log", "after\n");
    world.append("new.log", "after as well\n");
    eventually("what came after", || (world.count("syslog WHERE message LIKE 'after%'") == 2).then_some(()));
    let all = world.query("SELECT message FROM syslog ORDER BY message");
    let all: Vec<&str> = all.iter().filter_map(|row| row["message"].as_str()).collect();
    assert_eq!(all, ["after", "after as well", "before"]);
    let account = eventually("the gap in the ledger", || {
        let account = world.ledger().into_iter().find(|account| account["collector"] == "syslog")?;
        (account["dropped"]["policy"] == 2).then_some(account)
    });
    assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    let events = world.query("SELECT message FROM lifecycle WHERE event = 'policy' AND about = 'syslog'");
    assert!(
        events[0]["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("the policy had switched the collector off for")),
        "{events:?}"
    );
    agent.terminate();
}

#[test]
fn what_was_queued_before_is_sent_or_purged_as_the_host_says() {
    for (on_disable, arrives) in [("send", 3), ("purge", 1)] {
        let config = format!("\n[policy]\non_disable = \"{on_disable}\"\n");
        let (mut world, mut agent) = collecting("free", &config);
        let address = world.address();
        // While stopped the workspace accepts nothing; the policy arrives with its return.
        world.serve = None;
        world.append("a.log", "queued\nqueued as well\n");
        eventually("a backlog", || (world.status()["queue"]["batches"].as_u64() > Some(0)).then_some(()));
        agent.terminate();
        let revision = set(&world, &["--collect", "off"]);
        // As if it had arrived just before the workspace stopped.
        if !hand_over(&world, revision) {
            return;
        }
        let mut agent = world.run();
        all_off(&world, agent.id());
        let left = if on_disable == "send" { 1 } else { 0 };
        eventually("the queue", || (world.status()["queue"]["batches"].as_u64()?.min(1) == left).then_some(()));
        world.serve(&address);
        in_force(&world, revision);
        eventually("an empty queue", || (world.status()["queue"]["batches"] == 0).then_some(()));
        assert_eq!(world.count("syslog"), arrives, "{on_disable}");
        assert!(
            world.workspace(&["alerts", "--org", ORG, "--format", "json"]).is_empty(),
            "each is judged by its own revision"
        );
        agent.terminate();
    }
}

#[test]
fn the_standard_tier_switches_nothing_off() {
    let (world, mut agent) = collecting("standard", "\n[collectors.processes]\nenabled = false\n");
    let refused = |change: &[&str]| {
        let arguments = [&["policy", "set", "--org", ORG, "--reason", "a test"], change].concat();
        refusal(&world.workspace_output(&arguments), 1)
    };
    assert!(refused(&["--collect", "off"]).contains("cannot be switched off on the standard tier"));
    assert!(refused(&["--collector", "processes.enabled=off"]).contains("running processes"));
    let both = ["--collector", "syslog.enabled=off", "--collector", "journal.enabled=off"];
    assert!(refused(&both).contains("operating system logs (syslog or journal)"));
    assert!(refused(&["--artifacts", "off"]).contains("artifacts cannot be switched off by policy"));
    assert!(refused(&["--artifacts", "per_hour_max=0"]).contains("artifacts cannot be switched off by policy"));
    assert!(refused(&["--collector", "syslog.paths=/etc/shadow"]).contains("set on the host alone"));

    // The configuration says off; it runs all the same, and reports this.
    let message = refusal(&world.vedette(&["check"]), 78);
    assert!(
        message.contains("collectors.processes.enabled") && message.contains("the standard tier requires"),
        "{message}"
    );
    eventually("processes", || (world.count("processes") > 0).then_some(()));
    assert_eq!(state(&world, "processes"), "running");
    let why = world.last_error("processes").unwrap_or_default();
    assert!(why.contains("running processes"), "{why}");
    let events = world.query("SELECT message FROM lifecycle WHERE event = 'policy' AND about = 'processes'");
    assert_eq!(events.len(), 1, "{events:?}");
    // On the free tier the host's configuration applies.
    let revision = set(&world, &["--tier", "free"]);
    in_force(&world, revision);
    eventually("the host's word", || (state(&world, "processes") == "disabled").then_some(()));
    assert!(world.vedette(&["check"]).status.success());
    agent.terminate();
}

#[test]
fn every_revision_is_kept_with_who_when_and_why_and_a_collector_alone_can_be_switched() {
    let (world, mut agent) = collecting("free", "");
    let off =
        set(&world, &["--collector", "syslog.enabled=off", "--collector", "sessions.every=7", "--store", "common"]);
    in_force(&world, off);
    eventually("one to be off", || (state(&world, "syslog") == "disabled").then_some(()));
    assert_eq!(state(&world, "processes"), "running", "the others go on");
    world.append("a.log", "while it was off\n");
    let on = set(&world, &["--collector", "syslog=default"]);
    in_force(&world, on);
    eventually("it to be on", || (state(&world, "syslog") == "running").then_some(()));
    world.append("a.log", "after\n");
    eventually("the next line", || (world.count("syslog WHERE message = 'after'") == 1).then_some(()));
    assert_eq!(world.count("syslog WHERE message LIKE 'while%'"), 0);
    let history = world.workspace(&["policy", "show", "--org", ORG, "--history"]);
    let history: Vec<Value> = history.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let revisions: Vec<u64> = history.iter().filter_map(|line| line["policy"]["revision"].as_u64()).collect();
    assert!(revisions.is_sorted_by(|newer, older| newer > older), "{revisions:?}");
    assert_eq!((revisions.len(), revisions.first(), revisions.last()), (3, Some(&on), Some(&1)), "{off}");
    assert_eq!(history[0]["reason"], "a test");
    assert!(history[0]["who"].as_str().is_some_and(|who| who.contains("uid ")) && history[0]["time"].is_string());
    let shown: Value = serde_json::from_str(&world.workspace(&["policy", "show", "--org", ORG])).expect("an object");
    assert_eq!((&shown["store"], &shown["collectors"]["sessions"]["every_seconds"]), (&"common".into(), &7.into()));
    refusal(&world.workspace_output(&["policy", "set", "--org", ORG, "--reason", " ", "--collect", "off"]), 1);
    agent.terminate();
}

/// Killed between switching on and skipping.
#[test]
fn a_crash_while_it_is_switched_on_brings_nothing_back() {
    let (world, mut agent) = collecting("free", "");
    let off = set(&world, &["--collect", "off"]);
    in_force(&world, off);
    all_off(&world, agent.id());
    world.append("a.log", "while it was off\n");
    agent.kill();
    let on = set(&world, &["--collect", "on"]);
    if !hand_over(&world, on) {
        return;
    }
    let mut agent = world.run();
    eventually("the tailer", || (state(&world, "syslog") == "running").then_some(()));
    world.append("a.log", "after\n");
    eventually("what came after", || (world.count("syslog WHERE message = 'after'") == 1).then_some(()));
    assert_eq!(world.count("syslog"), 2);
    agent.terminate();
}

/// An unusable policy is polled for after pauses, and reported once.
#[test]
fn a_refused_policy_is_reported_once_and_does_not_make_the_agent_spin() {
    let (mut world, mut agent) = collecting("free", "");
    // Another key signs from now on, as after a restore of the wrong backup.
    let key = world.path("workspace/policy.key");
    fs::remove_file(&key).expect("removes");
    let set_anyway = ["policy", "set", "--org", ORG, "--store", "common", "--reason", "a test"];
    let message = refusal(&world.workspace_output(&set_anyway), 1);
    assert!(message.contains("restore it from a backup"), "no other is made in its place: {message}");
    let other = World::new();
    fs::copy(other.path("workspace/policy.key"), key).expect("copies");
    let address = world.address();
    set(&world, &["--store", "common"]);
    eventually("it to be said", || {
        let problem = world.status()["policy"]["problem"].as_str().map(str::to_owned)?;
        problem.contains("not signed by the workspace's key").then_some(())
    });
    std::thread::sleep(Duration::from_secs(8));
    let log = fs::read_to_string(world.path("agent.log")).expect("reads");
    assert_eq!(log.matches("policy refused").count(), 1, "{log}");
    assert_eq!(world.status()["policy"]["revision"], 1, "the one before stays");
    assert_eq!(world.count("lifecycle WHERE event = 'policy' AND message LIKE '%refused%'"), 1);
    world.serve = None;
    world.serve(&address);
    agent.terminate();
}

/// A file that is not visible while collection is switched on, and returns later.
#[test]
fn a_file_that_comes_back_later_brings_nothing_back_either() {
    let (world, mut agent) = collecting("free", "");
    let off = set(&world, &["--collect", "off"]);
    in_force(&world, off);
    all_off(&world, agent.id());
    world.append("a.log", "while it was off\n");
    fs::rename(world.path("log/a.log"), world.path("a.log.away")).expect("renames");
    let on = set(&world, &["--collect", "on"]);
    in_force(&world, on);
    eventually("the tailer", || (state(&world, "syslog") == "running").then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    fs::rename(world.path("a.log.away"), world.path("log/a.log")).expect("renames");
    world.append("new.log", "after\n");
    eventually("a new file", || (world.count("syslog WHERE message = 'after'") == 1).then_some(()));
    std::thread::sleep(Duration::from_secs(6));
    world.append("a.log", "after as well\n");
    eventually("what comes after", || (world.count("syslog WHERE message = 'after as well'") == 1).then_some(()));
    assert_eq!(world.count("syslog"), 3, "{:?}", world.query("SELECT message FROM syslog"));
    let account = eventually("it in the ledger", || {
        let account = world.ledger().into_iter().find(|account| account["collector"] == "syslog")?;
        (account["dropped"]["policy"] == 1).then_some(account)
    });
    assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    agent.terminate();
    // Truncated while the agent is down: its content is new, though the file is old.
    fs::write(world.path("log/a.log"), "fresh\n").expect("writes");
    let mut agent = world.run();
    eventually("what was written since", || (world.count("syslog WHERE message = 'fresh'") == 1).then_some(()));
    agent.terminate();
}

/// On a host without a journal the policy cannot switch off the other source of system logs, and the workspace accepts its
/// records.
#[test]
fn what_the_tier_requires_is_collected_and_taken_though_the_policy_switches_it_off() {
    let (world, mut agent) = collecting("standard", "");
    // The first of a group runs in place of the others, never another one.
    let policy = |setting: &str| {
        let set = ["policy", "set", "--org", ORG, "--reason", "a test", "--collector", setting];
        String::from_utf8(world.workspace_output(&set).stderr).expect("UTF-8")
    };
    let warning = "syslog will still run on hosts where journal observes nothing";
    assert!(policy("syslog.enabled=off").contains(warning));
    assert!(policy("syslog.enabled=on").is_empty());
    assert!(policy("journal.enabled=off").is_empty());
    policy("journal=default");
    let off = set(&world, &["--collector", "syslog.enabled=off"]);
    in_force(&world, off);
    let journal = state(&world, "journal");
    if journal == "running" {
        println!("skipped: this host has a journal");
        return;
    }
    world.append("a.log", "required\n");
    eventually("it to arrive", || (world.count("syslog WHERE message = 'required'") == 1).then_some(()));
    let why = world.last_error("syslog").unwrap_or_default();
    assert!(why.contains(&format!("policy revision {off} switches it off")), "{why}");
    assert!(world.vedette(&["check"]).status.success(), "the configuration is not to blame");
    assert_eq!(world.workspace(&["alerts", "--org", ORG, "--format", "json"]), "");
    assert!(world.vedette(&["health"]).status.success());
    agent.terminate();
    for wrong in ["syslogg.enabled=off", "syslog.every=30s", "agent.enabled=off", "processes.every=2d"] {
        let set = ["policy", "set", "--org", ORG, "--reason", "a test", "--collector", wrong];
        refusal(&world.workspace_output(&set), 1);
    }
    let same = ["policy", "set", "--org", ORG, "--reason", "a test", "--collect", "on"];
    assert!(refusal(&world.workspace_output(&same), 1).contains("nothing was changed"));
}

/// Puts a revision into the agent's policy file; false without python3.
pub(crate) fn hand_over(world: &World, revision: u64) -> bool {
    let script = "import sqlite3,sys,json; r=sqlite3.connect(sys.argv[1]).execute('SELECT document, signature FROM policies \
                  WHERE revision=?', (sys.argv[2],)).fetchone(); print(json.dumps({'policy': r[0], 'signature': r[1]}))";
    let store = world.path("workspace/control.sqlite");
    let done = Command::new("python3").args(["-c", script]).arg(store).arg(revision.to_string()).output();
    let Some(output) = done.ok().filter(|output| output.status.success()) else {
        println!("skipped: there is no python3");
        return false;
    };
    fs::write(world.path("identity/policy.json"), output.stdout).expect("writes");
    true
}

/// The policy file of a switched-off agent is damaged: nothing is collected until the workspace sends a verifiable one.
#[test]
fn a_torn_or_forged_policy_on_disk_does_not_switch_collection_on() {
    let (mut world, mut agent) = collecting("free", "");
    let revision = set(&world, &["--collect", "off"]);
    in_force(&world, revision);
    all_off(&world, agent.id());
    agent.terminate();
    let path = world.path("identity/policy.json");
    let whole = fs::read_to_string(&path).expect("is there");
    let address = world.address();
    world.serve = None;
    for broken in [&whole[..whole.len() / 2], &whole.replace("collect\\\":false", "collect\\\":true")] {
        write(&path, broken);
        world.append("a.log", "not to be seen\n");
        let mut agent = world.run();
        eventually("it to wait", || (state(&world, "syslog") == "waiting").then_some(()));
        let problem = world.status()["policy"]["problem"].as_str().map(str::to_owned);
        assert!(problem.is_some_and(|problem| problem.contains("the policy")), "it is said");
        agent.terminate();
    }
    world.serve(&address);
    let mut agent = world.run();
    in_force(&world, revision);
    all_off(&world, agent.id());
    assert_eq!(world.count("syslog"), 1);
    agent.terminate();
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("writes");
}
