//! Queues of each format, `golden/format-N.redb.zst`: ten lines in batches of two; the first batch was delivered, the second
//! put into quarantine, the third purged.
//!
//! `VEDETTE_WRITE_GOLDEN=1 cargo test --workspace --lib golden` writes the file of the present format.

use super::*;
use std::path::PathBuf;

const LINES: [&str; 10] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

fn golden(format: u64) -> PathBuf {
    // Cargo runs tests in the package's directory; a path from compile time may be of another clone.
    PathBuf::from(format!("src/queue/tests/golden/format-{format}.redb.zst"))
}

fn write(dir: &Path) {
    let queue = queue(dir);
    queue.resume_at(Vec::new()).expect("writes");
    let mut at = 0;
    for pair in LINES.chunks(2) {
        let mut open = BatchBuilder::default();
        for line in pair {
            let to = at + line.len() as u64 + 1;
            let mut chunk = chunk_of(line, at, &to.to_string());
            chunk.entries[0].position.1 = to;
            open.add(chunk);
            at = to;
        }
        let header = open.header(&context(), queue.lane(), 1);
        queue.commit(&mut open, header).expect("commits");
    }
    queue.delete(1).expect("deletes");
    queue.quarantine(2, "shape", "no good").expect("moves");
    queue.purge(3).expect("purges");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the file is written on request")]
fn a_queue_of_each_format_is_read_and_gone_on_with() {
    if std::env::var_os("VEDETTE_WRITE_GOLDEN").is_some() {
        let dir = tempfile::tempdir().expect("temp dir");
        write(dir.path());
        let bytes = std::fs::read(dir.path().join("records.redb")).expect("reads");
        std::fs::write(golden(FORMAT), vedette_wire::seal::compress(&bytes, Compression::Zstd).expect("compresses"))
            .expect("writes");
    }
    for format in 1..=FORMAT {
        let dir = tempfile::tempdir().expect("temp dir");
        let packed = std::fs::read(golden(format)).expect("each format has one");
        let bytes = codec::decompress(&packed, Compression::Zstd, 16 << 20).expect("decompresses");
        std::fs::write(dir.path().join("records.redb"), bytes).expect("writes");
        {
            let queue = queue(dir.path());
            assert_eq!(queue.epoch(), Epoch(42));
            assert_eq!(queue.resume(), Resume::Cursors);
            assert_eq!(queue.cursors("test").expect("reads"), [("file".to_owned(), b"49".to_vec())]);
            assert_eq!(queue.ledger().0["test"].emitted, 10);
            assert_eq!(queue.verify().expect("reads"), Verified { batches: 2, records: 4, ..Verified::default() });
            assert_eq!(queue.stats().quarantine.batches, 1);
            commit(&queue, "eleven", "56").expect("commits");
            let (slot, frame) = queue.next_after(5).expect("reads").expect("the new one");
            let (head, sealed) = frame::parse(&frame).expect("whole");
            let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
            let header = codec::decode(&plain).expect("decodes").header;
            assert_eq!((slot, header.epoch, header.seq, header.lowest_held), (6, Epoch(42), 6, 4));
            assert_eq!((header.set_aside.quarantined, header.set_aside.purged), (vec![(2, 2)], vec![(3, 3)]));
            assert!(queue.replay(2).expect("moves"));
        }
        let queue = queue(dir.path());
        let slots = [queue.next_after(0), queue.next_after(2)].map(|found| found.expect("reads").map(|(slot, _)| slot));
        assert_eq!(slots, [Some(2), Some(4)], "what was replayed stands where it stood");
        assert!(queue.verify().expect("reads").disagreements.is_empty());
    }
}
