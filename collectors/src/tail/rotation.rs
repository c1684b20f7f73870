//! What rotation leaves beside a file: copies of it (logrotate's `copytruncate`), and generations that came and went
//! while nobody looked.
//!
//! ```text
//! app.log    →    app.log.1, app.log-20261125, app-20261125.log
//! ```

use super::Cursor;
use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Endings of what rotation has compressed: not lines.
const COMPRESSED: [&str; 6] = ["gz", "bz2", "xz", "zst", "lz4", "Z"];
/// Bytes by which a copy is recognised, at its beginning and at its end.
const COMPARED_BYTES: u64 = 64;

/// The shortest date that follows a name without a separator: `%y%m%d`.
const DATE_DIGITS: usize = 6;

/// The kernel stamps files with the time of its last tick, up to 10 ms ago at 100 ticks a second.
pub(super) const GRANULARITY_NS: i64 = 10_000_000;

/// Whether a file is compressed, by its name.
pub(super) fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| COMPRESSED.iter().any(|known| extension == *known))
}

/// Whether a name may be what rotation made of another: it begins with the other's name up to its last dot, and goes on
/// with a separator or a date. `app10.log` is not of `app1.log`.
pub(super) fn may_be_of(path: &Path, original: &Path) -> bool {
    let (Some(name), Some(stem)) = (path.file_name(), original.file_stem()) else { return false };
    let rest = name.as_encoded_bytes().strip_prefix(stem.as_encoded_bytes());
    let is_of = |rest: &[u8]| {
        !rest.first().is_some_and(u8::is_ascii_alphanumeric)
            || rest.get(..DATE_DIGITS).is_some_and(|date| date.iter().all(u8::is_ascii_digit))
    };
    path != original && path.parent() == original.parent() && rest.is_some_and(is_of) && !is_compressed(path)
}

/// Files beside another that rotation may have made of it.
pub(super) fn siblings(original: &Path) -> Vec<(PathBuf, Metadata)> {
    let entries = original.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| may_be_of(path, original))
        .filter_map(|path| {
            let meta = std::fs::metadata(&path).ok().filter(Metadata::is_file)?;
            Some((path, meta))
        })
        .collect()
}

/// Device and inode.
pub(super) fn key(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// When it was last written, nanoseconds UTC.
pub(super) fn modified(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

fn bytes_at(file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Whether the bytes before a cursor stand at the same place in another file: a copy that goes on where it stood.
pub(super) fn continues(path: &Path, cursor: &Cursor) -> bool {
    let length = cursor.before.len() as u64;
    let found = File::open(path).ok().and_then(|file| bytes_at(&file, cursor.offset.checked_sub(length)?, length));
    length > 0 && found.as_ref() == Some(&cursor.before)
}

/// Whether a file holds the first bytes of another and nothing else, as far as its beginning and its end tell: a copy,
/// or one that is being made, which is empty at first.
pub(super) fn is_copy(path: &Path, original: &File) -> bool {
    let Ok(copy) = File::open(path) else { return false };
    let (Ok(meta), Ok(there)) = (copy.metadata(), original.metadata()) else { return false };
    if meta.len() > there.len() {
        return false;
    }
    let length = meta.len().min(COMPARED_BYTES);
    [0, meta.len() - length].iter().all(|at| {
        let ours = bytes_at(&copy, *at, length);
        ours.is_some() && ours == bytes_at(original, *at, length)
    })
}
