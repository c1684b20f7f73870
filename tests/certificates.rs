//! Certificates that change on disk while agent and workspace run.

use crate::support::{ORG, World, eventually};
use std::{fs, os::unix::fs::MetadataExt};
use vedette_transport::tls::{self, ClientSettings};

#[test]
fn new_certificates_of_both_are_taken_and_half_written_ones_are_not() {
    let world = World::new();
    world.enroll();
    let line = |number: usize| format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number}\n");
    world.append("a.log", &line(1));
    let _agent = world.run();
    let stored = |count: u64| eventually("the lines", || (world.count("syslog") == count).then_some(()));
    stored(1);

    // The agent's: a key that does not match the certificate, then another certificate for the old key.
    let key = world.path("identity/key.pem");
    let right = fs::read(&key).expect("reads");
    fs::write(&key, fs::read(world.path("workspace/server.key")).expect("reads")).expect("writes");
    world.append("a.log", &line(2));
    stored(2);
    fs::write(&key, right).expect("writes");
    let before = fs::read(world.path("identity/cert.pem")).expect("reads");
    let (url, ca, token) = (world.url(), world.path("workspace/ca.pem"), world.token("again"));
    let ca = ca.display().to_string();
    let token = token.display().to_string();
    let enrolled = world.vedette(&["enroll", "--again", "--workspace", &url, "--ca", &ca, "--token-file", &token]);
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    assert_ne!(fs::read(world.path("identity/cert.pem")).expect("reads"), before);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    world.append("a.log", &line(3));
    stored(3);
    let log = world.agent_log();
    assert!(log.contains("new certificates cannot be used") && log.contains("certificates reloaded"), "{log}");

    // The workspace's.
    let before = fs::read(world.path("workspace/server.pem")).expect("reads");
    world.workspace(&["certificate"]);
    assert_ne!(fs::read(world.path("workspace/server.pem")).expect("reads"), before);
    eventually("the workspace's certificate to be read", || {
        let log = fs::read_to_string(world.path("workspace.log")).expect("reads");
        log.contains("certificates reloaded").then_some(())
    });
    // A new connection: the agent rebuilds its client.
    fs::File::options()
        .append(true)
        .open(world.path("identity/ca.pem"))
        .expect("opens")
        .set_modified(std::time::SystemTime::now())
        .expect("sets");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    world.append("a.log", &line(4));
    stored(4);
}

/// At two thirds of its life, while running: lines arrive long after the first certificate expired, over new connections too,
/// with collection on and off.
#[test]
fn a_certificate_is_renewed_before_it_expires_and_kept_once_it_has_delivered() {
    let mut world = World::new();
    let address = world.address();
    world.serve = None;
    world.serve_with(&address, &["--certificate-life", "20s"]);
    world.enroll();
    let certificate = || fs::read(world.path("identity/cert.pem")).expect("reads");
    let (first, mode) = (certificate(), fs::metadata(world.path("identity/key.pem")).expect("is there").mode());
    assert_eq!(mode & 0o777, 0o600);
    let key = fs::read(world.path("identity/key.pem")).expect("reads");
    let mut agent = world.run();
    for number in 0..26 {
        world.append("a.log", &format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number}\n"));
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    eventually("every line", || (world.count("syslog") == 26).then_some(()));
    let log = world.agent_log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(
        at("keeping the old one until the new one has delivered")
            < at("delivery works with the renewed certificate; keeping it")
    );
    assert_ne!(certificate(), first);
    assert_eq!(fs::read(world.path("identity/key.pem")).expect("reads"), key, "the key, and so the id, stays");
    // A start with the files on disk and collection off: the policy poll leads to the renewal.
    agent.terminate();
    world.workspace(&["policy", "set", "--org", ORG, "--collect", "off", "--reason", "a test"]);
    let mut agent = world.run();
    eventually("the policy", || (world.status()["policy"]["collect"] == false).then_some(()));
    let before = certificate();
    eventually("another certificate", || (certificate() != before).then_some(()));
    agent.terminate();
}

/// A key that is not the agent's own gets no certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_for_the_key_that_asks() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let world = World::new();
    world.enroll();
    let read = |name: &str| fs::read(world.path("identity").join(name)).expect("is there");
    let settings = ClientSettings {
        ca_pem: read("ca.pem"),
        identity_pem: Some((read("cert.pem"), read("key.pem").into())),
        geo: Some(vedette_wire::geo::WorkspaceGeo::Europe),
        ..ClientSettings::default()
    };
    let client = tls::client(&settings).expect("builds");
    let ask = async |key: &rcgen::KeyPair| {
        let csr = rcgen::CertificateParams::default().serialize_request(key).and_then(|csr| csr.pem()).expect("signs");
        let request = client.post(format!("{}/v1/renew", world.url())).json(&serde_json::json!({ "csr": csr }));
        request.send().await.expect("is answered").status().as_u16()
    };
    let own = rcgen::KeyPair::from_pem(&String::from_utf8(read("key.pem")).expect("PEM")).expect("a key");
    assert_eq!(ask(&own).await, 200);
    assert_eq!(ask(&rcgen::KeyPair::generate().expect("makes")).await, 403);
}
