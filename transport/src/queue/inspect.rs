//! Inspection of a queue that no agent uses: content, verification, quarantine.

use super::{BATCHES, Meta, QUARANTINE, Queue, QueueError, leave::key, lock, space};
use redb::{Durability, ReadableDatabase};
use vedette_wire::{
    LaneName,
    frame::{self, FrameHead},
    set_aside::SequenceRange,
};

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of intact batches.
    pub batches: u64,
    /// Number of records in them.
    pub records: u64,
    /// Slots of damaged batches.
    pub damaged: Vec<u64>,
    /// Differences between the content and the queue's own counts.
    pub disagreements: Vec<String>,
}

/// A batch in quarantine.
#[derive(Debug, Clone)]
pub struct QuarantinedBatch {
    /// Slot.
    pub slot: u64,
    /// Reason as JSON: `code` and `why`.
    pub reason: String,
    /// Head of its frame; absent if damaged.
    pub head: Option<FrameHead>,
    /// Frame.
    pub frame: Vec<u8>,
}

impl Queue {
    /// Reads every batch and compares the content with the queue's own counts.
    ///
    /// # Errors
    /// [`QueueError::Storage`] and [`QueueError::Damaged`].
    pub fn verify(&self) -> Result<Verified, QueueError> {
        let mut verified = Verified::default();
        let (mut slot, mut bytes) = (0, 0);
        while let Some((next, frame_bytes)) = self.next_after(slot)? {
            slot = next;
            bytes += space(frame_bytes.len());
            match frame::parse(&frame_bytes) {
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
                "the queue holds {counted} batches of {bytes} bytes, but counts {} of {}",
                meta.batches, meta.bytes
            ));
        }
        if slot >= meta.next_slot {
            verified
                .disagreements
                .push(format!("the batch in slot {slot} is not below the next slot, {}", meta.next_slot));
        }
        let quarantined = self.quarantined(|_| true)?;
        if quarantined != meta.quarantine.batches {
            verified.disagreements.push(format!(
                "quarantine holds {quarantined} batches, but the queue counts {}",
                meta.quarantine.batches
            ));
        }
        Ok(verified)
    }

    /// Passes each batch in quarantine to `show`, oldest first, until it returns false; returns their number.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn quarantined(&self, mut show: impl FnMut(QuarantinedBatch) -> bool) -> Result<u64, QueueError> {
        let (mut from, mut count) = (0, 0);
        loop {
            let next = self.read(|db| {
                let table = db.begin_read()?.open_table(QUARANTINE)?;
                let next = table.range(from..)?.next().transpose()?;
                Ok(next.map(|(slot, stored)| (slot.value(), stored.value().to_vec())))
            })?;
            let Some((slot, stored)) = next else { return Ok(count) };
            count += 1;
            if !show(open(slot, &stored)) {
                return Ok(count);
            }
            from = slot + 1;
        }
    }

    /// Moves a batch from quarantine back to the queue, under its key. False if it is not there.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn replay(&self, slot: u64) -> Result<bool, QueueError> {
        let done = self.write(Durability::Immediate, |tx, meta| {
            let Some(stored) = out_of_quarantine(tx, meta, slot)? else { return Ok(None) };
            if let Some((epoch, seq)) = key(&stored.frame)
                && let Some(set_aside) = meta.set_aside_of(epoch)
            {
                remove(&mut set_aside.quarantined, seq);
            }
            tx.open_table(BATCHES)?.insert(slot, stored.frame.as_slice())?;
            meta.batches += 1;
            meta.bytes += space(stored.frame.len());
            Ok(Some(()))
        })?;
        Ok(done.is_some())
    }

    /// Deletes a batch in quarantine; the ledger keeps its records as emitted and set aside.
    /// False if it is not there.
    ///
    /// # Errors
    /// [`QueueError::Storage`].
    pub fn drop_quarantined(&self, slot: u64) -> Result<bool, QueueError> {
        let done = self.write(Durability::Immediate, |tx, meta| {
            let is_present = out_of_quarantine(tx, meta, slot)?.is_some();
            meta.quarantine.dropped += u64::from(is_present);
            Ok(is_present.then_some(()))
        })?;
        Ok(done.is_some())
    }

    /// Lane, next sequence and previous epoch, for `vedette queue status`.
    pub fn sequence_state(&self) -> (LaneName, u64, Option<vedette_wire::Predecessor>) {
        let meta = lock(&self.meta);
        (self.lane, meta.next_seq, meta.predecessor.clone())
    }
}

fn out_of_quarantine(
    tx: &redb::WriteTransaction,
    meta: &mut Meta,
    slot: u64,
) -> Result<Option<QuarantinedBatch>, redb::Error> {
    let mut table = tx.open_table(QUARANTINE)?;
    let Some(stored) = table.remove(slot)?.map(|stored| stored.value().to_vec()) else { return Ok(None) };
    meta.quarantine.batches = meta.quarantine.batches.saturating_sub(1);
    meta.quarantine.bytes = meta.quarantine.bytes.saturating_sub(space(stored.len()));
    Ok(Some(open(slot, &stored)))
}

fn open(slot: u64, stored: &[u8]) -> QuarantinedBatch {
    let end = stored.iter().position(|byte| *byte == 0).unwrap_or(0);
    let frame = stored.get(end + 1..).unwrap_or_default().to_vec();
    QuarantinedBatch {
        slot,
        reason: String::from_utf8_lossy(&stored[..end]).into_owned(),
        head: frame::parse(&frame).ok().map(|(head, _)| head),
        frame,
    }
}

fn remove(ranges: &mut Vec<SequenceRange>, seq: u64) {
    let Some(at) = ranges.iter().position(|(first, last)| (*first..=*last).contains(&seq)) else { return };
    let (first, last) = ranges.remove(at);
    if seq < last {
        ranges.insert(at, (seq + 1, last));
    }
    if first < seq {
        ranges.insert(at, (first, seq - 1));
    }
}
