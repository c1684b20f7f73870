//! Sealing and committing batches.

use super::{BATCHES, CURSORS, Cursors, Meta, Queue, QueueError, checked, lock, meta::Usage, space};
use crate::{batcher::BatchBuilder, failpoint};
use redb::{Durability, WriteTransaction};
use std::collections::BTreeMap;
use vedette_wire::{
    Compression, CursorUpdate, Epoch, Header, Predecessor,
    frame::{self, FrameHead, HEAD_BYTES},
    seal,
};

impl Queue {
    /// Seals the open batch and commits it with its cursors and the ledger in one fsynced transaction.
    ///
    /// # Errors
    /// [`QueueError::Full`] and [`QueueError::NoFreeSpace`] if the quota has no room. Any other error leaves the queue
    /// unchanged.
    pub(crate) fn commit(&self, open: &mut BatchBuilder, header: Header) -> Result<(), QueueError> {
        loop {
            let meta = lock(&self.meta).clone();
            let mut update = Vec::new();
            let frame = if open.is_worth_sending() {
                failpoint::reached("seal");
                let mut header = header.clone();
                self.complete(&mut header, &meta)?;
                header.ledger = meta.ledger.clone();
                header.ledger.add(&open.ledger);
                let mut changed = lock(&self.unsent_cursors).clone();
                changed.extend(named(&open.cursors));
                update = take_updates(changed);
                header.cursors.clone_from(&update);
                let sealed = open.seal(HEAD_BYTES, &header).map_err(QueueError::Seal)?;
                Some(framed(sealed, &header, open.compression()))
            } else {
                None
            };
            let added = frame.as_ref().map_or(0, |frame| space(frame.len()));
            let shares = Usage::of(open.bytes_by_source(), added, open.is_bulk);
            if added > 0 {
                self.check_room(added, meta.bytes + meta.quarantine.bytes)?;
            }
            failpoint::reached("commit");
            let done = self.write(Durability::Immediate, |tx, current| {
                if (current.epoch, current.next_seq, &current.set_aside) != (meta.epoch, meta.next_seq, &meta.set_aside)
                {
                    // The sequence was used for a split batch or set aside meanwhile.
                    return Ok(None);
                }
                if let Some(frame) = &frame {
                    append(tx, current, frame, &shares)?;
                }
                current.ledger.add(&open.ledger);
                store_cursors(tx, &open.cursors)?;
                for (collector, source, floor) in &open.floors {
                    super::positions::raise_floor(tx, &format!("{collector}\0{source}"), *floor)?;
                }
                Ok(Some(()))
            })?;
            if done.is_some() {
                failpoint::reached("committed");
                let mut unsent_cursors = lock(&self.unsent_cursors);
                unsent_cursors.extend(named(&open.cursors));
                for CursorUpdate { collector, id, .. } in update {
                    unsent_cursors.remove(&(collector, id));
                }
                return Ok(());
            }
        }
    }

    /// Adds the queue's facts to a header: key, lowest held sequence, sequences set aside, previous epoch.
    pub(super) fn complete(&self, header: &mut Header, meta: &Meta) -> Result<(), QueueError> {
        // Never lower than its records need, nor than this host's; a later release may reseal the batch.
        header.version = header.version.max(vedette_wire::format_version(header.host.os_family));
        header.epoch = Epoch(meta.epoch);
        header.seq = meta.next_seq;
        header.lowest_held = self.lowest_held(meta.epoch_slot, u64::MAX, meta.epoch)?.unwrap_or(meta.next_seq);
        header.set_aside = meta.set_aside.clone();
        header.predecessor = match &meta.predecessor {
            None => None,
            Some(before) => {
                let lowest_held = self.lowest_held(0, meta.epoch_slot, before.epoch.0)?;
                Some(Predecessor { lowest_held, ..before.clone() })
            }
        };
        Ok(())
    }
}

/// Maximum number and size of cursors in one header; the next headers carry the rest. The workspace accepts twice as many.
const UPDATES_MAX: usize = 10_000;
const UPDATES_BYTES_MAX: usize = 2 << 20;

fn named(
    cursors: &BTreeMap<(&'static str, String), Option<Vec<u8>>>,
) -> impl Iterator<Item = ((String, String), Option<Vec<u8>>)> {
    cursors.iter().map(|((collector, id), cursor)| (((*collector).to_owned(), id.clone()), cursor.clone()))
}

/// Takes as many as one header may carry, and at least one.
fn take_updates(cursors: Cursors) -> Vec<CursorUpdate> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    for ((collector, id), cursor) in cursors {
        bytes += collector.len() + id.len() + cursor.as_ref().map_or(0, Vec::len);
        if !out.is_empty() && (out.len() >= UPDATES_MAX || bytes > UPDATES_BYTES_MAX) {
            break;
        }
        out.push(CursorUpdate { collector, id, cursor });
    }
    out
}

/// Seals a header and encoded records as a frame.
pub(super) fn seal(header: &Header, records: &[u8], compression: Compression) -> Result<Vec<u8>, QueueError> {
    let sealed = seal::seal(header, records, compression).map_err(QueueError::Seal)?;
    Ok(framed([&[0; HEAD_BYTES][..], &sealed].concat(), header, compression))
}

/// Completes a frame whose sealed bytes follow room for its head.
fn framed(mut frame: Vec<u8>, header: &Header, compression: Compression) -> Vec<u8> {
    let (room, sealed) = frame.split_at_mut(HEAD_BYTES);
    let head = FrameHead {
        key: header.key(),
        compression,
        sealed: header.sealed,
        records: header.records,
        digest: frame::sha256(sealed),
    };
    room.copy_from_slice(&frame::head_bytes(&head, sealed.len()));
    frame
}

/// Appends a frame that was sealed under the next sequence.
pub(super) fn append(tx: &WriteTransaction, meta: &mut Meta, frame: &[u8], shares: &Usage) -> Result<(), redb::Error> {
    shares.put(tx, meta, meta.next_slot)?;
    tx.open_table(BATCHES)?.insert(meta.next_slot, frame)?;
    meta.next_seq += 1;
    meta.next_slot += 1;
    meta.batches += 1;
    meta.bytes += space(frame.len());
    Ok(())
}

/// Stores cursors; sources with one no longer use the workspace's positions.
fn store_cursors(
    tx: &WriteTransaction,
    cursors: &BTreeMap<(&'static str, String), Option<Vec<u8>>>,
) -> Result<(), redb::Error> {
    let mut table = tx.open_table(CURSORS)?;
    for ((collector, source), cursor) in cursors {
        let key = format!("{collector}\0{source}");
        match cursor {
            Some(cursor) => table.insert(key.as_str(), checked(&key, cursor).as_slice())?,
            None => table.remove(key.as_str())?,
        };
        super::positions::begun(tx, &key, cursor.is_none())?;
    }
    Ok(())
}
