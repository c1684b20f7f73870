//! The queue's own state: one value, read and written whole, so that it is always consistent.

use super::{CURSORS, FORMAT, META, Owner, checked, unchecked};
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};
use vedette_wire::{Ledger, Predecessor, SetAside, set_aside};

/// Counts of the quarantine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Number of batches.
    pub batches: u64,
    /// Space in the file in bytes, up to a tenth of the limit.
    pub bytes: u64,
    /// Number of batches deleted, for lack of space or by `vedette queue quarantine drop`.
    pub dropped: u64,
}

/// How sources that can be read again resume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// From their cursors, which are present.
    #[default]
    Cursors,
    /// The database is new, and there was no earlier one: ask the workspace, and wait for a short time only.
    First,
    /// An earlier database was lost: wait for the workspace's answer.
    Lost,
    /// The workspace lost acknowledged batches: wait until the queue is delivered, then ask for positions.
    Reread,
}

/// Stored in table `meta` under `state`, as named MessagePack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) epoch: u64,
    /// Sealing agent; absent before the first enrollment.
    pub(super) owner: Option<Owner>,
    pub(super) next_seq: u64,
    pub(super) next_slot: u64,
    /// First slot of this epoch.
    pub(super) epoch_slot: u64,
    /// Slots below this one are for salvaged batches.
    pub(super) salvaged_below: u64,
    /// Slot of the last salvaged batch.
    pub(super) last_salvaged: u64,
    /// Name of the last damaged file that was scanned.
    pub(super) scanned: Option<String>,
    pub(super) predecessor: Option<Predecessor>,
    pub(super) batches: u64,
    pub(super) bytes: u64,
    pub(super) quarantine: Quarantine,
    pub(super) set_aside: SetAside,
    pub(super) ledger: Ledger,
    pub(super) resume: Resume,
    /// The floors of all sources are recorded; false for a queue of an earlier release.
    #[serde(default, rename = "floors")]
    pub(super) has_all_floors: bool,
    /// Changes of shares in this transaction.
    #[serde(skip)]
    pub(super) changed_shares: Vec<UsageChange>,
}

/// Usage of a batch's sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) is_bulk: bool,
    /// Bytes by the key of the source, as in `shares`.
    pub(super) held: Vec<(u64, u64)>,
}

/// A batch that is added or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsageChange {
    pub(super) slot: u64,
    pub(super) is_added: bool,
    pub(super) shares: Usage,
}

impl Meta {
    /// State of a new database.
    pub(super) fn new(epoch: u64, resume: Resume) -> Self {
        // Leaves slots below for salvaged batches, which are older.
        let first = if resume == Resume::Lost { 1 << 32 } else { 1 };
        Self {
            epoch,
            owner: None,
            next_seq: 1,
            next_slot: first,
            epoch_slot: first,
            salvaged_below: first,
            last_salvaged: 0,
            scanned: None,
            predecessor: None,
            batches: 0,
            bytes: 0,
            quarantine: Quarantine::default(),
            set_aside: SetAside::default(),
            ledger: Ledger::default(),
            resume,
            has_all_floors: true,
            changed_shares: Vec::new(),
        }
    }

    /// Begins another epoch; sequences restart at 1.
    pub(super) fn begin_epoch(&mut self, epoch: u64, lowest_held: Option<u64>) {
        if self.next_seq > 1 {
            self.predecessor = Some(Predecessor {
                epoch: vedette_wire::Epoch(self.epoch),
                last_seq: self.next_seq - 1,
                lowest_held,
                set_aside: std::mem::take(&mut self.set_aside),
            });
        }
        self.epoch = epoch;
        self.next_seq = 1;
        self.epoch_slot = self.next_slot;
        self.ledger = Ledger::default();
    }

    /// The sequences of an epoch that are set aside; absent for epochs before the previous one.
    pub(super) fn set_aside_of(&mut self, epoch: u64) -> Option<&mut SetAside> {
        if epoch == self.epoch {
            return Some(&mut self.set_aside);
        }
        self.predecessor.as_mut().filter(|before| before.epoch.0 == epoch).map(|before| &mut before.set_aside)
    }

    pub(super) fn write(&self, tx: &WriteTransaction) -> Result<(), redb::Error> {
        let state = rmp_serde::to_vec_named(self).expect("numbers and maps serialize");
        tx.open_table(META)?.insert("state", checked("state", &state).as_slice())?;
        Ok(())
    }

    /// Reads the format of the database, and its state if the format is the present one.
    pub(super) fn read(db: &Database) -> Result<(u64, Option<Self>), redb::Error> {
        let table = db.begin_read()?.open_table(META)?;
        let format = number(&table, "format")?;
        if format != FORMAT {
            return Ok((format, None));
        }
        let stored = table.get("state")?;
        let stored = stored.ok_or_else(|| redb::Error::Corrupted("the table meta has no state".to_owned()))?;
        let state = rmp_serde::from_slice(unchecked("state", stored.value())?)
            .map_err(|err| redb::Error::Corrupted(format!("its state cannot be decoded: {err}")))?;
        Ok((format, Some(state)))
    }

    /// Format 1 had a key per number, cursors without checks, and sequences as slots.
    pub(super) fn migrate(tx: &WriteTransaction) -> Result<(), redb::Error> {
        let decoded = |err| redb::Error::Corrupted(format!("the queue of an older release cannot be decoded: {err}"));
        let mut table = tx.open_table(META)?;
        let next_seq = number(&table, "next_seq")?.max(1);
        let mut meta = Self::new(number(&table, "epoch")?, Resume::Cursors);
        meta.has_all_floors = false;
        meta.next_seq = next_seq;
        meta.next_slot = next_seq;
        meta.batches = number(&table, "batches")?;
        meta.bytes = number(&table, "bytes")?;
        meta.quarantine = Quarantine {
            batches: number(&table, "quarantine_batches")?,
            bytes: number(&table, "quarantine_bytes")?,
            dropped: number(&table, "quarantine_dropped")?,
        };
        if let Some(ledger) = table.get("ledger")? {
            meta.ledger = rmp_serde::from_slice(ledger.value()).map_err(decoded)?;
        }
        if let Some(set_aside) = table.get("set_aside")? {
            meta.set_aside = rmp_serde::from_slice(set_aside.value()).map_err(decoded)?;
        }
        table.retain(|key, _| key == "format")?;
        table.insert("format", FORMAT.to_le_bytes().as_slice())?;
        drop(table);
        let mut cursors = tx.open_table(CURSORS)?;
        let mut plain = Vec::new();
        for entry in cursors.iter()? {
            let (key, cursor) = entry?;
            plain.push((key.value().to_owned(), cursor.value().to_vec()));
        }
        for (key, cursor) in plain {
            cursors.insert(key.as_str(), checked(&key, &cursor).as_slice())?;
        }
        drop(cursors);
        meta.write(tx)
    }
}

/// Marks a sequence as set aside, if headers still report its epoch.
pub(super) fn set_aside(
    meta: &mut Meta,
    (epoch, seq): (u64, u64),
    list: impl FnOnce(&mut SetAside) -> &mut Vec<set_aside::SequenceRange>,
) {
    if let Some(set_aside) = meta.set_aside_of(epoch) {
        set_aside::add(list(set_aside), seq);
    }
}

fn number(table: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<u64, redb::Error> {
    let Some(value) = table.get(key)? else { return Ok(0) };
    let bytes = value.value().try_into();
    let bytes = bytes.map_err(|_| redb::Error::Corrupted(format!("meta `{key}` is not a number")))?;
    Ok(u64::from_le_bytes(bytes))
}
