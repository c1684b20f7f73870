#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

mod golden;
mod packed;
mod power_cut;
mod salvaging;

use super::tests_support::{chunk_of, context};
use super::*;
use crate::{
    batcher::{BatchBuilder, BatchLimits},
    intake::{Intake, Next},
};
use std::time::Duration;
use vedette_wire::{Body, Compression, SetAside, body::Syslog, codec};

fn open_with(text: &str, cursor: &str) -> BatchBuilder {
    let mut open = BatchBuilder::default();
    open.add(chunk_of(text, 0, cursor));
    open
}

fn commit(queue: &Queue, text: &str, cursor: &str) -> Result<(), QueueError> {
    let mut open = open_with(text, cursor);
    let header = open.header(&context(), queue.lane(), 77);
    queue.commit(&mut open, header)
}

fn opened(dir: &Path, bytes_max: u64, random: u64) -> Queue {
    Queue::open(dir, LaneName::Records, Quota::bytes(bytes_max), random).expect("opens")
}

fn queue(dir: &Path) -> Queue {
    opened(dir, 1 << 30, 42)
}

/// Agents of earlier releases read this name.
#[test]
fn the_floors_keep_their_name_in_the_file() {
    let state = rmp_serde::to_vec_named(&meta::Meta::new(1, Resume::First)).expect("serializes");
    assert!(state.windows(7).any(|part| part == b"\xa6floors"), "{state:?}");
}

#[test]
fn batch_cursor_and_ledger_come_back_together() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        commit(&queue, "one", "c1").expect("commits");
        commit(&queue, "two", "c2").expect("commits");
    }
    let queue = queue(dir.path());
    assert_eq!(queue.cursors("test").expect("reads"), [("file".to_owned(), b"c2".to_vec())]);
    assert_eq!(queue.ledger().0["test"].emitted, 2);
    let (seq, frame) = queue.next_after(1).expect("reads").expect("there is a second batch");
    assert_eq!(seq, 2);
    let (head, sealed) = frame::parse(&frame).expect("the frame is whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    let batch = codec::decode(&plain).expect("decodes");
    assert_eq!(batch.header.key(), head.key);
    assert_eq!((batch.header.seq, batch.header.lowest_held), (2, 1));
    assert_eq!(batch.header.ledger.0["test"].emitted, 2);
    assert_eq!(batch.header.sources[0].reached, 3);
    let stats = queue.stats();
    assert_eq!((stats.batches, stats.oldest_sealed), (2, Some(77)));
}

#[test]
fn a_delivered_batch_is_gone_and_sequences_go_on_without_holes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    for text in ["one", "two", "three"] {
        commit(&queue, text, "c").expect("commits");
    }
    queue.delete(1).expect("deletes");
    queue.delete(1).expect("deleting twice is not an error");
    assert_eq!(queue.next_after(0).expect("reads").map(|(seq, _)| seq), Some(2));
    queue.quarantine(2, "shape", "no good").expect("moves");
    assert_eq!(queue.next_after(0).expect("reads").map(|(seq, _)| seq), Some(3));
    queue.delete(3).expect("deletes");
    let stats = queue.stats();
    assert_eq!((stats.batches, stats.bytes, stats.oldest_sealed), (0, 0, None));
    commit(&queue, "four", "c").expect("commits");
    assert_eq!(queue.next_after(0).expect("reads").map(|(seq, _)| seq), Some(4));
}

#[test]
fn the_file_stays_below_the_quota_and_the_refused_batch_is_not_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let limit = 8 << 20;
    let queue = opened(dir.path(), limit, 42);
    let mut random = 1_u64;
    let mut noise = || {
        let mut text = String::new();
        while text.len() < 200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(&format!("{random:x}"));
        }
        text
    };
    let mut stored = 0;
    let refused = loop {
        match commit(&queue, &noise(), "c") {
            Ok(()) => stored += 1,
            Err(err) => break err,
        }
        assert!(stored < 1000);
    };
    assert!(matches!(refused, QueueError::Full { .. }), "{refused}");
    assert!(stored > 10, "{stored}");
    assert_eq!(queue.ledger().0["test"].emitted, stored);
    assert!(queue.stats().file_bytes <= limit, "{:?}", queue.stats());
    queue.delete(1).expect("deletes");
    commit(&queue, &noise(), "c").expect("there is room again");
}

#[test]
fn quarantine_is_bounded_counted_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = || opened(dir.path(), 1 << 20, 42);
    {
        let queue = open();
        for seq in 1..=100 {
            commit(&queue, &"noise".repeat(100), "c").expect("commits");
            queue.quarantine(seq, "shape", "no good").expect("moves");
        }
    }
    let quarantined = open().stats().quarantine;
    assert!(quarantined.bytes <= (1 << 20) / 10 && quarantined.batches > 10, "{quarantined:?}");
    assert_eq!(quarantined.batches + quarantined.dropped, 100);
}

#[test]
fn batches_of_an_agent_that_this_machine_was_before_are_sealed_again_in_its_new_name() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = || queue(dir.path());
    let queue = open();
    let owner = (context().organization, context().agent);
    assert_eq!(queue.set_owner(owner, &[], &context().host, 5).expect("writes"), 0);
    let epoch = queue.epoch();
    let was = vedette_wire::HostLabel { hostname: "original".to_owned(), ..context().host };
    for text in ["one", "two", "three"] {
        let mut batch = open_with(text, "c");
        let header = batch.header(&crate::BatchContext { host: was.clone(), ..context() }, queue.lane(), 77);
        queue.commit(&mut batch, header).expect("commits");
    }
    let other = vedette_wire::AgentId([9; 16]);
    let host = vedette_wire::HostLabel { hostname: "copy".to_owned(), ..context().host };
    let now = (owner.0, other);
    // Killed after one of three was resealed: the next start does the others.
    *crate::queue::lock(&queue.replaced) = (vec![owner.1], host.clone());
    queue.begin(now, 6).expect("writes");
    assert_eq!(queue.adopt_first().expect("writes"), Some(false));
    drop(queue);
    let queue = open();
    for random in [7, 8] {
        assert_eq!(queue.set_owner(now, &[owner.1], &host, random).expect("writes"), 0, "nothing in quarantine");
    }
    let mut slot = 0;
    for (seq, text) in [(1, "one"), (2, "two"), (3, "three")] {
        let (at, bytes) = queue.next_after(slot).expect("reads").expect("a batch");
        slot = at;
        let (head, sealed) = vedette_wire::frame::parse(&bytes).expect("a frame");
        let plain = vedette_wire::codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
        let (header, records) = vedette_wire::codec::decode_header(&plain).expect("decodes");
        assert_eq!((header.agent, header.seq, head.key.agent, head.key.seq), (other, seq, other, seq));
        assert_ne!(header.epoch, epoch);
        assert_eq!((header.predecessor.clone(), header.host.hostname.as_str()), (None, "copy"));
        assert_eq!(header.ledger.0["test"].emitted, seq);
        assert!(String::from_utf8_lossy(records).contains(text), "in order");
    }
    assert_eq!(queue.stats().batches, 3);
    assert_eq!(queue.stats().quarantine.batches, 0);
}

#[test]
fn what_was_sealed_when_the_machine_had_another_id_is_sealed_again_with_the_present_one() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let label = |machine: Option<&str>| vedette_wire::HostLabel {
        hostname: "h".to_owned(),
        machine: machine.map(str::to_owned),
        ..context().host
    };
    for host in [label(None), label(Some("m")), context().host, label(Some("n"))] {
        let mut batch = open_with("one", "c");
        let header = batch.header(&crate::BatchContext { host, ..context() }, queue.lane(), 77);
        queue.commit(&mut batch, header).expect("commits");
    }
    assert_eq!(queue.seal_for(&label(Some("m"))).expect("seals"), 2);
    assert_eq!(queue.seal_for(&label(Some("m"))).expect("seals"), 0);
    let (mut slot, mut found) = (0, Vec::new());
    while let Some((next, bytes)) = queue.next_after(slot).expect("reads") {
        slot = next;
        let (head, sealed) = vedette_wire::frame::parse(&bytes).expect("a frame");
        let plain = vedette_wire::codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
        let header = vedette_wire::codec::decode_header(&plain).expect("decodes").0;
        found.push((header.seq, header.host.machine, header.resealed));
    }
    let m = || Some("m".to_owned());
    assert_eq!(found, [(2, m(), false), (3, None, false), (5, m(), true), (6, m(), true)]);
}

/// Its place is after batches of a later boot, which would make the workspace suspect a clone.
#[test]
fn what_is_sealed_again_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let mut batch = open_with("one", "c");
    batch.add(crate::queue::tests_support::chunk_of("two", 3, "d"));
    let header = batch.header(&context(), queue.lane(), 77);
    queue.commit(&mut batch, header).expect("commits");
    let label = |slot| {
        let (slot, bytes) = queue.next_after(slot).expect("reads").expect("a batch");
        let (head, sealed) = vedette_wire::frame::parse(&bytes).expect("a frame");
        let plain = vedette_wire::codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
        (slot, vedette_wire::codec::decode_header(&plain).expect("decodes").0.resealed)
    };
    queue.split(1, "too large").expect("splits").expect("two halves");
    assert_eq!([label(0), label(1), label(2)], [(1, false), (2, true), (3, true)]);
    queue.reseal(1).expect("seals");
    assert_eq!(label(3), (4, true));
}

#[test]
fn batches_of_an_earlier_enrollment_do_not_stand_before_those_of_this_one() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    commit(&queue, "old", "c").expect("commits");
    commit(&queue, "old", "c").expect("commits");
    let (other, host) = (vedette_wire::AgentId([9; 16]), context().host);
    let mut open = open_with("new", "c");
    let header = open.header(&crate::BatchContext { agent: other, ..context() }, queue.lane(), 77);
    queue.commit(&mut open, header).expect("commits");
    assert_eq!(queue.set_owner((context().organization, other), &[], &host, 5).expect("moves"), 2);
    assert_eq!(queue.next_after(0).expect("reads").map(|(seq, _)| seq), Some(3));
    assert_eq!(queue.set_owner((context().organization, other), &[], &host, 6).expect("moves"), 0);
}

#[test]
fn a_second_agent_is_told_that_the_queue_is_in_use() {
    let dir = tempfile::tempdir().expect("temp dir");
    let _first = queue(dir.path());
    let second = Queue::open(dir.path(), LaneName::Records, Quota::bytes(1 << 30), 43);
    assert!(matches!(second, Err(QueueError::InUse { .. })), "{second:?}");
}

#[test]
fn a_damaged_queue_is_moved_aside_and_a_new_epoch_begins() {
    let dir = tempfile::tempdir().expect("temp dir");
    commit(&queue(dir.path()), "one", "c").expect("commits");
    std::fs::write(dir.path().join("records.redb"), vec![0xa5; 100_000]).expect("writes");
    let queue = opened(dir.path(), 1 << 30, 43);
    assert_eq!(salvage::broken(dir.path(), LaneName::Records).len(), 1);
    assert_eq!(queue.epoch(), Epoch(43));
    commit(&queue, "two", "c").expect("commits");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let refused =
        Queue::open(&file.join("state"), LaneName::Records, Quota::bytes(1 << 30), 43).expect_err("it is below a file");
    assert!(matches!(&refused, QueueError::Directory { .. }), "{refused}");
    assert!(refused.to_string().contains("state"), "{refused}");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        let stated = std::fs::read_to_string(dir.path().join("queue-format")).expect("it is beside the queue");
        assert_eq!(stated, format!("{FORMAT}\n"));
        let newer = (FORMAT + 1).to_le_bytes();
        let write = |tx: &redb::WriteTransaction, _: &mut Meta| {
            tx.open_table(META)?.insert("format", newer.as_slice())?;
            Ok(Some(()))
        };
        queue.write(Durability::Immediate, write).expect("writes");
    }
    let refused = Queue::open(dir.path(), LaneName::Records, Quota::bytes(1 << 30), 43).expect_err("newer");
    assert!(matches!(refused, QueueError::Newer { .. }), "{refused}");
    assert!(dir.path().join("records.redb").exists());
}

#[test]
fn a_batch_is_full_by_size_or_by_count() {
    let limits =
        BatchLimits { bytes_max: 100, records_max: 2, age_max: Duration::ZERO, compression: Compression::Zstd };
    assert!(!open_with("short", "c").is_full(&limits));
    assert!(open_with(&"long".repeat(50), "c").is_full(&limits));
    let mut two = open_with("a", "c");
    two.add(chunk_of("b", 1, "c"));
    assert!(two.is_full(&limits));
}

#[test]
fn a_batch_is_full_where_the_ledger_could_not_hold_its_runs() {
    let limits = BatchLimits {
        bytes_max: usize::MAX,
        records_max: usize::MAX,
        age_max: Duration::MAX,
        compression: Compression::Zstd,
    };
    let (mut whole, mut holes) = (BatchBuilder::default(), BatchBuilder::default());
    for at in 0..1_500 {
        assert!(!whole.is_full(&limits) && !holes.is_full(&limits), "after {at}");
        whole.add(chunk_of("a", at, "c"));
        holes.add(chunk_of("a", 2 * at, "c"));
    }
    assert!(!whole.is_full(&limits) && holes.is_full(&limits));
}

#[test]
fn a_batch_is_full_where_its_frame_would_need_a_larger_page() {
    let limits = BatchLimits {
        bytes_max: usize::MAX,
        records_max: usize::MAX,
        age_max: Duration::MAX,
        compression: Compression::Zstd,
    };
    let (intake, mut open, mut at, mut random) =
        (Intake::new(1 << 20), BatchBuilder::default(), 0, fastrand::Rng::new());
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    for _ in 0..20 {
        let text: String = (0..300_000).map(|_| random.alphanumeric()).collect();
        intake.put(chunk_of(&text, at, "c")).expect("open");
        at += text.len() as u64;
        let Next::Chunk(chunk, compressed) = intake.take(None) else { panic!("it is in") };
        if open.is_full_for(&chunk, compressed.as_ref(), &limits) {
            break;
        }
        open.add_compressed(*chunk, compressed);
    }
    let header = open.header(&context(), queue.lane(), 77);
    queue.commit(&mut open, header).expect("commits");
    assert_eq!(queue.stats().bytes, 2 << 20, "a page, and nearly full: {at} bytes");
}

#[test]
fn a_large_chunk_is_compressed_when_it_is_handed_over_and_reads_back_like_another() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (queue, intake, large) = (queue(dir.path()), Intake::new(1 << 20), "large ".repeat(50_000));
    let texts = ["before", &large, "behind"];
    let (mut open, mut pieces, mut at) = (BatchBuilder::default(), 0, 0);
    for text in texts {
        intake.put(chunk_of(text, at, "c")).expect("open");
        at += text.len() as u64;
        let Next::Chunk(chunk, compressed) = intake.take(None) else { panic!("it is in") };
        assert_eq!(compressed.is_some(), chunk.bodies.is_empty());
        pieces += usize::from(compressed.is_some());
        // The batch fits neither whole nor in two halves.
        let limits = |bytes_max| BatchLimits {
            bytes_max,
            records_max: 10,
            age_max: Duration::MAX,
            compression: Compression::Zstd,
        };
        if compressed.is_some() {
            assert!(open.is_full_for(&chunk, compressed.as_ref(), &limits(large.len())));
            assert!(!open.is_full_for(&chunk, compressed.as_ref(), &limits(2 * large.len())));
        }
        open.add_compressed(*chunk, compressed);
    }
    assert_eq!((pieces, intake.bytes()), (1, 0));
    let header = open.header(&context(), queue.lane(), 77);
    queue.commit(&mut open, header).expect("commits");
    let (_, frame) = queue.next_after(0).expect("reads").expect("there is one");
    assert!(frame.len() < large.len() / 10);
    let (head, sealed) = frame::parse(&frame).expect("the frame is whole");
    let batch = codec::decode(&codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses"));
    let found: Vec<_> = batch.expect("decodes").records.into_iter().map(|record| record.body).collect();
    let expected = texts.map(|text| Body::Syslog(Syslog { raw: text.as_bytes().to_vec(), ..Syslog::default() }));
    assert_eq!(found.len(), 3);
    assert!(found == expected);
    assert_eq!(queue.ledger().0["test"].emitted, 3);
}

#[test]
fn later_headers_name_what_was_set_aside_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        for text in ["one", "two", "three"] {
            commit(&queue, text, "c").expect("commits");
        }
        queue.delete(1).expect("deletes");
        queue.purge(2).expect("purges");
        queue.quarantine(3, "shape", "why").expect("moves");
        queue.quarantine(99, "shape", "there is no such batch").expect("does nothing");
    }
    let queue = queue(dir.path());
    commit(&queue, "four", "c").expect("commits");
    let (_, frame) = queue.next_after(0).expect("reads").expect("there is one");
    let (head, sealed) = frame::parse(&frame).expect("the frame is whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    let header = codec::decode(&plain).expect("decodes").header;
    assert_eq!((header.seq, header.lowest_held), (4, 4));
    assert_eq!(header.set_aside, SetAside { quarantined: vec![(3, 3)], purged: vec![(2, 2)], ..SetAside::default() });
}
