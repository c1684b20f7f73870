//! Batches with packed entries of the journal: their version, size and halves.

use super::*;
use crate::queue::tests_support::chunk_of;
use std::sync::Arc;
use vedette_wire::{Batch, Chunk, EntryHead, EntryPacker, FORMAT_VERSION, Position, Reason, Source};

/// A chunk with packed entries that share a field of 1,000 bytes.
fn entries(count: u64) -> Chunk {
    let mut chunk = Chunk::new(Arc::new(Source { collector: "test", id: "journal".to_owned(), name: None }));
    let (mut packer, mut shared) = (EntryPacker::default(), None);
    for at in 1..=count {
        let head = EntryHead { sequence: [1; 16], boot: [2; 16], realtime: at, monotonic: at, hash: at };
        assert!(packer.begin(&head, Position(at, at + 1)));
        match shared {
            Some(number) => packer.repeat(number),
            None => shared = Some(packer.field(b"A", &[b'x'; 1000])),
        }
    }
    chunk.push_entries(5, &mut packer);
    chunk
}

fn commit_chunk(queue: &Queue, open: &mut BatchBuilder, chunk: Chunk) {
    open.add(chunk);
    let header = open.header(&context(), queue.lane(), 77);
    queue.commit(open, header).expect("commits");
    open.clear();
}

fn batch(queue: &Queue, after: u64) -> Batch {
    let (_, bytes) = queue.next_after(after).expect("reads").expect("there is one");
    let (head, sealed) = frame::parse(&bytes).expect("the frame is whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    codec::decode(&plain).expect("decodes")
}

#[test]
fn a_batch_states_the_version_that_has_its_records() {
    let (dir, mut open) = (tempfile::tempdir().expect("temp dir"), BatchBuilder::default());
    let queue = queue(dir.path());
    commit_chunk(&queue, &mut open, entries(10));
    commit_chunk(&queue, &mut open, chunk_of("a line", 0, "c"));
    let mut lost = entries(3);
    lost.give_up(Reason::QueueFull);
    commit_chunk(&queue, &mut open, lost);
    open.add(entries(3));
    open.drop_records();
    commit_chunk(&queue, &mut open, chunk_of("another", 6, "c"));
    let versions: Vec<u16> = (0..4).map(|slot| batch(&queue, slot).header.version).collect();
    assert_eq!(versions, [FORMAT_VERSION, 2, 2, 2]);

    // Both halves have them.
    let half = queue.split(1, "too large").expect("splits").expect("two halves");
    assert!((5 * 1000..6 * 1300).contains(&half), "{half}: as decoded");
    let halves = [batch(&queue, 4), batch(&queue, 5)];
    for half in &halves {
        assert_eq!((half.header.version, half.header.records, half.records.len()), (FORMAT_VERSION, 5, 5));
    }
    assert_eq!(halves[1].records[4].position, Position(10, 11));
}

#[test]
fn a_batch_is_full_by_the_decoded_size() {
    let limits = BatchLimits {
        bytes_max: 20_000,
        records_max: 1000,
        age_max: Duration::from_secs(1),
        compression: Compression::Zstd,
    };
    let (ten, mut open) = (entries(10), BatchBuilder::default());
    assert!(ten.bodies.len() < 1500 && ten.plain_bytes() > 10_000, "{}", ten.bodies.len());
    open.add(ten);
    assert!(!open.is_full(&limits));
    assert!(open.is_full_for(&entries(10), None, &limits) && !open.is_full_for(&entries(1), None, &limits));
    open.add(entries(10));
    assert!(open.is_full(&limits));
    let held: Vec<u64> = open.bytes_by_source().map(|(_, bytes)| bytes).collect();
    assert!(held[0] > 20_000, "{held:?}: of the queue's shares too");
}
