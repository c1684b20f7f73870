//! A thousand agents after an outage.

use super::*;
use std::collections::BTreeMap;

const AGENTS: usize = 1000;
const BATCHES: u64 = 3;
/// Answers per second; the workspace refuses the rest.
const PER_SECOND: usize = 100;
const OUTAGE: Duration = Duration::from_secs(600);

/// A workspace that is down for a while, and then accepts a limited number of posts.
#[derive(Default)]
struct Endpoint {
    back: Option<Instant>,
    /// Posts per second since its return: total and accepted.
    seconds: Mutex<BTreeMap<u64, (usize, usize)>>,
    during_outage: Mutex<usize>,
}

impl Post for Endpoint {
    fn post(&self, _slot: u64, _bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let Some(second) = Instant::now().checked_duration_since(self.back.expect("set")) else {
                *self.during_outage.lock() += 1;
                return Outcome::Retry { after: None, why: "away".to_owned() };
            };
            let mut seconds = self.seconds.lock();
            let counts = seconds.entry(second.as_secs()).or_default();
            counts.0 += 1;
            if counts.1 >= PER_SECOND {
                // All get the same answer.
                return Outcome::Retry { after: Some(Duration::from_secs(5)), why: "too many".to_owned() };
            }
            counts.1 += 1;
            Outcome::Accepted
        })
    }
}

fn memory_queue(number: usize) -> Queue {
    let opener = || redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new());
    Queue::in_memory(Box::new(opener), number as u64 + 1)
}

#[test]
#[expect(clippy::print_stdout, reason = "the spread is a figure of docs/reliability.md")]
fn a_thousand_agents_come_back_spread_and_not_at_once() {
    // Only senders: the batches are queued before the outage begins.
    let queues: Vec<Arc<Queue>> = (0..AGENTS)
        .map(|number| {
            let queue = memory_queue(number);
            for at in 0..BATCHES {
                let mut open = crate::batcher::BatchBuilder::default();
                open.add(chunk(at, "c"));
                let header = open.header(&context(), LaneName::Records, 1);
                queue.commit(&mut open, header).expect("commits");
            }
            Arc::new(queue)
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let endpoint = runtime.expect("builds").block_on(async {
        let endpoint = Arc::new(Endpoint { back: Some(Instant::now() + OUTAGE), ..Endpoint::default() });
        let (stop, stopped) = watch::channel(false);
        let mut senders = tokio::task::JoinSet::new();
        for queue in &queues {
            let sender = super::super::Sender {
                queue: Arc::clone(queue),
                in_flight_bytes_max: 1 << 20,
                committed: Arc::default(),
                retry_now: Arc::default(),
                status: Arc::default(),
                stop: stopped.clone(),
            };
            senders.spawn(sender.run(Arc::clone(&endpoint) as Arc<dyn Post>));
        }
        while queues.iter().any(|queue| queue.stats().batches > 0) {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        stop.send_replace(true);
        while senders.join_next().await.is_some() {}
        endpoint
    });
    let seconds = endpoint.seconds.lock().clone();
    let (all, taken) = seconds.values().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
    let (peak, last) =
        (seconds.values().map(|counts| counts.0).max().unwrap_or(0), *seconds.keys().max().unwrap_or(&0));
    let spread: Vec<String> = seconds.iter().take(40).map(|(at, counts)| format!("{at}:{}", counts.0)).collect();
    println!(
        "{AGENTS} agents, {BATCHES} batches each, {OUTAGE:?} away: {:.2} posts a second and agent meanwhile; back, {all} \
         posts for {taken} batches in {last} s, {peak} in the fullest second; by second: {}",
        *endpoint.during_outage.lock() as f64 / OUTAGE.as_secs_f64() / AGENTS as f64,
        spread.join(" ")
    );
    assert_eq!(taken, AGENTS * BATCHES as usize);
    // Without jitter there would be a thousand in the first second. Full jitter over 30 s gives 67 per second, plus retries.
    assert!(peak < AGENTS / 4, "{peak} in one second");
    assert!(last < 180, "{last} s until all had landed");
    assert!(all < 3 * taken, "{all} posts for {taken} batches");
    let posts = *endpoint.during_outage.lock() as f64 / OUTAGE.as_secs_f64();
    assert!(posts < AGENTS as f64 / 10.0, "{posts} posts a second while it is away");
}
