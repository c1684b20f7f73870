//! Input of a followed file: the file itself, an archive of it, or nothing while it is closed.

use super::unpacked::Unpacked;
use rustix::{fs::SeekFrom, io::Errno};
use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
};

/// Minimum number of NUL bytes, in place of a line, that count as a hole left by a truncation or a power cut.
pub(super) const ZEROS_MIN: usize = 4096;
/// NUL bytes to search before checking the end of the file.
const ZEROS_READ_MAX: usize = 1 << 20;
/// Block size of the search.
const PAGE_BYTES: usize = 64 << 10;

/// Source of a file's bytes.
#[derive(Debug)]
pub(super) enum Input {
    /// Closed to save descriptors; reopened when the file grows.
    Closed,
    Open(File),
    Unpacked(Unpacked),
}

/// What follows at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Up to this many bytes without a hole.
    Data(usize),
    /// A hole, with data from an offset on.
    Hole(u64),
    /// A hole up to the end of the file, which may still be filled.
    Nothing,
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "it is closed")
}

/// What follows NUL bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zeros {
    /// Other bytes from an offset on.
    Until(u64),
    /// Nothing yet: the end of the file, which may still be filled.
    ToTheEnd,
}

impl Input {
    /// The open file.
    pub(super) fn file(&self) -> io::Result<&File> {
        match self {
            Input::Open(file) => Ok(file),
            Input::Closed | Input::Unpacked(_) => Err(closed()),
        }
    }

    /// Reads at an offset if `last` precedes it; absent otherwise. Archives are read sequentially.
    pub(super) fn read(&mut self, last: &[u8], offset: u64, into: &mut [u8]) -> io::Result<Option<usize>> {
        let file = match self {
            Input::Closed => return Err(closed()),
            Input::Unpacked(unpacked) => return unpacked.read(into).map(Some),
            Input::Open(file) => file,
        };
        let mut seen = vec![0; last.len()];
        let mut both = [IoSliceMut::new(&mut seen), IoSliceMut::new(into)];
        let read = rustix::io::preadv(file, &mut both, offset - last.len() as u64)?;
        Ok((read >= last.len() && seen == last).then(|| read - last.len()))
    }

    /// Whether the last read ended at damaged data.
    pub(super) fn is_damaged(&self) -> bool {
        matches!(self, Input::Unpacked(unpacked) if unpacked.is_damaged())
    }

    /// What follows at an offset (lseek(2), `SEEK_HOLE` and `SEEK_DATA`), up to `most` bytes.
    pub(super) fn next(&self, offset: u64, most: usize) -> Next {
        let Input::Open(file) = self else { return Next::Data(most) };
        match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Next::Data(usize::try_from(hole - offset).map_or(most, |data| data.min(most))),
            Ok(_) => match rustix::fs::seek(file, SeekFrom::Data(offset)) {
                Ok(data) if data > offset => Next::Hole(data),
                Err(Errno::NXIO) => Next::Nothing,
                _ => Next::Data(most),
            },
            // After the end, or the file system does not support the call.
            Err(_) => Next::Data(most),
        }
    }

    /// What follows the NUL bytes at an offset. Skips holes, and stops early in a preallocated file that ends in NUL bytes.
    pub(super) fn zeros(&self, offset: u64) -> io::Result<Zeros> {
        let Input::Open(file) = self else { return Ok(Zeros::Until(offset)) };
        let (mut page, mut at, mut read) = (vec![0; PAGE_BYTES], offset, 0);
        loop {
            match self.next(at, PAGE_BYTES) {
                Next::Hole(data) => at = data,
                Next::Nothing => return Ok(Zeros::ToTheEnd),
                Next::Data(room) => {
                    let got = file.read_at(&mut page[..room], at)?;
                    let zeros = page[..got].iter().take_while(|byte| **byte == 0).count();
                    at += zeros as u64;
                    if zeros < got {
                        return Ok(Zeros::Until(at));
                    }
                    read += got;
                    let last = file.metadata()?.len().saturating_sub(ZEROS_MIN as u64).max(at);
                    let mut ends_in_zeros = || file.read_at(&mut page, last).is_ok_and(|got| is_zero(&page[..got]));
                    if got == 0 || read > ZEROS_READ_MAX && ends_in_zeros() {
                        return Ok(Zeros::ToTheEnd);
                    }
                }
            }
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
