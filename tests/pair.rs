//! A pair of workspaces in one geography: shared state, and fail-over of agents.

use crate::{
    policy::{in_force, set},
    support::{ORG, World, eventually, refusal},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const QUICK: &str = "[workspace]\nfail_over_after = \"2s\"\nfail_back_after = \"4s\"\n";

/// A workspace, and its secondary, created from the primary's directory.
fn pair() -> (World, World) {
    let first = World::new();
    let dir = first.path("workspace").display().to_string();
    let second = World::second(&["--pair-with", &dir]);
    (first, second)
}

fn agents(world: &World) -> Vec<Value> {
    let listed = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
    listed.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

/// Makes the agent deliver to both, the first preferred.
fn both(first: &World, second: &World) -> u64 {
    let revision = set(first, &["--endpoint", &first.url(), "--endpoint", &second.url()]);
    eventually("the policy to be taken over", || {
        let shown: Value = serde_json::from_str(&second.workspace(&["policy", "show", "--org", ORG])).ok()?;
        (shown["revision"] == revision).then_some(())
    });
    revision
}

fn endpoint(world: &World) -> (String, String) {
    let status = world.status();
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    (text("endpoint"), text("endpoint_why"))
}

fn messages(world: &World) -> Vec<String> {
    let rows = world.query("SELECT message FROM syslog");
    rows.iter().map(|row| row["message"].as_str().expect("text").to_owned()).collect()
}

/// All landed objects below a directory, by key.
fn landed(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let root = world.path("workspace/landing");
    let (mut found, mut dirs) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                let key = path.strip_prefix(&root).expect("is below").to_owned();
                found.insert(key, fs::read(&path).expect("reads"));
            }
        }
    }
    found
}

#[test]
fn an_agent_goes_to_the_pair_when_the_first_is_away_and_back_when_it_works_for_a_while() {
    let (mut first, mut second) = pair();
    first.write_config(QUICK);
    first.enroll();
    let revision = both(&first, &second);
    let (one, two) = ((first.url(), first.address()), (second.url(), second.address()));
    let agent = first.run();
    in_force(&first, revision);
    let mut written = 0;
    let mut write = |first: &World, count: usize| {
        for _ in 0..count {
            written += 1;
            first.append("a.log", &format!("line {written}\n"));
        }
        written
    };
    let count = write(&first, 3);
    eventually("the first lines", || (first.count("syslog") == count).then_some(()));
    assert_eq!(endpoint(&first), (one.0.clone(), "preferred".to_owned()));

    // The primary is down.
    first.serve = None;
    write(&first, 3);
    eventually("the pair to have them", || (second.count("syslog") >= 3).then_some(()));
    let (url, why) = endpoint(&first);
    assert!(url == two.0 && why.contains(&one.0) && why.contains("has failed for"), "{url} {why}");
    let since = first.status()["endpoint_since"].as_str().map(str::to_owned);
    assert!(since.is_some_and(|since| since.starts_with("20") && since.ends_with('Z')));
    let log = fs::read_to_string(first.path("agent.log")).expect("reads");
    assert!(log.contains("switched to another endpoint"), "{log}");
    // Changes are refused at the secondary.
    for command in [
        &["policy", "set", "--org", ORG, "--reason", "x", "--collect", "off"][..],
        &["org", "add", "other", "--tier", "free"],
        &["token", "new", "--org", ORG],
    ] {
        assert!(refusal(&second.workspace_output(command), 1).contains("is the secondary of"), "{command:?}");
    }

    // Both are down: batches wait on disk.
    second.serve = None;
    write(&first, 5);
    eventually("them to wait", || (first.status()["queue"]["batches"].as_u64() > Some(0)).then_some(()));
    second.serve(&two.1);
    eventually("the pair to have them too", || (second.count("syslog") >= 8).then_some(()));

    // The primary is back: used again after a while.
    first.serve(&one.1);
    let began = Instant::now();
    let count = eventually("the way back", || {
        let count = write(&first, 1);
        std::thread::sleep(Duration::from_millis(200));
        (endpoint(&first).0 == one.0).then_some(count)
    });
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(endpoint(&first).1.contains("has accepted every batch"), "{:?}", endpoint(&first));
    eventually("the last line", || messages(&first).contains(&format!("line {count}")).then_some(()));
    drop(agent);
    // Each line is stored once: what both have is identical under the same key.
    let (on_first, on_second) = (landed(&first), landed(&second));
    let both: Vec<&PathBuf> = on_first.keys().filter(|key| on_second.contains_key(*key)).collect();
    assert!(both.iter().all(|key| on_first[*key] == on_second[*key]), "{both:?}");
    let lines: BTreeSet<String> = messages(&first).into_iter().chain(messages(&second)).collect();
    assert_eq!(lines.len() as u64, count, "{lines:?}");
    for messages in [messages(&first), messages(&second)] {
        assert_eq!(messages.iter().collect::<BTreeSet<_>>().len(), messages.len(), "{messages:?}");
    }
}

/// Heartbeats state the endpoint, since when and why.
#[test]
fn heartbeats_name_the_endpoint_and_a_policy_is_taken_over_by_the_second() {
    let (mut first, second) = pair();
    first.write_config(QUICK);
    first.enroll();
    let revision = both(&first, &second);
    let promote = |world: &World| world.workspace_output(&["pair-promote", "--reason", "a mistake"]);
    assert!(refusal(&promote(&second), 1).contains("is still running"));
    let (began, agent) = (Instant::now(), first.run());
    in_force(&first, revision);
    let beats = |world: &World| world.query("SELECT endpoint, endpoint_since, endpoint_why FROM heartbeats");
    eventually("a heartbeat", || (!beats(&first).is_empty()).then_some(()));
    let beat = &beats(&first)[0];
    assert_eq!((&beat["endpoint"], &beat["endpoint_why"]), (&first.url().into(), &"preferred".into()));
    assert!(beat["endpoint_since"].as_str().is_some_and(|since| since.starts_with("20")), "{beat}");
    // Switched off while the agent can reach only the secondary.
    let off = set(&first, &["--collect", "off"]);
    eventually("the second to have it", || {
        let shown: Value = serde_json::from_str(&second.workspace(&["policy", "show", "--org", ORG])).ok()?;
        (shown["revision"] == off).then_some(())
    });
    let on = set(&first, &["--collect", "on"]);
    eventually("the second to have that", || {
        let shown: Value = serde_json::from_str(&second.workspace(&["policy", "show", "--org", ORG])).ok()?;
        (shown["revision"] == on).then_some(())
    });
    first.serve = None;
    eventually("the agent to go to the second", || (endpoint(&first).0 == second.url()).then_some(()));
    in_force(&first, on);
    // At once, not with the next minute.
    eventually("a heartbeat at the second", || {
        let beat = beats(&second).into_iter().find(|beat| beat["endpoint"] == second.url())?;
        assert!(beat["endpoint_why"].as_str().is_some_and(|why| why.contains("has failed")), "{beat}");
        Some(())
    });
    assert!(began.elapsed() < Duration::from_secs(55), "{:?}", began.elapsed());
    drop(agent);
    // It is no longer served.
    assert!(promote(&second).status.success());
}

/// Each has what the other lacks: an agent with a lost queue reads nothing of it again.
#[test]
fn an_agent_whose_queue_was_lost_goes_by_what_either_of_the_pair_has() {
    let (mut first, second) = pair();
    first.write_config(QUICK);
    first.enroll();
    let revision = both(&first, &second);
    let address = first.address();
    let mut agent = first.run();
    in_force(&first, revision);
    first.append("a.log", "at the first\n");
    eventually("the line", || (first.count("syslog") == 1).then_some(()));
    first.serve = None;
    first.append("a.log", "at the second\n");
    eventually("the line", || (second.count("syslog") == 1).then_some(()));
    agent.terminate();
    first.serve(&address);
    for round in 0..3 {
        fs::remove_file(first.path("state/records.redb")).expect("removes");
        let mut agent = first.run();
        first.append("a.log", &format!("and later {round}\n"));
        let all = || [messages(&first), messages(&second)].concat();
        eventually("the line", || all().contains(&format!("and later {round}")).then_some(()));
        assert_eq!(all().len(), 3 + round, "{:?}", all());
        agent.terminate();
    }
}

/// Over the network, with a single-use token; revocations at either apply at both.
#[test]
fn a_pair_is_made_over_the_network_and_shares_revocations_both_ways() {
    let mut first = World::new();
    first.enroll();
    let (url, ca, token) = (first.url(), first.path("workspace/ca.pem"), first.path("pair-token"));
    let (ca, token) = (ca.display().to_string(), token.display().to_string());
    fs::write(&token, first.workspace(&["token", "pair"])).expect("writes");
    let with = |token: &str| -> Vec<String> {
        ["--pair-with", &url, "--pair-ca", &ca, "--pair-token-file", token].map(str::to_owned).to_vec()
    };
    let fresh = tempfile::tempdir().expect("temp dir");
    let init = |geo: &str, with: &[String]| {
        let (dir, mut command) =
            (fresh.path().join(geo), std::process::Command::new(crate::support::workspace_binary()));
        let output = command.args(["init", "--geo", geo, "--dir"]).arg(dir).args(with).output().expect("runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(init("australia", &with(&token)).contains("same geography"));
    assert!(init("europe", &with(&ca)).contains("token is unknown"));
    assert!(init("europe", &["--pair-with".to_owned(), url.clone()]).contains("--pair-ca"));
    let arguments = with(&token);
    let second = World::second(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(init("united-states", &with(&token)).contains("same geography"));
    fs::remove_dir_all(fresh.path().join("europe")).ok();
    assert!(init("europe", &with(&token)).contains("token is unknown, used up"));
    for name in ["ca.pem", "ca.key", "policy.key"] {
        let read = |world: &World| fs::read(world.path("workspace").join(name)).expect("reads");
        assert_eq!(read(&first), read(&second), "{name}");
    }
    let key = fs::metadata(second.path("workspace/ca.key")).expect("is there");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&key) & 0o777, 0o600);
    // Nobody without the pair's certificate gets anything; here, an agent.
    assert_eq!(asked_as_agent(&first), 403);

    let agent = agents(&second)[0]["agent"].as_str().expect("text").to_owned();
    second.workspace(&["agent", "revoke", &agent, "--reason", "stolen"]);
    eventually("the first to know", || (agents(&first)[0]["state"] == "revoked").then_some(()));
    let audited = format!("audit_log WHERE action = 'agent revoke' AND detail LIKE '{agent}: revoked at the other%'");
    assert_eq!(first.control_count(&audited), 1);
    // The other way round, for an agent that enrolls later.
    fs::remove_dir_all(first.path("identity")).expect("removes");
    first.enroll();
    let other = agents(&first).into_iter().find(|row| row["agent"] != agent.as_str()).expect("two agents");
    let id = other["agent"].as_str().expect("text");
    let at_second = |state: &str| agents(&second).iter().any(|row| row["agent"] == id && row["state"] == state);
    eventually("the second to have it", || at_second("never seen").then_some(()));
    first.workspace(&["agent", "revoke", id, "--reason", "stolen"]);
    eventually("the second to know", || at_second("revoked").then_some(()));
    // Only the primary enrolls.
    let refused = first.enroll_with(&second.url(), Path::new(&ca), &first.token("later"));
    assert!(!refused.status.success());
    // The primary is gone for good: the secondary stands alone.
    let early = second.workspace_output(&["pair-promote", "--reason", "a mistake"]);
    assert!(refusal(&early, 1).contains("is still running"));
    first.serve = None;
    second.workspace(&["pair-promote", "--reason", "the first has burnt down"]);
    second.workspace(&["policy", "set", "--org", ORG, "--collect", "off", "--reason", "a test"]);
    refusal(&second.workspace_output(&["pair-promote", "--reason", "again"]), 1);
}

/// Answer of `/v1/pair` to a client with an agent's certificate.
fn asked_as_agent(world: &World) -> u16 {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let read = |name: &str| fs::read(world.path("identity").join(name)).expect("is there");
    let settings = vedette_transport::tls::ClientSettings {
        ca_pem: read("ca.pem"),
        identity_pem: Some((read("cert.pem"), read("key.pem").into())),
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    runtime.block_on(async {
        let client = vedette_transport::tls::client(&settings).expect("builds");
        let request = client.post(format!("{}/v1/pair", world.url()));
        let answer = request.json(&serde_json::json!({"have": "", "revoked": []})).send().await;
        answer.expect("is answered").status().as_u16()
    })
}

/// A policy that names others: an impostor, and a workspace of the same authority in another geography.
#[test]
fn a_policy_that_points_elsewhere_gets_no_byte_across() {
    let first = World::new();
    first.write_config(QUICK);
    first.enroll();
    let mut abroad = World::new();
    abroad.serve = None;
    fs::remove_dir_all(abroad.path("workspace")).expect("removes");
    abroad.workspace(&["init", "--geo", "australia"]);
    for name in ["ca.pem", "ca.key"] {
        fs::copy(first.path("workspace").join(name), abroad.path("workspace").join(name)).expect("copies");
    }
    abroad.workspace(&["certificate"]);
    abroad.workspace(&["org", "add", ORG, "--tier", "free"]);
    abroad.serve("127.0.0.1:0");
    let impostor = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = impostor.local_addr().expect("is bound");
    let (came, bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (connections, seen) = (Arc::clone(&came), Arc::clone(&bytes));
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = impostor.accept() {
            connections.fetch_add(1, Ordering::AcqRel);
            drop(stream.set_read_timeout(Some(Duration::from_millis(200))));
            let mut block = [0; 16 << 10];
            while let Ok(got @ 1..) = stream.read(&mut block) {
                seen.fetch_add(got, Ordering::AcqRel);
            }
        }
    });
    let agent = first.run();
    for elsewhere in [format!("https://{address}"), abroad.url()] {
        let revision = set(&first, &["--endpoint", &elsewhere]);
        in_force(&first, revision);
        let landed = first.count("syslog");
        for number in 0..30 {
            first.append("a.log", &format!("line {number}\n"));
            std::thread::sleep(Duration::from_millis(100));
        }
        // It continues at the workspace of its enrollment.
        eventually("the lines", || (first.count("syslog") == landed + 30).then_some(()));
    }
    assert!(came.load(Ordering::Acquire) > 0, "it was tried");
    assert!(bytes.load(Ordering::Acquire) < 4096 * came.load(Ordering::Acquire), "a ClientHello each");
    assert_eq!(abroad.workspace(&["agents", "--org", ORG, "--format", "json"]), "");
    drop(agent);
    for wrong in ["http://plain:1", "https://host/path", "https://user@host", "nothing"] {
        let output = first.workspace_output(&["policy", "set", "--org", ORG, "--reason", "x", "--endpoint", wrong]);
        assert!(refusal(&output, 1).contains("--endpoint"), "{wrong}");
    }
}
