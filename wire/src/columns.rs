//! Numbers in columns, of which packed records consist (docs/adr/0004-packed-lines.md).
//!
//! Numbers are LEB128 (DWARF 5 §7.6), signed ones ZigZag-encoded first. A column is twice its length in bytes and its numbers; or, if
//! all its numbers are equal, 1 and the number.

use crate::Position;

/// An encoded body of packed records.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) body: Vec<u8>,
    pub(crate) position: Position,
    pub(crate) count: u32,
    /// Size of the records, decoded.
    pub(crate) plain: usize,
}

/// Why packed records cannot be unpacked.
pub(crate) type UnpackError = &'static str;

pub(crate) const SHORT: UnpackError = "packed records end too early";

/// Length of the columns at the end of a body, and of the body in MessagePack.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Begins a body: its head up to MessagePack's length, and room for that.
pub(crate) fn begin(head: &[u8], body: &mut Vec<u8>) {
    body.extend_from_slice(head);
    body.extend_from_slice(&[0; LENGTH_BYTES]);
}

/// Completes a body: appends the length of its columns, which begin at `columns_at`, and fills in its own.
///
/// # Panics
/// If the body has 4 GiB; a chunk is far smaller.
pub(crate) fn finish(head: &[u8], columns_at: usize, body: &mut Vec<u8>) {
    let columns = u32::try_from(body.len() - columns_at).expect("columns are smaller than what a chunk holds");
    body.extend_from_slice(&columns.to_le_bytes());
    let start = head.len() + LENGTH_BYTES;
    let length = u32::try_from(body.len() - start).expect("a chunk is far below 4 GiB");
    body[head.len()..start].copy_from_slice(&length.to_be_bytes());
    if body.len() < body.capacity() / 2 {
        // The intake counts a body by its capacity.
        body.shrink_to_fit();
    }
}

/// What stands before the columns of a body, and the columns.
pub(crate) fn open(packed: &[u8]) -> Result<(&[u8], &[u8]), UnpackError> {
    let (rest, length) = packed.split_last_chunk::<LENGTH_BYTES>().ok_or(SHORT)?;
    let before = rest.len().checked_sub(u32::from_le_bytes(*length) as usize).ok_or(SHORT)?;
    Ok(rest.split_at(before))
}

/// A sequence of numbers, or one number repeated.
pub(crate) struct Numbers<'a> {
    rest: &'a [u8],
    same: Option<u64>,
}

impl<'a> Numbers<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, same: None }
    }

    /// Whether all numbers were read, as far as they have bytes.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn next(&mut self) -> Result<u64, UnpackError> {
        if let Some(number) = self.same {
            return Ok(number);
        }
        if let [first, rest @ ..] = self.rest
            && *first < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(*first));
        }
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or(SHORT)?;
            self.rest = rest;
            number |= u64::from(first & 0x7f) << shift;
            if *first < 0x80 {
                return Ok(number);
            }
        }
        Err("a number of packed records is too long")
    }

    pub(crate) fn column(&mut self) -> Result<Self, UnpackError> {
        let length = self.next()?;
        if length % 2 == 1 {
            return Ok(Self { rest: &[], same: Some(self.next()?) });
        }
        let length = usize::try_from(length / 2).map_err(|_| SHORT)?;
        let (rest, behind) = self.rest.split_at_checked(length).ok_or(SHORT)?;
        self.rest = behind;
        Ok(Self::new(rest))
    }
}

/// Appends a column, and empties it.
pub(crate) fn column(bytes: &mut Vec<u8>, into: &mut Vec<u8>) {
    match bytes.first() {
        // All numbers are equal and fit into one byte.
        Some(first) if *first < 0x80 && bytes.iter().all(|byte| byte == first) => {
            into.extend([1, *first]);
            bytes.clear();
        }
        _ => {
            put(2 * bytes.len() as u64, into);
            into.append(bytes);
        }
    }
}

/// Appends a number.
pub(crate) fn put(mut number: u64, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

pub(crate) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

pub(crate) fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}
