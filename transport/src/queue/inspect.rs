//! Looking into a queue that no agent is using: what it holds, whether it is whole, and what to do with quarantine.

use super::{BATCHES, Meta, QUARANTINE, Queue, QueueError, leave::key, lock, space};
use redb::{Durability, ReadableDatabase};
use vedette_wire::{
    Lane,
    frame::{self, FrameHead},
    set_aside::Range,
};

/// What a walk over all batches found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Batches that are whole.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Slots of batches that are damaged.
    pub damaged: Vec<u64>,
    /// What does not agree with what the queue says of itself.
    pub disagreements: Vec<String>,
}

/// A batch in quarantine.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its slot.
    pub slot: u64,
    /// Why it was refused: `code` and `why`, as JSON.
    pub reason: String,
    /// What its frame says; absent where that is damaged.
    pub head: Option<FrameHead>,
    /// Its frame.
    pub frame: Vec<u8>,
}

impl Queue {
    /// Read every batch and compare what is there with what the queue says of itself.
    ///
    /// # Errors
    /// [`QueueError::Storage`] and [`QueueError::Damaged`].
    pub fn verify(&self) -> Result<Verified, QueueError> {
        let mut verified = Verified::default();
        let (mut slot, mut bytes) = (0, 0);
        while let Some((next, found)) = self.next_after(slot)? {
            slot = next;
            bytes += space(found.len());
            match frame::parse(&found) {
                Ok((head, _)) => {
                    verified.batches += 1;
                    verified.records += u64::from(head.records);
                }
                Err(_) => verified.damaged.push(slot),
            }
        }
        let meta = lock(&self.meta).clone();
        let counted = verified.batches + verified.damaged.len() as u64;
        if (counted, bytes) != (meta.batches, meta.bytes) {
            verified.disagreements.push(format!(
                "it holds {counted} batches of {bytes} bytes and says {} of {}",
                meta.batches, meta.bytes
            ));
        }
        if slot >= meta.next_slot {
            verified
                .disagreements
                .push(format!("the batch in slot {slot} is behind the next slot, {}", meta.next_slot));
        }
        let quarantined = self.quarantined(|_| true)?;
        if quarantined != meta.quarantine.batches {
            verified
                .disagreements
                .push(format!("quarantine holds {quarantined} batches and says {}", meta.quarantine.batches));
        }
        Ok(verified)
    }

    /// Show each batch in quarantine, oldest first, until `show` says false; returns how many there were.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantined(&self, mut show: impl FnMut(Kept) -> bool) -> Result<u64, QueueError> {
        let (mut from, mut count) = (0, 0);
        loop {
            let next = self.read(|db| {
                let table = db.begin_read()?.open_table(QUARANTINE)?;
                let next = table.range(from..)?.next().transpose()?;
                Ok(next.map(|(slot, kept)| (slot.value(), kept.value().to_vec())))
            })?;
            let Some((slot, kept)) = next else { return Ok(count) };
            count += 1;
            if !show(open(slot, &kept)) {
                return Ok(count);
            }
            from = slot + 1;
        }
    }

    /// Put a batch in quarantine back into the queue, to be sent once more under its key. False where it is not there.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn replay(&self, slot: u64) -> Result<bool, QueueError> {
        let done = self.write(Durability::Immediate, |tx, meta| {
            let Some(kept) = out_of_quarantine(tx, meta, slot)? else { return Ok(None) };
            if let Some((epoch, seq)) = key(&kept.frame)
                && let Some(aside) = meta.aside(epoch)
            {
                remove(&mut aside.quarantined, seq);
            }
            tx.open_table(BATCHES)?.insert(slot, kept.frame.as_slice())?;
            meta.batches += 1;
            meta.bytes += space(kept.frame.len());
            Ok(Some(()))
        })?;
        Ok(done.is_some())
    }

    /// Delete a batch in quarantine; it stays counted. False where it is not there.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn drop_quarantined(&self, slot: u64) -> Result<bool, QueueError> {
        let done = self.write(Durability::Immediate, |tx, meta| {
            let there = out_of_quarantine(tx, meta, slot)?.is_some();
            meta.quarantine.dropped += u64::from(there);
            Ok(there.then_some(()))
        })?;
        Ok(done.is_some())
    }

    /// What `vedette queue status` shows besides [`Queue::stats`]: lane, the next sequence, and the epoch before.
    pub fn position(&self) -> (Lane, u64, Option<vedette_wire::Predecessor>) {
        let meta = lock(&self.meta);
        (self.lane, meta.next_seq, meta.predecessor.clone())
    }
}

fn out_of_quarantine(tx: &redb::WriteTransaction, meta: &mut Meta, slot: u64) -> Result<Option<Kept>, redb::Error> {
    let mut table = tx.open_table(QUARANTINE)?;
    let Some(kept) = table.remove(slot)?.map(|kept| kept.value().to_vec()) else { return Ok(None) };
    meta.quarantine.batches = meta.quarantine.batches.saturating_sub(1);
    meta.quarantine.bytes = meta.quarantine.bytes.saturating_sub(space(kept.len()));
    Ok(Some(open(slot, &kept)))
}

fn open(slot: u64, kept: &[u8]) -> Kept {
    let end = kept.iter().position(|byte| *byte == 0).unwrap_or(0);
    let frame = kept.get(end + 1..).unwrap_or_default().to_vec();
    Kept {
        slot,
        reason: String::from_utf8_lossy(&kept[..end]).into_owned(),
        head: frame::parse(&frame).ok().map(|(head, _)| head),
        frame,
    }
}

fn remove(ranges: &mut Vec<Range>, seq: u64) {
    let Some(at) = ranges.iter().position(|(first, last)| (*first..=*last).contains(&seq)) else { return };
    let (first, last) = ranges.remove(at);
    if seq < last {
        ranges.insert(at, (seq + 1, last));
    }
    if first < seq {
        ranges.insert(at, (first, seq - 1));
    }
}
