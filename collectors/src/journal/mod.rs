//! `journal`: the systemd journal, from `journalctl --output=export` as a child process (docs/adr/0001-journal.md).
//!
//! The position of an entry is the sequence number in its cursor: `s=ID;i=HEX;b=…` (systemd.journal-fields(7), "Address
//! Fields"). The cursor becomes durable together with its entries; after a restart `--after-cursor` continues from there.

mod export;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet,
    room::{Room, RoomWait},
    root::glob::{Expansion, Pattern},
    spec::{Collector, Plan, Skip, Spec, Watch, collector_settings},
};
use export::{Entry, Parser};
use rustix::event::{PollFd, PollFlags, poll};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use vedette_wire::{Body, Chunk, Dropped, Position, Reason, Source, Stored};

/// Block size for reading from the child.
const BLOCK_BYTES: usize = 64 << 10;
/// Maximum wait for output of the child between checks for a stop.
const LISTEN: Duration = Duration::from_secs(1);
/// Poll interval for room in the queue.
const ROOM_EVERY: Duration = Duration::from_secs(1);
/// Source id of the start position before the first entry.
const BEGIN: &str = "begin";

/// Settings of `[collectors.journal]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Where to start in the journal at the very first start: `end` or `beginning`.
    start: crate::tail::Start,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, start: crate::tail::Start::End }
    }
}

/// Directories of journals, persistent first.
const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Files in the first directory that holds a journal; absent if there is none.
fn files(context: &CollectorContext) -> Option<Vec<PathBuf>> {
    let root = context.host().ok()?;
    DIRECTORIES.iter().find_map(|dir| {
        let pattern = Pattern::new(&format!("{dir}/*/*.journal")).expect("a pattern");
        let named = Expansion::default().expand(&root, &pattern);
        (!named.is_empty()).then(|| named.into_iter().map(|named| named.path).collect())
    })
}

/// Whether this agent can read the journal: it exists, can be opened, and there is a journalctl.
pub(crate) fn is_readable(context: &CollectorContext) -> bool {
    let (Some(files), Ok(root)) = (files(context), context.host()) else { return false };
    files.iter().any(|path| root.read(path).is_ok())
        && ["/usr/bin", "/bin", "/usr/local/bin"]
            .iter()
            .any(|dir| std::path::Path::new(dir).join("journalctl").exists())
}

collector_settings!(Settings);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "journal";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "journal";
    const SUMMARY: &'static str = "entries of the systemd journal with their trusted fields";
    const READS: &'static str = "/var/log/journal or /run/log/journal, by journalctl; group systemd-journal";
    const SKIP: Option<Skip<Settings>> = Some(skip);

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        if files(context).is_none() {
            return Ok(Plan::Absent(format!("this host keeps no journal in {} or {}", DIRECTORIES[0], DIRECTORIES[1])));
        }
        Ok(Plan::Watch(Box::new(Journal { start: settings.start })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

/// Moves to the newest entry; counts the skipped ones by their sequence numbers.
fn skip(_: &Settings, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
    let newest = match files(context) {
        Some(_) => last_cursor(context)?,
        None => None,
    };
    let Some(newest) = newest else {
        // If the journal is not visible, it is read as configured by `start` once it is.
        let mut gone = Chunk::new(source(BEGIN));
        gone.forget = context.cursors.iter().map(|(id, _)| id.clone()).collect();
        return outlet.emit(gone);
    };
    let place =
        context.cursors.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).max_by_key(seqnum_of);
    let (id, newest_seqnum) = cursor_parts(&newest);
    let mut chunk = Chunk::new(source(&format!("journal:{id}")));
    if let Some((known, seqnum)) = place.as_deref().map(cursor_parts)
        && known == id
        && newest_seqnum > seqnum
    {
        let positions = Some(Position(seqnum + 1, newest_seqnum + 1));
        chunk.dropped.push(Dropped { reason: Reason::Policy, count: newest_seqnum - seqnum, positions });
    }
    chunk.forget = context.cursors.iter().map(|(id, _)| id.clone()).filter(|id| *id != chunk.source.id).collect();
    chunk.cursor = Some(newest.clone().into_bytes());
    outlet.emit(chunk)
}

struct Journal {
    start: crate::tail::Start,
}

impl Watch for Journal {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let mut place =
            context.cursors.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).max_by_key(seqnum_of);
        if let Some(missing) = place.as_deref().and_then(|place| first_missing(place, &context.stored)) {
            place = Some(missing);
        }
        if place.is_none() && self.start == crate::tail::Start::End && context.once.is_none() {
            place = last_cursor(context)?;
            if let Some(cursor) = &place {
                // A restart before the first entry must not start at a later end.
                let mut begin = Chunk::new(source(BEGIN));
                begin.cursor = Some(cursor.clone().into_bytes());
                outlet.emit(begin)?;
            }
        }
        let mut arguments: Vec<String> = Vec::new();
        match (context.once, &place) {
            (Some(lines), _) => arguments.push(format!("--lines={lines}")),
            (None, Some(cursor)) => {
                arguments.extend(["--follow".to_owned(), "--no-tail".to_owned(), format!("--after-cursor={cursor}")]);
            }
            (None, None) => arguments.extend(["--follow".to_owned(), "--no-tail".to_owned()]),
        }
        let mut child = Running(journalctl(context, &arguments)?);
        let earlier = context.cursors.iter().map(|(id, _)| id.clone()).chain([BEGIN.to_owned()]).collect();
        let result = follow(context, outlet, &mut child.0, earlier);
        if context.once.is_none() && result.is_ok() && !outlet.is_stopped() {
            let message = child.last_words();
            return Err(CollectError::read("the journal", io::Error::other(format!("journalctl ended: {message}"))));
        }
        result
    }
}

/// Kills the child when dropped.
struct Running(Child);

impl Running {
    fn last_words(&mut self) -> String {
        drop(self.0.kill());
        let mut message = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            drop(stderr.take(4096).read_to_string(&mut message));
        }
        message.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn source(id: &str) -> Arc<Source> {
    Arc::new(Source { collector: SPEC.id, id: id.to_owned(), name: None })
}

fn journalctl(context: &CollectorContext, arguments: &[String]) -> Result<Child, CollectError> {
    let mut command = Command::new("journalctl");
    command.args(["--output=export", "--all", "--quiet", "--no-pager"]);
    // Reads the persistent and the volatile journal, whichever exist, and also when one replaces the other.
    if !context.is_this_host() {
        command.arg(format!("--root={}", context.root.display()));
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.spawn().map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => CollectError::Absent(
            "there is a journal but no journalctl to read it with; install systemd's journalctl (in the container \
             image: package systemd)"
                .to_owned(),
        ),
        _ => CollectError::read("the journal", err),
    })
}

/// Cursor of the newest entry; absent in an empty journal.
fn last_cursor(context: &CollectorContext) -> Result<Option<String>, CollectError> {
    let child = journalctl(context, &["--lines=1".to_owned()])?;
    let output = child.wait_with_output().map_err(|err| CollectError::read("the journal", err))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(CollectError::read("the journal", io::Error::other(message)));
    }
    let mut last = None;
    Parser::default().push(&output.stdout, |entry| last = Some(entry.cursor().to_owned()));
    Ok(last)
}

/// `earlier` are source ids of former positions: the newest counts, the others are deleted.
fn follow(
    context: &CollectorContext,
    outlet: &Outlet,
    child: &mut Child,
    mut earlier: Vec<String>,
) -> Result<(), CollectError> {
    let failed = |err| CollectError::read("the journal", err);
    let mut stdout = child.stdout.take().expect("it is piped");
    let (mut parser, mut block) = (Parser::default(), vec![0; BLOCK_BYTES]);
    let mut current: Option<Arc<Source>> = None;
    let (mut wait, mut is_reported) = (RoomWait::default(), false);
    loop {
        if outlet.is_stopped() {
            return Ok(());
        }
        if !readable(&stdout).map_err(failed)? {
            continue;
        }
        if let Some(source) = &current {
            let room = wait.check(outlet, source);
            if room == Room::LongFull && !std::mem::replace(&mut is_reported, true) {
                outlet.report_problem(SPEC.id, &CollectError::NoRoom("the journal".to_owned()));
            }
            if room != Room::Free {
                // journalctl waits as well, and the journal keeps new entries.
                outlet.pause(ROOM_EVERY);
                continue;
            }
            if std::mem::take(&mut is_reported) {
                outlet.recovered(SPEC.id);
            }
        }
        let got = stdout.read(&mut block).map_err(failed)?;
        if got == 0 {
            return Ok(());
        }
        let now = context.now();
        let mut chunks: Vec<Chunk> = Vec::new();
        parser.push(&block[..got], |entry| {
            let (id, seqnum) = cursor_parts(entry.cursor());
            let id = format!("journal:{id}");
            if current.as_ref().is_none_or(|source| source.id != id) {
                earlier.extend(current.take().map(|source| source.id.clone()));
                let forget = earlier.drain(..).filter(|earlier| *earlier != id).collect();
                let source = current.insert(source(&id));
                chunks.push(Chunk { forget, ..Chunk::new(Arc::clone(source)) });
            }
            let source = current.as_ref().expect("set above");
            if chunks.last().is_none_or(|chunk| !Arc::ptr_eq(&chunk.source, source)) {
                chunks.push(Chunk::new(Arc::clone(source)));
            }
            let chunk = chunks.last_mut().expect("pushed above");
            chunk.cursor = Some(entry.cursor().as_bytes().to_vec());
            if context.stored.iter().any(|stored| stored.id == id && stored.has(seqnum)) {
                return;
            }
            chunk.push(now, Position(seqnum, seqnum + 1), &Body::from(entry.into_body()));
        });
        for chunk in chunks {
            outlet.emit(chunk)?;
        }
    }
}

fn readable(stdout: &ChildStdout) -> io::Result<bool> {
    let timeout = rustix::time::Timespec::try_from(LISTEN).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// Cursor of the last entry before the first one that the workspace lacks: id and sequence number suffice
/// (sd_journal_seek_cursor(3)). Absent if reading continues at the cursor itself.
fn first_missing(place: &str, stored: &[Stored]) -> Option<String> {
    let (id, _) = cursor_parts(place);
    let stored = stored.iter().find(|stored| stored.id == format!("journal:{id}") && !stored.begun)?;
    let hole = stored.first_missing(None)?;
    Some(format!("s={id};i={:x}", hole.saturating_sub(1)))
}

/// Sequence number id and sequence number of a cursor.
fn cursor_parts(cursor: &str) -> (&str, u64) {
    let part = |key: &str| cursor.split(';').find_map(|part| part.strip_prefix(key));
    let seqnum = part("i=").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    (part("s=").unwrap_or("unknown"), seqnum)
}

#[expect(clippy::ptr_arg, reason = "a key function for an iterator of String")]
fn seqnum_of(cursor: &String) -> u64 {
    cursor_parts(cursor).1
}

impl Entry {
    fn cursor(&self) -> &str {
        &self.cursor
    }
}

/// Parses a stream whole and in two reads, which must give the same entries.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let entries = |parts: &[&[u8]]| {
        let (mut parser, mut out) = (export::Parser::default(), Vec::new());
        for part in parts {
            parser.push(part, |entry| out.push(entry.into_body()));
        }
        out
    };
    let (one, two) = bytes.split_at(bytes.len() / 2);
    assert_eq!(entries(&[bytes]), entries(&[one, two]), "entries depend on where a read ends");
}

#[cfg(test)]
mod tests;
