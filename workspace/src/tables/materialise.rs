//! Writes landed batches into tables, in the background and at lower priority.

use super::versions;
use crate::{
    clock::now,
    health::Health,
    ingest::{LandingKey, LandingStore, ReadError},
    metrics::Metrics,
    store::{AgentKey, ControlStore, PendingBatch},
};
use anyhow::Result;
use std::{collections::BTreeSet, path::Path, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::sync::watch;
use vedette_lake::{Lake, LakeError, LandedBatch, Versions};
use vedette_wire::OrganizationId;

/// Poll interval for landed batches.
const BACKLOG_POLL: Duration = Duration::from_secs(2);
/// How long batches wait to share a commit, nanoseconds: each commit creates a file.
const WAIT_NS: i64 = 30_000_000_000;
/// Sealed bytes that suffice for a commit.
const ENOUGH_BYTES: i64 = 4 << 20;
/// Maximum number of batches in a commit.
const BATCHES_MAX: u32 = 512;
/// Maximum of sealed bytes and of records in a commit, unless one batch has more. As rows, sealed records take about twenty
/// times as many bytes, and far more if lines are alike.
const BYTES_MAX: i64 = 8 << 20;
const RECORDS_MAX: usize = 200_000;
/// Bounds of the row bytes per commit; the value depends on the memory. A larger batch gets a commit of its own.
const ROWS_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=64 << 20;
/// Number of commits between merges of small files.
const COMPACT_EVERY: u32 = 60;
/// Duration of the lease that lets one process materialise an organization.
const LEASE_NS: i64 = 60_000_000_000;

#[derive(Clone)]
struct Materialiser {
    control: ControlStore,
    /// The runtime that receives batches.
    ingest_runtime: tokio::runtime::Handle,
    landing: LandingStore,
    lake: Lake,
    holder: String,
    commits: u32,
    rows_bytes_max: usize,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// Keys of landed batches whose objects are missing.
    gone: BTreeSet<String>,
}

/// Batches of one commit.
#[derive(Default)]
struct Group {
    landed: Vec<LandedBatch>,
    /// Keys of batches that cannot be read, with reasons.
    unreadable: Vec<(String, String)>,
    /// Sealed bytes.
    bytes: i64,
    /// Whether more batches are pending.
    more: bool,
}

/// Why batches are not in the tables.
enum Failure {
    /// Temporary: the disk or the control store.
    Transient(anyhow::Error),
    /// Permanent for these batches.
    Permanent(String),
}

/// Starts the materialiser on a thread with its own runtime. Must be called on the ingest runtime.
pub(crate) fn start(
    control: ControlStore,
    landing: LandingStore,
    dir: &Path,
    memory_max: u64,
    (health, metrics): (Arc<Health>, Arc<Metrics>),
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>> {
    let rows_bytes_max = (memory_max / 16).clamp(*ROWS_BYTES.start(), *ROWS_BYTES.end());
    let rows_bytes_max = usize::try_from(rows_bytes_max).expect("at most 64 MiB");
    let holder = uuid::Uuid::now_v7().to_string();
    let (lake, ingest_runtime) = (Lake::new(dir.join("tables")), tokio::runtime::Handle::current());
    health.record_success(None);
    let materialiser = Materialiser {
        control,
        ingest_runtime,
        landing,
        lake,
        holder,
        commits: 0,
        rows_bytes_max,
        health,
        metrics,
        gone: BTreeSet::new(),
    };
    let lower = || {
        // Per thread on Linux (setpriority(2), "C library/kernel differences"): ingest has priority.
        if let Err(err) = rustix::process::nice(19) {
            tracing::debug!(error = %err, "materialising at normal priority");
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).on_thread_start(lower).enable_all().build()?;
    let thread = std::thread::Builder::new().name("materialise".to_owned()).spawn(move || {
        loop {
            let (mut worker, stop) = (materialiser.clone(), stop.clone());
            match runtime.block_on(runtime.spawn(async move { worker.run(stop).await })) {
                Ok(()) => return,
                Err(err) => tracing::error!(error = %err, "materialising ended unexpectedly; restarting"),
            }
            std::thread::sleep(BACKLOG_POLL);
        }
    })?;
    Ok(thread)
}

impl Materialiser {
    async fn run(&mut self, mut stop: watch::Receiver<bool>) {
        let mut failed = None;
        loop {
            let more = match self.round().await {
                Ok(more) => {
                    failed = None;
                    more
                }
                Err(err) => {
                    let error = format!("{err:#}");
                    if failed.as_ref() != Some(&error) {
                        tracing::error!(error, "materialising failed; trying again");
                    }
                    failed = Some(error);
                    false
                }
            };
            let pause = if more { Duration::ZERO } else { BACKLOG_POLL };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Runs work on the control store at normal priority, since ingest waits for the store's locks.
    async fn with_control_store<T, F>(&self, work: impl FnOnce(ControlStore) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.ingest_runtime.spawn(work(self.control.clone())).await?
    }

    async fn lease(&self, organization: OrganizationId) -> Result<bool> {
        let (lease, holder) = (format!("materialise/{organization}"), self.holder.clone());
        self.with_control_store(
            move |control| async move { control.lease(&lease, &holder, now(), now() + LEASE_NS).await },
        )
        .await
    }

    /// Materialises one group of batches of each organization; returns whether more are due now.
    async fn round(&mut self) -> Result<bool> {
        let (mut more, commits) = (false, self.commits);
        for organization in self.with_control_store(|control| async move { control.organization_ids().await }).await? {
            match self.materialise_organization(organization).await {
                Ok(has_more) => {
                    more |= has_more;
                    self.health.record_success(Some(organization));
                }
                // One organization's failure does not delay the others.
                Err(err) => {
                    let error = format!("{err:#}");
                    if self.health.record_failure(organization, &error) {
                        tracing::error!(%organization, error, "materialising failed; trying again");
                    }
                }
            }
        }
        if self.commits != commits || !self.health.is_failing() {
            self.health.record_success(None);
        }
        Ok(more)
    }

    async fn materialise_organization(&mut self, organization: OrganizationId) -> Result<bool> {
        let pending = self
            .with_control_store(move |control| async move { control.pending(organization, BATCHES_MAX).await })
            .await?;
        let Some(oldest) = pending.batches.first() else { return Ok(false) };
        let bytes: i64 = pending.batches.iter().map(|batch| batch.bytes).sum();
        if now() - oldest.landed < WAIT_NS && bytes < ENOUGH_BYTES {
            return Ok(false);
        }
        if !self.lease(organization).await? {
            return Ok(false);
        }
        let versions = versions(pending.versions);
        let group = self.read_group(pending.batches).await?;
        // Reading may have taken long: only the present holder of the lease commits.
        if group.landed.is_empty() && group.unreadable.is_empty() || !self.lease(organization).await? {
            return Ok(false);
        }
        self.write_group(organization, group.landed, group.unreadable, versions).await?;
        self.commits += 1;
        if self.commits.is_multiple_of(COMPACT_EVERY) {
            let lake = self.lake.clone();
            // Runs as a task of its own, so that a panic ends only the task.
            tokio::spawn(async move { lake.compact(organization).await }).await??;
        }
        Ok(group.more || group.bytes >= ENOUGH_BYTES)
    }

    /// Reads the batches of one commit.
    async fn read_group(&mut self, pending: Vec<PendingBatch>) -> Result<Group> {
        let (mut group, mut records, mut rows) = (Group::default(), 0, 0);
        for PendingBatch { key, day, landed, bytes, store } in pending {
            group.more = records > RECORDS_MAX
                || rows > self.rows_bytes_max
                || group.bytes > 0 && group.bytes + bytes > BYTES_MAX;
            if group.more {
                break;
            }
            group.bytes += bytes;
            match self.landing.read(&key).await {
                Ok((batch, bytes)) => {
                    (records, rows) = (records + batch.records.len(), rows + bytes);
                    group.landed.push(LandedBatch { key, day, landed, store, batch });
                }
                // The object may reappear when its disk is mounted again; other batches do not wait for it.
                Err(err) if err.is_gone() => {
                    if self.gone.insert(key.clone()) {
                        tracing::error!(key, "a landed batch is missing; trying again");
                    }
                }
                Err(err @ ReadError::Store(_)) => return Err(err.into()),
                Err(ReadError::Damaged(err)) => group.unreadable.push((key, format!("{err:#}"))),
            }
        }
        Ok(group)
    }

    /// Writes batches to the tables and marks them. If they cannot be written together, each is tried alone; a batch that
    /// cannot be written at all is marked unreadable.
    async fn write_group(
        &self,
        organization: OrganizationId,
        landed: Vec<LandedBatch>,
        mut unreadable: Vec<(String, String)>,
        mut versions: Versions,
    ) -> Result<()> {
        let group = Arc::new(landed);
        let mut keys: Vec<String> = Vec::new();
        match self.materialise(organization, Arc::clone(&group), &versions).await {
            Ok(newer) => {
                versions = newer;
                keys.extend(group.iter().map(|landed| landed.key.clone()));
            }
            Err(Failure::Transient(err)) => return Err(err),
            Err(Failure::Permanent(why)) => {
                tracing::warn!(%organization, why, batches = group.len(), "batches cannot be written together; trying each alone");
                for landed in group.iter() {
                    match self.materialise(organization, Arc::new(vec![landed.clone()]), &versions).await {
                        Ok(newer) => {
                            versions = newer;
                            keys.push(landed.key.clone());
                        }
                        Err(Failure::Transient(err)) => return Err(err),
                        Err(Failure::Permanent(why)) => unreadable.push((landed.key.clone(), why)),
                    }
                }
            }
        }
        tracing::debug!(%organization, batches = keys.len(), "materialised");
        self.metrics.materialised(organization, keys.len() as u64);
        for (key, why) in &unreadable {
            tracing::error!(
                key,
                why,
                "a landed batch cannot be read or written to the tables; it is marked unreadable, and in no table until \
                 `doctor --rebuild` can write it"
            );
            if let Some(LandingKey { agent, .. }) = LandingKey::parse(key) {
                let why = format!("a batch is in no table: {why}: {key}");
                let agent = AgentKey { organization, agent };
                let alert =
                    move |control: ControlStore| async move { control.alert(agent, "unreadable", &why, now()).await };
                self.with_control_store(alert).await?;
            }
        }
        let marks = versions.into_iter().map(|(table, mark)| (table, (mark.version, mark.rows))).collect();
        let unreadable: Vec<String> = unreadable.into_iter().map(|(key, _)| key).collect();
        self.with_control_store(move |control| async move {
            control.mark_materialised(organization, &keys, &unreadable, &marks).await
        })
        .await
    }

    /// Runs on its own task, so that a panic ends only this task.
    async fn materialise(
        &self,
        organization: OrganizationId,
        landed: Arc<Vec<LandedBatch>>,
        versions: &Versions,
    ) -> Result<Versions, Failure> {
        let (lake, versions) = (self.lake.clone(), versions.clone());
        let work = tokio::spawn(async move { lake.materialise(organization, &landed, &versions).await });
        match work.await {
            Ok(Ok(versions)) => Ok(versions),
            Ok(Err(LakeError::Rows(why))) => Err(Failure::Permanent(why)),
            Ok(Err(err)) => Err(Failure::Transient(err.into())),
            Err(err) => Err(Failure::Permanent(err.to_string())),
        }
    }
}
