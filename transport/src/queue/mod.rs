//! The durable queue: a redb database in which one transaction holds a batch, the cursors it advances and the ledger.
//!
//! | table | key | value |
//! |---|---|---|
//! | `batches` | sequence | frame ([`vedette_wire::frame`]) |
//! | `quarantine` | sequence | reason as JSON, NUL, frame |
//! | `cursors` | collector, NUL, source id | the collector's own bytes |
//! | `meta` | `format`, `epoch`, `next_seq`, `batches`, `bytes`, `quarantine_…`, `ledger`, `set_aside`, `predecessor` | little-endian numbers; MessagePack |
//!
//! A delivered batch is deleted in a transaction of its own. Were that deletion lost in a crash, the batch would be
//! sent again under the same key, and the workspace would answer `duplicate`.

mod open;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use vedette_wire::{
    AgentId, Compression, Epoch, Header, Lane, Ledger, OrganizationId, SetAside, codec,
    frame::{self, FrameHead},
    record::Predecessor,
    set_aside,
};

use crate::batcher::Open;

const BATCHES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("batches");
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");
const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Version of the tables above; an older one is migrated, a newer one refused.
const FORMAT: u64 = 1;
/// redb's page cache. Its default of 1 GiB would be most of a small host.
const CACHE_BYTES: usize = 2 << 20;

/// What went wrong with the queue, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Another process has it open.
    #[error("the queue {path} is in use by another process; is an agent running with the same [state] dir?")]
    InUse {
        /// The database.
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
        /// `queue_bytes_max`.
        limit: u64,
    },
    /// It would not fit into an empty queue either.
    #[error("a batch of {bytes} bytes never fits into a queue of {limit} bytes; raise [transport] queue_bytes_max")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// `queue_bytes_max`.
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
    /// Sealing failed.
    #[error("a batch cannot be sealed")]
    Seal(#[source] std::io::Error),
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
}

/// Batches that will never be accepted, kept aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quarantine {
    /// How many there are.
    pub batches: u64,
    /// Space that they take in the file in bytes; a tenth of the limit at the most.
    pub bytes: u64,
    /// How many had to give way to newer ones.
    pub dropped: u64,
}

/// What is behind a sequence.
#[derive(Debug)]
pub(crate) enum Found {
    /// No batch.
    Nothing,
    /// A batch with more bytes than wanted.
    Larger(u64),
    /// A batch and its frame.
    Batch(u64, Vec<u8>),
}

impl Found {
    pub(crate) fn seq(&self) -> Option<u64> {
        match self {
            Found::Nothing => None,
            Found::Larger(seq) | Found::Batch(seq, _) => Some(*seq),
        }
    }
}

/// The queue of one lane.
#[derive(Debug)]
pub struct Queue {
    db: Database,
    path: PathBuf,
    lane: Lane,
    epoch: Epoch,
    predecessor: Option<Predecessor>,
    bytes_max: u64,
    /// Guards the writer's view; one write transaction at a time anyway.
    ledger: Mutex<Ledger>,
    next_seq: AtomicU64,
    batches: AtomicU64,
    bytes: AtomicU64,
    quarantine: Mutex<Quarantine>,
    set_aside: Mutex<SetAside>,
}

/// Why a batch leaves the queue.
enum Leaves {
    Delivered,
    Purged,
    /// With what is kept before the frame: the reason.
    Quarantined(Vec<u8>),
}

impl Queue {
    /// The lane that it belongs to.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Life of this database.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn aside(&self) -> Quarantine {
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What later headers say was set aside.
    pub(crate) fn set_aside(&self) -> SetAside {
        self.set_aside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say_set_aside(&self, aside: SetAside) {
        *self.set_aside.lock().unwrap_or_else(PoisonError::into_inner) = aside;
    }

    /// Counters since the epoch began.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self, source: impl Into<redb::Error>) -> QueueError {
        QueueError::Storage { path: self.path.clone(), source: Box::new(source.into()) }
    }

    /// Seal what the batcher holds and commit it with its cursors and the ledger in one transaction, fsynced.
    ///
    /// # Errors
    /// [`QueueError::Full`] where the quota does not allow it; anything else leaves the queue as it was.
    pub(crate) fn commit(&self, open: &Open, mut header: Header, compression: Compression) -> Result<(), QueueError> {
        let mut ledger = self.ledger();
        ledger.add(&open.ledger);
        let seq = self.next_seq.load(Ordering::Acquire);
        let frame = if open.has_records() {
            header.epoch = self.epoch;
            header.seq = seq;
            header.ledger = ledger.clone();
            header.lowest_held = self.lowest_held()?.unwrap_or(seq);
            header.set_aside = self.set_aside();
            header.predecessor = (seq == 1).then(|| self.predecessor.clone()).flatten();
            let sealed = codec::seal(&header, open.records(), compression).map_err(QueueError::Seal)?;
            let head = FrameHead {
                key: header.key(),
                compression,
                sealed: header.sealed,
                records: header.records,
                digest: frame::sha256(&sealed),
            };
            Some(frame::build(&head, &sealed))
        } else {
            None
        };
        let added = frame.as_ref().map_or(0, |frame| space(frame.len()));
        // redb grows its file by doubling: two fifths of the limit are batches, so that the file stays below it.
        let room = self.bytes_max / 5 * 2;
        if added > room {
            return Err(QueueError::TooLarge { bytes: added, limit: self.bytes_max });
        }
        let kept = self.bytes.load(Ordering::Acquire) + self.aside().bytes;
        if added > 0 && kept + added > room {
            return Err(QueueError::Full { limit: self.bytes_max });
        }
        self.write(Durability::Immediate, |tx| {
            {
                let mut meta = tx.open_table(META)?;
                if let Some(frame) = &frame {
                    tx.open_table(BATCHES)?.insert(seq, frame.as_slice())?;
                    put(&mut meta, "next_seq", seq + 1)?;
                    add(&mut meta, "batches", 1)?;
                    add(&mut meta, "bytes", added.cast_signed())?;
                }
                let ledger = rmp_serde::to_vec_named(&ledger).expect("counters serialize");
                meta.insert("ledger", ledger.as_slice())?;
            }
            let mut cursors = tx.open_table(CURSORS)?;
            for ((collector, source), cursor) in &open.cursors {
                let key = format!("{collector}\0{source}");
                match cursor {
                    Some(cursor) => cursors.insert(key.as_str(), cursor.as_slice())?,
                    None => cursors.remove(key.as_str())?,
                };
            }
            Ok(())
        })?;
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
        if frame.is_some() {
            self.next_seq.store(seq + 1, Ordering::Release);
            self.batches.fetch_add(1, Ordering::AcqRel);
            self.bytes.fetch_add(added, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The first batch behind `seq`, as its frame.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn next_after(&self, seq: u64) -> Result<Option<(u64, Vec<u8>)>, QueueError> {
        Ok(match self.next_within(seq, usize::MAX)? {
            Found::Batch(seq, frame) => Some((seq, frame)),
            Found::Larger(_) | Found::Nothing => None,
        })
    }

    /// The first batch behind `seq`, as its frame where that has `bytes_max` bytes at the most.
    pub(crate) fn next_within(&self, seq: u64, bytes_max: usize) -> Result<Found, QueueError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.db.begin_read()?.open_table(BATCHES)?;
            Ok(match table.range(seq + 1..)?.next().transpose()? {
                None => Found::Nothing,
                Some((seq, frame)) if frame.value().len() > bytes_max => Found::Larger(seq.value()),
                Some((seq, frame)) => Found::Batch(seq.value(), frame.value().to_vec()),
            })
        };
        read().map_err(|err| self.failed(err))
    }

    /// Delete a delivered batch.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent again, and answered `duplicate`.
    pub fn delete(&self, seq: u64) -> Result<(), QueueError> {
        self.remove(seq, Leaves::Delivered)
    }

    /// Delete a batch that the policy forbids.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent again, and refused again.
    pub fn purge(&self, seq: u64) -> Result<(), QueueError> {
        self.remove(seq, Leaves::Purged)
    }

    /// Move a batch that will never be accepted into quarantine, where the oldest give way when they take more than a
    /// tenth of the limit.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantine(&self, seq: u64, code: &str, why: &str) -> Result<(), QueueError> {
        let mut reason = serde_json::json!({"code": code, "why": why}).to_string().into_bytes();
        reason.push(0);
        self.remove(seq, Leaves::Quarantined(reason))
    }

    /// Put batches that were sealed for another organization or agent into quarantine: the workspace would refuse them
    /// for ever. They are the oldest; with none of them this looks at one batch.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantine_foreign(&self, organization: OrganizationId, agent: AgentId) -> Result<u64, QueueError> {
        let mut moved = 0;
        while let Some((seq, bytes)) = self.next_after(0)? {
            match frame::parse_head(&bytes) {
                Ok((head, _)) if (head.key.organization, head.key.agent) != (organization, agent) => {
                    self.quarantine(seq, "identity", "sealed for another enrollment")?;
                    moved += 1;
                }
                _ => break,
            }
        }
        Ok(moved)
    }

    fn remove(&self, seq: u64, leaves: Leaves) -> Result<(), QueueError> {
        // A batch that is to be kept must be durable where it goes; a deletion may be lost.
        let durability = match leaves {
            Leaves::Quarantined(_) => Durability::Immediate,
            Leaves::Delivered | Leaves::Purged => Durability::None,
        };
        let before = self.set_aside();
        let mut aside = before.clone();
        match leaves {
            Leaves::Delivered => {}
            Leaves::Purged => set_aside::add(&mut aside.purged, seq),
            Leaves::Quarantined(_) => set_aside::add(&mut aside.quarantined, seq),
        }
        // Before the batch is gone: a header that is sealed meanwhile must not find it neither held nor set aside.
        self.say_set_aside(aside.clone());
        let mut length = None;
        let mut kept_aside = self.aside();
        let most = self.bytes_max / 10;
        let written = self.write(durability, |tx| {
            let mut batches = tx.open_table(BATCHES)?;
            let Some(frame) = batches.remove(seq)? else { return Ok(()) };
            length = Some(space(frame.value().len()));
            let mut meta = tx.open_table(META)?;
            add(&mut meta, "batches", -1)?;
            add(&mut meta, "bytes", -space(frame.value().len()).cast_signed())?;
            if !matches!(leaves, Leaves::Delivered) {
                let aside = rmp_serde::to_vec_named(&aside).expect("ranges serialize");
                meta.insert("set_aside", aside.as_slice())?;
            }
            if let Leaves::Quarantined(mut kept) = leaves {
                kept.extend_from_slice(frame.value());
                let mut table = tx.open_table(QUARANTINE)?;
                table.insert(seq, kept.as_slice())?;
                kept_aside.batches += 1;
                kept_aside.bytes += space(kept.len());
                while kept_aside.bytes > most && kept_aside.batches > 1 {
                    let Some((_, oldest)) = table.pop_first()? else { break };
                    kept_aside.batches -= 1;
                    kept_aside.bytes = kept_aside.bytes.saturating_sub(space(oldest.value().len()));
                    kept_aside.dropped += 1;
                }
                put(&mut meta, "quarantine_batches", kept_aside.batches)?;
                put(&mut meta, "quarantine_bytes", kept_aside.bytes)?;
                put(&mut meta, "quarantine_dropped", kept_aside.dropped)?;
            }
            Ok(())
        });
        if length.is_none() || written.is_err() {
            self.say_set_aside(before);
        }
        written?;
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner) = kept_aside;
        if let Some(length) = length {
            self.batches.fetch_sub(1, Ordering::AcqRel);
            self.bytes.fetch_sub(length, Ordering::AcqRel);
        }
        Ok(())
    }

    /// One write transaction; redb has one writer and makes others wait.
    fn write(
        &self,
        durability: Durability,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), QueueError> {
        let run = || -> Result<(), redb::Error> {
            let mut tx = self.db.begin_write()?;
            // A crash then costs no walk over the whole file at the next start.
            tx.set_quick_repair(matches!(durability, Durability::Immediate));
            tx.set_durability(durability)?;
            body(&tx)?;
            tx.commit()?;
            Ok(())
        };
        run().map_err(|err| self.failed(err))
    }

    /// Every cursor of a collector, by source id.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn cursors(&self, collector: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let (from, to) = (format!("{collector}\0"), format!("{collector}\u{1}"));
        let read = || -> Result<_, redb::Error> {
            let table = self.db.begin_read()?.open_table(CURSORS)?;
            let mut out = Vec::new();
            for entry in table.range(from.as_str()..to.as_str())? {
                let (key, cursor) = entry?;
                let id = key.value().split_once('\0').map_or("", |(_, id)| id).to_owned();
                out.push((id, cursor.value().to_vec()));
            }
            Ok(out)
        };
        read().map_err(|err| self.failed(err))
    }

    fn lowest_held(&self) -> Result<Option<u64>, QueueError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.db.begin_read()?.open_table(BATCHES)?;
            Ok(table.first()?.map(|(seq, _)| seq.value()))
        };
        read().map_err(|err| self.failed(err))
    }

    /// How full it is.
    pub fn stats(&self) -> QueueStats {
        let oldest = || -> Result<_, redb::Error> {
            let table = self.db.begin_read()?.open_table(BATCHES)?;
            let first = table.first()?;
            Ok(first.and_then(|(_, frame)| frame::parse_head(frame.value()).ok()).map(|(head, _)| head.sealed))
        };
        QueueStats {
            file_bytes: std::fs::metadata(&self.path).map_or(0, |meta| meta.len()),
            bytes: self.bytes.load(Ordering::Acquire),
            batches: self.batches.load(Ordering::Acquire),
            oldest_sealed: oldest().ok().flatten(),
            quarantine: self.aside(),
        }
    }
}

/// Space that a value takes in the file: redb's allocator hands out powers of two.
fn space(length: usize) -> u64 {
    (length as u64 + 64).next_power_of_two()
}

fn put(meta: &mut redb::Table<'_, &str, &[u8]>, key: &str, number: u64) -> Result<(), redb::Error> {
    meta.insert(key, number.to_le_bytes().as_slice())?;
    Ok(())
}

/// Numbers are counted inside the transaction, where no other writer is: what the file says is always true.
fn add(meta: &mut redb::Table<'_, &str, &[u8]>, key: &str, delta: i64) -> Result<(), redb::Error> {
    let now = number(meta.get(key)?.map(|value| value.value().to_vec()), key)?;
    put(meta, key, now.saturating_add_signed(delta))
}

fn number(value: Option<Vec<u8>>, key: &str) -> Result<u64, redb::Error> {
    let Some(value) = value else { return Ok(0) };
    let bytes = value.try_into().map_err(|_| redb::Error::Corrupted(format!("meta `{key}` is not a number")))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
