use super::*;
use crate::control::tests::add;
use vedette_wire::{Epoch, Lane, geo::WorkspaceGeo};

struct World {
    _dir: tempfile::TempDir,
    control: Control,
    organization: OrganizationId,
    came: std::cell::Cell<i64>,
}

const AGENT: AgentId = AgentId([7; 16]);
/// Far behind what is sealed here: clocks are not ahead.
const NOON: i64 = 1_000_000;

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        let control = Control::create(dir.path(), WorkspaceGeo::Europe).await.expect("makes");
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
        let header = Header::new(self.organization, AGENT, Lane::Records, WorkspaceGeo::Europe);
        Header { epoch: Epoch(epoch), seq, sealed, host, ..header }
    }

    async fn takes(&self, machine: (&str, &str), key: (u64, u64), sealed: i64) -> bool {
        self.judges(&self.header(machine, key, sealed)).await
    }

    async fn judges(&self, header: &Header) -> bool {
        self.came.set(self.came.get() + 1);
        self.control.is_its_own(header, self.came.get()).await.expect("judges").is_ok()
    }

    async fn may_rekey(&self, machine: (&str, &str), agent: u8) -> bool {
        let enrollment = Enrollment { agent: AgentId([agent; 16]), hostname: "h", machine: None, version: "0" };
        self.control.rekey((self.organization, AGENT), machine, &enrollment, 1).await.expect("asks")
    }

    async fn alerts(&self) -> usize {
        self.control.alerts(self.organization).await.expect("lists").len()
    }

    /// An epoch's first batch names the one before.
    async fn follows(&self, machine: (&str, &str), epoch: u64, before: (u64, u64)) {
        let mut header = self.header(machine, (epoch, 1), 1);
        header.predecessor = Some(Predecessor {
            epoch: Epoch(before.0),
            last_seq: before.1,
            lowest_held: None,
            set_aside: Default::default(),
        });
        let noted = crate::tiles::Noted::new(header, []);
        self.control.note_landed(&format!("k{epoch}"), "2026-11-25", 1, &noted, 3).await.expect("notes");
    }
}

const A: (&str, &str) = ("m", "a");
const B: (&str, &str) = ("m", "b");

#[tokio::test]
async fn another_machine_id_is_refused_and_may_make_another_key_once() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await, "the first that says which machine it is, is the one");
    assert!(!w.may_rekey(A, 1).await);
    // In the same boot: of two containers on one kernel, which is not the other's fault.
    for other in [("n", "x"), ("n", "a"), ("", "a"), ("", "x"), ("n", "")] {
        assert!(!w.takes(other, (2, 1), 20).await, "{other:?}");
        assert!(w.takes(A, (1, 2), 30).await, "{other:?}");
        assert!(!w.takes(other, (2, 2), 40).await, "{other:?}");
    }
    assert!(!w.judges(&w.header(("", ""), (4, 1), 1)).await, "nor what names none, once one has");
    assert!(w.may_rekey(("n", "x"), 1).await && w.may_rekey(("n", "x"), 1).await, "the same again");
    for agent in 2..=6 {
        assert!(w.may_rekey(("n", "x"), agent).await, "one for each start that was refused");
    }
    assert!(!w.may_rekey(("n", "x"), 7).await);
    assert_eq!(w.control.copies_of(AGENT).await.expect("lists").len(), 6);
    assert!(w.alerts().await >= 6);
    // With collection off nothing is said of the host, and nothing is known.
    let off = Header { host: HostLabel::default(), ..w.header(("n", "x"), (9, 1), 1) };
    assert!(w.judges(&off).await);
}

#[tokio::test]
async fn a_machine_that_starts_again_is_no_clone_of_itself_in_whatever_order_its_batches_come() {
    let batches = [(A, 1, 10), (A, 2, 20), (A, 3, 9_000), (B, 4, 30), (B, 5, 40), (B, 6, 50)];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..50 {
        let (w, mut order) = (World::new().await, batches);
        random.shuffle(&mut order);
        for (machine, seq, sealed) in order {
            assert!(w.takes(machine, (1, seq), sealed).await, "{order:?}");
        }
        // Split or sealed again, under another sequence or another epoch: it names no boot.
        assert!(w.takes(("m", ""), (1, 7), 10).await && w.takes(("m", ""), (2, 1), 10).await);
        assert_eq!(w.alerts().await, 0);
    }
    // Its queue was lost: another epoch, and what is salvaged of the old one.
    let w = World::new().await;
    assert!(w.takes(B, (1, 5), 50).await && w.takes(B, (2, 1), 100).await && w.takes(B, (1, 6), 60).await);
    w.follows(B, 2, (1, 8)).await;
    assert!(w.takes(B, (1, 8), 9_000).await && w.takes(B, (2, 2), 110).await && w.alerts().await == 0);
}

#[tokio::test]
async fn a_disk_that_is_set_back_is_no_clone_as_long_as_it_goes_on_alone() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 5), 50).await && w.takes(A, (1, 9), 90).await);
    // It meets 409 there, and begins another epoch.
    assert!(w.takes(B, (1, 6), 100).await && w.takes(B, (2, 1), 110).await);
    w.follows(B, 2, (1, 6)).await;
    assert!(w.takes(B, (2, 2), 120).await && w.alerts().await == 0);
    assert!(w.takes(A, (1, 10), 130).await, "the other goes on as well");
    assert!(!w.takes(B, (2, 3), 140).await && w.alerts().await == 1);
}

#[tokio::test]
async fn of_two_that_interleave_the_start_that_was_seen_first_stays() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await && w.takes(B, (2, 1), 20).await, "it may have lost its queue and started");
    assert!(w.takes(A, (1, 2), 30).await, "both go on");
    assert!(!w.takes(B, (2, 2), 40).await && !w.takes(B, (3, 1), 41).await, "in whichever epoch");
    assert!(w.may_rekey(("m", "later"), 1).await, "also when it has started again meanwhile");
    assert!(w.takes(A, (1, 3), 50).await);
    // A clock that is years ahead hides nothing.
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), NOON).await && w.takes(B, (2, 1), i64::MAX).await);
    assert!(w.takes(A, (1, 2), NOON + 10).await && !w.takes(B, (2, 2), i64::MAX).await);
    // In one epoch, as of a queue that was copied too.
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await && w.takes(B, (1, 2), 20).await && w.takes(A, (1, 3), 30).await);
    assert!(!w.takes(B, (1, 4), 40).await && w.takes(A, (1, 5), 50).await);
}

#[tokio::test]
async fn a_machine_that_was_copied_while_it_ran_is_told_by_its_epochs() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 10).await && w.takes(A, (2, 1), 20).await);
    // One of the two met the other's batch under its key, and began another epoch.
    w.follows(A, 2, (1, 4)).await;
    assert!(w.takes(A, (1, 4), 30).await, "what it had sealed before");
    assert!(!w.may_rekey(A, 1).await);
    assert!(w.takes(A, (1, 5), 40).await, "which it cannot have");
    assert!(!w.takes(A, (2, 2), 50).await && w.may_rekey(A, 1).await);
}

#[tokio::test]
async fn what_is_remembered_is_bounded_and_floods_do_not_drive_the_original_out() {
    let w = World::new().await;
    assert!(w.takes(A, (1, 1), 1).await);
    for number in 0..REMEMBERED_MAX * 2 {
        w.takes(("m", &number.to_string()), (2, number as u64 + 1), number + 2).await;
        w.takes(("n", &number.to_string()), (3, number as u64 + 1), number + 2).await;
    }
    for table in ["starts", "incarnations"] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&w.control.pool).await.expect("counts");
        assert!(count <= 2 * REMEMBERED_MAX, "{table}: {count}");
    }
    assert!(w.takes(A, (1, 2), 2).await, "it was there first");
}
