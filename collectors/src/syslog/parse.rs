//! Recognises what is in a line: spans, not copies. What is not recognised stays whole in `raw`.
//!
//! ```text
//! RFC 5424       <34>1 2026-10-11T22:14:15.003Z web1 su 812 ID47 [a@1 b="c"] message
//! RFC 3164       <34>Oct 11 22:14:15 web1 su[812]: message
//! traditional    Oct 11 22:14:15 web1 su[812]: message
//! rsyslog ISO    2026-10-11T22:14:15.003123+02:00 web1 su[812]: message
//! ```

use jiff::tz::TimeZone;
use vedette_wire::body::{Inferred, Span, Syslog};

/// Parse one line. `now` dates a time stamp without a year, `zone` one without a zone.
pub(crate) fn line(raw: &[u8], now: i64, zone: &TimeZone) -> Syslog {
    Syslog { raw: raw.to_vec(), ..recognise(raw, now, zone) }
}

/// The same, without a copy of the line in `raw`.
pub(crate) fn recognise(raw: &[u8], now: i64, zone: &TimeZone) -> Syslog {
    let mut out = Syslog::default();
    let mut at = Scanner { raw, at: 0 };
    let pri = at.pri();
    if let Some(pri) = pri {
        out.facility = Some(pri >> 3);
        out.severity = Some(pri & 7);
        if at.eat(b"1 ") {
            rfc5424(&mut at, &mut out);
            return out;
        }
    }
    if !at.time(&mut out, now, zone) {
        if pri.is_some() {
            out.message = at.rest();
        }
        return out;
    }
    at.eat(b" ");
    out.host = at.word();
    tag(&mut at, &mut out);
    out.message = at.rest();
    out
}

fn rfc5424(at: &mut Scanner<'_>, out: &mut Syslog) {
    if let Some(Span(from, to)) = at.word()
        && let Some((time, _)) = iso_time(&at.raw[from as usize..to as usize])
    {
        out.time = Some(time);
    }
    out.host = at.field();
    out.app = at.field();
    out.pid = at.field();
    out.message_id = at.field();
    if at.eat(b"-") {
        at.eat(b" ");
    } else if at.peek() == Some(b'[') {
        out.structured_data = at.structured_data();
        at.eat(b" ");
    }
    at.eat(b"\xef\xbb\xbf");
    out.message = at.rest();
}

/// `su[812]: `, `kernel: `; a line without a tag is all message.
fn tag(at: &mut Scanner<'_>, out: &mut Syslog) {
    let rest = &at.raw[at.at..];
    // RFC 3164 allows 32 characters; real tags are longer, but not much.
    let Some(end) = rest.iter().take(128).position(|byte| matches!(byte, b':' | b'[' | b' ')) else { return };
    let start = at.at;
    let mut next = start + end;
    let mut pid = None;
    if rest[end] == b'[' {
        let digits = rest[end + 1..].iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        if digits == 0 || rest.get(end + 1 + digits) != Some(&b']') {
            return;
        }
        pid = Some(span(next + 1, next + 1 + digits));
        next += digits + 2;
    }
    if end == 0 || at.raw.get(next) != Some(&b':') {
        return;
    }
    out.app = Some(span(start, start + end));
    out.pid = pid;
    at.at = next + 1;
    at.eat(b" ");
}

fn span(from: usize, to: usize) -> Span {
    // Lines are cut at 1 MiB.
    Span(from as u32, to as u32)
}

struct Scanner<'a> {
    raw: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.raw.get(self.at).copied()
    }

    fn eat(&mut self, prefix: &[u8]) -> bool {
        let eaten = self.raw[self.at..].starts_with(prefix);
        if eaten {
            self.at += prefix.len();
        }
        eaten
    }

    /// `<0>` to `<191>`.
    fn pri(&mut self) -> Option<u8> {
        let rest = self.raw.strip_prefix(b"<")?;
        let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=3).contains(&digits) || rest.get(digits) != Some(&b'>') {
            return None;
        }
        let pri = rest[..digits].iter().fold(0_u32, |pri, digit| pri * 10 + u32::from(digit - b'0'));
        if pri > 191 {
            return None;
        }
        self.at = digits + 2;
        u8::try_from(pri).ok()
    }

    /// Up to the next blank, which is eaten.
    fn word(&mut self) -> Option<Span> {
        let rest = &self.raw[self.at..];
        let length = memchr::memchr(b' ', rest).unwrap_or(rest.len());
        let found = (length > 0).then(|| span(self.at, self.at + length));
        self.at = (self.at + length + 1).min(self.raw.len());
        found
    }

    /// A word, where `-` stands for none.
    fn field(&mut self) -> Option<Span> {
        self.word().filter(|Span(from, to)| &self.raw[*from as usize..*to as usize] != b"-")
    }

    /// `[id name="value"]…`, with `\"`, `\\` and `\]` inside values.
    fn structured_data(&mut self) -> Option<Span> {
        let start = self.at;
        let (mut quoted, mut escaped) = (false, false);
        for (index, byte) in self.raw[start..].iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b']' if !quoted && self.raw.get(start + index + 1) != Some(&b'[') => {
                    self.at = start + index + 1;
                    return Some(span(start, self.at));
                }
                _ => {}
            }
        }
        None
    }

    fn rest(&mut self) -> Option<Span> {
        (self.at < self.raw.len()).then(|| span(self.at, self.raw.len()))
    }

    /// An ISO or a traditional time stamp.
    fn time(&mut self, out: &mut Syslog, now: i64, zone: &TimeZone) -> bool {
        let rest = &self.raw[self.at..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            let length = memchr::memchr(b' ', rest).unwrap_or(rest.len());
            let Some((time, has_zone)) = iso_time(&rest[..length]) else { return false };
            out.time = Some(if has_zone { time } else { local(time, zone) });
            out.inferred = if has_zone { Inferred::Nothing } else { Inferred::Zone };
            self.at += length;
            return true;
        }
        let Some(time) = traditional_time(rest, now, zone) else { return false };
        out.time = Some(time);
        out.inferred = Inferred::YearAndZone;
        self.at += 15;
        true
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0_i64, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// `2026-10-11T22:14:15.003123+02:00` as nanoseconds; the second value says whether it names a zone.
fn iso_time(text: &[u8]) -> Option<(i64, bool)> {
    if text.len() < 19 || text[4] != b'-' || text[7] != b'-' || !matches!(text[10], b'T' | b't') || text[13] != b':' {
        return None;
    }
    let [century, of_century, month, day, hour, minute, second] = [0, 2, 5, 8, 11, 14, 17].map(|at| pair(text, at));
    let seconds = civil_seconds(century? * 100 + of_century?, month?, day?, hour?, minute?, second?)?;
    let mut rest = &text[19..];
    let mut nanoseconds = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let used = digits.min(9);
        nanoseconds = number(&fraction[..used])? * 10_i64.pow(9 - used as u32);
        rest = &fraction[digits..];
    }
    let offset = match rest {
        [] => None,
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let offset = number(&[*h1, *h2])? * 3600 + number(&[*m1, *m2])? * 60;
            Some(if *sign == b'-' { -offset } else { offset })
        }
        _ => return None,
    };
    let utc = (seconds - offset.unwrap_or(0)).checked_mul(1_000_000_000)?.checked_add(nanoseconds)?;
    Some((utc, offset.is_some()))
}

/// Two digits.
fn pair(text: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| i64::from(tens * 10 + ones))
}

/// Seconds since the epoch of a civil time in UTC, in years 0 to 9999. Reckoned here, for each line: the days before a year
/// that begins in March, so that the leap day is its last.
fn civil_seconds(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<i64> {
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
    // A leap second is the second before.
    Some(days * 86_400 + hour * 3600 + minute * 60 + second.min(59))
}

/// From 1 March of year 0 to 1 January 1970.
const DAYS_BEFORE_EPOCH: i64 = 719_468;

/// Nanoseconds of a civil time, given as if it were UTC, in a zone.
fn local(utc: i64, zone: &TimeZone) -> i64 {
    let (seconds, nanoseconds) = (utc.div_euclid(1_000_000_000), utc.rem_euclid(1_000_000_000));
    let shifted = jiff::Timestamp::from_second(seconds)
        .and_then(|timestamp| zone.to_timestamp(TimeZone::UTC.to_datetime(timestamp)));
    // At the very end of time the shifted one has no place in 64 bits: then it stays as if it were UTC.
    let shifted = shifted.ok().and_then(|at| at.as_second().checked_mul(1_000_000_000)?.checked_add(nanoseconds));
    shifted.unwrap_or(utc)
}

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// `Oct 11 22:14:15`, `Oct  1 22:14:15`: the year is the one that puts it nearest before tomorrow.
fn traditional_time(text: &[u8], now: i64, zone: &TimeZone) -> Option<i64> {
    let text = text.get(..15)?;
    if text[3] != b' ' || text[6] != b' ' || text[9] != b':' || text[12] != b':' {
        return None;
    }
    let month = MONTHS.iter().position(|month| month[..] == text[..3])? as i64 + 1;
    let day = number(if text[4] == b' ' { &text[5..6] } else { &text[4..6] })?;
    let part = |from: usize| number(&text[from..from + 2]);
    let (hour, minute, second) = (part(7)?, part(10)?, part(13)?);
    let today = jiff::Timestamp::from_nanosecond(i128::from(now)).ok()?.to_zoned(zone.clone());
    let in_year = |year: i16| {
        let utc = civil_seconds(i64::from(year), month, day, hour, minute, second)?;
        Some(local(utc.checked_mul(1_000_000_000)?, zone))
    };
    const DAY: i64 = 86_400_000_000_000;
    match in_year(today.year()) {
        Some(time) if time <= now + DAY => Some(time),
        // 31 December read on 1 January; 29 February exists in some years only.
        this_year => in_year(today.year() - 1).or(this_year),
    }
}

#[cfg(test)]
mod tests;
