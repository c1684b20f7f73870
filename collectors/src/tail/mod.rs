//! Tails files through rotation; never loses or repeats a line that can still be read.
//!
//! A file is identified by device and inode, and recognised by the bytes before its cursor: they differ after a reuse of the
//! inode or a truncation. The cursor is at the start of the first line not emitted, and becomes durable in the transaction of
//! the lines before it.
//!
//! Files are read in turns of limited size, so that a file that grows without end does not delay others. Descriptors are
//! limited: a file that has not grown for long is closed, and reopened when it grows.
//!
//! Rotation by rename, by copy and truncation, and into archives, also several times while unobserved: [`follow`], [`lost`],
//! [`rotation`], [`unpacked`].
//!
//! notify(7) events only wake the tailer; reading finds the data.

mod chunk_builder;
mod cursor;
mod file;
mod follow;
mod input;
mod lines;
mod logrotate;
mod lost;
mod rotation;
mod skip;
mod turns;
mod unpacked;
mod watches;

pub(crate) use chunk_builder::ChunkBuilder;
pub(crate) use cursor::Cursor;
pub(crate) use file::{File, Reading};
pub(crate) use lines::{Line, LineSink};
use watches::Watches;

use crate::{
    CollectError, CollectorContext, Outlet, Wake,
    room::RoomWait,
    root::{DeviceInode, Root, glob::Pattern},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Chunk, Dropped, Position, Reason, Source};

/// Poll interval for files without events (network file systems, exhausted watches).
const FILES_POLL: Duration = Duration::from_secs(1);
/// Interval of expansions of the globs.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// Events within this time of a read are gathered; a constantly written log is read at this interval.
const GATHER: Duration = Duration::from_millis(100);
/// Default of [`Tailer::patience`].
const PATIENCE: Duration = Duration::from_secs(600);
/// Default of [`Tailer::copy_wait`].
const COPY_WAIT: Duration = Duration::from_secs(10);
/// A chunk is emitted at this size.
const CHUNK_BYTES: usize = 128 << 10;
/// Bytes of one file per turn.
const TURN_BYTES: u64 = 1 << 20;
/// Bytes of unfinished lines and records in memory, of all files.
const PENDING_BYTES_MAX: usize = 8 << 20;
/// Time for which only files with more data are read; then all are polled.
const TURNS_MAX: Duration = Duration::from_millis(500);
/// Descriptors left to others, and the minimum and maximum for a tailer.
const OPEN_RESERVE: u64 = 128;
const OPEN_RANGE: std::ops::RangeInclusive<u64> = 16..=8192;
/// Maximum number of problems named in status; the rest is counted.
const PROBLEMS_NAMED: usize = 5;
/// Source id of the record of globs scanned in the last run.
const SCANNED: &str = "scanned";
/// Source id of a time, nanoseconds UTC: files created before it start at their end.
const PASSED_OVER: &str = "passed-over";

/// Converts lines to bodies.
pub(crate) trait LineParser: Send {
    /// Whether a record may take several lines; see [`LineSink`].
    const JOINS: bool = false;
    /// Time for which a file must not change before lines without the end of their record are emitted, nanoseconds.
    const JOIN_NS: i64 = 0;

    /// Parses a line.
    fn parse(&mut self, line: &Line<'_>, chunks: &mut ChunkBuilder);

    /// Whether a record ends with a line; see [`LineSink::ends_record`].
    fn ends_record(&mut self, _line: &[u8], _is_first: bool) -> bool {
        true
    }
}

/// Parses the lines of a file into a chunk.
struct Parsing<'a, P> {
    parser: &'a mut P,
    chunks: &'a mut ChunkBuilder,
}

impl<P: LineParser> LineSink for Parsing<'_, P> {
    const JOINS: bool = P::JOINS;

    fn take(&mut self, line: Line<'_>) {
        self.parser.parse(&line, self.chunks);
    }

    fn ends_record(&mut self, line: &[u8], is_first: bool) -> bool {
        self.parser.ends_record(line, is_first)
    }
}

/// Where to start in a file that is seen for the first time ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// At the end of what exists at the first scan of a glob.
    #[default]
    End,
    /// At the beginning.
    Beginning,
}

/// Tails the files of several globs for one collector.
pub(crate) struct Tailer<P> {
    collector: &'static str,
    patterns: Vec<Pattern>,
    start: Start,
    parser: P,
    /// Whether a path without wildcards must exist.
    expects_each: bool,
    /// How long a rotated file is followed after it last grew, and how long the file of a cursor is searched for, since its
    /// file system may not be mounted yet.
    patience: Duration,
    /// How soon after a possible copy stops growing its original must be truncated.
    copy_wait: Duration,
    /// Maximum number of descriptors.
    open_max: usize,
    /// Builder of the present chunk.
    chunks: ChunkBuilder,
    /// Read buffer.
    block: Vec<u8>,
    /// Bytes of unfinished lines and records in memory.
    pending: usize,
}

/// Host and outlet.
struct TailContext<'a> {
    context: &'a CollectorContext,
    outlet: &'a Outlet,
    root: Root,
}

/// A followed file.
struct Followed {
    file: File,
    /// Path on the host.
    path: PathBuf,
    source: Arc<Source>,
    /// A glob still matches its name.
    listed: bool,
    /// When it last grew.
    grew: Instant,
    /// Start of the last scan that found it under its name, nanoseconds UTC.
    seen: i64,
    /// Number of the scan that found it.
    scan: u64,
    /// It was read since it was opened.
    was_read: bool,
    /// Its last turn reached the end.
    at_end: bool,
    /// Wait for room in the queue.
    room: RoomWait,
    /// Why it cannot be read.
    problem: Option<String>,
}

impl Followed {
    fn cursor(&self) -> Cursor {
        self.file.cursor(&self.path, self.seen)
    }
}

/// Result of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Nothing,
    /// Read to its end.
    Grew,
    /// There is more for the next turn.
    More,
    Truncated,
    /// An archive was read to its end.
    Done,
}

/// How a file was discovered.
#[derive(Clone, Copy)]
struct Discovery<'a> {
    /// A glob matches its name.
    listed: bool,
    /// It existed before the first scan of its glob, and such files start at their end.
    from_end: bool,
    /// Its original name, if it has another one now.
    original: Option<&'a std::path::Path>,
}

/// The file of a name, and the start of the last scan that found it, nanoseconds UTC.
#[derive(Clone, Copy)]
struct Name {
    key: DeviceInode,
    seen: i64,
}

struct State {
    /// By host path.
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<DeviceInode, Followed>,
    /// Cursors without a file, by source id.
    orphans: BTreeMap<String, Cursor>,
    /// Sources that no glob named in the last run: what was written meanwhile is not collected.
    returning: BTreeSet<String>,
    /// Possible copies: length, and since when it is the same.
    suspects: BTreeMap<DeviceInode, (u64, Instant)>,
    /// Archives compared with a source, by length.
    tried: BTreeSet<(String, DeviceInode, u64)>,
    /// Archives that existed at the start and may hold unseen generations, with their original names.
    archives: BTreeMap<PathBuf, PathBuf>,
    /// `olddir` directories of logrotate; read on demand.
    old_directories: Option<BTreeSet<PathBuf>>,
    /// Files created before this start at their end, whenever they are found.
    passed_over: i64,
    /// Number of scans, and start of the last one, nanoseconds UTC.
    scans: u64,
    scan_began: i64,
    /// Globs scanned before: later matches are new files.
    scanned: BTreeSet<String>,
    /// A file waits for a descriptor.
    is_waiting: bool,
    /// Files that were followed before this scan, by stem; made when a scan finds a new file.
    stems: Option<rotation::StemIndex>,
    /// Number of descriptors that files hold at most.
    descriptors_upper_bound: usize,
    /// Files that cannot be opened, and whether they start at their end.
    refused: BTreeMap<PathBuf, bool>,
    /// Files that cannot be read, by path, as of the last scan.
    problems: BTreeMap<String, String>,
    /// The last report of them.
    reported: String,
    since: Instant,
}

impl State {
    /// Number of descriptors that files hold.
    fn held(&self) -> usize {
        self.files.values().filter(|followed| followed.file.holds_descriptor()).count()
    }

    fn new(context: &CollectorContext, patterns: &[Pattern]) -> Self {
        let cursor_of = |id: &str| context.cursors.iter().find(|(known, _)| known == id).map(|(_, bytes)| bytes);
        let scanned: BTreeSet<String> =
            cursor_of(SCANNED).and_then(|globs| rmp_serde::from_slice(globs).ok()).unwrap_or_default();
        let before: Vec<Pattern> = scanned.iter().filter_map(|glob| Pattern::new(glob).ok()).collect();
        let names = |patterns: &[Pattern], cursor: &Cursor| {
            let path = cursor.host_path();
            patterns.iter().any(|pattern| pattern.matches(&path))
        };
        // Files without a glob are not opened; the queue keeps their cursors.
        let orphans: BTreeMap<String, Cursor> = context
            .cursors
            .iter()
            .filter_map(|(id, bytes)| Cursor::decode(id, bytes, &context.stored))
            .filter(|cursor| names(patterns, cursor))
            .map(|cursor| (cursor.id(), cursor))
            .collect();
        let returning = if before.is_empty() {
            BTreeSet::new()
        } else {
            orphans.values().filter(|cursor| !names(&before, cursor)).map(Cursor::id).collect()
        };
        let passed_over =
            cursor_of(PASSED_OVER).and_then(|time| Some(i64::from_be_bytes(time.as_slice().try_into().ok()?)));
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
            stems: None,
            descriptors_upper_bound: 0,
            refused: BTreeMap::new(),
            problems: BTreeMap::new(),
            reported: String::new(),
            since: Instant::now(),
        }
    }

    /// Reports changed problems.
    fn report(&mut self, collector: &'static str, outlet: &Outlet) {
        let of_files = self.files.values().filter_map(|followed| followed.problem.as_ref());
        let all: Vec<&String> = self.problems.values().chain(of_files).collect();
        let mut text: Vec<&str> = all.iter().take(PROBLEMS_NAMED).map(|problem| problem.as_str()).collect();
        let more = format!("and {} more", all.len().saturating_sub(PROBLEMS_NAMED));
        if all.len() > PROBLEMS_NAMED {
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
            outlet.report_problem(collector, &text);
        }
        self.reported = text;
    }
}

/// Maximum number of descriptors for one tailer, from the process's limit (getrlimit(2)).
fn open_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = (limit / 2).min(limit.saturating_sub(OPEN_RESERVE));
    usize::try_from(share.clamp(*OPEN_RANGE.start(), *OPEN_RANGE.end())).expect("it is small")
}

impl<P: LineParser> Tailer<P> {
    /// Creates a tailer of valid globs.
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
            chunks: ChunkBuilder::default(),
            block: Vec::new(),
            pending: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_open_max(self, open_max: usize) -> Self {
        Self { open_max, ..self }
    }

    /// Requires each path without wildcards to exist, since a person named it.
    pub(crate) fn expecting_each(self, expects_each: bool) -> Self {
        Self { expects_each, ..self }
    }

    fn place<'a>(context: &'a CollectorContext, outlet: &'a Outlet) -> Result<TailContext<'a>, CollectError> {
        let root = context.host().map_err(|err| CollectError::read(context.root.display().to_string(), err))?;
        Ok(TailContext { context, outlet, root })
    }

    /// Follows files until a stop.
    pub(crate) fn run(&mut self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
        match self.follow_all(context, outlet) {
            Err(CollectError::Stopped) if outlet.is_stopped() => Ok(()),
            other => other,
        }
    }

    fn follow_all(&mut self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
        let at = Self::place(context, outlet)?;
        let mut state = State::new(context, &self.patterns);
        let mut watches = Watches::new(outlet.waker());
        let mut scan_at = Instant::now();
        loop {
            let waited = std::mem::take(&mut state.is_waiting);
            if watches.take_changed() || waited || Instant::now() >= scan_at {
                self.scan(&at, &mut state, &mut watches)?;
                scan_at = Instant::now() + SCAN_EVERY;
            }
            let read = self.read_all(&at, &mut state)?;
            state.report(self.collector, outlet);
            if self.block.len() > 2 * file::BLOCK_BYTES {
                // Releases the memory of a very long line.
                self.block = Vec::new();
            }
            if context.once.is_some() && read != Read::More {
                return Ok(());
            }
            let stops = match read {
                Read::More => outlet.is_stopped(),
                Read::Nothing if !state.is_waiting => outlet.wait(FILES_POLL) == Wake::Stop,
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

    fn forget(&self, at: &TailContext<'_>, cursor: &Cursor) -> Result<(), CollectError> {
        tracing::debug!(collector = self.collector, path = cursor.path, "file is gone; dropping its cursor");
        let mut chunk = Chunk::new(self.source(SCANNED, None));
        chunk.forget.push(cursor.id());
        at.outlet.emit(chunk)
    }
}

/// Positions excluded by policy or configuration.
fn passed_over(positions: Position) -> Dropped {
    Dropped { reason: Reason::Policy, count: 1, positions: Some(positions) }
}

#[cfg(test)]
mod tests;
