//! Tails files: follows them through rotation, never loses or repeats a line that is still there to be read.
//!
//! A file is known by device and inode, and recognised again by what stands before the cursor: after a restart, a
//! reused inode or a truncation the bytes there are others. The cursor stands at the start of the first line that is
//! not yet handed over, and is made durable in the same transaction as the lines before it.
//!
//! notify(7) events only wake the tailer; what there is to read is found by looking.

mod cursor;
mod file;

pub(crate) use cursor::Cursor;
pub(crate) use file::{File, Line};

use crate::{CollectError, Cx, Outlet, Wake, Waker};
use notify::{RecursiveMode, Watcher};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Source};

/// How often files are looked at when no event comes (network file systems, watches exhausted).
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the globs are expanded.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// Events of one burst are taken together.
const GATHER: Duration = Duration::from_millis(25);
/// A rotated file is let go when it has not grown for so long.
const LET_GO_AFTER: Duration = Duration::from_secs(600);
/// A file of an earlier run that is not found (its file system may not be mounted yet) is looked for so long.
const LOOK_FOR_LOST: Duration = Duration::from_secs(600);
/// A chunk is handed over at this size.
const CHUNK_BYTES: usize = 128 << 10;
/// Source id of the marker that says that the first scan is behind us.
const SCANNED: &str = "scanned";

/// Turns lines into bodies.
pub(crate) trait LineParser: Send {
    /// One line, without its end, as it was read at `now`.
    fn parse(&mut self, line: &Line<'_>, now: i64) -> vedette_wire::Body;
}

/// Where a file that is seen for the first time ever is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// Behind what is there when the agent starts for the first time.
    #[default]
    End,
    /// At the beginning.
    Beginning,
}

/// Tails the files of some globs for one collector.
pub(crate) struct Tailer<P> {
    pub(crate) collector: &'static str,
    pub(crate) globs: Vec<String>,
    pub(crate) start: Start,
    pub(crate) parser: P,
}

/// A file that is followed.
struct Followed {
    file: File,
    source: Arc<Source>,
    /// Still found by a glob under its name.
    listed: bool,
    /// When it last grew.
    grew: Instant,
    /// Said to be unreadable, so that it is said once.
    complained: bool,
}

/// How a file was found.
#[derive(Clone, Copy)]
struct Found {
    /// By a glob under its name.
    listed: bool,
    /// It was there before its glob was scanned for the first time, and such files are begun at their end.
    from_end: bool,
}

struct State {
    files: BTreeMap<(u64, u64), Followed>,
    /// Cursors of earlier runs whose files have not been found yet.
    orphans: BTreeMap<(u64, u64), Cursor>,
    /// Globs that were scanned before: what appears in them from now on is new.
    scanned: BTreeSet<String>,
    /// Files that cannot be opened, and whether they are to be begun at their end once they can.
    refused: BTreeMap<PathBuf, bool>,
    since: Instant,
}

impl<P: LineParser> Tailer<P> {
    /// Follow until told to stop.
    pub(crate) fn run(&mut self, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
        let mut state = State {
            files: BTreeMap::new(),
            orphans: cx
                .cursors
                .iter()
                .filter_map(|(id, bytes)| Cursor::decode(id, bytes))
                .map(|c| (c.key(), c))
                .collect(),
            scanned: cx
                .cursors
                .iter()
                .find(|(id, _)| id == SCANNED)
                .and_then(|(_, globs)| rmp_serde::from_slice(globs).ok())
                .unwrap_or_default(),
            refused: BTreeMap::new(),
            since: Instant::now(),
        };
        let mut watches = Watches::new(outlet.waker());
        let mut scan_at = Instant::now();
        loop {
            if watches.take_changed() || Instant::now() >= scan_at {
                self.scan(cx, outlet, &mut state, &mut watches)?;
                scan_at = Instant::now() + SCAN_EVERY;
            }
            let read = self.read_all(cx, outlet, &mut state)?;
            if cx.once.is_some() {
                return Ok(());
            }
            if read {
                // More may have come while this was handed over.
                if outlet.wait(GATHER) == Wake::Stop {
                    return Ok(());
                }
                continue;
            }
            if outlet.wait(LOOK_EVERY) == Wake::Stop {
                return Ok(());
            }
        }
    }

    /// Expand the globs, take in what is new, and notice what is gone.
    fn scan(&self, cx: &Cx, outlet: &Outlet, state: &mut State, watches: &mut Watches) -> Result<(), CollectError> {
        for followed in state.files.values_mut() {
            followed.listed = false;
        }
        for glob in &self.globs {
            let pattern = cx.path(glob);
            watches.add(&pattern);
            let Ok(paths) = glob::glob(&pattern.to_string_lossy()) else { continue };
            for path in paths.filter_map(Result::ok) {
                let from_end = !state.scanned.contains(glob) && self.start == Start::End && cx.once.is_none();
                self.take_in(cx, outlet, state, &path, Found { listed: true, from_end })?;
            }
        }
        // A file that was being read may have been renamed out of the globs while the agent was down.
        for cursor in std::mem::take(&mut state.orphans).into_values() {
            match cursor.find_renamed(cx) {
                Some(path) => {
                    state.orphans.insert(cursor.key(), cursor);
                    self.take_in(cx, outlet, state, &path, Found { listed: false, from_end: false })?;
                }
                None if state.since.elapsed() < LOOK_FOR_LOST => drop(state.orphans.insert(cursor.key(), cursor)),
                None => self.forget(outlet, &cursor)?,
            }
        }
        if self.globs.iter().any(|glob| !state.scanned.contains(glob)) {
            state.scanned.extend(self.globs.iter().cloned());
            let mut chunk = Chunk::new(self.source(SCANNED, None));
            chunk.cursor = Some(rmp_serde::to_vec(&state.scanned).expect("a set of strings serializes"));
            outlet.emit(chunk)?;
        }
        Ok(())
    }

    fn source(&self, id: &str, path: Option<String>) -> Arc<Source> {
        Arc::new(Source { collector: self.collector, id: id.to_owned(), name: path })
    }

    fn forget(&self, outlet: &Outlet, cursor: &Cursor) -> Result<(), CollectError> {
        tracing::debug!(collector = self.collector, path = cursor.path, "file is gone; its cursor is dropped");
        let mut chunk = Chunk::new(self.source(SCANNED, None));
        chunk.forget.push(cursor.id());
        outlet.emit(chunk)
    }

    fn take_in(
        &self,
        cx: &Cx,
        outlet: &Outlet,
        state: &mut State,
        path: &Path,
        found: Found,
    ) -> Result<(), CollectError> {
        let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
        if !meta.is_file() {
            return Ok(());
        }
        let key = (meta.dev(), meta.ino());
        if let Some(followed) = state.files.get_mut(&key) {
            followed.listed |= found.listed;
            return Ok(());
        }
        let host_path = cx.host_path(path);
        // Device numbers may change over a reboot (btrfs, overlayfs, NFS): path, inode and content tell as well.
        let moved = || state.orphans.iter().find(|(known, cursor)| known.1 == key.1 && cursor.path == host_path);
        let known = if state.orphans.contains_key(&key) { Some(key) } else { moved().map(|(known, _)| *known) };
        let from_end = state.refused.get(path).copied().unwrap_or(found.from_end);
        let opened = match known.and_then(|known| state.orphans.get(&known)).cloned() {
            Some(cursor) => match File::resume(path, &cursor) {
                Ok(None) => {
                    // Another file under a reused inode, or truncated: what it was is gone.
                    self.forget(outlet, &cursor)?;
                    File::open(path, 0, cx.now())
                }
                Ok(Some(file)) => Ok(file),
                Err(err) => Err(err),
            },
            None => File::open(path, if from_end { meta.len() } else { 0 }, cx.now()),
        };
        match opened {
            Ok(mut file) => {
                if let Some(known) = known {
                    state.orphans.remove(&known);
                }
                if let Some(lines) = cx.once {
                    file.seek_to_last_lines(lines);
                }
                let source = self.source(&file.cursor(&host_path).id(), Some(host_path));
                let mut first = Chunk::new(Arc::clone(&source));
                // Where it begins must be durable too: a restart must not begin at a later end.
                first.cursor = Some(file.cursor(source.name.as_deref().unwrap_or_default()).encode());
                outlet.emit(first)?;
                state.refused.remove(path);
                let followed = Followed { file, source, listed: found.listed, grew: Instant::now(), complained: false };
                state.files.insert(key, followed);
            }
            Err(err) => {
                if state.refused.insert(path.to_owned(), from_end).is_none() {
                    let err = CollectError::read(host_path, err);
                    tracing::warn!(collector = self.collector, error = %err, "file is left out until it can be read");
                    outlet.complain(self.collector, &err);
                }
            }
        }
        Ok(())
    }

    /// Read every file to its end; true where there was anything.
    fn read_all(&mut self, cx: &Cx, outlet: &Outlet, state: &mut State) -> Result<bool, CollectError> {
        let mut any = false;
        let mut gone = Vec::new();
        for (key, followed) in &mut state.files {
            match self.read_one(cx, outlet, followed) {
                Ok(true) => {
                    followed.grew = Instant::now();
                    followed.complained = false;
                    any = true;
                }
                Ok(false) => {
                    if !followed.listed && followed.grew.elapsed() > LET_GO_AFTER {
                        gone.push(*key);
                    }
                }
                Err(CollectError::Stopped) => return Err(CollectError::Stopped),
                Err(err) => {
                    if !std::mem::replace(&mut followed.complained, true) {
                        tracing::warn!(collector = self.collector, error = %err, "file cannot be read");
                        outlet.complain(self.collector, &err);
                    }
                }
            }
            if outlet.is_stopped() {
                break;
            }
        }
        for key in gone {
            if let Some(followed) = state.files.remove(&key) {
                let path = followed.source.name.clone().unwrap_or_default();
                self.forget(outlet, &followed.file.cursor(&path))?;
            }
        }
        Ok(any)
    }

    fn read_one(&mut self, cx: &Cx, outlet: &Outlet, followed: &mut Followed) -> Result<bool, CollectError> {
        let path = followed.source.name.clone().unwrap_or_default();
        let failed = |err| CollectError::read(path.clone(), err);
        if followed.file.was_truncated().map_err(failed)? {
            tracing::info!(collector = self.collector, path, "file was truncated; reading it from its beginning");
            self.forget(outlet, &followed.file.cursor(&path))?;
            followed.file.restart(cx.now());
            followed.source = self.source(&followed.file.cursor(&path).id(), Some(path.clone()));
        }
        let mut any = false;
        loop {
            let now = cx.now();
            let mut chunk = Chunk::new(Arc::clone(&followed.source));
            let parser = &mut self.parser;
            let more = followed
                .file
                .read(CHUNK_BYTES, |line| {
                    let body = parser.parse(&line, now);
                    chunk.push(now, line.position, &body);
                })
                .map_err(failed)?;
            if chunk.entries.is_empty() && !more {
                return Ok(any);
            }
            any |= !chunk.entries.is_empty();
            if !chunk.entries.is_empty() {
                chunk.cursor = Some(followed.file.cursor(&path).encode());
                outlet.emit(chunk)?;
            }
            if !more || outlet.is_stopped() {
                return Ok(any);
            }
        }
    }
}

/// Watches on the directories of the globs.
struct Watches {
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    changed: Arc<std::sync::atomic::AtomicBool>,
}

impl Watches {
    fn new(waker: Waker) -> Self {
        let changed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let listing = match &event {
                Ok(event) => {
                    event.need_rescan()
                        || event.kind.is_create()
                        || event.kind.is_remove()
                        || matches!(event.kind, notify::EventKind::Modify(notify::event::ModifyKind::Name(_)))
                }
                Err(_) => true,
            };
            if let Ok(event) = &event
                && event.kind.is_access()
            {
                return;
            }
            if listing {
                flag.store(true, std::sync::atomic::Ordering::Release);
            }
            waker.wake();
        });
        let watcher = watcher
            .inspect_err(|err| tracing::warn!(error = %err, "no file events; files are looked at every second"))
            .ok();
        Self { watcher, watched: BTreeSet::new(), changed }
    }

    /// Watch the directory that a pattern's last part is in, where its name holds no wildcard.
    fn add(&mut self, pattern: &Path) {
        let (Some(watcher), Some(dir)) = (&mut self.watcher, pattern.parent()) else { return };
        if self.watched.contains(dir) || dir.to_string_lossy().contains(['*', '?', '[']) || !dir.is_dir() {
            return;
        }
        match watcher.watch(dir, RecursiveMode::NonRecursive) {
            Ok(()) => drop(self.watched.insert(dir.to_owned())),
            Err(err) => {
                tracing::warn!(path = %dir.display(), error = %err, "no events for this directory; it is looked at every second");
                self.watched.insert(dir.to_owned());
            }
        }
    }

    fn take_changed(&self) -> bool {
        self.changed.swap(false, std::sync::atomic::Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests;
