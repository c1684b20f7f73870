//! The agent in its own network namespace, with faults of cable and address.

use crate::support::{Process, VEDETTE, World, eventually};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// A namespace with one end of a virtual cable; the other end is here.
struct Namespace {
    name: String,
    cable: String,
    net: String,
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_whitespace()).output().is_ok_and(|output| output.status.success())
}

impl Namespace {
    /// With addresses `.1` here and `.2` there; absent, with a message, where it cannot be created.
    fn new(number: u8) -> Option<Self> {
        let pid = std::process::id();
        let (name, cable) = (format!("vedette-{pid}-{number}"), format!("vd{pid}-{number}"));
        let namespace = Self { name, cable, net: format!("10.213.{}", (pid as u8).wrapping_mul(2) ^ number) };
        let Self { name, cable, net } = &namespace;
        let made = ip(&format!("netns add {name}"))
            && ip(&format!("link add {cable} type veth peer name inside netns {name}"))
            && ip(&format!("addr add {net}.1/24 dev {cable}"))
            && ip(&format!("link set {cable} up"))
            && ip(&format!("-n {name} addr add {net}.2/24 dev inside"))
            && ip(&format!("-n {name} link set inside up"));
        if !made {
            println!("skipped: no right to make network namespaces, or no iproute2");
        }
        made.then_some(namespace)
    }

    /// A workspace at this end, and an agent at the other that has delivered a line.
    fn world(&self) -> (World, Process) {
        let host = format!("{}.1", self.net);
        let mut world = World::with_names(&[&host]);
        world.serve = None;
        world.serve(&format!("{host}:0"));
        let ca = world.path("workspace/ca.pem");
        let enrolled = world.enroll_with(&world.url(), &ca, &world.token("token"));
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        world.append("a.log", "line 0\n");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, VEDETTE, "run", "--config"]).arg(world.path("vedette.toml"));
        let agent = Process::start(&mut command, &world.path("agent.log"));
        all_once(&world, 1);
        (world, agent)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
        ip(&format!("link del {}", self.cable));
    }
}

fn all_once(world: &World, lines: u64) {
    eventually("all lines", || (world.count("syslog") == lines).then_some(()));
    let rows = world.query("SELECT count(DISTINCT message) AS n FROM syslog");
    assert_eq!(rows[0]["n"], lines, "each once");
}

#[test]
fn a_cable_that_is_pulled_and_plugged_in_again_loses_nothing() {
    let Some(namespace) = Namespace::new(0) else { return };
    let (world, agent) = namespace.world();
    for round in 1..4 {
        assert!(ip(&format!("link set {} down", namespace.cable)));
        world.append("a.log", &format!("line {round}\n"));
        eventually("it to wait on disk", || (world.status()["queue"]["batches"].as_u64()? > 0).then_some(()));
        assert!(ip(&format!("link set {} up", namespace.cable)));
        all_once(&world, round + 1);
    }
    drop(agent);
}

/// The connection is half open: neither end hears from the other.
#[test]
fn a_host_that_gets_another_address_gives_up_the_old_connection() {
    let Some(namespace) = Namespace::new(1) else { return };
    let (world, agent) = namespace.world();
    let Namespace { name, net, .. } = &namespace;
    assert!(ip(&format!("-n {name} addr del {net}.2/24 dev inside")));
    assert!(ip(&format!("-n {name} addr add {net}.3/24 dev inside")));
    let began = Instant::now();
    world.append("a.log", "line 1\n");
    all_once(&world, 2);
    // Unacknowledged data ends the connection after 30 s; the kernel's default is a minute.
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    drop(agent);
}
