//! Writes landed batches into tables, in the background and at lower priority.

use crate::{
    control::Control,
    landing::{Landing, ReadError},
    now,
    receive::PLAIN_BYTES_MAX,
};
use anyhow::Result;
use std::{path::Path, thread::JoinHandle, time::Duration};
use tokio::sync::watch;
use vedette_lake::{Lake, Landed};
use vedette_wire::OrganizationId;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Batches wait so long for company: each commit makes a file.
const WAIT_NS: i64 = 30_000_000_000;
/// Sealed bytes that are enough for a commit.
const ENOUGH_BYTES: i64 = 4 << 20;
/// Batches in one commit at the most.
const BATCHES_MAX: u32 = 512;
/// Sealed bytes in one commit at the most, and records, but for a batch that has more by itself: decoded and as rows they
/// are some twenty times the bytes, and any number of times where lines are alike.
const BYTES_MAX: i64 = 8 << 20;
const RECORDS_MAX: usize = 200_000;
/// Commits until the small files are merged.
const COMPACT_EVERY: u32 = 60;
const LEASE_NS: i64 = 60_000_000_000;

struct Materialiser {
    control: Control,
    /// The runtime of receiving.
    receiving: tokio::runtime::Handle,
    landing: Landing,
    lake: Lake,
    holder: String,
    commits: u32,
}

/// Start the materialiser on a thread with a runtime of its own, from within the runtime of receiving.
pub(crate) fn start(
    control: Control,
    landing: Landing,
    dir: &Path,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>> {
    let holder = uuid::Uuid::now_v7().to_string();
    let (lake, receiving) = (Lake::new(dir.join("tables")), tokio::runtime::Handle::current());
    let mut materialiser = Materialiser { control, receiving, landing, lake, holder, commits: 0 };
    let lower = || {
        // Of a thread, on Linux (setpriority(2), "C library/kernel differences"): receiving goes first.
        if let Err(err) = rustix::process::nice(19) {
            tracing::debug!(error = %err, "materialising at normal priority");
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).on_thread_start(lower).enable_all().build()?;
    let thread = std::thread::Builder::new().name("materialise".to_owned()).spawn(move || {
        let work = runtime.spawn(async move { materialiser.run(stop).await });
        if runtime.block_on(work).is_err() {
            tracing::error!("materialising ended unexpectedly; restart the workspace");
        }
    })?;
    Ok(thread)
}

impl Materialiser {
    async fn run(&mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let more = match self.round().await {
                Ok(more) => more,
                Err(err) => {
                    tracing::error!(error = format!("{err:#}"), "materialising failed; tried again");
                    false
                }
            };
            let pause = if more { Duration::ZERO } else { LOOK_EVERY };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Work on the control store at normal priority: receiving waits for its locks.
    async fn control<T, F>(&self, work: impl FnOnce(Control) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.receiving.spawn(work(self.control.clone())).await?
    }

    async fn lease(&self, organization: OrganizationId) -> Result<bool> {
        let (lease, holder) = (format!("materialise/{organization}"), self.holder.clone());
        self.control(move |control| async move { control.lease(&lease, &holder, now(), now() + LEASE_NS).await }).await
    }

    /// True where there is more to do at once.
    async fn round(&mut self) -> Result<bool> {
        let mut more = false;
        for organization in self.control(|control| async move { control.organization_ids().await }).await? {
            match self.organization(organization).await {
                Ok(there_is) => more |= there_is,
                // The others' data does not wait for one organization's trouble.
                Err(err) => {
                    tracing::error!(%organization, error = format!("{err:#}"), "materialising failed; tried again");
                }
            }
        }
        Ok(more)
    }

    async fn organization(&mut self, organization: OrganizationId) -> Result<bool> {
        let undecided =
            self.control(move |control| async move { control.undecided(organization, BATCHES_MAX).await }).await?;
        let Some(oldest) = undecided.pending.first() else { return Ok(false) };
        let bytes: i64 = undecided.pending.iter().map(|pending| pending.bytes).sum();
        if now() - oldest.landed < WAIT_NS && bytes < ENOUGH_BYTES {
            return Ok(false);
        }
        if !self.lease(organization).await? {
            return Ok(false);
        }
        let (mut taken, mut records, mut more) = (0, 0, false);
        let (mut landed, mut undecodable) = (Vec::new(), Vec::new());
        for pending in undecided.pending {
            more = records > RECORDS_MAX || taken > 0 && taken + pending.bytes > BYTES_MAX;
            if more {
                break;
            }
            taken += pending.bytes;
            match self.landing.read(&pending.key, PLAIN_BYTES_MAX).await {
                Ok(batch) => {
                    records += batch.records.len();
                    let (landed_at, store) = (pending.landed, pending.store);
                    landed.push(Landed { key: pending.key, day: pending.day, landed: landed_at, store, batch });
                }
                Err(err @ ReadError::Store(_)) => return Err(err.into()),
                Err(ReadError::Damaged(err)) => {
                    let error = format!("{err:#}");
                    tracing::error!(key = pending.key, error, "landed batch is damaged; left as it is");
                    undecodable.push(pending.key);
                }
            }
        }
        // Reading may have taken long: the commit is made by whoever holds the lease now.
        if !self.lease(organization).await? {
            return Ok(false);
        }
        let versions = self.lake.materialise(organization, &landed, &undecided.versions).await?;
        let keys: Vec<String> = landed.into_iter().map(|landed| landed.key).collect();
        tracing::debug!(%organization, batches = keys.len(), "materialised");
        self.control(move |control| async move {
            control.mark_materialised(organization, &keys, &undecodable, &versions).await
        })
        .await?;
        self.commits += 1;
        if self.commits.is_multiple_of(COMPACT_EVERY) {
            self.lake.compact(organization).await?;
        }
        Ok(more || taken >= ENOUGH_BYTES)
    }
}
