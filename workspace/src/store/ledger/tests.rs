use super::{
    balance::{Fate, fate},
    *,
};
use crate::store::{AgentKey, ControlStore, tests::add};
use vedette_wire::{
    AgentId, Batch, Epoch as EpochId, Header, LaneName, OrganizationId, Position, Record, SourceRef, body::Syslog,
    geo::WorkspaceGeo, policy::StoreLevel,
};

const AGENT: AgentId = AgentId([7; 16]);

async fn control() -> (tempfile::TempDir, ControlStore, OrganizationId) {
    let dir = tempfile::tempdir().expect("temp dir");
    let control = ControlStore::create(dir.path(), WorkspaceGeo::Europe).await.expect("makes");
    let organization = add(&control, "acme").await.expect("adds");
    (dir, control, organization)
}

/// A batch of `syslog` lines at byte ranges, with `emitted` lines since the epoch began.
fn batch(
    organization: OrganizationId,
    seq: u64,
    lowest_held: u64,
    emitted: u64,
    positions: &[(u64, u64)],
) -> BatchIndex {
    let mut ledger = Ledger::default();
    ledger.emit("syslog", emitted);
    let header = Header {
        epoch: EpochId(5),
        seq,
        sealed: 1,
        policy_revision: 1,
        sources: vec![SourceRef {
            collector: "syslog".to_owned(),
            id: "f".to_owned(),
            name: None,
            reached: 0,
            dropped: Vec::new(),
        }],
        records: positions.len() as u32,
        ledger,
        lowest_held,
        ..Header::new(organization, AGENT, LaneName::Records, WorkspaceGeo::Europe)
    };
    let record = |&(from, to): &(u64, u64)| Record {
        source: 0,
        observed: 1,
        position: Position(from, to),
        body: Syslog::default().into(),
    };
    BatchIndex::of(Batch { header, records: positions.iter().map(record).collect() }, StoreLevel::All)
}

async fn land(control: &ControlStore, index: &BatchIndex) {
    let key = index.header.key().to_string();
    control.record_landed(&key, "2026-11-25", 1, index, index.header.seq.cast_signed()).await.expect("notes");
}

/// Emitted, stored, in flight, missing, repeated; and the gaps.
async fn books(
    control: &ControlStore,
    organization: OrganizationId,
) -> ((u64, u64, u64, u64, u64), Vec<(&'static str, u64, u64)>) {
    let accounts = control.ledger(organization, None).await.expect("adds up");
    let [a] = accounts.as_slice() else { panic!("{accounts:?}") };
    let gaps = a.gaps.iter().map(|gap| (gap.what, gap.from, gap.to)).collect();
    ((a.emitted, a.stored, a.in_flight, a.missing, a.repeated), gaps)
}

#[tokio::test]
async fn batches_that_land_in_any_order_close_without_a_gap() {
    let (_dir, control, org) = control().await;
    let all = [
        batch(org, 1, 1, 2, &[(0, 10), (10, 30)]),
        batch(org, 2, 1, 3, &[(30, 40)]),
        batch(org, 3, 1, 5, &[(40, 50), (50, 60)]),
        batch(org, 4, 1, 6, &[(60, 70)]),
    ];
    for at in [2, 0, 3, 1] {
        land(&control, &all[at]).await;
        land(&control, &all[at]).await;
    }
    assert_eq!(books(&control, org).await, ((6, 6, 0, 0, 0), vec![]), "each once, though noted twice");
}

#[tokio::test]
async fn a_batch_is_in_flight_while_the_agent_holds_it_and_missing_when_it_does_not() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 2, &[(0, 10), (10, 30)])).await;
    land(&control, &batch(org, 3, 2, 6, &[(60, 70)])).await;
    // Three lines are in a held batch in between, which explains the gap in the file.
    assert_eq!(books(&control, org).await, ((6, 3, 3, 0, 0), vec![]));
    land(&control, &batch(org, 4, 3, 7, &[(70, 80)])).await;
    assert_eq!(books(&control, org).await, ((7, 4, 0, 3, 0), vec![("sequences", 2, 3)]));
    land(&control, &batch(org, 2, 2, 5, &[(30, 40), (40, 50), (50, 60)])).await;
    assert_eq!(books(&control, org).await, ((7, 7, 0, 0, 0), vec![]), "the gap closes");
}

/// The empty batch in the place of a split one names its parts, whose sequences are later.
#[tokio::test]
async fn parts_of_a_split_batch_are_in_flight_while_the_agent_holds_them() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 2, &[(0, 1), (1, 2)])).await;
    land(&control, &batch(org, 3, 2, 6, &[(5, 6)])).await;
    let mut split = batch(org, 2, 2, 5, &[]);
    // Others than a later sequence, and more than two, are not an agent's.
    split.header.split_into = vec![u64::MAX, 1, 4, 5, 6];
    land(&control, &split).await;
    assert_eq!(books(&control, org).await, ((6, 3, 3, 0, 0), vec![]), "neither part has landed");
    land(&control, &batch(org, 4, 4, 6, &[(2, 3), (3, 4)])).await;
    assert_eq!(books(&control, org).await, ((6, 5, 1, 0, 0), vec![]), "the newest sequence is one of them");
    land(&control, &batch(org, 6, 5, 7, &[(6, 7)])).await;
    assert_eq!(books(&control, org).await, ((7, 6, 1, 0, 0), vec![]), "a later one has landed");
    land(&control, &batch(org, 7, 7, 8, &[(7, 8)])).await;
    assert_eq!(books(&control, org).await, ((8, 7, 0, 1, 0), vec![("positions", 4, 5)]), "it is held no more");
    land(&control, &batch(org, 5, 5, 6, &[(4, 5)])).await;
    assert_eq!(books(&control, org).await, ((8, 8, 0, 0, 0), vec![]), "the gap closes");
    // The empty batch of another one lands behind its parts.
    land(&control, &batch(org, 9, 8, 10, &[(8, 9)])).await;
    land(&control, &batch(org, 10, 8, 10, &[(9, 10)])).await;
    let mut split = batch(org, 8, 8, 10, &[]);
    split.header.split_into = vec![9, 10];
    land(&control, &split).await;
    land(&control, &batch(org, 11, 8, 11, &[(15, 16)])).await;
    assert_eq!(books(&control, org).await, ((11, 11, 0, 5, 0), vec![("positions", 10, 15)]), "they are no excuse");
    // Those of a third land behind it.
    let mut split = batch(org, 12, 12, 13, &[]);
    split.header.split_into = vec![13, 14];
    land(&control, &split).await;
    for (seq, at) in [(13, 16), (14, 17), (15, 20)] {
        land(&control, &batch(org, seq, 12, 14, &[(at, at + 1)])).await;
    }
    let gaps = vec![("positions", 10, 15), ("positions", 18, 20)];
    assert_eq!(books(&control, org).await, ((14, 14, 0, 7, 0), gaps), "nor are those that landed");
}

#[tokio::test]
async fn an_epoch_whose_first_batches_did_not_come_is_not_whole() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 3, 3, 6, &[(60, 70)])).await;
    assert_eq!(books(&control, org).await, ((6, 1, 0, 5, 0), vec![("sequences", 1, 3)]));
}

#[tokio::test]
async fn a_tailer_that_skips_lines_shows_though_its_counters_agree() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 2, &[(0, 10), (10, 30)])).await;
    land(&control, &batch(org, 2, 2, 3, &[(40, 50)])).await;
    land(&control, &batch(org, 3, 3, 5, &[(50, 60), (65, 70)])).await;
    assert_eq!(books(&control, org).await, ((5, 5, 0, 2, 0), vec![("positions", 30, 40), ("positions", 60, 65)]));
}

#[tokio::test]
async fn a_gap_that_stays_raises_one_alert_until_it_closes() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 2, &[(0, 10), (10, 30)])).await;
    land(&control, &batch(org, 2, 2, 3, &[(40, 50)])).await;
    let alerts = async || control.alerts(org).await.expect("reads");
    control.alert_gaps(600_000_000_000).await.expect("checks");
    assert!(alerts().await.is_empty(), "it may be on its way");
    control.set_primary(Some("https://other")).await.expect("sets");
    control.alert_gaps(600_000_000_003).await.expect("checks");
    assert!(alerts().await.is_empty(), "it may be at the other");
    control.set_primary(None).await.expect("sets");
    for _ in 0..2 {
        control.alert_gaps(600_000_000_003).await.expect("checks");
    }
    let raised = alerts().await;
    let [alert] = raised.as_slice() else { panic!("{raised:?}") };
    assert!(alert.kind == "gap" && alert.times == 1 && alert.detail.contains("positions 30 to 40 of f"), "{alert:?}");
    land(&control, &batch(org, 3, 3, 4, &[(30, 40)])).await;
    control.alert_gaps(600_000_000_004).await.expect("checks");
    assert!(alerts().await.is_empty(), "what was on its way came");
}

#[tokio::test]
async fn a_gap_of_sequences_alone_raises_an_alert_and_one_of_a_pair_none() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    land(&control, &batch(org, 3, 3, 3, &[(10, 20)])).await;
    control.alert_gaps(600_000_000_010).await.expect("checks");
    let raised = control.alerts(org).await.expect("reads");
    assert!(matches!(raised.as_slice(), [alert] if alert.detail.contains("sequences 2 to 3")), "{raised:?}");
    control.set_primary(Some("https://other")).await.expect("sets");
    control.alert_gaps(600_000_000_011).await.expect("checks");
    assert!(control.alerts(org).await.expect("reads").is_empty(), "it may be at the other");
}

#[tokio::test]
async fn a_tailer_that_repeats_lines_shows_though_its_counters_agree() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 3, &[(0, 10), (10, 30), (30, 40)])).await;
    land(&control, &batch(org, 2, 2, 6, &[(10, 30), (30, 40), (40, 50)])).await;
    assert_eq!(books(&control, org).await, ((6, 6, 0, 0, 2), vec![]));
    // Within one batch as well.
    land(&control, &batch(org, 3, 3, 8, &[(50, 60), (50, 60)])).await;
    assert_eq!(books(&control, org).await, ((8, 8, 0, 0, 3), vec![]));
}

#[tokio::test]
async fn what_was_dropped_is_told_by_reason() {
    let (_dir, control, org) = control().await;
    let mut index = batch(org, 1, 1, 3, &[(0, 10)]);
    index.header.ledger.drop("syslog", vedette_wire::Reason::SourceOverrun, 2);
    land(&control, &index).await;
    let accounts = control.ledger(org, Some(&AGENT.to_string())).await.expect("adds up");
    assert_eq!((accounts[0].dropped["source_overrun"], accounts[0].missing), (2, 0));
    assert!(control.ledger(org, Some("another")).await.expect("adds up").is_empty());
}

#[tokio::test]
async fn what_the_agent_set_aside_is_not_missing() {
    let (_dir, control, org) = control().await;
    let mut later = batch(org, 5, 4, 9, &[(90, 100)]);
    later.header.set_aside.quarantined = vec![(2, 2)];
    later.header.set_aside.purged = vec![(4, 4)];
    for index in [batch(org, 1, 1, 1, &[(0, 10)]), batch(org, 3, 3, 5, &[(40, 50)]), later] {
        land(&control, &index).await;
    }
    let account = control.ledger(org, None).await.expect("adds up").remove(0);
    assert_eq!((account.stored, account.quarantined, account.dropped["policy"], account.missing), (3, 3, 3, 0));
    assert!(account.gaps.is_empty());
}

#[tokio::test]
async fn what_was_acknowledged_and_is_not_here_is_said_and_then_read_again() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    let (held, gone) = (batch(org, 4, 2, 4, &[(30, 40)]), batch(org, 6, 6, 6, &[(60, 70)]));
    land(&control, &held).await;
    assert_eq!(control.lost(&held.header).await.expect("looks"), None, "the agent holds them");
    land(&control, &gone).await;
    assert_eq!(control.lost(&gone.header).await.expect("looks"), Some((2, 5)));
    // Another epoch states that it reads them again; the cursor shows that it can.
    let mut next = batch(org, 1, 1, 2, &[(10, 20), (20, 30)]);
    next.header.epoch = EpochId(6);
    next.header.cursors =
        vec![vedette_wire::CursorUpdate { collector: "syslog".to_owned(), id: "f".to_owned(), cursor: Some(vec![1]) }];
    let set_aside = SetAside { read_again: vec![(2, 5)], ..SetAside::default() };
    next.header.predecessor = Some(Predecessor { epoch: EpochId(5), last_seq: 6, lowest_held: None, set_aside });
    land(&control, &next).await;
    assert_eq!(control.lost(&next.header).await.expect("looks"), None, "of its own epoch nothing is");
    // Two of six lines are read again, and one cannot be.
    assert_eq!(books(&control, org).await, ((5, 5, 0, 1, 0), vec![("positions", 40, 60)]));
}

#[tokio::test]
async fn what_may_have_landed_at_the_other_of_a_pair_is_not_lost() {
    let (_dir, control, org) = control().await;
    let gone = batch(org, 3, 3, 3, &[(20, 30)]);
    land(&control, &gone).await;
    assert_eq!(control.lost(&gone.header).await.expect("looks"), Some((1, 2)));
    control.set_primary(Some("https://first")).await.expect("notes");
    assert_eq!(control.lost(&gone.header).await.expect("looks"), None);
}

#[test]
fn one_word_holds_for_all_sequences_of_a_hole() {
    let set_aside = SetAside { quarantined: vec![(3, 4)], purged: vec![(5, 5)], ..SetAside::default() };
    let of = |lowest_held, from, to| fate(lowest_held, &set_aside, from, to);
    assert_eq!(of(9, 3, 5), Fate::Quarantined);
    assert_eq!(of(9, 5, 6), Fate::Purged);
    assert_eq!(of(9, 2, 5), Fate::Missing);
    assert_eq!(of(3, 3, 7), Fate::Held);
    assert_eq!(of(7, 6, 8), Fate::Missing);
    assert_eq!(of(2, 6, 8), Fate::Held);
}

#[tokio::test]
async fn a_sequence_that_held_nothing_of_a_collector_does_not_excuse_its_hole() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    // Sequence 2 in between is held, and has no line by the counters.
    land(&control, &batch(org, 3, 2, 2, &[(20, 30)])).await;
    assert_eq!(books(&control, org).await, ((2, 2, 0, 1, 0), vec![("positions", 10, 20)]));
    let gap = control.ledger(org, None).await.expect("adds up").remove(0).gaps.remove(0);
    assert_eq!((gap.after.as_str(), gap.before.as_str()), ("records/0000000000000005/1", "records/0000000000000005/3"));
    assert!(gap.since <= gap.until);
}

#[tokio::test]
async fn sums_that_a_hostile_agent_made_huge_do_not_stop_the_others_being_printed() {
    let (_dir, control, org) = control().await;
    let far = (1 << 53) - 2;
    let mut index = batch(org, 1, 1, 1 << 53, &[(0, 1), (far, far + 1)]);
    let pair = std::mem::take(&mut index.runs);
    for source in 0..2100 {
        index.runs.extend(pair.iter().map(|run| PositionRun { source: source.to_string(), ..run.clone() }));
    }
    index.header.set_aside.purged = vec![(0, u64::MAX); vedette_wire::set_aside::RANGES_MAX];
    index.check().expect("it may say so");
    land(&control, &index).await;
    land(&control, &batch(org, 1 << 52, 1, 1 << 53, &[])).await;
    assert_eq!(books(&control, org).await.0.3, u64::MAX);
}

#[tokio::test]
async fn runs_and_stretches_far_apart_merge_with_their_neighbours_alone() {
    let (_dir, control, org) = control().await;
    // Every other one first, then the rest from the end: each joins two runs.
    let one = |seq: u64| batch(org, seq, 1, seq, &[(seq * 10, seq * 10 + 10)]);
    for seq in (0..50).map(|n| 2 * n + 1).chain((1..50).rev().map(|n| 2 * n)) {
        land(&control, &one(seq)).await;
    }
    assert_eq!(books(&control, org).await, ((99, 99, 0, 0, 0), vec![]));
    // One in the middle of all, and one that covers many.
    land(&control, &batch(org, 100, 1, 100, &[(500, 505)])).await;
    land(&control, &batch(org, 101, 1, 101, &[(5, 900)])).await;
    assert_eq!(books(&control, org).await.0, (101, 101, 0, 0, 2));
}

#[tokio::test]
async fn positions_whose_records_were_dropped_are_no_hole() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    let with = |dropped| {
        let mut header = batch(org, 2, 1, 6, &[(40, 50)]).header;
        header.ledger.drop("syslog", vedette_wire::Reason::SourceOverrun, 3);
        header.sources[0].dropped = dropped;
        let record = Record { source: 0, observed: 1, position: Position(40, 50), body: Syslog::default().into() };
        BatchIndex::of(Batch { header, records: vec![record] }, StoreLevel::All)
    };
    land(&control, &with(vec![(10, 40, 3)])).await;
    assert_eq!(books(&control, org).await, ((6, 2, 0, 0, 0), vec![]));
    let mut far = with(vec![(0, u64::MAX, 3)]);
    far.check().expect_err("out of range");
    far = with(vec![(9, 1, 3)]);
    far.check().expect_err("it ends before it begins");
}

/// A header of the next epoch, which states the end of epoch 5.
fn successor(
    org: OrganizationId,
    at: u64,
    last_seq: u64,
    lowest_held: Option<u64>,
    lost: Vec<(u64, u64)>,
) -> BatchIndex {
    let mut index = batch(org, 1, 1, 1, &[(at, at + 10)]);
    index.header.epoch = EpochId(6);
    let set_aside = SetAside { lost, ..SetAside::default() };
    index.header.predecessor = Some(Predecessor { epoch: EpochId(5), last_seq, lowest_held, set_aside });
    index
}

#[tokio::test]
async fn what_was_lost_with_a_damaged_queue_is_counted_and_what_was_salvaged_is_in_flight_until_it_lands() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    // Sequences 2 to 4 have two lines each: 3 is lost, 2 and 4 were salvaged.
    land(&control, &batch(org, 5, 1, 8, &[(70, 80)])).await;
    let account = async || control.ledger(org, None).await.expect("adds up").remove(0);
    assert_eq!((account().await.in_flight, account().await.missing), (6, 0));
    land(&control, &successor(org, 80, 5, Some(2), vec![(3, 3)])).await;
    land(&control, &batch(org, 2, 1, 3, &[(10, 20), (20, 30)])).await;
    land(&control, &batch(org, 4, 1, 7, &[(50, 60), (60, 70)])).await;
    let lost = account().await;
    assert_eq!((lost.dropped.get("queue_damaged"), lost.in_flight), (Some(&2), 0));
    // The lost batch explains the gap, which closes when the file is read again.
    assert_eq!((lost.missing, lost.repeated, lost.gaps.len()), (0, 0, 0));
    let mut repeated = batch(org, 2, 1, 3, &[(30, 40), (40, 50)]);
    repeated.header.epoch = EpochId(6);
    land(&control, &repeated).await;
    let whole = account().await;
    assert_eq!((whole.stored, whole.missing, whole.repeated), (9, 0, 0));
    assert_eq!(whole.emitted, whole.stored + whole.dropped["queue_damaged"]);
}

#[tokio::test]
async fn an_epoch_that_ended_without_its_batches_has_them_missing() {
    let (_dir, control, org) = control().await;
    land(&control, &batch(org, 1, 1, 1, &[(0, 10)])).await;
    land(&control, &batch(org, 3, 1, 3, &[(20, 30)])).await;
    assert_eq!(books(&control, org).await.0.2, 1, "held, as far as the epoch itself said");
    land(&control, &successor(org, 30, 3, None, Vec::new())).await;
    let account = control.ledger(org, None).await.expect("adds up").remove(0);
    assert_eq!((account.in_flight, account.missing), (0, 1));
}

#[tokio::test]
async fn cursors_and_what_is_stored_are_given_back_page_by_page_and_to_their_agent_alone() {
    let (_dir, control, org) = control().await;
    let update = |id: &str, cursor: Option<&str>| vedette_wire::CursorUpdate {
        collector: "syslog".to_owned(),
        id: id.to_owned(),
        cursor: cursor.map(|cursor| cursor.as_bytes().to_vec()),
    };
    let mut first = batch(org, 1, 1, 2, &[(0, 10), (20, 30)]);
    first.header.cursors = (0..700).map(|n| update(&format!("g{n:04}"), Some("there"))).collect();
    first.header.cursors.push(update("f", Some("c1")));
    first.header.cursors.push(update("gone", Some("c1")));
    first.check().expect("it may say so");
    let mut second = batch(org, 2, 1, 3, &[(30, 40)]);
    second.header.cursors = vec![update("f", Some("c2")), update("gone", None)];
    // The newer one lands first.
    land(&control, &second).await;
    land(&control, &first).await;
    // By size as well: three of these exceed a page.
    let mut large = batch(org, 3, 1, 3, &[]);
    large.header.cursors = (0..3).map(|n| update(&format!("large{n}"), Some(&"x".repeat(600 << 10)))).collect();
    land(&control, &large).await;
    let (mut sources, mut after) = (Vec::new(), (String::new(), String::new()));
    loop {
        let page =
            control.positions(AgentKey { organization: org, agent: AGENT }, (&after.0, &after.1)).await.expect("reads");
        assert!(page.sources.len() <= 500);
        let bytes: usize = page.sources.iter().map(|source| source.cursor.len()).sum();
        assert!(bytes <= 1 << 20, "{bytes}");
        sources.extend(page.sources);
        let last = sources.last().expect("there are some");
        after = (last.collector.clone(), last.id.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(sources.len(), 704, "the one that is gone stays gone");
    let of_file = sources.iter().find(|source| source.id == "f").expect("is there");
    assert_eq!((of_file.cursor.as_slice(), of_file.stored.as_slice()), (&b"c2"[..], &[(0, 10), (20, 40)][..]));
    let other =
        control.positions(AgentKey { organization: org, agent: AgentId([8; 16]) }, ("", "")).await.expect("reads");
    assert!(other.sources.is_empty());
    let mut large = batch(org, 3, 1, 3, &[]);
    large.header.cursors =
        vec![vedette_wire::CursorUpdate { cursor: Some(vec![0; (1 << 20) + 1]), ..update("f", None) }];
    large.check().expect_err("too large");
}
