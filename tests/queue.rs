//! `vedette queue`, and a queue that is damaged while lines wait in it.

use crate::support::{World, eventually, refusal};
use serde_json::Value;
use std::fs;

fn lines(world: &World, numbers: std::ops::Range<usize>) {
    let line = |number: usize| format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number:04}\n");
    world.append("a.log", &numbers.map(line).collect::<String>());
}

fn json(world: &World, arguments: &[&str]) -> Value {
    let output = world.vedette(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one object")
}

fn text(world: &World, arguments: &[&str]) -> String {
    let output = world.vedette(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A world whose agent has sent ten lines, holds ten more for a workspace that is down, and has stopped.
fn holding() -> World {
    let mut world = World::new();
    world.enroll();
    lines(&world, 0..10);
    let mut agent = world.run();
    eventually("ten lines", || (world.count("syslog") == 10).then_some(()));
    world.serve = None;
    lines(&world, 10..20);
    eventually("lines that wait", || {
        let syslog = world.status()["collectors"].as_array()?.iter().find(|c| c["id"] == "syslog")?.clone();
        (syslog["emitted"] == 20 && world.status()["queue"]["batches"].as_u64()? > 0).then_some(())
    });
    agent.terminate();
    world
}

fn all_lines_came_once(world: &World) {
    eventually("all lines", || {
        let rows = world.query("SELECT count(*) AS n, count(DISTINCT message) AS d FROM syslog");
        (rows[0]["d"] == 20).then(|| assert_eq!(rows[0]["n"], 20, "none came twice"))
    });
    for account in world.ledger() {
        assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
    }
}

#[test]
fn the_queue_is_shown_verified_and_exported_and_left_alone_while_an_agent_runs() {
    let mut world = holding();
    let status = json(&world, &["queue", "status", "--json"]);
    assert_eq!((&status["running"], &status["damaged_files"]), (&false.into(), &serde_json::json!([])));
    assert!(status["batches"].as_u64() > Some(0) && status["next_seq"].as_u64() > Some(1), "{status}");
    let verified = json(&world, &["queue", "verify", "--json"]);
    assert_eq!((&verified["batches"], &verified["damaged_slots"]), (&status["batches"], &serde_json::json!([])));
    let to = world.path("exported").display().to_string();
    text(&world, &["queue", "export", "--records", "--to", &to]);
    let exported: String = fs::read_dir(&to)
        .expect("lists")
        .map(|entry| fs::read_to_string(entry.expect("lists").path()).expect("reads"))
        .collect();
    let of_syslog = exported.lines().filter(|line| {
        let record: Value = serde_json::from_str(line).expect("one object a line");
        record["collector"] == "syslog"
    });
    assert_eq!(of_syslog.count(), 10);

    let agent = world.run();
    world.status();
    assert_eq!(json(&world, &["queue", "status", "--json"])["running"], true);
    for command in [&["queue", "verify"][..], &["queue", "quarantine", "list"]] {
        let message = refusal(&world.vedette(command), 1);
        assert!(message.contains("agent"), "{message}");
    }
    drop(agent);
    let address = world.address();
    world.serve(&address);
    let _agent = world.run();
    all_lines_came_once(&world);
}

#[test]
fn what_the_workspace_refused_is_shown_and_sent_again_or_deleted() {
    let mut world = holding();
    let agent = {
        let organization = json(&world, &["queue", "status", "--json"]);
        assert!(organization["epoch"].is_string());
        // The workspace accepts no batch of this size.
        let address = world.address();
        world.serve_with(&address, &["--batch-bytes-max", "300"]);
        world.run()
    };
    eventually("batches in quarantine", || {
        (world.status()["queue"]["quarantine"]["batches"].as_u64()? > 0 && world.status()["queue"]["batches"] == 0)
            .then_some(())
    });
    drop(agent);
    let list = text(&world, &["queue", "quarantine", "list", "--json"]);
    let batches: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(batches.iter().all(|batch| batch["reason"]["code"] == "size"), "{list}");
    // A split batch leaves an empty one that names its halves.
    let full = batches.iter().find(|batch| batch["records"].as_u64() > Some(0)).expect("records");
    let slot = full["slot"].to_string();
    let shown = text(&world, &["queue", "quarantine", "show", &slot]);
    assert!(shown.lines().next().is_some_and(|reason| reason.contains("too large")), "{shown}");
    assert!(shown.lines().count() > 1, "{shown}");
    refusal(&world.vedette(&["queue", "quarantine", "show", "999999"]), 2);
    assert!(text(&world, &["queue", "quarantine", "list"]).contains("too large"));

    text(&world, &["queue", "quarantine", "replay", "--all"]);
    assert_eq!(text(&world, &["queue", "quarantine", "list", "--json"]), "");
    world.serve = None;
    let address = world.address();
    world.serve(&address);
    let _agent = world.run();
    all_lines_came_once(&world);
}

#[test]
fn a_queue_that_was_harmed_costs_no_line_and_repeats_none() {
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 4] = [
        ("zero-filled", |path| {
            let length = fs::metadata(path).expect("is there").len();
            fs::write(path, vec![0; length as usize]).expect("writes");
        }),
        ("truncated", |path| {
            let file = fs::File::options().write(true).open(path).expect("opens");
            let length = file.metadata().expect("is there").len();
            file.set_len(length / 3).expect("truncates");
        }),
        ("a directory", |path| {
            fs::remove_file(path).expect("removes");
            fs::create_dir(path).expect("makes");
        }),
        ("deleted", |path| fs::remove_file(path).expect("removes")),
    ];
    for (name, harm) in harms {
        let mut world = holding();
        harm(&world.path("state/records.redb"));
        let _agent = world.run();
        // The agent answers while the workspace is down, and sources that can be read again wait for it.
        let status = world.status();
        let syslog = status["collectors"].as_array().and_then(|all| all.iter().find(|c| c["id"] == "syslog"));
        assert_eq!(syslog.expect("is there")["state"], "waiting", "{name}");
        let address = world.address();
        world.serve(&address);
        all_lines_came_once(&world);
    }
}
