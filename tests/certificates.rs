//! Certificates that change on disk while agent and workspace run.

use crate::support::{World, eventually};
use std::fs;

#[test]
fn new_certificates_of_both_are_taken_and_half_written_ones_are_not() {
    let world = World::new();
    world.enroll();
    let line = |number: usize| format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number}\n");
    world.append("a.log", &line(1));
    let _agent = world.run();
    let stored = |count: u64| eventually("the lines", || (world.count("syslog") == count).then_some(()));
    stored(1);

    // The agent's: a key that does not belong to the certificate, then another certificate for the old key.
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
    let again = world.vedette(&["enroll", "--again", "--workspace", &url, "--ca", &ca, "--token-file", &token]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_ne!(fs::read(world.path("identity/cert.pem")).expect("reads"), before);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    world.append("a.log", &line(3));
    stored(3);
    let log = fs::read_to_string(world.path("agent.log")).expect("reads");
    assert!(log.contains("new certificates cannot be used") && log.contains("certificates were read again"), "{log}");

    // The workspace's.
    let before = fs::read(world.path("workspace/server.pem")).expect("reads");
    world.workspace(&["certificate"]);
    assert_ne!(fs::read(world.path("workspace/server.pem")).expect("reads"), before);
    eventually("the workspace's certificate to be read", || {
        let log = fs::read_to_string(world.path("workspace.log")).expect("reads");
        log.contains("certificates were read again").then_some(())
    });
    // A new connection: the agent's client is made anew.
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
