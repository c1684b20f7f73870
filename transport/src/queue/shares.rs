//! Usage: how much of the queue each source holds. One source must not fill the queue for all others.
//!
//! A source that is written faster than it is delivered fills the queue up to its share and waits; a quiet source still
//! finds room. A share is not fixed: it is [`SHARE`] times the free space, less [`ON_ITS_WAY_BYTES`]. A single source
//! may take three quarters of a large queue, and the next one three quarters of the rest. As batches leave, sources
//! above their share wait, and shares become equal.
//!
//! The batches of a source that holds [`BULK_BYTES`] are *bulk*. Other batches are delivered first, except that every
//! fourth delivered batch is the oldest of all.
//!
//! | table | key | value |
//! |---|---|---|
//! | `shares` | slot | check; 1 for a bulk batch, else 0; for each source: [`key_of`], bytes of its space; both u64, little-endian |

use super::{
    BATCHES, Meta, NextBatch, Queue, QueueError, checked, lock,
    meta::{Usage, UsageChange},
    unchecked,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};
use std::collections::{BTreeSet, HashMap};
use vedette_wire::{Source, frame};

const SHARES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("shares");

/// A source may hold this many times the free space.
const SHARE: u64 = 3;
/// A source that waited continues when it holds at most this many times the free space, not at each delivery.
const RESUMED_SHARE_FACTOR: u64 = 1;
/// A source is bulk when it holds this much, or a sixteenth of the queue: more than is in transit while deliveries keep up.
const BULK_BYTES: u64 = 8 << 20;

/// Part of the free space, up to a quarter of the queue, that is reserved for chunks on their way into it.
const ON_ITS_WAY_BYTES: u64 = 8 << 20;

/// Usage of all batches.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Bytes by [`key_of`].
    by_source: HashMap<u64, u64>,
    /// Slots of batches that are not bulk.
    quiet: BTreeSet<u64>,
    /// Number of bulk batches.
    bulk: u64,
}

/// First bytes of SHA-256 over collector, NUL, and the source's name or else its id: all generations of a file share one key.
fn key_of(source: &Source) -> u64 {
    let name = source.name.as_ref().unwrap_or(&source.id);
    let digest = frame::sha256(&[source.collector.as_bytes(), &[0], name.as_bytes()].concat());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest is longer"))
}

impl Usage {
    /// Divides the space of a batch by the bytes of its sources.
    pub(super) fn of<'a>(sources: impl Iterator<Item = (&'a Source, u64)> + Clone, space: u64, is_bulk: bool) -> Self {
        let total: u64 = sources.clone().map(|(_, bytes)| bytes).sum();
        let share = |bytes: u64| u64::try_from(u128::from(space) * u128::from(bytes) / u128::from(total.max(1)));
        let held = sources
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(source, bytes)| (key_of(source), share(bytes).unwrap_or(space)))
            .collect();
        Self { is_bulk, held }
    }

    /// Stores the shares of a new batch.
    pub(super) fn put(&self, tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<(), redb::Error> {
        let held = self.held.iter().flat_map(|(key, bytes)| [key.to_le_bytes(), bytes.to_le_bytes()]).flatten();
        let row: Vec<u8> = std::iter::once(u8::from(self.is_bulk)).chain(held).collect();
        tx.open_table(SHARES)?.insert(slot, checked(&slot.to_string(), &row).as_slice())?;
        meta.changed_shares.push(UsageChange { slot, is_added: true, shares: self.clone() });
        Ok(())
    }

    fn decode(slot: u64, row: &[u8]) -> Result<Self, redb::Error> {
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("cut at 8"));
        let row = unchecked(&slot.to_string(), row)?;
        let (is_bulk, held) = row.split_first().map_or((false, row), |(first, held)| (*first == 1, held));
        let held = held.chunks_exact(16).map(|share| (number(&share[..8]), number(&share[8..]))).collect();
        Ok(Self { is_bulk, held })
    }
}

/// Creates the table if it is missing, and deletes rows of batches that an earlier release removed.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    let first = tx.open_table(BATCHES)?.first()?.map_or(u64::MAX, |(slot, _)| slot.value());
    tx.open_table(SHARES)?.retain_in(..first, |_, _| false)?;
    Ok(())
}

/// Removes the shares of a batch that leaves.
pub(super) fn take(tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<Usage, redb::Error> {
    let mut table = tx.open_table(SHARES)?;
    let Some(row) = table.remove(slot)? else { return Ok(Usage::default()) };
    let shares = Usage::decode(slot, row.value())?;
    meta.changed_shares.push(UsageChange { slot, is_added: false, shares: shares.clone() });
    Ok(shares)
}

/// Loads the shares of all batches.
pub(super) fn load(db: &Database) -> Result<Held, redb::Error> {
    let tx = db.begin_read()?;
    let mut held = Held::default();
    let table = match tx.open_table(SHARES) {
        Ok(table) => table,
        // An inspected queue of an earlier release has no table.
        Err(TableError::TableDoesNotExist(_)) => return Ok(held),
        Err(err) => return Err(err.into()),
    };
    // An earlier release removes batches and leaves their rows.
    let first = tx.open_table(BATCHES)?.first()?.map_or(u64::MAX, |(slot, _)| slot.value());
    for row in table.range(first..)? {
        let (slot, row) = row?;
        let (slot, shares) = (slot.value(), Usage::decode(slot.value(), row.value())?);
        held.change(vec![UsageChange { slot, is_added: true, shares }]);
    }
    Ok(held)
}

impl Held {
    /// Applies changes.
    pub(super) fn change(&mut self, changed: Vec<UsageChange>) {
        for UsageChange { slot, is_added, shares } in changed {
            match (shares.is_bulk, is_added) {
                (true, true) => self.bulk += 1,
                (true, false) => self.bulk = self.bulk.saturating_sub(1),
                (false, true) => drop(self.quiet.insert(slot)),
                (false, false) => drop(self.quiet.remove(&slot)),
            }
            for (key, bytes) in shares.held {
                let held = self.by_source.entry(key).or_default();
                *held = if is_added { *held + bytes } else { held.saturating_sub(bytes) };
                if *held == 0 {
                    self.by_source.remove(&key);
                }
            }
        }
    }
}

impl Queue {
    fn held_by(&self, source: &Source) -> u64 {
        lock(&self.held).by_source.get(&key_of(source)).copied().unwrap_or(0)
    }

    /// Whether a source may add to the queue: within its share, or within the smaller one that applies while it `waits`.
    pub fn has_room_for(&self, source: &Source, waits: bool) -> bool {
        let held = self.held_by(source);
        let (batches, used) = {
            let meta = lock(&self.meta);
            (meta.batches, meta.bytes + meta.quarantine.bytes)
        };
        // An empty queue has room whatever was counted.
        if held == 0 || batches == 0 {
            return true;
        }
        let share = if waits { RESUMED_SHARE_FACTOR } else { SHARE };
        let capacity = self.capacity();
        let free = self.free(capacity, used).saturating_sub(ON_ITS_WAY_BYTES.min(capacity / 4));
        held <= share.saturating_mul(free)
    }

    /// Whether a source is bulk.
    pub(crate) fn is_bulk(&self, source: &Source) -> bool {
        let held = self.held_by(source);
        held >= BULK_BYTES || held > 0 && held > self.capacity() / 16
    }

    /// The first batch that is not bulk, if there are bulk batches, of at most `bytes_max` bytes.
    pub(crate) fn next_quiet(&self, except: &BTreeSet<u64>, bytes_max: usize) -> Result<NextBatch, QueueError> {
        loop {
            let slot = {
                let held = lock(&self.held);
                if held.bulk == 0 {
                    return Ok(NextBatch::Nothing);
                }
                held.quiet.iter().find(|slot| !except.contains(slot)).copied()
            };
            let Some(slot) = slot else { return Ok(NextBatch::Nothing) };
            let found = self.read(|db| {
                let frame = db.begin_read()?.open_table(BATCHES)?.get(slot)?;
                Ok(match frame.as_ref().map(|frame| frame.value()) {
                    None => NextBatch::Nothing,
                    Some(frame) if frame.len() > bytes_max => NextBatch::Larger,
                    Some(frame) => NextBatch::Batch(slot, frame.to_vec()),
                })
            })?;
            if !matches!(found, NextBatch::Nothing) {
                return Ok(found);
            }
            // An earlier release removed it.
            lock(&self.held).quiet.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests;
