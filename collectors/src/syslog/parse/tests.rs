use super::*;
use proptest::prelude::*;

/// 2026-11-23T03:21:19Z
const NOW: i64 = 1_795_404_079_000_000_000;

fn zone() -> TimeZone {
    TimeZone::fixed(jiff::tz::offset(2))
}

/// facility.severity, UTC time, host, app, pid, message
type Expected<'a> = (Option<(u8, u8)>, Option<&'a str>, &'a str, &'a str, &'a str, &'a str);

fn check(text: &str, expected: Expected<'_>) {
    let parsed = line(text.as_bytes(), Origin::Any, NOW, &zone());
    let pick = |span| parsed.text(span).unwrap_or_default().into_owned();
    let time = parsed.time.map(|time| jiff::Timestamp::from_nanosecond(time.into()).expect("in range").to_string());
    let found = (
        parsed.facility.zip(parsed.severity),
        time.as_deref(),
        &*pick(parsed.host),
        &*pick(parsed.app),
        &*pick(parsed.pid),
        &*parsed.message_text(),
    );
    assert_eq!(found, expected, "{text}");
    assert_eq!(parsed.raw, text.as_bytes());
}

#[test]
fn formats_that_hosts_write_are_recognised() {
    check(
        "<34>1 2026-10-11T22:14:15.003Z web1 su 812 ID47 [a@1 b=\"c]\\\"\"][d e=\"f\"] 'su root' failed",
        (Some((4, 2)), Some("2026-10-11T22:14:15.003Z"), "web1", "su", "812", "'su root' failed"),
    );
    check(
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc - - - %% It's time.",
        (Some((20, 5)), Some("2003-08-24T12:14:15.000003Z"), "192.0.2.1", "myproc", "", "%% It's time."),
    );
    check("<13>1 - - - - - -", (Some((1, 5)), None, "", "", "", "<13>1 - - - - - -"));
    check(
        "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
        (
            Some((4, 2)),
            Some("2026-10-11T20:14:15Z"),
            "mymachine",
            "su",
            "",
            "'su root' failed for lonvick on /dev/pts/8",
        ),
    );
    check(
        "Nov  3 22:14:15 web1 sshd[812]: Server listening",
        (None, Some("2026-11-03T20:14:15Z"), "web1", "sshd", "812", "Server listening"),
    );
    check(
        "2026-11-23T03:21:19.123456+00:00 web1 systemd[1]: Started a thing.",
        (None, Some("2026-11-23T03:21:19.123456Z"), "web1", "systemd", "1", "Started a thing."),
    );
    check(
        "2026-11-23T05:21:19 web1 kernel: [    0.000000] Linux version",
        (None, Some("2026-11-23T03:21:19Z"), "web1", "kernel", "", "[    0.000000] Linux version"),
    );
    check("Nov 23 05:21:19 web1 no tag here", (None, Some("2026-11-23T03:21:19Z"), "web1", "", "", "no tag here"));
    check("<13>just text", (Some((1, 5)), None, "", "", "", "just text"));
}

#[test]
fn what_is_not_syslog_is_kept_whole() {
    for text in ["", "hello", "<", "<999>x", "<>x", "12345", "2026-13-45T99:99:99Z x", "Feb 30", "<1", "hello: x"] {
        let parsed = line(text.as_bytes(), Origin::Any, NOW, &zone());
        assert_eq!((parsed.raw.as_slice(), parsed.app, parsed.time), (text.as_bytes(), None, None), "{text}");
    }
}

#[test]
fn a_time_without_a_year_gets_the_one_nearest_before_tomorrow() {
    check("Dec 31 23:59:59 h a: m", (None, Some("2025-12-31T21:59:59Z"), "h", "a", "", "m"));
    check("Nov 24 04:00:00 h a: m", (None, Some("2026-11-24T02:00:00Z"), "h", "a", "", "m"));
    check("Feb 29 04:00:00 h a: m", (None, Some("2024-02-29T02:00:00Z"), "h", "a", "", "m"));
    // The sender's clock runs ahead; the line is not from last year.
    check("Nov 24 23:00:00 h a: m", (None, Some("2026-11-24T21:00:00Z"), "h", "a", "", "m"));
    check("Nov 26 23:00:00 h a: m", (None, Some("2025-11-26T21:00:00Z"), "h", "a", "", "m"));
    assert_eq!(line(b"Jan  1 00:00:00 h a: m", Origin::Any, NOW, &zone()).inferred, Inferred::YearAndZone);
}

#[test]
fn the_end_of_time_does_no_harm_in_any_zone() {
    for hours in [-12, -5, 0, 5, 14] {
        let zone = TimeZone::fixed(jiff::tz::offset(hours));
        for text in [
            "2262-04-11T23:47:16 h a: x",
            "2262-04-11T23:47:16-12:00 h a: x",
            "1677-09-21T00:12:44 h a: x",
            "9999-12-31T23:59:59 h a: x",
        ] {
            for now in [i64::MIN, 0, NOW, i64::MAX] {
                line(text.as_bytes(), Origin::Any, now, &zone);
                line(b"Dec 31 23:59:59 h a: m", Origin::Any, now, &zone);
            }
        }
    }
}

#[test]
fn structured_data_without_an_end_does_not_hide_the_line() {
    let parsed = line(b"<13>1 2026-10-11T22:14:15Z h a - - [broken message", Origin::Any, NOW, &zone());
    assert_eq!(parsed.structured_data, None);
    assert_eq!(parsed.message_text(), "[broken message");
}

proptest! {
    #[test]
    fn no_line_makes_it_panic_and_every_span_is_inside(raw in prop::collection::vec(any::<u8>(), 0..200), now: i64) {
        let parsed = line(&raw, Origin::Any, now, &zone());
        for Span(from, to) in
            [parsed.host, parsed.app, parsed.pid, parsed.message_id, parsed.structured_data, parsed.message].into_iter().flatten()
        {
            prop_assert!(from <= to && to as usize <= raw.len());
        }
    }

    #[test]
    fn near_misses_do_not_panic(text in "(<[0-9]{0,4}>)?(1 )?([A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8}|[0-9T:.+-]{10,35})? ?[a-z0-9\\[\\]: \"\\\\=-]{0,60}") {
        line(text.as_bytes(), Origin::Any, NOW, &zone());
    }
}

#[test]
fn every_day_is_the_calendar_s() {
    for year in [0, 1, 99, 100, 400, 1899, 1900, 1969, 1970, 1999, 2000, 2023, 2024, 2026, 2100, 9999_i16] {
        for month in 0..=13_i8 {
            for day in 0..=32_i8 {
                let expected = jiff::civil::DateTime::new(year, month, day, 23, 59, 58, 0)
                    .ok()
                    .and_then(|time| Some(TimeZone::UTC.to_timestamp(time).ok()?.as_second()));
                let found = stamp::civil_seconds(year.into(), month.into(), day.into(), 23, 59, 58);
                assert!(
                    found == expected || year == 9999 && expected.is_none(),
                    "{year}-{month}-{day}: {found:?} {expected:?}"
                );
            }
        }
    }
    for (hour, minute, second) in [(24, 0, 0), (0, 60, 0), (0, 0, 61)] {
        assert_eq!(stamp::civil_seconds(2026, 1, 1, hour, minute, second), None);
    }
    assert_eq!(stamp::civil_seconds(2016, 12, 31, 23, 59, 60), stamp::civil_seconds(2016, 12, 31, 23, 59, 59));
}

/// A case of `cases.jsonl`: the columns of a line of a real system.
#[derive(serde::Deserialize)]
struct Case {
    id: String,
    via: String,
    line: String,
    now: Option<String>,
    zone: Option<String>,
    expect: serde_json::Map<String, serde_json::Value>,
}

/// All columns of the line, and `login` with its log-in.
fn columns(line: Syslog) -> serde_json::Map<String, serde_json::Value> {
    use vedette_wire::{body::RowContext, column::Value};
    let body = vedette_wire::Body::Syslog(line);
    let time = |nanoseconds: i64| jiff::Timestamp::from_nanosecond(nanoseconds.into()).expect("in range").to_string();
    let mut out = serde_json::Map::new();
    let context = RowContext { source_name: None, position: vedette_wire::Position(0, 0) };
    for (column, value) in body.kind().columns.iter().zip(body.row(&context)) {
        let value = match value {
            Value::Null => serde_json::Value::Null,
            Value::Text(text) if column.name == "pid" => text.parse::<u32>().map_or(text.into(), Into::into),
            Value::Text(text) => text.into(),
            Value::Integer(number) => number.into(),
            Value::Boolean(truth) => truth.into(),
            Value::Time(at) => time(at).into(),
        };
        out.insert(column.name.to_owned(), value);
    }
    out.insert("time".to_owned(), body.time().map_or(serde_json::Value::Null, |at| time(at).into()));
    let mut login = serde_json::Map::new();
    for name in ["user", "source", "port", "success", "by"] {
        login.insert(name.to_owned(), out[&format!("login_{name}")].clone());
    }
    login.insert("activity".to_owned(), body.activity().into());
    let is_login = body.class() == vedette_wire::ocsf::OcsfClass::Authentication;
    out.insert("login".to_owned(), if is_login { login.into() } else { serde_json::Value::Null });
    out
}

#[test]
fn lines_of_real_systems_have_their_right_columns() {
    let mut wrong = Vec::new();
    for line in include_str!("cases.jsonl").lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        let now = case.now.as_deref().unwrap_or("2026-11-26T12:00:00Z").parse::<jiff::Timestamp>().expect("a time");
        let zone = case.zone.as_deref().map_or(TimeZone::UTC, |name| TimeZone::get(name).expect("a zone"));
        let origin = if case.via == "datagram" { Origin::LocalSocket } else { Origin::Any };
        let now = i64::try_from(now.as_nanosecond()).expect("in range");
        let found = columns(super::line(case.line.as_bytes(), origin, now, &zone));
        for (name, expected) in &case.expect {
            let matches = match (&found[name], expected) {
                (serde_json::Value::Object(found), serde_json::Value::Object(expected)) => {
                    expected.iter().all(|(name, value)| found[name] == *value)
                }
                (found, expected) => found == expected,
            };
            if !matches {
                wrong.push(format!("{}: {name} is {}, not {expected}", case.id, found[name]));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_time_that_is_not_read_is_said_to_be_the_observation_s() {
    for (text, inferred) in [("Nov 26 24:00:00 web1 app: x", "observed"), ("hello", "observed")] {
        assert_eq!(columns(line(text.as_bytes(), Origin::Any, NOW, &zone()))["time_inferred"], inferred, "{text}");
    }
}

#[test]
fn records_of_auditd_have_their_own_time_and_host() {
    let text = "node=web1 type=USER_LOGIN msg=audit(1795404079.123:456): pid=1 uid=0 msg='op=login'";
    let found = columns(line(text.as_bytes(), Origin::Any, NOW, &zone()));
    assert_eq!((&found["time"], &found["log_hostname"]), (&"2026-11-23T03:21:19.123Z".into(), &"web1".into()));
    assert_eq!((&found["message"], &found["time_inferred"]), (&text.into(), &serde_json::Value::Null));
    for text in
        ["type=X msg=audit(1.2:3): x", "type=X msg=audit(99999999999.123:3): x", "type=", "node=a type=b msg=audit("]
    {
        assert_eq!(
            columns(line(text.as_bytes(), Origin::Any, NOW, &zone()))["time"],
            serde_json::Value::Null,
            "{text}"
        );
    }
}

proptest! {
    /// A user chooses the message, but no host or program.
    #[test]
    fn a_message_changes_no_other_field(message in "[ -~]{0,60}") {
        let found = columns(line(format!("Nov 23 03:21:19 web1 app[7]: {message}").as_bytes(), Origin::Any, NOW, &zone()));
        for (name, expected) in [("log_hostname", "web1"), ("app", "app")] {
            prop_assert_eq!(&found[name], &serde_json::Value::from(expected));
        }
        prop_assert_eq!(&found["pid"], &serde_json::Value::from(7));
    }
}
