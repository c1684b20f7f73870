//! The main job: records are observed, queued, shipped over TLS, landed, and queried.

use crate::support::{ORG, World, eventually};
use serde_json::Value;
use std::{collections::BTreeSet, fs, process::Command, time::Duration};

fn line(number: usize) -> String {
    format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number}\n")
}

fn numbers(world: &World) -> Vec<usize> {
    let rows = world.query("SELECT message FROM syslog WHERE app = 'test'");
    let number = |row: &Value| row["message"].as_str()?.strip_prefix("line ")?.parse().ok();
    rows.iter().map(|row| number(row).expect("a numbered line")).collect()
}

#[test]
fn every_kind_arrives_and_agrees_with_the_machine() {
    let world = World::new();
    world.append("a.log", "Nov 23 03:00:00 h1 sshd[12]: Accepted password for bob from 192.0.2.3 port 22 ssh2\n");
    world.enroll();
    let mut agent = world.run();
    eventually("the snapshot", || (world.count("processes") > 1 && world.count("syslog") == 1).then_some(()));
    let hosts = world.query("SELECT hostname, kernel, os_name FROM hosts");
    let uname = rustix::system::uname();
    assert_eq!(hosts[0]["hostname"], *uname.nodename().to_string_lossy());
    assert_eq!(hosts[0]["kernel"], *uname.release().to_string_lossy());
    let release = fs::read_to_string("/etc/os-release").expect("this is a Linux host");
    assert!(release.contains(hosts[0]["os_name"].as_str().expect("text")));
    let sql = format!("SELECT pid, ppid, \"user\", path FROM processes WHERE pid = {}", agent.id());
    let found = world.query(&sql);
    assert_eq!(found[0]["ppid"].as_u64(), Some(u64::from(std::process::id())));
    assert_eq!(found[0]["path"], fs::canonicalize(crate::support::VEDETTE).expect("is there").display().to_string());
    let whole = "SELECT count(*) AS n, max(snapshot_count) AS c FROM processes WHERE change = 'snapshot'";
    let whole = world.query(whole);
    assert_eq!(whole[0]["n"], whole[0]["c"], "the snapshot is whole");
    assert_eq!(world.count("addresses WHERE address = '127.0.0.1' AND prefix = 8"), 1);
    assert!(world.count("heartbeats") >= 1);
    let login = world.query("SELECT login_user, login_source, login_success, class_uid FROM syslog");
    assert_eq!((&login[0]["login_user"], &login[0]["class_uid"]), (&"bob".into(), &3002.into()));
    assert_eq!(world.count("authentication WHERE login_source = '192.0.2.3'"), 1);
    let status = world.status();
    assert_eq!(status["queue"]["batches"], 0);
    assert!(status["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    let states: Vec<(&str, &str)> = status["collectors"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|collector| (collector["id"].as_str().expect("text"), collector["state"].as_str().expect("text")))
        .collect();
    assert!(states.contains(&("syslog", "running")) && states.contains(&("processes", "running")), "{states:?}");
    let agents = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
    let agents: Value = serde_json::from_str(&agents).expect("one agent, one line");
    assert_eq!((&agents["agent"], &agents["state"]), (&status["agent"], &"active".into()));
    let stopping = agent.terminate();
    assert!(stopping < Duration::from_secs(5), "{stopping:?}");
    eventually("the stop's record", || {
        // Even root may lack a permission, which is reported.
        let events = world.query("SELECT event FROM lifecycle WHERE event <> 'collector_error' ORDER BY time");
        let events: Vec<&str> = events.iter().filter_map(|row| row["event"].as_str()).collect();
        (events == ["start", "configuration", "stop"]).then_some(())
    });
}

#[test]
fn kill_9_and_rotation_lose_and_repeat_nothing() {
    let world = World::new();
    world.write_config("\n[transport]\nbatch_age_max = \"50ms\"\n");
    world.enroll();
    let mut written = 0;
    for round in 0..6 {
        let mut agent = world.run();
        if round == 0 {
            // A file that an agent has never seen is read from its begin only under the name that the configuration has.
            world.append("a.log", &line(0));
            written = 1;
            eventually("the first line", || (numbers(&world).len() == 1).then_some(()));
        }
        for _ in 0..20 {
            let text: String = (written..written + 50).map(line).collect();
            world.append("a.log", &text);
            written += 50;
            std::thread::sleep(Duration::from_millis(10));
        }
        if round % 2 == 0 {
            let log = world.path("log");
            fs::rename(log.join("a.log"), log.join(format!("a.log.{round}"))).expect("renames");
        }
        agent.kill();
    }
    let _agent = world.run();
    eventually("the last line", || (numbers(&world).len() >= written).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let found = numbers(&world);
    let distinct: BTreeSet<usize> = found.iter().copied().collect();
    assert_eq!((found.len(), distinct), (written, (0..written).collect()));
    for account in world.ledger() {
        assert_eq!((&account["missing"], &account["repeated"]), (&0.into(), &0.into()), "{account}");
        assert_eq!(account["gaps"], serde_json::json!([]), "{account}");
        let whole = account["collector"] != "syslog" || account["stored"] == written;
        assert!(whole, "{account}");
    }
}

#[test]
fn an_outage_of_the_workspace_is_waited_out_and_the_stop_does_not_need_the_network() {
    let mut world = World::new();
    world.enroll();
    let address = world.address();
    world.serve.as_mut().expect("serves").terminate();
    let mut agent = world.run();
    world.append("a.log", &(0..100).map(line).collect::<String>());
    eventually("the queue's filling", || (world.status()["queue"]["batches"].as_u64()? > 0).then_some(()));
    eventually("the word of it in status", || world.status()["delivery"]["last_error"].as_str().map(|_| ()));
    let stopping = agent.terminate();
    assert!(stopping < Duration::from_secs(5), "{stopping:?}");
    world.append("a.log", &(100..200).map(line).collect::<String>());
    let _agent = world.run();
    world.serve(&address);
    eventually("the lines", || (numbers(&world).len() >= 200).then_some(()));
    let found: BTreeSet<usize> = numbers(&world).into_iter().collect();
    assert_eq!(found, (0..200).collect());
}

#[test]
fn gzip_is_taken_as_well_and_another_organization_sees_nothing() {
    let world = World::new();
    world.write_config("\n[transport]\ncompression = \"gzip\"\n");
    world.workspace(&["org", "add", "other", "--tier", "standard"]);
    world.enroll();
    world.append("a.log", &line(0));
    let _agent = world.run();
    eventually("the line", || (numbers(&world) == [0]).then_some(()));
    let theirs =
        world.workspace(&["query", "--log", "error", "--org", "other", "--format", "csv", "SELECT * FROM syslog"]);
    assert!(theirs.starts_with("organization,") && theirs.lines().count() == 1, "the head alone: {theirs}");
    assert_eq!(world.workspace(&["agents", "--org", "other", "--format", "json"]), "");
}

#[test]
fn a_workspace_without_a_certificate_or_with_another_agents_batch_says_no() {
    let world = World::new();
    world.enroll();
    let curl = |arguments: &[&str]| {
        let output =
            Command::new("curl").args(["-sS", "--cacert"]).arg(world.path("workspace/ca.pem")).args(arguments).output();
        output.ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let url = format!(
        "https://localhost:{}/v1/records/0000000000000001/1",
        world.address().rsplit(':').next().expect("port")
    );
    let Some(none) = curl(&["-X", "PUT", "--data", "x", &url]) else {
        println!("skipped: there is no curl to try it with (apt-get install curl)");
        return;
    };
    assert!(none.contains("\"code\":\"certificate\""), "{none}");
    let identity = world.path("identity");
    let (cert, key) = (identity.join("cert.pem").display().to_string(), identity.join("key.pem").display().to_string());
    let with = ["--cert", &cert, "--key", &key, "-X", "PUT", "--data", "x"];
    let encoding = curl(&[&with[..], &[&url]].concat()).expect("curl is there");
    assert!(encoding.contains("\"code\":\"encoding\""), "{encoding}");
    let digest = curl(&[&with[..], &["-H", "content-encoding: zstd", &url]].concat()).expect("curl is there");
    assert!(digest.contains("\"code\":\"digest\""), "{digest}");
    let nowhere = curl(&[&with[..], &[&url.replace("/v1/", "/v2/")]].concat()).expect("curl is there");
    assert!(nowhere.contains("\"code\":\"path\""), "{nowhere}");
}
