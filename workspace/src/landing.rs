//! The landing store: immutable frames under deterministic keys, created only if absent, and durable before the
//! acknowledgement.

use anyhow::{Context, Result};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload, local::LocalFileSystem, path::Path as Key};
use std::{path::Path, sync::Arc};
use vedette_wire::{Batch, Header, codec, frame, geo::WorkspaceGeo};

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

/// The landing store of a workspace.
#[derive(Debug, Clone)]
pub(crate) struct LandingStore {
    store: Arc<dyn ObjectStore>,
}

impl LandingStore {
    /// Opens the store in a directory; creates it if missing. Writes are fsynced, file and directory.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let store = LocalFileSystem::new_with_prefix(dir)?.with_fsync(true);
        Ok(Self { store: Arc::new(store) })
    }

    /// `geo/organization/day/agent/lane/epoch/seq`, with the day of sealing.
    pub(crate) fn key(geo: WorkspaceGeo, header: &Header) -> (String, String) {
        let day = day_of(header.sealed);
        let key = header.key();
        let path = format!("{geo}/{}/{day}/{}/{}/{}/{:020}", key.organization, key.agent, key.lane, key.epoch, key.seq);
        (path, day)
    }

    /// Stores a frame under its key, if that is absent.
    pub(crate) async fn land(&self, key: &str, frame: Vec<u8>, digest: &[u8; 32]) -> Result<LandOutcome> {
        let (key, frame) = (Key::from(key), PutPayload::from(frame));
        match self.store.put_opts(&key, frame.clone(), PutMode::Create.into()).await {
            Ok(_) => Ok(LandOutcome::New),
            Err(object_store::Error::AlreadyExists { .. }) => {
                let there = self.store.get(&key).await?.bytes().await?;
                match frame::parse(&there).map(|(head, _)| head.digest == *digest) {
                    Ok(true) => Ok(LandOutcome::Duplicate),
                    Ok(false) => Ok(LandOutcome::Conflict),
                    Err(_) => {
                        tracing::error!(%key, "a damaged landed object was replaced by the agent's copy");
                        self.store.put_opts(&key, frame, PutMode::Overwrite.into()).await?;
                        Ok(LandOutcome::New)
                    }
                }
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Whether this batch is stored under its key.
    pub(crate) async fn holds(&self, key: &str, digest: &[u8; 32]) -> Result<bool> {
        match self.store.get_range(&Key::from(key), 0..frame::HEAD_BYTES as u64).await {
            Ok(there) => Ok(frame::parse_head(&there).is_ok_and(|(head, _)| head.digest == *digest)),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Reads a landed batch; also returns the approximate size of its rows in bytes.
    ///
    /// # Errors
    /// [`ReadError::Store`] may be temporary; [`ReadError::Damaged`] is permanent.
    pub(crate) async fn read(&self, key: &str, plain_bytes_max: usize) -> Result<(Batch, usize), ReadError> {
        let bytes = self.store.get(&Key::from(key)).await?.bytes().await?;
        let decode = move || -> Result<(Batch, usize)> {
            let (head, sealed) = frame::parse(&bytes)?;
            let plain = codec::decompress(sealed, head.compression, plain_bytes_max)?;
            let (header, positions) = codec::check(&plain)?;
            let rows = rows_bytes(plain.len(), &header, positions.iter().map(|(source, _)| *source));
            anyhow::ensure!(rows <= LANDED_ROWS_BYTES_MAX, "it has {rows} bytes as rows, more than fit into memory");
            Ok((codec::decode(&plain)?, rows))
        };
        let decoded = tokio::task::spawn_blocking(decode).await;
        decoded.unwrap_or_else(|err| Err(anyhow::anyhow!("decoding it failed: {err}"))).map_err(ReadError::Damaged)
    }

    /// All objects written at `since` (seconds UTC) or later: key, organization, day, size.
    pub(crate) async fn list(&self, since: i64) -> Result<Vec<(String, String, String, u64)>> {
        let mut found = Vec::new();
        let mut objects = self.store.list(None);
        while let Some(object) = objects.try_next().await? {
            if object.last_modified.timestamp() < since {
                continue;
            }
            let key = object.location.to_string();
            let mut parts = key.split('/').skip(1).map(str::to_owned);
            if let (Some(organization), Some(day)) = (parts.next(), parts.next()) {
                found.push((key.clone(), organization, day, object.size));
            }
        }
        Ok(found)
    }
}

/// Approximate size of a batch's rows in bytes, from the source of each record: facts of the header are repeated in each row.
pub(crate) fn rows_bytes(plain: usize, header: &Header, sources: impl Iterator<Item = u32>) -> usize {
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
    2 * plain + of_rows
}

/// `YYYY-MM-DD` of a time, nanoseconds UTC.
fn day_of(nanoseconds: i64) -> String {
    let date = time::OffsetDateTime::from_unix_timestamp(nanoseconds.div_euclid(1_000_000_000))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
        .date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}
