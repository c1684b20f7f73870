//! Checks of a batch that need no storage: CPU work, off the async threads. A batch is decompressed and decoded once.

use super::{Delivery, IngestError, PLAIN_BYTES_MAX, ROWS_BYTES_MAX, landing::rows_bytes};
use crate::{
    batch_index::BatchIndex,
    store::{AgentKey, PieceIndex},
};
use bytes::Bytes;
use std::collections::BTreeMap;
use vedette_wire::{
    Body, Compression, Header, LaneName,
    codec::{self, Scanned},
    frame::{self, FrameHead},
    geo::WorkspaceGeo,
    policy::StoreLevel,
};

/// A batch with its decoded header.
pub(super) struct Opened {
    pub(super) header: Header,
    /// Decompressed batch, and where its records begin.
    plain: Vec<u8>,
    records_at: usize,
    body: Bytes,
    compression: Compression,
    digest: [u8; 32],
}

/// A checked batch, to be landed.
pub(super) struct Checked {
    pub(super) index: BatchIndex,
    pub(super) contents: Contents,
    pub(super) frame: Vec<u8>,
    /// SHA-256 of the sealed batch.
    pub(super) digest: [u8; 32],
}

/// What policy and artifacts need to know of the records.
#[derive(Default)]
pub(super) struct Contents {
    /// Kind of the first record that collection emits.
    pub(super) collected: Option<&'static str>,
    /// Pieces of artifacts.
    pub(super) pieces: Vec<PieceIndex>,
    /// Records that the store level leaves out, by source.
    left_out: BTreeMap<u32, u64>,
}

/// Verifies digest and names, and decodes the header.
pub(super) fn open(delivery: Delivery, geo: WorkspaceGeo) -> Result<Opened, IngestError> {
    let Delivery { agent, body, compression, digest: stated, key, .. } = delivery;
    let digest = frame::sha256(&body);
    if stated != Some(digest) {
        return Err(IngestError::Digest);
    }
    let plain = codec::decompress(&body, compression, PLAIN_BYTES_MAX)?;
    let (header, records) = codec::decode_header(&plain)?;
    let records_at = plain.len() - records.len();
    BatchIndex::check_sources(&header).map_err(IngestError::Shape)?;
    if (AgentKey { organization: header.organization, agent: header.agent }) != agent {
        return Err(IngestError::IdentityMismatch);
    }
    if header.geo != geo {
        return Err(IngestError::GeoMismatch { batch: header.geo, workspace: geo });
    }
    if (header.lane, header.epoch, header.seq) != key {
        return Err(IngestError::KeyMismatch);
    }
    Ok(Opened { header, plain, records_at, body, compression, digest })
}

impl Opened {
    /// Decodes all records, so that an acknowledged batch can be read back, and builds the frame to land.
    pub(super) fn scan(self, store: StoreLevel) -> Result<Checked, IngestError> {
        let Self { header, plain, records_at, body, compression, digest } = self;
        let (mut contents, mut positions) = (Contents::default(), Vec::new());
        let is_blobs = header.lane == LaneName::Blobs;
        let decoded = codec::scan(&header, &plain[records_at..], |record| {
            positions.push((record.source, record.position));
            contents.add(record, is_blobs, store);
        })?;
        let rows = rows_bytes(records_at + decoded, &header, positions.iter().map(|(source, _)| *source));
        drop(plain);
        let mut index = BatchIndex::new(header, positions);
        index.check().map_err(IngestError::Shape)?;
        if rows > ROWS_BYTES_MAX {
            return Err(IngestError::TooLargeAsRows(rows));
        }
        if index.is_ragged() {
            return Err(IngestError::TooManyRuns);
        }
        index.leave_out(store, std::mem::take(&mut contents.left_out));
        let header = &index.header;
        let head = FrameHead { key: header.key(), compression, sealed: header.sealed, records: header.records, digest };
        let frame = frame::build(&head, &body);
        Ok(Checked { index, contents, frame, digest })
    }
}

impl Contents {
    fn add(&mut self, record: Scanned<'_>, is_blobs: bool, store: StoreLevel) {
        let (source, kind) = (record.source, record.kind().name);
        if self.collected.is_none() && !matches!(kind, "heartbeat" | "artifact") {
            self.collected = Some(kind);
        }
        if store == StoreLevel::All && !is_blobs {
            return;
        }
        let body = record.into_body();
        if !store.keeps(&body) {
            *self.left_out.entry(source).or_default() += 1;
        }
        if let (true, Body::Artifact(piece)) = (is_blobs, body) {
            self.pieces.push(piece.into());
        }
    }
}
