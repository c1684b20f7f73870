//! The head of a log line: what stands before host and program, as the systems write it.
//!
//! ```text
//! RFC 5424       <34>1 2026-10-11T22:14:15.003Z
//! RFC 3164       <34>Oct 11 22:14:15
//! with a year    Nov 26 2026 10:00:28        Nov 26 10:00:28 2026
//! with a zone    Nov 26 10:00:46 UTC
//! rsyslog ISO    2026-10-11T22:14:15.003123+02:00, 2026-10-11 22:14:15,003 +0200
//! Cisco IOS      <189>123: *Nov 26 10:31:00.123: %SYS-5-CONFIG_I: …
//! audit          node=web1 type=USER_LOGIN msg=audit(1795404079.123:456): …
//! ```
//!
//! A stamp that has the form of one and no possible value (hour 24, an offset of 99 hours) is found all the same: what
//! stands behind it is read. NUL bytes, a byte order mark and blanks before the line are passed over.

use std::ops::Range;

/// The time of a stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nanoseconds UTC.
    Utc(i64),
    /// Nanoseconds of the host's local time, as if it were UTC.
    Local(i64),
    /// A day without its year.
    Yearless(Yearless),
    /// No possible time.
    Impossible,
}

/// A day and a time of day without a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Yearless {
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    nanoseconds: i64,
    /// The stamp states UTC.
    pub is_utc: bool,
}

impl Yearless {
    /// Nanoseconds in a year, as if the time were UTC; absent if the year lacks that day or the value is out of range.
    pub fn in_year(self, year: i64) -> Option<i64> {
        let Self { month, day, hour, minute, second, nanoseconds, .. } = self;
        civil_seconds(year, month, day, hour, minute, second)?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    }
}

/// A time stamp in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Byte range in the line.
    pub text: Range<usize>,
    /// Time.
    pub when: When,
}

/// What follows the head of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// Fields of RFC 5424 from the host name on.
    Rfc5424,
    /// An optional host name, an optional tag, and the message.
    Traditional,
    /// An optional tag and the message: the head named the host, or there is none.
    Tag {
        /// Host in the head.
        host: Option<Range<usize>>,
    },
    /// The whole line is the message.
    Plain {
        /// Host in the line.
        host: Option<Range<usize>>,
    },
}

/// The head of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Facility times eight plus severity; absent without a PRI.
    pub pri: Option<u8>,
    /// Its time stamp.
    pub stamp: Option<Stamp>,
    /// Form of the rest.
    pub form: Form,
    /// Start of the rest.
    pub end: usize,
}

/// Parses the head of any line.
pub fn head(raw: &[u8]) -> Head {
    let start = before(raw);
    let Some((pri, at)) = pri(raw, start) else {
        return match traditional(raw, start) {
            Some((stamp, form, end)) => Head { pri: None, stamp: Some(stamp), form, end },
            None => audit(raw),
        };
    };
    if let Some((stamp, end)) = rfc5424(raw, at) {
        return Head { pri: Some(pri), stamp, form: Form::Rfc5424, end };
    }
    let at = blanks(raw, at);
    if let Some((stamp, form, end)) = traditional(raw, at).or_else(|| cisco(raw, at)) {
        return Head { pri: Some(pri), stamp: Some(stamp), form, end };
    }
    Head { pri: Some(pri), stamp: None, form: Form::Tag { host: None }, end: at }
}

/// Start of the line after NUL bytes, byte order mark and spaces.
fn before(raw: &[u8]) -> usize {
    let mut at = raw.iter().take_while(|byte| **byte == 0).count();
    if raw[at..].starts_with(b"\xef\xbb\xbf") {
        at += 3;
    }
    blanks(raw, at)
}

fn blanks(raw: &[u8], at: usize) -> usize {
    at + raw[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

fn is_end(byte: Option<&u8>) -> bool {
    matches!(byte, None | Some(b' ' | b'\t'))
}

/// Parses `<0>` to `<191>` (RFC 5424 §6.2.1); also returns its end.
fn pri(raw: &[u8], at: usize) -> Option<(u8, usize)> {
    let rest = raw[at..].strip_prefix(b"<")?;
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
        return None;
    }
    let pri = u8::try_from(number(&rest[..digits])?).ok().filter(|pri| *pri <= 191)?;
    Some((pri, at + digits + 2))
}

/// Parses `1 ` and a stamp or `-`. Version 1 accepts any word for the stamp; later versions need a valid one.
fn rfc5424(raw: &[u8], at: usize) -> Option<(Option<Stamp>, usize)> {
    let digits = raw[at..].iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=3).contains(&digits) || raw[at] == b'0' || raw.get(at + digits) != Some(&b' ') {
        return None;
    }
    let start = at + digits + 1;
    let length = memchr::memchr(b' ', &raw[start..]).unwrap_or(raw.len() - start);
    let end = start + length;
    let behind = (end + 1).min(raw.len());
    if &raw[start..end] == b"-" {
        return Some((None, behind));
    }
    let stamp = iso(raw, start).filter(|stamp| stamp.text.end == end);
    let is_first = &raw[at..at + digits] == b"1" && length > 0;
    let stamp = stamp.or_else(|| is_first.then_some(Stamp { text: start..end, when: When::Impossible }))?;
    Some((Some(stamp), behind))
}

/// Parses an ISO or traditional stamp, with optional extras before the host.
fn traditional(raw: &[u8], at: usize) -> Option<(Stamp, Form, usize)> {
    let stamp = if raw.get(at)?.is_ascii_digit() { iso(raw, at)? } else { month(raw, at)? };
    let end = stamp.text.end;
    if raw.get(end) == Some(&b':') && is_end(raw.get(end + 1)) {
        return Some((stamp, Form::Tag { host: None }, blanks(raw, end + 1)));
    }
    is_end(raw.get(end)).then(|| (stamp, Form::Traditional, blanks(raw, end)))
}

/// `123: *Nov 26 10:31:00.123: %SYS-5-…`, `123: router1: .Nov 26 …` (Cisco IOS, "service sequence-numbers", "logging
/// origin-id").
fn cisco(raw: &[u8], at: usize) -> Option<(Stamp, Form, usize)> {
    let word = |at: usize| {
        let length = raw[at..].iter().position(|byte| *byte == b':' || *byte == b' ').filter(|length| *length > 0)?;
        (raw[at + length] == b':').then_some(at..at + length)
    };
    let marked = |at: usize| blanks(raw, at) + usize::from(matches!(raw.get(blanks(raw, at)), Some(b'*' | b'.')));
    let sequence = word(at).filter(|word| raw[word.clone()].iter().all(u8::is_ascii_digit));
    let begin = sequence.map_or(at, |word| blanks(raw, word.end + 1));
    if let Some(found) = traditional(raw, marked(begin)) {
        return Some(found);
    }
    let host = word(begin)?;
    let (stamp, form, end) = traditional(raw, marked(host.end + 1))?;
    (form == Form::Tag { host: None }).then_some((stamp, Form::Tag { host: Some(host) }, end))
}

/// A record of auditd(8); any other line is a message.
fn audit(raw: &[u8]) -> Head {
    let plain = Head { pri: None, stamp: None, form: Form::Plain { host: None }, end: 0 };
    let value = |key: &[u8], at: usize| {
        let start = raw[at..].starts_with(key).then_some(at + key.len())?;
        let length = memchr::memchr(b' ', &raw[start..])?;
        Some(start..start + length)
    };
    let host = value(b"node=", 0);
    let Some(kind) = value(b"type=", host.as_ref().map_or(0, |host| host.end + 1)) else { return plain };
    const BEFORE: &[u8] = b"msg=audit(";
    let Some(stamp) = value(BEFORE, kind.end + 1) else { return plain };
    let text = &raw[stamp.clone()];
    // `1795404079.123:456):`
    let (Some(dot), Some(colon)) = (memchr::memchr(b'.', text), memchr::memchr(b':', text)) else { return plain };
    if !(1..=11).contains(&dot) || colon != dot + 4 {
        return plain;
    }
    let (Some(seconds), Some(milliseconds)) = (number(&text[..dot]), number(&text[dot + 1..colon])) else {
        return plain;
    };
    let when = seconds.checked_mul(1_000_000_000).and_then(|at| at.checked_add(milliseconds * 1_000_000));
    let stamp = Stamp { text: stamp.start..stamp.start + colon, when: when.map_or(When::Impossible, When::Utc) };
    Head { stamp: Some(stamp), form: Form::Plain { host }, ..plain }
}

/// Parses a number of few enough digits.
fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0_i64, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// Parses two digits.
fn pair(text: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (text.get(at)?.wrapping_sub(b'0'), text.get(at + 1)?.wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| i64::from(tens * 10 + ones))
}

/// Parses `.003` or `,003` after a time as nanoseconds; also returns its end.
fn fraction(raw: &[u8], at: usize) -> (i64, usize) {
    if !matches!(raw.get(at), Some(b'.' | b',')) {
        return (0, at);
    }
    let digits = raw[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let used = digits.min(9);
    let value = number(&raw[at + 1..at + 1 + used]).unwrap_or(0) * 10_i64.pow(9 - used as u32);
    if digits == 0 { (0, at) } else { (value, at + 1 + digits) }
}

/// Parses `Z`, `+02:00`, `+0200` or `+02` as seconds, absent if impossible; also returns its end.
fn offset(raw: &[u8], at: usize) -> Option<(Option<i64>, usize)> {
    match raw.get(at)? {
        b'Z' | b'z' => Some((Some(0), at + 1)),
        sign @ (b'+' | b'-') => {
            let hours = pair(raw, at + 1)?;
            let (minutes, end) = match raw.get(at + 3) {
                Some(b':') => (pair(raw, at + 4)?, at + 6),
                Some(byte) if byte.is_ascii_digit() => (pair(raw, at + 3)?, at + 5),
                _ => (0, at + 3),
            };
            let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60);
            Some((seconds.map(|seconds| if *sign == b'-' { -seconds } else { seconds }), end))
        }
        _ => None,
    }
}

/// Parses `2026-10-11T22:14:15.003123+02:00`, also with a space for the `T` and a comma for the point. Text that follows
/// without a space makes the stamp unknown.
fn iso(raw: &[u8], at: usize) -> Option<Stamp> {
    let text = raw[at..].get(..19)?;
    if text[4] != b'-' || text[7] != b'-' || !matches!(text[10], b'T' | b't' | b' ') || text[13] != b':' {
        return None;
    }
    let [century, of_century, month, day, hour, minute, second] = [0, 2, 5, 8, 11, 14, 17].map(|at| pair(text, at));
    let seconds = civil_seconds(century? * 100 + of_century?, month?, day?, hour?, minute?, second?);
    let (nanoseconds, mut end) = fraction(raw, at + 19);
    // Some daemons log `2026-11-26 10:00:34 +0100`.
    let apart = text[10] == b' ' && matches!(raw.get(end..end + 2), Some([b' ', b'+' | b'-']));
    let zone = offset(raw, end + usize::from(apart)).filter(|(_, end)| !apart || is_end(raw.get(*end)));
    end = zone.map_or(end, |(_, end)| end);
    if !is_end(raw.get(end)) && raw[end] != b':' {
        let length = raw[end..].iter().position(|byte| is_end(Some(byte))).unwrap_or(raw.len() - end);
        return Some(Stamp { text: at..end + length, when: When::Impossible });
    }
    let nanoseconds =
        |seconds: i64| seconds.checked_mul(1_000_000_000).and_then(|seconds| seconds.checked_add(nanoseconds));
    let when = match zone {
        None => seconds.and_then(nanoseconds).map(When::Local),
        Some((None, _)) => None,
        Some((Some(offset), _)) => seconds.and_then(|seconds| nanoseconds(seconds - offset)).map(When::Utc),
    };
    Some(Stamp { text: at..end, when: when.unwrap_or(When::Impossible) })
}

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// Names of UTC. The meaning of other abbreviations depends on the country.
const UTC: [&[u8]; 3] = [b"UTC", b"GMT", b"Z"];
/// Abbreviations that follow a time and are not host names.
const ZONES: [&[u8]; 20] = [
    b"CET", b"CEST", b"EET", b"EEST", b"WET", b"WEST", b"MSK", b"BST", b"IST", b"JST", b"KST", b"AEST", b"AEDT",
    b"EST", b"EDT", b"CST", b"CDT", b"MST", b"PST", b"PDT",
];

/// Parses a year of four digits.
fn year(raw: &[u8], at: usize) -> Option<i64> {
    let year = pair(raw, at)? * 100 + pair(raw, at + 2)?;
    ((1970..2200).contains(&year) && is_end(raw.get(at + 4))).then_some(year)
}

/// Parses `Oct 11 22:14:15`, `Oct  1 22:14:15`, `Oct 1 22:14:15.123`, also with a year after the day or the time, and with a
/// zone.
fn month(raw: &[u8], at: usize) -> Option<Stamp> {
    let name = raw.get(at..at + 3)?;
    let month = MONTHS.iter().position(|month| month[..] == *name)? as i64 + 1;
    if raw.get(at + 3) != Some(&b' ') {
        return None;
    }
    let from = at + 4 + usize::from(raw.get(at + 4) == Some(&b' '));
    let digits = raw[from..].iter().take(3).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=2).contains(&digits) || raw.get(from + digits) != Some(&b' ') {
        return None;
    }
    let day = number(&raw[from..from + digits])?;
    let mut clock = from + digits + 1;
    let mut in_year = year(raw, clock);
    if in_year.is_some() {
        clock += 5;
    }
    if raw.get(clock + 2) != Some(&b':') || raw.get(clock + 5) != Some(&b':') {
        return None;
    }
    let (hour, minute, second) = (pair(raw, clock)?, pair(raw, clock + 3)?, pair(raw, clock + 6)?);
    let (nanoseconds, mut end) = fraction(raw, clock + 8);
    let word = |end: usize| {
        let rest = raw.get(end..)?.strip_prefix(b" ")?;
        Some(&rest[..rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b':')).unwrap_or(rest.len())])
    };
    let mut is_utc = false;
    if let Some(zone) = word(end).filter(|word| UTC.contains(word) || ZONES.contains(word)) {
        is_utc = UTC.contains(&zone);
        end += 1 + zone.len();
    }
    if in_year.is_none() && word(end).is_some() {
        in_year = year(raw, end + 1);
        end += if in_year.is_some() { 5 } else { 0 };
    }
    let yearless = Yearless { month, day, hour, minute, second, nanoseconds, is_utc };
    // A leap year has all days.
    let exists = civil_seconds(2024, month, day, hour, minute, second).is_some();
    let when = match in_year {
        _ if !exists => When::Impossible,
        None => When::Yearless(yearless),
        Some(year) => match yearless.in_year(year) {
            None => When::Impossible,
            Some(at) if is_utc => When::Utc(at),
            Some(at) => When::Local(at),
        },
    };
    Some(Stamp { text: at..end, when })
}

/// From 1 March of year 0 to 1 January 1970.
const DAYS_BEFORE_EPOCH: i64 = 719_468;

/// Seconds since the epoch of a civil UTC time in years 0 to 9999; absent for an impossible time. Called for each line. Counts
/// days in years that begin in March, so that the leap day is the last. A leap second equals the second before.
pub fn civil_seconds(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = before + (153 * month + 2) / 5 + day - 1 - DAYS_BEFORE_EPOCH;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second.min(59))
}
