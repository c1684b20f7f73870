//! Salvage of damaged databases.

use super::*;
use crate::queue::salvage::{SalvageError, broken};
use vedette_wire::{CursorUpdate, Position, Reason, reply::StoredSource};

/// A queue with batches of several kilobytes, and the place of each frame in its file.
fn filled(dir: &Path, batches: usize) -> Vec<(u64, usize)> {
    {
        let queue = queue(dir);
        for number in 0..batches {
            let mut text = format!("{number}:");
            let mut random = fastrand::Rng::with_seed(number as u64);
            text.extend((0..3000).map(|_| random.alphanumeric()));
            commit(&queue, &text, &number.to_string()).expect("commits");
        }
    }
    let file = std::fs::read(dir.join("records.redb")).expect("reads");
    let places = memchr::memmem::find_iter(&file, frame::MAGIC).filter_map(|at| {
        let (head, _) = frame::parse(&file[at..]).ok()?;
        Some((head.key.seq, at))
    });
    let mut places: Vec<(u64, usize)> = places.collect();
    places.sort_unstable();
    places.dedup_by_key(|(seq, _)| *seq);
    places
}

fn harm(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join("records.redb");
    let mut bytes = std::fs::read(&path).expect("reads");
    change(&mut bytes);
    std::fs::write(&path, bytes).expect("writes");
}

fn sequences(queue: &Queue) -> Vec<(u64, u64)> {
    let (mut slot, mut out) = (0, Vec::new());
    while let Some((next, frame)) = queue.next_after(slot).expect("reads") {
        slot = next;
        let (head, _) = frame::parse(&frame).expect("whole");
        out.push((head.key.epoch.0, head.key.seq));
    }
    out
}

fn newest_header(queue: &Queue) -> vedette_wire::Header {
    let (mut slot, mut newest) = (0, None);
    while let Some((next, frame)) = queue.next_after(slot).expect("reads") {
        (slot, newest) = (next, Some(frame));
    }
    let frame = newest.expect("there is one");
    let (head, sealed) = frame::parse(&frame).expect("whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    codec::decode_header(&plain).expect("decodes").0
}

#[test]
fn what_is_whole_is_found_sent_under_its_own_key_and_the_rest_is_named() {
    let dir = tempfile::tempdir().expect("temp dir");
    let places = filled(dir.path(), 40);
    harm(dir.path(), |bytes| {
        // Damages the database's own pages and two batches.
        bytes[..512].fill(0xff);
        for seq in [7, 23] {
            let (_, at) = places.iter().find(|(found, _)| *found == seq).expect("it is there");
            bytes[at + frame::HEAD_BYTES + 100] ^= 4;
        }
    });
    let queue = opened(dir.path(), 1 << 30, 43);
    assert_eq!((queue.epoch(), queue.resume()), (Epoch(43), Resume::Lost));
    commit(&queue, "new", "c").expect("it takes batches before anything is salvaged");
    let path = broken(dir.path(), LaneName::Records).pop().expect("it was moved");
    let found = queue.salvage(&path, |_| true).expect("goes through");
    assert_eq!((found.batches, found.records, found.foreign), (38, 38, 0));
    assert!(found.damaged >= 2, "{found:?}");
    assert!(!path.exists());
    let present = sequences(&queue);
    let expected: Vec<(u64, u64)> = (1..=40).filter(|seq| ![7, 23].contains(seq)).map(|seq| (42, seq)).collect();
    assert_eq!(present[..38], expected);
    assert_eq!(present[38..], [(43, 1)], "what is older goes first");
    commit(&queue, "newer", "c").expect("commits");
    let before = newest_header(&queue).predecessor.expect("it names the epoch before");
    assert_eq!((before.epoch, before.last_seq, before.lowest_held), (Epoch(42), 40, Some(1)));
    assert_eq!(before.set_aside.lost, [(7, 7), (23, 23)]);
    assert!(queue.holds_salvaged().expect("reads"));
    assert!(queue.verify().expect("reads").disagreements.is_empty());
}

#[test]
fn salvage_goes_on_after_a_restart_and_waits_for_room() {
    let dir = tempfile::tempdir().expect("temp dir");
    filled(dir.path(), 60);
    harm(dir.path(), |bytes| bytes[..512].fill(0));
    let path = {
        // There is room for a part.
        let queue = opened(dir.path(), 400 << 10, 43);
        let path = broken(dir.path(), LaneName::Records).pop().expect("it was moved");
        let stopped = queue.salvage(&path, |full| !full);
        assert!(matches!(stopped, Err(SalvageError::Stopped)), "{stopped:?}");
        assert!(path.exists());
        path
    };
    let queue = opened(dir.path(), 1 << 30, 44);
    assert_eq!((queue.epoch(), queue.resume()), (Epoch(43), Resume::Lost), "it is the same new queue");
    queue.salvage(&path, |_| true).expect("goes through");
    let seqs: Vec<u64> = sequences(&queue).into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(seqs, (1..=60).collect::<Vec<_>>());
}

#[test]
fn a_flip_in_a_cursor_is_not_believed() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        commit(&queue, "a line", "this is the cursor").expect("commits");
    }
    harm(dir.path(), |bytes| {
        let found: Vec<usize> = memchr::memmem::find_iter(bytes, b"this is the cursor").collect();
        for at in found {
            bytes[at + 3] ^= 1;
        }
    });
    let refused = Queue::open(dir.path(), LaneName::Records, Quota::bytes(1 << 30), 43).expect("a new one");
    assert_eq!((refused.epoch(), refused.resume()), (Epoch(43), Resume::Lost));
    assert_eq!(broken(dir.path(), LaneName::Records).len(), 1);
}

#[test]
fn a_queue_that_is_gone_or_empty_is_known_to_have_been_there() {
    let dir = tempfile::tempdir().expect("temp dir");
    assert_eq!(opened(dir.path(), 1 << 30, 42).resume(), Resume::First);
    std::fs::remove_file(dir.path().join("records.redb")).expect("removes");
    assert_eq!(opened(dir.path(), 1 << 30, 43).resume(), Resume::Lost);
    std::fs::write(dir.path().join("records.redb"), "").expect("empties");
    assert_eq!(opened(dir.path(), 1 << 30, 44).resume(), Resume::Lost);
}

#[test]
fn headers_tell_cursors_and_what_the_workspace_gives_back_is_kept_until_it_is_begun() {
    let dir = tempfile::tempdir().expect("temp dir");
    let update = |cursor: &str| CursorUpdate {
        collector: "test".to_owned(),
        id: "file".to_owned(),
        cursor: Some(cursor.as_bytes().to_vec()),
    };
    {
        let queue = queue(dir.path());
        let mut alone = open_with("x", "kept without a batch");
        alone.drop_records();
        let header = alone.header(&context(), queue.lane(), 1);
        queue.commit(&mut alone, header).expect("commits");
    }
    {
        let queue = queue(dir.path());
        let mut other = BatchBuilder::default();
        let mut chunk = chunk_of("line", 0, "c");
        chunk.cursor = None;
        other.add(chunk);
        let header = other.header(&context(), queue.lane(), 1);
        queue.commit(&mut other, header.clone()).expect("commits");
        assert_eq!(newest_header(&queue).cursors, [update("kept without a batch")]);
        commit(&queue, "line", "c2").expect("commits");
        assert_eq!(newest_header(&queue).cursors, [update("c2")]);
        queue.commit(&mut other, header).expect("commits");
        assert_eq!(newest_header(&queue).cursors, [], "each is told once");
    }
    std::fs::remove_file(dir.path().join("records.redb")).expect("removes");
    let reopen = || opened(dir.path(), 1 << 30, 43);
    let source = StoredSource {
        collector: "test".to_owned(),
        id: "file".to_owned(),
        cursor: b"c2".to_vec(),
        sealed: 0,
        stored: vec![(0, 4), (8, 9)],
    };
    reopen().resume_at(vec![source]).expect("kept");
    let queue = reopen();
    assert_eq!(queue.resume(), Resume::Cursors);
    assert_eq!(queue.cursors("test").expect("reads"), [("file".to_owned(), b"c2".to_vec())]);
    let stored = queue.stored("test").expect("reads");
    assert_eq!((stored[0].ranges.clone(), stored[0].begun), (vec![(0, 4), (8, 9)], false));
    commit(&queue, "line", "c3").expect("commits");
    assert!(queue.stored("test").expect("reads")[0].begun);
}

#[test]
fn another_enrollment_begins_another_epoch() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let owner = (context().organization, context().agent);
    assert_eq!(queue.set_owner(owner, &[], &context().host, 50).expect("writes"), 0);
    assert_eq!(queue.epoch(), Epoch(42), "the first one stays");
    commit(&queue, "old", "c").expect("commits");
    assert_eq!(
        queue.set_owner((owner.0, vedette_wire::AgentId([9; 16])), &[], &context().host, 51).expect("writes"),
        1
    );
    assert_eq!(queue.epoch(), Epoch(51));
    let mut open = open_with("new", "c");
    let header =
        open.header(&crate::BatchContext { agent: vedette_wire::AgentId([9; 16]), ..context() }, queue.lane(), 1);
    queue.commit(&mut open, header).expect("commits");
    let header = newest_header(&queue);
    assert_eq!((header.seq, header.predecessor, header.set_aside.is_empty()), (1, None, true));
}

#[test]
fn the_smaller_of_cap_and_share_holds_and_a_floor_stays_free() {
    let dir = tempfile::tempdir().expect("temp dir");
    let open = |quota| Queue::open(dir.path(), LaneName::Records, quota, 42).expect("opens");
    let share = Quota { volume_share_max: 1e-12, ..Quota::bytes(1 << 30) };
    let refused = commit(&open(share), "x", "c").expect_err("no share");
    assert!(matches!(refused, QueueError::Full { limit } if limit < 1 << 20), "{refused}");
    let floor = Quota { free_bytes_min: u64::MAX, ..Quota::bytes(1 << 30) };
    {
        let queue = open(floor);
        // Space in the present file may be used.
        while commit(&queue, &"noise".repeat(1000), "c").is_ok() {}
        let refused = commit(&queue, "x", "c").expect_err("the floor");
        assert!(matches!(refused, QueueError::NoFreeSpace { unit: "bytes", .. }), "{refused}");
        assert!(queue.stats().batches > 0);
    }
    let inodes = Quota { free_inodes_min: u64::MAX, ..Quota::bytes(1 << 30) };
    match commit(&open(inodes), "x", "c") {
        Err(refused) => assert!(matches!(refused, QueueError::NoFreeSpace { unit: "inodes", .. }), "{refused}"),
        // btrfs and others have no fixed number of inodes.
        Ok(()) => assert_eq!(vedette_platform::volume(dir.path()).expect("is on one").free_inodes, None),
    }
}

#[test]
fn a_second_damage_does_not_overwrite_what_the_first_left() {
    let dir = tempfile::tempdir().expect("temp dir");
    filled(dir.path(), 3);
    harm(dir.path(), |bytes| bytes[..512].fill(0));
    opened(dir.path(), 1 << 30, 43).report_damage("once more, before anything was salvaged");
    assert_eq!(broken(dir.path(), LaneName::Records).len(), 2);
    opened(dir.path(), 1 << 30, 44);
    let looked_at = Queue::inspect(dir.path(), LaneName::Records, Quota::bytes(1 << 30)).expect("opens");
    looked_at.report_damage("by somebody who looks");
    assert!(looked_at.is_damaged() && dir.path().join("records.redb").exists(), "it is left where it is");
}

#[test]
fn small_frames_are_all_found_also_across_the_blocks_of_the_scan() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("records.redb.broken-1");
    let mut bytes = Vec::new();
    let source = tempfile::tempdir().expect("temp dir");
    filled(source.path(), 1);
    let (_, frame) = queue(source.path()).next_after(0).expect("reads").expect("is there");
    let (head, sealed) = frame::parse(&frame).expect("whole");
    let sealed = sealed.to_vec();
    // Tries every offset relative to the end of a block.
    for seq in 1..=1200 {
        bytes.resize(bytes.len() + seq as usize % 7, 0);
        let key = vedette_wire::BatchKey { seq, ..head.key };
        bytes.extend(frame::build(&frame::FrameHead { key, ..head.clone() }, &sealed));
    }
    bytes.extend_from_slice(&frame::MAGIC[..3]);
    std::fs::write(&path, &bytes).expect("writes");
    let new = opened(dir.path(), 1 << 30, 43);
    let found = new.salvage(&path, |_| true).expect("goes through");
    assert_eq!((found.batches, found.damaged), (1200, 0));
}

#[test]
fn a_header_tells_no_more_cursors_than_the_workspace_takes_and_the_next_ones_tell_the_rest() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let mut many = open_with("a line", "c");
    for number in 0..25_000 {
        many.cursors.insert(("test", format!("file {number:05}")), Some(vec![1; 40]));
    }
    let header = many.header(&context(), queue.lane(), 1);
    queue.commit(&mut many, header).expect("commits");
    let mut ids: Vec<String> = Vec::new();
    for round in 0..3 {
        let header = newest_header(&queue);
        assert!(header.cursors.len() <= 10_000, "{}", header.cursors.len());
        ids.extend(header.cursors.into_iter().map(|update| update.id));
        let mut plain = open_with("a line", "c");
        plain.cursors.clear();
        let header = plain.header(&context(), queue.lane(), 2 + round);
        queue.commit(&mut plain, header).expect("commits");
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 25_001);
}

#[test]
fn what_is_found_of_an_agent_that_this_machine_was_before_is_sealed_again_and_of_another_is_not() {
    for (replaced, found_batches) in [(vec![context().agent], 3), (Vec::new(), 0)] {
        let dir = tempfile::tempdir().expect("temp dir");
        filled(dir.path(), 3);
        harm(dir.path(), |bytes| bytes[..512].fill(0));
        let new = opened(dir.path(), 1 << 30, 43);
        let now = vedette_wire::AgentId([9; 16]);
        assert_eq!(new.set_owner((context().organization, now), &replaced, &context().host, 50).expect("writes"), 0);
        let path = broken(dir.path(), LaneName::Records).remove(0);
        let found = new.salvage(&path, |_| true).expect("goes through");
        assert_eq!((found.batches, found.foreign), (found_batches, 3 - found_batches));
        assert_eq!(new.stats().batches, found_batches);
        assert!(!new.holds_salvaged().expect("reads"), "what is sealed again is as what is collected");
        let epoch = new.epoch().0;
        assert_eq!(sequences(&new), (1..=found_batches).map(|seq| (epoch, seq)).collect::<Vec<_>>());
        assert!(found_batches == 0 || newest_header(&new).agent == now);
    }
}

/// Two damaged queues, from before and after a re-key: salvaged batches follow the order of epochs.
#[test]
fn what_an_agent_that_this_machine_was_before_left_is_sealed_again_among_this_ones_own() {
    let (before, now) = (context().agent, vedette_wire::AgentId([9; 16]));
    for own_epoch in [1, u64::MAX] {
        let dir = tempfile::tempdir().expect("temp dir");
        filled(dir.path(), 3);
        harm(dir.path(), |bytes| bytes[..512].fill(0));
        {
            let own = opened(dir.path(), 1 << 30, 43);
            own.set_owner((context().organization, now), &[before], &context().host, own_epoch).expect("writes");
            let mut open = open_with("own", "c");
            let header = open.header(&crate::BatchContext { agent: now, ..context() }, own.lane(), 1);
            own.commit(&mut open, header).expect("commits");
        }
        harm(dir.path(), |bytes| bytes[..512].fill(0));
        let new = opened(dir.path(), 1 << 30, 44);
        new.set_owner((context().organization, now), &[before], &context().host, 50).expect("writes");
        for path in broken(dir.path(), LaneName::Records) {
            new.salvage(&path, |_| true).expect("goes through");
        }
        let mut slot = 0;
        let mut agents = Vec::new();
        while let Some((next, frame)) = new.next_after(slot).expect("reads") {
            slot = next;
            agents.push(frame::parse(&frame).expect("whole").0.key.agent);
        }
        assert_eq!(agents, vec![now; 4], "{own_epoch}");
    }
}

#[test]
fn sources_are_read_again_behind_what_is_queued_in_another_epoch() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        for _ in 0..9 {
            commit(&queue, "line", "here").expect("commits");
        }
        for never in [(0, 3), (5, 4), (4, 10)] {
            queue.record_lost(never).expect("notes nothing");
        }
        assert_eq!(queue.resume(), Resume::First);
        queue.record_lost((3, 5)).expect("notes");
        queue.record_lost((4, 9)).expect("notes");
    }
    let queue = opened(dir.path(), 1 << 30, 43);
    assert_eq!(queue.resume(), Resume::Reread);
    let before = queue.epoch();
    queue.begin_reread(44).expect("begins");
    queue.begin_reread(45).expect("does nothing");
    assert_eq!(queue.epoch(), Epoch(44));
    assert!(queue.holds_earlier().expect("reads") && !queue.is_of_epoch(1));
    let source = |id: &str, stored: &[(u64, u64)]| StoredSource {
        collector: "test".to_owned(),
        id: id.to_owned(),
        cursor: b"older".to_vec(),
        sealed: 0,
        stored: stored.to_vec(),
    };
    commit(&queue, "another", "there").expect("commits");
    let predecessor = newest_header(&queue).predecessor.expect("is told");
    assert_eq!((predecessor.epoch, predecessor.set_aside.read_again), (before, vec![(3, 9)]));
    queue.resume_at(vec![source("other", &[(0, 4)])]).expect("kept");
    assert_eq!(queue.resume(), Resume::Cursors);
    let stored = queue.stored("test").expect("reads");
    let ranges = |stored: &[vedette_wire::Stored]| -> Vec<(String, Vec<(u64, u64)>)> {
        stored.iter().map(|stored| (stored.id.clone(), stored.ranges.clone())).collect()
    };
    let expected = [("file".to_owned(), vec![(0, 0)])];
    assert_eq!(
        ranges(&stored),
        expected,
        "what it does not know is read from its beginning, what is not known here never"
    );
    // Policy excludes some of it.
    let mut over = BatchBuilder::default();
    let mut chunk = chunk_of("", 0, "behind");
    (chunk.entries, chunk.bodies) = (Vec::new(), Vec::new());
    chunk.dropped = vec![vedette_wire::Dropped { reason: Reason::Policy, count: 1, positions: Some(Position(20, 30)) }];
    over.add(chunk);
    let header = over.header(&context(), queue.lane(), 1);
    queue.commit(&mut over, header).expect("commits");
    queue.record_lost((1, 1)).expect("notes");
    queue.resume_at(vec![source("file", &[(0, 10), (35, 40)]), source("forgotten", &[(0, 4)])]).expect("kept");
    let cursors = queue.cursors("test").expect("reads");
    assert!(cursors.contains(&("file".to_owned(), b"behind".to_vec())), "its own cursor stays: {cursors:?}");
    let known: Vec<&str> = cursors.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(known, ["file"], "what was forgotten is not read");
    assert_eq!(ranges(&queue.stored("test").expect("reads"))[0].1, [(0, 30), (35, 40)]);
    // Purged records are not read again either.
    let (slot, _) = queue.next_after(0).expect("reads").expect("is there");
    queue.purge(slot).expect("purges");
    let before = ranges(&queue.stored("test").expect("reads"))[0].1.clone();
    assert_eq!(before, [(0, 30), (35, 40)], "a lower floor changes nothing");
}

#[test]
fn what_was_purged_is_not_read_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let mut open = BatchBuilder::default();
    open.add(chunk_of("forbidden", 50, "c"));
    let header = open.header(&context(), queue.lane(), 1);
    queue.commit(&mut open, header).expect("commits");
    let (slot, _) = queue.next_after(0).expect("reads").expect("is there");
    queue.purge(slot).expect("purges");
    queue.record_lost((1, 1)).expect("notes");
    let source = StoredSource {
        collector: "test".to_owned(),
        id: "file".to_owned(),
        cursor: b"c".to_vec(),
        sealed: 0,
        stored: vec![(0, 10)],
    };
    queue.resume_at(vec![source]).expect("kept");
    let ranges = queue.stored("test").expect("reads").remove(0).ranges;
    assert!(matches!(ranges.as_slice(), [(0, end)] if *end > 50), "{ranges:?}");
}
