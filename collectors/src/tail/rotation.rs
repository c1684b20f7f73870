//! Recognises rotated files: copies (logrotate's `copytruncate`), unseen generations, and archives.
//!
//! ```text
//! app.log    →    app.log.1, app.log-20261125, app-20261125.log, app.log.2.gz, archive/app.log.1
//! ```

use super::{Cursor, DeviceInode, unpacked};
use crate::root::Root;
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

/// Bytes to compare at the start and the end of a copy.
const COMPARED_BYTES: u64 = 64;

/// Minimum number of digits of a date without a separator: `%y%m%d`.
const DATE_DIGITS: usize = 6;

/// Maximum number of entries of a directory to look at.
const ENTRIES_MAX: usize = 20_000;
/// Maximum number of subdirectories of a log's directory to search.
const DIRECTORIES_MAX: usize = 64;

/// Coarsest granularity of file times: the kernel takes the time of its last tick, up to 10 ms ago at 100 ticks per second.
pub(super) const GRANULARITY_NS: i64 = 10_000_000;

/// Words that mark an old file, as numbers and dates do. They follow the file's name, or come before its last dot.
const OLD_FILE_WORDS: [&[u8]; 14] = [
    b"old",
    b"bak",
    b"backup",
    b"orig",
    b"prev",
    b"previous",
    b"last",
    b"save",
    b"saved",
    b"rotated",
    b"gz",
    b"xz",
    b"zst",
    b"bz2",
];

/// Whether a name may be a rotated form of another: the name, whole or up to its last dot, with a number, a date or a word for
/// old files. `app10.log` is not a form of `app1.log`, nor `mysql-slow.log` of `mysql.log`. A name that ends in `.tmp` is
/// excluded, since the file is still being written.
fn is_rotated_name(name: &OsStr, original: &Path) -> bool {
    if name.as_bytes().ends_with(b".tmp") {
        return false;
    }
    let (Some(whole), Some(stem)) = (original.file_name(), original.file_stem()) else { return false };
    let is_rotation_suffix = |rest: &[u8]| {
        let is_date = rest.get(..DATE_DIGITS).is_some_and(|date| date.iter().all(u8::is_ascii_digit));
        let Some((first, after)) = rest.split_first() else { return false };
        let word = after.split(|byte| !byte.is_ascii_alphanumeric()).next().unwrap_or_default();
        let is_old = word.first().is_none_or(u8::is_ascii_digit)
            || OLD_FILE_WORDS.iter().any(|old| word.eq_ignore_ascii_case(old));
        is_date || !first.is_ascii_alphanumeric() && is_old
    };
    let matches = |begin: &OsStr| name.as_bytes().strip_prefix(begin.as_bytes()).is_some_and(is_rotation_suffix);
    matches(whole) || matches(stem)
}

/// Whether a path may be a rotated, uncompressed form of another in the same directory.
pub(super) fn may_be_rotated_form(path: &Path, original: &Path) -> bool {
    // A cheap prefix test comes first, since each new file is compared with every followed one.
    let (name, original_name) = (path.as_os_str().as_bytes(), original.as_os_str().as_bytes());
    let stem = &original_name[..memchr::memrchr(b'.', original_name).unwrap_or(original_name.len())];
    name.starts_with(stem)
        && path != original
        && path.parent() == original.parent()
        && path.file_name().is_some_and(|name| is_rotated_name(name, original))
        && !unpacked::is_compressed(path)
}

/// An index of files by directory and stem. It finds the files that a path may be a rotated form of, without a comparison with each.
#[derive(Default)]
pub(super) struct StemIndex(HashMap<PathBuf, Vec<DeviceInode>>);

impl StemIndex {
    /// Indexes files by path.
    pub(super) fn new<'a>(files: impl Iterator<Item = (&'a Path, DeviceInode)>) -> Self {
        let mut by_stem: HashMap<PathBuf, Vec<DeviceInode>> = HashMap::new();
        for (path, key) in files {
            by_stem.entry(path.with_file_name(path.file_stem().unwrap_or_default())).or_default().push(key);
        }
        Self(by_stem)
    }

    /// Files of the same directory whose stem is a prefix of the path's file name.
    pub(super) fn candidates_for(&self, path: &Path) -> Vec<DeviceInode> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let stems =
            (1..=name.len()).filter_map(|end| self.0.get(&path.with_file_name(OsStr::from_bytes(&name[..end]))));
        stems.flatten().copied().collect()
    }
}

/// A directory entry.
struct Entry {
    name: OsString,
    is_dir: bool,
    inode: u64,
}

/// Entries of a directory; none if it cannot be listed.
fn entries(root: &Root, dir: &Path) -> Vec<Entry> {
    let Ok((_, entries)) = root.entries(dir) else { return Vec::new() };
    entries
        .flatten()
        .take(ENTRIES_MAX)
        .map(|entry| Entry {
            name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
            is_dir: entry.file_type() == rustix::fs::FileType::Directory,
            inode: entry.ino(),
        })
        .filter(|entry| entry.name != "." && entry.name != "..")
        .collect()
}

/// Possible rotated forms of a file in a directory, compressed ones included.
fn rotated_forms(root: &Root, dir: &Path, original: &Path) -> Vec<(PathBuf, Metadata)> {
    entries(root, dir)
        .into_iter()
        .filter(|entry| is_rotated_name(&entry.name, original))
        .map(|entry| dir.join(entry.name))
        .filter(|path| path != original)
        .filter_map(|path| {
            let meta = root.log(&path).ok()?.meta().clone();
            Some((path, meta))
        })
        .collect()
}

/// Possible rotated forms of a file in its own directory, oldest first.
pub(super) fn siblings(root: &Root, original: &Path) -> Vec<(PathBuf, Metadata)> {
    let dir = original.parent().unwrap_or(Path::new("/"));
    let mut forms = rotated_forms(root, dir, original);
    forms.sort_by_key(|(_, meta)| modified(meta));
    forms
}

/// Directories that may hold old logs of a directory: itself, those below it, and those of logrotate's configuration.
pub(super) fn old_log_dirs<'a>(
    root: &Root,
    dir: &Path,
    old_dirs: impl IntoIterator<Item = &'a PathBuf>,
) -> Vec<PathBuf> {
    let below = entries(root, dir).into_iter().filter(|entry| entry.is_dir).take(DIRECTORIES_MAX);
    let mut out = vec![dir.to_owned()];
    out.extend(below.map(|entry| dir.join(entry.name)));
    // A relative `olddir` is relative to the log's directory.
    out.extend(old_dirs.into_iter().map(|old_dir| dir.join(old_dir)));
    out.dedup();
    out
}

/// Files that may hold what follows a cursor, in this order: those with its inode, those with a rotated name, archives.
pub(super) fn candidates(root: &Root, dirs: &[PathBuf], cursor: &Cursor, original: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut out = Vec::new();
    if let Ok(found) = root.log(original)
        && key(found.meta()) == cursor.key()
    {
        out.push((original.to_owned(), found.meta().clone()));
    }
    // There may be many cursors and names: only entries with the inode are examined.
    for dir in dirs {
        for entry in entries(root, dir).into_iter().filter(|entry| entry.inode == cursor.key().1) {
            let path = dir.join(entry.name);
            if path != original
                && let Ok(found) = root.log(&path)
                && key(found.meta()) == cursor.key()
            {
                out.push((path, found.meta().clone()));
            }
        }
    }
    let (mut archives, plain): (Vec<_>, Vec<_>) = dirs
        .iter()
        .flat_map(|dir| rotated_forms(root, dir, original))
        .partition(|(path, _)| unpacked::is_compressed(path));
    out.extend(plain);
    // An archive keeps the modification time of its original. Of the archives that are older than the last sighting, only the
    // newest can be the whole file; all later ones are candidates.
    archives.sort_by_key(|(_, meta)| modified(meta));
    let since = cursor.seen.saturating_sub(GRANULARITY_NS);
    let first = archives.iter().position(|(_, meta)| modified(meta) >= since).unwrap_or(archives.len());
    out.extend(archives.split_off(first));
    out.extend(archives.pop());
    out
}

/// Device and inode.
pub(super) fn key(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Modification time, nanoseconds UTC.
pub(super) fn modified(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())
}

fn bytes_at(file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Whether the file at `path` has the cursor's remembered bytes right before its offset, and so continues it.
pub(super) fn continues(root: &Root, path: &Path, cursor: &Cursor) -> bool {
    let length = cursor.before.len() as u64;
    let file = root.log(path).and_then(|found| found.read()).ok();
    let found = file.and_then(|file| bytes_at(&file, cursor.offset.checked_sub(length)?, length));
    length > 0 && found.as_ref() == Some(&cursor.before)
}

/// Whether `copy` may be a copy of `original`, perhaps an unfinished or still empty one. It is not longer, and its first and
/// last bytes are the same.
pub(super) fn may_be_copy(copy: &File, original: &File) -> bool {
    let (Ok(meta), Ok(original_meta)) = (copy.metadata(), original.metadata()) else { return false };
    if meta.len() > original_meta.len() {
        return false;
    }
    let length = meta.len().min(COMPARED_BYTES);
    [0, meta.len() - length].iter().all(|at| {
        let copied = bytes_at(copy, *at, length);
        copied.is_some() && copied == bytes_at(original, *at, length)
    })
}
