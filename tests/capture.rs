//! Traffic while collection is off, captured on loopback and decoded with the server's TLS keys, which a test build writes.

use crate::support::{ORG, Process, VEDETTE, World, eventually};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use vedette_wire::policy::COLLECTORS_HEADER;

/// A running capture of one loopback port; absent, with a message, where it cannot run.
fn capture(port: &str, into: &Path, log: &Path) -> Option<Process> {
    let can = Command::new("tshark").args(["-i", "lo", "-a", "duration:1", "-c", "1"]).stderr(Stdio::null()).output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("skipped: tshark is not there, or may not capture");
        return None;
    }
    let mut command = Command::new("tshark");
    command.args(["-q", "-i", "lo", "-f", &format!("tcp port {port}"), "-w"]).arg(into);
    let running = Process::start(&mut command, log);
    eventually("the capture to begin", || fs::read_to_string(log).ok()?.contains("Capturing on").then_some(()));
    // tcpdump reports this a little before the kernel captures.
    std::thread::sleep(Duration::from_secs(1));
    Some(running)
}

/// Fields of the captured packets that match a filter, one line per packet.
fn decoded(world: &World, filter: &str, fields: &[&str]) -> Vec<String> {
    let keys = format!("tls.keylog_file:{}", world.path("keys").display());
    let port = world.address().rsplit_once(':').expect("has a port").1.to_owned();
    let mut command = Command::new("tshark");
    command.arg("-r").arg(world.path("capture.pcapng")).args(["-o", &keys, "-d", &format!("tcp.port=={port},tls")]);
    command.args(["-Y", filter, "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = command.output().expect("tshark runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// With an empty queue, and with one that is purged: policy polls, and no other byte of this host.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, whose steps build on each other")]
fn with_collection_off_nothing_but_the_bare_heartbeat_leaves_the_host() {
    if VEDETTE.contains("/release/") {
        println!("skipped: a release of the workspace writes no TLS keys");
        return;
    }
    for purge in [false, true] {
        let mut world = World::new();
        let address = world.address();
        let keys = format!("SSLKEYLOGFILE={}", world.path("keys").display());
        world.write_config(if purge { "\n[policy]\non_disable = \"purge\"\n" } else { "" });
        world.enroll();
        let mut agent = world.run();
        world.append("a.log", "before\n");
        eventually("the first line", || (world.count("syslog") == 1).then_some(()));
        world.serve = None;
        if purge {
            world.append("a.log", "queued before it was switched off\n");
            eventually("a backlog", || (world.status()["queue"]["batches"].as_u64() > Some(0)).then_some(()));
        }
        agent.terminate();
        let revision = world.workspace(&["policy", "set", "--org", ORG, "--collect", "off", "--reason", "a test"]);
        if !purge {
            // The events of the stop are sent, and then the queue is empty.
            world.serve(&address);
            let mut agent = world.run();
            eventually("the policy", || (world.status()["policy"]["collect"] == false).then_some(()));
            eventually("an empty queue", || (world.status()["queue"]["batches"] == 0).then_some(()));
            agent.terminate();
            world.serve = None;
        } else if !crate::policy::hand_over(&world, revision.trim().parse().expect("a number")) {
            return;
        }
        world.serve_under(&["env", &keys], &address, &[]);
        let port = address.rsplit_once(':').expect("has a port").1;
        let Some(mut running) = capture(port, &world.path("capture.pcapng"), &world.path("capture.log")) else {
            return;
        };
        let mut agent = world.run();
        eventually("the policy", || (world.status()["policy"]["collect"] == false).then_some(()));
        for number in 0..5 {
            world.append("a.log", &format!("written meanwhile {number}\n"));
            std::thread::sleep(Duration::from_millis(500));
        }
        let another = world.workspace(&["policy", "set", "--org", ORG, "--store", "common", "--reason", "a test"]);
        eventually("another revision", || {
            let another: u64 = another.trim().parse().ok()?;
            (world.status()["policy"]["revision"] == another).then_some(())
        });
        assert_eq!(world.status()["queue"]["batches"], 0);
        agent.terminate();
        std::thread::sleep(Duration::from_secs(1));
        running.interrupt();

        let from_agent = format!("tcp.dstport == {port}");
        let requests = decoded(
            &world,
            &format!("{from_agent} && http2.headers.method"),
            &["http2.headers.method", "http2.headers.path", "http2.header.name", "http2.header.value"],
        );
        assert!(requests.len() >= 2, "the capture was decoded: {requests:?}");
        for request in &requests {
            let fields: Vec<&str> = request.split('|').collect();
            let is_later = fields[1].ends_with(another.trim());
            let path = format!("/v1/policy/{}", if is_later { another.trim() } else { revision.trim() });
            assert_eq!((fields[0], fields[1]), ("GET", path.as_str()), "{request}");
            let names: BTreeSet<&str> = fields[2].split(',').collect();
            let known = [":authority", ":method", ":path", ":scheme", "accept", "user-agent", COLLECTORS_HEADER];
            assert!(names.iter().all(|name| known.contains(name)), "{request}");
            // What the release has, whatever the host and its configuration are; the capture separates values by commas.
            let collectors = "addresses;every,artifacts,container_logs,crash_dumps;every,host;every,journal,processes;every,sessions;every,syslog,syslog_listener";
            assert!(fields[3].contains("vedette/") && fields[3].contains(collectors), "{request}");
        }
        // No body, and nothing except HTTP/2 within TLS.
        let bodies = decoded(&world, &format!("{from_agent} && http2.type == 0"), &["http2.length"]);
        assert!(bodies.iter().all(|length| length.split(',').all(|length| length == "0")), "{bodies:?}");
        let undecoded = decoded(&world, &format!("{from_agent} && tls.app_data && !http2"), &["frame.number"]);
        assert_eq!(undecoded, Vec::<String>::new());
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let text = decoded(&world, &from_agent, &["http2.header.value", "tls.handshake.extensions_server_name"]);
        assert!(!text.iter().any(|line| line.split([',', '|']).any(|value| value == hostname)), "{text:?}");
    }
}
