//! The landing store: immutable frames under deterministic keys, created only if absent, and durable before the
//! acknowledgement.

use crate::clock;
use anyhow::{Context, Result};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem, path::Path as Key};
use std::{path::Path, sync::Arc};
use vedette_wire::{AgentId, Batch, Header, OrganizationId, codec, frame, geo::WorkspaceGeo};

/// Maximum size of a decompressed batch to read; earlier releases accepted more than this one does.
const LANDED_PLAIN_BYTES_MAX: usize = 128 << 20;

/// Maximum size of a batch as rows to read; earlier releases accepted any size.
const LANDED_ROWS_BYTES_MAX: usize = 1 << 30;

/// Result of landing a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LandOutcome {
    /// It is new.
    New,
    /// The same bytes existed.
    Duplicate,
    /// Other bytes exist under its key.
    Conflict,
}

/// Why a landed batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The store failed.
    #[error("the landing store cannot be read")]
    Store(#[from] object_store::Error),
    /// The content differs from what landed.
    #[error("the landed object is damaged")]
    Damaged(#[source] anyhow::Error),
}

impl ReadError {
    /// Whether the object does not exist: it was deleted, or its disk is not mounted.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, ReadError::Store(object_store::Error::NotFound { .. }))
    }
}

/// Key of a landed batch: `geo/organization/day/agent/lane/epoch/seq`, with the day of sealing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LandingKey {
    path: String,
    pub(crate) organization: OrganizationId,
    /// `YYYY-MM-DD`.
    pub(crate) day: String,
    pub(crate) agent: AgentId,
}

impl LandingKey {
    /// Key of a batch.
    pub(crate) fn new(geo: WorkspaceGeo, header: &Header) -> Self {
        let (day, key) = (clock::day(header.sealed), header.key());
        let (organization, agent) = (key.organization, key.agent);
        let path = format!("{geo}/{organization}/{day}/{agent}/{}/{}/{:020}", key.lane, key.epoch, key.seq);
        Self { path, organization, day, agent }
    }

    /// Parses the path of an object; absent if it is not a batch.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.split('/').skip(1);
        let (organization, day, agent) = (parts.next()?.parse().ok()?, parts.next()?.to_owned(), parts.next()?);
        Some(Self { path: path.to_owned(), organization, day, agent: agent.parse().ok()? })
    }

    /// Path of the object.
    pub(crate) fn as_str(&self) -> &str {
        &self.path
    }
}

/// The landing store of a workspace.
#[derive(Debug, Clone)]
pub(crate) struct LandingStore {
    store: Arc<dyn ObjectStore>,
}

impl LandingStore {
    /// Opens the store in a directory; creates it if missing. Writes are fsynced, file and directory.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let store = LocalFileSystem::new_with_prefix(dir)?.with_fsync(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// Stores a frame under its key, if that is absent.
    pub(crate) async fn land(&self, key: &LandingKey, frame: Vec<u8>, digest: &[u8; 32]) -> Result<LandOutcome> {
        let (key, frame) = (Key::from(key.as_str()), PutPayload::from(frame));
        match self.store.put_opts(&key, frame.clone(), PutMode::Create.into()).await {
            Ok(_) => Ok(LandOutcome::New),
            Err(object_store::Error::AlreadyExists { .. }) => {
                let existing = self.store.get(&key).await?.bytes().await?;
                match frame::parse(&existing).map(|(head, _)| head.digest == *digest) {
                    Ok(true) => Ok(LandOutcome::Duplicate),
                    Ok(false) => Ok(LandOutcome::Conflict),
                    Err(_) => {
                        tracing::error!(%key, "a landed object is damaged; replacing it with the agent's copy");
                        self.store.put_opts(&key, frame, PutMode::Overwrite.into()).await?;
                        Ok(LandOutcome::New)
                    }
                }
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Whether this batch is stored under its key.
    pub(crate) async fn holds(&self, key: &LandingKey, digest: &[u8; 32]) -> Result<bool> {
        match self.store.get_range(&Key::from(key.as_str()), 0..frame::HEAD_BYTES as u64).await {
            Ok(existing) => Ok(frame::parse_head(&existing).is_ok_and(|(head, _)| head.digest == *digest)),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Reads a landed batch; also returns the approximate size of its rows in bytes.
    ///
    /// # Errors
    /// [`ReadError::Store`] may be temporary; [`ReadError::Damaged`] is permanent.
    pub(crate) async fn read(&self, key: &str) -> Result<(Batch, usize), ReadError> {
        let bytes = self.store.get(&Key::from(key)).await?.bytes().await?;
        let decode = move || -> Result<(Batch, usize)> {
            let (head, sealed) = frame::parse(&bytes)?;
            let plain = codec::decompress(sealed, head.compression, LANDED_PLAIN_BYTES_MAX)?;
            let (header, positions, decoded) = codec::check(&plain)?;
            let rows = rows_bytes(decoded, &header, positions.iter().map(|(source, _)| *source));
            anyhow::ensure!(rows <= LANDED_ROWS_BYTES_MAX, "it has {rows} bytes as rows, more than fit into memory");
            Ok((codec::decode(&plain)?, rows))
        };
        let decoded = tokio::task::spawn_blocking(decode).await;
        decoded.unwrap_or_else(|err| Err(anyhow::anyhow!("decoding it failed: {err}"))).map_err(ReadError::Damaged)
    }

    /// All batches written at `since` (seconds UTC) or later, with their sizes in bytes.
    pub(crate) async fn list(&self, since: i64) -> Result<Vec<(LandingKey, u64)>> {
        let mut found = Vec::new();
        let mut objects = self.store.list(None);
        while let Some(object) = objects.try_next().await? {
            if object.last_modified.timestamp() >= since
                && let Some(key) = LandingKey::parse(object.location.as_ref())
            {
                found.push((key, object.size));
            }
        }
        Ok(found)
    }
}

/// Approximate size of a batch's rows in bytes, from its decoded size and the source of each record: facts of the header are
/// repeated in each row.
pub(crate) fn rows_bytes(decoded: usize, header: &Header, sources: impl Iterator<Item = u32>) -> usize {
    // Ids, times and numbers of a row.
    const ROW_BYTES: usize = 250;
    let host = &header.host;
    let each = ROW_BYTES + host.hostname.len() + host.os_name.len() + header.agent_version.len();
    let names: Vec<usize> = header
        .sources
        .iter()
        .map(|source| source.collector.len() + source.name.as_ref().map_or(0, String::len))
        .collect();
    let of_rows: usize = sources.map(|source| each + names.get(source as usize).copied().unwrap_or(0)).sum();
    // A row holds the line, and its message again.
    2 * decoded + of_rows
}
