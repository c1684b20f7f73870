//! The durable queue: a redb database. One transaction stores a batch, the cursors that it advances, and the ledger.
//!
//! | table | key | value |
//! |---|---|---|
//! | `batches` | slot | frame ([`vedette_wire::frame`]) |
//! | `quarantine` | slot | reason as JSON, NUL, frame |
//! | `cursors` | collector, NUL, source id | check, the collector's own bytes |
//! | `stored` | collector, NUL, source id | check, what the workspace has of the source ([`vedette_wire::Stored`]) |
//! | `salvage` | epoch, sequence | where a frame lies in a damaged database |
//! | `shares` | slot | what each source holds of the batch (`shares`) |
//! | `meta` | `format`, `state` | little-endian number; check, MessagePack (`meta::Meta`) |
//!
//! A *slot* is a place in the queue. Slots grow with each batch and are never reused, even when a new epoch restarts
//! sequences at 1. A *check* is the first 8 bytes of SHA-256 over key and value: redb trusts a cleanly closed file, so
//! a flipped bit in a cursor would go unnoticed.
//!
//! A delivered batch is deleted in its own transaction. If a crash undoes the deletion, the batch is sent again under
//! the same key, and the workspace answers `duplicate`.
//!
//! After a disk error redb refuses all further work: the database is closed, and reopened at the next use
//! (`queue::store`). A damaged database is moved aside, and its intact batches are salvaged into a new one
//! ([`salvage`]).

mod commit;
mod inspect;
mod leave;
mod meta;
mod open;
mod positions;
mod room;
pub mod salvage;
mod shares;
mod store;

pub use inspect::{QuarantinedBatch, Verified};
pub use leave::PLAIN_BYTES_MAX;
pub use meta::{Quarantine, Resume};
pub use room::{CACHE_BYTES, Quota};

use meta::Meta;
use parking_lot::{Mutex, MutexGuard};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};
use store::Store;
use vedette_wire::{AgentId, Epoch, HostLabel, LaneName, Ledger, OrganizationId, frame};

const BATCHES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("batches");
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");
const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Version of the tables. An older one is migrated, a newer one refused.
const FORMAT: u64 = 2;
/// File beside the queue with its format, for package scripts: they refuse a downgrade to a release that cannot read it.
const FORMAT_FILE: &str = "queue-format";

/// Errors of the queue, with remedies.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process has it open.
    #[error("the queue {path} is in use by another process; is an agent running with the same [state] dir?")]
    InUse {
        /// Path of the database.
        path: PathBuf,
    },
    /// There is no database.
    #[error("there is no queue {path}; has an agent run with this [state] dir?")]
    Absent {
        /// Expected path.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error(
        "the queue {path} has format {found}, this release knows {FORMAT}; run the newer release, or move the file away"
    )]
    Newer {
        /// Path of the database.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The directory cannot be written.
    #[error("cannot write to {path}; check that the directory exists and belongs to the agent's user")]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The queue is full until a batch is delivered.
    #[error("the queue is at its limit of {limit} bytes")]
    Full {
        /// `queue_bytes_max`, or the share of the volume if that is less.
        limit: u64,
    },
    /// The volume's free space is at its floor.
    #[error("the volume of {path} has {free} {unit} free, and {floor} must stay free")]
    NoFreeSpace {
        /// Path of the database.
        path: PathBuf,
        /// Free space.
        free: u64,
        /// Floor of the free space.
        floor: u64,
        /// `bytes` or `inodes`.
        unit: &'static str,
    },
    /// The batch would not fit into an empty queue.
    #[error("a batch of {bytes} bytes never fits into a queue of {limit} bytes; raise [transport] queue_bytes_max")]
    TooLarge {
        /// Size of the batch.
        bytes: u64,
        /// Limit.
        limit: u64,
    },
    /// redb or the disk failed.
    #[error("the queue {path} cannot be used")]
    Storage {
        /// Path of the database.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// The database is damaged. The agent moves it aside, creates a new one, and salvages.
    #[error("the queue {path} is damaged ({why})")]
    Damaged {
        /// Path of the database.
        path: PathBuf,
        /// What is damaged.
        why: String,
    },
    /// Sealing failed.
    #[error("a batch cannot be sealed")]
    Seal(#[source] std::io::Error),
}

impl QueueError {
    /// Whether the file is damaged and the agent must restart with a new one.
    pub fn is_damage(&self) -> bool {
        matches!(self, QueueError::Damaged { .. })
    }
}

/// Status of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Space of batches in the file, bytes.
    pub bytes: u64,
    /// Number of undelivered batches.
    pub batches: u64,
    /// Sealing time of the oldest, nanoseconds UTC.
    pub oldest_sealed: Option<i64>,
    /// Batches that will never be accepted.
    pub quarantine: Quarantine,
    /// Number of batches resealed: after a conflict, a re-key, or another machine id.
    pub resealed: u64,
    /// Number of batches split because they were too large.
    pub split: u64,
}

/// Result of a search for the next batch.
#[derive(Debug)]
pub(crate) enum NextBatch {
    /// No batch.
    Nothing,
    /// The next batch is larger than allowed.
    Larger,
    /// A batch and its frame.
    Batch(u64, Vec<u8>),
}

/// Organization and agent that seal batches.
pub type Owner = (OrganizationId, AgentId);

/// Cursors by (collector, source id); `None` for a deleted one.
pub(crate) type Cursors = BTreeMap<(String, String), Option<Vec<u8>>>;

/// The queue of one lane.
#[derive(Debug)]
pub struct Queue {
    store: Store,
    lane: LaneName,
    quota: Quota,
    /// The queue's state as of the last transaction.
    meta: Mutex<Meta>,
    /// Held during each write, so that a change applies to what was read.
    writing: Mutex<()>,
    /// Cursors not yet sent to the workspace.
    unsent_cursors: Mutex<Cursors>,
    resealed: AtomicU64,
    split: AtomicU64,
    /// Usage of the sources.
    held: Mutex<shares::Held>,
    /// Agents that this one replaces, and the present host label, for resealing their batches.
    replaced: Mutex<(Vec<AgentId>, HostLabel)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Queue {
    /// Lane of the queue.
    pub fn lane(&self) -> LaneName {
        self.lane
    }

    /// Present epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch(lock(&self.meta).epoch)
    }

    /// Path of the database.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// Counters since the epoch began.
    pub fn ledger(&self) -> Ledger {
        lock(&self.meta).ledger.clone()
    }

    /// Whether the database was found damaged and moved aside; it answers nothing then.
    pub fn is_damaged(&self) -> bool {
        self.store.is_damaged()
    }

    /// The first batch after a slot, as its frame.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn next_after(&self, slot: u64) -> Result<Option<(u64, Vec<u8>)>, QueueError> {
        Ok(match self.next_within(slot, usize::MAX)? {
            NextBatch::Batch(slot, frame) => Some((slot, frame)),
            NextBatch::Larger | NextBatch::Nothing => None,
        })
    }

    /// The first batch after a slot, if its frame has at most `bytes_max` bytes.
    pub(crate) fn next_within(&self, slot: u64, bytes_max: usize) -> Result<NextBatch, QueueError> {
        self.next_except(slot, &BTreeSet::new(), bytes_max)
    }

    /// The first batch after a slot that is not in `except`, if its frame has at most `bytes_max` bytes.
    pub(crate) fn next_except(
        &self,
        slot: u64,
        except: &BTreeSet<u64>,
        bytes_max: usize,
    ) -> Result<NextBatch, QueueError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            for entry in table.range(slot.saturating_add(1)..)? {
                let (slot, frame) = entry?;
                if except.contains(&slot.value()) {
                    continue;
                }
                return Ok(match frame.value() {
                    frame if frame.len() > bytes_max => NextBatch::Larger,
                    frame => NextBatch::Batch(slot.value(), frame.to_vec()),
                });
            }
            Ok(NextBatch::Nothing)
        })
    }

    /// Sequence of the first batch of an epoch in a range of slots.
    fn lowest_held(&self, from: u64, to: u64, epoch: u64) -> Result<Option<u64>, QueueError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            let first = table.range(from..to)?.next().transpose()?;
            let head = first.and_then(|(_, frame)| frame::parse_head(frame.value()).ok());
            Ok(head.filter(|(head, _)| head.key.epoch.0 == epoch).map(|(head, _)| head.key.seq))
        })
    }

    /// Status of the queue.
    pub fn stats(&self) -> QueueStats {
        use std::sync::atomic::Ordering::Relaxed;
        let oldest = self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            let first = table.first()?;
            Ok(first.and_then(|(_, frame)| frame::parse_head(frame.value()).ok()).map(|(head, _)| head.sealed))
        });
        let meta = lock(&self.meta).clone();
        QueueStats {
            file_bytes: std::fs::metadata(self.path()).map_or(0, |meta| meta.len()),
            bytes: meta.bytes,
            batches: meta.batches,
            oldest_sealed: oldest.ok().flatten(),
            quarantine: meta.quarantine,
            resealed: self.resealed.load(Relaxed),
            split: self.split.load(Relaxed),
        }
    }

    /// Reports that a frame from the queue differs from what was stored.
    pub(crate) fn report_damage(&self, why: &str) {
        self.store.damaged(why);
    }

    fn read<T>(&self, body: impl FnOnce(&redb::Database) -> Result<T, redb::Error>) -> Result<T, QueueError> {
        let reloaded = |meta, held| (*lock(&self.meta), *lock(&self.held)) = (meta, held);
        self.store.with(reloaded, body)
    }

    /// Runs a write transaction on the queue's state; `None` changes nothing.
    fn write<T>(
        &self,
        durability: Durability,
        body: impl FnOnce(&redb::WriteTransaction, &mut Meta) -> Result<Option<T>, redb::Error>,
    ) -> Result<Option<T>, QueueError> {
        let _writing = lock(&self.writing);
        self.read(|db| {
            let mut tx = db.begin_write()?;
            // Makes a start after a crash independent of the file's size.
            tx.set_quick_repair(matches!(durability, Durability::Immediate));
            tx.set_durability(durability)?;
            let mut meta = lock(&self.meta).clone();
            let done = body(&tx, &mut meta)?;
            if done.is_none() {
                tx.abort()?;
                return Ok(None);
            }
            meta.write(&tx)?;
            tx.commit()?;
            // After the commit: a store that was reopened meanwhile has read the committed shares.
            lock(&self.held).change(std::mem::take(&mut meta.changed_shares));
            *lock(&self.meta) = meta;
            Ok(done)
        })
    }
}

/// Space of a value in the file: redb allocates powers of two.
fn space(length: usize) -> u64 {
    (length as u64 + 64).next_power_of_two()
}

/// Length of a check before a value.
const CHECK_BYTES: usize = 8;

fn checked(key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![0; CHECK_BYTES];
    out.extend_from_slice(value);
    let check = check(key, value);
    out[..CHECK_BYTES].copy_from_slice(&check);
    out
}

fn check(key: &str, value: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = frame::sha256(&[key.as_bytes(), &[0], value].concat());
    digest[..CHECK_BYTES].try_into().expect("a digest is longer")
}

/// The value after its check.
fn unchecked<'a>(key: &str, stored: &'a [u8]) -> Result<&'a [u8], redb::Error> {
    match stored.split_first_chunk::<CHECK_BYTES>() {
        Some((found, value)) if *found == check(key, value) => Ok(value),
        _ => Err(redb::Error::Corrupted(format!("the value of {key:?} is not what was written"))),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
