//! Batches as bytes: header length as little-endian `u32`, header, records, all as named MessagePack, compressed with zstd
//! (level 1) or gzip in pieces ([`crate::seal`]). Lines of log files and entries of the journal are packed, many to a record
//! ([`crate::lines`], [`crate::entries`]).
//!
//! A record of an unknown kind is kept whole as [`Body::Unknown`]. The caller limits decompression, since a peer may send a
//! bomb.

use crate::{
    Batch, Body, FORMAT_VERSION, Header, Position, Record,
    columns::UnpackError,
    entries,
    packed::{self, Packing},
};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};

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
    /// `Content-Encoding` token (RFC 9110 §8.4).
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
        }
    }

    /// Parses a `Content-Encoding` token.
    pub fn from_name(name: &str) -> Option<Self> {
        [Compression::Zstd, Compression::Gzip].into_iter().find(|c| c.name() == name)
    }
}

/// Why bytes are not a batch.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The compressed stream is damaged.
    #[error("cannot decompress the batch")]
    Decompress(#[source] io::Error),
    /// The decompressed batch exceeds the limit.
    #[error("the batch is larger than {limit} bytes when decompressed")]
    TooLarge {
        /// The caller's limit.
        limit: usize,
    },
    /// The header is damaged.
    #[error("the batch header cannot be decoded: {0}")]
    Header(String),
    /// The format version is later than this build's.
    #[error("batch format version {found} is not supported; this build reads versions 1 to {FORMAT_VERSION}")]
    Version {
        /// Version of the batch.
        found: u16,
    },
    /// A record is damaged.
    #[error("record {index} of the batch cannot be decoded: {message}")]
    Record {
        /// Index of the record, from 0.
        index: usize,
        /// Error of the MessagePack decoder.
        message: String,
    },
    /// The batch has more than [`RECORDS_MAX`] records.
    #[error("the batch has more than {RECORDS_MAX} records")]
    Many,
    /// The header states another number of records.
    #[error("the header says {expected} records, the batch holds {found}")]
    Count {
        /// Number in the header.
        expected: u32,
        /// Actual number.
        found: usize,
    },
}

/// Length of the header's length.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Maximum number of records in a batch, whatever its size: packed records are small and unpacked ones are not. An agent's
/// batch has at most a million and one chunk.
pub const RECORDS_MAX: usize = 1_300_000;

/// Maximum size of a batch's packed entries, decoded: a field that an entry repeats costs a few bytes there. An agent's batches
/// are limited by the decoded size.
pub const UNPACKED_BYTES_MAX: usize = 128 << 20;

/// Why a record cannot be decoded.
fn unpack_error(index: usize, message: UnpackError) -> DecodeError {
    if message == entries::TOO_LARGE {
        return DecodeError::TooLarge { limit: UNPACKED_BYTES_MAX };
    }
    DecodeError::Record { index, message: message.to_owned() }
}

/// Appends a record with an encoded body to a buffer of encoded records.
pub fn append_record(source: u32, observed: i64, position: Position, body: &[u8], into: &mut Vec<u8>) {
    // Writes the same bytes as `rmp_serde::encode::write_named` for a `Record`; a test compares them.
    let written: Result<(), rmp::encode::ValueWriteError<io::Error>> = (|| {
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

/// Appends an encoded body to a buffer.
///
/// # Panics
/// Never: the bodies of this crate always serialize.
pub fn append_body(body: &Body, into: &mut Vec<u8>) {
    rmp_serde::encode::write_named(into, body).expect("bodies have string keys and known lengths");
}

/// Decompresses sealed bytes, up to `limit` bytes.
///
/// # Errors
/// [`DecodeError::Decompress`] and [`DecodeError::TooLarge`].
pub fn decompress(sealed: &[u8], compression: Compression, limit: usize) -> Result<Vec<u8>, DecodeError> {
    // Compressed logs have about a fifth of their size.
    let mut out = Vec::with_capacity(sealed.len().saturating_mul(5).min(limit));
    let capped = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    match compression {
        Compression::Zstd => {
            zstd::stream::Decoder::new(sealed).and_then(|decoder| decoder.take(capped).read_to_end(&mut out))
        }
        Compression::Gzip => flate2::read::MultiGzDecoder::new(sealed).take(capped).read_to_end(&mut out),
    }
    .map_err(DecodeError::Decompress)?;
    if out.len() > limit {
        return Err(DecodeError::TooLarge { limit });
    }
    Ok(out)
}

/// Decodes the header of a decompressed batch; also returns the encoded records.
///
/// # Errors
/// [`DecodeError::Header`] and [`DecodeError::Version`].
pub fn decode_header(plain: &[u8]) -> Result<(Header, &[u8]), DecodeError> {
    let short = || DecodeError::Header("it ends too early".to_owned());
    let (length, rest) = plain.split_first_chunk::<LENGTH_BYTES>().ok_or_else(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (head, records) = rest.split_at_checked(length).ok_or_else(short)?;
    let version: VersionOnly = from_slice(head)?;
    if !(1..=FORMAT_VERSION).contains(&version.version) {
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

/// Decodes a decompressed batch.
///
/// # Errors
/// Any [`DecodeError`] except those of decompression.
pub fn decode(plain: &[u8]) -> Result<Batch, DecodeError> {
    let (header, bytes) = decode_header(plain)?;
    let records = decode_records(bytes)?;
    counted(&header, records.len())?;
    Ok(Batch { header, records })
}

/// Decodes encoded records.
///
/// # Errors
/// [`DecodeError::Record`] and [`DecodeError::Many`].
pub fn decode_records(records: &[u8]) -> Result<Vec<Record>, DecodeError> {
    let mut out = Vec::new();
    walk(records, UNPACKED_BYTES_MAX, |record| {
        let (source, observed, position) = (record.source, record.observed, record.position);
        out.push(Record { source, observed, position, body: record.into_body() });
    })?;
    Ok(out)
}

/// A record during [`scan`].
pub struct Scanned<'a> {
    /// Index into [`Header::sources`].
    pub source: u32,
    /// Time of observation, nanoseconds UTC.
    observed: i64,
    /// Position in the source.
    pub position: Position,
    body: ScannedBody<'a>,
}

#[expect(clippy::large_enum_variant, reason = "one at a time is on the stack")]
enum ScannedBody<'a> {
    Whole(Body),
    Packed(packed::Unpacked<'a>),
}

impl Scanned<'_> {
    /// Kind of the body.
    pub fn kind(&self) -> &'static crate::body::Kind {
        match &self.body {
            ScannedBody::Whole(body) => body.kind(),
            ScannedBody::Packed(record) => record.kind(),
        }
    }

    /// The body; that of a packed record is built here.
    pub fn into_body(self) -> Body {
        match self.body {
            ScannedBody::Whole(body) => body,
            ScannedBody::Packed(record) => record.into_body(),
        }
    }
}

impl std::fmt::Debug for Scanned<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanned")
            .field("source", &self.source)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Decodes the encoded records of a batch one after the other, and passes each to `take`; validates all of them. Returns the
/// size of the records, those of a packed one counted each.
///
/// # Errors
/// As for [`decode`].
pub fn scan(header: &Header, records: &[u8], take: impl FnMut(Scanned<'_>)) -> Result<usize, DecodeError> {
    let (found, bytes) = walk(records, UNPACKED_BYTES_MAX, take)?;
    counted(header, found)?;
    Ok(bytes)
}

/// Source and position of a record.
pub type RecordPlace = (u32, Position);

/// Decodes a decompressed batch once to validate it; returns its header, source and position of each record, and the size of
/// the batch, packed records counted each.
///
/// # Errors
/// As for [`decode`].
pub fn check(plain: &[u8]) -> Result<(Header, Vec<RecordPlace>, usize), DecodeError> {
    let (header, records) = decode_header(plain)?;
    let mut out = Vec::with_capacity((header.records as usize).min(records.len()).min(RECORDS_MAX));
    let bytes = scan(&header, records, |record| out.push((record.source, record.position)))?;
    Ok((header, out, plain.len() - records.len() + bytes))
}

fn counted(header: &Header, found: usize) -> Result<(), DecodeError> {
    if found == header.records as usize {
        return Ok(());
    }
    Err(DecodeError::Count { expected: header.records, found })
}

/// Passes each record to `take`. Packed ones may have `limit` bytes, decoded. Returns the number of the records, and their size,
/// decoded.
fn walk(records: &[u8], limit: usize, mut take: impl FnMut(Scanned<'_>)) -> Result<(usize, usize), DecodeError> {
    let (mut rest, mut found, mut bytes, mut room) = (records, 0, 0, limit);
    while !rest.is_empty() {
        let behind = if let Some((packing, behind)) = Packing::of(rest) {
            let records = packing.open(room).map_err(|message| unpack_error(found, message))?;
            // A record may state any number.
            if records.number() > (RECORDS_MAX - found) as u64 {
                return Err(DecodeError::Many);
            }
            for record in records {
                let record = record.map_err(|message| unpack_error(found, message))?;
                bytes += record.plain_bytes();
                room = room.saturating_sub(record.plain_bytes());
                let Packing { source, observed, .. } = packing;
                take(Scanned { source, observed, position: record.position(), body: ScannedBody::Packed(record) });
                found += 1;
            }
            behind
        } else {
            let (Record { source, observed, position, body }, behind) =
                decode_record(rest).map_err(|message| DecodeError::Record { index: found, message })?;
            if found == RECORDS_MAX {
                return Err(DecodeError::Many);
            }
            bytes += rest.len() - behind.len();
            take(Scanned { source, observed, position, body: ScannedBody::Whole(body) });
            found += 1;
            behind
        };
        rest = behind;
    }
    Ok((found, bytes))
}

/// Decodes a record that is not packed; also returns the remaining bytes.
fn decode_record(bytes: &[u8]) -> Result<(Record, &[u8]), String> {
    let mut known = rmp_serde::Deserializer::new(io::Cursor::new(bytes));
    if let Ok(record) = Record::deserialize(&mut known) {
        return Ok((record, behind(bytes, known.position()).1));
    }
    // The kind is unknown: decode the envelope, and keep the whole record.
    let (envelope, whole, rest) = envelope(bytes)?;
    let body = Body::Unknown(crate::body::Unknown { raw: whole.to_vec() });
    Ok((Record { source: envelope.s, observed: envelope.t, position: envelope.p, body }, rest))
}

fn envelope(bytes: &[u8]) -> Result<(Envelope, &[u8], &[u8]), String> {
    let mut reader = rmp_serde::Deserializer::new(io::Cursor::new(bytes));
    let envelope = Envelope::deserialize(&mut reader).map_err(|err| err.to_string())?;
    let (whole, rest) = behind(bytes, reader.position());
    Ok((envelope, whole, rest))
}

/// An encoded record, packed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// Index into [`Header::sources`].
    pub source: u32,
    /// Number of records.
    pub count: u32,
    /// End of the item; it starts at the end of the previous one.
    pub end: usize,
}

/// Lists the encoded records without decoding their bodies.
///
/// # Errors
/// [`DecodeError::Record`].
pub fn outline(records: &[u8]) -> Result<Vec<Outline>, DecodeError> {
    let (mut out, mut rest): (Vec<Outline>, _) = (Vec::new(), records);
    while !rest.is_empty() {
        let index = out.len();
        let one = || -> Result<(u32, u64, &[u8]), String> {
            if let Some((packing, rest)) = Packing::of(rest) {
                return Ok((packing.source, packing.open(usize::MAX)?.number(), rest));
            }
            envelope(rest).map(|(envelope, _, rest)| (envelope.s, 1, rest))
        };
        let (source, count, behind) = one().map_err(|message| DecodeError::Record { index, message })?;
        rest = behind;
        out.push(Outline { source, count: u32::try_from(count).unwrap_or(u32::MAX), end: records.len() - rest.len() });
    }
    Ok(out)
}

/// Converts packed records into one record each.
///
/// # Errors
/// [`DecodeError::Record`].
pub fn unpack(records: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (mut out, mut start, mut room) = (Vec::with_capacity(records.len()), 0, UNPACKED_BYTES_MAX);
    for (index, item) in outline(records)?.into_iter().enumerate() {
        let encoded = &records[start..item.end];
        start = item.end;
        let Some((packing, _)) = Packing::of(encoded) else {
            out.extend_from_slice(encoded);
            continue;
        };
        let wrong = |message| unpack_error(index, message);
        for record in packing.open(room).map_err(wrong)? {
            let record = record.map_err(wrong)?;
            room = room.saturating_sub(record.plain_bytes());
            let (position, mut body) = (record.position(), Vec::new());
            append_body(&record.into_body(), &mut body);
            append_record(packing.source, packing.observed, position, &body, &mut out);
        }
    }
    Ok(out)
}

/// Encoded records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The records.
    pub bytes: Vec<u8>,
    /// Their number.
    pub count: u32,
    /// Their size, decoded.
    pub plain: usize,
}

/// Splits encoded records into two parts of about equal size; absent for a single record.
///
/// # Errors
/// [`DecodeError::Record`].
pub fn halve(records: &[u8]) -> Result<Option<[Encoded; 2]>, DecodeError> {
    let outline = outline(records)?;
    if outline.len() > 1 {
        let middle = outline.iter().position(|item| item.end >= records.len() / 2).unwrap_or(0);
        let (first, second) = outline.split_at((middle + 1).min(outline.len() - 1));
        let (one, other) = records.split_at(first[first.len() - 1].end);
        let part = |part: &[Outline], bytes: &[u8]| {
            let count = part.iter().fold(0_u32, |sum, item| sum.saturating_add(item.count));
            Ok(Encoded { bytes: bytes.to_vec(), count, plain: walk(bytes, usize::MAX, |_| {})?.1 })
        };
        return Ok(Some([part(first, one)?, part(second, other)?]));
    }
    let Some((packing, _)) = Packing::of(records) else { return Ok(None) };
    let halves = packing.halve().map_err(|message| unpack_error(0, message))?;
    Ok(halves.map(|halves| {
        halves.map(|packed| {
            let mut bytes = Vec::with_capacity(packed.body.len() + 64);
            append_record(packing.source, packing.observed, packed.position, &packed.body, &mut bytes);
            Encoded { bytes, count: packed.count, plain: packed.plain }
        })
    }))
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
