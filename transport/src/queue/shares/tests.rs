use crate::{
    batcher::BatchBuilder,
    queue::{Queue, QueueError, Quota, tests_support::context},
};
use std::{path::Path, sync::Arc};
use vedette_wire::{Body, Chunk, LaneName, Position, Source, body::Syslog};

fn queue(dir: &Path) -> Queue {
    Queue::open(dir, LaneName::Records, Quota::bytes(64 << 20), 42).expect("opens")
}

fn source(id: &str) -> Arc<Source> {
    Arc::new(Source { collector: "test", id: id.to_owned(), name: None })
}

/// Commits a batch of incompressible lines of several sources.
fn commit(queue: &Queue, of: &[&str], bytes: usize) -> Result<(), QueueError> {
    let mut open = BatchBuilder::default();
    for id in of {
        let mut chunk = Chunk::new(source(id));
        let raw = (0..bytes).map(|_| fastrand::u8(..)).collect();
        chunk.push(5, Position(0, 1), &Body::Syslog(Syslog { raw, ..Syslog::default() }));
        open.add(chunk);
    }
    let header = open.header(&context(), queue.lane(), 77);
    queue.commit(&mut open, header)
}

/// Fills the queue until none of the sources has room.
fn fill(queue: &Queue, with: &[&str]) -> u64 {
    let mut committed = 0;
    while let Some(id) = with.iter().find(|id| queue.has_room_for(&source(id), false)) {
        commit(queue, &[id], 200_000).expect("what has room fits");
        committed += 1;
        assert!(committed < 1000, "it never ends");
    }
    committed
}

#[test]
fn one_source_that_fills_the_queue_leaves_room_for_others() {
    let dir = tempfile::tempdir().expect("temp dir");
    let queue = queue(dir.path());
    let committed = fill(&queue, &["flood"]);
    assert!((50..65).contains(&committed), "three quarters of three quarters of two fifths of the limit: {committed}");
    assert!(queue.has_room_for(&source("auth.log"), false));
    commit(&queue, &["auth.log"], 1000).expect("there is room");
    assert!(queue.has_room_for(&source("auth.log"), true));
    assert!(!queue.has_room_for(&source("flood"), false));
    // A second flood gets less, and some space remains.
    let second = fill(&queue, &["second"]);
    assert!((10..20).contains(&second), "{second}");
    assert!(queue.has_room_for(&source("quiet"), false));
    commit(&queue, &["quiet"], 1000).expect("there is room");
}

#[test]
fn what_a_source_holds_is_known_behind_a_restart_and_leaves_with_its_batches() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let queue = queue(dir.path());
        // Two sources in one batch hold half of it each.
        while queue.has_room_for(&source("flood"), false) {
            commit(&queue, &["flood", "beside"], 100_000).expect("fits");
        }
        assert!(!queue.has_room_for(&source("beside"), false));
    }
    let queue = queue(dir.path());
    assert!(!queue.has_room_for(&source("flood"), false) && !queue.has_room_for(&source("beside"), false));
    assert!(queue.has_room_for(&source("other"), false));
    // A resealed or split batch keeps its shares.
    let (first, _) = queue.next_after(0).expect("reads").expect("a batch");
    queue.reseal(first).expect("seals");
    let (second, _) = queue.next_after(0).expect("reads").expect("a batch");
    queue.split(second, "too large").expect("splits").expect("it has halves");
    let held = super::lock(&queue.held).by_source.values().sum::<u64>();
    let bytes = queue.stats().bytes;
    assert!(held > bytes / 2 && held <= bytes, "{held} of {bytes}");
    // It waits until it holds much less.
    let mut resumed = 0;
    while let Some((slot, _)) = queue.next_after(0).expect("reads") {
        if !queue.has_room_for(&source("flood"), true) {
            assert_eq!(resumed, 0, "once it may go on it may");
        } else {
            resumed += 1;
        }
        queue.delete(slot).expect("deletes");
    }
    assert!(resumed > 10);
    assert!(super::lock(&queue.held).by_source.is_empty(), "nothing is held of an empty queue");
}
