//! Cursors, and the workspace's positions for sources whose cursors were lost with an earlier database.

use super::{BATCHES, CURSORS, Cursors, Queue, QueueError, Resume, checked, lock, unchecked};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::collections::BTreeMap;
use vedette_wire::{Stored, reply::StoredSource};

const STORED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("stored");

/// Maximum size of the cursors that are sent again at each start; limits memory.
const RESENT_BYTES_MAX: usize = 4 << 20;

impl Queue {
    /// All cursors of a collector, by source id.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn cursors(&self, collector: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        self.read(|db| of_collector(db, CURSORS, collector))
    }

    /// The workspace's positions for a collector's sources, if it was asked.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn stored(&self, collector: &str) -> Result<Vec<Stored>, QueueError> {
        let rows = self.read(|db| of_collector(db, STORED, collector))?;
        Ok(rows.iter().filter_map(|(_, bytes)| rmp_serde::from_slice(bytes).ok()).collect())
    }

    /// Whether to ask the workspace before sources are read.
    pub fn resume(&self) -> Resume {
        lock(&self.meta).resume
    }

    /// Records that the workspace lost acknowledged sequences of this epoch, from first to last. After the queue is delivered,
    /// the workspace is asked for positions, and sources continue from there. Ignores sequences that never existed.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; nothing is recorded then.
    pub fn record_lost(&self, lost: (u64, u64)) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |_, meta| {
            if !(1 <= lost.0 && lost.0 <= lost.1 && lost.1 < meta.next_seq) {
                // The sequence was never sent.
                return Ok(None);
            }
            let ranges = &mut meta.set_aside.read_again;
            let (first, last) = ranges.first().map_or(lost, |was| (was.0.min(lost.0), was.1.max(lost.1)));
            *ranges = vec![(first, last)];
            meta.resume = Resume::Reread;
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Begins another epoch before sources are read again: their records must not belong to the epoch with losses.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn begin_reread(&self, random: u64) -> Result<(), QueueError> {
        let lowest_held = self.lowest_held(0, u64::MAX, self.epoch().0)?;
        self.write(Durability::Immediate, |_, meta| {
            if meta.resume == Resume::Reread && meta.next_seq > 1 {
                meta.begin_epoch(random, lowest_held);
            }
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Whether a batch is of the present epoch.
    pub fn is_of_epoch(&self, slot: u64) -> bool {
        slot >= lock(&self.meta).epoch_slot
    }

    /// Whether batches of earlier epochs remain.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn holds_earlier(&self) -> Result<bool, QueueError> {
        let below = lock(&self.meta).epoch_slot;
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            Ok(table.range(..below)?.next().transpose()?.is_some())
        })
    }

    /// Takes over the workspace's positions; without any, sources continue from their cursors. When sources are read again, a
    /// source without positions is read from its start.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the workspace must then be asked again.
    pub fn resume_at(&self, sources: Vec<StoredSource>) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |tx, meta| {
            let (mut cursors, mut table) = (tx.open_table(CURSORS)?, tx.open_table(STORED)?);
            let reread = meta.resume == Resume::Reread;
            if reread && !meta.has_all_floors {
                // A queue of an older release does not record what policy excluded.
                meta.resume = Resume::Cursors;
                return Ok(Some(()));
            }
            let mut floors = BTreeMap::new();
            if reread {
                for entry in table.iter()? {
                    let (key, bytes) = entry?;
                    let known: Option<Stored> = rmp_serde::from_slice(unchecked(key.value(), bytes.value())?).ok();
                    floors.extend(known.map(|known| (key.value().to_owned(), known.floor)));
                }
                for entry in cursors.iter()? {
                    let key = entry?.0.value().to_owned();
                    let id = key.split_once('\0').map_or("", |(_, id)| id).to_owned();
                    let floor = floors.get(&key).copied().unwrap_or(0);
                    let nothing = Stored { id, ranges: Vec::new(), begun: false, floor };
                    write(&mut table, &key, &nothing.above_floor())?;
                }
            }
            for StoredSource { collector, id, cursor, stored, sealed: _ } in sources {
                let key = format!("{collector}\0{id}");
                let is_known = cursors.get(key.as_str())?.is_some();
                // The source was read since without asking; or it was forgotten since, and its exclusions by policy are
                // unknown.
                if is_known != reread {
                    continue;
                }
                if !is_known {
                    cursors.insert(key.as_str(), checked(&key, &cursor).as_slice())?;
                }
                let floor = floors.get(&key).copied().unwrap_or(0);
                let stored = Stored { id, ranges: stored, begun: false, floor };
                write(&mut table, &key, &if reread { stored.above_floor() } else { stored })?;
            }
            meta.resume = Resume::Cursors;
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Cursors for the first headers after a start, since a cursor stored without a batch may never have been sent.
    pub(super) fn all_cursors(db: &redb::Database) -> Result<Cursors, redb::Error> {
        let table = db.begin_read()?.open_table(CURSORS)?;
        let (mut out, mut bytes) = (Cursors::new(), 0);
        for entry in table.iter()? {
            let (key, cursor) = entry?;
            let cursor = unchecked(key.value(), cursor.value())?;
            bytes += key.value().len() + cursor.len();
            if bytes > RESENT_BYTES_MAX {
                break;
            }
            if let Some((collector, id)) = key.value().split_once('\0') {
                out.insert((collector.to_owned(), id.to_owned()), Some(cursor.to_vec()));
            }
        }
        Ok(out)
    }
}

fn of_collector(
    db: &redb::Database,
    table: TableDefinition<'static, &'static str, &'static [u8]>,
    collector: &str,
) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let (from, to) = (format!("{collector}\0"), format!("{collector}\u{1}"));
    let table = db.begin_read()?.open_table(table)?;
    let mut out = Vec::new();
    for entry in table.range(from.as_str()..to.as_str())? {
        let (key, value) = entry?;
        let id = key.value().split_once('\0').map_or("", |(_, id)| id).to_owned();
        out.push((id, unchecked(key.value(), value.value())?.to_vec()));
    }
    Ok(out)
}

/// Creates the table if it is missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(STORED)?;
    Ok(())
}

/// Records that policy excluded positions of a source; they are never read again.
pub(super) fn raise_floor(tx: &WriteTransaction, key: &str, floor: u64) -> Result<(), redb::Error> {
    let mut table = tx.open_table(STORED)?;
    let bytes = table.get(key)?.map(|bytes| bytes.value().to_vec());
    let known: Option<Stored> = match &bytes {
        Some(bytes) => rmp_serde::from_slice(unchecked(key, bytes)?).ok(),
        None => None,
    };
    let id = key.split_once('\0').map_or("", |(_, id)| id).to_owned();
    let mut stored = known.unwrap_or(Stored { id, ranges: Vec::new(), begun: true, floor });
    stored.floor = stored.floor.max(floor);
    write(&mut table, key, &stored)
}

/// Records that a source's cursor was stored or deleted.
pub(super) fn begun(tx: &WriteTransaction, key: &str, gone: bool) -> Result<(), redb::Error> {
    let mut table = tx.open_table(STORED)?;
    if gone {
        table.remove(key)?;
        return Ok(());
    }
    let Some(bytes) = table.get(key)?.map(|bytes| bytes.value().to_vec()) else { return Ok(()) };
    let decoded = rmp_serde::from_slice::<Stored>(unchecked(key, &bytes)?);
    match decoded {
        Ok(stored) if !stored.begun => write(&mut table, key, &Stored { begun: true, ..stored }),
        _ => Ok(()),
    }
}

fn write(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &str,
    stored: &Stored,
) -> Result<(), redb::Error> {
    let bytes = rmp_serde::to_vec_named(stored).expect("numbers serialize");
    table.insert(key, checked(key, &bytes).as_slice())?;
    Ok(())
}
