//! Sealing a batch and committing it with its cursors and the ledger.

use super::{BATCHES, CURSORS, Cursors, Meta, Queue, QueueError, checked, lock, shares::Shares, space};
use crate::{batcher::Open, failpoint};
use redb::{Durability, WriteTransaction};
use std::collections::BTreeMap;
use vedette_wire::{
    Compression, Epoch, Header, Predecessor, Told, codec,
    frame::{self, FrameHead, HEAD_BYTES},
};

impl Queue {
    /// Seal what the batcher holds and commit it with its cursors and the ledger in one transaction, fsynced.
    ///
    /// # Errors
    /// [`QueueError::Full`] and [`QueueError::Floor`] where the quota does not allow it; anything else leaves the queue
    /// as it was.
    pub(crate) fn commit(&self, open: &mut Open, header: Header) -> Result<(), QueueError> {
        loop {
            let meta = lock(&self.meta).clone();
            let mut told = Vec::new();
            let frame = if open.is_worth_sending() {
                failpoint::reached("seal");
                let mut header = header.clone();
                self.complete(&mut header, &meta)?;
                header.ledger = meta.ledger.clone();
                header.ledger.add(&open.ledger);
                let mut changed = lock(&self.untold).clone();
                changed.extend(named(&open.cursors));
                told = tell(changed);
                header.cursors.clone_from(&told);
                let sealed = open.seal(HEAD_BYTES, &header).map_err(QueueError::Seal)?;
                Some(framed(sealed, &header, open.compression()))
            } else {
                None
            };
            let added = frame.as_ref().map_or(0, |frame| space(frame.len()));
            let shares = Shares::of(open.held(), added, open.is_bulk);
            if added > 0 {
                self.room(added, meta.bytes + meta.quarantine.bytes)?;
            }
            failpoint::reached("commit");
            let done = self.write(Durability::Immediate, |tx, now| {
                if (now.epoch, now.next_seq, &now.set_aside) != (meta.epoch, meta.next_seq, &meta.set_aside) {
                    // It was given to a part of another batch, or one was set aside meanwhile.
                    return Ok(None);
                }
                if let Some(frame) = &frame {
                    append(tx, now, frame, &shares)?;
                }
                now.ledger.add(&open.ledger);
                keep(tx, &open.cursors)?;
                for (collector, source, floor) in &open.floors {
                    super::positions::pass_over(tx, &format!("{collector}\0{source}"), *floor)?;
                }
                Ok(Some(()))
            })?;
            if done.is_some() {
                failpoint::reached("committed");
                let mut untold = lock(&self.untold);
                untold.extend(named(&open.cursors));
                for Told { collector, id, .. } in told {
                    untold.remove(&(collector, id));
                }
                return Ok(());
            }
        }
    }

    /// What only the queue knows of a header: key, what is held, what was set aside, and what was before.
    pub(super) fn complete(&self, header: &mut Header, meta: &Meta) -> Result<(), QueueError> {
        // It may be sealed again, by a later release than before.
        header.version = vedette_wire::FORMAT_VERSION;
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

/// Cursors that one header tells at the most, and their bytes; the others are told by the next ones. The workspace takes
/// twice as many.
const TOLD_MAX: usize = 10_000;
const TOLD_BYTES_MAX: usize = 2 << 20;

fn named(
    cursors: &BTreeMap<(&'static str, String), Option<Vec<u8>>>,
) -> impl Iterator<Item = ((String, String), Option<Vec<u8>>)> {
    cursors.iter().map(|((collector, id), cursor)| (((*collector).to_owned(), id.clone()), cursor.clone()))
}

/// As many as one header tells, one at the least.
fn tell(cursors: Cursors) -> Vec<Told> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    for ((collector, id), cursor) in cursors {
        bytes += collector.len() + id.len() + cursor.as_ref().map_or(0, Vec::len);
        if !out.is_empty() && (out.len() >= TOLD_MAX || bytes > TOLD_BYTES_MAX) {
            break;
        }
        out.push(Told { collector, id, cursor });
    }
    out
}

/// Header and encoded records as a frame.
pub(super) fn seal(header: &Header, records: &[u8], compression: Compression) -> Result<Vec<u8>, QueueError> {
    let sealed = codec::seal(header, records, compression).map_err(QueueError::Seal)?;
    Ok(framed([&[0; HEAD_BYTES][..], &sealed].concat(), header, compression))
}

/// A frame of sealed bytes, which stand behind room for its head.
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

/// Put a frame that was sealed under the next sequence behind all others.
pub(super) fn append(tx: &WriteTransaction, meta: &mut Meta, frame: &[u8], shares: &Shares) -> Result<(), redb::Error> {
    shares.put(tx, meta, meta.next_slot)?;
    tx.open_table(BATCHES)?.insert(meta.next_slot, frame)?;
    meta.next_seq += 1;
    meta.next_slot += 1;
    meta.batches += 1;
    meta.bytes += space(frame.len());
    Ok(())
}

/// Keep cursors; what the workspace said of their sources is then begun.
fn keep(tx: &WriteTransaction, cursors: &BTreeMap<(&'static str, String), Option<Vec<u8>>>) -> Result<(), redb::Error> {
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
