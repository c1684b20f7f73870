//! Cursors, and what the workspace has of sources whose cursors were lost with an earlier database.

use super::{BATCHES, CURSORS, Cursors, Queue, QueueError, Resume, checked, lock, unchecked};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::collections::BTreeMap;
use vedette_wire::{Stored, reply::StoredSource};

const STORED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("stored");

/// Cursors that are told again at each start, in bytes: a bound on memory.
const TOLD_AGAIN_BYTES_MAX: usize = 4 << 20;

impl Queue {
    /// Every cursor of a collector, by source id.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn cursors(&self, collector: &str) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        self.read(|db| of_collector(db, CURSORS, collector))
    }

    /// What the workspace has of a collector's sources, where it was asked.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn stored(&self, collector: &str) -> Result<Vec<Stored>, QueueError> {
        let rows = self.read(|db| of_collector(db, STORED, collector))?;
        Ok(rows.iter().filter_map(|(_, bytes)| rmp_serde::from_slice(bytes).ok()).collect())
    }

    /// Whether the workspace is to be asked before sources that can be read again are.
    pub fn resume(&self) -> Resume {
        lock(&self.meta).resume
    }

    /// Note that sequences of the epoch, first and last, are gone from the workspace that had acknowledged them: it is asked
    /// what it has once it is given what is queued, and sources go on there. Of sequences that never were nothing is noted.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; nothing is noted then.
    pub fn read_again(&self, lost: (u64, u64)) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |_, meta| {
            if !(1 <= lost.0 && lost.0 <= lost.1 && lost.1 < meta.next_seq) {
                // It never was sent.
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

    /// Where sources are to be read again, begin another epoch: what is read again is not of the one that was lost from.
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

    /// Whether a batch is of the epoch that sealing is in.
    pub(crate) fn is_of_epoch(&self, slot: u64) -> bool {
        slot >= lock(&self.meta).epoch_slot
    }

    /// Whether batches of earlier epochs are left.
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

    /// Go on where the workspace says, or, with nothing, where the cursors say. Where sources are read again, one that the
    /// workspace has nothing of is read from where it was begun.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; it must then be asked again.
    pub fn resume_at(&self, sources: Vec<StoredSource>) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |tx, meta| {
            let (mut cursors, mut table) = (tx.open_table(CURSORS)?, tx.open_table(STORED)?);
            let reread = meta.resume == Resume::Reread;
            if reread && !meta.floors {
                // Of a queue of an older release it is not known what policy had passed over.
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
                // Read since, without asking; or, where it is read again, forgotten since, and nobody knows any more what of it
                // policy had passed over.
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

    /// Cursors for the first headers after a start: what was kept without a batch may never have been told.
    pub(super) fn all_cursors(db: &redb::Database) -> Result<Cursors, redb::Error> {
        let table = db.begin_read()?.open_table(CURSORS)?;
        let (mut out, mut bytes) = (Cursors::new(), 0);
        for entry in table.iter()? {
            let (key, cursor) = entry?;
            let cursor = unchecked(key.value(), cursor.value())?;
            bytes += key.value().len() + cursor.len();
            if bytes > TOLD_AGAIN_BYTES_MAX {
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

/// Make the table where it is missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(STORED)?;
    Ok(())
}

/// Policy had positions of a source passed over: they are never read again.
pub(super) fn pass_over(tx: &WriteTransaction, key: &str, floor: u64) -> Result<(), redb::Error> {
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

/// A cursor of a source is kept, or dropped.
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
