//! Lines of a container's log file, and the records that they make.
//!
//! ```text
//! 2026-11-28T04:10:25.992573978Z stdout P first piece      CRI: P goes on, F ends (kubernetes, cri-api, "log format")
//! 2026-11-28T04:10:25.992573978Z stdout F second piece
//! {"log":"whole\n","stream":"stdout","time":"…"}           json-file: a piece without "\n" goes on
//! ```
//!
//! The pieces of the two streams may alternate. A record of the file (what the cursor passes at once) ends when no stream has an
//! open piece. A container may write no end of line at all: a record ends also if a line is five seconds away from its first, and
//! after 1,000 lines. Pieces that rotation separates are not joined.

use crate::tail::Line;
use jiff::Timestamp;
use serde::Deserialize;
use std::{borrow::Cow, collections::BTreeMap};
use vedette_wire::{
    Position,
    body::{ContainerLog, Stream},
};

/// Time for which an open piece waits for its end.
pub(super) const JOIN_NS: i64 = 5_000_000_000;
/// Maximum number of lines that the tailer takes at once.
const LINES_MAX: usize = 1000;

/// A line of Docker's json-file.
#[derive(Deserialize)]
struct JsonLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// A line of the file: a piece of what the container wrote.
struct Piece<'a> {
    message: Cow<'a, [u8]>,
    time: Option<i64>,
    stream: Option<Stream>,
    /// More of the same line follows.
    goes_on: bool,
    attributes: Option<String>,
}

fn time(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// Parses a line without its end. A line in no known format is a message without time and stream.
fn piece(line: &[u8]) -> Piece<'_> {
    cri(line).or_else(|| json(line)).unwrap_or_else(|| unknown(line))
}

/// A carriage return before the end of a line belongs to the end.
fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn unknown(line: &[u8]) -> Piece<'_> {
    let message = without_return(line).into();
    Piece { message, time: None, stream: None, goes_on: false, attributes: None }
}

fn cri(line: &[u8]) -> Option<Piece<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let (stamp, stream, tags) = (word()?, Stream::from_name(word()?)?, word()?);
    // Tags are separated by colons; the first says whether the line is whole.
    let goes_on = match tags.split(':').next()? {
        "P" => true,
        "F" => false,
        _ => return None,
    };
    let message = words.next().unwrap_or_default();
    let message = if goes_on { message } else { without_return(message) };
    Some(Piece { message: message.into(), time: Some(time(stamp)?), stream: Some(stream), goes_on, attributes: None })
}

fn json(line: &[u8]) -> Option<Piece<'_>> {
    if !line.starts_with(b"{") {
        return None;
    }
    let line: JsonLine<'_> = serde_json::from_slice(line).ok()?;
    let whole = line.log.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).len());
    let message = match line.log {
        Cow::Borrowed(text) => Cow::Borrowed(&text.as_bytes()[..whole.unwrap_or(text.len())]),
        Cow::Owned(text) => {
            let mut bytes = text.into_bytes();
            bytes.truncate(whole.unwrap_or(bytes.len()));
            Cow::Owned(bytes)
        }
    };
    Some(Piece {
        message,
        time: line.time.as_deref().and_then(time),
        stream: line.stream.as_deref().and_then(Stream::from_name),
        goes_on: whole.is_none(),
        attributes: if line.attrs.is_empty() { None } else { serde_json::to_string(&line.attrs).ok() },
    })
}

/// Whether a line of the CRI is whole, as most are: no other part of it needs to be parsed to know that.
fn is_whole(line: &[u8]) -> bool {
    let tags = line.splitn(4, |byte| *byte == b' ').nth(2);
    tags.is_some_and(|tags| {
        !line.starts_with(b"{") && tags.strip_prefix(b"F").is_some_and(|rest| matches!(rest, [] | [b'\n'] | [b':', ..]))
    })
}

/// Which streams have an open piece, while the lines of a record are read.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    open: Vec<Option<Stream>>,
    /// Time of the first line.
    since: Option<i64>,
    lines: usize,
}

impl Pieces {
    /// Whether a record ends with a line.
    pub(super) fn ends_record(&mut self, line: &[u8], is_first: bool) -> bool {
        if is_first && is_whole(line) {
            return true;
        }
        if is_first {
            *self = Self::default();
        }
        let piece = piece(line.strip_suffix(b"\n").unwrap_or(line));
        self.open.retain(|stream| *stream != piece.stream);
        if piece.goes_on {
            self.open.push(piece.stream);
        }
        self.since = self.since.or(piece.time);
        self.lines += 1;
        // The clock may have been set back.
        let is_late =
            piece.time.zip(self.since).is_some_and(|(now, since)| now.abs_diff(since) > JOIN_NS.unsigned_abs());
        self.open.is_empty() || is_late || self.lines >= LINES_MAX
    }
}

/// A record and the end of its last line.
struct Open {
    record: ContainerLog,
    end: u64,
    goes_on: bool,
}

/// The records of lines that the tailer took at once, in the order of their ends. Their positions tile the lines: each begins
/// where the one before it ends, though its pieces may lie further ahead.
pub(super) fn records(lines: &Line<'_>) -> Vec<(Position, ContainerLog)> {
    let mut found: Vec<Open> = Vec::new();
    // The last record of each stream.
    let mut last: Vec<(Option<Stream>, usize)> = Vec::new();
    let mut at = lines.position.0;
    for line in lines.whole.split_inclusive(|byte| *byte == b'\n') {
        at += line.len() as u64;
        let is_whole = line.ends_with(b"\n");
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        // The first part of a long line has its time and stream; what follows is the container's text alone.
        let mut piece = if lines.part.is_some_and(|part| part > 1) { unknown(text) } else { piece(text) };
        // The rest of a line of the file, or of a line that its file will not end.
        piece.goes_on |= !is_whole;
        let of_stream = last.iter().find(|(stream, _)| *stream == piece.stream).map(|(_, index)| *index);
        if let Some(open) = of_stream.map(|index| &mut found[index]).filter(|open| open.goes_on) {
            open.record.message.extend_from_slice(&piece.message);
            (open.end, open.goes_on) = (at, piece.goes_on);
        } else {
            let record = ContainerLog {
                message: piece.message.into_owned(),
                time: piece.time,
                stream: piece.stream,
                attributes: piece.attributes,
                part: lines.part,
                ..ContainerLog::default()
            };
            last.retain(|(stream, _)| *stream != piece.stream);
            last.push((piece.stream, found.len()));
            found.push(Open { record, end: at, goes_on: piece.goes_on });
        }
    }
    found.sort_by_key(|open| open.end);
    let mut from = lines.position.0;
    let finish = |open: Open| {
        let position = Position(from, open.end);
        from = open.end;
        // A part of a line says so.
        let unfinished = open.goes_on && lines.part.is_none();
        (position, ContainerLog { unfinished, ..open.record })
    };
    found.into_iter().map(finish).collect()
}
