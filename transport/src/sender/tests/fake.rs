//! A workspace behind [`Post`]: stores what lands by key, and refuses as a real one does.

use super::*;
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};
use vedette_wire::{Body, Header, codec};

/// Epoch and sequence.
type Key = (u64, u64);

#[derive(Default)]
struct Fake {
    landed: Mutex<BTreeMap<Key, (Header, Vec<String>)>>,
    /// Maximum decompressed size of a batch.
    plain_bytes_max: usize,
    /// Keys that another agent's batches have.
    taken: Mutex<Vec<u64>>,
    conflicts: std::sync::atomic::AtomicU64,
    /// Does not answer.
    away: std::sync::atomic::AtomicBool,
}

impl Fake {
    fn judge(&self, bytes: &[u8]) -> Outcome {
        let why = || "no".to_owned();
        if self.away.load(Relaxed) {
            return Outcome::Retry { after: None, why: why() };
        }
        let (head, sealed) = match frame::parse(bytes) {
            Ok(parts) => parts,
            Err(err) => return Outcome::Damaged { why: err.to_string() },
        };
        let plain = codec::decompress(sealed, head.compression, 64 << 20).expect("decompresses");
        if plain.len() > self.plain_bytes_max {
            return Outcome::Split { why: why() };
        }
        let key = (head.key.epoch.0, head.key.seq);
        if head.key.epoch.0 == 7 && self.taken.lock().contains(&key.1) {
            self.conflicts.fetch_add(1, Relaxed);
            return Outcome::Reseal { why: why() };
        }
        let batch = codec::decode(&plain).expect("decodes");
        let text = |body: &Body| match body {
            Body::Syslog(line) => String::from_utf8_lossy(&line.raw).into_owned(),
            other => panic!("{other:?}"),
        };
        let lines: Vec<String> = batch.records.iter().map(|record| text(&record.body)).collect();
        let before = self.landed.lock().insert(key, (batch.header, lines.clone()));
        assert!(before.is_none_or(|(_, before)| before == lines), "another batch under {key:?}");
        Outcome::Accepted
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.landed.lock().values().flat_map(|(_, l)| l.clone()).collect();
        lines.sort();
        lines
    }
}

impl Post for Fake {
    fn post(&self, _slot: u64, bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.judge(&bytes)
        })
    }
}

fn lane_to(
    dir: &std::path::Path,
    batch_bytes: usize,
    now: Arc<dyn Fn() -> i64 + Send + Sync>,
    post: Arc<Fake>,
) -> Lane {
    let (_, context) = watch::channel(context());
    Lane::start(LaneConfig {
        queue: Queue::open(dir, LaneName::Records, Quota::bytes(1 << 30), 7).expect("opens"),
        limits: BatchLimits {
            bytes_max: batch_bytes,
            records_max: 10_000,
            age_max: Duration::from_millis(50),
            compression: Compression::Zstd,
        },
        context,
        codec: watch::channel(None).1,
        intake_bytes_max: 8 << 20,
        in_flight_bytes_max: 8 << 20,
        now,
        post: Some(post),
    })
    .expect("starts")
}

fn line(number: u64) -> String {
    format!("{number:06} {}", "x".repeat(200))
}

fn put_lines(lane: &Lane, numbers: std::ops::Range<u64>) -> Vec<String> {
    let lines: Vec<String> = numbers.map(line).collect();
    for (at, line) in lines.iter().enumerate() {
        lane.intake().put(chunk_of(line, at as u64 * 300, "c")).expect("open");
    }
    lines
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_too_large_is_split_until_it_is_taken_and_later_ones_are_smaller() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 10_000, ..Fake::default() });
    let lane = lane_to(dir.path(), 64 << 10, Arc::new(|| 1), Arc::clone(&fake));
    let mut lines = put_lines(&lane, 0..500);
    committed(&lane, 500).await;
    drained(&lane).await;
    assert_eq!(fake.lines(), lines);
    let splits = lane.status().queue.split;
    assert!(splits > 3, "{splits}");
    assert!(lane.status().sender.batch_bytes_max.is_some_and(|most| most <= 10_000));
    {
        // Each split key holds an empty batch that names its parts, and the parts have landed.
        let landed = fake.landed.lock();
        let empty: Vec<&Header> =
            landed.values().map(|(header, _)| header).filter(|header| header.records == 0).collect();
        assert_eq!(empty.len() as u64, splits);
        for part in empty.iter().flat_map(|header| &header.split_into) {
            assert!(landed.contains_key(&(7, *part)), "{part}");
        }
        let sequences: Vec<u64> = landed.keys().map(|(_, seq)| *seq).collect();
        assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>(), "no holes");
    }
    lines.extend(put_lines(&lane, 500..1000));
    committed(&lane, 1000).await;
    drained(&lane).await;
    assert_eq!(fake.lines(), lines);
    assert_eq!(lane.status().queue.split, splits, "what was learned holds");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_large_by_itself_goes_into_quarantine() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 5000, ..Fake::default() });
    let lane = lane_to(dir.path(), 64 << 10, Arc::new(|| 1), Arc::clone(&fake));
    lane.intake().put(chunk_of(&"y".repeat(9000), 0, "c")).expect("open");
    let lines = put_lines(&lane, 0..10);
    committed(&lane, 11).await;
    drained(&lane).await;
    assert_eq!(fake.lines(), lines);
    assert_eq!(lane.status().queue.quarantine.batches, 1);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_begins_another_epoch_in_which_the_batch_is_sealed_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 1 << 20, ..Fake::default() });
    fake.taken.lock().extend([2, 3]);
    let lane = lane_to(dir.path(), 2000, Arc::new(|| 1), Arc::clone(&fake));
    // The ledger restarts with the epoch: landed batches tell the progress.
    let landed = async |count| {
        while fake.lines().len() < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // Both batches are sealed before the first conflict.
    fake.away.store(true, Relaxed);
    let mut lines = put_lines(&lane, 0..50);
    committed(&lane, 50).await;
    fake.away.store(false, Relaxed);
    landed(50).await;
    lines.extend(put_lines(&lane, 50..60));
    landed(60).await;
    drained(&lane).await;
    assert_eq!(fake.lines(), lines, "each once");
    let status = lane.status();
    assert_eq!((fake.conflicts.load(Relaxed), status.queue.resealed), (2, 2));
    let landed = fake.landed.lock();
    let (newest, (header, _)) = landed.iter().rfind(|((epoch, _), _)| *epoch != 7).expect("another epoch");
    assert!(newest.1 >= 2 && header.ledger.0["test"].emitted >= 12, "{header:?}");
    let before = header.predecessor.as_ref().expect("it names the epoch before");
    assert_eq!((before.epoch.0, before.lowest_held), (7, None));
    assert_eq!(before.set_aside.lost, [(2, 3)]);
}

/// A conflict is not a failure of the endpoint: a backlog of them costs a post each, not a backoff each.
#[tokio::test(start_paused = true)]
async fn a_backlog_of_conflicts_is_resealed_without_pauses() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 1 << 20, ..Fake::default() });
    fake.taken.lock().extend(1..=1000);
    fake.away.store(true, Relaxed);
    let lane = lane_to(dir.path(), 2000, Arc::new(|| 1), Arc::clone(&fake));
    let lines = put_lines(&lane, 0..500);
    committed(&lane, 500).await;
    let batches = lane.status().queue.batches;
    assert!(batches > 40, "{batches}");
    fake.away.store(false, Relaxed);
    lane.try_again();
    let began = Instant::now();
    while fake.lines().len() < lines.len() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The rest before the first post is over at once; each post takes 20 ms.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?} for {batches} conflicts", began.elapsed());
    assert_eq!((fake.lines(), fake.conflicts.load(Relaxed)), (lines, batches));
    assert_eq!(lane.status().sender.last_error, None);
}

#[tokio::test(start_paused = true)]
async fn three_days_without_the_workspace_lose_nothing_while_lines_go_on() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 1 << 20, ..Fake::default() });
    let days = Duration::from_secs(72 * 3600);
    let began = Instant::now();
    fake.away.store(true, Relaxed);
    let lane = lane_to(dir.path(), 2000, Arc::new(|| 1), Arc::clone(&fake));
    let mut lines = Vec::new();
    for hour in 0..72 {
        lines.extend(put_lines(&lane, hour * 10..hour * 10 + 10));
        committed(&lane, hour * 10 + 10).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    assert!(fake.lines().is_empty() && began.elapsed() >= days);
    fake.away.store(false, Relaxed);
    let back = Instant::now();
    drained(&lane).await;
    assert_eq!(fake.lines(), lines);
    assert!(back.elapsed() < Duration::from_secs(180), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_a_day_either_way_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fake = Arc::new(Fake { plain_bytes_max: 1 << 20, ..Fake::default() });
    let clock = Arc::new(std::sync::atomic::AtomicI64::new(10 * 86_400_000_000_000));
    let shared = Arc::clone(&clock);
    let now = Arc::new(move || shared.load(Relaxed));
    let lane = lane_to(dir.path(), 2000, now, Arc::clone(&fake));
    let mut lines = Vec::new();
    for (round, days) in [0_i64, 1, -2, 1, -9].into_iter().enumerate() {
        clock.fetch_add(days * 86_400_000_000_000, Relaxed);
        let from = round as u64 * 20;
        lines.extend(put_lines(&lane, from..from + 20));
        committed(&lane, from + 20).await;
    }
    drained(&lane).await;
    assert_eq!(fake.lines(), lines);
    assert_eq!(lane.status().sender.last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_damaged_in_the_queue_moves_the_queue_aside() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    post.answers.lock().push_back(Outcome::Damaged { why: "a bit flipped".to_owned() });
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    while !lane.queue().is_damaged() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!dir.path().join("records.redb").exists());
    assert_eq!(crate::queue::salvage::broken(dir.path(), LaneName::Records).len(), 1);
    // Later chunks are refused, so that their source is read again.
    let _ = lane.intake().put(chunk(1, "c"));
    while !lane.is_broken() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lane.intake().put(chunk(2, "c")).expect_err("the lane has ended");
}
