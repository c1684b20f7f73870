//! Two organizations in one workspace whose agents have the same key, and so the same id, host name, epochs, sequences and
//! sources: no request of one returns, counts or overwrites anything of the other.

use crate::support::{ORG, World, refusal};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};
use vedette_benches::peer::Peer;
use vedette_wire::{
    CursorUpdate, Header, LaneName, Policy,
    body::Artifact,
    policy::{ArtifactRequest, Directives},
    reply::Positions,
};

/// Rounds of random actions of two agents.
const ROUNDS: u64 = 120;

#[tokio::test(flavor = "multi_thread")]
async fn two_organizations_whose_agents_collide_in_everything_do_not_see_each_other() {
    let world = World::new();
    world.workspace(&["org", "add", "other", "--tier", "free"]);
    world.enroll();
    let peers = two_agents_of_one_key(&world);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let landed = rounds(&peers, &mut random).await;
    for (who, landed) in landed.iter().enumerate() {
        sees_its_own_alone(&world, &peers, who, landed);
    }
    what_else_can_be_asked(&world, &peers).await;
    // Revoked in both, since it is the same stolen key.
    world.workspace(&["agent", "revoke", &peers[0].1.header.agent.to_string(), "--reason", "a copy"]);
    for (_, peer) in &peers {
        let answer = peer.put("records/0000000000000007/99", peer.sealed("x", |header| header.seq = 99)).await;
        assert_eq!(answer.code(), (403, "identity"));
    }
}

/// Agents of two organizations with the same key.
fn two_agents_of_one_key(world: &World) -> [(&'static str, Peer); 2] {
    // The other organization's agent has a copy of the key.
    fs::create_dir(world.path("identity-other")).expect("makes");
    fs::copy(world.path("identity/key.pem"), world.path("identity-other/key.pem")).expect("copies");
    let token = world.path("token-other");
    fs::write(&token, world.workspace(&["token", "new", "--org", "other"])).expect("writes");
    let config = world.path("vedette.toml");
    let text = fs::read_to_string(&config).expect("reads");
    fs::write(&config, text.replace("/identity\"", "/identity-other\"")).expect("writes");
    let enrolled = world.enroll_with(&world.url(), &world.path("workspace/ca.pem"), &token);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));

    let peers = [(ORG, world.peer("identity")), ("other", world.peer("identity-other"))];
    assert_eq!(peers[0].1.header.agent, peers[1].1.header.agent, "the same id");
    assert_ne!(peers[0].1.header.organization, peers[1].1.header.organization);
    peers
}

/// Random actions; returns what each has landed, by sequence.
async fn rounds(peers: &[(&str, Peer); 2], random: &mut fastrand::Rng) -> [BTreeMap<u64, String>; 2] {
    let mut landed: [BTreeMap<u64, String>; 2] = Default::default();
    for round in 0..ROUNDS {
        let (who, seq) = (random.usize(..2), random.u64(1..40));
        let (name, peer) = &peers[who];
        let path = format!("records/0000000000000007/{seq}");
        let text = format!("{name} {round}");
        match random.u8(..4) {
            // A batch under a key that the other may have as well.
            0 | 1 => {
                let answer = peer.put(&path, peer.sealed(&text, |header: &mut Header| header.seq = seq)).await;
                match landed[who].get(&seq) {
                    None => {
                        assert_eq!(answer.status, 200, "{answer:?}");
                        landed[who].insert(seq, text);
                    }
                    Some(_) => assert_eq!(answer.code(), (409, "conflict"), "its own is there already"),
                }
            }
            // A repeat of its own.
            2 => {
                if let Some(text) = landed[who].get(&seq) {
                    let answer = peer.put(&path, peer.sealed(text, |header| header.seq = seq)).await;
                    assert_eq!((answer.status, answer.body["duplicate"].as_bool()), (200, Some(true)), "{answer:?}");
                }
            }
            // In the other's name, with its own certificate.
            _ => {
                let forged = peer.sealed(&text, |header| {
                    header.seq = seq;
                    header.organization = peers[1 - who].1.header.organization;
                });
                assert_eq!(peer.put(&path, forged).await.code(), (403, "identity"));
            }
        }
    }
    landed
}

/// Whether one organization has what it landed, each once, and can name nothing of the other.
fn sees_its_own_alone(world: &World, peers: &[(&str, Peer); 2], who: usize, landed: &BTreeMap<u64, String>) {
    let (name, peer) = &peers[who];
    let query = |sql: &str| -> Vec<Value> {
        let answer = world.workspace(&["query", "--log", "error", "--org", name, "--format", "json", sql]);
        answer.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
    };
    let rows = query("SELECT message, seq, organization FROM syslog ORDER BY seq");
    let found: BTreeMap<u64, String> = rows
        .iter()
        .map(|row| (row["seq"].as_u64().expect("a number"), row["message"].as_str().expect("text").to_owned()))
        .collect();
    assert_eq!(&found, landed, "{name}");
    assert_eq!(rows.len(), landed.len(), "each once");
    assert!(rows.iter().all(|row| row["organization"] == peer.header.organization.to_string()), "tagged");
    let account = world.workspace(&["ledger", "--org", name, "--format", "json"]);
    let account: Vec<Value> = account.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let stored: u64 = account.iter().filter(|a| a["collector"] == "syslog").filter_map(|a| a["stored"].as_u64()).sum();
    assert_eq!(stored, landed.len() as u64, "{name}: {account:?}");
    let agents = world.workspace(&["agents", "--org", name, "--format", "json"]);
    assert_eq!(agents.lines().count(), 1);
    // By name, by path, or through the catalogue: nothing of the other can be named.
    let theirs = peers[1 - who].1.header.organization;
    for sql in [
        format!("SELECT * FROM \"{theirs}\".syslog"),
        format!("SELECT * FROM '{}/tables/{theirs}/base_event'", world.path("workspace").display()),
        format!("CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '{}'", world.path("workspace/tables").display()),
    ] {
        refusal(&world.workspace_output(&["query", "--log", "error", "--org", name, &sql]), 1);
    }
    let schema =
        query("SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_schema <> 'information_schema'");
    assert!(schema.len() <= 1, "{schema:?}");
}

/// Positions, policy, renewal, artifacts and alerts.
async fn what_else_can_be_asked(world: &World, peers: &[(&str, Peer); 2]) {
    // The same source of the same agent: each gets its own cursor.
    for (name, peer) in peers {
        let update =
            CursorUpdate { collector: "syslog".to_owned(), id: "f".to_owned(), cursor: Some(name.as_bytes().to_vec()) };
        let batch = peer.sealed("cursor", |header| (header.seq, header.cursors) = (50, vec![update]));
        assert_eq!(peer.put("records/0000000000000007/50", batch).await.status, 200);
    }
    for (name, peer) in peers {
        let (status, page) = peer.get("positions").await;
        let page: Positions = rmp_serde::from_slice(&page).expect("a page");
        let cursors: Vec<&[u8]> = page.sources.iter().map(|source| source.cursor.as_slice()).collect();
        assert_eq!((status, cursors), (200, vec![name.as_bytes()]));
    }
    let (id, off) = directives_are_ones_own(world, peers).await;
    a_forged_piece_has_no_effect(world, peers, id).await;
    // What one organization's policy refuses is an alert of that organization only.
    let late = peers[1].1.sealed("late", |header| (header.seq, header.policy_revision) = (60, off));
    assert_eq!(peers[1].1.put("records/0000000000000007/60", late).await.code(), (422, "policy"));
    let of_policy = |org: &str| {
        let alerts = world.workspace(&["alerts", "--org", org, "--format", "json"]);
        alerts.lines().filter(|line| line.contains("\"policy\"")).count()
    };
    assert_eq!((of_policy(ORG), of_policy("other")), (0, 1));
}

/// One switches collection off, and a file is requested of the other's agent: each gets its own directives and certificate. Returns
/// the request's id and the revision.
async fn directives_are_ones_own(world: &World, peers: &[(&str, Peer); 2]) -> (String, u64) {
    let agent = peers[0].1.header.agent.to_string();
    // One switches collection off, and requests a file from its agent.
    let off = world.workspace(&["policy", "set", "--org", "other", "--collect", "off", "--reason", "a test"]);
    let off: u64 = off.trim().parse().expect("a revision");
    let request =
        ["artifact", "request", "--org", ORG, "--agent", &agent, "--path", "/etc/os-release", "--reason", "r"];
    let id = world.workspace(&request).trim().to_owned();
    // The workspace polls for directives each second.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let directives_of = async |peer: &Peer| -> Directives {
        let (status, body) = peer.get("policy/0").await;
        assert_eq!(status, 200);
        serde_json::from_slice(&body).expect("directives")
    };
    for (at, (name, peer)) in peers.iter().enumerate() {
        let directives = directives_of(peer).await;
        let policy: Policy = serde_json::from_str(&directives.policy.expect("a policy").policy).expect("a policy");
        assert_eq!((policy.organization, policy.collect), (peer.header.organization, at == 0), "{name}");
        let requests: Vec<ArtifactRequest> = directives
            .artifacts
            .iter()
            .map(|signed| serde_json::from_str(&signed.request).expect("a request"))
            .collect();
        assert!(requests.iter().all(|request| request.organization == peer.header.organization), "{name}");
        assert!(at == 0 || requests.is_empty(), "{name}: {requests:?}");
        let (status, reply) = peer.post("renew", &json!({"csr": signing_request(world)})).await;
        let pem = reply["certificate"].as_str().expect("a certificate").as_bytes().to_vec();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        let named = certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        assert_eq!((status, named), (200, Some(peer.header.organization.to_string().as_str())), "{name}");
    }
    assert_eq!((listed(world, ORG).lines().count(), listed(world, "other").lines().count()), (1, 0));
    let to = world.path("got").display().to_string();
    refusal(&world.workspace_output(&["artifact", "get", "--org", "other", "--id", &id, "--to", &to]), 1);
    (id, off)
}

async fn a_forged_piece_has_no_effect(world: &World, peers: &[(&str, Peer); 2], id: String) {
    // The other answers a request that was not its own: without effect.
    let piece = Artifact {
        request: id,
        path: "/etc/os-release".to_owned(),
        offset: 0,
        data: b"forged".to_vec(),
        refused: Some("forged".to_owned()),
        whole: None,
    };
    let forged =
        peers[1].1.sealed_with(piece.into(), |header| (header.lane, header.policy_revision) = (LaneName::Blobs, 1));
    assert_eq!(peers[1].1.put("blobs/0000000000000007/1", forged).await.status, 200);
    assert!(listed(world, ORG).contains("\"requested\""), "{}", listed(world, ORG));
}

fn listed(world: &World, org: &str) -> String {
    world.workspace(&["artifact", "list", "--org", org, "--format", "json"])
}

fn signing_request(world: &World) -> String {
    let key = fs::read_to_string(world.path("identity/key.pem")).expect("reads");
    let key = rcgen::KeyPair::from_pem(&key).expect("a key");
    rcgen::CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem()).expect("signs")
}
