mod fake;
mod fleet;

use super::jitter;
use crate::{
    BatchContext, BatchLimits, Lane, LaneConfig, Outcome, Post, Queue, Quota,
    queue::tests_support::{chunk, chunk_of, context, set_aside},
};
use parking_lot::Mutex;
use std::{collections::VecDeque, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use vedette_wire::{Compression, LaneName, frame};

/// Answers from a script, then with `Done`; records the time, sequence and compression of each post.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Outcome>>,
    seen: Mutex<Vec<(Instant, u64)>>,
    codecs: Mutex<Vec<Compression>>,
    /// Codec that the destination requests.
    codec: watch::Sender<Option<Compression>>,
    /// Duration of an answer.
    takes: Duration,
    in_flight: Mutex<(usize, usize)>,
}

impl Post for Script {
    fn post(&self, _slot: u64, bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        let head = frame::parse(&bytes).expect("frames are whole").0;
        self.seen.lock().push((Instant::now(), head.key.seq));
        self.codecs.lock().push(head.compression);
        let answer = self.answers.lock().pop_front();
        Box::pin(async move {
            {
                let mut counts = self.in_flight.lock();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
            }
            tokio::time::sleep(self.takes).await;
            self.in_flight.lock().0 -= 1;
            answer.unwrap_or(Outcome::Accepted)
        })
    }
}

fn retry(after: Option<u64>) -> Outcome {
    Outcome::Retry { after: after.map(Duration::from_secs), why: "no".to_owned() }
}

fn lane(dir: &std::path::Path, post: Arc<Script>) -> Lane {
    lane_of(dir, LaneName::Records, 1 << 20, post)
}

fn lane_of(dir: &std::path::Path, name: LaneName, in_flight_bytes_max: usize, post: Arc<Script>) -> Lane {
    let (_, context): (_, watch::Receiver<BatchContext>) = watch::channel(context());
    Lane::start(LaneConfig {
        queue: Queue::open(dir, name, Quota::bytes(1 << 30), 7).expect("opens"),
        limits: BatchLimits {
            bytes_max: 1,
            records_max: 1,
            age_max: Duration::from_millis(10),
            compression: Compression::Zstd,
        },
        context,
        codec: post.codec.subscribe(),
        intake_bytes_max: 1 << 20,
        in_flight_bytes_max,
        now: Arc::new(|| 1),
        post: Some(post),
    })
    .expect("starts")
}

async fn drained(lane: &Lane) {
    while lane.status().queue.batches > 0 {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

async fn committed(lane: &Lane, count: u64) {
    let ledger = || lane.status().ledger.0.get("test").map_or(0, |counters| counters.emitted);
    while ledger() < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_outage_loses_nothing_and_every_batch_arrives_once_in_the_end() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    // At the longest pause of 30 s this is more than 24 h of failures.
    post.answers.lock().extend(std::iter::repeat_n(retry(None), 6000));
    let lane = lane(dir.path(), Arc::clone(&post));
    for at in 0..20 {
        lane.intake().put(chunk(at, "c")).expect("open");
    }
    committed(&lane, 20).await;
    let start = Instant::now();
    drained(&lane).await;
    assert!(start.elapsed() > Duration::from_secs(3600 * 20), "{:?}", start.elapsed());
    let status = lane.status();
    assert_eq!((status.sender.delivered, status.sender.last_error), (20, None));
}

/// Times and sequences of posts, if the first answer is to come back after ten minutes.
async fn told_to_wait() -> Vec<(Instant, u64)> {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    post.answers.lock().push_back(retry(Some(600)));
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    committed(&lane, 1).await;
    drained(&lane).await;
    post.seen.lock().clone()
}

#[tokio::test(start_paused = true)]
async fn the_endpoint_rests_as_long_as_it_asked() {
    let seen = told_to_wait().await;
    assert_eq!(seen.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(), [1, 1]);
    assert!(seen[1].0 - seen[0].0 >= Duration::from_secs(600), "{:?}", seen[1].0 - seen[0].0);
}

#[tokio::test(start_paused = true)]
async fn those_who_were_told_the_same_time_do_not_come_back_together() {
    let mut pauses = Vec::new();
    for _ in 0..40 {
        let seen = told_to_wait().await;
        pauses.push((seen[1].0 - seen[0].0).as_secs());
    }
    assert!(pauses.iter().all(|pause| (600..=751).contains(pause)), "{pauses:?}");
    let seconds: std::collections::BTreeSet<u64> = pauses.into_iter().collect();
    assert!(seconds.len() > 15, "40 of 150 s: {seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_end_is_taken_for_an_hour() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    post.answers.lock().push_back(retry(Some(u64::MAX)));
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    committed(&lane, 1).await;
    let start = Instant::now();
    drained(&lane).await;
    assert!(start.elapsed() < Duration::from_secs(2 * 3600), "{:?}", start.elapsed());
    assert!(!lane.is_broken());
}

#[tokio::test(start_paused = true)]
async fn a_poison_batch_goes_to_quarantine_and_the_next_flows() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    let poison = Outcome::Rejected { code: "shape".to_owned(), why: "no batch".to_owned() };
    post.answers.lock().push_back(poison);
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    lane.intake().put(chunk(1, "c")).expect("open");
    committed(&lane, 2).await;
    drained(&lane).await;
    let status = lane.status();
    assert_eq!((status.sender.delivered, status.sender.quarantined), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_the_policy_forbids_is_purged_and_said_to_be() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    post.answers.lock().push_back(Outcome::Forbidden);
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    committed(&lane, 1).await;
    drained(&lane).await;
    assert_eq!(lane.status().sender.purged, 1);
    assert_eq!(set_aside(lane.queue()).purged, [(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_identity_keeps_the_batch() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    let refused = Outcome::Retry { after: Some(Duration::from_secs(60)), why: "revoked".to_owned() };
    post.answers.lock().extend(std::iter::repeat_n(refused, 60));
    let lane = lane(dir.path(), Arc::clone(&post));
    lane.intake().put(chunk(0, "c")).expect("open");
    // The queue's thread wakes the sender in real time, which the paused clock does not wait for.
    while post.seen.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    let status = lane.status();
    assert_eq!((status.queue.batches, status.sender.last_error.as_deref()), (1, Some("revoked")));
    let posts = post.seen.lock().len();
    // After at least a minute.
    assert!((2..=11).contains(&posts), "asked {posts} times in ten minutes");
    drained(&lane).await;
}

/// Highest number of concurrent posts at a limit of bytes in flight.
async fn at_once(in_flight_bytes_max: usize) -> usize {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script { takes: Duration::from_secs(5), ..Script::default() });
    let lane = lane_of(dir.path(), LaneName::Records, in_flight_bytes_max, Arc::clone(&post));
    for at in 0..12 {
        lane.intake().put(chunk(at, "c")).expect("open");
    }
    committed(&lane, 12).await;
    drained(&lane).await;
    assert_eq!(lane.status().sender.delivered, 12);
    post.in_flight.lock().1
}

#[tokio::test(start_paused = true)]
async fn several_are_in_flight_as_far_as_their_bytes_allow_and_one_always() {
    assert!(at_once(1 << 20).await > 1);
    assert_eq!(at_once(1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn later_batches_are_compressed_as_the_destination_requests() {
    let dir = tempfile::tempdir().expect("temp dir");
    let post = Arc::new(Script::default());
    let lane = lane(dir.path(), Arc::clone(&post));
    for at in 0..2 {
        lane.intake().put(chunk(at, "c")).expect("open");
        committed(&lane, at + 1).await;
        drained(&lane).await;
        post.codec.send_replace(Some(Compression::Gzip));
    }
    assert_eq!(*post.codecs.lock(), [Compression::Zstd, Compression::Gzip]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_batches_are_not_taken_does_not_delay_the_other() {
    let dir = tempfile::tempdir().expect("temp dir");
    let stuck = Arc::new(Script { takes: Duration::from_secs(1 << 30), ..Script::default() });
    let blobs = lane_of(dir.path(), LaneName::Blobs, 1 << 20, stuck);
    let records = lane(dir.path(), Arc::default());
    for at in 0..8 {
        blobs.intake().put(chunk(at, "blob")).expect("open");
        records.intake().put(chunk(at, "record")).expect("open");
    }
    committed(&blobs, 8).await;
    committed(&records, 8).await;
    drained(&records).await;
    assert_eq!((records.status().sender.delivered, blobs.status().queue.batches), (8, 8));
    assert_eq!(records.queue().cursors("test").expect("reads")[0].1, b"record");
    assert_eq!(blobs.queue().cursors("test").expect("reads")[0].1, b"blob");
}

#[test]
fn pauses_after_failures_are_anything_up_to_the_bound() {
    let seconds = Duration::from_secs;
    for (backoff, after, bound) in [(2, None, 2), (30, None, 30), (2, Some(seconds(400)), 100)] {
        let (bound, pauses): (_, Vec<Duration>) =
            (seconds(bound), (0..1000).map(|_| jitter(seconds(backoff), after)).collect());
        assert!(pauses.iter().all(|pause| *pause <= bound));
        assert!(pauses.iter().any(|pause| *pause < bound / 10) && pauses.iter().any(|pause| *pause > bound * 9 / 10));
    }
}

/// After a change of endpoint the sender ignores the last endpoint's `Retry-After`.
#[tokio::test(start_paused = true)]
async fn what_rests_is_tried_at_once_when_it_goes_elsewhere() {
    let dir = tempfile::tempdir().expect("temp dir");
    let script = Arc::new(Script { answers: Mutex::new([retry(Some(3600))].into()), ..Script::default() });
    let lane = lane(dir.path(), Arc::clone(&script));
    lane.intake().put(chunk(0, "c")).expect("takes");
    let seen = |count: usize| {
        let script = Arc::clone(&script);
        async move {
            while script.seen.lock().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    seen(1).await;
    // Starts here: the paused clock runs ahead until a real thread has made the batch.
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.seen.lock().len(), 1, "it rests");
    lane.try_again();
    seen(2).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    drained(&lane).await;
    lane.stop(Duration::ZERO).await;
}
