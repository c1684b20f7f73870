//! How batches leave the queue: delivered, purged, put into quarantine, or made into others.

use super::{
    BATCHES, Meta, QUARANTINE, Queue, QueueError,
    commit::{append, seal},
    lock,
    meta::note,
    shares::{self, Shares},
    space,
};
use redb::{Durability, WriteTransaction};
use std::sync::atomic::Ordering::Relaxed;
use vedette_wire::{
    BatchKey, Header, HostLabel, Ledger, codec,
    frame::{self, FrameHead},
};

/// Batches of our own making are never larger when decompressed.
pub const PLAIN_BYTES_MAX: usize = 256 << 20;

impl Queue {
    /// Delete a delivered batch.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent again, and answered `duplicate`.
    pub fn delete(&self, slot: u64) -> Result<(), QueueError> {
        // A deletion may be lost in a crash.
        self.write(Durability::None, |tx, meta| {
            let length = tx.open_table(BATCHES)?.remove(slot)?.map(|frame| frame.value().len());
            shares::take(tx, meta, slot)?;
            Ok(length.map(|length| left(meta, length)))
        })?;
        Ok(())
    }

    /// Delete a batch that the policy forbids.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; the batch is then sent again, and refused again.
    pub fn purge(&self, slot: u64) -> Result<(), QueueError> {
        self.write(Durability::None, |tx, meta| {
            let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
            if let Some(key) = key(&frame) {
                note(meta, key, |aside| &mut aside.purged);
            }
            // One that cannot be read is deleted all the same.
            for source in opened(&frame).map_or(Vec::new(), |(_, header, _)| header.sources) {
                super::positions::pass_over(tx, &format!("{}\0{}", source.collector, source.id), source.reached)?;
            }
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Delete every batch, since the policy forbids them.
    ///
    /// # Errors
    /// [`QueueError::Storage`]; those that are left are still there.
    pub fn purge_all(&self) -> Result<(), QueueError> {
        while let Some((slot, _)) = self.next_after(0)? {
            self.purge(slot)?;
        }
        // Not back after a crash.
        self.write(Durability::Immediate, |_, _| Ok(Some(())))?;
        Ok(())
    }

    /// Move a batch that will never be accepted into quarantine, where the oldest give way when they take more than a
    /// tenth of the limit.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantine(&self, slot: u64, code: &str, why: &str) -> Result<(), QueueError> {
        let mut kept = serde_json::json!({"code": code, "why": why}).to_string().into_bytes();
        kept.push(0);
        let most = self.limit() / 10;
        self.write(Durability::Immediate, |tx, meta| {
            let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
            if let Some(key) = key(&frame) {
                note(meta, key, |aside| &mut aside.quarantined);
            }
            kept.extend_from_slice(&frame);
            let mut table = tx.open_table(QUARANTINE)?;
            table.insert(slot, kept.as_slice())?;
            let aside = &mut meta.quarantine;
            aside.batches += 1;
            aside.bytes += space(kept.len());
            while aside.bytes > most && aside.batches > 1 {
                let Some((_, oldest)) = table.pop_first()? else { break };
                aside.batches -= 1;
                aside.bytes = aside.bytes.saturating_sub(space(oldest.value().len()));
                aside.dropped += 1;
            }
            Ok(Some(()))
        })?;
        Ok(())
    }

    /// Seal batches again that were sealed when this machine had another id: nothing of them is taken under it, and this agent
    /// was not told to make another key. How many.
    ///
    /// # Errors
    /// [`QueueError`]; what is not done is done when this is called again.
    pub fn seal_for(&self, host: &HostLabel) -> Result<u64, QueueError> {
        let (last, mut slot, mut done) = (lock(&self.meta).next_slot, 0, 0);
        while let Some((next, _)) = self.next_after(slot)?.filter(|(next, _)| *next < last) {
            slot = next;
            let Some((head, mut header, records)) = self.open_batch(slot)? else { break };
            if header.host != HostLabel::default() && header.host.machine != host.machine {
                (header.host, header.again) = (host.clone(), true);
                self.seal_again(slot, &head, header, &records)?;
                done += 1;
            }
        }
        Ok(done)
    }

    /// Seal batches among what was salvaged again that are of an agent that this one takes the place of: they lie in the order
    /// of their epochs, among this agent's own.
    pub(super) fn take_salvaged_over(&self) -> Result<(), QueueError> {
        if lock(&self.replaced).0.is_empty() {
            return Ok(());
        }
        let (below, mut slot) = (lock(&self.meta).salvaged_below, 0);
        while let Some((next, bytes)) = self.next_after(slot)?.filter(|(next, _)| *next < below) {
            slot = next;
            if frame::parse_head(&bytes).is_ok_and(|(head, _)| self.is_replaced(&head.key)) {
                self.take_slot_over(slot)?;
            }
        }
        Ok(())
    }

    /// [`Queue::take_over`] until there is nothing left; how many went into quarantine.
    pub(super) fn take_all_over(&self) -> Result<u64, QueueError> {
        let mut quarantined = 0;
        while let Some(aside) = self.take_over()? {
            quarantined += u64::from(aside);
        }
        Ok(quarantined)
    }

    /// Whether a batch is of an agent that this machine was before.
    pub(super) fn is_replaced(&self, key: &BatchKey) -> bool {
        let organization = lock(&self.meta).owner.map(|owner| owner.0);
        organization == Some(key.organization) && lock(&self.replaced).0.contains(&key.agent)
    }

    /// Seal the first batch again where it is of an agent that this one takes the place of, or put it into quarantine where it
    /// is of any other: the workspace would refuse it for ever. Whether it is there now; absent where the first one is this
    /// agent's own, since those of others are older.
    ///
    /// # Errors
    /// [`QueueError`].
    pub(super) fn take_over(&self) -> Result<Option<bool>, QueueError> {
        let Some(owner) = lock(&self.meta).owner else { return Ok(None) };
        let Some((slot, bytes)) = self.next_after(0)? else { return Ok(None) };
        let Ok((head, _)) = frame::parse_head(&bytes) else { return Ok(None) };
        if (head.key.organization, head.key.agent) == owner {
            return Ok(None);
        }
        if !self.is_replaced(&head.key) {
            self.quarantine(slot, "identity", "sealed for another enrollment")?;
            return Ok(Some(true));
        }
        Ok(self.take_slot_over(slot)?.then_some(false))
    }

    /// False where it cannot be read.
    fn take_slot_over(&self, slot: u64) -> Result<bool, QueueError> {
        let Some(owner) = lock(&self.meta).owner else { return Ok(false) };
        let Some((head, mut header, records)) = self.open_batch(slot)? else { return Ok(false) };
        header.agent = owner.1;
        header.again = true;
        header.split_into.clear();
        if header.host != HostLabel::default() {
            header.host = lock(&self.replaced).1.clone();
        }
        self.seal_again(slot, &head, header, &records)?;
        Ok(true)
    }

    /// Another batch has landed under the key of this one: begin another epoch where it is of this one, and seal it
    /// again. What was salvaged is dropped instead: its sources are read again from where the workspace's end.
    ///
    /// # Errors
    /// [`QueueError`]; nothing is changed then.
    pub(crate) fn reseal(&self, slot: u64) -> Result<(), QueueError> {
        if slot < lock(&self.meta).salvaged_below {
            self.write(Durability::Immediate, |tx, meta| {
                let Some(frame) = take(tx, meta, slot)? else { return Ok(None) };
                if let Some(key) = key(&frame) {
                    note(meta, key, |aside| &mut aside.lost);
                }
                Ok(Some(()))
            })?;
            return Ok(());
        }
        let Some((head, mut header, records)) = self.open_batch(slot)? else { return Ok(()) };
        header.again = true;
        let lowest_held = self.lowest_held(0, u64::MAX, head.key.epoch.0)?;
        self.write(Durability::Immediate, |_, meta| {
            if meta.epoch == head.key.epoch.0 {
                meta.begin_epoch(fastrand::u64(1..), lowest_held);
            }
            Ok(Some(()))
        })?;
        self.seal_again(slot, &head, header, &records)
    }

    /// Seal a batch anew, as the last one, in place of the one that is there.
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
                    note(meta, (head.key.epoch.0, head.key.seq), |aside| &mut aside.lost);
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

    /// Split a batch that is too large for the workspace, or for what is between: two halves under new sequences, and
    /// under its own an empty batch that names them. Returns the bytes of a half before compression; absent where it
    /// has one record, which is put into quarantine.
    ///
    /// # Errors
    /// [`QueueError`]; nothing is changed then.
    pub(crate) fn split(&self, slot: u64, why: &str) -> Result<Option<usize>, QueueError> {
        let Some((head, header, records)) = self.open_batch(slot)? else { return Ok(None) };
        let Some(halves) = codec::halve(&records).ok().flatten() else {
            self.quarantine(slot, "size", why)?;
            return Ok(None);
        };
        loop {
            let before = lock(&self.meta).clone();
            let mut frames = Vec::new();
            for ((bytes, count), ahead) in halves.iter().zip(0..) {
                let mut part = Header { cursors: Vec::new(), ..header.clone() };
                part.again = true;
                self.complete(&mut part, &before)?;
                part.seq += ahead;
                part.ledger = before.ledger.clone();
                part.sources.iter_mut().for_each(|source| source.skipped.clear());
                part.records = *count;
                frames.push(seal(&part, bytes, head.compression)?);
            }
            let names = vec![before.next_seq, before.next_seq + 1];
            let empty = seal(&Header { records: 0, split_into: names, ..header.clone() }, &[], head.compression)?;
            let done = self.write(Durability::Immediate, |tx, meta| {
                if (meta.epoch, meta.next_seq, &meta.set_aside) != (before.epoch, before.next_seq, &before.set_aside) {
                    return Ok(None);
                }
                // With the second half all of it leaves.
                let shares = shares::take(tx, meta, slot)?;
                if take(tx, meta, slot)?.is_some() {
                    tx.open_table(BATCHES)?.insert(slot, empty.as_slice())?;
                    meta.batches += 1;
                    meta.bytes += space(empty.len());
                    for (frame, shares) in frames.iter().zip([&Shares { held: Vec::new(), ..shares }, &shares]) {
                        append(tx, meta, frame, shares)?;
                    }
                }
                Ok(Some(()))
            })?;
            if done.is_some() {
                self.split.fetch_add(1, Relaxed);
                return Ok(halves.iter().map(|(bytes, _)| bytes.len()).max());
            }
        }
    }

    /// A batch with its header decoded and its records as bytes.
    fn open_batch(&self, slot: u64) -> Result<Option<(FrameHead, Header, Vec<u8>)>, QueueError> {
        let Some((found, bytes)) = self.next_after(slot.saturating_sub(1))? else { return Ok(None) };
        if found != slot {
            return Ok(None);
        }
        let opened = opened(&bytes);
        if opened.is_none() {
            self.found_damaged("a batch cannot be read back");
        }
        Ok(opened)
    }
}

/// A frame with its header decoded and its records as bytes; absent where it is damaged.
fn opened(bytes: &[u8]) -> Option<(FrameHead, Header, Vec<u8>)> {
    let (head, sealed) = frame::parse(bytes).ok()?;
    let plain = codec::decompress(sealed, head.compression, PLAIN_BYTES_MAX).ok()?;
    let (header, records) = codec::decode_header(&plain).ok()?;
    Some((head, header, records.to_vec()))
}

/// What a batch's records count in the ledger.
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

/// Take a batch out; absent where there is none.
pub(super) fn take(tx: &WriteTransaction, meta: &mut Meta, slot: u64) -> Result<Option<Vec<u8>>, redb::Error> {
    let mut table = tx.open_table(BATCHES)?;
    let frame = table.remove(slot)?.map(|frame| frame.value().to_vec());
    if let Some(frame) = &frame {
        left(meta, frame.len());
    }
    shares::take(tx, meta, slot)?;
    Ok(frame)
}

/// A frame of so many bytes is out.
fn left(meta: &mut Meta, length: usize) {
    meta.batches = meta.batches.saturating_sub(1);
    meta.bytes = meta.bytes.saturating_sub(space(length));
}
