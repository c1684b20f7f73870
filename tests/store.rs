//! Store levels: the policy selects the security events in the tables; agents collect all of them.

use crate::{
    policy::{in_force, set},
    support::{ORG, World, eventually},
};
use serde_json::Value;

/// One line of each sort, as rsyslog writes them.
fn lines(number: usize) -> String {
    [
        format!("nginx[7]: request {number}"),
        format!("sshd[7]: Accepted publickey for alice from 192.0.2.7 port {number} ssh2"),
        format!("sshd[7]: pam_unix(sshd:session): session closed for user alice{number}"),
        format!("sshd[7]: Connection closed by 192.0.2.7 port {number} [preauth]"),
    ]
    .map(|line| format!("2026-11-23T03:21:19+00:00 web1 {line}\n"))
    .concat()
}

fn account(world: &World) -> Value {
    world.ledger().into_iter().find(|account| account["collector"] == "syslog").unwrap_or_default()
}

#[test]
fn the_tables_hold_what_the_tier_keeps_and_the_rest_is_counted() {
    let mut world = World::new();
    world.enroll();
    let agent = world.run();
    let mut expected = (0, 0);
    for (number, (tier, rows)) in
        [("all", 4), ("minimal", 2), ("common", 3), ("none", 1), ("all", 4)].into_iter().enumerate()
    {
        let revision = set(&world, &["--store", tier]);
        in_force(&world, revision);
        world.append("a.log", &lines(number));
        expected = (expected.0 + 4, expected.1 + rows);
        eventually("all lines to land", || (account(&world)["emitted"] == expected.0).then_some(()));
        let found = world.count("syslog");
        assert_eq!(found, expected.1, "{tier}");
        let account = account(&world);
        let count = |key: &str| account[key].as_u64().expect("a number");
        assert_eq!((count("stored"), count("missing"), count("repeated")), (expected.1, 0, 0), "{account}");
        assert_eq!(account["dropped"]["policy"].as_u64().unwrap_or(0), expected.0 - expected.1, "{account}");
    }
    let rows = world.query("SELECT app, count(*) AS n FROM syslog GROUP BY app ORDER BY app");
    assert_eq!(rows.iter().map(|row| row["n"].as_u64()).collect::<Vec<_>>(), [Some(5), Some(9)], "{rows:?}");
    // A note that was lost in a power cut is recovered from the landed batch, with the level of its revision.
    drop(agent);
    world.serve = None;
    for table in ["landed", "stored", "positions", "sequences", "epochs"] {
        if !world.control_sql(&format!("DELETE FROM {table}")) {
            println!("skipped: there is no python3");
            return;
        }
    }
    world.serve("127.0.0.1:0");
    assert_eq!(account(&world)["stored"], expected.1);
    assert_eq!(world.count("syslog"), expected.1);
    let refused = world.workspace_output(&["policy", "set", "--org", ORG, "--reason", "x", "--store", "some"]);
    assert!(!refused.status.success());
}
