use super::*;
use crate::{
    Body, Chunk, Record, Source, codec,
    columns::LENGTH_BYTES,
    packed::tests::{assert_halves, assert_survives_damage, assert_unpacks},
};
use proptest::prelude::*;
use std::sync::Arc;

fn chunk() -> Chunk {
    Chunk::new(Arc::new(Source { collector: "syslog", id: "f".to_owned(), name: None }))
}

/// A line as the parser makes it: spans in order, within the text.
fn line() -> impl Strategy<Value = (Vec<u8>, Syslog)> {
    let text = prop::collection::vec(any::<u8>().prop_map(|byte| if byte == b'\n' { 0 } else { byte }), 0..80);
    let at = prop::collection::vec((0.0..1.0_f64, any::<bool>()), 12);
    let time = prop_oneof![Just(None), any::<i64>().prop_map(Some), (0..99_i64).prop_map(|t| Some(t * 1_000_000))];
    (text, at, time, prop::option::of((0..24_u8, 0..8_u8)), 0..3_u8, any::<bool>()).prop_map(
        |(mut text, at, time, pri, inferred, crlf)| {
            // A carriage return before the line end would belong to it.
            while text.last() == Some(&b'\r') {
                text.pop();
            }
            let mut places: Vec<u32> = at.iter().map(|(share, _)| (share * (text.len() + 1) as f64) as u32).collect();
            places.sort_unstable();
            let mut spans = (0..SPANS).map(|span| at[span].1.then_some(Span(places[2 * span], places[2 * span + 1])));
            let mut next = || spans.next().flatten();
            let line = Syslog {
                raw: text.clone(),
                time,
                inferred: [Inferred::Nothing, Inferred::Zone, Inferred::YearAndZone][usize::from(inferred)],
                facility: pri.map(|(facility, _)| facility),
                severity: pri.map(|(_, severity)| severity),
                host: next(),
                app: next(),
                pid: next(),
                message_id: next(),
                structured_data: next(),
                message: next(),
                ..Syslog::default()
            };
            text.extend_from_slice(if crlf { b"\r\n" } else { b"\n" });
            (text, line)
        },
    )
}

fn packed(lines: &[(Vec<u8>, Syslog)], start: u64) -> (Chunk, Vec<Record>) {
    let (mut chunk, mut packer, mut at, mut expected) = (chunk(), Packer::default(), start, Vec::new());
    for (whole, line) in lines {
        let position = Position(at, at + whole.len() as u64);
        assert!(packer.push(whole, position, &Syslog { raw: Vec::new(), ..line.clone() }));
        expected.push(Record { source: 0, observed: 7, position, body: Body::Syslog(line.clone()) });
        at = position.1;
    }
    chunk.push_packed(7, &mut packer);
    assert!(packer.continues_at(0) && packer.finish().is_none(), "it is empty");
    (chunk, expected)
}

proptest! {
    #[test]
    fn lines_come_out_as_they_went_in(lines in prop::collection::vec(line(), 1..40), start in 0..1_u64 << 50) {
        let (chunk, expected) = packed(&lines, start);
        assert_unpacks(&chunk, &expected);
    }

    #[test]
    fn halves_hold_the_same_lines(lines in prop::collection::vec(line(), 1..40)) {
        let (chunk, expected) = packed(&lines, 5);
        assert_halves(&chunk, &expected);
    }

    #[test]
    fn damaged_lines_are_an_error_or_lines(
        lines in prop::collection::vec(line(), 1..10), at in any::<usize>(), byte in any::<u8>()
    ) {
        let (chunk, _) = packed(&lines, 0);
        assert_survives_damage(&chunk, at, byte);
    }
}

#[test]
fn what_is_no_whole_line_in_order_is_not_packed() {
    let mut packer = Packer::default();
    let plain = Syslog::default();
    assert!(packer.push(b"a b\n", Position(10, 14), &plain));
    for (whole, position, line) in [
        (&b"unfinished"[..], Position(14, 24), plain.clone()),
        (b"hole\n", Position(15, 20), plain.clone()),
        (b"other length\n", Position(14, 20), plain.clone()),
        (b"part\n", Position(14, 19), Syslog { part: Some(2), ..plain.clone() }),
        (b"gone\n", Position(14, 19), Syslog { unfinished: true, ..plain.clone() }),
        (b"half a PRI\n", Position(14, 25), Syslog { facility: Some(1), ..plain.clone() }),
        (b"outside\n", Position(14, 22), Syslog { message: Some(Span(3, 8)), ..plain.clone() }),
        (b"order\n", Position(14, 20), Syslog { host: Some(Span(3, 4)), app: Some(Span(0, 1)), ..plain.clone() }),
    ] {
        assert!(!packer.push(whole, position, &line), "{whole:?}");
    }
    assert!(packer.push(b"next\n", Position(14, 19), &plain));
    let mut chunk = chunk();
    chunk.push_packed(1, &mut packer);
    assert_eq!(chunk.decode().expect("decodes").len(), 2);
}

/// A few bytes may state any number of lines; a reader must not allocate a thousand times that.
#[test]
fn more_lines_than_a_batch_may_have_are_refused() {
    let (mut chunk, mut packer) = (chunk(), Packer::default());
    for at in 0..codec::RECORDS_MAX as u64 + 1 {
        assert!(packer.push(b"\n", Position(at, at + 1), &Syslog::default()));
    }
    chunk.push_packed(1, &mut packer);
    assert!(matches!(chunk.decode(), Err(codec::DecodeError::Many)));
}

#[test]
fn a_count_that_wraps_around_is_refused() {
    let line = Syslog { raw: b"a".to_vec(), ..Syslog::default() };
    let (chunk, _) = packed(&[(b"a\n".to_vec(), line)], 0);
    let mut bytes = chunk.encode();
    // The count is the first of the columns: 1, as one byte.
    let columns = bytes.len() - LENGTH_BYTES - usize::from(bytes[bytes.len() - LENGTH_BYTES]);
    assert_eq!(bytes[columns], 1);
    let mut endless = Vec::new();
    put(u64::MAX, &mut endless);
    let (at, grown) = (bytes.len() - LENGTH_BYTES, u32::try_from(endless.len() - 1).expect("few"));
    let length = u32::from_le_bytes(bytes[at..].try_into().expect("four")) + grown;
    bytes[at..].copy_from_slice(&length.to_le_bytes());
    bytes.splice(columns..=columns, endless);
    let head = bytes.windows(HEAD.len()).position(|window| window == HEAD).expect("is there") + HEAD.len();
    let length = u32::from_be_bytes(bytes[head..head + 4].try_into().expect("four")) + grown;
    bytes[head..head + 4].copy_from_slice(&length.to_be_bytes());
    let before = packed(&[(b"b\n".to_vec(), Syslog::default())], 0).0.encode();
    let both = [before, bytes].concat();
    assert!(matches!(codec::decode_records(&both), Err(codec::DecodeError::Many)));
    drop((codec::halve(&both), codec::outline(&both)));
}
