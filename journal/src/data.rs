//! Fields: data objects, plain or compressed.

use crate::{format::incompatible, pages::ReadAt};
use std::{
    cell::Cell,
    io::{self, BufReader, Read},
};

/// Maximum length of a value in bytes; the rest is cut off. journald itself allows 768 MiB.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Maximum length of a name in bytes; journald allows 64.
const NAME_BYTES_MAX: usize = 1 << 10;
/// Maximum length of a payload that is decoded.
const PAYLOAD_BYTES_MAX: usize = NAME_BYTES_MAX + 1 + VALUE_BYTES_MAX;
/// Maximum memory of a decompressor of zstd: the window of journald's level is 2 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Maximum memory of a decompressor of xz in KiB: that of liblzma's default preset is 9 MiB.
const XZ_MEMORY_KIB_MAX: u32 = 32 << 10;
/// Maximum size of a payload in lz4, whose blocks are decoded whole.
const LZ4_BYTES_MAX: u64 = 8 << 20;

/// A field of an entry: `NAME=value`.
#[derive(Clone)]
pub struct Field {
    payload: Box<[u8]>,
    name_bytes: usize,
    is_cut: bool,
    tag: Cell<Option<Tag>>,
}

/// What a caller records of a field that several entries share.
pub type Tag = (u64, usize);

impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        (&self.payload, self.name_bytes, self.is_cut) == (&other.payload, other.name_bytes, other.is_cut)
    }
}

impl Eq for Field {}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name().escape_ascii(), self.value().escape_ascii())
    }
}

impl Field {
    /// Name in upper case; one that journald sets itself begins with an underscore.
    #[inline]
    pub fn name(&self) -> &[u8] {
        &self.payload[..self.name_bytes]
    }

    /// Value: any bytes, at most [`VALUE_BYTES_MAX`].
    #[inline]
    pub fn value(&self) -> &[u8] {
        &self.payload[self.name_bytes + 1..]
    }

    /// The caller's tag; absent from a field that was read anew.
    #[inline]
    pub fn tag(&self) -> Option<Tag> {
        self.tag.get()
    }

    /// Tags the field for all entries that share it. A field has one tag, so only one caller may tag the fields of a reader.
    #[inline]
    pub fn set_tag(&self, tag: Tag) {
        self.tag.set(Some(tag));
    }

    /// Whether the value is longer than [`Field::value`].
    #[inline]
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Size in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// A field from a payload, which is cut if it is longer than is kept.
    fn of(mut payload: Vec<u8>, mut is_cut: bool) -> Option<Self> {
        let name_bytes = payload.iter().take(NAME_BYTES_MAX + 1).position(|byte| *byte == b'=')?;
        if payload.len() > name_bytes + 1 + VALUE_BYTES_MAX {
            payload.truncate(name_bytes + 1 + VALUE_BYTES_MAX);
            is_cut = true;
        }
        let payload = payload.into_boxed_slice();
        (name_bytes > 0).then_some(Self { payload, name_bytes, is_cut, tag: Cell::new(None) })
    }
}

/// Codec of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Plain,
    Xz,
    Lz4,
    Zstd,
}

impl Codec {
    /// The codec by the flags of an object; absent if there are several, or unknown ones.
    fn of(flags: u8) -> Option<Self> {
        Some(match u32::from(flags) {
            0 => Self::Plain,
            incompatible::XZ => Self::Xz,
            incompatible::LZ4 => Self::Lz4,
            // In objects the flag of zstd is 4, which files use for something else.
            4 => Self::Zstd,
            _ => return None,
        })
    }
}

/// Reads part of a file in order.
struct Part<'a, S> {
    source: &'a S,
    at: u64,
    end: u64,
}

impl<S: ReadAt> Read for Part<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let read = self.source.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Decodes a payload that is too large for the pages, or compressed.
///
/// # Errors
/// The payload cannot be decoded, or is not a field.
pub(crate) fn decode(source: &impl ReadAt, (offset, length): (u64, u64), flags: u8) -> io::Result<Field> {
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let part = BufReader::new(Part { source, at: offset, end: offset.saturating_add(length) });
    let codec = Codec::of(flags).ok_or_else(|| bad("its compression is unknown"))?;
    let limit = PAYLOAD_BYTES_MAX as u64;
    let mut payload = Vec::new();
    match codec {
        Codec::Plain => part.take(limit + 1).read_to_end(&mut payload)?,
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(part)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            decoder.take(limit + 1).read_to_end(&mut payload)?
        }
        Codec::Xz => lzma_rust2::XzReader::new_mem_limit(part, false, XZ_MEMORY_KIB_MAX)
            .take(limit + 1)
            .read_to_end(&mut payload)?,
        Codec::Lz4 => {
            payload = lz4(part, length)?;
            payload.len()
        }
    };
    let is_cut = payload.len() as u64 > limit;
    payload.truncate(PAYLOAD_BYTES_MAX);
    Field::of(payload, is_cut).ok_or_else(|| bad("it is not a field"))
}

/// Decodes a block of lz4 behind its decoded size in eight bytes.
fn lz4(mut part: impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut size = [0; 8];
    part.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    if size > LZ4_BYTES_MAX || length > LZ4_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its block of lz4 is too large"));
    }
    let mut block = Vec::new();
    part.read_to_end(&mut block)?;
    lz4_flex::block::decompress(&block, size as usize).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}

/// A field from a plain payload in memory.
pub(crate) fn plain(payload: Vec<u8>) -> Option<Field> {
    Field::of(payload, false)
}

/// Maximum length of a payload that [`plain`] takes.
pub(crate) const PLAIN_BYTES_MAX: u64 = 16 << 10;
