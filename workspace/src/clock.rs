//! Wall clock, and times as text.

use time::OffsetDateTime;

/// Wall clock, nanoseconds UTC.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn date_time(nanoseconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(nanoseconds.div_euclid(1_000_000_000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `YYYY-MM-DD` of a time, nanoseconds UTC.
pub(crate) fn day(nanoseconds: i64) -> String {
    let date = date_time(nanoseconds).date();
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// RFC 3339 in seconds, with `Z`, of a time in nanoseconds UTC.
pub(crate) fn rfc3339(nanoseconds: i64) -> String {
    let clock = date_time(nanoseconds).time();
    format!("{}T{:02}:{:02}:{:02}Z", day(nanoseconds), clock.hour(), clock.minute(), clock.second())
}
