//! Artifact requests: with collection on and off, on both tiers, and only where the host allows it.

use crate::{
    policy::set,
    support::{ORG, World, eventually, refusal},
};
use serde_json::Value;
use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// A world whose host permits artifacts of one directory, which holds one file.
fn world(tier: &str, collect: &str, bytes: usize) -> (World, Vec<u8>) {
    let world = World::new();
    set(&world, &["--tier", tier, "--collect", collect]);
    let dir = world.path("evidence");
    fs::create_dir(&dir).expect("makes");
    let mut random = fastrand::Rng::with_seed(7);
    let content: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
    fs::write(dir.join("file"), &content).expect("writes");
    fs::write(world.path("shadow"), "secret").expect("writes");
    world.write_config(&format!("\n[collectors.artifacts]\nallow = [\"{}/*\"]\n", dir.display()));
    world.enroll();
    (world, content)
}

fn agent(world: &World) -> String {
    world.status()["agent"].as_str().expect("an id").to_owned()
}

pub(crate) fn request(world: &World, agent: &str, path: &Path) -> String {
    let path = path.display().to_string();
    let id = world
        .workspace(&["artifact", "request", "--org", ORG, "--agent", agent, "--path", &path, "--reason", "an alert"]);
    id.trim().to_owned()
}

fn artifact_row(world: &World, id: &str) -> Value {
    let all = world.workspace(&["artifact", "list", "--org", ORG, "--format", "json"]);
    let all = all.lines().map(|line| serde_json::from_str::<Value>(line).expect("an object"));
    all.into_iter().find(|line| line["id"] == id).expect("is listed")
}

pub(crate) fn wait_for_state(world: &World, id: &str, state: &str) -> Value {
    eventually(state, || Some(artifact_row(world, id)).filter(|line| line["state"] == state))
}

#[test]
fn an_allowed_file_arrives_on_both_tiers_with_collection_on_or_off_and_no_other_does() {
    for (tier, collect) in [("free", "off"), ("free", "on"), ("standard", "on")] {
        let (world, content) = world(tier, collect, 3 << 20);
        let mut running = world.run();
        eventually("the policy", || (world.status()["policy"]["collect"] == (collect == "on")).then_some(()));
        let path = world.path("evidence/file");
        let id = request(&world, &agent(&world), &path);
        let line = wait_for_state(&world, &id, "complete");
        let to = world.path("fetched");
        let metadata =
            world.workspace(&["artifact", "get", "--org", ORG, "--id", &id, "--to", &to.display().to_string()]);
        assert!(fs::read(&to).expect("is there") == content, "the same bytes");
        let (metadata, meta): (Value, _) =
            (serde_json::from_str(&metadata).expect("an object"), fs::metadata(&path).expect("is there"));
        assert_eq!((&metadata["mode"], &metadata["user_id"]), (&meta.mode().into(), &meta.uid().into()), "{metadata}");
        assert_eq!(metadata["modified"], meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
        assert_eq!((&line["file"], &line["reason"]), (&metadata, &"an alert".into()));
        refusal(
            &world.workspace_output(&["artifact", "get", "--org", ORG, "--id", &id, "--to", &to.display().to_string()]),
            1,
        );

        assert!(fs::read(&to).expect("is there") == content, "an existing output file is not overwritten");

        let id = request(&world, &agent(&world), &world.path("shadow"));
        let line = wait_for_state(&world, &id, "refused");
        assert!(line["detail"].as_str().is_some_and(|why| why.contains("not on this host's list")), "{line}");
        let get = ["artifact", "get", "--org", ORG, "--id", &id, "--to", &world.path("no").display().to_string()];
        assert!(refusal(&world.workspace_output(&get), 1).contains("the host refused the request"));
        if collect == "off" {
            assert_eq!((world.count("heartbeats"), world.count("syslog")), (0, 0), "and nothing else came");
            assert_eq!(world.workspace(&["alerts", "--org", ORG, "--format", "json"]), "");
            assert!(world.query("SELECT hostname FROM artifacts WHERE hostname <> ''").is_empty());
        }
        let states = world.status()["collectors"].as_array().cloned().unwrap_or_default();
        let artifacts = states.iter().find(|collector| collector["id"] == "artifacts").expect("is there");
        assert_eq!((&artifacts["state"], &artifacts["class"]), (&"running".into(), &"artifact".into()));
        running.terminate();
    }
}

#[test]
fn a_request_waits_for_an_agent_that_is_away_and_a_kill_in_the_middle_costs_nothing() {
    let (mut world, content) = world("free", "on", 40 << 20);
    let mut running = world.run();
    let agent_id = agent(&world);
    running.terminate();
    let id = request(&world, &agent_id, &world.path("evidence/file"));
    for _ in 0..3 {
        let mut running = world.run();
        eventually("a start", || world.vedette(&["status"]).status.success().then_some(()));
        std::thread::sleep(std::time::Duration::from_millis(700));
        running.kill();
    }
    let address = world.address();
    world.serve = None;
    let running = world.run();
    world.serve(&address);
    wait_for_state(&world, &id, "complete");
    let to = world.path("fetched");
    world.workspace(&["artifact", "get", "--org", ORG, "--id", &id, "--to", &to.display().to_string()]);
    assert!(fs::read(&to).expect("is there") == content, "the same bytes");
    drop(running);
}

#[test]
fn policy_limits_requests_and_cannot_switch_them_off_and_a_forged_one_is_not_answered() {
    let (world, _) = world("free", "on", 100);
    let agent_id = {
        let mut running = world.run();
        let id = agent(&world);
        running.terminate();
        id
    };
    let off = ["policy", "set", "--org", ORG, "--reason", "a test", "--collector", "artifacts.enabled=off"];
    assert!(refusal(&world.workspace_output(&off), 1).contains("cannot be switched off by policy"));
    let path = world.path("evidence/file");
    set(&world, &["--artifacts", "bytes_max=99"]);
    let too_large = request(&world, &agent_id, &path);
    let forged = request(&world, &agent_id, &path);
    let expired = request(&world, &agent_id, &path);
    let is_forged = world.control_sql(&format!(
        "UPDATE artifacts SET document = replace(document, 'file', 'else') WHERE id = '{forged}'"
    )) && world.control_sql(&format!("UPDATE artifacts SET expires = 1 WHERE id = '{expired}'"));
    let running = world.run();
    assert!(
        wait_for_state(&world, &too_large, "refused")["detail"]
            .as_str()
            .is_some_and(|why| why.contains("99 are allowed"))
    );
    if is_forged {
        eventually("the forged request to be rejected", || {
            world.agent_log().contains("is not signed by the workspace's key").then_some(())
        });
        assert_eq!(
            (&artifact_row(&world, &forged)["state"], &artifact_row(&world, &expired)["state"]),
            (&"requested".into(), &"expired".into())
        );
    }
    let revision = set(&world, &["--artifacts", "paths=/nowhere/*,bytes_max=1MiB"]);
    eventually("the policy", || (world.status()["policy"]["revision"] == revision).then_some(()));
    let elsewhere = request(&world, &agent_id, &path);
    let why = wait_for_state(&world, &elsewhere, "refused")["detail"].to_string();
    assert!(why.contains("not among the paths that the policy allows"), "{why}");
    let revision = set(&world, &["--artifacts", "paths=,per_hour_max=2"]);
    eventually("the policy", || (world.status()["policy"]["revision"] == revision).then_some(()));
    let many = request(&world, &agent_id, &path);
    assert!(wait_for_state(&world, &many, "refused")["detail"].as_str().is_some_and(|why| why.contains("2 per hour")));
    // An unknown agent, and another organization.
    let unknown = ["artifact", "request", "--org", ORG, "--agent", &"0".repeat(32), "--path", "/x", "--reason", "r"];
    assert!(refusal(&world.workspace_output(&unknown), 1).contains("has no agent"));
    world.workspace(&["org", "add", "other", "--tier", "free"]);
    let theirs = ["artifact", "request", "--org", "other", "--agent", &agent_id, "--path", "/x", "--reason", "r"];
    assert!(refusal(&world.workspace_output(&theirs), 1).contains("has no agent"));
    assert_eq!(world.workspace(&["artifact", "list", "--org", "other", "--format", "json"]), "");
    drop(running);
}
