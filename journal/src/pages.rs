//! Reading by pages, so that neighbouring objects cost one system call.

use std::io;

/// A file that is read at offsets.
pub trait ReadAt {
    /// Reads up to `buffer.len()` bytes at an offset, as pread(2) does: fewer at the end of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Size in bytes.
    ///
    /// # Errors
    /// The file cannot be examined.
    fn size(&self) -> io::Result<u64>;
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.metadata().map(|meta| meta.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Fills a buffer from an offset; fewer bytes at the end of the file.
pub(crate) fn read_full(source: &impl ReadAt, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(length)
}

/// Size of a page in bytes.
const PAGE_BYTES: u64 = 16 << 10;
/// Maximum number of pages held.
const PAGES_MAX: usize = 16;

/// A page of a file; shorter at the end of the file.
struct Page {
    number: u64,
    bytes: Vec<u8>,
    used: u64,
}

/// The pages read last.
#[derive(Default)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    clock: u64,
}

impl Pages {
    /// Forgets all pages: the file may have changed.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
    }

    /// Reads exactly `out.len()` bytes at an offset.
    pub(crate) fn read(&mut self, source: &impl ReadAt, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut at, mut filled) = (offset, 0);
        while filled < out.len() {
            let page = self.page(source, at / PAGE_BYTES)?;
            let rest = page.get((at % PAGE_BYTES) as usize..).unwrap_or_default();
            if rest.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let length = rest.len().min(out.len() - filled);
            out[filled..filled + length].copy_from_slice(&rest[..length]);
            filled += length;
            at += length as u64;
        }
        Ok(())
    }

    fn page(&mut self, source: &impl ReadAt, number: u64) -> io::Result<&[u8]> {
        self.clock += 1;
        let index = match self.pages.iter().position(|page| page.number == number) {
            Some(index) => index,
            None => {
                let mut bytes = if self.pages.len() < PAGES_MAX {
                    vec![0; PAGE_BYTES as usize]
                } else {
                    let oldest = (0..self.pages.len()).min_by_key(|index| self.pages[*index].used).unwrap_or(0);
                    let mut bytes = self.pages.swap_remove(oldest).bytes;
                    bytes.resize(PAGE_BYTES as usize, 0);
                    bytes
                };
                let length = read_full(source, number * PAGE_BYTES, &mut bytes)?;
                bytes.truncate(length);
                self.pages.push(Page { number, bytes, used: 0 });
                self.pages.len() - 1
            }
        };
        self.pages[index].used = self.clock;
        Ok(&self.pages[index].bytes)
    }
}
