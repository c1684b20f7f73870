//! File events are hints: nothing is missed where the kernel sends none, or too many at once.

use crate::support::{Process, VEDETTE, World, eventually};
use std::{fs, process::Command};

/// A user namespace has its own limit of inotify instances (user_namespaces(7)).
#[test]
fn without_any_inotify_instance_left_files_are_read_all_the_same() {
    let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let may = Command::new("unshare").args(["-Ur", "sh", "-c", script, "sh", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        println!("skipped: unshare(1) makes no user namespace here");
        return;
    }
    let world = World::new();
    world.append("a.log", "first\n");
    world.enroll();
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", script, "sh", VEDETTE, "run", "--config"]).arg(world.path("vedette.toml"));
    let agent = Process::start(&mut command, &world.path("agent.log"));
    eventually("what was there", || (world.count("syslog") == 1).then_some(()));
    world.append("a.log", "second\n");
    world.append("b.log", "another file\n");
    eventually("what came", || (world.count("syslog") == 3).then_some(()));
    let log = fs::read_to_string(world.path("agent.log")).expect("is there");
    assert!(log.contains("no file events"), "it is said: {log}");
    drop(agent);
}

const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";

/// The previous limit, restored even if the test fails.
struct Restored(String);

impl Drop for Restored {
    fn drop(&mut self) {
        drop(fs::write(LIMIT, &self.0));
    }
}

/// The kernel's event queue overflows (IN_Q_OVERFLOW, inotify(7)) while lines go to many files. Other agents that start at that
/// moment get the small queue too, which must not matter to them either.
#[test]
fn after_an_overflow_of_events_nothing_is_missed() {
    let before = fs::read_to_string(LIMIT).expect("Linux has it");
    if fs::write(LIMIT, "4").is_err() {
        println!("skipped: only root may make the kernel's queue of events small");
        return;
    }
    let limit = Restored(before);
    let world = World::new();
    world.append("0.log", "first\n");
    world.enroll();
    let mut agent = world.run();
    eventually("what was there", || (world.count("syslog") == 1).then_some(()));
    // Each instance keeps the limit that it was created with.
    drop(limit);
    for round in 0..5 {
        for file in 0..200 {
            world.append(&format!("{file}.log"), &format!("line {round}\n"));
        }
    }
    eventually("every line, once", || (world.count("syslog") == 1001).then_some(()));
    agent.terminate();
}
