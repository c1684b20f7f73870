use super::*;
use crate::Quota;
use crate::queue::tests_support::{chunk, context};
use vedette_wire::{Compression, LaneName, codec, frame};

fn start(dir: &std::path::Path, age_max: Duration, bytes_max: u64) -> (Lane, watch::Sender<BatchContext>) {
    start_with(dir, age_max, bytes_max, None)
}

fn start_with(
    dir: &std::path::Path,
    age_max: Duration,
    bytes_max: u64,
    post: Option<Arc<dyn Post>>,
) -> (Lane, watch::Sender<BatchContext>) {
    let (context_sender, context) = watch::channel(context());
    let lane = Lane::start(LaneConfig {
        queue: Queue::open(dir, LaneName::Records, Quota::bytes(bytes_max), 7).expect("opens"),
        limits: BatchLimits { bytes_max: 1 << 20, records_max: 10_000, age_max, compression: Compression::Gzip },
        context,
        codec: watch::channel(None).1,
        intake_bytes_max: 1 << 20,
        in_flight_bytes_max: 1 << 20,
        now: Arc::new(|| 1),
        post,
    })
    .expect("starts");
    (lane, context_sender)
}

fn headers(queue: &Queue) -> Vec<(u64, u32)> {
    let mut out = Vec::new();
    let mut after = 0;
    while let Some((seq, bytes)) = queue.next_after(after).expect("reads") {
        let (head, sealed) = frame::parse(&bytes).expect("whole");
        let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
        let header = codec::decode(&plain).expect("decodes").header;
        out.push((header.policy_revision, header.records));
        after = seq;
    }
    out
}

#[tokio::test]
async fn what_was_handed_over_is_durable_after_a_stop_without_network() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
    for at in 0..5 {
        lane.intake().put(chunk(at, "cursor")).expect("open");
    }
    lane.stop(Duration::ZERO).await;
    let queue = Queue::open(dir.path(), LaneName::Records, Quota::bytes(1 << 30), 8).expect("opens");
    assert_eq!(headers(&queue), [(1, 5)]);
    assert_eq!(queue.cursors("test").expect("reads").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_drops_alone_is_sent_and_one_of_cursors_alone_is_not() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::ZERO, 1 << 30);
    let lost = vedette_wire::Dropped { reason: vedette_wire::Reason::KernelLoss, count: 7, positions: None };
    let mut cursor = chunk(0, "c");
    cursor.entries.clear();
    cursor.bodies.clear();
    for (dropped, batches) in [(None, 0), (Some(lost), 1)] {
        lane.intake()
            .put(vedette_wire::Chunk { dropped: dropped.into_iter().collect(), ..cursor.clone() })
            .expect("open");
        tokio::task::block_in_place(|| lane.intake().wait_durable()).expect("open");
        assert_eq!(lane.status().queue.batches, batches);
    }
    lane.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_new_policy_revision_closes_the_open_batch() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, context_sender) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
    lane.intake().put(chunk(0, "c")).expect("open");
    while lane.intake().bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    context_sender.send_modify(|context| context.policy_revision = 2);
    lane.intake().put(chunk(1, "c")).expect("open");
    let queue = Arc::clone(lane.queue());
    lane.stop(Duration::ZERO).await;
    assert_eq!(headers(&queue), [(1, 1), (2, 1)]);
}

#[tokio::test]
async fn a_full_queue_makes_sources_wait_and_a_stop_does_not_hang() {
    let dir = tempfile::tempdir().expect("temp dir");
    // There is room for a few batches, and nothing is sent.
    let (lane, _stamps) = start(dir.path(), Duration::ZERO, 256 << 10);
    let intake = lane.intake().clone();
    let source = std::thread::spawn(move || {
        let mut taken = 0;
        while intake.put(chunk(taken, "c")).is_ok() {
            taken += 1;
        }
        taken
    });
    while lane.status().waiting.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let batches = lane.status().queue.batches;
    assert!(batches > 0 && !source.is_finished(), "the source waits");
    let waiting = lane.status().waiting.expect("says why");
    assert!(waiting.contains("at its limit"), "{waiting}");
    let queue = Arc::clone(lane.queue());
    tokio::time::timeout(Duration::from_secs(5), lane.stop(Duration::ZERO)).await.expect("stops in time");
    assert!(source.join().expect("no panic") > 1);
    assert_eq!(headers(&queue).len() as u64, batches, "what is not on disk is read again");
}

#[tokio::test]
async fn wait_durable_returns_after_the_last_cursor_is_stored() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
    for at in 0..20 {
        lane.intake().put(chunk(at, &format!("cursor {at}"))).expect("open");
    }
    let intake = lane.intake().clone();
    tokio::task::spawn_blocking(move || intake.wait_durable()).await.expect("no panic").expect("becomes durable");
    let cursors = lane.queue().cursors("test").expect("reads");
    assert_eq!(cursors, [("file".to_owned(), b"cursor 19".to_vec())]);
}

#[tokio::test]
async fn nothing_is_committed_after_an_abandoned_batch() {
    let dir = tempfile::tempdir().expect("temp dir");
    // There is room for a large batch and a small one, but not for two large ones.
    let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 128 << 10);
    let noise: String = (0..4000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    for at in 0..2 {
        let text = format!("{at}{noise}");
        lane.intake()
            .put(crate::queue::tests_support::chunk_of(&text, at << 20, &format!("large {at}")))
            .expect("open");
        if at == 0 {
            let durable = lane.intake().clone();
            tokio::task::spawn_blocking(move || durable.wait_durable()).await.expect("no panic").expect("is taken");
        }
    }
    let flushing = lane.intake().clone();
    let waiting = tokio::task::spawn_blocking(move || flushing.wait_durable());
    tokio::time::sleep(Duration::from_millis(100)).await;
    lane.intake().put(crate::queue::tests_support::chunk_of("small", 3 << 20, "behind small")).expect("open");
    let queue = Arc::clone(lane.queue());
    lane.stop(Duration::ZERO).await;
    assert!(waiting.await.expect("no panic").is_err());
    assert_eq!(queue.cursors("test").expect("reads")[0].1, b"large 0");
}

#[tokio::test]
async fn records_that_never_fit_are_dropped_and_counted_and_the_next_flow() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_millis(10), 64 << 10);
    let noise: String = (0..50_000_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
    lane.intake().put(crate::queue::tests_support::chunk_of(&noise, 0, "behind large")).expect("open");
    let durable = lane.intake().clone();
    tokio::task::spawn_blocking(move || durable.wait_durable()).await.expect("no panic").expect("it goes on");
    lane.intake().put(crate::queue::tests_support::chunk_of("small", 1 << 20, "behind small")).expect("open");
    let durable = lane.intake().clone();
    tokio::task::spawn_blocking(move || durable.wait_durable()).await.expect("no panic").expect("it goes on");
    let status = lane.status();
    let counters = &status.ledger.0["test"];
    assert_eq!((counters.emitted, counters.dropped[&vedette_wire::Reason::Oversize]), (2, 1));
    // Losses alone are sent too: a batch with positions and no records.
    assert_eq!((status.queue.batches, status.waiting), (2, None));
    assert_eq!(lane.queue().cursors("test").expect("reads")[0].1, b"behind small");
    let (_, bytes) = lane.queue().next_after(0).expect("reads").expect("is there");
    let (head, sealed) = frame::parse(&bytes).expect("whole");
    let plain = codec::decompress(sealed, head.compression, 1 << 20).expect("decompresses");
    let header = codec::decode(&plain).expect("decodes").header;
    assert_eq!((header.records, &header.sources[0].dropped), (0, &vec![(0, noise.len() as u64, 1)]));
}

#[tokio::test]
async fn a_batch_is_closed_before_a_chunk_that_would_make_it_too_large() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
    let text = "x".repeat(700 << 10);
    for at in 0..3 {
        lane.intake().put(crate::queue::tests_support::chunk_of(&text, at << 20, "c")).expect("open");
    }
    let queue = Arc::clone(lane.queue());
    lane.stop(Duration::ZERO).await;
    assert_eq!(headers(&queue), [(1, 1), (1, 1), (1, 1)]);
}

/// Accepts batches one at a time and slowly; records their sources.
#[derive(Default)]
struct Slow(Mutex<Vec<Vec<String>>>);

impl Post for Slow {
    fn post(&self, _slot: u64, bytes: Vec<u8>) -> std::pin::Pin<Box<dyn Future<Output = crate::Outcome> + Send + '_>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let (head, sealed) = frame::parse(&bytes).expect("whole");
            let plain = codec::decompress(sealed, head.compression, 4 << 20).expect("decompresses");
            let header = codec::decode(&plain).expect("decodes").header;
            let sources = header.sources.into_iter().map(|source| source.id).collect();
            self.0.lock().push(sources);
            crate::Outcome::Accepted
        })
    }
}

/// A chunk that cannot be compressed.
fn incompressible_chunk(id: &str, at: u64) -> vedette_wire::Chunk {
    let source = Arc::new(vedette_wire::Source { collector: "test", id: id.to_owned(), name: None });
    let raw = (0..200_000).map(|_| fastrand::u8(..)).collect();
    let mut chunk = vedette_wire::Chunk::new(source);
    let body = vedette_wire::Body::Syslog(vedette_wire::body::Syslog { raw, ..Default::default() });
    chunk.push(5, vedette_wire::Position(at, at + 1), &body);
    chunk.cursor = Some(at.to_string().into_bytes());
    chunk
}

/// Twenty megabytes of one source.
fn flood(lane: &Lane) {
    for at in 0..100 {
        lane.intake().put(incompressible_chunk("flood", at)).expect("open");
    }
    tokio::task::block_in_place(|| lane.intake().wait_durable()).expect("open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_no_longer_bulk_is_committed_in_order() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
    flood(&lane);
    for at in [100, 101] {
        lane.intake().put(incompressible_chunk("flood", at)).expect("open");
        while lane.intake().bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // As after delivery.
        while let Some((slot, _)) = lane.queue().next_after(0).expect("reads") {
            lane.queue().delete(slot).expect("deletes");
        }
    }
    let queue = Arc::clone(lane.queue());
    lane.stop(Duration::ZERO).await;
    assert_eq!(queue.cursors("test").expect("reads"), [("flood".to_owned(), b"101".to_vec())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_batches_overtake_bulk_batches_and_cursors_do_not() {
    let dir = tempfile::tempdir().expect("temp dir");
    {
        let (lane, _stamps) = start(dir.path(), Duration::from_secs(3600), 1 << 30);
        flood(&lane);
        lane.intake().put(incompressible_chunk("quiet", 0)).expect("open");
        // Bulk shares no batch with others.
        lane.intake().put(incompressible_chunk("flood", 100)).expect("open");
        let mut gone = incompressible_chunk("other", 0);
        gone.forget.push("flood".to_owned());
        lane.intake().put(gone).expect("open");
        lane.stop(Duration::ZERO).await;
    }
    let post = Arc::new(Slow::default());
    // The share survives a restart.
    let (lane, _stamps) =
        start_with(dir.path(), Duration::from_millis(1), 1 << 30, Some(Arc::clone(&post) as Arc<dyn Post>));
    let cursors: Vec<String> = lane.queue().cursors("test").expect("reads").into_iter().map(|(id, _)| id).collect();
    assert_eq!(cursors, ["other", "quiet"], "a deleted cursor stays deleted");
    let deadline = Instant::now() + Duration::from_secs(20);
    while lane.queue().stats().batches > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let taken = post.0.lock().clone();
    let at = |id: &str| taken.iter().position(|sources| *sources == [id]).expect("alone in its batch");
    // Before the flood was bulk, batches came in order, at 1 MiB each; every fourth is the oldest.
    let mixed = 8;
    assert!(
        at("quiet") < mixed + 4 && at("other") < mixed + 4,
        "{} and {} of {}",
        at("quiet"),
        at("other"),
        taken.len()
    );
    let floods = taken.iter().skip(at("quiet").max(at("other"))).filter(|sources| *sources == &["flood"]).count();
    assert!(floods > 8, "{floods}");
    lane.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_open_batch_is_sealed_at_its_maximum_age_and_wait_durable_returns_during_a_flood() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lane, _stamps) = start(dir.path(), Duration::from_millis(50), 1 << 30);
    flood(&lane);
    lane.intake().put(incompressible_chunk("flood", 100)).expect("open");
    let cursor = |id: &str| lane.queue().cursors("test").expect("reads").into_iter().find(|(known, _)| known == id);
    let deadline = Instant::now() + Duration::from_secs(20);
    while cursor("flood").is_none_or(|(_, at)| at != b"100") {
        assert!(Instant::now() < deadline, "the bulk batch was not sealed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The flood never lets the intake run empty.
    let (intake, stop) = (lane.intake().clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let flooding = std::thread::spawn(move || {
        for at in 101..1500 {
            if stopped.load(std::sync::atomic::Ordering::Relaxed)
                || intake.put(incompressible_chunk("flood", at)).is_err()
            {
                return;
            }
        }
    });
    lane.intake().put(incompressible_chunk("quiet", 0)).expect("open");
    tokio::task::block_in_place(|| lane.intake().wait_durable()).expect("open");
    assert!(!flooding.is_finished(), "before it ends");
    assert!(cursor("quiet").is_some());
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flooding.join().expect("no panic");
    lane.stop(Duration::ZERO).await;
}
