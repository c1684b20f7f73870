//! The durable queue: a redb database in which one transaction holds a batch, the cursors it advances and the ledger.
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
//! A *slot* is a place in the queue: it grows with each batch and is never given twice, also where a new epoch begins
//! and sequences begin again at 1. A *check* is the first 8 bytes of SHA-256 over key and value: redb trusts a file
//! that was closed well, so that a bit that flipped in a cursor would else be believed.
//!
//! A delivered batch is deleted in a transaction of its own. Were that deletion lost in a crash, the batch would be
//! sent again under the same key, and the workspace would answer `duplicate`.
//!
//! After an error of the disk redb refuses everything: the database is then closed, and opened again at the next use
//! (`queue::store`). A database that is damaged is moved aside, and what can be found in it is sent from a new one
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

pub use inspect::{Kept, Verified};
pub use leave::PLAIN_BYTES_MAX;
pub use meta::{Quarantine, Resume};
pub use room::{CACHE_BYTES, Quota};

use meta::Meta;
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};
use store::Store;
use vedette_wire::{AgentId, Epoch, HostLabel, Lane, Ledger, OrganizationId, frame};

const BATCHES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("batches");
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");
const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Version of the tables above; an older one is migrated, a newer one refused.
const FORMAT: u64 = 2;

/// What went wrong with the queue, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process has it open.
    #[error("the queue {path} is in use by another process; is an agent running with the same [state] dir?")]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no queue {path}; has an agent run with this [state] dir?")]
    Absent {
        /// Where it would be.
        path: PathBuf,
    },
    /// A newer release wrote it.
    #[error(
        "the queue {path} has format {found}, this release knows {FORMAT}; run the newer release, or move the file away"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The directory cannot be written.
    #[error("cannot write to {path}; check that the directory exists and belongs to the agent's user")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing may be added until something is delivered.
    #[error("the queue is at its limit of {limit} bytes")]
    Full {
        /// `queue_bytes_max`, or the share of the volume where that is less.
        limit: u64,
    },
    /// Others need the rest of the volume.
    #[error("the volume of {path} has {free} {unit} free, and {floor} stay free for others")]
    Floor {
        /// The database.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What must stay free.
        floor: u64,
        /// `bytes` or `inodes`.
        unit: &'static str,
    },
    /// It would not fit into an empty queue either.
    #[error("a batch of {bytes} bytes never fits into a queue of {limit} bytes; raise [transport] queue_bytes_max")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// redb or the disk failed.
    #[error("the queue {path} cannot be used")]
    Storage {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// What was read is not what was written. An agent moves the file aside, begins with a new one, and salvages.
    #[error("the queue {path} is damaged ({why})")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Sealing failed.
    #[error("a batch cannot be sealed")]
    Seal(#[source] std::io::Error),
}

impl QueueError {
    /// Whether the file is at fault, and the agent must begin again with another.
    pub fn is_damage(&self) -> bool {
        matches!(self, QueueError::Damaged { .. })
    }
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Space that batches take in it in bytes.
    pub bytes: u64,
    /// Batches not yet delivered.
    pub batches: u64,
    /// When the oldest of them was sealed, nanoseconds UTC.
    pub oldest_sealed: Option<i64>,
    /// What will never be accepted.
    pub quarantine: Quarantine,
    /// Batches sealed again under another key, since another batch had landed under theirs.
    pub resealed: u64,
    /// Batches split since they were too large.
    pub split: u64,
}

/// What is behind a slot.
#[derive(Debug)]
pub(crate) enum Found {
    /// No batch.
    Nothing,
    /// A batch with more bytes than wanted.
    Larger,
    /// A batch and its frame.
    Batch(u64, Vec<u8>),
}

/// Who seals batches.
pub type Owner = (OrganizationId, AgentId);

/// Cursors by (collector, source id); `None` is one that is gone.
pub(crate) type Cursors = BTreeMap<(String, String), Option<Vec<u8>>>;

/// The queue of one lane.
#[derive(Debug)]
pub struct Queue {
    store: Store,
    lane: Lane,
    quota: Quota,
    /// What the database says of itself, as of the last transaction.
    meta: Mutex<Meta>,
    /// Held through each write: what is changed is what was read.
    writing: Mutex<()>,
    /// Cursors that no header has told the workspace yet.
    untold: Mutex<Cursors>,
    resealed: AtomicU64,
    split: AtomicU64,
    /// What sources hold.
    held: Mutex<shares::Held>,
    /// Agents that this machine was before, and what headers say of the host: their batches are sealed again.
    replaced: Mutex<(Vec<AgentId>, HostLabel)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// The lane that it belongs to.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Life of this database, or of what is sealed now.
    pub fn epoch(&self) -> Epoch {
        Epoch(lock(&self.meta).epoch)
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// Counters since the epoch began.
    pub fn ledger(&self) -> Ledger {
        lock(&self.meta).ledger.clone()
    }

    /// Whether it was found damaged, moved aside, and answers nothing any more.
    pub fn is_damaged(&self) -> bool {
        self.store.is_damaged()
    }

    /// The first batch behind a slot, as its frame.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn next_after(&self, slot: u64) -> Result<Option<(u64, Vec<u8>)>, QueueError> {
        Ok(match self.next_within(slot, usize::MAX)? {
            Found::Batch(slot, frame) => Some((slot, frame)),
            Found::Larger | Found::Nothing => None,
        })
    }

    /// The first batch behind a slot, as its frame where that has `bytes_max` bytes at the most.
    pub(crate) fn next_within(&self, slot: u64, bytes_max: usize) -> Result<Found, QueueError> {
        self.next_except(slot, &BTreeSet::new(), bytes_max)
    }

    /// The same, passing over some.
    pub(crate) fn next_except(&self, slot: u64, except: &BTreeSet<u64>, bytes_max: usize) -> Result<Found, QueueError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            for entry in table.range(slot.saturating_add(1)..)? {
                let (slot, frame) = entry?;
                if except.contains(&slot.value()) {
                    continue;
                }
                return Ok(match frame.value() {
                    frame if frame.len() > bytes_max => Found::Larger,
                    frame => Found::Batch(slot.value(), frame.to_vec()),
                });
            }
            Ok(Found::Nothing)
        })
    }

    /// The sequence of the first batch at or behind a slot that is of an epoch.
    fn lowest_held(&self, from: u64, to: u64, epoch: u64) -> Result<Option<u64>, QueueError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            let first = table.range(from..to)?.next().transpose()?;
            let head = first.and_then(|(_, frame)| frame::parse_head(frame.value()).ok());
            Ok(head.filter(|(head, _)| head.key.epoch.0 == epoch).map(|(head, _)| head.key.seq))
        })
    }

    /// How full it is.
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

    /// Tell the queue that a frame which it gave out is not what was put in.
    pub(crate) fn found_damaged(&self, why: &str) {
        self.store.damaged(why);
    }

    fn read<T>(&self, body: impl FnOnce(&redb::Database) -> Result<T, redb::Error>) -> Result<T, QueueError> {
        let reloaded = |meta, held| (*lock(&self.meta), *lock(&self.held)) = (meta, held);
        self.store.with(reloaded, body)
    }

    /// One write transaction, with what the database says of itself; `None` leaves everything as it was.
    fn write<T>(
        &self,
        durability: Durability,
        body: impl FnOnce(&redb::WriteTransaction, &mut Meta) -> Result<Option<T>, redb::Error>,
    ) -> Result<Option<T>, QueueError> {
        let _writing = lock(&self.writing);
        self.read(|db| {
            let mut tx = db.begin_write()?;
            // A crash then costs no walk over the whole file at the next start.
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
            // Here: a store that is opened again meanwhile has read what was committed.
            lock(&self.held).change(std::mem::take(&mut meta.changed_shares));
            *lock(&self.meta) = meta;
            Ok(done)
        })
    }
}

/// Space that a value takes in the file: redb's allocator hands out powers of two.
fn space(length: usize) -> u64 {
    (length as u64 + 64).next_power_of_two()
}

/// The first bytes of a digest before a value.
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

/// The value without its check.
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
