//! Chooses the files to follow: matches of the globs, renamed files, and rotated ones.

use super::{
    Cursor, DeviceInode, Discovery, File, Followed, LineParser, Name, SCANNED, Start, State, TailContext, Tailer, file,
    passed_over,
    rotation::{self, key},
    unpacked,
    watches::Watches,
};
use crate::{
    CollectError,
    room::RoomWait,
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

/// Creation time, if the file system records it (statx(2)), or else modification time, nanoseconds UTC.
fn made(meta: &std::fs::Metadata) -> i64 {
    let made = meta.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    made.and_then(|made| i64::try_from(made.as_nanos()).ok()).unwrap_or_else(|| rotation::modified(meta))
}

fn leads_nowhere(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Matches of the globs by host path, and errors.
type Listed = (BTreeMap<PathBuf, DeviceInode>, Expansion);

/// Fingerprint of a directory entry.
fn fingerprint(stat: &rustix::fs::Stat) -> file::FileFingerprint {
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
    /// Expands the globs, adds new files, and detects missing ones.
    pub(super) fn scan(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        watches: &mut Watches,
    ) -> Result<(), CollectError> {
        state.scans += 1;
        state.descriptors_upper_bound = state.held();
        state.stems = None;
        state.scan_began = at.context.now();
        state.problems.clear();
        let Some((found, expansion)) = self.add_matches(at, state, watches)? else { return Ok(()) };
        for followed in state.files.values_mut() {
            followed.listed = followed.seen == state.scan_began;
        }
        // Only existing names are kept, since anyone may create any number.
        let problems = &state.problems;
        state.refused.retain(|path, _| problems.contains_key(&path.display().to_string()));
        for (path, err) in &expansion.problems {
            state.add_problem(path, &err.to_string());
        }
        // Files may appear in an existing directory; elsewhere the path is wrong, or the host logs to another place.
        let may_come = |pattern: &Pattern| !pattern.is_one_path() && at.root.find(&pattern.base()).is_ok();
        let is_nothing = found.is_empty() && state.problems.is_empty() && state.files.is_empty();
        if is_nothing && !self.patterns.is_empty() && !self.patterns.iter().any(may_come) {
            state.problems.insert(String::new(), "no file matches any of `paths`".to_owned());
        }
        self.find_closed(state);
        // Names that now belong to another file or to none: rotated files may be unknown since.
        let gone = |(path, name): &(&PathBuf, &Name)| found.get(*path) != Some(&name.key);
        let mut unseen: Vec<(PathBuf, i64)> =
            state.names.iter().filter(gone).map(|(path, name)| (path.clone(), name.seen)).collect();
        self.find_orphans(at, state, &mut unseen)?;
        for (path, since) in unseen {
            self.generations(at, state, &path, since)?;
        }
        // After the search: the file of a cursor is not a new generation. It may still be waiting for its archive.
        if state.orphans.is_empty() || state.since.elapsed() > self.patience {
            self.add_archives(at, state)?;
        }
        let seen = state.scan_began;
        state.names.extend(found.into_iter().map(|(path, key)| (path, Name { key, seen })));
        // A name without a file is forgotten after a while.
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

    /// Follows the matches of the globs; absent on a stop.
    fn add_matches(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        watches: &mut Watches,
    ) -> Result<Option<Listed>, CollectError> {
        let mut found: BTreeMap<PathBuf, DeviceInode> = BTreeMap::new();
        let mut expansion = Expansion::default();
        for pattern in self.patterns.clone() {
            watches.add(at, &pattern);
            let named = expansion.expand(&at.root, &pattern);
            if named.is_empty() && self.expects_each && pattern.is_one_path() {
                state.add_problem(Path::new(pattern.text()), "it does not exist; check `paths`");
            }
            let from_end =
                !state.scanned.contains(pattern.text()) && self.start == Start::End && at.context.once.is_none();
            for named in named {
                let how = Discovery { listed: true, from_end, original: None };
                if let Some(key) = self.add_match(at, state, &named, how)? {
                    found.insert(named.path, key);
                } else if self.expects_each && pattern.is_one_path() {
                    let why = if unpacked::is_compressed(&named.path) {
                        "compressed files are not followed; name the original log"
                    } else {
                        "it is not a regular file, or a link that leads to none"
                    };
                    state.add_problem(&named.path, why);
                }
                if at.outlet.is_stopped() {
                    return Ok(None);
                }
            }
        }
        Ok(Some((found, expansion)))
    }

    /// Treats a missing closed file as renamed or deleted: it is searched for like one of an earlier run.
    fn find_closed(&self, state: &mut State) {
        let is_gone = |followed: &Followed| !followed.listed && !followed.file.holds_descriptor();
        let gone: Vec<DeviceInode> =
            state.files.iter().filter(|(_, followed)| is_gone(followed)).map(|(key, _)| *key).collect();
        for followed in gone.into_iter().filter_map(|key| state.files.remove(&key)) {
            let cursor = followed.cursor();
            state.orphans.insert(cursor.id(), cursor);
        }
    }

    /// Follows a match of a glob.
    pub(super) fn add_match(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        named: &Named,
        how: Discovery<'_>,
    ) -> Result<Option<DeviceInode>, CollectError> {
        if !named.is_link() {
            if !named.is_file() || unpacked::is_compressed(&named.path) {
                return Ok(None);
            }
            let key = (named.stat.st_dev, named.stat.st_ino);
            if self.is_followed(at, state, key, how, &fingerprint(&named.stat)) {
                return Ok(Some(key));
            }
        }
        let found = match at.root.log(&named.path) {
            Ok(found) => found,
            // The file is gone, or its link leads nowhere.
            Err(err) if leads_nowhere(&err) => return Ok(None),
            Err(err) => {
                state.refused.entry(named.path.clone()).or_insert(how.from_end);
                state.add_problem(&named.path, &CollectError::read(named.path.display().to_string(), err).to_string());
                return Ok(None);
            }
        };
        if unpacked::is_compressed(found.path()) {
            return Ok(None);
        }
        self.add_opened(at, state, (&named.path, &found), how)
    }

    /// Whether the file is already followed; reopens a closed one that has changed.
    fn is_followed(
        &self,
        at: &TailContext<'_>,
        state: &mut State,
        key: DeviceInode,
        how: Discovery<'_>,
        fingerprint: &file::FileFingerprint,
    ) -> bool {
        let Some(followed) = state.files.get_mut(&key) else { return false };
        if how.listed {
            followed.listed = true;
            followed.seen = state.scan_began;
        }
        let has_changed = followed.file.has_changed(fingerprint);
        if !followed.file.holds_descriptor() && has_changed {
            let path = followed.path.clone();
            if !self.make_room(state, true) {
                return true;
            }
            let Some(followed) = state.files.get_mut(&key) else { return false };
            (followed.was_read, followed.at_end) = (false, false);
            let reopened = at.root.log(&path).and_then(|found| followed.file.reopen(&found, key));
            if !reopened.is_ok_and(|reopened| reopened) {
                // Renamed since it was listed.
                let cursor = followed.cursor();
                state.files.remove(&key);
                state.orphans.insert(cursor.id(), cursor);
            }
        }
        true
    }

    /// Makes room for another open file. At the limit it closes the least recently grown files that had their turn; then renamed
    /// files that were read to their end; for a file that `is_listed`, then those that wait for room in the queue. It closes a few
    /// more than needed that were read to their end, so that the search is rare. If there are none, the caller retries after the
    /// next turns.
    pub(super) fn make_room(&self, state: &mut State, is_listed: bool) -> bool {
        // Each file of a scan comes here, and counting passes over all of them.
        if state.descriptors_upper_bound < self.open_max {
            state.descriptors_upper_bound += 1;
            return true;
        }
        if is_listed && state.is_waiting {
            return false;
        }
        state.descriptors_upper_bound = 1 + state.held();
        let Some(excess) = state.descriptors_upper_bound.checked_sub(self.open_max).filter(|excess| *excess > 0) else {
            return true;
        };
        let may_go = |followed: &&mut Followed| {
            let (waits, quiet) = (followed.room.is_waiting(), followed.file.was_quiet());
            let may_be = followed.listed || quiet || is_listed && waits;
            // What is deleted cannot be opened again.
            let may_return = followed.listed || quiet || !followed.file.is_deleted();
            // Closed, an open record would not be emitted before the file grows.
            let waits_for_record = P::JOINS && followed.file.has_open_record();
            followed.was_read && followed.file.is_open() && may_be && may_return && !waits_for_record
        };
        let mut open: Vec<&mut Followed> = state.files.values_mut().filter(may_go).collect();
        open.sort_by_key(|followed| (!followed.listed, !followed.file.was_quiet(), followed.grew));
        let has_room = open.len() >= excess;
        for (number, followed) in open.into_iter().take(excess + self.open_max / 16).enumerate() {
            if number < excess || followed.listed && followed.at_end {
                state.descriptors_upper_bound -= usize::from(followed.file.holds_descriptor());
                followed.file.close();
            }
        }
        state.is_waiting |= is_listed && !has_room;
        has_room
    }

    fn add_opened(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        (path, found): (&Path, &root::HostEntry),
        how: Discovery<'_>,
    ) -> Result<Option<DeviceInode>, CollectError> {
        let key = key(found.meta());
        if self.is_followed(at, state, key, how, &file::fingerprint(found.meta())) {
            return Ok(Some(key));
        }
        let name = how.original.unwrap_or(path);
        // Device numbers may change with a reboot (btrfs, overlayfs, NFS): path, inode and content identify the file as well.
        let is_known = |cursor: &&Cursor| cursor.key() == key || cursor.inode == key.1 && cursor.host_path() == path;
        let known: Vec<Cursor> = state.orphans.values().filter(is_known).cloned().collect();
        // A generation that cannot be opened now is recorded, and opened later.
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
            // A copy of an earlier run's file: its cursor is searched for.
            Ok(None)
                if state.orphans.values().any(|cursor| {
                    rotation::may_be_rotated_form(path, &cursor.host_path())
                        && rotation::continues(&at.root, path, cursor)
                }) =>
            {
                return Ok(None);
            }
            Ok(None) => {
                let from_end = state.refused.get(path).copied().unwrap_or(how.from_end) && known.is_empty();
                // This file is older than the skip, and was unknown then: its content is skipped now.
                passed = known.is_empty() && made(found.meta()) < state.passed_over;
                File::open(found, if from_end && !passed { found.meta().len() } else { 0 }, at.context.now())
            }
            Err(err) => Err(err),
        };
        let mut file = match opened {
            Ok(file) => file,
            Err(err) => {
                state.refused.entry(path.to_owned()).or_insert(how.from_end);
                state.add_problem(path, &CollectError::read(path.display().to_string(), err).to_string());
                return Ok(None);
            }
        };
        if let Some(lines) = at.context.once {
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

    /// Whether a new file contains what is read from another one, as copytruncate makes it. It is left alone until the other is
    /// truncated; if that does not happen soon after the copy stops growing, it is an ordinary file.
    fn is_copy(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        (path, found): (&Path, &root::HostEntry),
    ) -> Result<bool, CollectError> {
        let (new, length) = (key(found.meta()), found.meta().len());
        let before = |followed: &Followed| followed.scan < state.scans;
        let stems = state.stems.get_or_insert_with(|| {
            rotation::StemIndex::new(state.files.iter().map(|(key, followed)| (followed.path.as_path(), *key)))
        });
        let may_be = |key: &DeviceInode| {
            let followed = state.files.get(key);
            followed.is_some_and(|followed| before(followed) && rotation::may_be_rotated_form(path, &followed.path))
        };
        let mut originals: Vec<DeviceInode> = stems.candidates_for(path).into_iter().filter(may_be).collect();
        originals.sort_unstable();
        for original in originals {
            // The original may have been truncated since.
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
        at: &TailContext<'_>,
        state: &mut State,
        key: DeviceInode,
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
            was_read: false,
            at_end: false,
            room: RoomWait::default(),
            problem: None,
        };
        let mut first = Chunk::new(Arc::clone(&followed.source));
        // The start must be durable too: a restart must not start at a later end.
        first.cursor = Some(followed.cursor().encode());
        at.outlet.emit(first)?;
        state.files.insert(key, followed);
        Ok(())
    }

    /// Handles the truncation of a followed file: a copy that holds unread lines continues its source, and the file restarts as
    /// another source.
    pub(super) fn truncated(
        &mut self,
        at: &TailContext<'_>,
        state: &mut State,
        original: DeviceInode,
    ) -> Result<(), CollectError> {
        let Some(mut followed) = state.files.remove(&original) else { return Ok(()) };
        let (cursor, path) = (followed.cursor(), followed.path.clone());
        tracing::info!(collector = self.collector, path = %path.display(), "file truncated; reading it from its start");
        let copy = rotation::siblings(&at.root, &path).into_iter().find(|(sibling, meta)| {
            !state.files.contains_key(&key(meta))
                && rotation::may_be_rotated_form(sibling, &path)
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
                        "file truncated before it was read to its end"
                    );
                    let mut lost = Chunk::new(Arc::clone(&followed.source));
                    // The number of lines is unknown.
                    let reason = Reason::SourceOverrun;
                    lost.dropped.push(Dropped { reason, count: 1, positions: Some(positions) });
                    at.outlet.emit(lost)?;
                }
                self.forget(at, &cursor)?;
            }
        }
        followed.file.restart(at.context.now());
        let source = self.source(&followed.cursor().id(), Some(&path));
        self.follow(at, state, original, (followed.file, &path, source), (followed.listed, followed.seen))
    }
}

/// Opens the file of one of these cursors; also returns the id of the cursor.
pub(super) fn resume(found: &root::HostEntry, known: &[Cursor]) -> io::Result<Option<(File, String)>> {
    for cursor in known {
        if let Some(file) = File::resume(found, cursor)? {
            return Ok(Some((file, cursor.id())));
        }
    }
    Ok(None)
}

impl State {
    pub(super) fn add_problem(&mut self, path: &Path, why: &str) {
        let path = path.display().to_string();
        let text = if why.contains(&path) { why.to_owned() } else { format!("{path}: {why}") };
        self.problems.insert(path, text);
    }
}
