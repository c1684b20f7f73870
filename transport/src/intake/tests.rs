use super::*;
use vedette_wire::{Source, body::Heartbeat};

fn chunk(bytes: usize) -> Chunk {
    let source = Arc::new(Source { collector: "test", id: "a".to_owned(), name: None });
    Chunk { bodies: vec![0; bytes], ..Chunk::new(source) }
}

#[test]
fn a_full_intake_makes_the_source_wait_until_there_is_room() {
    let intake = Intake::new(1000);
    intake.put(chunk(500)).expect("open");
    let other = intake.clone();
    let waiting = std::thread::spawn(move || other.put(chunk(500)));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished(), "the second chunk waits");
    assert!(matches!(intake.take(None), Next::Chunk(..)));
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
}

#[test]
fn a_wait_for_durability_ends_with_its_caller() {
    let intake = Intake::new(1000);
    intake.put(chunk(500)).expect("open");
    // No batcher makes it durable.
    let is_stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (other, stop) = (intake.clone(), Arc::clone(&is_stopped));
    let waiting =
        std::thread::spawn(move || other.wait_durable_unless(|| stop.load(std::sync::atomic::Ordering::Acquire)));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished(), "it waits");
    is_stopped.store(true, std::sync::atomic::Ordering::Release);
    assert_eq!(waiting.join().expect("no panic"), Err(Stopped));
}

fn pushed(collector: &'static str, from: u64, count: u64) -> Chunk {
    let source = Arc::new(Source { collector, id: "a".to_owned(), name: None });
    let mut chunk = Chunk::new(source);
    for at in from..from + count {
        chunk.push(1, vedette_wire::Position(at, at + 1), &vedette_wire::Body::from(Heartbeat::default()));
    }
    chunk
}

#[test]
fn chunks_that_cannot_wait_are_dropped_lowest_class_first_and_counted() {
    let one = pushed("event", 0, 10).weight();
    let intake = Intake::new(one * 2 + one / 2);
    intake.offer(pushed("inventory", 0, 10), 0).expect("room");
    intake.offer(pushed("event", 0, 10), 1).expect("room");
    // Without room, inventory chunks are dropped first, and then the newest events.
    for from in [10, 20, 30, 40] {
        intake.offer(pushed("event", from, 10), 1).expect("never waits");
    }
    intake.offer(pushed("inventory", 10, 10), 0).expect("never waits");
    intake.close();
    let (mut present, mut dropped, mut chunks) = (Vec::new(), Vec::new(), 0);
    while let Next::Chunk(chunk, _) = intake.take(None) {
        chunks += 1;
        let collector = chunk.source.collector;
        present.extend(chunk.entries.iter().map(|entry| (collector, entry.position.0)));
        dropped.extend(chunk.dropped.iter().map(|loss| (collector, loss.reason, loss.count, loss.positions)));
    }
    let positions = |from, to| Some(vedette_wire::Position(from, to));
    assert_eq!(present.iter().filter(|(collector, _)| *collector == "event").count(), 20, "{present:?}");
    assert!(present.contains(&("event", 0)) && present.contains(&("event", 19)));
    assert_eq!(
        dropped,
        [("inventory", Reason::QueueFull, 20, positions(0, 20)), ("event", Reason::QueueFull, 30, positions(20, 50)),]
    );
    assert_eq!(chunks, 4, "consecutive drops are one chunk");
    assert_eq!(intake.bytes(), 0);
}

#[test]
fn an_offer_waits_briefly_while_the_batcher_commits() {
    let one = pushed("event", 0, 10).weight();
    let intake = Intake::new(one * 2);
    intake.offer(pushed("event", 0, 10), 1).expect("room");
    intake.offer(pushed("event", 10, 10), 1).expect("room");
    let other = intake.clone();
    let waiting = std::thread::spawn(move || other.offer(pushed("event", 20, 10), 1));
    std::thread::sleep(PATIENCE / 10);
    for _ in 0..3 {
        let Next::Chunk(chunk, _) = intake.take(Some(Instant::now() + PATIENCE)) else { panic!("a chunk") };
        assert_eq!((chunk.entries.len(), chunk.dropped.len()), (10, 0));
    }
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
}

#[test]
fn closing_wakes_waiting_sources_and_keeps_queued_chunks() {
    let intake = Intake::new(10);
    intake.put(chunk(500)).expect("one chunk always fits");
    let other = intake.clone();
    let waiting = std::thread::spawn(move || other.put(chunk(500)));
    intake.close();
    assert_eq!(waiting.join().expect("no panic"), Err(Stopped));
    assert!(matches!(intake.take(None), Next::Chunk(..)));
    assert!(matches!(intake.take(None), Next::Closed));
}
