//! A workspace restored from a backup: agents and the pair return what they know of the time since.

use crate::{
    policy::{in_force, set},
    support::{ORG, World, eventually},
};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, process::Command};

fn copy(from: &Path, to: &Path) {
    drop(fs::remove_dir_all(to));
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.is_ok_and(|status| status.success()), "{} is copied", from.display());
}

/// Stops the workspace, and copies its directory or puts the copy back.
fn stopped(world: &mut World, work: impl FnOnce(&Path, &Path)) {
    let address = world.address();
    world.serve.take().expect("serves").terminate();
    work(&world.path("workspace"), &world.path("backup"));
    world.serve(&address);
}

fn alerts(world: &World) -> Vec<Value> {
    let listed = world.workspace(&["alerts", "--org", ORG, "--format", "json"]);
    listed.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

fn alert(world: &World, kind: &str, text: &str) {
    eventually(&format!("the alert {kind}"), || {
        alerts(world)
            .iter()
            .any(|alert| alert["kind"] == kind && alert["detail"].as_str().is_some_and(|it| it.contains(text)))
            .then_some(())
    });
}

fn listed(world: &World) -> Value {
    let listed = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
    serde_json::from_str(listed.lines().next().expect("an agent")).expect("an object")
}

fn revision(world: &World) -> u64 {
    let shown: Value = serde_json::from_str(&world.workspace(&["policy", "show", "--org", ORG])).expect("an object");
    shown["revision"].as_u64().expect("a number")
}

#[test]
fn what_was_delivered_since_the_backup_is_read_again_and_the_policy_comes_from_the_agent() {
    let mut world = World::new();
    world.enroll();
    let _agent = world.run();
    let write = |world: &World, file: &str, numbers: std::ops::Range<usize>| {
        world.append(file, &numbers.map(|number| format!("{file} line {number}\n")).collect::<String>());
    };
    write(&world, "a.log", 0..50);
    eventually("the first lines", || (world.count("syslog") == 50).then_some(()));
    stopped(&mut world, copy);

    // Since then a file has grown, another was created, and the policy has changed.
    write(&world, "a.log", 50..150);
    write(&world, "b.log", 0..30);
    let newest = set(&world, &["--collector", "crash_dumps.enabled=off"]);
    in_force(&world, newest);
    write(&world, "a.log", 150..200);
    eventually("the later lines", || (world.count("syslog") == 230).then_some(()));
    stopped(&mut world, |workspace, backup| copy(backup, workspace));
    assert!(revision(&world) < newest, "the backup is older");

    write(&world, "a.log", 200..210);
    eventually("the policy to come back", || (revision(&world) == newest).then_some(()));
    alert(&world, "restored", &format!("policy revision {newest}"));
    alert(&world, "missing", "were acknowledged and are not here");
    eventually("every line", || (world.count("syslog") == 240).then_some(()));
    let rows = world.query("SELECT message FROM syslog");
    let messages: BTreeSet<&str> = rows.iter().map(|row| row["message"].as_str().expect("text")).collect();
    assert_eq!(messages.len(), 240, "and none twice");
    eventually("the ledger to add up", || {
        let accounts = world.ledger();
        let syslog = accounts.iter().find(|account| account["collector"] == "syslog")?;
        let figures = ["emitted", "stored", "missing", "repeated"].map(|key| syslog[key].as_u64().expect("a number"));
        (figures == [240, 240, 0, 0]).then_some(())
    });
    let events = world.query("SELECT message FROM lifecycle WHERE event = 'read_again'");
    assert_eq!(events.len(), 1, "{events:?}");

    // A new policy has a revision that no agent has seen.
    let next = set(&world, &["--collector", "crash_dumps.enabled=on"]);
    assert!(next > newest);
    in_force(&world, next);
}

/// What was written while collection was off is not collected, even if its count was lost.
#[test]
fn what_policy_had_passed_over_is_not_read_when_the_rest_is_read_again() {
    let mut world = World::new();
    world.enroll();
    let _agent = world.run();
    let state = |is: &str| {
        eventually(is, || (crate::policy::state(&world, "syslog") == is).then_some(()));
    };
    world.append("a.log", "before\n");
    eventually("the first line", || (world.count("syslog") == 1).then_some(()));
    let off = set(&world, &["--collector", "syslog.enabled=off"]);
    in_force(&world, off);
    state("disabled");
    world.append("a.log", "while it was off\n");
    let on = set(&world, &["--collector", "syslog=default"]);
    in_force(&world, on);
    state("running");
    world.append("a.log", "after\n");
    eventually("the next line", || (world.count("syslog") == 2).then_some(()));
    // A workspace that lost everything: its backup is older than the first line.
    stopped(&mut world, |workspace, backup| {
        copy(workspace, backup);
        let script = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.executescript('DELETE FROM sequences; \
                      DELETE FROM positions; DELETE FROM stored; DELETE FROM landed; DELETE FROM epochs')";
        let done = Command::new("python3").args(["-c", script]).arg(workspace.join("control.sqlite")).status();
        assert!(done.is_ok_and(|status| status.success()));
        for of in ["landing", "tables"] {
            drop(fs::remove_dir_all(workspace.join(of)));
        }
    });
    world.append("a.log", "last\n");
    eventually("what can be read again", || (world.count("syslog WHERE message = 'last'") == 1).then_some(()));
    alert(&world, "missing", "were acknowledged and are not here");
    eventually("the re-reading", || (world.count("lifecycle WHERE event = 'read_again'") == 1).then_some(()));
    world.append("a.log", "behind\n");
    eventually("the line behind", || (world.count("syslog WHERE message = 'behind'") == 1).then_some(()));
    let rows = world.query("SELECT message FROM syslog ORDER BY message");
    let messages: Vec<&str> = rows.iter().map(|row| row["message"].as_str().expect("text")).collect();
    assert_eq!(messages, ["after", "behind", "last"], "nothing of before, or while it was off");
}

#[test]
fn a_revision_that_was_lost_is_given_to_no_other_policy() {
    let mut world = World::new();
    stopped(&mut world, copy);
    let lost = set(&world, &["--collector", "crash_dumps.enabled=off"]);
    stopped(&mut world, |workspace, backup| copy(backup, workspace));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let made = set(&world, &["--collect", "off"]);
    assert!(made > lost, "{made} {lost}");
}

#[test]
fn a_revocation_that_a_restore_undid_comes_back_from_the_pair() {
    let mut first = World::new();
    let dir = first.path("workspace").display().to_string();
    first.enroll();
    let second = World::second(&["--pair-with", &dir]);
    stopped(&mut first, copy);
    first.workspace(&["agent", "revoke", listed(&first)["agent"].as_str().expect("an id"), "--reason", "stolen"]);
    let newest = set(&first, &["--collector", "crash_dumps.enabled=off"]);
    let revoked = |world: &World| listed(world)["state"] == "revoked";
    eventually("the pair to know", || (revoked(&second) && revision(&second) == newest).then_some(()));
    // Long ago.
    if !first.control_sql("UPDATE agents SET revoked = revoked - 3600 * 1000000000") {
        eprintln!("skipped: no python3");
        return;
    }
    second.control_sql("UPDATE agents SET revoked = revoked - 3600 * 1000000000");
    stopped(&mut first, |workspace, backup| copy(backup, workspace));
    eventually("the revocation to come back", || revoked(&first).then_some(()));
    eventually("the policy to come back", || (revision(&first) == newest).then_some(()));
    alert(&first, "restored", "admitted here until the other workspace of the pair reported it");
    alert(&first, "restored", "the other workspace of the pair has policy revision");
}

#[test]
fn a_revocation_that_a_restore_undid_comes_back_with_the_policy_that_an_agent_brings() {
    let mut world = World::new();
    world.enroll();
    let first = listed(&world)["agent"].clone();
    let _agent = world.run();
    let (identity, ca) = (format!("identity.dir={}", world.path("stolen").display()), world.path("workspace/ca.pem"));
    let (ca, token) = (ca.display().to_string(), world.token("token2").display().to_string());
    let enroll = ["enroll", "--workspace", &world.url(), "--ca", &ca, "--token-file", &token, "--set", &identity];
    assert!(world.vedette(&enroll).status.success());
    let agents = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
    let agents = agents.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
    let mut ids = agents.map(|agent| agent["agent"].as_str().expect("an id").to_owned());
    let stolen = ids.find(|id| first != **id).expect("there are two");
    stopped(&mut world, copy);
    world.workspace(&["agent", "revoke", &stolen, "--reason", "stolen"]);
    in_force(&world, revision(&world));
    stopped(&mut world, |workspace, backup| copy(backup, workspace));
    let is_revoked = || {
        let listed = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
        listed.lines().any(|line| line.contains(&stolen) && line.contains("\"revoked\""))
    };
    assert!(!is_revoked(), "the backup is older");
    // A later revision is in force before the agent polls.
    let latest = set(&world, &["--store", "common"]);
    eventually("the revocation to come back", || is_revoked().then_some(()));
    in_force(&world, latest);
    assert_eq!(revision(&world), latest);
    alert(&world, "restored", "until another agent brought the policy that names it");
}
