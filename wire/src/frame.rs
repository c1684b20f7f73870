//! A frame: a self-describing sealed batch, as stored in the queue and in the landing store.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 4 | magic `VDTF` |
//! | 4 | 2 | frame version, little-endian as all numbers, 1 |
//! | 6 | 1 | lane: 0 records, 1 blobs |
//! | 7 | 1 | compression: 0 zstd, 1 gzip |
//! | 8 | 16 | organization |
//! | 24 | 16 | agent |
//! | 40 | 8 | epoch |
//! | 48 | 8 | sequence |
//! | 56 | 8 | sealed, nanoseconds UTC |
//! | 64 | 4 | number of records |
//! | 68 | 4 | length of the sealed bytes |
//! | 72 | 32 | SHA-256 of the sealed bytes |
//! | 104 | 8 | the first 8 bytes of SHA-256 over bytes 0 to 103 |
//! | 112 | … | the sealed bytes |
//!
//! The digests detect every flipped bit. A scan for the magic finds the frames of a damaged file.

pub use crate::digest::sha256;

use crate::{AgentId, BatchKey, Compression, Epoch, LaneName, OrganizationId};

/// Length of the frame's head in bytes.
pub const HEAD_BYTES: usize = 112;
/// First bytes of a frame.
pub const MAGIC: &[u8; 4] = b"VDTF";
const VERSION: u16 = 1;

/// The head of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHead {
    /// The batch's key.
    pub key: BatchKey,
    /// Compression of the sealed bytes.
    pub compression: Compression,
    /// When it was sealed, nanoseconds UTC.
    pub sealed: i64,
    /// Number of records.
    pub records: u32,
    /// SHA-256 of the sealed bytes.
    pub digest: [u8; 32],
}

/// Why bytes are not an intact frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a frame has.
    #[error("the frame is cut short: {found} of {expected} bytes")]
    Short {
        /// Actual number of bytes.
        found: usize,
        /// Expected number of bytes.
        expected: usize,
    },
    /// No magic, or a version or code unknown to this build.
    #[error("these bytes are not a frame of a known version")]
    NotAFrame,
    /// The digest of the head does not match.
    #[error("the frame's head is damaged")]
    DamagedHead,
    /// The digest of the sealed bytes does not match.
    #[error("the sealed bytes of the frame are damaged")]
    DamagedBody,
}

/// Builds a frame from a head and sealed bytes.
///
/// # Panics
/// Never below 4 GiB, which the batcher's limits ensure.
pub fn build(head: &FrameHead, sealed: &[u8]) -> Vec<u8> {
    [&head_bytes(head, sealed.len())[..], sealed].concat()
}

/// Encodes the head for a number of sealed bytes.
///
/// # Panics
/// Never below 4 GiB, which the batcher's limits ensure.
pub fn head_bytes(head: &FrameHead, sealed_bytes: usize) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(sealed_bytes).expect("batches are far below 4 GiB");
    let mut out = Vec::with_capacity(HEAD_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(head.key.lane.number());
    out.push(match head.compression {
        Compression::Zstd => 0,
        Compression::Gzip => 1,
    });
    out.extend_from_slice(head.key.organization.0.as_bytes());
    out.extend_from_slice(&head.key.agent.0);
    out.extend_from_slice(&head.key.epoch.0.to_le_bytes());
    out.extend_from_slice(&head.key.seq.to_le_bytes());
    out.extend_from_slice(&head.sealed.to_le_bytes());
    out.extend_from_slice(&head.records.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&head.digest);
    let check = sha256(&out);
    out.extend_from_slice(&check[..8]);
    out.try_into().expect("the fields are as long as the head")
}

/// Splits a frame into head and sealed bytes, and verifies both digests. Ignores bytes after the frame.
///
/// # Errors
/// Any [`FrameError`].
pub fn parse(bytes: &[u8]) -> Result<(FrameHead, &[u8]), FrameError> {
    let (head, length) = parse_head(bytes)?;
    let sealed = bytes
        .get(HEAD_BYTES..HEAD_BYTES + length)
        .ok_or(FrameError::Short { found: bytes.len(), expected: HEAD_BYTES + length })?;
    if sha256(sealed) != head.digest {
        return Err(FrameError::DamagedBody);
    }
    Ok((head, sealed))
}

/// Parses and verifies the head; also returns the length of the sealed bytes.
///
/// # Errors
/// Any [`FrameError`] except [`FrameError::DamagedBody`].
pub fn parse_head(bytes: &[u8]) -> Result<(FrameHead, usize), FrameError> {
    let head = bytes.get(..HEAD_BYTES).ok_or(FrameError::Short { found: bytes.len(), expected: HEAD_BYTES })?;
    if &head[..4] != MAGIC || head[4..6] != VERSION.to_le_bytes() {
        return Err(FrameError::NotAFrame);
    }
    if sha256(&head[..104])[..8] != head[104..112] {
        return Err(FrameError::DamagedHead);
    }
    let lane = LaneName::from_number(head[6]).ok_or(FrameError::NotAFrame)?;
    let compression = match head[7] {
        0 => Compression::Zstd,
        1 => Compression::Gzip,
        _ => return Err(FrameError::NotAFrame),
    };
    let key = BatchKey {
        organization: OrganizationId(uuid::Uuid::from_bytes(array(head, 8))),
        agent: AgentId(array(head, 24)),
        lane,
        epoch: Epoch(u64::from_le_bytes(array(head, 40))),
        seq: u64::from_le_bytes(array(head, 48)),
    };
    let parsed = FrameHead {
        key,
        compression,
        sealed: i64::from_le_bytes(array(head, 56)),
        records: u32::from_le_bytes(array(head, 64)),
        digest: array(head, 72),
    };
    Ok((parsed, u32::from_le_bytes(array(head, 68)) as usize))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the head's length was checked")
}
