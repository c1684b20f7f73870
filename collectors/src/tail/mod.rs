//! Tails files: follows them through rotation, never loses or repeats a line that is still there to be read.
//!
//! A file is known by device and inode, and recognised again by what stands before the cursor: after a restart, a
//! reused inode or a truncation the bytes there are others. The cursor stands at the start of the first line that is
//! not yet handed over, and is made durable in the same transaction as the lines before it.
//!
//! Files are read in turn, so many bytes each: a file that is written to without end does not keep the others waiting.
//! Descriptors have a limit; a file that has not grown for long is closed, and opened again when it grows.
//!
//! Rotation by rename, by copy and truncation, into archives, and several of them while nobody looked: [`follow`],
//! [`lost`], [`rotation`], [`unpacked`].
//!
//! notify(7) events only wake the tailer; what there is to read is found by looking.

mod cursor;
mod file;
mod follow;
mod input;
mod logrotate;
mod lost;
mod rotation;
mod skip;
mod taken;
mod turns;
mod unpacked;
mod watches;

pub(crate) use cursor::Cursor;
pub(crate) use file::{File, Line, Reading};
pub(crate) use taken::Taken;
use watches::Watches;

use crate::{
    CollectError, Cx, Outlet, Wake,
    outlet::RoomWait,
    root::{Root, glob::Pattern},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Dropped, Position, Reason, Source};

/// How often files are looked at when no event comes (network file systems, watches exhausted).
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the globs are expanded.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// What comes within this after a look is taken together: a log that is written to all the time is looked at so often.
const GATHER: Duration = Duration::from_millis(100);
/// The usual [`Tailer::patience`].
const PATIENCE: Duration = Duration::from_secs(600);
/// The usual [`Tailer::copy_wait`].
const COPY_WAIT: Duration = Duration::from_secs(10);
/// A chunk is handed over at this size.
const CHUNK_BYTES: usize = 128 << 10;
/// Bytes of one file until it is another's turn.
const TURN_BYTES: u64 = 1 << 20;
/// For so long only files that have more are read; then all are looked at.
const TURNS_MAX: Duration = Duration::from_millis(500);
/// Descriptors that are left to others, and those that are used at the least and at the most.
const OPEN_RESERVE: u64 = 128;
const OPEN_RANGE: std::ops::RangeInclusive<u64> = 16..=8192;
/// Troubles that are named in status; of the others the number is.
const TROUBLES_NAMED: usize = 5;
/// Source id of the marker that says which globs were scanned in the last run.
const SCANNED: &str = "scanned";
/// Source id of the time, nanoseconds UTC, up to which what was written is not to be collected.
const PASSED_OVER: &str = "passed-over";

/// Turns lines into bodies.
pub(crate) trait LineParser: Send {
    /// Take one line in.
    fn parse(&mut self, line: &Line<'_>, taken: &mut Taken);
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
    collector: &'static str,
    patterns: Vec<Pattern>,
    start: Start,
    parser: P,
    /// Whether it is a trouble where a path without wildcards names nothing.
    expects_each: bool,
    /// A rotated file is let go when it has not grown for so long, and a file of an earlier run that is not found (its
    /// file system may not be mounted yet) is looked for so long.
    patience: Duration,
    /// What may be a copy of a followed file is one where that is truncated within this after it stands still.
    copy_wait: Duration,
    /// Descriptors that it may hold.
    open_max: usize,
    /// What is taken of a file.
    taken: Taken,
    /// What is read of one.
    block: Vec<u8>,
}

/// The host, and where records go.
struct Place<'a> {
    cx: &'a Cx,
    outlet: &'a Outlet,
    root: Root,
}

/// A file that is followed.
struct Followed {
    file: File,
    /// On the host.
    path: PathBuf,
    source: Arc<Source>,
    /// Still found by a glob under its name.
    listed: bool,
    /// When it last grew.
    grew: Instant,
    /// When the last scan began that found it under its name, nanoseconds UTC.
    seen: i64,
    /// The scan that found it.
    scan: u64,
    /// It was read since it was opened.
    had_turn: bool,
    /// Whether it waits for room in the queue.
    room: RoomWait,
    /// Why it cannot be read.
    trouble: Option<String>,
}

impl Followed {
    fn cursor(&self) -> Cursor {
        self.file.cursor(&self.path, self.seen)
    }
}

/// What a look at a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Nothing,
    /// It was read to its end.
    Grew,
    /// There is more, and it is another's turn.
    More,
    Truncated,
    /// An archive has been read to its end.
    Done,
}

/// Device and inode.
type Key = (u64, u64);

/// How a file was found.
#[derive(Clone, Copy)]
struct Found<'a> {
    /// By a glob under its name.
    listed: bool,
    /// It was there before its glob was scanned for the first time, and such files are begun at their end.
    from_end: bool,
    /// The name that it had, where it was found under another.
    original: Option<&'a std::path::Path>,
}

/// Which file was found under a name, and when the last scan began that found it, nanoseconds UTC.
#[derive(Clone, Copy)]
struct Name {
    key: Key,
    seen: i64,
}

struct State {
    /// By path on the host.
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<Key, Followed>,
    /// Cursors whose files have not been found yet, by the source's id.
    orphans: BTreeMap<String, Cursor>,
    /// Sources that no glob named in the last run: what was written meanwhile is not to be collected.
    returning: BTreeSet<String>,
    /// What may be a copy: its length, and since when it stands still.
    suspects: BTreeMap<Key, (u64, Instant)>,
    /// Archives that were held against a source, each at a length.
    tried: BTreeSet<(String, Key, u64)>,
    /// Archives that were there at the start and may be of what was not seen, each with the name that it had.
    archives: BTreeMap<PathBuf, PathBuf>,
    /// Where logrotate's configuration puts old logs; read when it is needed.
    old_directories: Option<BTreeSet<PathBuf>>,
    /// Files that were made before this are begun at their end, whenever they are found.
    passed_over: i64,
    /// Scans so far, and when the last one began, nanoseconds UTC.
    scans: u64,
    scan_began: i64,
    /// Globs that were scanned before: what appears in them from now on is new.
    scanned: BTreeSet<String>,
    /// A file waits for a descriptor.
    is_waiting: bool,
    /// Files that cannot be opened, and whether they are to be begun at their end once they can.
    refused: BTreeMap<PathBuf, bool>,
    /// What cannot be read, by path, as the last scan found it.
    troubles: BTreeMap<String, String>,
    /// What was reported of it.
    reported: String,
    since: Instant,
}

impl State {
    fn new(cx: &Cx, patterns: &[Pattern]) -> Self {
        let kept = |id: &str| cx.cursors.iter().find(|(known, _)| known == id).map(|(_, bytes)| bytes);
        let scanned: BTreeSet<String> =
            kept(SCANNED).and_then(|globs| rmp_serde::from_slice(globs).ok()).unwrap_or_default();
        let before: Vec<Pattern> = scanned.iter().filter_map(|glob| Pattern::new(glob).ok()).collect();
        let names = |patterns: &[Pattern], cursor: &Cursor| {
            let path = cursor.host_path();
            patterns.iter().any(|pattern| pattern.matches(&path))
        };
        // What no glob names any more is not opened; its cursor stays with the queue.
        let orphans: BTreeMap<String, Cursor> = cx
            .cursors
            .iter()
            .filter_map(|(id, bytes)| Cursor::decode(id, bytes, &cx.stored))
            .filter(|cursor| names(patterns, cursor))
            .map(|cursor| (cursor.id(), cursor))
            .collect();
        let returning = if before.is_empty() {
            BTreeSet::new()
        } else {
            orphans.values().filter(|cursor| !names(&before, cursor)).map(Cursor::id).collect()
        };
        let passed_over = kept(PASSED_OVER).and_then(|time| Some(i64::from_be_bytes(time.as_slice().try_into().ok()?)));
        Self {
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            orphans,
            returning,
            suspects: BTreeMap::new(),
            tried: BTreeSet::new(),
            archives: BTreeMap::new(),
            old_directories: None,
            passed_over: passed_over.unwrap_or(i64::MIN),
            scans: 0,
            scan_began: 0,
            scanned,
            is_waiting: false,
            refused: BTreeMap::new(),
            troubles: BTreeMap::new(),
            reported: String::new(),
            since: Instant::now(),
        }
    }

    /// Say what cannot be read, where that has changed.
    fn report(&mut self, collector: &'static str, outlet: &Outlet) {
        let of_files = self.files.values().filter_map(|followed| followed.trouble.as_ref());
        let all: Vec<&String> = self.troubles.values().chain(of_files).collect();
        let mut text: Vec<&str> = all.iter().take(TROUBLES_NAMED).map(|trouble| trouble.as_str()).collect();
        let more = format!("and {} more", all.len().saturating_sub(TROUBLES_NAMED));
        if all.len() > TROUBLES_NAMED {
            text.push(&more);
        }
        let text = text.join("; ");
        if text == self.reported {
            return;
        }
        if text.is_empty() {
            outlet.recovered(collector);
        } else {
            tracing::warn!(collector, "{}", vedette_wire::text::printable(&text));
            outlet.complain(collector, &text);
        }
        self.reported = text;
    }
}

/// Descriptors that one tailer may hold, of those that the process may (getrlimit(2)).
fn open_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = (limit / 2).min(limit.saturating_sub(OPEN_RESERVE));
    usize::try_from(share.clamp(*OPEN_RANGE.start(), *OPEN_RANGE.end())).expect("it is small")
}

impl<P: LineParser> Tailer<P> {
    /// A tailer of globs that are patterns.
    pub(crate) fn new(collector: &'static str, globs: &[String], start: Start, parser: P) -> Self {
        Self {
            collector,
            patterns: globs.iter().filter_map(|glob| Pattern::new(glob).ok()).collect(),
            start,
            parser,
            expects_each: false,
            patience: PATIENCE,
            copy_wait: COPY_WAIT,
            open_max: open_max(),
            taken: Taken::default(),
            block: Vec::new(),
        }
    }

    /// Each path without wildcards was named by a person, and is to be there.
    pub(crate) fn expecting_each(self, expects_each: bool) -> Self {
        Self { expects_each, ..self }
    }

    fn place<'a>(cx: &'a Cx, outlet: &'a Outlet) -> Result<Place<'a>, CollectError> {
        let root = cx.host().map_err(|err| CollectError::read(cx.root.display().to_string(), err))?;
        Ok(Place { cx, outlet, root })
    }

    /// Follow until told to stop.
    pub(crate) fn run(&mut self, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
        match self.follow_all(cx, outlet) {
            Err(CollectError::Stopped) if outlet.is_stopped() => Ok(()),
            other => other,
        }
    }

    fn follow_all(&mut self, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
        let at = Self::place(cx, outlet)?;
        let mut state = State::new(cx, &self.patterns);
        let mut watches = Watches::new(outlet.waker());
        let mut scan_at = Instant::now();
        loop {
            if watches.take_changed() || Instant::now() >= scan_at || std::mem::take(&mut state.is_waiting) {
                self.scan(&at, &mut state, &mut watches)?;
                scan_at = Instant::now() + SCAN_EVERY;
            }
            let read = self.read_all(&at, &mut state)?;
            state.report(self.collector, outlet);
            if self.block.len() > 2 * file::BLOCK_BYTES {
                // There was a very long line.
                self.block = Vec::new();
            }
            if cx.once.is_some() && read != Read::More {
                return Ok(());
            }
            let stops = match read {
                Read::More => outlet.is_stopped(),
                Read::Nothing if !state.is_waiting => outlet.wait(LOOK_EVERY) == Wake::Stop,
                _ => outlet.pause(GATHER),
            };
            if stops {
                return Ok(());
            }
        }
    }

    fn source(&self, id: &str, path: Option<&std::path::Path>) -> Arc<Source> {
        let name = path.map(|path| path.to_string_lossy().into_owned());
        Arc::new(Source { collector: self.collector, id: id.to_owned(), name })
    }

    fn forget(&self, at: &Place<'_>, cursor: &Cursor) -> Result<(), CollectError> {
        tracing::debug!(collector = self.collector, path = cursor.path, "file is gone; its cursor is dropped");
        let mut chunk = Chunk::new(self.source(SCANNED, None));
        chunk.forget.push(cursor.id());
        at.outlet.emit(chunk)
    }
}

/// Positions that policy or configuration leaves out.
fn passed_over(positions: Position) -> Dropped {
    Dropped { reason: Reason::Policy, count: 1, positions: Some(positions) }
}

#[cfg(test)]
mod tests;
