//! Recovery after a lost queue: salvages intact batches, and then asks the workspace for its positions, so that sources
//! continue from there.

use super::WorkspaceClient;
use crate::runtime::events::AgentEvents;
use anyhow::{Result, anyhow, ensure};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use vedette_collectors::{CollectorClass, Spec};
use vedette_transport::{
    Backoff, Lane, Queue, WorkspaceApi,
    queue::{
        Resume,
        salvage::{self, SalvageError},
    },
};
use vedette_wire::{LaneName, body::LifecycleEvent, reply::StoredSource};

/// Maximum wait for the workspace if nothing indicates an earlier queue.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// Time limit for all pages; after it the request is repeated.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum wait for the second workspace of a pair, from the start of resuming, if one has answered.
const PAIR_PATIENCE: Duration = Duration::from_secs(600);
/// Poll interval for the state of the queue.
const QUEUE_POLL: Duration = Duration::from_millis(250);
/// Pause before cursors are stored again.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// First and longest pause between requests, and the longest one before a first start is assumed.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Ends a salvage on another thread when dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Whether sources must wait for salvage or for the workspace's positions.
fn is_due(queue: &Queue) -> bool {
    queue.resume() != Resume::Cursors
}

/// Whether a collector must wait for that. One that cannot read its sources again waits only for a new queue, since its
/// positions would restart.
pub(in crate::runtime) fn waits(queue: &Queue, spec: &Spec) -> bool {
    match queue.resume() {
        Resume::Cursors => false,
        Resume::Reread => spec.can_skip,
        Resume::First | Resume::Lost => spec.class != CollectorClass::Inventory,
    }
}

/// Salvages damaged queues and asks the workspace for positions, if due. Ends when sources may be read.
pub(in crate::runtime) async fn resume(
    lane: &Arc<Lane>,
    client: &WorkspaceClient,
    events: &AgentEvents,
    state_dir: &Path,
) {
    let queue = Arc::clone(lane.queue());
    for path in salvage::broken(state_dir, LaneName::Records) {
        salvage_one(lane, events, &path).await;
    }
    if !is_due(&queue) {
        return;
    }
    let began = Instant::now();
    let is_reread = queue.resume() == Resume::Reread;
    if is_reread {
        tracing::warn!(
            "the workspace lost acknowledged batches; sources will be read again once the queue is delivered"
        );
    }
    // Undelivered batches would be read a second time.
    while queue.holds_salvaged().unwrap_or(true) || is_reread && queue.holds_earlier().unwrap_or(true) {
        tokio::time::sleep(QUEUE_POLL).await;
    }
    let sources = positions(client, &queue, began).await;
    let count = sources.len();
    loop {
        let (target, sources) = (Arc::clone(&queue), sources.clone());
        match tokio::task::spawn_blocking(move || target.resume_at(sources)).await.expect("the queue does not panic") {
            Ok(()) => break,
            Err(err) if err.is_damage() => return,
            Err(err) => tracing::error!(error = %err, "cursors cannot be stored; trying again"),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
    if is_reread {
        let message = format!("the workspace lost acknowledged batches; {count} sources continue at its positions");
        events.lifecycle(LifecycleEvent::ReadAgain, message, None, None);
    }
    if count > 0 {
        tracing::info!(sources = count, "sources continue at the workspace's positions");
    }
}

/// Positions of all workspaces, as soon as they answer; none if a first start can be assumed.
async fn positions(client: &WorkspaceClient, queue: &Queue, began: Instant) -> Vec<StoredSource> {
    let is_first = queue.resume() == Resume::First;
    let mut backoff = Backoff::new(PAUSE_MIN, if is_first { FIRST_PAUSE_MAX } else { PAUSE_MAX });
    loop {
        let patience = if is_first { FIRST_PATIENCE.saturating_sub(began.elapsed()) } else { ANSWER_TIMEOUT };
        let (mut answers, mut failed) = (Vec::new(), None);
        // Either workspace of a pair may have what the other lacks.
        for client in client.all() {
            match tokio::time::timeout(patience, fetch(&client)).await {
                Ok(Ok(sources)) => answers.push(sources),
                Ok(Err(why)) => failed = Some(why),
                Err(_) => failed = Some(anyhow!("no answer within the time limit")),
            }
        }
        let is_enough = failed.is_none() || !answers.is_empty() && began.elapsed() >= PAIR_PATIENCE;
        match failed.filter(|_| !is_enough).map(|why| format!("{why:#}")) {
            None => return merge(answers),
            Some(why) if is_first && began.elapsed() >= FIRST_PATIENCE => {
                tracing::info!(why, "the workspace did not answer; assuming a first start");
                return Vec::new();
            }
            Some(why) => tracing::warn!(why, "sources wait for the workspace's positions"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn salvage_one(lane: &Arc<Lane>, events: &AgentEvents, path: &Path) {
    tracing::info!(path = %path.display(), "salvaging a damaged queue");
    let stopped = Arc::new(AtomicBool::new(false));
    // Stopping the agent drops this future; the thread must end too.
    let _stop = Stop(Arc::clone(&stopped));
    let (worker, file) = (Arc::clone(lane), path.to_owned());
    let work = move || {
        worker.queue().salvage(&file, |full| {
            worker.wake();
            if full {
                std::thread::sleep(QUEUE_POLL);
            }
            !stopped.load(Ordering::Acquire)
        })
    };
    let message = match tokio::task::spawn_blocking(work).await.expect("salvage does not panic") {
        Ok(found) => format!(
            "salvaged {} batches with {} records in all from a damaged queue; {} batches with {} records were damaged, {} \
             batches were of another enrollment",
            found.batches, found.records, found.damaged, found.damaged_records, found.foreign
        ),
        Err(SalvageError::Stopped) => return,
        Err(err) => format!("a damaged queue cannot be salvaged: {}", vedette_transport::tls::root_cause(&err)),
    };
    lane.wake();
    tracing::warn!(path = %path.display(), "{message}");
    events.lifecycle(LifecycleEvent::QueueSalvaged, message, None, None);
}

/// Merges the positions of several workspaces: the union of stored ranges, and the newest cursors.
fn merge(answers: Vec<Vec<StoredSource>>) -> Vec<StoredSource> {
    let mut all: BTreeMap<(String, String), StoredSource> = BTreeMap::new();
    for source in answers.into_iter().flatten() {
        match all.entry((source.collector.clone(), source.id.clone())) {
            Entry::Vacant(none) => drop(none.insert(source)),
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                if source.sealed > held.sealed {
                    (held.cursor, held.sealed) = (source.cursor, source.sealed);
                }
                held.stored.extend(source.stored);
                held.stored.sort_unstable();
                held.stored.dedup_by(|next, before| {
                    let touch = next.0 <= before.1;
                    before.1 = if touch { before.1.max(next.1) } else { before.1 };
                    touch
                });
            }
        }
    }
    all.into_values().collect()
}

/// Memory limit for the answers of one workspace: ten thousand files with a hundred gaps each.
const POSITIONS_BYTES_MAX: usize = 24 << 20;

/// Approximate memory of a source.
fn memory_of(source: &StoredSource) -> usize {
    size_of::<StoredSource>()
        + source.collector.len()
        + source.id.len()
        + source.cursor.len()
        + 16 * source.stored.len()
}

/// Fetches all pages.
async fn fetch(client: &WorkspaceApi) -> Result<Vec<StoredSource>> {
    let (mut sources, mut bytes): (Vec<StoredSource>, usize) = (Vec::new(), 0);
    loop {
        let after = sources.last().map(|last| (last.collector.as_str(), last.id.as_str()));
        let Some(page) = client.positions(after).await? else {
            tracing::warn!(
                "the workspace's release is too old to send positions; collectors begin where their setting `start` says; \
                 upgrade the workspace"
            );
            return Ok(Vec::new());
        };
        // Each page must start after the previous one, or the sequence might never end.
        let key = |source: &StoredSource| (source.collector.clone(), source.id.clone());
        let goes_on = sources.last().map(key) < page.sources.last().map(key);
        let more = page.more && goes_on;
        bytes += page.sources.iter().map(memory_of).sum::<usize>();
        ensure!(
            bytes <= POSITIONS_BYTES_MAX,
            "the positions of this agent's sources exceed {POSITIONS_BYTES_MAX} bytes"
        );
        sources.extend(page.sources);
        if !more {
            return Ok(sources);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_either_of_a_pair_has_is_not_read_again() {
        let source = |id: &str, sealed, stored: &[(u64, u64)]| StoredSource {
            collector: "syslog".to_owned(),
            id: id.to_owned(),
            cursor: vec![sealed as u8],
            sealed,
            stored: stored.to_vec(),
        };
        let one = vec![source("a", 1, &[(0, 10), (30, 40)]), source("b", 9, &[(0, 5)])];
        let two = vec![source("a", 2, &[(10, 20), (35, 50), (60, 70)]), source("b", 3, &[(5, 6)]), source("c", 1, &[])];
        let expected = [source("a", 2, &[(0, 20), (30, 50), (60, 70)]), source("b", 9, &[(0, 6)]), source("c", 1, &[])];
        assert_eq!(merge(vec![one, two]), expected);
    }

    /// A workspace that repeats a page for ever, or always sends more.
    async fn endless(grows: bool) -> Result<Vec<StoredSource>> {
        use std::io::{Read, Write};
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("is bound"));
        std::thread::spawn(move || {
            for (number, socket) in listener.incoming().enumerate() {
                let Ok(mut socket) = socket else { return };
                drop(socket.read(&mut [0; 4096]));
                let id = format!("{:08}", if grows { number } else { 1 });
                let source = StoredSource {
                    collector: "syslog".to_owned(),
                    id,
                    cursor: vec![0; 1 << 20],
                    sealed: 1,
                    stored: Vec::new(),
                };
                let page = vedette_wire::reply::Positions { sources: vec![source], more: true };
                let body = rmp_serde::to_vec_named(&page).expect("serializes");
                let head = format!("HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                drop(socket.write_all(&[head.as_bytes(), &body].concat()));
            }
        });
        let client = reqwest::Client::builder().no_proxy().build().expect("builds");
        fetch(&WorkspaceApi::new(client, &base)).await
    }

    #[tokio::test]
    async fn pages_without_end_have_one() {
        assert_eq!(endless(false).await.expect("the first page").len(), 2, "the second goes on nowhere");
        assert!(endless(true).await.expect_err("too much").to_string().contains("exceed"));
    }
}
