//! Cursors, and what the workspace has of sources whose cursors were lost with an earlier database.

use super::{CURSORS, Cursors, Queue, QueueError, Resume, checked, lock, unchecked};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
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

    /// Go on where the workspace says, or, with nothing, where the cursors say.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; it must then be asked again.
    pub fn resume_at(&self, sources: Vec<StoredSource>) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |tx, meta| {
            let (mut cursors, mut table) = (tx.open_table(CURSORS)?, tx.open_table(STORED)?);
            for StoredSource { collector, id, cursor, stored, sealed: _ } in sources {
                let key = format!("{collector}\0{id}");
                if cursors.get(key.as_str())?.is_some() {
                    // Read since, without asking.
                    continue;
                }
                cursors.insert(key.as_str(), checked(&key, &cursor).as_slice())?;
                write(&mut table, &key, &Stored { id, ranges: stored, begun: false })?;
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
