//! Checksums of table files, and a file system that verifies them at each read.
//!
//! The Parquet reader verifies no checksums, so a flipped bit would give a wrong answer. Beside each file `name` of a table is
//! `.name.sum`: the length of the file and a CRC-32 (IEEE 802.3) of each of its blocks.

use datafusion::object_store::{
    self, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, local::LocalFileSystem,
    path::Path as Location,
};
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Block size of a checksum.
const BLOCK_BYTES: u64 = 64 << 10;
/// Magic of a checksum file.
const MAGIC: &[u8; 8] = b"vsums 1\n";

/// Checksums of a file.
#[derive(Debug, PartialEq, Eq)]
struct Sums {
    length: u64,
    blocks: Vec<u32>,
}

/// `.name.sum` beside `name`.
fn checksum_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.sum"))
}

fn damaged(path: &Path, why: &str) -> io::Error {
    let path = path.display();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{path} is damaged ({why}); `vedette-workspace doctor --rebuild` rebuilds the tables from landed batches"
        ),
    )
}

impl Sums {
    fn of(file: &mut File) -> io::Result<Self> {
        let (mut length, mut blocks, mut block) = (0, Vec::new(), Vec::new());
        loop {
            block.clear();
            let got = Read::by_ref(file).take(BLOCK_BYTES).read_to_end(&mut block)?;
            if got == 0 {
                return Ok(Self { length, blocks });
            }
            length += got as u64;
            blocks.push(crc32fast::hash(&block));
        }
    }

    /// Magic, length, checksums, all little-endian, and a checksum of these.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &self.length.to_le_bytes()].concat();
        bytes.extend(self.blocks.iter().flat_map(|block| block.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (length, blocks) = body.strip_prefix(MAGIC)?.split_first_chunk()?;
        let (blocks, rest) = blocks.as_chunks();
        let sums = Self {
            length: u64::from_le_bytes(*length),
            blocks: blocks.iter().map(|block| u32::from_le_bytes(*block)).collect(),
        };
        (rest.is_empty() && sums.length.div_ceil(BLOCK_BYTES) == sums.blocks.len() as u64).then_some(sums)
    }

    /// Reads the checksums of a file; absent for a file of an older release.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let checksums = checksum_path(path);
        match std::fs::read(&checksums) {
            Ok(bytes) => Self::decode(&bytes).map(Some).ok_or_else(|| damaged(&checksums, "its checksum is wrong")),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Reads and verifies a range.
    fn verified(&self, file: &File, path: &Path, range: &Range<u64>) -> io::Result<Vec<u8>> {
        if file.metadata()?.len() != self.length {
            return Err(damaged(path, "it has another length than when it was written"));
        }
        let from = range.start / BLOCK_BYTES * BLOCK_BYTES;
        let to = range.end.next_multiple_of(BLOCK_BYTES).min(self.length);
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, from)?;
        let first = (from / BLOCK_BYTES) as usize;
        for (at, block) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
            if self.blocks.get(first + at) != Some(&crc32fast::hash(block)) {
                let offset = from + at as u64 * BLOCK_BYTES;
                return Err(damaged(path, &format!("the block at {offset} is not what was written")));
            }
        }
        bytes.truncate((range.end - from) as usize);
        drop(bytes.drain(..(range.start - from) as usize));
        Ok(bytes)
    }
}

/// Writes the checksums of a file, and makes both durable. Keeps existing checksums, which are of the original content.
///
/// # Errors
/// I/O errors.
pub(crate) fn write(path: &Path) -> io::Result<()> {
    if checksum_path(path).exists() {
        return Ok(());
    }
    let mut file = File::open(path)?;
    let sums = Sums::of(&mut file)?;
    file.sync_all()?;
    // Atomic, since others read meanwhile, and the disk may be full.
    let (whole, part) = (checksum_path(path), checksum_path(path).with_extension("part"));
    let mut file = File::create(&part)?;
    file.write_all(&sums.encode())?;
    file.sync_all()?;
    std::fs::rename(part, whole)
}

/// Verifies a whole file; false if it has no checksums.
///
/// # Errors
/// I/O errors, or damage.
pub(crate) fn verify(path: &Path) -> io::Result<bool> {
    let Some(sums) = Sums::read(path)? else { return Ok(false) };
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        let to = sums.length.min(at + 16 * BLOCK_BYTES);
        sums.verified(&file, path, &(at..to))?;
        if to == sums.length {
            return Ok(true);
        }
        at = to;
    }
}

/// The local file system; verifies files with checksums when they are read.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    files: LocalFileSystem,
    known: Mutex<HashMap<PathBuf, Arc<Sums>>>,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "verified {}", self.files)
    }
}

fn generic(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "tables", source: Box::new(source) }
}

impl Verified {
    fn sums(&self, path: &Path) -> io::Result<Option<Arc<Sums>>> {
        let mut known = self.known.lock();
        if let Some(sums) = known.get(path) {
            return Ok(Some(Arc::clone(sums)));
        }
        // A file without checksums may get some later.
        let Some(sums) = Sums::read(path)?.map(Arc::new) else { return Ok(None) };
        known.insert(path.to_owned(), Arc::clone(&sums));
        Ok(Some(sums))
    }
}

#[async_trait::async_trait]
impl ObjectStore for Verified {
    async fn put_opts(
        &self,
        location: &Location,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.files.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Location,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Location, options: GetOptions) -> object_store::Result<GetResult> {
        let head = options.head;
        let mut found = self.files.get_opts(location, options).await?;
        let GetResultPayload::File(file, path) = &found.payload else { return Ok(found) };
        if head {
            return Ok(found);
        }
        let Some(sums) = self.sums(path).map_err(generic)? else { return Ok(found) };
        let (file, path, range) = (file.try_clone().map_err(generic)?, path.clone(), found.range.clone());
        let read = tokio::task::spawn_blocking(move || sums.verified(&file, &path, &range));
        let bytes = read.await.map_err(|err| generic(io::Error::other(err)))?.map_err(generic)?;
        found.payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes.into()) }).boxed());
        Ok(found)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Location>>,
    ) -> BoxStream<'static, object_store::Result<Location>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Location>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Location>,
        offset: &Location,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Location>) -> object_store::Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Location, to: &Location, options: CopyOptions) -> object_store::Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Location, to: &Location, options: RenameOptions) -> object_store::Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

    use super::*;

    #[test]
    fn each_flipped_bit_and_each_length_is_found() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES * 2 + 17] {
            let whole: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            std::fs::write(&path, &whole).expect("writes");
            assert!(!verify(&path).expect("reads") || length > 0);
            write(&path).expect("writes");
            assert!(verify(&path).expect("is whole"));
            for at in [0, length / 2, length.saturating_sub(1)].into_iter().filter(|at| *at < length) {
                let mut flipped = whole.clone();
                flipped[at as usize] ^= 4;
                std::fs::write(&path, flipped).expect("writes");
                assert!(verify(&path).expect_err("is found").to_string().contains("doctor --rebuild"));
            }
            std::fs::write(&path, [&whole[..], b"x"].concat()).expect("writes");
            write(&path).expect("leaves what is there");
            verify(&path).expect_err("is longer");
            drop(std::fs::remove_file(checksum_path(&path)));
        }
    }

    #[test]
    fn a_range_is_what_lies_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let whole: Vec<u8> = (0..BLOCK_BYTES * 3 + 5).map(|at| (at % 253) as u8).collect();
        std::fs::write(&path, &whole).expect("writes");
        write(&path).expect("writes");
        let (sums, file) = (Sums::read(&path).expect("reads").expect("is there"), File::open(&path).expect("opens"));
        for (from, to) in
            [(0, 1), (BLOCK_BYTES - 1, BLOCK_BYTES + 1), (70_000, 190_000), (BLOCK_BYTES * 3, BLOCK_BYTES * 3 + 5)]
        {
            let read = sums.verified(&file, &path, &(from..to)).expect("is whole");
            assert_eq!(read, whole[from as usize..to as usize]);
        }
        std::fs::write(checksum_path(&path), [MAGIC, &[0; 9][..]].concat()).expect("writes");
        Sums::read(&path).expect_err("the checksums themselves are damaged");
    }
}
