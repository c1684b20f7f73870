//! Packed lines: several lines of a log file in one record, as their text and as columns of recognised fields.
//!
//! Separate records would cost more bytes for envelopes and field names than compression saves. A packed record is a [`Record`]
//! in the batch whose body is `{"syslog_lines": bytes}` and whose position covers all its lines. It decodes to one record per
//! line. The bytes:
//!
//! | part | content |
//! |---|---|
//! | text | whole lines with their ends, concatenated as in the file |
//! | columns | number of lines, and the columns (`columns`) |
//! | length | length of the columns, `u32` little-endian |
//!
//! Columns: flags; times as differences, preceded by their unit in nanoseconds; facility times eight plus severity (PRI, RFC 5424
//! §6.2.1); and for each of host, application, process id, message id, structured data and message its distance from the end of
//! the previous span, and its length. A message that ends with the line has no length.
//!
//! [`Record`]: crate::Record

use crate::{
    Position,
    body::{Inferred, Span, Syslog},
    columns::{self, Numbers, Packed, SHORT, UnpackError, column, put, unzigzag, zigzag},
};

const SPANS: usize = 6;
const MESSAGE: usize = SPANS - 1;

// Flags of a line, most frequent first, so that one byte suffices for most lines.
const TIME: u64 = 1;
const ZONE_INFERRED: u64 = 1 << 1;
const YEAR_INFERRED: u64 = 1 << 2;
// Those of the spans are in the order of the columns.
const SPAN: [u64; SPANS] = [1 << 3, 1 << 4, 1 << 5, 1 << 8, 1 << 9, 1 << 6];
const PRI: u64 = 1 << 7;
const MESSAGE_ENDS: u64 = 1 << 10;
const KNOWN: u64 = (1 << 11) - 1;

/// `{"syslog_lines": bin 32` (MessagePack), before the length.
pub(crate) const HEAD: &[u8] = b"\x81\xacsyslog_lines\xc6";

/// Packs consecutive lines of a file.
#[derive(Debug, Default)]
pub struct Packer {
    /// The body so far: head and text.
    body: Vec<u8>,
    /// Length of the last body, as a hint for the next.
    length_hint: usize,
    position: Option<Position>,
    count: u32,
    flags: Vec<u8>,
    times: Vec<i64>,
    priorities: Vec<u8>,
    distances: [Vec<u8>; SPANS],
    lengths: [Vec<u8>; SPANS],
}

fn spans(line: &Syslog) -> [Option<Span>; SPANS] {
    [line.host, line.app, line.pid, line.message_id, line.structured_data, line.message]
}

impl Packer {
    /// Whether a line at this position continues the packed ones.
    pub fn continues_at(&self, position: u64) -> bool {
        self.position.is_none_or(|Position(_, end)| end == position)
    }

    /// Packs a line: its bytes with the line end, its position, and its recognised fields (`raw` is ignored). Returns false and
    /// changes nothing for a line that must be a record of its own: one that does not continue the packed
    /// lines, is partial or unfinished, has only one of facility and severity or a severity above 7, or has spans out of order.
    pub fn push(&mut self, whole: &[u8], position: Position, line: &Syslog) -> bool {
        let text = without_end(whole);
        let fits = whole.last() == Some(&b'\n')
            && position.1.wrapping_sub(position.0) == whole.len() as u64
            && self.continues_at(position.0)
            && line.part.is_none()
            && !line.unfinished
            && line.facility.is_some() == line.severity.is_some()
            && line.severity.is_none_or(|severity| severity < 8);
        let mut end = 0;
        let in_order = spans(line).into_iter().flatten().all(|Span(from, to)| {
            let follows = from >= end && to >= from;
            end = to;
            follows
        });
        if !fits || !in_order || end as usize > text.len() {
            return false;
        }
        let mut flags = match line.inferred {
            Inferred::Nothing => 0,
            Inferred::Zone => ZONE_INFERRED,
            Inferred::YearAndZone => YEAR_INFERRED,
        };
        if let Some(time) = line.time {
            flags |= TIME;
            self.times.push(time);
        }
        if let (Some(facility), Some(severity)) = (line.facility, line.severity) {
            flags |= PRI;
            put(u64::from(facility) << 3 | u64::from(severity), &mut self.priorities);
        }
        let mut end = 0;
        for (index, span) in spans(line).into_iter().enumerate() {
            let Some(Span(from, to)) = span else { continue };
            flags |= SPAN[index];
            put(u64::from(from - end), &mut self.distances[index]);
            if index == MESSAGE && to as usize == text.len() {
                flags |= MESSAGE_ENDS;
            } else {
                put(u64::from(to - from), &mut self.lengths[index]);
            }
            end = to;
        }
        // In the stored flags the bit means that the message does not end with the line, which is rare.
        put(flags ^ MESSAGE_ENDS, &mut self.flags);
        if self.body.is_empty() {
            self.body.reserve(self.length_hint);
            columns::begin(HEAD, &mut self.body);
        }
        self.body.extend_from_slice(whole);
        self.position.get_or_insert(position).1 = position.1;
        self.count += 1;
        true
    }

    /// Encodes the packed lines as a body, and empties the packer.
    pub(crate) fn finish(&mut self) -> Option<Packed> {
        let position = self.position.take()?;
        let mut body = std::mem::take(&mut self.body);
        let text_end = body.len();
        let count = std::mem::take(&mut self.count);
        put(u64::from(count), &mut body);
        column(&mut self.flags, &mut body);
        let unit =
            [1_000_000_000, 1_000_000, 1_000].into_iter().find(|unit| self.times.iter().all(|time| time % unit == 0));
        let (unit, mut last, mut times) = (unit.unwrap_or(1), 0, Vec::with_capacity(3 * self.times.len() + 10));
        put(unit as u64, &mut times);
        for time in self.times.drain(..) {
            let time = time / unit;
            put(zigzag(time.wrapping_sub(last)), &mut times);
            last = time;
        }
        column(&mut times, &mut body);
        column(&mut self.priorities, &mut body);
        for numbers in self.distances.iter_mut().chain(&mut self.lengths) {
            column(numbers, &mut body);
        }
        columns::finish(HEAD, text_end, &mut body);
        self.length_hint = body.len();
        let plain = body.len();
        Some(Packed { body, position, count, plain })
    }
}

/// A line without `\n` or `\r\n`, as the tailer splits it.
fn without_end(whole: &[u8]) -> &[u8] {
    let line = whole.strip_suffix(b"\n").unwrap_or(whole);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Decodes packed lines one after the other. Checks all numbers, since the bytes are untrusted.
pub(crate) struct Lines<'a> {
    text: &'a [u8],
    at: u64,
    flags: Numbers<'a>,
    times: Numbers<'a>,
    unit: i64,
    time: i64,
    priorities: Numbers<'a>,
    distances: [Numbers<'a>; SPANS],
    lengths: [Numbers<'a>; SPANS],
}

/// A line, unpacked.
pub(crate) struct Unpacked<'a> {
    /// The line with its end.
    pub(crate) whole: &'a [u8],
    pub(crate) position: Position,
    /// Recognised fields, without `raw`.
    pub(crate) line: Syslog,
}

impl Unpacked<'_> {
    /// Recognised fields, with `raw`.
    pub(crate) fn into_line(self) -> Syslog {
        Syslog { raw: without_end(self.whole).to_vec(), ..self.line }
    }
}

impl<'a> Lines<'a> {
    /// Opens the bytes of a body whose record has this position; also returns the stated number of lines.
    pub(crate) fn open(packed: &'a [u8], position: Position) -> Result<(Self, u64), UnpackError> {
        let (text, columns) = columns::open(packed)?;
        if position.1.checked_sub(position.0) != Some(text.len() as u64) {
            return Err("packed lines are not as long as their position says");
        }
        let mut columns = Numbers::new(columns);
        let left = columns.next()?;
        let (flags, mut times, priorities) = (columns.column()?, columns.column()?, columns.column()?);
        let unit = times.next()?.cast_signed();
        let mut span_columns = || -> Result<[Numbers<'a>; SPANS], UnpackError> {
            let mut columns = || columns.column();
            Ok([columns()?, columns()?, columns()?, columns()?, columns()?, columns()?])
        };
        let (distances, lengths) = (span_columns()?, span_columns()?);
        if left == 0 || !columns.is_empty() {
            return Err("packed lines have no lines, or more columns than this build knows");
        }
        let lines = Self { text, at: position.0, flags, times, unit, time: 0, priorities, distances, lengths };
        Ok((lines, left))
    }

    /// The next one.
    pub(crate) fn next_line(&mut self) -> Result<Unpacked<'a>, UnpackError> {
        let end = memchr::memchr(b'\n', self.text).ok_or(SHORT)? + 1;
        let (whole, rest) = self.text.split_at(end);
        let flags = self.flags.next()? ^ MESSAGE_ENDS;
        if flags & !KNOWN != 0 {
            return Err("packed lines have flags that this build does not know");
        }
        let mut line = Syslog {
            inferred: match flags & (ZONE_INFERRED | YEAR_INFERRED) {
                0 => Inferred::Nothing,
                ZONE_INFERRED => Inferred::Zone,
                _ => Inferred::YearAndZone,
            },
            ..Syslog::default()
        };
        if flags & TIME != 0 {
            self.time = self.time.wrapping_add(unzigzag(self.times.next()?));
            line.time = Some(self.time.checked_mul(self.unit).ok_or("a time of packed lines is out of range")?);
        }
        if flags & PRI != 0 {
            let pri = self.priorities.next()?;
            let facility = u8::try_from(pri >> 3).map_err(|_| "a facility of packed lines is out of range")?;
            (line.facility, line.severity) = (Some(facility), Some(pri as u8 & 7));
        }
        let length = without_end(whole).len() as u64;
        let mut spans = [None; SPANS];
        let mut at = 0_u64;
        for (index, span) in spans.iter_mut().enumerate() {
            if flags & SPAN[index] == 0 {
                continue;
            }
            let from = at.saturating_add(self.distances[index].next()?);
            let ends = index == MESSAGE && flags & MESSAGE_ENDS != 0;
            at = if ends { length } else { from.saturating_add(self.lengths[index].next()?) };
            if from > at || at > length {
                return Err("a span of packed lines is outside its line");
            }
            let narrow = |number| u32::try_from(number).map_err(|_| "a packed line is too long");
            *span = Some(Span(narrow(from)?, narrow(at)?));
        }
        [line.host, line.app, line.pid, line.message_id, line.structured_data, line.message] = spans;
        let position = Position(self.at, self.at + end as u64);
        (self.text, self.at) = (rest, position.1);
        Ok(Unpacked { whole, position, line })
    }

    /// Checks that nothing is behind the last one.
    pub(crate) fn check_end(&self) -> Result<(), UnpackError> {
        let columns = self.distances.iter().chain(&self.lengths).chain([&self.flags, &self.times, &self.priorities]);
        let empty = self.text.is_empty() && columns.into_iter().all(|column| column.is_empty());
        if empty { Ok(()) } else { Err("packed lines have bytes after the last line") }
    }
}

#[cfg(test)]
mod tests;
