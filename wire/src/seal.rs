//! Sealing: records are compressed as they arrive; the header is compressed last and placed first.
//!
//! Each part is a zstd frame or a gzip member; both formats allow concatenation (RFC 8878 §3.1, RFC 1952 §2.2).

use crate::{
    Header, Position,
    codec::{self, Compression, LENGTH_BYTES, append_record},
};
use std::{cell::RefCell, io};
use zstd::zstd_safe::{CParameter, ParamSwitch};

/// Small records are compressed together at this size; a larger body is compressed alone.
const FRAME_BYTES: usize = 128 << 10;

/// The same as zlib's level 6.
const GZIP_LEVEL: libdeflater::CompressionLvl = match libdeflater::CompressionLvl::new(6) {
    Ok(level) => level,
    Err(_) => panic!("6 is a level"),
};

/// A large body, compressed by the thread that made it while it is in that core's cache, before its batch is known.
#[derive(Debug)]
pub struct CompressedBody {
    compression: Compression,
    sealed: Vec<u8>,
    plain_bytes: usize,
}

impl CompressedBody {
    /// Compresses an encoded body; absent if the body is small or the compressor fails (out of memory).
    pub fn of(body: &[u8], compression: Compression) -> Option<Self> {
        let sealed = (body.len() >= FRAME_BYTES).then(|| compress(body, compression).ok()).flatten()?;
        Some(Self { compression, sealed, plain_bytes: body.len() })
    }

    /// Size of the compressed body.
    pub fn sealed_bytes(&self) -> usize {
        self.sealed.len()
    }
}

/// Seals batches, one at a time.
#[derive(Debug, Default)]
pub struct Sealer {
    compression: Compression,
    /// Records not compressed yet.
    waiting: Vec<u8>,
    /// Compressed frames or members, in order.
    sealed: Vec<Vec<u8>>,
    plain_bytes: usize,
}

impl Sealer {
    /// Sets the codec for an empty batch and those after it.
    pub fn set_compression(&mut self, compression: Compression) {
        debug_assert_eq!(self.plain_bytes, 0, "a batch has one codec");
        self.compression = compression;
    }

    /// The codec.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Size of the sealed records; those not compressed yet count in full.
    pub fn sealed_bytes(&self) -> usize {
        self.waiting.len() + self.sealed.iter().map(Vec::len).sum::<usize>()
    }

    /// Appends a record with an encoded body.
    pub fn append(&mut self, source: u32, observed: i64, position: Position, body: &[u8]) {
        let before = self.waiting.len();
        append_record(source, observed, position, body, &mut self.waiting);
        self.plain_bytes += self.waiting.len() - before;
        if self.waiting.len() >= FRAME_BYTES {
            // On lack of memory the records stay uncompressed until the batch is sealed.
            drop(self.flush());
        }
    }

    /// Appends a record with a compressed body.
    ///
    /// # Panics
    /// If memory runs out while a body of another codec is decompressed.
    pub fn append_compressed(&mut self, source: u32, observed: i64, position: Position, compressed: CompressedBody) {
        let before = self.waiting.len();
        append_record(source, observed, position, &[], &mut self.waiting);
        self.plain_bytes += self.waiting.len() - before + compressed.plain_bytes;
        // The workspace has requested another codec since.
        if compressed.compression == self.compression && self.flush().is_ok() {
            self.sealed.push(compressed.sealed);
        } else {
            let body = codec::decompress(&compressed.sealed, compressed.compression, compressed.plain_bytes);
            self.waiting.extend_from_slice(&body.expect("a compressed body is read back"));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.sealed.push(compress(&self.waiting, self.compression)?);
            self.waiting.clear();
        }
        Ok(())
    }

    /// Compresses header and records: returns the sealed bytes after `zeros` zero bytes. Keeps the records.
    ///
    /// # Errors
    /// The compressor fails (out of memory).
    pub fn seal(&mut self, zeros: usize, header: &Header) -> io::Result<Vec<u8>> {
        self.flush()?;
        let head = compress(&head(header)?, self.compression)?;
        let mut out = Vec::with_capacity(zeros + head.len() + self.sealed.iter().map(Vec::len).sum::<usize>());
        out.resize(zeros, 0);
        out.extend_from_slice(&head);
        for compressed in &self.sealed {
            out.extend_from_slice(compressed);
        }
        Ok(out)
    }

    /// Starts another batch in the same memory.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.sealed.clear();
        self.plain_bytes = 0;
    }
}

/// Seals a header and encoded records.
///
/// # Errors
/// The compressor fails (out of memory).
pub fn seal(header: &Header, records: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    append(&head(header)?, compression, &mut out)?;
    append(records, compression, &mut out)?;
    Ok(out)
}

/// Compresses bytes.
///
/// # Errors
/// The compressor fails (out of memory).
pub fn compress(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    append(bytes, compression, &mut out)?;
    Ok(out)
}

/// The header with its length before it.
fn head(header: &Header) -> io::Result<Vec<u8>> {
    let mut head = vec![0; LENGTH_BYTES];
    rmp_serde::encode::write_named(&mut head, header).map_err(io::Error::other)?;
    let length = u32::try_from(head.len() - LENGTH_BYTES).map_err(io::Error::other)?;
    head[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(head)
}

/// Appends compressed bytes; appends nothing on failure.
fn append(bytes: &[u8], compression: Compression, into: &mut Vec<u8>) -> io::Result<()> {
    COMPRESSORS.with_borrow_mut(|Compressors { zstd, gzip, block }| {
        let length = match compression {
            Compression::Zstd => {
                let zstd = match zstd {
                    Some(zstd) => zstd,
                    none => none.insert(level_1()?),
                };
                grow(block, zstd::zstd_safe::compress_bound(bytes.len()));
                zstd.compress_to_buffer(bytes, &mut block[..])?
            }
            Compression::Gzip => {
                let gzip = gzip.get_or_insert_with(|| libdeflater::Compressor::new(GZIP_LEVEL));
                grow(block, gzip.gzip_compress_bound(bytes.len()));
                gzip.gzip_compress(bytes, block).map_err(io::Error::other)?
            }
        };
        into.extend_from_slice(&block[..length]);
        if block.len() > BLOCK_BYTES_MAX {
            *block = Vec::new();
        }
        Ok(())
    })
}

fn grow(block: &mut Vec<u8>, length: usize) {
    block.resize(block.len().max(length), 0);
}

/// Maximum size of a thread's output buffer.
const BLOCK_BYTES_MAX: usize = 512 << 10;

/// Compressors of a thread. A context has up to a megabyte, too much to allocate for each part; and output is far smaller than
/// its buffer, which would fragment the heap.
#[derive(Default)]
struct Compressors {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    gzip: Option<libdeflater::Compressor>,
    block: Vec<u8>,
}

thread_local! {
    static COMPRESSORS: RefCell<Compressors> = RefCell::default();
}

/// Level 1 as zstd sets it for large inputs, with two changes: the hash table fits into the first-level cache, and the search
/// for matches skips three bytes instead of two (`targetLength`). On log lines that takes a fifth less time for 6 % more bytes.
/// `targetLength` above 1 disables literal compression by default, so it is enabled explicitly.
fn level_1() -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    for parameter in [
        CParameter::WindowLog(19),
        CParameter::HashLog(13),
        CParameter::MinMatch(7),
        CParameter::TargetLength(3),
        CParameter::LiteralCompressionMode(ParamSwitch::Enable),
    ] {
        compressor.set_parameter(parameter)?;
    }
    Ok(compressor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentId, LaneName, OrganizationId, geo::WorkspaceGeo};

    #[test]
    fn pieces_are_read_back_as_one() {
        let organization = OrganizationId::from_uuid(uuid::Uuid::nil());
        let header = Header::new(organization, AgentId([7; 16]), LaneName::Records, WorkspaceGeo::Europe);
        let codecs = [Compression::Zstd, Compression::Gzip];
        let (mut sealer, mut expected) = (Sealer::default(), Vec::new());
        for (compression, of_pieces) in codecs.into_iter().flat_map(|codec| codecs.map(|other| (codec, other))) {
            sealer.clear();
            sealer.set_compression(compression);
            expected.clear();
            let sizes = [10, FRAME_BYTES - 1, 3, FRAME_BYTES, 2 * FRAME_BYTES, 0, FRAME_BYTES / 2, 7];
            for (at, size) in (0..).zip(sizes) {
                let (body, position) = (vec![at as u8; size], Position(at, at + 1));
                match CompressedBody::of(&body, of_pieces) {
                    Some(compressed) => {
                        assert_eq!((compressed.plain_bytes, size >= FRAME_BYTES), (size, true));
                        sealer.append_compressed(1, 2, position, compressed);
                    }
                    None => sealer.append(1, 2, position, &body),
                }
                append_record(1, 2, position, &body, &mut expected);
            }
            assert_eq!(sealer.plain_bytes, expected.len());
            // A batch that could not be queued is sealed again under another header.
            for zeros in [0, 9] {
                let sealed = sealer.seal(zeros, &header).expect("seals");
                let plain = codec::decompress(&sealed[zeros..], compression, 1 << 20).expect("decompresses");
                let (read, records) = codec::decode_header(&plain).expect("decodes");
                assert_eq!((&read, records), (&header, &expected[..]));
            }
        }
    }
}
