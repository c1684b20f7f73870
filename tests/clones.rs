//! Clones: one identity on two machines, or twice on one, with the real binaries. A machine is a root directory with its own
//! machine id and boot id.

use crate::support::{ORG, Process, VEDETTE, World, eventually};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A machine: root, disk and configuration of its agent.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(world: &World, name: &str, (machine, boot): (&str, &str)) -> Self {
        let made = Self { dir: world.path(name) };
        for dir in ["root/etc", "root/proc/sys/kernel/random", "root/var/log"] {
            fs::create_dir_all(made.dir.join(dir)).expect("makes");
        }
        made.starts(machine, boot);
        made.is_called(name);
        let dir = made.dir.display();
        let config = format!(
            "[identity]\ndir = \"{dir}/identity\"\n\n[state]\ndir = \"{dir}/state\"\n\n\
             [host]\nroot = \"{dir}/root\"\ncloud = \"off\"\n\n\
             [collectors.syslog]\npaths = [\"/var/log/*.log\"]\nstart = \"beginning\"\n"
        );
        fs::write(made.dir.join("vedette.toml"), config).expect("writes");
        made
    }

    fn starts(&self, machine: &str, boot: &str) {
        fs::write(self.dir.join("root/etc/machine-id"), machine).expect("writes");
        fs::write(self.dir.join("root/proc/sys/kernel/random/boot_id"), boot).expect("writes");
    }

    fn is_called(&self, name: &str) {
        fs::write(self.dir.join("root/proc/sys/kernel/hostname"), name).expect("writes");
    }

    fn vedette(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(VEDETTE);
        command.args(arguments).arg("--config").arg(self.dir.join("vedette.toml"));
        command
    }

    fn enroll(&self, world: &World) {
        self.enroll_with(world, &["enroll", "--workspace", &world.url()]);
    }

    fn enroll_again(&self, world: &World) {
        self.enroll_with(world, &["enroll", "--again", "--workspace", &world.url()]);
    }

    fn enroll_with(&self, world: &World, arguments: &[&str]) {
        let (ca, token) = (world.path("workspace/ca.pem"), world.token("token"));
        let mut command = self.vedette(arguments);
        let output = command.arg("--ca").arg(ca).arg("--token-file").arg(token).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn run(&self) -> Process {
        Process::start(&mut self.vedette(&["run"]), &self.dir.join("agent.log"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).expect("reads")
    }

    /// Id of its agent.
    fn agent(&self) -> String {
        let enrollment = fs::read(self.dir.join("identity/enrollment.json")).expect("is enrolled");
        let enrollment: Value = serde_json::from_slice(&enrollment).expect("an object");
        enrollment["agent"].as_str().expect("text").to_owned()
    }

    fn append(&self, text: &str) {
        use std::io::Write;
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).append(true).open(self.dir.join("root/var/log/a.log"));
        writeln!(file.expect("opens"), "{text}").expect("writes");
    }

    /// Waits until more than `count` lines are durable in the queue's present epoch; returns their number.
    fn queues_more_than(&self, count: u64) -> u64 {
        eventually("a line in the queue", || {
            let output = self.vedette(&["status", "--json"]).output().expect("runs");
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let collectors = status["collectors"].as_array()?;
            let syslog = collectors.iter().find(|collector| collector["id"] == "syslog")?;
            syslog["emitted"].as_u64().filter(|emitted| *emitted > count)
        })
    }

    /// Copies the named files to another machine. Copied files get other inodes, unlike on a copied disk.
    fn copy_to(&self, other: &Machine, names: &[&str]) {
        for name in names {
            let (from, to) = (self.dir.join(name), other.dir.join(name));
            drop(fs::remove_dir_all(&to));
            let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
            assert!(copied.is_ok_and(|status| status.success()));
        }
    }
}

/// Messages under an agent.
fn lines(world: &World, agent: &str) -> Vec<String> {
    let rows = world.query(&format!("SELECT message FROM syslog WHERE agent = '{agent}' ORDER BY message"));
    rows.iter().map(|row| row["message"].as_str().expect("text").to_owned()).collect()
}

fn listed(world: &World) -> Vec<Value> {
    let agents = world.workspace(&["agents", "--org", ORG, "--format", "json"]);
    agents.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

fn alerts(world: &World) -> BTreeSet<String> {
    let alerts = world.workspace(&["alerts", "--org", ORG, "--format", "json"]);
    let kind = |line: &str| serde_json::from_str::<Value>(line).expect("an object")["kind"].as_str().map(str::to_owned);
    alerts.lines().filter_map(kind).collect()
}

const ONE: (&str, &str) = ("4f1c0000000000000000000000000001", "b0000000-0000-4000-8000-000000000001");
const TWO: (&str, &str) = ("4f1c0000000000000000000000000002", "b0000000-0000-4000-8000-000000000002");

#[test]
fn a_copy_on_another_machine_becomes_another_agent_and_nothing_is_mixed_under_one_id() {
    copied_to(TWO);
}

/// Two containers on one kernel have one boot id.
#[test]
fn a_copy_in_the_same_boot_becomes_another_agent_and_the_original_stays() {
    copied_to((TWO.0, ONE.1));
}

/// A container without a machine id.
#[test]
fn a_copy_without_a_machine_id_becomes_another_agent_too() {
    copied_to(("", TWO.1));
}

/// An image of an enrolled agent with undelivered batches runs on another machine.
fn copied_to(machine: (&str, &str)) {
    let mut world = World::new();
    let (one, two) = (Machine::new(&world, "one", ONE), Machine::new(&world, "two", machine));
    one.enroll(&world);
    one.append("before");
    let mut agent = one.run();
    eventually("the first line", || (lines(&world, &one.agent()) == ["before"]).then_some(()));
    // The image is made while the workspace is down.
    let address = world.address();
    world.serve = None;
    one.append("waits");
    one.queues_more_than(0);
    agent.terminate();
    one.copy_to(&two, &["identity", "state"]);
    let was = one.agent();
    let (_one, _two) = (one.run(), two.run());
    one.append("on one");
    let mut queued = 0;
    for number in 1..=3 {
        two.append(&format!("on two {number}"));
        queued = two.queues_more_than(queued);
    }
    world.serve(&address);
    eventually("the copy to be another agent", || (two.agent() != was).then_some(()));
    // Batches sealed under the old name are resealed. Those of the original land as the original's, or under both names if the
    // clone delivers them before it is detected.
    let of_two = || {
        let mut lines = lines(&world, &two.agent());
        lines.retain(|line| line != "waits");
        lines
    };
    let held = ["on two 1", "on two 2", "on two 3"];
    eventually("what it held", || (of_two() == held).then_some(()));
    eventually("the first one's", || (lines(&world, &was) == ["before", "on one", "waits"]).then_some(()));
    // Both continue, each under its own name.
    one.append("later on one");
    two.append("later on two");
    eventually("both", || (lines(&world, &was).len() == 4 && of_two().len() == 4).then_some(()));
    assert!(lines(&world, &two.agent()).len() <= 5, "each once");
    assert_eq!(one.agent(), was, "the machine of the enrollment stays");
    assert!(lines(&world, &was).iter().all(|line| !line.contains("two")), "nothing is mixed");
    assert!(world.query(&format!("SELECT * FROM syslog WHERE agent = '{was}' AND hostname <> 'one'")).is_empty());
    assert!(world.query(&format!("SELECT * FROM syslog WHERE agent <> '{was}' AND hostname <> 'two'")).is_empty());
    assert!(two.log().contains("this machine has a new agent id"), "{}", two.log());
    assert_eq!((listed(&world).len(), alerts(&world).contains("clone")), (2, true));
    let replaces =
        listed(&world).into_iter().find(|row| row["agent"] == two.agent()).map(|row| row["replaces"].clone());
    assert_eq!(replaces, Some(Value::from(was.as_str())), "it is listed what it was");
    let revoked = world.workspace_output(&["agent", "revoke", &was, "--reason", "a copy"]);
    let message = String::from_utf8_lossy(&revoked.stderr).into_owned();
    assert!(revoked.status.success() && message.contains(&two.agent()), "{message}");
    for account in world.ledger() {
        assert_eq!((account["missing"].as_u64(), account["repeated"].as_u64()), (Some(0), Some(0)), "{account}");
    }
    let left = fs::read_dir(two.dir.join("identity")).expect("lists").map(|entry| entry.expect("an entry").file_name());
    assert!(left.into_iter().all(|name| name != "next.json"));
}

/// The same machine id on both: the boot ids differ.
#[test]
fn of_two_copies_with_one_machine_id_the_later_boot_becomes_another_agent() {
    let world = World::new();
    let (one, two) = (Machine::new(&world, "one", ONE), Machine::new(&world, "two", (ONE.0, TWO.1)));
    one.enroll(&world);
    let was = one.agent();
    let _one = one.run();
    one.append("1");
    eventually("the first line", || (lines(&world, &was) == ["1"]).then_some(()));
    one.copy_to(&two, &["identity"]);
    let _two = two.run();
    let mut number = 1;
    eventually("one of them to be another agent", || {
        number += 1;
        one.append(&format!("{number} on one"));
        two.append(&format!("{number} on two"));
        std::thread::sleep(Duration::from_millis(700));
        (two.agent() != was).then_some(())
    });
    assert_eq!(one.agent(), was);
    let (on_one, on_two) = (format!("{number} on one"), format!("{number} on two"));
    eventually("the last lines", || {
        (lines(&world, &was).contains(&on_one) && lines(&world, &two.agent()).contains(&on_two)).then_some(())
    });
    // What the clone sent before it was detected landed under the old name; nothing is lost or repeated.
    let all: Vec<String> = lines(&world, &was).into_iter().chain(lines(&world, &two.agent())).collect();
    let distinct: BTreeSet<&String> = all.iter().collect();
    assert_eq!((distinct.len(), all.len()), (2 * number - 1, 2 * number - 1), "{all:?}");
    assert!(alerts(&world).contains("clone"));
}

/// A machine that was copied while it ran, with machine id, boot id and queue.
#[test]
fn of_two_copies_that_are_the_same_in_everything_one_becomes_another_agent() {
    let world = World::new();
    let (one, two) = (Machine::new(&world, "one", ONE), Machine::new(&world, "two", ONE));
    one.enroll(&world);
    let was = one.agent();
    let mut agent = one.run();
    one.append("1");
    eventually("the first line", || (lines(&world, &was) == ["1"]).then_some(()));
    agent.terminate();
    one.copy_to(&two, &["identity", "state"]);
    let (_one, _two) = (one.run(), two.run());
    let mut number = 1;
    eventually("one of them to be another agent", || {
        number += 1;
        one.append(&format!("{number} on one"));
        two.append(&format!("{number} on two"));
        std::thread::sleep(Duration::from_millis(700));
        (one.agent() != was || two.agent() != was).then_some(())
    });
    let (on_one, on_two) = (format!("{number} on one"), format!("{number} on two"));
    eventually("the last lines", || {
        (lines(&world, &one.agent()).contains(&on_one) && lines(&world, &two.agent()).contains(&on_two)).then_some(())
    });
    let all: Vec<String> = lines(&world, &one.agent()).into_iter().chain(lines(&world, &two.agent())).collect();
    let distinct: BTreeSet<&String> = all.iter().collect();
    assert_eq!((distinct.len(), all.len()), (2 * number - 1, 2 * number - 1), "{all:?}");
    assert!(alerts(&world).is_superset(&["clone".to_owned(), "conflict".to_owned()].into()));
}

/// While the workspace is down a machine reboots, with batches of both boots in its queue; then they arrive in any order,
/// slowly.
#[test]
fn a_machine_that_starts_again_with_a_backlog_is_no_copy_of_itself() {
    let mut world = World::new();
    let one = Machine::new(&world, "one", ONE);
    one.enroll(&world);
    let (was, address) = (one.agent(), world.address());
    world.serve = None;
    let (mut expected, mut queued) = (Vec::new(), 0);
    for (boot, name) in [(ONE.1, "first"), (TWO.1, "second")] {
        one.starts(ONE.0, boot);
        let mut agent = one.run();
        for number in 1..=4 {
            one.append(&format!("{name} boot {number}"));
            expected.push(format!("{name} boot {number}"));
            queued = one.queues_more_than(queued);
        }
        agent.terminate();
    }
    let _agent = one.run();
    world.serve_with(&address, &["--batches-per-second", "2"]);
    eventually("every line", || (lines(&world, &was) == expected).then_some(()));
    one.append("the end");
    eventually("the end", || (lines(&world, &was).len() == expected.len() + 1).then_some(()));
    assert_eq!((one.agent(), listed(&world).len(), alerts(&world)), (was, 1, BTreeSet::new()));
}

/// The disk is reset to an earlier state, and the machine reboots: it stays the same agent. Undelivered observations in between
/// are lost with the disk; later ones are of another epoch.
#[test]
fn a_machine_that_is_set_back_to_a_snapshot_stays_who_it_is() {
    let world = World::new();
    let one = Machine::new(&world, "one", ONE);
    one.enroll(&world);
    let was = one.agent();
    let mut agent = one.run();
    one.append("before the snapshot");
    eventually("the first line", || (lines(&world, &was).len() == 1).then_some(()));
    agent.terminate();
    let snapshot = Machine { dir: world.path("snapshot") };
    fs::create_dir_all(&snapshot.dir).expect("makes");
    one.copy_to(&snapshot, &["identity", "state"]);
    let (log, logged) =
        (one.dir.join("root/var/log/a.log"), fs::read(one.dir.join("root/var/log/a.log")).expect("reads"));
    let mut agent = one.run();
    one.append("after the snapshot");
    eventually("the second line", || (lines(&world, &was).len() == 2).then_some(()));
    agent.kill();
    snapshot.copy_to(&one, &["identity", "state"]);
    // In place: a reset disk has the same inodes.
    fs::write(log, logged).expect("writes");
    one.starts(ONE.0, TWO.1);
    let agent = one.run();
    one.append("after it was set back");
    one.append("and later");
    let mut expected = ["before the snapshot", "after the snapshot", "after it was set back", "and later"];
    expected.sort_unstable();
    eventually("all lines", || (lines(&world, &was) == expected).then_some(()));
    assert_eq!(one.agent(), was);
    assert_eq!((listed(&world).len(), alerts(&world).contains("clone")), (1, false));
    assert!(alerts(&world).contains("conflict"), "the operator is told that its disk was set back, or copied");
    drop(agent);
}

/// A reinstalled machine has no key, and is another agent; a renamed machine is the same one.
#[test]
fn a_machine_that_is_installed_anew_is_another_agent_and_one_with_another_name_the_same() {
    let world = World::new();
    let one = Machine::new(&world, "one", ONE);
    one.enroll(&world);
    let was = one.agent();
    let mut agent = one.run();
    one.append("1");
    eventually("the first line", || (lines(&world, &was).len() == 1).then_some(()));
    agent.terminate();
    one.is_called("renamed");
    let mut agent = one.run();
    one.append("2");
    eventually("the second line", || (lines(&world, &was).len() == 2).then_some(()));
    assert_eq!(listed(&world)[0]["hostname"], "renamed");
    let names = world.query("SELECT hostname FROM syslog ORDER BY message");
    assert_eq!(names.iter().map(|row| row["hostname"].as_str()).collect::<Vec<_>>(), [Some("one"), Some("renamed")]);
    agent.terminate();
    for name in ["identity", "state"] {
        fs::remove_dir_all(one.dir.join(name)).expect("removes");
    }
    fs::remove_file(one.dir.join("root/var/log/a.log")).expect("removes");
    one.starts(TWO.0, TWO.1);
    one.enroll(&world);
    assert_ne!(one.agent(), was);
    let _agent = one.run();
    one.append("3");
    eventually("the third line", || (lines(&world, &one.agent()) == ["3"]).then_some(()));
    assert_eq!((listed(&world).len(), alerts(&world).contains("clone")), (2, false));
    assert!(Path::new(&one.dir).exists());
}

/// The agent was revoked; enrolled with another key, it sends its queue under the new name.
#[test]
fn a_host_that_is_enrolled_again_with_another_key_keeps_what_waited() {
    let world = World::new();
    let one = Machine::new(&world, "one", ONE);
    one.enroll(&world);
    let was = one.agent();
    let mut agent = one.run();
    one.append("before");
    eventually("the first line", || (lines(&world, &was) == ["before"]).then_some(()));
    world.workspace(&["agent", "revoke", &was, "--reason", "a test"]);
    one.append("refused");
    one.queues_more_than(0);
    agent.terminate();
    fs::rename(one.dir.join("identity/key.pem"), one.dir.join("old-key.pem")).expect("renames");
    one.enroll_again(&world);
    assert_ne!(one.agent(), was);
    let _agent = one.run();
    one.append("after");
    eventually("both lines", || (lines(&world, &one.agent()) == ["after", "refused"]).then_some(()));
}

/// The machine had no id for one start while the workspace was down. A damaged enrollment is repaired as the message says.
#[test]
fn what_a_machine_sealed_without_its_id_lands_all_the_same() {
    let mut world = World::new();
    let one = Machine::new(&world, "one", ONE);
    one.enroll(&world);
    let mut agent = one.run();
    one.append("with its id");
    eventually("the first line", || (lines(&world, &one.agent()).len() == 1).then_some(()));
    agent.terminate();
    let (was, address) = (one.agent(), world.address());
    world.serve = None;
    one.starts("", TWO.1);
    let mut agent = one.run();
    one.append("without");
    one.queues_more_than(0);
    agent.terminate();
    one.starts(ONE.0, "b0000000-0000-4000-8000-000000000003");
    world.serve(&address);
    let mut agent = one.run();
    one.append("with it again");
    eventually("all lines", || {
        (lines(&world, &one.agent()) == ["with it again", "with its id", "without"]).then_some(())
    });
    assert_eq!((one.agent(), listed(&world).len()), (was.clone(), 1));
    agent.terminate();
    fs::write(one.dir.join("identity/enrollment.json"), "{torn").expect("writes");
    fs::write(one.dir.join("identity/next.json"), "{torn too").expect("writes");
    let message = String::from_utf8_lossy(&one.vedette(&["run"]).output().expect("runs").stderr).into_owned();
    assert!(message.contains("is damaged; run `vedette enroll --again`"), "{message}");
    one.enroll_again(&world);
    assert_eq!(one.agent(), was, "the key is the same");
    let _agent = one.run();
    one.append("in the end");
    eventually("the last line", || (lines(&world, &was).len() == 4).then_some(()));
}
