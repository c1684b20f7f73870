//! No peer or organization stops the others: bombs, floods of connections and of junk, fragmented batches.

use crate::support::{World, eventually, within};
use std::{
    fs,
    io::{Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_benches::peer;

/// Memory of `serve` in these tests.
const MEMORY_BYTES: u64 = 1 << 30;
/// Landed batches that are not in their tables yet.
const PENDING: &str = "landed WHERE state = 0";

/// A workspace with an organization beside the agent's own, and an agent of each.
fn two_organizations(more: &[&str]) -> World {
    let mut world = World::new();
    world.serve.as_mut().expect("serves").terminate();
    world.serve_with(&world.address(), more);
    world.enroll();
    world.workspace(&["org", "add", "other", "--tier", "free"]);
    fs::write(world.path("token2"), world.workspace(&["token", "new", "--org", "other"])).expect("writes");
    let set = format!("identity.dir={}", world.path("identity2").display());
    let (ca, token) = (world.path("workspace/ca.pem"), world.path("token2"));
    let (ca, token) = (ca.to_str().expect("UTF-8"), token.to_str().expect("UTF-8"));
    let enroll = ["enroll", "--workspace", &world.url(), "--ca", ca, "--token-file", token, "--set", &set];
    assert!(world.vedette(&enroll).status.success());
    world
}

/// An idle connection.
fn silent(world: &World) -> std::io::Result<peer::Silent> {
    peer::silent(&fs::read(world.path("workspace/ca.pem")).expect("is there"), &world.address())
}

/// Peak resident set of `serve`.
fn peak_bytes(world: &World) -> u64 {
    let id = world.serve.as_ref().expect("serves").id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")).expect("says");
    1024 * peak.trim().parse::<u64>().expect("a number")
}

fn path(seq: u64) -> String {
    format!("records/0000000000000007/{seq}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_becomes_is_bounded_and_the_memory_of_serve_with_it() {
    let world = two_organizations(&["--memory", "1GiB"]);
    let (loud, quiet) = (world.peer("identity"), world.peer("identity2"));
    // 10 kB that would become 3 GB of host names.
    let long = loud.lines(1, 3000, "x", 1, |header| header.host.hostname = "h".repeat(1 << 20));
    assert!(long.len() < 100_000);
    assert_eq!(loud.put(&path(1), long).await.code(), (422, "shape"));
    let escape = loud.lines(1, 1, "x", 1, |header| header.host.hostname = "a\u{1b}[2Jb".to_owned());
    assert_eq!(loud.put(&path(1), escape).await.code(), (422, "shape"));
    // An id that would be copied for each position that it skips.
    let skipping = loud.lines(1, 1, "x", 1, |header| {
        header.sources[0].id = "i".repeat(1 << 20);
        header.sources[0].dropped = vec![(5, 6, 1); 100_000];
    });
    assert_eq!(loud.put(&path(1), skipping).await.code(), (422, "shape"));
    // A source name that is repeated in each of its rows.
    let named = loud.lines(1, 100_000, "x", 1, |header| header.sources[0].name = Some("n".repeat(10_000)));
    assert_eq!(loud.put(&path(1), named).await.code(), (413, "size"));
    // At the maximum: lines of 1 MiB, and a million short ones.
    let mut total = 0;
    for seq in 1..=12 {
        let (count, line) = if seq % 2 == 0 { (40, "l".repeat(1 << 20)) } else { (200_000, "short".to_owned()) };
        let answer = loud.put(&path(seq), loud.lines(seq, count, &line, 1, |_| ())).await;
        assert_eq!(answer.status, 200, "{seq}: {answer:?}");
        total += count;
    }
    assert_eq!(quiet.put(&path(1), quiet.sealed("quiet", |_| ())).await.status, 200);
    // Ends the wait for a shared commit.
    assert!(world.control_sql("UPDATE landed SET landed = 0"));
    let limit = Duration::from_secs(300);
    within(limit, "everything is in the tables", || (world.control_count(PENDING) == 0).then_some(()));
    assert_eq!(world.count("syslog"), total);
    // A nested loop over half a million rows, and statements that are too deep or make large values.
    let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    let long = format!("SELECT {}", "1 + ".repeat(20_000)) + "1";
    let longest = format!("SELECT {}", "1 + ".repeat(1000)) + "1";
    let many =
        format!("SELECT length({}message{}) FROM syslog", "replace(".repeat(12), ", 'l', 'llllllll')".repeat(12));
    for (sql, most) in [
        ("SELECT count(*) FROM syslog a JOIN syslog b ON a.message < b.message || b.raw", Duration::from_secs(12)),
        (deep.as_str(), Duration::from_secs(5)),
        (long.as_str(), Duration::from_secs(12)),
        (longest.as_str(), Duration::from_secs(12)),
        (many.as_str(), Duration::from_secs(12)),
    ] {
        let began = Instant::now();
        let dir = world.path("workspace").display().to_string();
        let query = ["query", "--org", crate::support::ORG, "--dir", &dir, "--seconds-max", "3", sql];
        let output = std::process::Command::new(crate::support::workspace_binary()).args(query).output().expect("runs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some(), "no signal ended it: {:?} {message}", output.status);
        assert!(began.elapsed() < most, "{:?}: {}", began.elapsed(), &sql[..60.min(sql.len())]);
    }
    let peak = peak_bytes(&world);
    println!("VmHWM {} MiB of {} MiB", peak >> 20, MEMORY_BYTES >> 20);
    assert!(peak < MEMORY_BYTES, "{peak}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landed_batch_that_cannot_be_read_is_set_aside_with_an_alert_and_the_rest_goes_on() {
    let world = two_organizations(&[]);
    let peer = world.peer("identity");
    for seq in 1..=3 {
        assert_eq!(peer.put(&path(seq), peer.lines(seq, 1, "x", 1, |_| ())).await.status, 200);
    }
    let landed =
        std::process::Command::new("find").arg(world.path("workspace/landing")).args(["-name", "*0002"]).output();
    let landed = String::from_utf8(landed.expect("runs").stdout).expect("UTF-8");
    let mut bytes = fs::read(landed.trim()).expect("is there");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(landed.trim(), bytes).expect("writes");
    assert!(world.control_sql("UPDATE landed SET landed = 0"));
    eventually("everything else is in the tables", || (world.control_count(PENDING) == 0).then_some(()));
    assert_eq!(world.count("syslog"), 2);
    let alerts = world.workspace(&["alerts", "--org", crate::support::ORG, "--format", "json"]);
    assert!(alerts.contains("unreadable"), "{alerts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ragged_batches_of_one_organization_do_not_keep_another_waiting() {
    let world = two_organizations(&[]);
    let (loud, quiet) = (world.peer("identity"), world.peer("identity2"));
    let most = 2_000;
    assert_eq!(loud.put(&path(1), loud.lines(1, most + 1, "x", 2, |_| ())).await.code(), (413, "size"));
    let batches: Vec<Vec<u8>> = (1..=48).map(|seq| loud.lines(seq, most, "x", 2, |_| ())).collect();
    let loud = Arc::new(loud);
    let mut sending = tokio::task::JoinSet::new();
    for (seq, sealed) in (1..).zip(batches) {
        let loud = Arc::clone(&loud);
        sending.spawn(async move { loud.put(&path(seq), sealed).await.status });
    }
    let (mut longest, mut seq) = (Duration::ZERO, 0);
    while !sending.is_empty() {
        while sending.try_join_next().is_some_and(|status| status.expect("no panic") == 200) {}
        let began = Instant::now();
        seq += 1;
        let sealed = quiet.lines(seq, 1, "quiet", 1, |header| header.lowest_held = seq);
        assert_eq!(quiet.put(&path(seq), sealed).await.status, 200);
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{seq} batches of the quiet one, the longest wait {longest:?}");
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn livez_says_that_tables_cannot_be_written_and_that_they_can() {
    let world = two_organizations(&[]);
    let peer = world.peer("identity");
    let tables = world.path("workspace/tables");
    drop(fs::remove_dir_all(&tables));
    fs::write(&tables, "in the way").expect("writes");
    assert_eq!(peer.put(&path(1), peer.sealed("one", |_| ())).await.status, 200);
    assert!(world.control_sql("UPDATE landed SET landed = 0"));
    let message = async |what: &str| {
        let began = Instant::now();
        loop {
            let answer = peer.client.get(format!("{}/livez", peer.url)).send().await.expect("is answered");
            assert_eq!(answer.status(), 200, "the others go on");
            let text = answer.text().await.expect("text");
            if text.contains(what) || began.elapsed() > Duration::from_secs(20) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let text = message("cannot be written").await;
    assert!(text.starts_with("ok\norganizations whose tables cannot be written: 1, for"), "{text}");
    fs::remove_file(&tables).expect("removes");
    eventually("the line", || (world.count("syslog") == 1).then_some(()));
    let began = Instant::now();
    while message("ok").await != "ok\n" {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_sender_goes_away_lands_and_gives_back_what_it_took() {
    let world = two_organizations(&[]);
    let peer = world.peer("identity");
    let mut went_away = Vec::new();
    for seq in 1..=8 {
        // Milliseconds to send, and many more to check.
        let sealed = peer.lines(seq, 100_000, "short", 1, |_| ());
        let answer = tokio::time::timeout(Duration::from_millis(20 * seq), peer.put(&path(seq), sealed)).await;
        if answer.is_err() {
            went_away.push(seq);
        }
    }
    let keys = went_away.iter().map(|seq| format!("key LIKE '%000{seq}'")).collect::<Vec<_>>().join(" OR ");
    let landed = format!("landed WHERE {keys}");
    eventually("one that nobody waits for lands", || (world.control_count(&landed) > 0).then_some(()));
    for seq in 11..=30 {
        assert_eq!(peer.put(&path(seq), peer.lines(seq, 1, "x", 1, |_| ())).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_shut_nobody_out() {
    let world = two_organizations(&[]);
    let peer = world.peer("identity");
    let mut held: Vec<_> = (0..1000).filter_map(|_| silent(&world).ok()).collect();
    assert!(held.len() > 100, "{} connections", held.len());
    let began = Instant::now();
    assert_eq!(peer.put(&path(1), peer.sealed("one", |_| ())).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // Idle connections are closed.
    let (mut last, began) = (held.pop().expect("one"), Instant::now());
    assert!(matches!(last.read(&mut [0; 10]), Ok(0) | Err(_)));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(held);
    // A slow body of an unknown peer.
    let mut slow = silent(&world).expect("connects");
    let head = "POST /v1/enroll HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    slow.write_all(head.as_bytes()).expect("writes");
    let (mut answer, began) = (Vec::new(), Instant::now());
    drop(slow.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(answer.is_empty() || answer.contains(" 408 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_enrollments_do_not_stop_honest_ones() {
    let world = two_organizations(&[]);
    let peer = world.peer("identity");
    let junk = serde_json::json!({"token": "nonsense", "csr": "", "hostname": "h", "version": "1"});
    let mut codes = std::collections::BTreeMap::new();
    for _ in 0..200 {
        *codes.entry(peer.post("enroll", &junk).await.0).or_insert(0) += 1;
    }
    assert!(codes.contains_key(&403) && codes.contains_key(&429), "{codes:?}");
    let (status, problem) = peer.post("enroll", &serde_json::json!({"token": 5})).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("shape")), "{problem}");
    let (status, problem) = peer.post("pair/join", &serde_json::json!("junk")).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("shape")), "{problem}");
    for number in 0..12 {
        fs::write(world.path("token3"), world.workspace(&["token", "new", "--org", "other"])).expect("writes");
        let set = format!("identity.dir={}", world.path(&format!("honest{number}")).display());
        let (ca, token) = (world.path("workspace/ca.pem"), world.path("token3"));
        let (ca, token) = (ca.to_str().expect("UTF-8"), token.to_str().expect("UTF-8"));
        let enroll = ["enroll", "--workspace", &world.url(), "--ca", ca, "--token-file", token, "--set", &set];
        let output = world.vedette(&enroll);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
