//! Salvage: moves intact batches of a damaged database into a new one.
//!
//! Frames describe and verify themselves, so a scan for their magic finds every intact one. The scan stores their offsets by
//! epoch and sequence in a table of the new database. A frame may occur twice; and after a crash two frames may have one key,
//! of which the last sealed one counts. Then the frames are copied unchanged into the queue, in order and within its quota. The
//! workspace answers `duplicate` for a frame that was delivered before.
//!
//! After a restart the scan starts again, and copying continues. Memory does not depend on the size of the file.

use super::{BATCHES, Meta, Queue, QueueError, Resume, lock, space};
use redb::{Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};
use vedette_platform::read_exact_at;
use vedette_wire::{
    Epoch, LaneName, Predecessor, SetAside,
    frame::{self, HEAD_BYTES, MAGIC},
    set_aside,
};

/// Key: epoch and sequence. Value: offset and length of the frame, time of sealing. The types are those of other tables, since
/// redb is compiled once per type.
const SALVAGE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("salvage");

/// Block size of the scan, bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// Maximum size of a frame, bytes.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Maximum number of frames noted in one transaction, and of bytes copied.
const LOCATIONS_MAX: usize = 1000;
const COPIED_BYTES_MAX: u64 = 4 << 20;

/// Result of a salvage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Number of batches moved into the queue.
    pub batches: u64,
    /// Number of records in them.
    pub records: u64,
    /// Number of batches with an intact head and damaged content.
    pub damaged: u64,
    /// Number of records in those.
    pub damaged_records: u64,
    /// Number of batches of another enrollment, which are ignored.
    pub foreign: u64,
}

/// Why salvage stops.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The damaged file cannot be read.
    #[error("the damaged queue {path} cannot be read")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The new queue cannot be written, or is full for now.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A stop was requested.
    #[error("stopped")]
    Stopped,
}

/// New name for a damaged database; earlier ones may still be there.
pub(super) fn damaged_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.broken-{:016x}", fastrand::u64(..)))
}

/// Damaged databases that are not salvaged yet.
pub fn broken(dir: &Path, lane: LaneName) -> Vec<PathBuf> {
    let prefix = format!("{lane}.redb.broken-");
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))).collect();
    found.sort();
    found
}

/// Creates the table if it is missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), redb::Error> {
    tx.open_table(SALVAGE)?;
    Ok(())
}

/// A frame found by the scan.
#[derive(Debug, Clone, Copy)]
struct FrameLocation {
    key: (u64, u64),
    offset: u64,
    length: u64,
    sealed: i64,
}

impl FrameLocation {
    fn encode(&self) -> (String, [u8; 24]) {
        let mut value = [0; 24];
        for (at, number) in [self.offset, self.length, self.sealed.cast_unsigned()].into_iter().enumerate() {
            value[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        (name(self.key), value)
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, redb::Error> {
        let parts = || {
            let (epoch, seq) = key.split_once('/')?;
            let number = |at: usize| Some(u64::from_le_bytes(value.get(at * 8..at * 8 + 8)?.try_into().ok()?));
            Some(Self {
                key: (u64::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(seq, 16).ok()?),
                offset: number(0)?,
                length: number(1)?,
                sealed: number(2)?.cast_signed(),
            })
        };
        parts().ok_or_else(|| redb::Error::Corrupted("a location in a damaged queue cannot be decoded".to_owned()))
    }
}

/// Sorts by epoch and sequence.
fn name((epoch, seq): (u64, u64)) -> String {
    format!("{epoch:016x}/{seq:016x}")
}

impl Queue {
    /// Moves the intact batches of a damaged database into this queue, and deletes its file. Calls `wait` while the queue is
    /// full and between steps; false stops.
    ///
    /// # Errors
    /// [`SalvageError`]; the next call continues.
    pub fn salvage(&self, path: &Path, mut wait: impl FnMut(bool) -> bool) -> Result<Salvaged, SalvageError> {
        let failed = |source| SalvageError::Read { path: path.to_owned(), source };
        let mut salvaged = Salvaged::default();
        let whole = std::fs::symlink_metadata(path).map_err(failed)?;
        if whole.is_file() {
            let file = File::open(path).map_err(failed)?;
            let scanned = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if lock(&self.meta).scanned != scanned {
                self.scan(&file, whole.len(), &mut salvaged, &mut wait, failed)?;
                self.record_lost_sequences()?;
                self.write(Durability::Immediate, |_, meta| {
                    meta.scanned.clone_from(&scanned);
                    Ok(Some(()))
                })?;
            }
            self.copy_all(&file, &mut salvaged, &mut wait, failed)?;
            std::fs::remove_file(path).map_err(failed)?;
        } else {
            // A directory in place of the file belongs to somebody else.
            let moved_to = path.with_file_name(format!(
                "kept-{}",
                path.file_name().map_or_else(Default::default, |name| name.to_string_lossy())
            ));
            std::fs::rename(path, moved_to).map_err(failed)?;
        }
        Ok(salvaged)
    }

    /// Notes every intact frame.
    fn scan(
        &self,
        file: &File,
        length: u64,
        salvaged: &mut Salvaged,
        wait: &mut impl FnMut(bool) -> bool,
        failed: impl Fn(io::Error) -> SalvageError,
    ) -> Result<(), SalvageError> {
        let owner = lock(&self.meta).owner;
        let mut locations = Vec::new();
        let mut scan = Scan { file, length, offset: 0, block: Vec::new(), base: 0 };
        while let Some(found) = scan.next().map_err(&failed)? {
            match found {
                Hit::Damaged(records) => {
                    salvaged.damaged += 1;
                    salvaged.damaged_records += u64::from(records);
                }
                Hit::Whole(head, ..)
                    if head.key.lane != self.lane
                        || owner.is_some_and(|owner| owner != (head.key.organization, head.key.agent))
                            && !self.is_replaced(&head.key) =>
                {
                    salvaged.foreign += 1;
                }
                Hit::Whole(head, offset, length) => {
                    let key = (head.key.epoch.0, head.key.seq);
                    locations.push(FrameLocation { key, offset, length, sealed: head.sealed });
                }
            }
            if locations.len() >= LOCATIONS_MAX {
                self.store_locations(&mut locations)?;
                if !wait(false) {
                    return Err(SalvageError::Stopped);
                }
            }
        }
        Ok(self.store_locations(&mut locations)?)
    }

    fn store_locations(&self, locations: &mut Vec<FrameLocation>) -> Result<(), QueueError> {
        self.write(Durability::Immediate, |tx, _| {
            let mut table = tx.open_table(SALVAGE)?;
            for location in locations.iter() {
                let (key, value) = location.encode();
                let other =
                    table.get(key.as_str())?.map(|other| FrameLocation::decode(&key, other.value())).transpose()?;
                if other.is_none_or(|other| other.sealed < location.sealed) {
                    table.insert(key.as_str(), value.as_slice())?;
                }
            }
            Ok(Some(()))
        })?;
        locations.clear();
        Ok(())
    }

    /// Records which sequences of the last epoch were not found, for later headers.
    fn record_lost_sequences(&self) -> Result<(), QueueError> {
        let newest = self.read(|db| {
            let table = db.begin_read()?.open_table(SALVAGE)?;
            let mut newest: Option<(i64, u64)> = None;
            for entry in table.iter()? {
                let (key, location) = entry?;
                let location = FrameLocation::decode(key.value(), location.value())?;
                newest = newest.max(Some((location.sealed, location.key.0)));
            }
            Ok(newest.map(|(_, epoch)| epoch))
        })?;
        let Some(epoch) = newest else { return Ok(()) };
        let (lost, last_seq) = self.read(|db| {
            let table = db.begin_read()?.open_table(SALVAGE)?;
            let (mut lost, mut next) = (Vec::new(), 1);
            for entry in table.range(name((epoch, 0)).as_str()..=name((epoch, u64::MAX)).as_str())? {
                let (key, location) = entry?;
                let seq = FrameLocation::decode(key.value(), location.value())?.key.1;
                if seq > next {
                    lost.push((next, seq - 1));
                    shorten(&mut lost);
                }
                next = seq + 1;
            }
            Ok((lost, next - 1))
        })?;
        self.write(Durability::Immediate, |_, meta| {
            let known = meta.predecessor.as_ref().is_some_and(|before| before.epoch.0 == epoch);
            if epoch == meta.epoch || known || meta.resume != Resume::Lost {
                return Ok(None);
            }
            let set_aside = SetAside { lost: lost.clone(), ..SetAside::default() };
            meta.predecessor = Some(Predecessor { epoch: Epoch(epoch), last_seq, lowest_held: None, set_aside });
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Copies the noted frames into the queue, in the order of epoch and sequence.
    fn copy_all(
        &self,
        file: &File,
        salvaged: &mut Salvaged,
        wait: &mut impl FnMut(bool) -> bool,
        failed: impl Fn(io::Error) -> SalvageError,
    ) -> Result<(), SalvageError> {
        // Copies a few frames at a time, so that a small queue accepts some before it is full.
        let most = COPIED_BYTES_MAX.min(self.limit() / 20);
        loop {
            let next: Vec<FrameLocation> = self.read(|db| {
                let table = db.begin_read()?.open_table(SALVAGE)?;
                if table.is_empty()? {
                    return Ok(Vec::new());
                }
                let (mut out, mut bytes) = (Vec::new(), 0);
                for entry in table.iter()? {
                    let (key, location) = entry?;
                    let location = FrameLocation::decode(key.value(), location.value())?;
                    bytes += space(location.length as usize);
                    if !out.is_empty() && bytes > most {
                        break;
                    }
                    out.push(location);
                }
                Ok(out)
            })?;
            if next.is_empty() {
                return Ok(());
            }
            let mut frames = Vec::new();
            for FrameLocation { key, offset, length, .. } in next {
                let mut bytes = vec![0; length as usize];
                read_exact_at(file, &mut bytes, offset).map_err(&failed)?;
                // The frame may have been damaged since it was found.
                let whole = frame::parse(&bytes).ok().map(|(head, _)| head.records);
                frames.push((key, whole, bytes));
            }
            let added = frames.iter().map(|(_, _, bytes)| space(bytes.len())).sum();
            loop {
                let meta = lock(&self.meta).clone();
                match self.check_room(added, meta.bytes + meta.quarantine.bytes) {
                    Ok(()) => break,
                    // The limit was lowered since: a frame above it is moved too.
                    Err(QueueError::TooLarge { .. }) if meta.batches == 0 => break,
                    Err(_) if wait(true) => {}
                    Err(_) => return Err(SalvageError::Stopped),
                }
            }
            self.write(Durability::Immediate, |tx, meta| copy(tx, meta, &frames))?;
            self.adopt_salvaged()?;
            for (_, records, _) in &frames {
                match records {
                    Some(records) => {
                        salvaged.batches += 1;
                        salvaged.records += u64::from(*records);
                    }
                    None => salvaged.damaged += 1,
                }
            }
            if !wait(false) {
                return Err(SalvageError::Stopped);
            }
        }
    }

    /// Whether salvaged batches remain unanswered.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn holds_salvaged(&self) -> Result<bool, QueueError> {
        let below = lock(&self.meta).salvaged_below;
        self.read(|db| {
            let table = db.begin_read()?.open_table(BATCHES)?;
            Ok(table.range(..below)?.next().transpose()?.is_some())
        })
    }
}

type Copied = ((u64, u64), Option<u32>, Vec<u8>);

fn copy(tx: &WriteTransaction, meta: &mut Meta, frames: &[Copied]) -> Result<Option<()>, redb::Error> {
    let mut noted = tx.open_table(SALVAGE)?;
    let mut batches = tx.open_table(BATCHES)?;
    for (key, whole, bytes) in frames {
        noted.remove(name(*key).as_str())?;
        if whole.is_some() {
            meta.last_salvaged += 1;
            batches.insert(meta.last_salvaged, bytes.as_slice())?;
            meta.batches += 1;
            meta.bytes += space(bytes.len());
        }
    }
    Ok(Some(()))
}

/// Merges the two nearest ranges when there are more than a header may name.
fn shorten(ranges: &mut Vec<set_aside::SequenceRange>) {
    if ranges.len() > set_aside::RANGES_MAX {
        let gap = |at: &usize| ranges[*at + 1].0 - ranges[*at].1;
        if let Some(at) = (0..ranges.len() - 1).min_by_key(gap) {
            ranges[at].1 = ranges[at + 1].1;
            ranges.remove(at + 1);
        }
    }
}

enum Hit {
    Whole(frame::FrameHead, u64, u64),
    Damaged(u32),
}

/// A scan for frames from an offset on.
struct Scan<'a> {
    file: &'a File,
    length: u64,
    offset: u64,
    /// A block of the file, with its offset.
    block: Vec<u8>,
    base: u64,
}

impl Scan<'_> {
    fn next(&mut self) -> io::Result<Option<Hit>> {
        while self.offset < self.length {
            let end = self.base + self.block.len() as u64;
            // A magic may cross the end of the block, except at the end of the file.
            let enough = self.offset + MAGIC.len() as u64 <= end || end == self.length;
            if self.offset < self.base || !enough {
                let length = (self.length - self.offset).min(BLOCK_BYTES as u64) as usize;
                self.block.resize(length, 0);
                read_exact_at(self.file, &mut self.block, self.offset)?;
                self.base = self.offset;
            }
            let from = (self.offset - self.base) as usize;
            let Some(at) = memchr::memmem::find(&self.block[from..], MAGIC) else {
                let end = self.base + self.block.len() as u64;
                self.offset = if end == self.length { end } else { end - (MAGIC.len() as u64 - 1) };
                continue;
            };
            let offset = self.offset + at as u64;
            self.offset = offset + 1;
            if let Some(hit) = self.frame_at(offset)? {
                return Ok(Some(hit));
            }
        }
        Ok(None)
    }

    /// The frame at this offset; the scan continues after an intact one.
    fn frame_at(&mut self, offset: u64) -> io::Result<Option<Hit>> {
        let mut bytes = vec![0; HEAD_BYTES.min((self.length - offset) as usize)];
        read_exact_at(self.file, &mut bytes, offset)?;
        let Ok((head, length)) = frame::parse_head(&bytes) else { return Ok(None) };
        let whole = HEAD_BYTES as u64 + length as u64;
        if length > FRAME_BYTES_MAX || offset + whole > self.length {
            return Ok(Some(Hit::Damaged(head.records)));
        }
        bytes.resize(HEAD_BYTES + length, 0);
        read_exact_at(self.file, &mut bytes[HEAD_BYTES..], offset + HEAD_BYTES as u64)?;
        Ok(Some(match frame::parse(&bytes) {
            Ok((head, _)) => {
                self.offset = offset + whole;
                Hit::Whole(head, offset, whole)
            }
            Err(_) => Hit::Damaged(head.records),
        }))
    }
}
