//! How much of the queue each source holds: what one leaves is for the others, and they go before it.
//!
//! A source that cannot be delivered as fast as it is written to fills the queue up to its share and waits; a quiet one
//! beside it finds room. A share is not fixed: it is [`SHARE`] times what is free, less [`ON_ITS_WAY_BYTES`]. One source
//! alone may take three quarters of a large queue, and the next one three quarters of the rest. While batches leave, sources
//! that hold more than their share wait, and shares become alike.
//!
//! A source that holds [`BULK_BYTES`] goes into batches with its like, *bulk*; batches of the others are delivered before
//! them, but for each fourth, which is the oldest of all.
//!
//! | table | key | value |
//! |---|---|---|
//! | `shares` | slot | check; 1 where the batch is bulk, else 0; of each source in it: [`key_of`], bytes of the space it takes; both u64, little-endian |

use super::{BATCHES, Found, Meta, Queue, QueueError, checked, lock, unchecked};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};
use std::collections::{BTreeSet, HashMap};
use vedette_wire::{Source, frame};

const SHARES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("shares");

/// A source may hold so many times what is free.
const SHARE: u64 = 3;
/// One that had to wait goes on when it holds no more than so many times what is free: not at each batch that leaves.
const RESUMED_SHARE: u64 = 1;
/// A source that holds as much, or a sixteenth of the queue, is bulk: more than what is under way while deliveries keep up.
const BULK_BYTES: u64 = 8 << 20;

/// So much of what is free, a quarter of the queue at the most, is for what is on its way into it.
const ON_ITS_WAY_BYTES: u64 = 8 << 20;

/// What a batch's sources hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) is_bulk: bool,
    /// By [`key_of`], bytes.
    pub(super) held: Vec<(u64, u64)>,
}

/// A batch comes or leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    slot: u64,
    comes: bool,
    shares: Shares,
}

/// What all batches' sources hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// By [`key_of`], bytes.
    by_source: HashMap<u64, u64>,
    /// Slots of batches that are not bulk.
    quiet: BTreeSet<u64>,
    /// How many are.
    bulk: u64,
}

/// The first bytes of SHA-256 over collector, NUL, and the source's name, or its id where it has none: generations of a file
/// are one.
fn key_of(source: &Source) -> u64 {
    let name = source.name.as_ref().unwrap_or(&source.id);
    let digest = frame::sha256(&[source.collector.as_bytes(), &[0], name.as_bytes()].concat());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest is longer"))
}

impl Shares {
    /// Of so much space, by the bytes of sources in the batch.
    pub(super) fn of<'a>(sources: impl Iterator<Item = (&'a Source, u64)> + Clone, space: u64, is_bulk: bool) -> Self {
        let total: u64 = sources.clone().map(|(_, bytes)| bytes).sum();
        let share = |bytes: u64| u64::try_from(u128::from(space) * u128::from(bytes) / u128::from(total.max(1)));
        let held = sources
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(source, bytes)| (key_of(source), share(bytes).unwrap_or(space)))
            .collect();
        Self { is_bulk, held }
    }

    /// Note them of a new batch.
    pub(super) fn put(&self, tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<(), redb::Error> {
        let held = self.held.iter().flat_map(|(key, bytes)| [key.to_le_bytes(), bytes.to_le_bytes()]).flatten();
        let row: Vec<u8> = std::iter::once(u8::from(self.is_bulk)).chain(held).collect();
        tx.open_table(SHARES)?.insert(slot, checked(&slot.to_string(), &row).as_slice())?;
        meta.changed_shares.push(Change { slot, comes: true, shares: self.clone() });
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

/// Make the table where it is missing, without rows of batches that an earlier release took out.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    let first = tx.open_table(BATCHES)?.first()?.map_or(u64::MAX, |(slot, _)| slot.value());
    tx.open_table(SHARES)?.retain_in(..first, |_, _| false)?;
    Ok(())
}

/// A batch leaves: what its sources held.
pub(super) fn take(tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<Shares, redb::Error> {
    let mut table = tx.open_table(SHARES)?;
    let Some(row) = table.remove(slot)? else { return Ok(Shares::default()) };
    let shares = Shares::decode(slot, row.value())?;
    meta.changed_shares.push(Change { slot, comes: false, shares: shares.clone() });
    Ok(shares)
}

/// What all batches' sources hold.
pub(super) fn load(db: &Database) -> Result<Held, redb::Error> {
    let tx = db.begin_read()?;
    let mut held = Held::default();
    let table = match tx.open_table(SHARES) {
        Ok(table) => table,
        // Only looked at, and of an earlier release.
        Err(TableError::TableDoesNotExist(_)) => return Ok(held),
        Err(err) => return Err(err.into()),
    };
    // An earlier release takes batches out and leaves their rows.
    let first = tx.open_table(BATCHES)?.first()?.map_or(u64::MAX, |(slot, _)| slot.value());
    for row in table.range(first..)? {
        let (slot, row) = row?;
        let (slot, shares) = (slot.value(), Shares::decode(slot.value(), row.value())?);
        held.change(vec![Change { slot, comes: true, shares }]);
    }
    Ok(held)
}

impl Held {
    /// Add what comes, and take away what leaves.
    pub(super) fn change(&mut self, changed: Vec<Change>) {
        for Change { slot, comes, shares } in changed {
            match (shares.is_bulk, comes) {
                (true, true) => self.bulk += 1,
                (true, false) => self.bulk = self.bulk.saturating_sub(1),
                (false, true) => drop(self.quiet.insert(slot)),
                (false, false) => drop(self.quiet.remove(&slot)),
            }
            for (key, bytes) in shares.held {
                let held = self.by_source.entry(key).or_default();
                *held = if comes { *held + bytes } else { held.saturating_sub(bytes) };
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

    /// Whether a source may put more into the queue: what it holds is within its share, and within a smaller one where it
    /// `waits`.
    pub fn has_room_for(&self, source: &Source, waits: bool) -> bool {
        let held = self.held_by(source);
        let (batches, kept) = {
            let meta = lock(&self.meta);
            (meta.batches, meta.bytes + meta.quarantine.bytes)
        };
        // Whatever was counted, in an empty queue nobody holds anything.
        if held == 0 || batches == 0 {
            return true;
        }
        let share = if waits { RESUMED_SHARE } else { SHARE };
        let capacity = self.capacity();
        let free = self.free(capacity, kept).saturating_sub(ON_ITS_WAY_BYTES.min(capacity / 4));
        held <= share.saturating_mul(free)
    }

    /// Whether a source holds so much that others go before it.
    pub(crate) fn is_bulk(&self, source: &Source) -> bool {
        let held = self.held_by(source);
        held >= BULK_BYTES || held > 0 && held > self.capacity() / 16
    }

    /// The first batch that is not bulk, where there is bulk, of `bytes_max` bytes at the most.
    pub(crate) fn next_quiet(&self, except: &BTreeSet<u64>, bytes_max: usize) -> Result<Found, QueueError> {
        loop {
            let slot = {
                let held = lock(&self.held);
                if held.bulk == 0 {
                    return Ok(Found::Nothing);
                }
                held.quiet.iter().find(|slot| !except.contains(slot)).copied()
            };
            let Some(slot) = slot else { return Ok(Found::Nothing) };
            let found = self.read(|db| {
                let frame = db.begin_read()?.open_table(BATCHES)?.get(slot)?;
                Ok(match frame.as_ref().map(|frame| frame.value()) {
                    None => Found::Nothing,
                    Some(frame) if frame.len() > bytes_max => Found::Larger,
                    Some(frame) => Found::Batch(slot, frame.to_vec()),
                })
            })?;
            if !matches!(found, Found::Nothing) {
                return Ok(found);
            }
            // An earlier release took it out.
            lock(&self.held).quiet.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests;
