//! Finds files of an earlier run that are no longer under their names: renamed, copied and truncated, moved, compressed. Also
//! finds generations that came and went unseen. Counts what cannot be found.

use super::{
    Cursor, Discovery, File, Followed, LineParser, Name, State, TailContext, Tailer, logrotate,
    rotation::{self, key},
    unpacked::{self, Unpacked},
};
use crate::{CollectError, root::glob::Named};
use std::{
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};
use vedette_wire::{Chunk, Dropped, Reason};

/// Number of first bytes to compare before an archive is unpacked.
const HEAD_BYTES: usize = 64;

/// An archive that changed this recently may still be growing (st_ctime of stat(2), which nobody can set).
const SETTLED_NS: i64 = 2_000_000_000;

fn is_settled(at: &TailContext<'_>, meta: &std::fs::Metadata) -> bool {
    let changed = meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec());
    !(0..SETTLED_NS).contains(&at.context.now().saturating_sub(changed))
}

/// Target of a link; absent if the path is not a link, or does not lead to a log.
fn behind_link(at: &TailContext<'_>, path: &Path) -> Option<PathBuf> {
    at.root.log(path).ok().map(|found| found.path().to_owned()).filter(|found| found != path)
}

/// Result of a search.
enum Search {
    Found,
    /// The inode exists and holds other content.
    Replaced,
    /// A candidate is still being written, or cannot be opened yet.
    Unsettled,
    NotFound,
}

impl<P: LineParser> Tailer<P> {
    /// Searches for the files of cursors without a match.
    pub(super) fn find_orphans(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        unseen: &mut Vec<(PathBuf, i64)>,
    ) -> Result<(), CollectError> {
        for cursor in std::mem::take(&mut state.orphans).into_values() {
            let original = cursor.host_path();
            if state.scans == 1 {
                unseen.push((original.clone(), cursor.seen));
                let name = Name { key: cursor.key(), seen: cursor.seen };
                let known = state.names.entry(original.clone()).or_insert(name);
                known.seen = known.seen.max(cursor.seen);
            }
            match self.search(at, state, &cursor)? {
                Search::Found => {}
                Search::Unsettled => drop(state.orphans.insert(cursor.id(), cursor)),
                // The file system may not be mounted yet.
                Search::NotFound if state.since.elapsed() < self.patience => {
                    state.orphans.insert(cursor.id(), cursor);
                }
                Search::NotFound | Search::Replaced => self.lost(at, &cursor, "it was rotated away")?,
            }
        }
        Ok(())
    }

    /// Whether the file of a cursor continues in another directory or an archive, or may do so once that is complete.
    pub(super) fn is_archived(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        cursor: &Cursor,
    ) -> Result<bool, CollectError> {
        let search = self.search(at, state, cursor)?;
        if matches!(search, Search::Unsettled) {
            state.orphans.insert(cursor.id(), cursor.clone());
        }
        Ok(matches!(search, Search::Found | Search::Unsettled))
    }

    /// Directories to search for a cursor's file, and its original name. Rotation happens at the target of a link, as with the
    /// kubelet.
    fn places(at: &TailContext<'_>, state: &mut State, original: &Path) -> Vec<(Vec<PathBuf>, PathBuf)> {
        let old = state.old_directories.get_or_insert_with(|| logrotate::old_directories(&at.root));
        let names = std::iter::once(original.to_owned()).chain(behind_link(at, original));
        let dirs = |name: &PathBuf| rotation::old_log_dirs(&at.root, name.parent().unwrap_or(Path::new("/")), &*old);
        names.map(|name| (dirs(&name), name)).collect()
    }

    fn search(&mut self, at: &TailContext<'_>, state: &mut State, cursor: &Cursor) -> Result<Search, CollectError> {
        let original = cursor.host_path();
        let (mut searched, mut is_unsettled) = (Search::NotFound, false);
        let places = Self::places(at, state, &original);
        let candidates = places.iter().flat_map(|(dirs, name)| rotation::candidates(&at.root, dirs, cursor, name));
        for (path, meta) in candidates {
            let found_key = key(&meta);
            if state.files.contains_key(&found_key) {
                continue;
            }
            if !self.make_room(state, false) {
                is_unsettled = true;
                break;
            }
            let is_it = found_key == cursor.key();
            let resumed = if unpacked::is_compressed(&path) {
                if !is_settled(at, &meta) {
                    is_unsettled = true;
                    continue;
                }
                // Unpacking is slow, so each archive is tried once.
                if !state.tried.insert((cursor.id(), found_key, meta.len())) {
                    continue;
                }
                let stopped = || at.outlet.is_stopped();
                at.root.log(&path).and_then(|found| File::resume_unpacked(&found, cursor, &stopped))
            } else if is_it || rotation::continues(&at.root, &path, cursor) {
                at.root.log(&path).and_then(|found| File::resume(&found, cursor))
            } else {
                Ok(None)
            };
            match resumed {
                Ok(Some(mut file)) => {
                    let source = self.source(&cursor.id(), Some(&original));
                    if state.returning.remove(&cursor.id())
                        && let Ok(Some(positions)) = file.skip()
                    {
                        let mut over = Chunk::new(std::sync::Arc::clone(&source));
                        over.dropped.push(super::passed_over(positions));
                        at.outlet.emit(over)?;
                    }
                    self.follow(at, state, found_key, (file, &original, source), (false, state.scan_began))?;
                    return Ok(Search::Found);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => return Err(CollectError::Stopped),
                Err(err) => {
                    tracing::debug!(collector = self.collector, path = %path.display(), error = %err, "cannot be compared with a cursor");
                }
                Ok(None) => {}
            }
            if is_it {
                searched = Search::Replaced;
            }
        }
        Ok(if is_unsettled { Search::Unsettled } else { searched })
    }

    /// Counts what a lost file held after its cursor. The number of lines is unknown, and so is their existence if the length
    /// of the file is unknown.
    pub(super) fn lost(&self, at: &TailContext<'_>, cursor: &Cursor, why: &str) -> Result<(), CollectError> {
        let positions = cursor.unread();
        let bytes = positions.map(|positions| positions.1 - positions.0);
        tracing::warn!(
            collector = self.collector,
            path = cursor.path,
            read_to = cursor.offset,
            bytes,
            why,
            "the rest of this file after its last read cannot be found"
        );
        let mut chunk = Chunk::new(self.source(&cursor.id(), Some(&cursor.host_path())));
        chunk.dropped.push(Dropped { reason: Reason::RotatedAway, count: 1, positions });
        at.outlet.emit(chunk)?;
        self.forget(at, cursor)
    }

    /// Adds siblings of a file that were written after it was last seen: they are its generations.
    pub(super) fn generations(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        original: &Path,
        since: i64,
    ) -> Result<(), CollectError> {
        if since <= 0 {
            return Ok(());
        }
        let linked = behind_link(at, original);
        let beside = linked.iter().flat_map(|path| rotation::siblings(&at.root, path));
        for (path, meta) in rotation::siblings(&at.root, original).into_iter().chain(beside) {
            let modified = rotation::modified(&meta).saturating_add(rotation::GRANULARITY_NS);
            if modified < since || state.files.contains_key(&key(&meta)) {
                continue;
            }
            if unpacked::is_compressed(&path) {
                // Files that are compressed later were followed before.
                if state.scans == 1 {
                    state.archives.insert(path, original.to_owned());
                }
            } else if let Some(name) = path.file_name()
                && let Ok(stat) = at.root.stat(path.parent().unwrap_or(Path::new("/")), name)
            {
                let how = Discovery { listed: false, from_end: false, original: Some(original) };
                self.add_match(at, state, &Named { path, stat }, how)?;
            }
        }
        Ok(())
    }

    /// Adds archives that existed at the start, once they are complete.
    pub(super) fn add_archives(&mut self, at: &TailContext<'_>, state: &mut State) -> Result<(), CollectError> {
        for (path, original) in std::mem::take(&mut state.archives) {
            match at.root.log(&path) {
                Ok(found) if !is_settled(at, found.meta()) => drop(state.archives.insert(path, original)),
                Ok(found) if state.files.contains_key(&key(found.meta())) => {}
                Ok(_) => self.archived(at, state, &original, &path)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Reads a generation that was compressed before it was seen, unless its file is followed.
    fn archived(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        original: &Path,
        path: &Path,
    ) -> Result<(), CollectError> {
        let Ok(found) = at.root.log(path) else { return Ok(()) };
        let found_key = key(found.meta());
        if !state.tried.insert((String::new(), found_key, found.meta().len())) {
            return Ok(());
        }
        for followed in state.files.values() {
            let is_of = followed.path == original || rotation::may_be_rotated_form(&followed.path, original);
            match if is_of { holds(at, &found, followed) } else { Ok(false) } {
                Ok(true) => return Ok(()),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => return Err(CollectError::Stopped),
                _ => {}
            }
        }
        let file = match File::open_unpacked(&found, at.context.now()) {
            Ok(file) => file,
            Err(err) => {
                let cursor = File::open(&found, 0, at.context.now()).map(|file| file.cursor(original, 0));
                let why = format!("{} cannot be read: {err}", path.display());
                return cursor.map_or(Ok(()), |cursor| self.lost(at, &cursor, &why));
            }
        };
        state.descriptors_upper_bound += 1;
        let source = self.source(&file.cursor(original, 0).id(), Some(original));
        self.follow(at, state, found_key, (file, original, source), (false, state.scan_began))
    }
}

/// Whether an archive holds the content of a followed file.
fn holds(at: &TailContext<'_>, archive: &crate::root::HostEntry, followed: &Followed) -> io::Result<bool> {
    let open = || archive.read().and_then(Unpacked::open);
    if let Ok(file) = followed.file.file() {
        let (mut ours, mut theirs) = ([0; HEAD_BYTES], [0; HEAD_BYTES]);
        let length = file.read_at(&mut theirs, 0)?;
        if open()?.read(&mut ours[..length])? < length || ours[..length] != theirs[..length] {
            return Ok(false);
        }
    }
    let cursor = followed.cursor();
    open()?.skip_to(cursor.offset, &cursor.before, &|| at.outlet.is_stopped())
}
