//! Batches as bytes: `u32` little-endian header length, header, records one behind the other, all named MessagePack,
//! the whole compressed with zstd (level 1) or gzip.
//!
//! A record of a kind that this build does not know is kept whole as [`Body::Unknown`]. Decompression is bounded by
//! the caller: what came over the network may be a bomb.

use crate::{Batch, Body, FORMAT_VERSION, Header, Position, Record};
use serde::{Deserialize, Serialize};
use std::io::{Cursor, Read, Write};

/// How a batch is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard level 1 (RFC 8878).
    #[default]
    Zstd,
    /// gzip level 6 (RFC 1952).
    Gzip,
}

impl Compression {
    /// The token of HTTP's `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
        }
    }

    /// From HTTP's `Content-Encoding`.
    pub fn from_name(name: &str) -> Option<Self> {
        [Compression::Zstd, Compression::Gzip].into_iter().find(|c| c.name() == name)
    }
}

/// Bytes that are not a batch.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The compressed stream is damaged.
    #[error("cannot decompress the batch")]
    Decompress(#[source] std::io::Error),
    /// Decompressed it would be larger than the caller allows.
    #[error("the batch is larger than {limit} bytes when decompressed")]
    TooLarge {
        /// The caller's limit.
        limit: usize,
    },
    /// The header cannot be read.
    #[error("the batch header cannot be decoded: {0}")]
    Header(String),
    /// Another format version.
    #[error("batch format version {found} is not supported; this build reads version {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The records are damaged.
    #[error("record {index} of the batch cannot be decoded: {message}")]
    Record {
        /// Which record, from 0.
        index: usize,
        /// What MessagePack said.
        message: String,
    },
    /// The header's count and the records disagree.
    #[error("the header says {expected} records, the batch holds {found}")]
    Count {
        /// What the header says.
        expected: u32,
        /// What was there.
        found: usize,
    },
}

/// Append one record, its body already encoded, to a buffer of encoded records.
pub fn append_record(source: u32, observed: i64, position: Position, body: &[u8], into: &mut Vec<u8>) {
    // The same bytes as `rmp_serde::encode::write_named` of a `Record`; a test compares them.
    let written: Result<(), rmp::encode::ValueWriteError<std::io::Error>> = (|| {
        rmp::encode::write_map_len(into, 4)?;
        rmp::encode::write_str(into, "s")?;
        rmp::encode::write_uint(into, u64::from(source))?;
        rmp::encode::write_str(into, "t")?;
        rmp::encode::write_sint(into, observed)?;
        rmp::encode::write_str(into, "p")?;
        rmp::encode::write_array_len(into, 2)?;
        rmp::encode::write_uint(into, position.0)?;
        rmp::encode::write_uint(into, position.1)?;
        rmp::encode::write_str(into, "b")?;
        Ok(())
    })();
    written.expect("writing to a Vec does not fail");
    into.extend_from_slice(body);
}

/// Append an encoded body to a buffer.
///
/// # Panics
/// Never: the bodies of this crate always serialize.
pub fn append_body(body: &Body, into: &mut Vec<u8>) {
    rmp_serde::encode::write_named(into, body).expect("bodies have string keys and known lengths");
}

/// Header and encoded records, compressed: the sealed bytes.
///
/// # Errors
/// Where the compressor fails (out of memory).
pub fn seal(header: &Header, records: &[u8], compression: Compression) -> std::io::Result<Vec<u8>> {
    let head = rmp_serde::to_vec_named(header).map_err(std::io::Error::other)?;
    let length = u32::try_from(head.len()).map_err(std::io::Error::other)?.to_le_bytes();
    compress_parts(&[&length, &head, records], compression)
}

/// Bytes, compressed.
///
/// # Errors
/// Where the compressor fails (out of memory).
pub fn compress(bytes: &[u8], compression: Compression) -> std::io::Result<Vec<u8>> {
    compress_parts(&[bytes], compression)
}

fn compress_parts(parts: &[&[u8]], compression: Compression) -> std::io::Result<Vec<u8>> {
    let out = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() / 4 + 256);
    match compression {
        Compression::Zstd => write_all(zstd::stream::Encoder::new(out, 1)?, parts)?.finish(),
        Compression::Gzip => {
            write_all(flate2::write::GzEncoder::new(out, flate2::Compression::new(6)), parts)?.finish()
        }
    }
}

fn write_all<W: Write>(mut to: W, parts: &[&[u8]]) -> std::io::Result<W> {
    for part in parts {
        to.write_all(part)?;
    }
    Ok(to)
}

/// Decompress sealed bytes, refusing more than `limit` bytes.
///
/// # Errors
/// [`DecodeError::Decompress`] and [`DecodeError::TooLarge`].
pub fn decompress(sealed: &[u8], compression: Compression, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    let capped = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    match compression {
        Compression::Zstd => {
            zstd::stream::Decoder::new(sealed).and_then(|decoder| decoder.take(capped).read_to_end(&mut out))
        }
        Compression::Gzip => flate2::read::GzDecoder::new(sealed).take(capped).read_to_end(&mut out),
    }
    .map_err(DecodeError::Decompress)?;
    if out.len() > limit {
        return Err(DecodeError::TooLarge { limit });
    }
    Ok(out)
}

/// Read the header of a decompressed batch; the rest is its encoded records.
///
/// # Errors
/// [`DecodeError::Header`] and [`DecodeError::Version`].
pub fn decode_header(plain: &[u8]) -> Result<(Header, &[u8]), DecodeError> {
    let short = || DecodeError::Header("it ends too early".to_owned());
    let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (head, records) = rest.split_at_checked(length).ok_or_else(short)?;
    let version: VersionOnly = from_slice(head)?;
    if version.version != FORMAT_VERSION {
        return Err(DecodeError::Version { found: version.version });
    }
    Ok((from_slice(head)?, records))
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u16,
}

fn from_slice<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes).map_err(|err| DecodeError::Header(err.to_string()))
}

/// Decode a decompressed batch whole.
///
/// # Errors
/// Any [`DecodeError`] but those of decompression.
pub fn decode(plain: &[u8]) -> Result<Batch, DecodeError> {
    let (header, bytes) = decode_header(plain)?;
    let mut records = Vec::with_capacity((header.records as usize).min(bytes.len() / 16));
    let mut rest = bytes;
    while !rest.is_empty() {
        let (record, behind) =
            decode_record(rest).map_err(|message| DecodeError::Record { index: records.len(), message })?;
        records.push(record);
        rest = behind;
    }
    if records.len() != header.records as usize {
        return Err(DecodeError::Count { expected: header.records, found: records.len() });
    }
    Ok(Batch { header, records })
}

/// One record and what is behind it.
fn decode_record(bytes: &[u8]) -> Result<(Record, &[u8]), String> {
    let mut known = rmp_serde::Deserializer::new(Cursor::new(bytes));
    if let Ok(record) = Record::deserialize(&mut known) {
        return Ok((record, behind(bytes, known.position()).1));
    }
    // Not a kind of ours: read the envelope, and keep the whole as it came.
    let mut unknown = rmp_serde::Deserializer::new(Cursor::new(bytes));
    let envelope = Envelope::deserialize(&mut unknown).map_err(|err| err.to_string())?;
    let (whole, rest) = behind(bytes, unknown.position());
    let body = Body::Unknown(crate::body::Unknown { raw: whole.to_vec() });
    Ok((Record { source: envelope.s, observed: envelope.t, position: envelope.p, body }, rest))
}

/// The source and the end of each encoded record, without decoding bodies.
///
/// # Errors
/// [`DecodeError::Record`].
pub fn outline(records: &[u8]) -> Result<Vec<(u32, usize)>, DecodeError> {
    let (mut out, mut at) = (Vec::new(), 0);
    while at < records.len() {
        let mut reader = rmp_serde::Deserializer::new(Cursor::new(&records[at..]));
        let envelope = Envelope::deserialize(&mut reader)
            .map_err(|err| DecodeError::Record { index: out.len(), message: err.to_string() })?;
        at += usize::try_from(reader.position()).expect("a position in memory");
        out.push((envelope.s, at));
    }
    Ok(out)
}

fn behind(bytes: &[u8], position: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(position).expect("a position in memory"))
}

#[derive(Deserialize)]
struct Envelope {
    s: u32,
    t: i64,
    p: Position,
    #[serde(rename = "b")]
    _body: serde::de::IgnoredAny,
}
