//! Which files are followed: those of the globs, those that were renamed away, and what rotation left of them.

use super::{
    Cursor, File, Followed, Found, Key, LineParser, Name, Place, SCANNED, Start, State, Tailer, file, passed_over,
    rotation::{self, key},
    unpacked,
    watches::Watches,
};
use crate::{
    CollectError,
    outlet::RoomWait,
    root::{
        self,
        glob::{Expansion, Named, Pattern},
    },
};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use vedette_wire::{Chunk, Dropped, Reason, Source};

/// When a file was made, where its file system says (statx(2)), or was last written, nanoseconds UTC.
fn made(meta: &std::fs::Metadata) -> i64 {
    let made = meta.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    made.and_then(|made| i64::try_from(made.as_nanos()).ok()).unwrap_or_else(|| rotation::modified(meta))
}

fn leads_nowhere(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// What globs name, by path on the host, and what stood in the way.
type Listed = (BTreeMap<PathBuf, Key>, Expansion);

/// Length and times of change of a directory entry.
fn stamp(stat: &rustix::fs::Stat) -> file::Stamp {
    let nanoseconds = |part: u64| i64::try_from(part).unwrap_or(0);
    (
        u64::try_from(stat.st_size).unwrap_or(0),
        stat.st_mtime,
        nanoseconds(stat.st_mtime_nsec),
        stat.st_ctime,
        nanoseconds(stat.st_ctime_nsec),
    )
}

impl<P: LineParser> Tailer<P> {
    /// Expand the globs, take in what is new, and notice what is gone.
    pub(super) fn scan(
        &mut self,
        at: &Place<'_>,
        state: &mut State,
        watches: &mut Watches,
    ) -> Result<(), CollectError> {
        state.scans += 1;
        state.scan_began = at.cx.now();
        state.troubles.clear();
        let Some((found, expansion)) = self.take_listed(at, state, watches)? else { return Ok(()) };
        for followed in state.files.values_mut() {
            followed.listed = followed.seen == state.scan_began;
        }
        // Names that are gone are not kept: whoever may make them may make any number.
        let troubles = &state.troubles;
        state.refused.retain(|path, _| troubles.contains_key(&path.display().to_string()));
        for (path, err) in &expansion.troubles {
            state.trouble(path, &err.to_string());
        }
        // In a directory that is there files may come; elsewhere a path is wrong, or the host logs to somewhere else.
        let may_come = |pattern: &Pattern| !pattern.is_one_path() && at.root.find(&pattern.base()).is_ok();
        let is_nothing = found.is_empty() && state.troubles.is_empty() && state.files.is_empty();
        if is_nothing && !self.patterns.is_empty() && !self.patterns.iter().any(may_come) {
            state.troubles.insert(String::new(), "no file matches any of `paths`".to_owned());
        }
        self.find_closed(state);
        // Names that another file has now, or none: since when generations may have come and gone unseen.
        let gone = |(path, name): &(&PathBuf, &Name)| found.get(*path) != Some(&name.key);
        let mut unseen: Vec<(PathBuf, i64)> =
            state.names.iter().filter(gone).map(|(path, name)| (path.clone(), name.seen)).collect();
        self.find_orphans(at, state, &mut unseen)?;
        for (path, since) in unseen {
            self.generations(at, state, &path, since)?;
        }
        // Behind the search: what a cursor goes on in is no new generation. It may still wait for its archive.
        if state.orphans.is_empty() || state.since.elapsed() > self.patience {
            self.take_archives(at, state)?;
        }
        let seen = state.scan_began;
        state.names.extend(found.into_iter().map(|(path, key)| (path, Name { key, seen })));
        // A name that nothing takes for so long is given up.
        let patience = i64::try_from(self.patience.as_nanos()).unwrap_or(i64::MAX);
        state.names.retain(|_, name| seen.saturating_sub(name.seen) <= patience);
        let files = &state.files;
        state.suspects.retain(|key, _| !files.contains_key(key));
        if self.patterns.iter().any(|pattern| !state.scanned.contains(pattern.text()))
            || state.scanned.len() != self.patterns.len()
        {
            state.scanned = self.patterns.iter().map(|pattern| pattern.text().to_owned()).collect();
            let mut chunk = Chunk::new(self.source(SCANNED, None));
            chunk.cursor = Some(rmp_serde::to_vec(&state.scanned).expect("a set of strings serializes"));
            at.outlet.emit(chunk)?;
        }
        Ok(())
    }

    /// Follow what the globs name; absent where it is told to stop.
    fn take_listed(
        &mut self,
        at: &Place<'_>,
        state: &mut State,
        watches: &mut Watches,
    ) -> Result<Option<Listed>, CollectError> {
        let mut found: BTreeMap<PathBuf, Key> = BTreeMap::new();
        let mut expansion = Expansion::default();
        for pattern in self.patterns.clone() {
            watches.add(at, &pattern);
            let named = expansion.expand(&at.root, &pattern);
            if named.is_empty() && self.expects_each && pattern.is_one_path() {
                state.trouble(Path::new(pattern.text()), "it is not there; check `paths`");
            }
            let from_end = !state.scanned.contains(pattern.text()) && self.start == Start::End && at.cx.once.is_none();
            for named in named {
                let how = Found { listed: true, from_end, original: None };
                if let Some(key) = self.take_in(at, state, &named, how)? {
                    found.insert(named.path, key);
                } else if self.expects_each && pattern.is_one_path() {
                    let why = if unpacked::is_compressed(&named.path) {
                        "a compressed file is not followed; name the log that it was"
                    } else {
                        "it is no regular file, or a link that leads to none"
                    };
                    state.trouble(&named.path, why);
                }
                if at.outlet.is_stopped() {
                    return Ok(None);
                }
            }
        }
        Ok(Some((found, expansion)))
    }

    /// A closed file that is found no more was renamed or deleted: it is looked for as one of an earlier run.
    fn find_closed(&self, state: &mut State) {
        let is_gone = |followed: &Followed| !followed.listed && !followed.file.holds_descriptor();
        let gone: Vec<Key> =
            state.files.iter().filter(|(_, followed)| is_gone(followed)).map(|(key, _)| *key).collect();
        for followed in gone.into_iter().filter_map(|key| state.files.remove(&key)) {
            let cursor = followed.cursor();
            state.orphans.insert(cursor.id(), cursor);
        }
    }

    /// Follow what a glob names.
    pub(super) fn take_in(
        &mut self,
        at: &Place<'_>,
        state: &mut State,
        named: &Named,
        how: Found<'_>,
    ) -> Result<Option<Key>, CollectError> {
        if !named.is_link() {
            if !named.is_file() || unpacked::is_compressed(&named.path) {
                return Ok(None);
            }
            let key = (named.stat.st_dev, named.stat.st_ino);
            if self.is_followed(at, state, key, how, &stamp(&named.stat)) {
                return Ok(Some(key));
            }
        }
        let found = match at.root.log(&named.path) {
            Ok(found) => found,
            // It is gone, or a link that leads to no file.
            Err(err) if leads_nowhere(&err) => return Ok(None),
            Err(err) => {
                state.refused.entry(named.path.clone()).or_insert(how.from_end);
                state.trouble(&named.path, &CollectError::read(named.path.display().to_string(), err).to_string());
                return Ok(None);
            }
        };
        if unpacked::is_compressed(found.path()) {
            return Ok(None);
        }
        self.take_in_found(at, state, (&named.path, &found), how)
    }

    /// Whether a file is followed already; a closed one that has changed is opened again.
    fn is_followed(&self, at: &Place<'_>, state: &mut State, key: Key, how: Found<'_>, stamp: &file::Stamp) -> bool {
        let Some(followed) = state.files.get_mut(&key) else { return false };
        if how.listed {
            followed.listed = true;
            followed.seen = state.scan_began;
        }
        let has_changed = followed.file.has_changed(stamp);
        if !followed.file.holds_descriptor() && has_changed {
            let path = followed.path.clone();
            if !self.make_room(state, true) {
                return true;
            }
            let Some(followed) = state.files.get_mut(&key) else { return false };
            followed.had_turn = false;
            let reopened = at.root.log(&path).and_then(|found| followed.file.reopen(&found, key));
            if !reopened.is_ok_and(|reopened| reopened) {
                // It was renamed since it was listed.
                let cursor = followed.cursor();
                state.files.remove(&key);
                state.orphans.insert(cursor.id(), cursor);
            }
        }
        true
    }

    /// Whether another file may be opened. Where as many are open as may be, the one that has not grown for longest is
    /// closed, of those that had their turn; then one that was renamed away and is read to its end; for a file that `is_listed`
    /// then one that waits for room in the queue. Where there is none, it is tried again when they have had it.
    pub(super) fn make_room(&self, state: &mut State, is_listed: bool) -> bool {
        let held = state.files.values().filter(|followed| followed.file.holds_descriptor()).count();
        for _ in self.open_max..=held {
            let may_go = |followed: &&mut Followed| {
                let (waits, quiet) = (followed.room.is_waiting(), followed.file.was_quiet());
                let may_be = followed.listed || quiet || is_listed && waits;
                followed.had_turn && followed.file.is_open() && may_be
            };
            let open = state.files.values_mut().filter(may_go);
            let order = |followed: &&mut Followed| (!followed.listed, !followed.file.was_quiet(), followed.grew);
            let Some(oldest) = open.min_by_key(order) else {
                state.is_waiting |= is_listed;
                return false;
            };
            oldest.file.close();
        }
        true
    }

    fn take_in_found(
        &mut self,
        at: &Place<'_>,
        state: &mut State,
        (path, found): (&Path, &root::Found),
        how: Found<'_>,
    ) -> Result<Option<Key>, CollectError> {
        let key = key(found.meta());
        if self.is_followed(at, state, key, how, &file::stamp(found.meta())) {
            return Ok(Some(key));
        }
        let name = how.original.unwrap_or(path);
        // Device numbers may change over a reboot (btrfs, overlayfs, NFS): path, inode and content tell as well.
        let is_known = |cursor: &&Cursor| cursor.key() == key || cursor.inode == key.1 && cursor.host_path() == path;
        let known: Vec<Cursor> = state.orphans.values().filter(is_known).cloned().collect();
        // A generation that was not listed in time is noted all the same, and opened when it can be.
        let has_room = self.make_room(state, how.listed);
        if !has_room && how.listed {
            return Ok(None);
        }
        let mut passed = false;
        let opened = match resume(found, &known) {
            Ok(Some((file, id))) => {
                state.orphans.remove(&id);
                passed = state.returning.remove(&id);
                Ok(file)
            }
            Ok(None) if self.is_copy(at, state, (path, found))? => return Ok(None),
            // Of a copy of an earlier run's file it is known where it goes on.
            Ok(None)
                if state.orphans.values().any(|cursor| {
                    rotation::may_be_of(path, &cursor.host_path()) && rotation::continues(&at.root, path, cursor)
                }) =>
            {
                return Ok(None);
            }
            Ok(None) => {
                let from_end = state.refused.get(path).copied().unwrap_or(how.from_end) && known.is_empty();
                // Known ones were passed over when it was due: here stands something else, written since.
                passed = known.is_empty() && made(found.meta()) < state.passed_over;
                File::open(found, if from_end && !passed { found.meta().len() } else { 0 }, at.cx.now())
            }
            Err(err) => Err(err),
        };
        let mut file = match opened {
            Ok(file) => file,
            Err(err) => {
                state.refused.entry(path.to_owned()).or_insert(how.from_end);
                state.trouble(path, &CollectError::read(path.display().to_string(), err).to_string());
                return Ok(None);
            }
        };
        if let Some(lines) = at.cx.once {
            file.seek_to_last_lines(lines);
        }
        let source = self.source(&file.cursor(name, 0).id(), Some(name));
        state.refused.remove(path);
        if passed && let Ok(Some(positions)) = file.skip() {
            let mut over = Chunk::new(Arc::clone(&source));
            over.dropped.push(passed_over(positions));
            at.outlet.emit(over)?;
        }
        if !has_room {
            file.close();
        }
        self.follow(at, state, key, (file, name, source), (how.listed, state.scan_began))?;
        Ok(Some(key))
    }

    /// Whether a file that is new holds what is read from another already, as rotation by copy and truncation makes it. It
    /// is left alone until that one is truncated; where that does not happen soon after it stands still, it is no copy.
    fn is_copy(
        &mut self,
        at: &Place<'_>,
        state: &mut State,
        (path, found): (&Path, &root::Found),
    ) -> Result<bool, CollectError> {
        let (new, length) = (key(found.meta()), found.meta().len());
        let before = |followed: &Followed| followed.scan < state.scans;
        let originals: Vec<Key> = state
            .files
            .iter()
            .filter(|(_, followed)| before(followed) && rotation::may_be_of(path, &followed.path))
            .map(|(key, _)| *key)
            .collect();
        for original in originals {
            // Between the copy and this look it may have been truncated.
            if state.files.get(&original).is_some_and(|followed| followed.file.was_truncated().unwrap_or(false)) {
                self.truncated(at, state, original)?;
            }
            if state.files.contains_key(&new) {
                return Ok(true);
            }
            let may_be = |followed: &Followed| {
                let (copy, original) = (found.read().ok(), followed.file.file().ok());
                copy.zip(original).is_some_and(|(copy, original)| rotation::may_be_copy(&copy, original))
            };
            if state.files.get(&original).is_some_and(may_be) {
                let (known, since) = state.suspects.entry(new).or_insert((length, Instant::now()));
                if *known != length {
                    (*known, *since) = (length, Instant::now());
                }
                if since.elapsed() < self.copy_wait {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    pub(super) fn follow(
        &self,
        at: &Place<'_>,
        state: &mut State,
        key: Key,
        (file, path, source): (File, &Path, Arc<Source>),
        (listed, seen): (bool, i64),
    ) -> Result<(), CollectError> {
        let (grew, scan, path) = (Instant::now(), state.scans, path.to_owned());
        let followed = Followed {
            file,
            path,
            source,
            listed,
            grew,
            seen,
            scan,
            had_turn: false,
            room: RoomWait::default(),
            trouble: None,
        };
        let mut first = Chunk::new(Arc::clone(&followed.source));
        // Where it begins must be durable too: a restart must not begin at a later end.
        first.cursor = Some(followed.cursor().encode());
        at.outlet.emit(first)?;
        state.files.insert(key, followed);
        Ok(())
    }

    /// A followed file was truncated. Where a copy of it holds what was not read yet, that is read as the same source;
    /// the file itself begins again as another.
    pub(super) fn truncated(&mut self, at: &Place<'_>, state: &mut State, original: Key) -> Result<(), CollectError> {
        let Some(mut followed) = state.files.remove(&original) else { return Ok(()) };
        let (cursor, path) = (followed.cursor(), followed.path.clone());
        tracing::info!(collector = self.collector, path = %path.display(), "file was truncated; reading it from its beginning");
        let copy = rotation::siblings(&at.root, &path).into_iter().find(|(sibling, meta)| {
            !state.files.contains_key(&key(meta))
                && rotation::may_be_of(sibling, &path)
                && rotation::continues(&at.root, sibling, &cursor)
        });
        let resumed = copy.and_then(|(path, _)| {
            let found = at.root.log(&path).ok()?;
            Some((File::resume(&found, &cursor).ok()??, key(found.meta())))
        });
        match resumed {
            Some((file, copy)) => {
                let parts = (file, path.as_path(), Arc::clone(&followed.source));
                self.follow(at, state, copy, parts, (false, state.scan_began))?;
            }
            None if followed.file.has_unread() && self.is_archived(at, state, &cursor)? => {}
            None => {
                self.rest(at, &mut followed)?;
                if let Some(positions) = followed.file.destroyed() {
                    let bytes = positions.1 - positions.0;
                    tracing::warn!(
                        collector = self.collector,
                        path = %path.display(),
                        bytes,
                        "file was truncated before all of it could be read"
                    );
                    let mut lost = Chunk::new(Arc::clone(&followed.source));
                    // How many lines they were is not known.
                    let reason = Reason::SourceOverrun;
                    lost.dropped.push(Dropped { reason, count: 1, positions: Some(positions) });
                    at.outlet.emit(lost)?;
                }
                self.forget(at, &cursor)?;
            }
        }
        followed.file.restart(at.cx.now());
        let source = self.source(&followed.cursor().id(), Some(&path));
        self.follow(at, state, original, (followed.file, &path, source), (followed.listed, followed.seen))
    }
}

/// The file where one of these cursors left it, and that cursor's id.
pub(super) fn resume(found: &root::Found, known: &[Cursor]) -> io::Result<Option<(File, String)>> {
    for cursor in known {
        if let Some(file) = File::resume(found, cursor)? {
            return Ok(Some((file, cursor.id())));
        }
    }
    Ok(None)
}

impl State {
    pub(super) fn trouble(&mut self, path: &Path, why: &str) {
        let path = path.display().to_string();
        let text = if why.contains(&path) { why.to_owned() } else { format!("{path}: {why}") };
        self.troubles.insert(path, text);
    }
}
