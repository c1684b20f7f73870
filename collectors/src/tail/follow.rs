//! Which files are followed: those of the globs, those that were renamed away, and what rotation left of them.

use super::{
    Cursor, File, Followed, Found, Key, LineParser, Name, PASSED_OVER, SCANNED, Start, State, Tailer,
    rotation::{self, key},
    watches::Watches,
};
use crate::{CollectError, Cx, Outlet};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use vedette_wire::{Chunk, Dropped, Position, Reason, Source};

fn passed_over(positions: Position) -> Dropped {
    Dropped { reason: Reason::Policy, count: 1, positions: Some(positions) }
}

/// When a file was made, where its file system says (statx(2)), or was last written, nanoseconds UTC.
fn made(meta: &std::fs::Metadata) -> i64 {
    let made = meta.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    made.and_then(|made| i64::try_from(made.as_nanos()).ok()).unwrap_or_else(|| rotation::modified(meta))
}

impl<P: LineParser> Tailer<P> {
    /// Expand the globs, take in what is new, and notice what is gone.
    pub(super) fn scan(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        watches: &mut Watches,
    ) -> Result<(), CollectError> {
        state.scans += 1;
        state.scan_began = cx.now();
        let mut found: BTreeMap<PathBuf, Key> = BTreeMap::new();
        for followed in state.files.values_mut() {
            followed.listed = false;
        }
        for glob in self.globs.clone() {
            let pattern = cx.path(&glob);
            watches.add(&pattern);
            let Ok(paths) = glob::glob(&pattern.to_string_lossy()) else { continue };
            for path in paths.filter_map(Result::ok) {
                let from_end = !state.scanned.contains(&glob) && self.start == Start::End && cx.once.is_none();
                if let Some(key) = self.take_in(cx, outlet, state, &path, Found { listed: true, from_end })? {
                    found.insert(path, key);
                }
            }
        }
        // Names that another file has now, or none: since when generations may have come and gone unseen.
        let gone = |(path, name): &(&PathBuf, &Name)| found.get(*path) != Some(&name.key);
        let mut unseen: Vec<(PathBuf, i64)> =
            state.names.iter().filter(gone).map(|(path, name)| (path.clone(), name.seen)).collect();
        self.find_orphans(cx, outlet, state, &mut unseen)?;
        for (path, since) in unseen {
            self.generations(cx, outlet, state, &path, since)?;
        }
        let seen = state.scan_began;
        state.names.extend(found.into_iter().map(|(path, key)| (path, Name { key, seen })));
        // A name that nothing takes for so long is given up.
        let patience = i64::try_from(self.patience.as_nanos()).unwrap_or(i64::MAX);
        state.names.retain(|_, name| seen.saturating_sub(name.seen) <= patience);
        if self.globs.iter().any(|glob| !state.scanned.contains(glob)) {
            state.scanned.extend(self.globs.iter().cloned());
            let mut chunk = Chunk::new(self.source(SCANNED, None));
            chunk.cursor = Some(rmp_serde::to_vec(&state.scanned).expect("a set of strings serializes"));
            outlet.emit(chunk)?;
        }
        Ok(())
    }

    /// Leave every file of the globs behind what it holds now, counted as dropped by policy: one for each, since how many
    /// lines they were is not known. What cannot be seen now is forgotten; when it comes back and is older than this, it is
    /// begun at its end, and counted then.
    pub(crate) fn skip(&mut self, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
        let mut known: BTreeMap<String, Cursor> =
            cx.cursors.iter().filter_map(|(id, bytes)| Cursor::decode(id, bytes, &[])).map(|c| (c.id(), c)).collect();
        let now = cx.now();
        for glob in self.globs.clone() {
            let Ok(paths) = glob::glob(&cx.path(&glob).to_string_lossy()) else { continue };
            for path in paths.filter_map(Result::ok).filter(|path| !rotation::is_compressed(path)) {
                let Ok(meta) = std::fs::metadata(&path) else { continue };
                let (found, host_path) = (key(&meta), cx.host_path(&path));
                let is_of = |c: &&Cursor| c.key() == found || c.inode == found.1 && c.path == host_path;
                let here: Vec<Cursor> = known.values().filter(is_of).cloned().collect();
                let mut file = match self.resume(&path, &here) {
                    Ok(Some((file, id))) => {
                        known.remove(&id);
                        file
                    }
                    _ => match File::open(&path, 0, now) {
                        Ok(file) => file,
                        Err(_) => continue,
                    },
                };
                let dropped = file.skip().map_err(|err| CollectError::read(host_path.clone(), err))?;
                let cursor = file.cursor(&host_path, now);
                let mut chunk = Chunk::new(self.source(&cursor.id(), Some(host_path)));
                chunk.dropped.extend(dropped.map(passed_over));
                chunk.cursor = Some(cursor.encode());
                outlet.emit(chunk)?;
            }
        }
        let mut scanned = Chunk::new(self.source(SCANNED, None));
        scanned.forget = known.into_keys().collect();
        scanned.cursor = Some(rmp_serde::to_vec(&self.globs).expect("strings serialize"));
        outlet.emit(scanned)?;
        let mut since = Chunk::new(self.source(PASSED_OVER, None));
        since.cursor = Some(now.to_be_bytes().to_vec());
        outlet.emit(since)
    }

    /// Files that were being read may have been renamed out of the globs, or copied and truncated, while the agent was
    /// down.
    fn find_orphans(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        unseen: &mut Vec<(PathBuf, i64)>,
    ) -> Result<(), CollectError> {
        for cursor in std::mem::take(&mut state.orphans).into_values() {
            let original = cx.path(&cursor.path);
            if state.scans == 1 {
                unseen.push((original.clone(), cursor.seen));
                let name = Name { key: cursor.key(), seen: cursor.seen };
                let known = state.names.entry(original.clone()).or_insert(name);
                known.seen = known.seen.max(cursor.seen);
            }
            let renamed = cursor.find_renamed(cx);
            let copy =
                || rotation::siblings(&original).into_iter().find(|(path, _)| rotation::continues(path, &cursor));
            let found = renamed.iter().cloned().chain(copy().map(|(path, _)| path));
            let mut taken = false;
            for path in found {
                let Ok(meta) = std::fs::metadata(&path) else { continue };
                if state.files.contains_key(&key(&meta)) {
                    continue;
                }
                if let Ok(Some(file)) = File::resume(&path, &cursor) {
                    let source = self.source(&cursor.id(), Some(cursor.path.clone()));
                    self.follow(outlet, state, key(&meta), (file, source), (false, state.scan_began))?;
                    taken = true;
                    break;
                }
            }
            if taken {
                continue;
            }
            // Its inode holds something else now, or its file system may not be mounted yet.
            if renamed.is_none() && state.since.elapsed() < self.patience {
                state.orphans.insert(cursor.id(), cursor);
            } else {
                self.forget(outlet, &cursor)?;
            }
        }
        Ok(())
    }

    /// Take in what lies beside a file and was written after it was last seen: it was this file in between.
    fn generations(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        original: &Path,
        since: i64,
    ) -> Result<(), CollectError> {
        for (path, meta) in rotation::siblings(original) {
            let modified = rotation::modified(&meta).saturating_add(rotation::GRANULARITY_NS);
            if modified >= since && since > 0 && !state.files.contains_key(&key(&meta)) {
                self.take_in(cx, outlet, state, &path, Found { listed: false, from_end: false })?;
            }
        }
        Ok(())
    }

    pub(super) fn source(&self, id: &str, path: Option<String>) -> Arc<Source> {
        Arc::new(Source { collector: self.collector, id: id.to_owned(), name: path })
    }

    pub(super) fn forget(&self, outlet: &Outlet, cursor: &Cursor) -> Result<(), CollectError> {
        tracing::debug!(collector = self.collector, path = cursor.path, "file is gone; its cursor is dropped");
        let mut chunk = Chunk::new(self.source(SCANNED, None));
        chunk.forget.push(cursor.id());
        outlet.emit(chunk)
    }

    fn take_in(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        path: &Path,
        found: Found,
    ) -> Result<Option<Key>, CollectError> {
        let Ok(meta) = std::fs::metadata(path) else { return Ok(None) };
        if !meta.is_file() || rotation::is_compressed(path) {
            return Ok(None);
        }
        let key = key(&meta);
        if let Some(followed) = state.files.get_mut(&key) {
            if found.listed {
                followed.listed = true;
                followed.seen = state.scan_began;
            }
            return Ok(Some(key));
        }
        let host_path = cx.host_path(path);
        // Device numbers may change over a reboot (btrfs, overlayfs, NFS): path, inode and content tell as well.
        let is_known = |cursor: &&Cursor| cursor.key() == key || cursor.inode == key.1 && cursor.path == host_path;
        let known: Vec<Cursor> = state.orphans.values().filter(is_known).cloned().collect();
        let mut passed = false;
        let opened = match self.resume(path, &known) {
            Ok(Some((file, id))) => {
                state.orphans.remove(&id);
                Ok(file)
            }
            Ok(None) if self.is_copy(cx, outlet, state, path, key)? => return Ok(None),
            // Of a copy of an earlier run's file it is known where it goes on.
            Ok(None)
                if state.orphans.values().any(|cursor| {
                    rotation::may_be_of(path, &cx.path(&cursor.path)) && rotation::continues(path, cursor)
                }) =>
            {
                return Ok(None);
            }
            Ok(None) => {
                let from_end = state.refused.get(path).copied().unwrap_or(found.from_end) && known.is_empty();
                // Known ones were passed over when it was due: here stands something else, written since.
                passed = known.is_empty() && made(&meta) < state.passed_over;
                File::open(path, if from_end && !passed { meta.len() } else { 0 }, cx.now())
            }
            Err(err) => Err(err),
        };
        match opened {
            Ok(mut file) => {
                // It may have been renamed since it was looked at, and another opened under its name.
                let opened = file.key_now().unwrap_or(key);
                if opened != key && state.files.contains_key(&opened) {
                    return Ok(Some(opened));
                }
                let key = opened;
                if let Some(lines) = cx.once {
                    file.seek_to_last_lines(lines);
                }
                let id = file.cursor(&host_path, 0).id();
                let source = self.source(&id, Some(host_path));
                if state.refused.remove(path).is_some() && state.refused.is_empty() {
                    outlet.recovered(self.collector);
                }
                if passed && let Ok(Some(positions)) = file.skip() {
                    let mut over = Chunk::new(Arc::clone(&source));
                    over.dropped.push(passed_over(positions));
                    outlet.emit(over)?;
                }
                self.follow(outlet, state, key, (file, source), (found.listed, state.scan_began))?;
                Ok(Some(key))
            }
            Err(err) => {
                if state.refused.insert(path.to_owned(), found.from_end).is_none() {
                    let err = CollectError::read(host_path, err);
                    tracing::warn!(collector = self.collector, error = %err, "file is left out until it can be read");
                    outlet.complain(self.collector, &err);
                }
                Ok(None)
            }
        }
    }

    /// The file where one of these cursors left it, and that cursor's id.
    fn resume(&self, path: &Path, known: &[Cursor]) -> io::Result<Option<(File, String)>> {
        for cursor in known {
            if let Some(file) = File::resume(path, cursor)? {
                return Ok(Some((file, cursor.id())));
            }
        }
        Ok(None)
    }

    /// Whether a file that is new holds what is read from another already: it is left alone until that one is truncated.
    fn is_copy(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        path: &Path,
        new: Key,
    ) -> Result<bool, CollectError> {
        let before = |followed: &Followed| followed.scan < state.scans;
        let originals: Vec<Key> = state
            .files
            .iter()
            .filter(|(_, followed)| before(followed) && rotation::may_be_of(path, &cx.path(followed.path())))
            .map(|(key, _)| *key)
            .collect();
        for original in originals {
            // Between the copy and this look it may have been truncated.
            if state.files.get(&original).is_some_and(|followed| followed.file.was_truncated().unwrap_or(false)) {
                self.truncated(cx, outlet, state, original)?;
            }
            let is_copy = |followed: &Followed| rotation::is_copy(path, followed.file.inner());
            if state.files.contains_key(&new) || state.files.get(&original).is_some_and(is_copy) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn follow(
        &self,
        outlet: &Outlet,
        state: &mut State,
        key: Key,
        (file, source): (File, Arc<Source>),
        (listed, seen): (bool, i64),
    ) -> Result<(), CollectError> {
        let followed =
            Followed { file, source, listed, grew: Instant::now(), seen, scan: state.scans, complained: false };
        let mut first = Chunk::new(Arc::clone(&followed.source));
        // Where it begins must be durable too: a restart must not begin at a later end.
        first.cursor = Some(followed.cursor().encode());
        outlet.emit(first)?;
        state.files.insert(key, followed);
        Ok(())
    }

    /// A followed file was truncated. Where a copy of it holds what was not read yet, that is read as the same source;
    /// the file itself begins again as another.
    pub(super) fn truncated(
        &mut self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        original: Key,
    ) -> Result<(), CollectError> {
        let Some(mut followed) = state.files.remove(&original) else { return Ok(()) };
        let (cursor, path) = (followed.cursor(), followed.path().to_owned());
        tracing::info!(collector = self.collector, path, "file was truncated; reading it from its beginning");
        let copy = rotation::siblings(&cx.path(&path))
            .into_iter()
            .find(|(path, meta)| !state.files.contains_key(&key(meta)) && rotation::continues(path, &cursor));
        match copy.and_then(|(path, meta)| Some((File::resume(&path, &cursor).ok()??, key(&meta)))) {
            Some((file, copy)) => {
                let parts = (file, Arc::clone(&followed.source));
                self.follow(outlet, state, copy, parts, (false, state.scan_began))?;
            }
            None => {
                self.rest(cx, outlet, &mut followed)?;
                if let Some(positions) = followed.file.destroyed() {
                    tracing::warn!(
                        collector = self.collector,
                        path,
                        bytes = positions.1 - positions.0,
                        "file was truncated before all of it could be read"
                    );
                    let mut lost = Chunk::new(Arc::clone(&followed.source));
                    // How many lines they were is not known.
                    let reason = Reason::SourceOverrun;
                    lost.dropped.push(Dropped { reason, count: 1, positions: Some(positions) });
                    outlet.emit(lost)?;
                }
                self.forget(outlet, &cursor)?;
            }
        }
        followed.file.restart(cx.now());
        let source = self.source(&followed.cursor().id(), Some(path));
        self.follow(outlet, state, original, (followed.file, source), (followed.listed, followed.seen))
    }

    /// What was read of a last line that will not be finished.
    pub(super) fn rest(&mut self, cx: &Cx, outlet: &Outlet, followed: &mut Followed) -> Result<(), CollectError> {
        let (parser, taken) = (&mut self.parser, &mut self.taken);
        taken.begin(&followed.source, cx.now());
        followed.file.take_rest(|line| parser.parse(&line, taken));
        let chunk = taken.end();
        if chunk.entries.is_empty() { Ok(()) } else { outlet.emit(chunk) }
    }
}
