//! Tier, collection, the host's own configuration, artifacts, connected or not: the expected result of each combination, with
//! the real binaries.

use crate::{
    artifacts::{request, wait_for_state},
    policy::{in_force, set, state},
    support::{ORG, World, eventually, refusal},
};
use std::fs;

/// Expectations of a combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    tier: &'static str,
    /// Argument of `policy set --collect`.
    collect: &'static str,
    /// The host's configuration switches off processes, which the standard tier requires.
    local_off: bool,
    /// Whether the policy is accepted.
    accepted: bool,
    /// Whether `syslog` and `processes` run.
    syslog: bool,
    processes: bool,
    /// Whether `vedette check` names a conflict.
    conflict: bool,
}

const CELLS: [Cell; 8] = [
    cell("free", "on", false, (true, true, true, false)),
    cell("free", "on", true, (true, true, false, false)),
    cell("free", "off", false, (true, false, false, false)),
    cell("free", "off", true, (true, false, false, false)),
    cell("standard", "on", false, (true, true, true, false)),
    cell("standard", "on", true, (true, true, true, true)),
    // Refused, so without effect.
    cell("standard", "off", false, (false, true, true, false)),
    cell("standard", "off", true, (false, true, true, true)),
];

const fn cell(
    tier: &'static str,
    collect: &'static str,
    local_off: bool,
    (accepted, syslog, processes, conflict): (bool, bool, bool, bool),
) -> Cell {
    Cell { tier, collect, local_off, accepted, syslog, processes, conflict }
}

#[test]
fn every_cell_of_tier_collection_configuration_and_connection_comes_to_what_it_should() {
    // A few at a time: each has its own workspace and agent.
    for cells in CELLS.chunks(4) {
        std::thread::scope(|scope| {
            for cell in cells {
                scope.spawn(|| tried(*cell));
            }
        });
    }
}

fn tried(cell: Cell) {
    let mut world = World::new();
    let dir = world.path("evidence");
    fs::create_dir(&dir).expect("makes");
    fs::write(dir.join("file"), "evidence").expect("writes");
    let off = if cell.local_off { "\n[collectors.processes]\nenabled = false\n" } else { "" };
    world.write_config(&format!("\n[collectors.artifacts]\nallow = [\"{}/*\"]\n{off}", dir.display()));
    world.enroll();
    let mut agent = world.run();
    set(&world, &["--tier", cell.tier]);
    let change = ["policy", "set", "--org", ORG, "--reason", "a test", "--collect", cell.collect];
    if !cell.accepted {
        assert!(refusal(&world.workspace_output(&change), 1).contains("standard tier"), "{cell:?}");
    } else if cell.collect == "off" {
        set(&world, &["--collect", "off"]);
    }
    let revision = set(&world, &["--store", "common"]);
    in_force(&world, revision);
    let as_expected = |world: &World, when: &str| {
        let runs = |id: &str| state(world, id) == "running";
        eventually(&format!("{when}: {cell:?}"), || {
            (runs("syslog") == cell.syslog && runs("processes") == cell.processes && runs("artifacts")).then_some(())
        });
        assert_eq!(world.vedette(&["check"]).status.success(), !cell.conflict, "{when}: {cell:?}");
    };
    let answered = |world: &World, ids: [String; 2]| {
        let refused = wait_for_state(world, &ids[1], "refused");
        assert!(refused["detail"].as_str().is_some_and(|why| why.contains("not on this host's list")), "{cell:?}");
        wait_for_state(world, &ids[0], "complete");
    };
    as_expected(&world, "connected");
    let id = world.status()["agent"].as_str().expect("an id").to_owned();
    let ask = |world: &World| [dir.join("file"), world.path("vedette.toml")].map(|path| request(world, &id, &path));
    let requests = ask(&world);
    answered(&world, requests);

    // Disconnected over a restart: the last policy applies.
    let address = world.address();
    world.serve = None;
    agent.terminate();
    let requests = ask(&world);
    let mut agent = world.run();
    as_expected(&world, "away");
    world.append("a.log", "a line\n");
    std::thread::sleep(std::time::Duration::from_secs(1));
    as_expected(&world, "away, a while later");
    world.serve(&address);
    answered(&world, requests);
    if cell.syslog {
        eventually("the line", || (world.count("syslog") == 1).then_some(()));
    } else {
        assert_eq!(world.count("syslog"), 0, "{cell:?}");
    }
    assert_eq!(world.workspace(&["alerts", "--org", ORG, "--format", "json"]), "", "{cell:?}");
    agent.terminate();
}
