//! Compressed rotated files, read as lines: gzip, Zstandard, xz and bzip2.
//!
//! They are read sequentially. The content determines the format, not the name. Each format has a limit of memory; a file that
//! needs more is not read.

use super::cursor::BEFORE_BYTES;
use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

/// Suffixes of compressed rotated files.
const ENDINGS: [&str; 6] = ["gz", "bz2", "xz", "zst", "lz4", "Z"];
/// Window of a Zstandard frame, as a power of two: levels up to 19 need 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Memory for an xz block in KiB: level 6, the default, needs 9 MiB.
const XZ_KIB_MAX: u32 = 20 << 10;
/// Bytes to skip between checks for a stop.
const STEP_BYTES: usize = 256 << 10;

/// Whether a file is compressed, by its name.
pub(super) fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ENDINGS.iter().any(|known| extension == *known))
}

/// A compressed file and the position in its lines.
pub(super) struct Unpacked {
    reader: Box<dyn Read + Send>,
    at: u64,
    /// The error that ends reading after what was read.
    damage: Option<io::Error>,
}

impl std::fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Unpacked {
    /// # Errors
    /// `Unsupported` if the format is unknown.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let mut magic = [0; 6];
        let length = file.read_at(&mut magic, 0)?;
        let input = BufReader::with_capacity(64 << 10, file);
        let reader: Box<dyn Read + Send> = match &magic[..length] {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut reader = zstd::stream::read::Decoder::with_buffer(input)?;
                reader.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(reader)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_KIB_MAX)),
            [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "unknown compression format")),
        };
        Ok(Self { reader, at: 0, damage: None })
    }

    /// Reads the next bytes; fewer than requested only at the end, or before damaged data.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(err) = self.damage.take() {
            return Err(err);
        }
        let mut got = 0;
        while got < into.len() {
            match self.reader.read(&mut into[got..]) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if got > 0 => {
                    self.damage = Some(err);
                    break;
                }
                Err(err) => return Err(err),
            }
        }
        self.at += got as u64;
        Ok(got)
    }

    /// Whether the last read ended at damaged data.
    pub(super) fn is_damaged(&self) -> bool {
        self.damage.is_some()
    }

    /// Skips to an offset; false if the content is shorter, or other bytes than `before` precede the offset.
    ///
    /// # Errors
    /// `Interrupted` on a stop.
    pub(super) fn skip_to(&mut self, offset: u64, before: &[u8], stopped: &dyn Fn() -> bool) -> io::Result<bool> {
        let (mut last, mut block) = (Vec::new(), vec![0; STEP_BYTES]);
        while self.at < offset {
            if stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let step = usize::try_from(offset - self.at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            let got = self.read(&mut block[..step])?;
            last.extend_from_slice(&block[got.saturating_sub(BEFORE_BYTES)..got]);
            last.drain(..last.len().saturating_sub(BEFORE_BYTES));
            if got < step {
                return self.damage.take().map_or(Ok(false), Err);
            }
        }
        Ok(last.ends_with(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(write: impl FnOnce(&mut File)) -> File {
        let mut file = tempfile::tempfile().expect("temp file");
        write(&mut file);
        io::Seek::rewind(&mut file).expect("rewinds");
        file
    }

    const TEXT: &[u8] = b"one\ntwo\nthree\n";

    #[test]
    fn each_format_gives_its_lines_and_nothing_else_is_one() {
        let xz = include_bytes!("unpacked/three-lines.xz");
        let bz2 = include_bytes!("unpacked/three-lines.bz2");
        for file in [
            packed(|file| {
                let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::default());
                gz.write_all(TEXT).expect("writes");
                gz.finish().expect("ends");
            }),
            packed(|file| zstd::stream::copy_encode(TEXT, file, 1).expect("writes")),
            packed(|file| file.write_all(xz).expect("writes")),
            packed(|file| file.write_all(bz2).expect("writes")),
        ] {
            let mut unpacked = Unpacked::open(file).expect("opens");
            assert!(unpacked.skip_to(8, b"one\ntwo\n", &|| false).expect("reads"));
            let mut rest = [0; 100];
            let got = unpacked.read(&mut rest).expect("reads");
            assert_eq!(&rest[..got], b"three\n");
        }
        let plain = packed(|file| file.write_all(TEXT).expect("writes"));
        assert_eq!(Unpacked::open(plain).expect_err("plain").kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn another_content_and_a_shorter_one_are_told_apart() {
        let open =
            || Unpacked::open(packed(|file| zstd::stream::copy_encode(TEXT, file, 1).expect("writes"))).expect("opens");
        assert!(!open().skip_to(8, b"one\nTWO\n", &|| false).expect("reads"));
        assert!(!open().skip_to(100, b"one\ntwo\n", &|| false).expect("reads"));
        assert!(open().skip_to(8, b"", &|| true).is_err(), "it stops");
    }

    #[test]
    fn a_window_that_takes_too_much_memory_is_refused() {
        let file = packed(|file| {
            let mut zst = zstd::stream::Encoder::new(file, 1).expect("makes");
            zst.window_log(27).expect("sets");
            for number in 0..300_000_u32 {
                zst.write_all(&number.to_le_bytes()).expect("writes");
            }
            zst.finish().expect("ends");
        });
        let mut unpacked = Unpacked::open(file).expect("opens");
        assert!(unpacked.read(&mut [0; 10]).is_err());
    }
}
