//! The workspace's checks before it acknowledges, with a test client and an enrolled agent's identity.

use crate::support::{ORG, World, refusal};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use std::{fs, process::Command};
use vedette_benches::peer::{Peer, client};
use vedette_transport::tls::{self, ClientSettings};
use vedette_wire::{
    AgentId, Compression, Header, LaneName, OrganizationId, Position, Problem, ProblemCode, body::Body, codec, frame,
    geo::WorkspaceGeo, record::HostLabel,
};

const FIRST: &str = "records/0000000000000007/1";

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_lands_once_and_what_is_wrong_is_refused_with_its_code() {
    let world = World::new();
    world.enroll();
    let peer = world.peer("identity");
    let first = peer.put(FIRST, peer.sealed("one", |_| ())).await;
    assert_eq!((first.status, first.body["duplicate"].as_bool()), (200, Some(false)), "{first:?}");
    assert_eq!(first.http, reqwest::Version::HTTP_2, "HTTP/2 is offered and taken");
    let repeat = peer.put(FIRST, peer.sealed("one", |_| ())).await;
    assert_eq!((repeat.status, repeat.body["duplicate"].as_bool()), (200, Some(true)), "{repeat:?}");
    assert_eq!(peer.put(FIRST, peer.sealed("other", |_| ())).await.code(), (409, "conflict"));
    let blob = peer.put("blobs/0000000000000007/1", peer.sealed("blob", |header| header.lane = LaneName::Blobs)).await;
    assert_eq!(blob.status, 200, "{blob:?}");

    let second = |change: fn(&mut Header)| {
        peer.sealed("two", |header| {
            header.seq = 2;
            change(header);
        })
    };
    let path = "records/0000000000000007/2";
    for (sealed, expected) in [
        (second(|header| header.agent = AgentId([9; 16])), (403, "identity")),
        (second(|header| header.organization = OrganizationId(Default::default())), (403, "identity")),
        (second(|header| header.geo = WorkspaceGeo::Australia), (421, "geo")),
        (second(|header| header.version = 9), (400, "version")),
        (second(|header| header.records = 5), (422, "shape")),
        (second(|header| header.seq = 3), (422, "key")),
        (second(|header| header.lane = LaneName::Blobs), (422, "key")),
        (b"no zstd".to_vec(), (422, "shape")),
        (vec![0; 17 << 20], (413, "size")),
        // 200 MB of zeros compress to 7 kB.
        (
            vedette_wire::seal::seal(&peer.header, &vec![0; 200_000_000], Compression::Zstd).expect("seals"),
            (413, "size"),
        ),
    ] {
        let answer = peer.put(path, sealed).await;
        assert_eq!(answer.code(), expected, "{answer:?}");
    }
    let wrong = peer.put_with(path, second(|_| ()), &BASE64_STANDARD.encode([0; 32])).await;
    assert_eq!(wrong.code(), (422, "digest"));
    assert_eq!(peer.put(path, second(|_| ())).await.status, 200, "none of that is in its way");
    assert_eq!(world.count("syslog"), 3, "one, two and the blob lane's");
}

/// Errors of handlers, of limits and of the router.
#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_problem_details_and_an_unread_body_is_discarded() {
    let world = World::new();
    world.enroll();
    let peer = world.peer("identity");
    let ca_pem = fs::read(world.path("identity").join("ca.pem")).expect("is there after enrollment");
    let settings = ClientSettings { ca_pem, geo: Some(WorkspaceGeo::Europe), ..ClientSettings::default() };
    let stranger = tls::client(&settings).expect("builds");
    let batch = peer.sealed("one", |_| ());
    let at = |path: &str| format!("{}{path}", peer.url);
    let large = vec![b' '; 12 << 20];
    for (request, status, code) in [
        (peer.client.get(at("/v1/nothing/here")), 404, ProblemCode::Path),
        (peer.client.post(at("/nothing")).body(large.clone()), 404, ProblemCode::Path),
        (peer.client.delete(at("/v1/enroll")), 405, ProblemCode::Method),
        (peer.client.get(at("/v1/policy/now")), 422, ProblemCode::Shape),
        (peer.client.get(at("/v1/policy/1")).header("user-agent", "curl"), 422, ProblemCode::Shape),
        (stranger.post(at("/v1/enroll")).body(large.clone()), 413, ProblemCode::Size),
        (stranger.post(at("/v1/enroll")).body("no JSON"), 422, ProblemCode::Shape),
        (stranger.put(at("/v1/records/0000000000000007/1")).body(large.clone()), 401, ProblemCode::Certificate),
        (stranger.get(at("/v1/positions")), 401, ProblemCode::Certificate),
        (stranger.post(at("/v1/renew")).body("{}"), 401, ProblemCode::Certificate),
        (peer.client.post(at("/v1/pair")).body("{}"), 403, ProblemCode::Identity),
        (peer.client.put(at("/v1/records/7/1")).body(batch.clone()), 415, ProblemCode::Encoding),
        (peer.client.put(at("/v1/records/7/1")).header("content-encoding", "zstd").body(batch), 422, ProblemCode::Key),
    ] {
        let answer = request.send().await.expect("the answer is seen, though the body was not read");
        assert_eq!(answer.status(), status, "{code}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{code}");
        let problem: Problem = answer.json().await.expect("is JSON");
        assert_eq!((problem.status, &problem.code), (status, &code), "{problem:?}");
        assert!(!problem.title.is_empty());
    }
    let health = stranger.get(at("/livez")).send().await.expect("anyone may ask");
    assert_eq!((health.status().as_u16(), health.text().await.expect("text").as_str()), (200, "ok\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_of_another_geography_is_not_talked_to() {
    let world = World::new();
    world.enroll();
    let peer = Peer { client: client(&world.path("identity"), WorkspaceGeo::Australia), ..world.peer("identity") };
    let request = peer.client.put(format!("{}/v1/{FIRST}", peer.url)).body(peer.sealed("one", |_| ()));
    let refused = request.send().await.expect_err("the handshake fails");
    let why = tls::root_cause(&refused);
    assert!(why.contains("not a workspace of geography australia"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_sends_too_much_is_told_when_to_come_again() {
    let mut world = World::new();
    world.serve.as_mut().expect("serves").terminate();
    world.serve_with(&world.address(), &["--batches-per-second", "1"]);
    world.enroll();
    let peer = world.peer("identity");
    let sealed = peer.sealed("one", |_| ());
    let mut refused = Vec::new();
    for _ in 0..5 {
        let answer = peer.put(FIRST, sealed.clone()).await;
        if answer.status != 200 {
            refused.push(answer);
        }
    }
    let first = refused.first().expect("five at once are more than one a second");
    assert_eq!((first.code(), first.retry_after.as_deref()), ((429, "rate"), Some("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_note_was_lost_with_the_power_is_found_at_the_next_start() {
    let mut world = World::new();
    world.enroll();
    let peer = world.peer("identity");
    assert_eq!(peer.put(FIRST, peer.sealed("one", |_| ())).await.status, 200);
    let address = world.address();
    world.serve.as_mut().expect("serves").kill();
    if !world.control_sql("DELETE FROM landed") {
        println!("skipped: there is no python3 to take the note away with");
        return;
    }
    for table in ["epochs", "sequences", "positions", "stored"] {
        assert!(world.control_sql(&format!("DELETE FROM {table}")));
    }
    assert_eq!(world.count("syslog"), 0, "nothing knows of it");
    world.serve(&address);
    assert_eq!(world.count("syslog WHERE raw = 'one'"), 1);
    assert_eq!(world.ledger()[0]["stored"], 1);
}

/// An acknowledged batch is on disk, and so is its directory entry (fsync(2): "calling fsync() does not necessarily ensure that
/// the entry in the directory … has also reached disk").
#[tokio::test(flavor = "multi_thread")]
async fn object_and_directory_are_synced_before_the_acknowledgement() {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no strace to watch the system calls with (apt-get install strace)");
        return;
    }
    let mut world = World::new();
    world.enroll();
    world.serve.as_mut().expect("serves").terminate();
    let trace = world.path("trace");
    let strace = ["strace", "-D", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", trace.to_str().expect("UTF-8")];
    world.serve_under(&strace, "127.0.0.1:0", &[]);
    let peer = world.peer("identity");
    assert_eq!(peer.put(FIRST, peer.sealed("one", |_| ())).await.status, 200);
    let calls = fs::read_to_string(&trace).expect("strace writes it");
    let dir = format!("{}/records/0000000000000007", peer.header.agent);
    let synced: Vec<&str> = calls.lines().filter(|line| line.contains(&dir)).collect();
    assert!(synced.iter().any(|line| line.contains("0000000000000001")), "the object: {calls}");
    assert!(synced.iter().any(|line| line.contains(&format!("{dir}>"))), "its directory: {calls}");
}

/// More slow bodies of one organization than are read at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_of_one_organization_do_not_stop_another() {
    let world = World::new();
    world.enroll();
    world.workspace(&["org", "add", "other", "--tier", "free"]);
    fs::write(world.path("token2"), world.workspace(&["token", "new", "--org", "other"])).expect("writes");
    let set = format!("identity.dir={}", world.path("identity2").display());
    let (ca, token) = (world.path("workspace/ca.pem"), world.path("token2"));
    let (ca, token) = (ca.to_str().expect("UTF-8"), token.to_str().expect("UTF-8"));
    let enroll = ["enroll", "--workspace", &world.url(), "--ca", ca, "--token-file", token, "--set", &set];
    assert!(world.vedette(&enroll).status.success());
    let mut requests = tokio::task::JoinSet::new();
    for connection in 0..3 {
        let client = client(&world.path("identity"), WorkspaceGeo::Europe);
        for seq in 0..60 {
            let never = futures::stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::io::Error>>();
            let request = client
                .put(format!("{}/v1/records/000000000000000{connection}/{seq}", world.url()))
                .header("content-encoding", "zstd")
                .body(reqwest::Body::wrap(http_body_util::StreamBody::new(never)));
            requests.spawn(request.send());
        }
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let peer = world.peer("identity2");
    let landing = peer.put(FIRST, peer.sealed("one", |_| ()));
    let landed = tokio::time::timeout(std::time::Duration::from_secs(10), landing).await.expect("in time");
    assert_eq!(landed.status, 200, "{landed:?}");
    let ended = requests.try_join_next();
    assert!(ended.is_none(), "the slow ones are still under way: {ended:?}");
}

#[test]
fn agents_compress_as_the_workspace_asks() {
    let mut world = World::new();
    world.serve.as_mut().expect("serves").terminate();
    world.serve_with(&world.address(), &["--compression", "gzip"]);
    world.append("a.log", "a line\n");
    world.enroll();
    let _agent = world.run();
    crate::support::eventually("the line", || (world.count("syslog") == 1).then_some(()));
    let mut frames = 0;
    let mut dirs = vec![world.path("workspace/landing")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("lists") {
            let path = entry.expect("reads").path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok((head, _)) = frame::parse_head(&fs::read(&path).expect("reads")) {
                assert_eq!(head.compression, Compression::Gzip, "{}", path.display());
                frames += 1;
            }
        }
    }
    assert!(frames > 0);
}

/// The workspace enforces the policy: nothing of an agent that ignores it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_forbids_is_refused_with_an_alert_and_judged_by_the_revision_that_it_was_observed_under() {
    let world = World::new();
    world.enroll();
    let peer = world.peer("identity");
    let set = |change: &[&str]| {
        let set = world.workspace(&[&["policy", "set", "--org", ORG, "--reason", "a test"], change].concat());
        set.trim().parse::<u64>().expect("a revision")
    };
    let put = async |seq: u64, revision: u64| {
        let sealed = peer.sealed("a line", |header| (header.seq, header.policy_revision) = (seq, revision));
        peer.put(&format!("records/0000000000000007/{seq}"), sealed).await
    };
    assert_eq!(put(1, 2).await.code(), (503, "policy_revision"), "there is none such yet");
    let off = set(&["--collect", "off"]);
    assert_eq!(put(1, 1).await.status, 200, "observed before it was switched off");
    assert_eq!(put(2, off).await.code(), (422, "policy"));
    assert_eq!(put(2, off).await.code(), (422, "policy"));
    assert_eq!(put(2, 0).await.code(), (422, "policy"), "there never was a revision 0");
    // A heartbeat is allowed.
    let (mut records, mut body) = (Vec::new(), Vec::new());
    codec::append_body(&Body::from(vedette_wire::body::Heartbeat::default()), &mut body);
    codec::append_record(0, 1, Position(0, 1), &body, &mut records);
    let header = Header { seq: 3, policy_revision: off, ..peer.header.clone() };
    let mut bare = Header { host: HostLabel::default(), ..header.clone() };
    bare.sources[0].collector = "agent".to_owned();
    // Unless the header reveals the host, by its name or by a source.
    let named = Header { host: header.host.clone(), ..bare.clone() };
    let sourced = Header { sources: header.sources.clone(), ..bare.clone() };
    let disguised = peer.sealed("a line", |header| *header = Header { seq: 3, ..bare.clone() });
    assert_eq!(peer.put("records/0000000000000007/3", disguised).await.code(), (422, "policy"));
    for (header, status) in [(named, 422), (sourced, 422), (bare, 200)] {
        let heartbeat = vedette_wire::seal::seal(&header, &records, Compression::Zstd).expect("seals");
        assert_eq!(peer.put("records/0000000000000007/3", heartbeat).await.status, status);
    }
    let partly = set(&["--collect", "on", "--collector", "syslog.enabled=off"]);
    assert_eq!(put(4, partly).await.code(), (422, "policy"), "a collector that is off");
    let on = set(&["--collector", "syslog=default"]);
    assert_eq!(put(4, on).await.status, 200);
    // A revision between two known ones was lost with a backup: either neighbour allows it.
    assert_eq!(put(6, off - 1).await.status, 200);
    assert_eq!(put(7, on + 1).await.code(), (503, "policy_revision"));
    let aged = format!("UPDATE policies SET issued = issued - 25 * 3600 * 1000000000 WHERE revision = {off}");
    let aged = world.control_sql(&aged);
    if aged {
        assert_eq!(put(5, 1).await.code(), (422, "policy"), "observed before it was switched off more than a day ago");
        assert_eq!(put(5, on).await.status, 200);
    }
    assert_eq!(world.count("syslog"), 3 + u64::from(aged), "none of what was refused");
    let alerts = world.workspace(&["alerts", "--org", ORG, "--format", "json"]);
    let alerts: Vec<Value> = alerts.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let once = alerts
        .iter()
        .find(|alert| alert["detail"] == format!("policy revision {off} forbids a syslog"))
        .expect("is raised");
    assert_eq!((&once["times"], &once["agent"]), (&1.into(), &peer.header.agent.to_string().into()));
    let host = format!("policy revision {off} forbids what the header says of the host");
    let repeated = alerts.iter().find(|alert| alert["detail"] == host).expect("is raised");
    assert_eq!(repeated["times"], 4, "one line for what happens again");
    assert!(alerts.len() >= 4, "{alerts:?}");
}

/// On an open connection, and for a held poll.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_refused_at_once_and_its_key_does_not_enroll_again() {
    let world = World::new();
    world.enroll();
    let peer = world.peer("identity");
    assert_eq!(peer.put(FIRST, peer.sealed("one", |_| ())).await.status, 200);
    let agent = peer.header.agent.to_string();
    // A poll that is held while the agent is revoked gets nothing.
    let waiting = peer.client.get(format!("{}/v1/policy/1", peer.url)).header("user-agent", "vedette/0.1.0").send();
    let waiting = tokio::spawn(waiting);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    world.workspace(&["agent", "revoke", &agent, "--reason", "stolen"]);
    world.workspace(&["policy", "set", "--org", ORG, "--collect", "off", "--reason", "a test"]);
    let answer = waiting.await.expect("no panic").expect("is answered");
    assert_eq!(answer.status().as_u16(), 403);
    let second = peer.sealed("two", |header| header.seq = 2);
    assert_eq!(peer.put("records/0000000000000007/2", second).await.code(), (403, "identity"));
    for path in ["policy/1", "positions"] {
        let request = peer.client.get(format!("{}/v1/{path}", peer.url)).header("user-agent", "vedette/0.1.0");
        assert_eq!(request.send().await.expect("is answered").status().as_u16(), 403, "{path}");
    }
    let agents: Value =
        serde_json::from_str(&world.workspace(&["agents", "--org", ORG, "--format", "json"])).expect("one");
    assert_eq!(agents["state"], "revoked");
    refusal(&world.workspace_output(&["agent", "revoke", &agent, "--reason", "again"]), 1);
    let token = world.token("another");
    let command = ["enroll", "--again", "--workspace", &world.url(), "--ca"].map(str::to_owned);
    let files = [world.path("workspace/ca.pem"), token].map(|path| path.display().to_string());
    let command: Vec<&str> =
        command.iter().chain([&files[0]]).map(String::as_str).chain(["--token-file", &files[1]]).collect();
    let message = refusal(&world.vedette(&command), 1);
    assert!(message.contains("this agent's key was revoked"), "{message}");
}
