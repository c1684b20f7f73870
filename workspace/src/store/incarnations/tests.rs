use super::*;
use crate::store::tests::add;
use vedette_wire::{Epoch, LaneName, geo::WorkspaceGeo};

struct World {
    _dir: tempfile::TempDir,
    control: ControlStore,
    organization: OrganizationId,
    came: std::cell::Cell<i64>,
}

const AGENT: AgentId = AgentId([7; 16]);
/// Long before batches are sealed here, so that no clock is ahead.
const NOON: i64 = 1_000_000;

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let control = ControlStore::create(dir.path(), WorkspaceGeo::Europe).await.expect("makes");
        let organization = add(&control, "acme").await.expect("adds");
        sqlx::query(
            "INSERT INTO agents (organization, id, hostname, version, policy_revision, enrolled) VALUES (?, ?, '', '', 0, 0)",
        )
        .bind(organization.to_string())
        .bind(AGENT.to_string())
        .execute(&control.pool)
        .await
        .expect("enrolls");
        Self { _dir: dir, control, organization, came: std::cell::Cell::new(NOON) }
    }

    fn header(&self, (machine, boot): (&str, &str), (epoch, seq): (u64, u64), sealed: i64) -> Header {
        let text = |id: &str| (!id.is_empty()).then(|| id.to_owned());
        let host = HostLabel { hostname: "h".into(), machine: text(machine), boot: text(boot), ..HostLabel::default() };
        let header = Header::new(self.organization, AGENT, LaneName::Records, WorkspaceGeo::Europe);
        Header { epoch: Epoch(epoch), seq, sealed, host, ..header }
    }

    async fn takes(&self, machine: (&str, &str), key: (u64, u64), sealed: i64) -> bool {
        self.judges(&self.header(machine, key, sealed)).await
    }

    async fn judges(&self, header: &Header) -> bool {
        self.came.set(self.came.get() + 1);
        self.control.judge_origin(header, self.came.get()).await.expect("judges").is_ok()
    }

    async fn may_rekey(&self, machine: &str, agent: u8) -> bool {
        let enrollment = Enrollment { agent: AgentId([agent; 16]), hostname: "h", machine: None, version: "0" };
        let done = self
            .control
            .rekey(AgentKey { organization: self.organization, agent: AGENT }, machine, &enrollment, 1)
            .await;
        done.expect("asks") == Rekeyed::Done
    }

    async fn alerts(&self) -> usize {
        self.control.alerts(self.organization).await.expect("lists").len()
    }

    /// First batch of an epoch, which names the previous one.
    async fn follows(&self, machine: (&str, &str), epoch: u64, before: (u64, u64)) {
        let mut header = self.header(machine, (epoch, 1), 1);
        header.predecessor = Some(Predecessor {
            epoch: Epoch(before.0),
            last_seq: before.1,
            lowest_held: None,
            set_aside: Default::default(),
        });
        let index = crate::batch_index::BatchIndex::new(header, []);
        self.control.record_landed(&format!("k{epoch}"), "2026-11-25", 1, &index, 3).await.expect("notes");
    }
}

const A: (&str, &str) = ("m", "a");
const B: (&str, &str) = ("m", "b");

#[tokio::test]
async fn another_machine_id_is_refused_and_may_make_another_key() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await, "the first that says which machine it is, is the one");
    assert!(!w.may_rekey("m", 1).await);
    // In the same boot, as of two containers on one kernel: not the other's fault. And without an id.
    for other in [("n", "x"), ("n", "a"), ("", "a"), ("", "x"), ("n", "")] {
        for lane in [LaneName::Records, LaneName::Blobs] {
            let mut header = w.header(other, (2, 1), 20);
            header.lane = lane;
            assert!(!w.judges(&header).await, "{other:?}");
            header.resealed = true;
            assert!(!w.judges(&header).await, "{other:?}");
        }
        assert!(w.takes(A, (1, 2), 30).await, "{other:?}");
    }
    // As many as allowed, each with its own key, and each once however often it asks.
    for agent in 50..=249 {
        assert!(w.may_rekey("n", agent).await && w.may_rekey("n", agent).await);
    }
    assert!(!w.may_rekey("m", 1).await, "the machine itself was not refused");
    assert!(!w.may_rekey("n", 7).await, "that is an agent already");
    assert_eq!(w.control.copies_of(AGENT).await.expect("lists").len(), 200);
    assert_eq!(w.alerts().await, 201, "one for the machine, and one for each that it became");
    // With collection off headers state no host; an older release states neither machine nor boot.
    let off = Header { host: HostLabel::default(), ..w.header(("n", "x"), (9, 1), 1) };
    assert!(w.judges(&off).await && w.takes(("", ""), (3, 1), 1).await);
}

#[tokio::test]
async fn a_machine_that_never_said_its_id_may_say_it_later() {
    let w = World::new().await;
    assert!(w.takes(("", "a"), (1, 1), 10).await && w.takes(("m", "b"), (1, 2), 20).await);
    assert!(w.takes(("", "a"), (1, 3), 30).await && w.alerts().await == 0);
}

#[tokio::test]
async fn a_machine_that_starts_again_is_no_clone_of_itself_in_whatever_order_its_batches_come() {
    let batches = [(A, 1, 10), (A, 2, 20), (A, 3, 9_000), (B, 4, 30), (B, 5, 40), (B, 6, 50), (A, 7, 60), (B, 8, 70)];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..50 {
        let (w, mut order) = (World::new().await, batches);
        random.shuffle(&mut order);
        for (machine, seq, sealed) in order {
            assert!(w.takes(machine, (1, seq), sealed).await, "{order:?}");
        }
        // Split or resealed, under another sequence or another epoch.
        for epoch in [1, 2] {
            let mut header = w.header(A, (epoch, 9), 10);
            header.resealed = true;
            assert!(w.judges(&header).await);
        }
        assert_eq!(w.alerts().await, 0);
    }
    // The queue was lost or damaged: the new epoch learns of the previous one only when that is salvaged. Salvaged batches come
    // in between, sealed by a clock that may have been ahead.
    for ahead in [0, 10 * NOON] {
        let w = World::new().await;
        assert!(w.takes(B, (1, 5), 50 + ahead).await && w.takes(B, (2, 1), 100 + ahead).await);
        assert!(w.takes(B, (1, 6), 60 + ahead).await && w.takes(B, (2, 2), 110 + ahead).await);
        assert!(w.takes(B, (1, 7), 70 + ahead).await);
        w.follows(B, 2, (1, 8)).await;
        assert!(w.takes(B, (1, 8), 9_000 + ahead).await && w.takes(B, (2, 3), 110 + ahead).await);
        assert_eq!(w.alerts().await, 0);
    }
    // Its clock restarts at zero with each boot, and its queue is in memory.
    let w = World::new().await;
    for (epoch, boot) in ["a", "b", "c", "d"].into_iter().enumerate() {
        for (seq, sealed) in [(1, 50 - epoch as i64), (2, 900), (3, 1_000 + 100 * epoch as i64)] {
            assert!(w.takes(("m", boot), (epoch as u64 + 1, seq), sealed).await, "{boot} {seq}");
        }
    }
    assert_eq!(w.alerts().await, 0);
}

#[tokio::test]
async fn a_disk_that_is_set_back_is_no_clone_as_long_as_it_goes_on_alone() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 5), 50).await && w.takes(B, (1, 11), 90).await);
    // Set back to before the second boot, twice; each time it meets 409 and begins another epoch.
    for (boot, epoch, at) in [("c", 2, 100), ("d", 3, 200)] {
        let c = ("m", boot);
        for seq in 6..=12 {
            assert!(w.takes(c, (1, seq), at + seq as i64).await, "{boot} {seq}");
        }
        assert!(w.takes(c, (epoch, 1), at + 20).await);
        w.follows(c, epoch, (1, 12)).await;
        assert!(w.takes(c, (1, 12), at + 12).await && w.takes(c, (epoch, 2), at + 30).await, "{boot}");
        assert_eq!(w.alerts().await, 0);
    }
    // As above, and the other machine continues as well.
    let c = ("m", "d");
    assert!(w.takes(B, (1, 13), 300).await && !w.takes(c, (3, 3), 310).await && w.alerts().await == 1);
    assert!(w.takes(B, (1, 14), 320).await && w.may_rekey("m", 9).await);
}

#[tokio::test]
async fn of_two_that_go_on_in_turn_the_boot_that_was_seen_first_stays() {
    for (behind, ahead) in [(0, 0), (10_000, 0), (0, i64::MAX / 2)] {
        let w = World::new().await;
        let at = |sealed| sealed + ahead - behind;
        assert!(w.takes(A, (1, 1), NOON - 20_000).await && w.takes(B, (2, 1), at(NOON)).await);
        assert!(w.takes(A, (1, 2), NOON + 1_000).await, "both go on");
        assert!(!w.takes(B, (2, 2), at(NOON + 2_000)).await, "{behind} {ahead}");
        assert!(!w.takes(B, (3, 1), at(NOON + 2_001)).await, "in whichever epoch");
        let mut resealed = w.header(B, (4, 1), 1);
        resealed.resealed = true;
        assert!(!w.judges(&resealed).await, "and what it seals again");
        resealed.lane = LaneName::Blobs;
        assert!(!w.judges(&resealed).await, "on either lane");
        assert!(w.may_rekey("m", 1).await && w.takes(A, (1, 3), NOON + 3_000).await);
    }
    // The original met 409, and the clone continues in its epoch.
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await && w.takes(B, (1, 2), 20).await && w.takes(A, (3, 1), 30).await);
    w.follows(A, 3, (1, 2)).await;
    assert!(w.takes(B, (1, 3), 40).await && w.takes(A, (3, 2), 50).await, "the original goes on");
    assert!(!w.takes(B, (1, 4), 60).await && w.takes(A, (3, 3), 70).await);
}

#[tokio::test]
async fn a_machine_that_was_copied_while_it_ran_is_told_by_its_epochs() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await && w.takes(A, (2, 1), 20).await);
    // One of the two met the other's batch under its key, and began another epoch.
    w.follows(A, 2, (1, 4)).await;
    assert!(w.takes(A, (1, 4), 30).await && w.takes(A, (2, 2), 35).await, "what it had sealed before");
    assert!(!w.may_rekey("m", 1).await);
    assert!(w.takes(A, (1, 5), 40).await, "which it cannot have");
    assert!(!w.takes(A, (2, 3), 50).await && w.may_rekey("m", 1).await);
    assert!(w.takes(A, (1, 6), 60).await);
}

#[tokio::test]
async fn what_is_remembered_is_bounded_and_floods_do_not_drive_the_original_out() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 1).await);
    for number in 0..REMEMBERED_MAX as u64 * 2 {
        w.takes(("m", &number.to_string()), (2, number + 1), 2).await;
        w.takes(("n", &number.to_string()), (3, number + 1), 2).await;
        w.takes(B, (number + 10, 1), 2).await;
    }
    for table in ["boots", "incarnations"] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&w.control.pool).await.expect("counts");
        assert!(count <= REMEMBERED_MAX + 1, "{table}: {count}");
    }
    assert!(w.takes(A, (1, 2), NOON).await, "it was there first");
}
