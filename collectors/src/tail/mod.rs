//! Tails files: follows them through rotation, never loses or repeats a line that is still there to be read.
//!
//! A file is known by device and inode, and recognised again by what stands before the cursor: after a restart, a
//! reused inode or a truncation the bytes there are others. The cursor stands at the start of the first line that is
//! not yet handed over, and is made durable in the same transaction as the lines before it.
//!
//! Rotation by rename, by copy and truncation, and several of them while nobody looked: [`follow`], [`rotation`].
//!
//! notify(7) events only wake the tailer; what there is to read is found by looking.

mod cursor;
mod file;
mod follow;
mod rotation;
mod taken;
mod watches;

pub(crate) use cursor::Cursor;
pub(crate) use file::{File, Line, Reading};
pub(crate) use taken::Taken;
use watches::Watches;

use crate::{CollectError, Cx, Outlet, Wake};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::Source;

/// How often files are looked at when no event comes (network file systems, watches exhausted).
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the globs are expanded.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// What comes within this after a look is taken together: a log that is written to all the time is looked at so often.
const GATHER: Duration = Duration::from_millis(100);
/// The usual [`Tailer::patience`].
const PATIENCE: Duration = Duration::from_secs(600);
/// A chunk is handed over at this size.
const CHUNK_BYTES: usize = 128 << 10;
/// Source id of the marker that says that the first scan is behind us.
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
    globs: Vec<String>,
    start: Start,
    parser: P,
    /// A rotated file is let go when it has not grown for so long, and a file of an earlier run that is not found (its
    /// file system may not be mounted yet) is looked for so long.
    patience: Duration,
    /// What is taken of a file.
    taken: Taken,
    /// What is read of one.
    block: Vec<u8>,
}

/// A file that is followed.
struct Followed {
    file: File,
    source: Arc<Source>,
    /// Still found by a glob under its name.
    listed: bool,
    /// When it last grew.
    grew: Instant,
    /// When the last scan began that found it under its name, nanoseconds UTC.
    seen: i64,
    /// The scan that found it.
    scan: u64,
    /// Said to be unreadable, so that it is said once.
    complained: bool,
}

impl Followed {
    fn path(&self) -> &str {
        self.source.name.as_deref().unwrap_or_default()
    }

    fn cursor(&self) -> Cursor {
        self.file.cursor(self.path(), self.seen)
    }
}

/// What a look at a file found.
enum Read {
    Nothing,
    Grew,
    Truncated,
}

/// Device and inode.
type Key = (u64, u64);

/// How a file was found.
#[derive(Clone, Copy)]
struct Found {
    /// By a glob under its name.
    listed: bool,
    /// It was there before its glob was scanned for the first time, and such files are begun at their end.
    from_end: bool,
}

/// Which file was found under a name, and when the last scan began that found it, nanoseconds UTC.
#[derive(Clone, Copy)]
struct Name {
    key: Key,
    seen: i64,
}

struct State {
    /// By path on this machine.
    names: BTreeMap<PathBuf, Name>,
    files: BTreeMap<Key, Followed>,
    /// Cursors of earlier runs whose files have not been found yet, by the source's id.
    orphans: BTreeMap<String, Cursor>,
    /// Files that were made before this are begun at their end, whenever they are found.
    passed_over: i64,
    /// Scans so far, and when the last one began, nanoseconds UTC.
    scans: u64,
    scan_began: i64,
    /// Globs that were scanned before: what appears in them from now on is new.
    scanned: BTreeSet<String>,
    /// Files that cannot be opened, and whether they are to be begun at their end once they can.
    refused: BTreeMap<PathBuf, bool>,
    since: Instant,
}

impl<P: LineParser> Tailer<P> {
    pub(crate) fn new(collector: &'static str, globs: Vec<String>, start: Start, parser: P) -> Self {
        let (taken, block) = (Taken::default(), Vec::new());
        Self { collector, globs, start, parser, patience: PATIENCE, taken, block }
    }

    /// Follow until told to stop.
    pub(crate) fn run(&mut self, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
        let mut state = State {
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            orphans: cx
                .cursors
                .iter()
                .filter_map(|(id, bytes)| Cursor::decode(id, bytes, &cx.stored))
                .map(|c| (c.id(), c))
                .collect(),
            scanned: cx
                .cursors
                .iter()
                .find(|(id, _)| id == SCANNED)
                .and_then(|(_, globs)| rmp_serde::from_slice(globs).ok())
                .unwrap_or_default(),
            passed_over: cx
                .cursors
                .iter()
                .find(|(id, _)| id == PASSED_OVER)
                .and_then(|(_, time)| Some(i64::from_be_bytes(time.as_slice().try_into().ok()?)))
                .unwrap_or(i64::MIN),
            scans: 0,
            scan_began: 0,
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
            if self.block.len() > 2 * file::BLOCK_BYTES {
                // There was a very long line.
                self.block = Vec::new();
            }
            if cx.once.is_some() {
                return Ok(());
            }
            if read {
                if outlet.pause(GATHER) {
                    return Ok(());
                }
                continue;
            }
            if outlet.wait(LOOK_EVERY) == Wake::Stop {
                return Ok(());
            }
        }
    }

    /// Read every file to its end; true where there was anything.
    fn read_all(&mut self, cx: &Cx, outlet: &Outlet, state: &mut State) -> Result<bool, CollectError> {
        let mut any = false;
        let (mut gone, mut truncated) = (Vec::new(), Vec::new());
        for (key, followed) in &mut state.files {
            match self.read_one(cx, outlet, followed) {
                Ok(read) => {
                    if std::mem::take(&mut followed.complained) {
                        outlet.recovered(self.collector);
                    }
                    match read {
                        Read::Grew => any = true,
                        Read::Nothing if !followed.listed && followed.grew.elapsed() > self.patience => gone.push(*key),
                        Read::Nothing => {}
                        Read::Truncated => truncated.push(*key),
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
        for key in truncated {
            self.truncated(cx, outlet, state, key)?;
            any = true;
        }
        for key in gone {
            if let Some(mut followed) = state.files.remove(&key) {
                self.rest(cx, outlet, &mut followed)?;
                self.forget(outlet, &followed.cursor())?;
            }
        }
        Ok(any)
    }

    fn read_one(&mut self, cx: &Cx, outlet: &Outlet, followed: &mut Followed) -> Result<Read, CollectError> {
        let path = followed.source.name.clone().unwrap_or_default();
        let failed = |err| CollectError::read(path.clone(), err);
        if followed.file.is_quiet().map_err(failed)? {
            return Ok(Read::Nothing);
        }
        // Taken before: what is written meanwhile makes another.
        let stamp = followed.file.stamp().map_err(failed)?;
        let mut read = Read::Nothing;
        loop {
            let (parser, taken, block) = (&mut self.parser, &mut self.taken, &mut self.block);
            taken.begin(&followed.source, cx.now());
            let ended = followed.file.read(block, CHUNK_BYTES, |line| parser.parse(&line, taken));
            let mut chunk = taken.end();
            if ended.as_ref().is_ok_and(|ended| *ended != Reading::Truncated) {
                followed.file.saw(stamp.0);
            }
            // Also of what was read before it failed.
            if !chunk.entries.is_empty() {
                read = Read::Grew;
                followed.grew = Instant::now();
                chunk.cursor = Some(followed.cursor().encode());
                outlet.emit(chunk)?;
            }
            match ended.map_err(failed)? {
                Reading::Truncated => return Ok(Read::Truncated),
                Reading::End if matches!(read, Read::Nothing) => {
                    followed.file.now_quiet(stamp, cx.now());
                    return Ok(read);
                }
                Reading::End => return Ok(read),
                Reading::More if outlet.is_stopped() => return Ok(read),
                Reading::More => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
