//! Batches leaving the queue: delivered, purged, put into quarantine, resealed or split.

use super::{
    BATCHES, Meta, QUARANTINE, Queue, QueueError,
    commit::{append, seal},
    lock,
    meta::Usage,
    meta::set_aside,
    shares, space,
};
use redb::{Durability, WriteTransaction};
use std::sync::atomic::Ordering::Relaxed;
use vedette_wire::{
    BatchKey, Header, HostLabel, Ledger, ProblemCode, codec,
    frame::{self, FrameHead},
};

/// Maximum decompressed size of the agent's own batches.
pub const PLAIN_BYTES_MAX: usize = 256 << 20;

impl Queue {
    /// Deletes a delivered batch.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent again and answered as `duplicate`.
    pub fn delete(&self, slot: u64) -> Result<(), QueueError> {
        // A crash may undo the deletion.
        self.write(Durability::None, |tx, meta| {
            let length = tx.open_table(BATCHES)?.remove(slot)?.map(|frame| frame.value().len());
            shares::take(tx, meta, slot)?;
            Ok(length.map(|length| left(meta, length)))
        })?;
        Ok(())
    }

    /// Deletes a batch that the policy forbids.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent and refused again.
    pub fn purge(&self, slot: u64) -> Result<(), QueueError> {
        self.write(Durability::None, |tx, meta| {
            let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
            if let Some(key) = key(&frame) {
                set_aside(meta, key, |set_aside| &mut set_aside.purged);
            }
            // A batch that cannot be read is deleted too.
            for source in opened(&frame).map_or(Vec::new(), |(_, header, _)| header.sources) {
                super::positions::raise_floor(tx, &format!("{}\0{}", source.collector, source.id), source.reached)?;
            }
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Deletes all batches, since the policy forbids them.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the remaining batches stay.
    pub fn purge_all(&self) -> Result<(), QueueError> {
        while let Some((slot, _)) = self.next_after(0)? {
            self.purge(slot)?;
        }
        // A crash must not bring them back.
        self.write(Durability::Immediate, |_, _| Ok(Some(())))?;
        Ok(())
    }

    /// Moves a batch that will never be accepted into quarantine. Quarantine takes up to a tenth of the limit; the oldest
    /// batches are deleted beyond that.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantine(&self, slot: u64, code: &str, why: &str) -> Result<(), QueueError> {
        let mut entry = serde_json::json!({"code": code, "why": why}).to_string().into_bytes();
        entry.push(0);
        let most = self.limit() / 10;
        self.write(Durability::Immediate, |tx, meta| {
            let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
            if let Some(key) = key(&frame) {
                set_aside(meta, key, |set_aside| &mut set_aside.quarantined);
            }
            entry.extend_from_slice(&frame);
            let mut table = tx.open_table(QUARANTINE)?;
            table.insert(slot, entry.as_slice())?;
            let quarantine = &mut meta.quarantine;
            quarantine.batches += 1;
            quarantine.bytes += space(entry.len());
            while quarantine.bytes > most && quarantine.batches > 1 {
                let Some((_, oldest)) = table.pop_first()? else { break };
                quarantine.batches -= 1;
                quarantine.bytes = quarantine.bytes.saturating_sub(space(oldest.value().len()));
                quarantine.dropped += 1;
            }
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Reseals batches that were sealed under another machine id, which the workspace refuses, though this agent was not told
    /// to re-key. Returns their number.
    ///
    /// # Errors
    /// [`QueueError`]; a second call does the rest.
    pub fn seal_for(&self, host: &HostLabel) -> Result<u64, QueueError> {
        let (last, mut slot, mut done) = (lock(&self.meta).next_slot, 0, 0);
        while let Some((next, _)) = self.next_after(slot)?.filter(|(next, _)| *next < last) {
            slot = next;
            let Some((head, mut header, records)) = self.open_batch(slot)? else { break };
            if header.host != HostLabel::default() && header.host.machine != host.machine {
                (header.host, header.resealed) = (host.clone(), true);
                self.seal_again(slot, &head, header, &records)?;
                done += 1;
            }
        }
        Ok(done)
    }

    /// Reseals salvaged batches of an agent that this one replaces. They lie in the order of their epochs, among this agent's
    /// own.
    pub(super) fn adopt_salvaged(&self) -> Result<(), QueueError> {
        if lock(&self.replaced).0.is_empty() {
            return Ok(());
        }
        let (below, mut slot) = (lock(&self.meta).salvaged_below, 0);
        while let Some((next, bytes)) = self.next_after(slot)?.filter(|(next, _)| *next < below) {
            slot = next;
            if frame::parse_head(&bytes).is_ok_and(|(head, _)| self.is_replaced(&head.key)) {
                self.adopt(slot)?;
            }
        }
        Ok(())
    }

    /// Repeats [`Queue::adopt_first`] to the end; returns how many batches went into quarantine.
    pub(super) fn adopt_all(&self) -> Result<u64, QueueError> {
        let mut quarantined = 0;
        while let Some(set_aside) = self.adopt_first()? {
            quarantined += u64::from(set_aside);
        }
        Ok(quarantined)
    }

    /// Whether a batch is of an agent that this one replaces.
    pub(super) fn is_replaced(&self, key: &BatchKey) -> bool {
        let organization = lock(&self.meta).owner.map(|owner| owner.0);
        organization == Some(key.organization) && lock(&self.replaced).0.contains(&key.agent)
    }

    /// Reseals the first batch if it is of an agent that this one replaces; puts it into quarantine if it is of any other,
    /// since the workspace would always refuse it. Returns whether it went into quarantine; absent if the first batch is this
    /// agent's own or unreadable, as foreign batches are older.
    ///
    /// # Errors
    /// [`QueueError`].
    pub(super) fn adopt_first(&self) -> Result<Option<bool>, QueueError> {
        let Some(owner) = lock(&self.meta).owner else { return Ok(None) };
        let Some((slot, bytes)) = self.next_after(0)? else { return Ok(None) };
        let Ok((head, _)) = frame::parse_head(&bytes) else { return Ok(None) };
        if (head.key.organization, head.key.agent) == owner {
            return Ok(None);
        }
        if !self.is_replaced(&head.key) {
            self.quarantine(slot, &ProblemCode::Identity.to_string(), "sealed for another enrollment")?;
            return Ok(Some(true));
        }
        Ok(self.adopt(slot)?.then_some(false))
    }

    /// False if the batch cannot be read.
    fn adopt(&self, slot: u64) -> Result<bool, QueueError> {
        let Some(owner) = lock(&self.meta).owner else { return Ok(false) };
        let Some((head, mut header, records)) = self.open_batch(slot)? else { return Ok(false) };
        header.agent = owner.1;
        header.resealed = true;
        header.split_into.clear();
        if header.host != HostLabel::default() {
            header.host = lock(&self.replaced).1.clone();
        }
        self.seal_again(slot, &head, header, &records)?;
        Ok(true)
    }

    /// Reseals a batch whose key another batch has taken; begins another epoch if it is of the present one. A salvaged batch is
    /// dropped instead, since its sources are read again from the workspace's positions.
    ///
    /// # Errors
    /// [`QueueError`]; nothing is changed then.
    pub(crate) fn reseal(&self, slot: u64) -> Result<(), QueueError> {
        if slot < lock(&self.meta).salvaged_below {
            self.write(Durability::Immediate, |tx, meta| {
                let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
                if let Some(key) = key(&frame) {
                    set_aside(meta, key, |set_aside| &mut set_aside.lost);
                }
                Ok(Some(()))
            })?;
            return Ok(());
        }
        let Some((head, mut header, records)) = self.open_batch(slot)? else { return Ok(()) };
        header.resealed = true;
        let lowest_held = self.lowest_held(0, u64::MAX, head.key.epoch.0)?;
        self.write(Durability::Immediate, |_, meta| {
            if meta.epoch == head.key.epoch.0 {
                meta.begin_epoch(fastrand::u64(1..), lowest_held);
            }
            Ok(Some(()))
        })?;
        self.seal_again(slot, &head, header, &records)
    }

    /// Reseals a batch as the last one, and removes the old one.
    fn seal_again(&self, slot: u64, head: &FrameHead, mut header: Header, records: &[u8]) -> Result<(), QueueError> {
        loop {
            let before = lock(&self.meta).clone();
            let counted = counted(&header, records);
            self.complete(&mut header, &before)?;
            header.ledger = before.ledger.clone();
            header.ledger.add(&counted);
            let frame = seal(&header, records, head.compression)?;
            let done = self.write(Durability::Immediate, |tx, meta| {
                if (meta.epoch, meta.next_seq, &meta.set_aside) != (before.epoch, before.next_seq, &before.set_aside) {
                    return Ok(None);
                }
                let shares = shares::take(tx, meta, slot)?;
                if take(tx, meta, slot)?.is_some() {
                    set_aside(meta, (head.key.epoch.0, head.key.seq), |set_aside| &mut set_aside.lost);
                    append(tx, meta, &frame, &shares)?;
                    meta.ledger.add(&counted);
                }
                Ok(Some(()))
            })?;
            if done.is_some() {
                self.resealed.fetch_add(1, Relaxed);
                return Ok(());
            }
        }
    }

    /// Splits a batch that is too large for the workspace or a proxy: two halves under new sequences, and an empty batch that
    /// names them under the old one. Returns the size of a half, decoded. Absent for a single record, which goes into
    /// quarantine.
    ///
    /// # Errors
    /// [`QueueError`]; nothing is changed then.
    pub(crate) fn split(&self, slot: u64, why: &str) -> Result<Option<usize>, QueueError> {
        let Some((head, header, records)) = self.open_batch(slot)? else { return Ok(None) };
        let Some(halves) = codec::halve(&records).ok().flatten() else {
            self.quarantine(slot, &ProblemCode::Size.to_string(), why)?;
            return Ok(None);
        };
        loop {
            let before = lock(&self.meta).clone();
            let mut frames = Vec::new();
            for (codec::Encoded { bytes, count, .. }, ahead) in halves.iter().zip(0..) {
                let mut part = Header { cursors: Vec::new(), ..header.clone() };
                part.resealed = true;
                self.complete(&mut part, &before)?;
                part.seq += ahead;
                part.ledger = before.ledger.clone();
                part.sources.iter_mut().for_each(|source| source.dropped.clear());
                part.records = *count;
                frames.push(seal(&part, bytes, head.compression)?);
            }
            let names = vec![before.next_seq, before.next_seq + 1];
            let empty = seal(&Header { records: 0, split_into: names, ..header.clone() }, &[], head.compression)?;
            let done = self.write(Durability::Immediate, |tx, meta| {
                if (meta.epoch, meta.next_seq, &meta.set_aside) != (before.epoch, before.next_seq, &before.set_aside) {
                    return Ok(None);
                }
                // Both halves together hold the same shares.
                let shares = shares::take(tx, meta, slot)?;
                if take(tx, meta, slot)?.is_some() {
                    tx.open_table(BATCHES)?.insert(slot, empty.as_slice())?;
                    meta.batches += 1;
                    meta.bytes += space(empty.len());
                    for (frame, shares) in frames.iter().zip([&Usage { held: Vec::new(), ..shares }, &shares]) {
                        append(tx, meta, frame, shares)?;
                    }
                }
                Ok(Some(()))
            })?;
            if done.is_some() {
                self.split.fetch_add(1, Relaxed);
                return Ok(halves.iter().map(|half| half.plain).max());
            }
        }
    }

    /// A batch with decoded header and encoded records.
    fn open_batch(&self, slot: u64) -> Result<Option<(FrameHead, Header, Vec<u8>)>, QueueError> {
        let Some((found, bytes)) = self.next_after(slot.saturating_sub(1))? else { return Ok(None) };
        if found != slot {
            return Ok(None);
        }
        let opened = opened(&bytes);
        if opened.is_none() {
            self.report_damage("a batch cannot be read back");
        }
        Ok(opened)
    }
}

/// A frame with decoded header and encoded records; absent if damaged.
fn opened(bytes: &[u8]) -> Option<(FrameHead, Header, Vec<u8>)> {
    let (head, sealed) = frame::parse(bytes).ok()?;
    let plain = codec::decompress(sealed, head.compression, PLAIN_BYTES_MAX).ok()?;
    let (header, records) = codec::decode_header(&plain).ok()?;
    Some((head, header, records.to_vec()))
}

/// The ledger counts of a batch's records.
fn counted(header: &Header, records: &[u8]) -> Ledger {
    let mut ledger = Ledger::default();
    for item in codec::outline(records).unwrap_or_default() {
        if let Some(source) = header.sources.get(item.source as usize) {
            ledger.emit(&source.collector, u64::from(item.count));
        }
    }
    ledger
}

pub(super) fn key(frame: &[u8]) -> Option<(u64, u64)> {
    frame::parse_head(frame).ok().map(|(head, _)| (head.key.epoch.0, head.key.seq))
}

/// Takes a batch out; absent if there is none.
pub(super) fn take(tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<Option<Vec<u8>>, redb::Error> {
    let mut table = tx.open_table(BATCHES)?;
    let frame = table.remove(slot)?.map(|frame| frame.value().to_vec());
    if let Some(frame) = &frame {
        left(meta, frame.len());
    }
    shares::take(tx, meta, slot)?;
    Ok(frame)
}

/// Subtracts a frame that was taken out.
fn left(meta: &mut Meta, length: usize) {
    meta.batches = meta.batches.saturating_sub(1);
    meta.bytes = meta.bytes.saturating_sub(space(length));
}
