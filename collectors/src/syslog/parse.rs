//! Recognises fields of a line as spans, without copies. Unrecognised lines stay whole in `raw`. The forms of the head are
//! those of [`vedette_wire::stamp`]; an optional host and an optional tag follow.
//!
//! ```text
//! web1 su[812]: message            web1 syslogd 1.4.1: message      sshd[1]: message (no host)
//! alpine auth.info sshd[123]: …    web1 a message without a tag
//! ```

use jiff::tz::TimeZone;
use std::ops::Range;
use vedette_wire::{
    body::{Inferred, Span, Syslog, severity_and_facility},
    stamp::{self, Form, When, Yearless},
};

/// Origin of a line, which restricts its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file or a network sender: host names are common.
    Any,
    /// The local socket: syslog(3) writes no host name.
    LocalSocket,
}

/// Parses a line. `now` dates a time stamp without a year, `zone` one without a zone.
pub(crate) fn line(raw: &[u8], origin: Origin, now: i64, zone: &TimeZone) -> Syslog {
    Syslog { raw: raw.to_vec(), ..recognise(raw, origin, now, zone) }
}

/// Parses a line without copying it to `raw`.
pub(crate) fn recognise(raw: &[u8], origin: Origin, now: i64, zone: &TimeZone) -> Syslog {
    let head = stamp::head(raw);
    let mut out = Syslog::default();
    if let Some(pri) = head.pri {
        (out.facility, out.severity) = (Some(pri >> 3), Some(pri & 7));
    }
    if let Some(stamp) = &head.stamp {
        (out.time, out.inferred) = match stamp.when {
            When::Utc(time) => (Some(time), Inferred::Nothing),
            When::Local(time) => (Some(to_utc(time, zone)), Inferred::Zone),
            When::Yearless(day) => (nearest(day, now, zone), Inferred::YearAndZone),
            When::Impossible => (None, Inferred::Nothing),
        };
        if out.time.is_none() {
            out.inferred = Inferred::Nothing;
        }
    }
    let mut scanner = Scanner { raw, offset: head.end };
    match head.form {
        Form::Rfc5424 => rfc5424(&mut scanner, &mut out),
        Form::Traditional => {
            host(&mut scanner, &mut out, origin);
            tag(&mut scanner, &mut out);
            out.message = scanner.rest();
        }
        Form::Tag { host } => {
            out.host = host.map(span);
            tag(&mut scanner, &mut out);
            out.message = scanner.rest();
        }
        Form::Plain { host } => out.host = host.map(span),
    }
    out
}

fn rfc5424(scanner: &mut Scanner<'_>, out: &mut Syslog) {
    out.host = scanner.field();
    out.app = scanner.field();
    out.pid = scanner.field();
    out.message_id = scanner.field();
    // Some senders omit the structured data, but not the space after it.
    scanner.blanks();
    if scanner.eat(b"-") {
        scanner.eat(b" ");
    } else if scanner.peek() == Some(b'[') {
        out.structured_data = scanner.structured_data();
        scanner.eat(b" ");
    }
    scanner.eat(b"\xef\xbb\xbf");
    out.message = scanner.rest();
}

/// The next word, if it is not a tag, and the facility and severity that busybox writes after it.
fn host(scanner: &mut Scanner<'_>, out: &mut Syslog, origin: Origin) {
    let Some(word) = scanner.next_word() else { return };
    let (text, behind) = (&scanner.raw[word.clone()], Scanner { raw: scanner.raw, offset: word.end });
    let is_address = || std::str::from_utf8(text).is_ok_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    if (text.ends_with(b":") || memchr::memchr2(b'[', b']', text).is_some()) && !is_address() {
        return;
    }
    let mut next = Scanner { raw: scanner.raw, offset: behind.offset };
    next.blanks();
    if origin == Origin::LocalSocket && next.tag().is_none() {
        return;
    }
    out.host = Some(span(word));
    scanner.offset = next.offset;
    if let Some(word) = scanner.next_word()
        && let Some((severity, facility)) = severity_and_facility(&scanner.raw[word.clone()])
    {
        scanner.offset = word.end;
        scanner.blanks();
        if out.facility.is_none() {
            (out.severity, out.facility) = (Some(severity), Some(facility));
        }
    }
}

/// `su[812]: `, `kernel: `; a line without a tag is all message.
fn tag(scanner: &mut Scanner<'_>, out: &mut Syslog) {
    if let Some(tag) = scanner.tag() {
        (out.app, out.pid) = (Some(span(tag.app)), tag.pid.map(span));
        scanner.offset = tag.end;
    }
}

fn span(range: Range<usize>) -> Span {
    // Lines are cut at 1 MiB.
    Span(range.start as u32, range.end as u32)
}

/// Maximum length of a tag. RFC 3164 allows 32 characters; real tags are a little longer.
const TAG_BYTES_MAX: usize = 128;

struct Tag {
    app: Range<usize>,
    pid: Option<Range<usize>>,
    /// Start of the message.
    end: usize,
}

struct Scanner<'a> {
    raw: &'a [u8],
    offset: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.raw.get(self.offset).copied()
    }

    fn eat(&mut self, prefix: &[u8]) -> bool {
        let eaten = self.raw[self.offset..].starts_with(prefix);
        if eaten {
            self.offset += prefix.len();
        }
        eaten
    }

    fn blanks(&mut self) {
        self.offset += self.raw[self.offset..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    }

    /// The word up to the next space, which is not consumed.
    fn next_word(&self) -> Option<Range<usize>> {
        let rest = &self.raw[self.offset..];
        let length = memchr::memchr2(b' ', b'\t', rest).unwrap_or(rest.len());
        (length > 0).then_some(self.offset..self.offset + length)
    }

    /// The word up to the next space, which is consumed; `-` means none.
    fn field(&mut self) -> Option<Span> {
        let rest = &self.raw[self.offset..];
        let length = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        let (word, text) = (self.offset..self.offset + length, &rest[..length]);
        self.offset = (self.offset + length + 1).min(self.raw.len());
        (length > 0 && text != b"-").then(|| span(word))
    }

    /// `app[pid]: `, `app: `, `app 1.4.1: `. URLs, paths of other systems and bare numbers are not tags.
    fn tag(&self) -> Option<Tag> {
        let (start, rest) = (self.offset, &self.raw[self.offset..]);
        let mut end = rest.iter().take(TAG_BYTES_MAX).position(|byte| matches!(byte, b':' | b'[' | b' ' | b'\t'))?;
        let app = start..start + end;
        let mut pid = None;
        if rest[end] == b'[' {
            let inside = &rest[end + 1..];
            let length = inside.iter().take(TAG_BYTES_MAX).position(|byte| matches!(byte, b']' | b' ' | b'['))?;
            if length == 0 || inside[length] != b']' {
                return None;
            }
            pid = Some(start + end + 1..start + end + 1 + length);
            end += length + 2;
        } else if rest[end] == b' ' {
            let version = rest[end + 1..].iter().take(32).take_while(|byte| byte.is_ascii_digit() || **byte == b'.');
            let length = version.count();
            if length == 0 {
                return None;
            }
            end += 1 + length;
        }
        let is_end = rest.get(end) == Some(&b':') && !matches!(rest.get(end + 1), Some(b'/' | b'\\'));
        if !is_end || app.is_empty() || pid.is_none() && self.raw[app.clone()].iter().all(u8::is_ascii_digit) {
            return None;
        }
        let next = start + end + 1;
        Some(Tag { app, pid, end: next + usize::from(self.raw.get(next) == Some(&b' ')) })
    }

    /// `[id name="value"]…`, with `\"`, `\\` and `\]` inside values.
    fn structured_data(&mut self) -> Option<Span> {
        let start = self.offset;
        let (mut quoted, mut escaped) = (false, false);
        for (index, byte) in self.raw[start..].iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b']' if !quoted && self.raw.get(start + index + 1) != Some(&b'[') => {
                    self.offset = start + index + 1;
                    return Some(span(start..self.offset));
                }
                _ => {}
            }
        }
        None
    }

    fn rest(&mut self) -> Option<Span> {
        (self.offset < self.raw.len()).then(|| span(self.offset..self.raw.len()))
    }
}

/// Converts a civil time, given as if UTC, from a zone to nanoseconds UTC.
pub(crate) fn to_utc(civil: i64, zone: &TimeZone) -> i64 {
    let (seconds, nanoseconds) = (civil.div_euclid(1_000_000_000), civil.rem_euclid(1_000_000_000));
    let shifted = jiff::Timestamp::from_second(seconds)
        .and_then(|timestamp| zone.to_timestamp(TimeZone::UTC.to_datetime(timestamp)));
    // Near the end of the 64-bit range the time stays as if UTC.
    let shifted = shifted.ok().and_then(|at| at.as_second().checked_mul(1_000_000_000)?.checked_add(nanoseconds));
    shifted.unwrap_or(civil)
}

/// How far a line may be ahead of the clock without counting as last year's: clocks run ahead, and zones differ.
const AHEAD_NS: i64 = 2 * DAY_NS;
const DAY_NS: i64 = 86_400_000_000_000;
/// Years to search for a 29 February.
const YEARS: i16 = 8;

/// The newest year that has the day and is not ahead of the clock.
fn nearest(day: Yearless, now: i64, zone: &TimeZone) -> Option<i64> {
    let this_year = jiff::Timestamp::from_nanosecond(i128::from(now)).ok()?.to_zoned(zone.clone()).year();
    (0..=YEARS).find_map(|back| {
        let utc = day.in_year(i64::from(this_year) + 1 - i64::from(back))?;
        // Zones differ by less than a day: most lines need no rules of next year.
        if utc > now.saturating_add(AHEAD_NS + DAY_NS) {
            return None;
        }
        let time = if day.is_utc { utc } else { to_utc(utc, zone) };
        (time <= now.saturating_add(AHEAD_NS)).then_some(time)
    })
}

#[cfg(test)]
mod tests;
