//! The ledger against a tailer with a deliberate fault: its counters are consistent, its positions are not.

use crate::support::{World, eventually};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use vedette_transport::{BatchContext, BatchLimits, Lane, LaneConfig, Queue, Quota};
use vedette_wire::{AgentId, Chunk, Compression, OrganizationId, Source, geo::WorkspaceGeo, record::HostLabel};

const LINE_BYTES: u64 = 51;

fn line(number: usize) -> String {
    let line = format!("<30>1 2026-11-23T03:21:19Z web1 test 7 - - line {number:02}\n");
    assert_eq!(line.len() as u64, LINE_BYTES);
    line
}

fn lines(world: &World, numbers: std::ops::Range<usize>) {
    world.append("a.log", &numbers.map(line).collect::<String>());
}

fn account(world: &World, collector: &str) -> Option<Value> {
    world.ledger().into_iter().find(|account| account["collector"] == collector)
}

fn figures(account: &Value) -> [u64; 5] {
    ["emitted", "stored", "in_flight", "missing", "repeated"].map(|key| account[key].as_u64().expect("a number"))
}

/// A tailer's cursor in the queue.
#[derive(Serialize, Deserialize)]
struct Cursor {
    device: u64,
    inode: u64,
    generation: i64,
    path: String,
    offset: u64,
    seen: i64,
    #[serde(with = "serde_bytes")]
    before: Vec<u8>,
}

/// Moves the cursor of the only file by a number of lines.
fn move_cursor(world: &World, by: i64) {
    let quota = Quota::bytes(1 << 30);
    let queue = Queue::open(&world.path("state"), vedette_wire::LaneName::Records, quota, 1).expect("opens");
    let file = std::fs::read(world.path("log/a.log")).expect("is there");
    let mut moved = None;
    for (id, bytes) in queue.cursors("syslog").expect("reads") {
        if let Ok(mut cursor) = rmp_serde::from_slice::<Cursor>(&bytes) {
            cursor.offset = cursor.offset.checked_add_signed(by * LINE_BYTES as i64).expect("inside the file");
            let end = cursor.offset as usize;
            cursor.before = file[end.saturating_sub(64)..end].to_vec();
            let mut chunk = Chunk::new(Arc::new(Source { collector: "syslog", id, name: None }));
            chunk.cursor = Some(rmp_serde::to_vec_named(&cursor).expect("serializes"));
            moved = Some(chunk);
        }
    }
    let context = BatchContext {
        organization: OrganizationId::from_uuid(uuid::Uuid::nil()),
        agent: AgentId([0; 16]),
        geo: WorkspaceGeo::Europe,
        agent_version: String::new(),
        host: HostLabel::default(),
        policy_revision: 1,
    };
    let age_max = Duration::from_millis(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("builds");
    runtime.block_on(async {
        let lane = Lane::start(LaneConfig {
            queue,
            limits: BatchLimits { bytes_max: 1 << 20, records_max: 1000, age_max, compression: Compression::Zstd },
            context: watch::channel(context).1,
            codec: watch::channel(None).1,
            intake_bytes_max: 1 << 20,
            in_flight_bytes_max: 1 << 20,
            now: Arc::new(|| 1),
            post: None,
        })
        .expect("starts");
        lane.intake().put(moved.expect("there is one file")).expect("open");
        lane.stop(Duration::ZERO).await;
    });
}

#[test]
fn a_tailer_that_skips_or_repeats_lines_shows_in_the_ledger() {
    let world = World::new();
    world.enroll();
    lines(&world, 0..10);
    let mut agent = world.run();
    eventually("ten lines", || (figures(&account(&world, "syslog")?)[1] == 10).then_some(()));
    assert_eq!(figures(&account(&world, "syslog").expect("is there")), [10, 10, 0, 0, 0]);
    agent.terminate();

    lines(&world, 10..15);
    move_cursor(&world, 2);
    let mut agent = world.run();
    eventually("the others", || (figures(&account(&world, "syslog")?)[1] == 13).then_some(()));
    let skipped = account(&world, "syslog").expect("is there");
    assert_eq!(figures(&skipped), [13, 13, 0, 1, 0], "of a hole in a file it is not known how many lines it has");
    let gap = &skipped["gaps"][0];
    assert_eq!(
        (&gap["what"], &gap["from"], &gap["to"]),
        (&json!("positions"), &json!(10 * LINE_BYTES), &json!(12 * LINE_BYTES))
    );
    let table = world.workspace(&["ledger", "--org", crate::support::ORG]);
    assert!(table.contains("gap: positions 510 to 612 of ") && table.contains(", between records/"), "{table}");
    agent.terminate();

    move_cursor(&world, -3);
    lines(&world, 15..16);
    let _agent = world.run();
    eventually("the repeated lines", || (figures(&account(&world, "syslog")?)[1] == 17).then_some(()));
    assert_eq!(figures(&account(&world, "syslog").expect("is there")), [17, 17, 0, 1, 3]);
    for other in world.ledger().iter().filter(|account| account["collector"] != "syslog") {
        assert_eq!(figures(other)[3..], [0, 0], "{other}");
    }
}

#[test]
fn the_ledger_is_printed_for_people_and_an_agent_that_is_not_there_is_said() {
    let world = World::new();
    world.enroll();
    lines(&world, 0..3);
    let _agent = world.run();
    eventually("three lines", || (figures(&account(&world, "syslog")?)[1] == 3).then_some(()));
    let table = world.workspace(&["ledger", "--org", crate::support::ORG]);
    let row = table.lines().find(|line| line.contains(" syslog ")).expect("a row");
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["syslog", "3", "3", "0", "0", "0", "0", "0"]);
    let nobody = world.workspace_output(&["ledger", "--org", crate::support::ORG, "--agent", "nobody"]);
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("vedette-workspace agents"));
}
