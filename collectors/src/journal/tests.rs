use super::*;
use proptest::prelude::*;
use vedette_wire::body::Journal as Body5;

fn parse(pieces: &[&[u8]]) -> Vec<Body5> {
    let (mut parser, mut out) = (Parser::default(), Vec::new());
    for piece in pieces {
        parser.push(piece, |entry| out.push(entry.into_body()));
    }
    out
}

const EXPORT: &[u8] = b"__CURSOR=s=ab;i=1f;b=cd;m=1;t=2;x=3\n__REALTIME_TIMESTAMP=1795404079123456\nPRIORITY=6\n\
    _UID=1000\n_COMM=sudo\n_TRANSPORT=syslog\nSYSLOG_FACILITY=10\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n\
    CODE_LINE=7\n\n__CURSOR=s=ab;i=20;b=cd;m=1;t=2;x=3\nMESSAGE=a=b\n\n";

#[test]
fn text_and_binary_fields_are_read_however_the_bytes_come() {
    let whole = parse(&[EXPORT]);
    assert_eq!(whole.len(), 2);
    assert_eq!((whole[0].message.as_str(), whole[0].uid, whole[0].facility), ("two\nlines", Some(1000), Some(10)));
    assert_eq!(whole[0].time, 1_795_404_079_123_456_000);
    assert_eq!(whole[0].more.keys().collect::<Vec<_>>(), ["CODE_LINE"]);
    assert_eq!(whole[1].message, "a=b");
    for cut in 0..EXPORT.len() {
        assert_eq!(parse(&[&EXPORT[..cut], &EXPORT[cut..]]), whole, "cut at {cut}");
    }
}

/// An entry with a large value, in pieces as from a pipe.
fn with_large(field: &[u8], value: impl Iterator<Item = u8>) -> Vec<Body5> {
    let mut bytes = b"__CURSOR=s=ab;i=1;b=c\nMESSAGE=before\n".to_vec();
    bytes.extend_from_slice(field);
    bytes.extend(value);
    bytes.extend_from_slice(b"\n_PID=7\n\n__CURSOR=s=ab;i=2;b=c\nMESSAGE=after\n\n");
    let pieces: Vec<&[u8]> = bytes.chunks(70_000).collect();
    parse(&pieces)
}

#[test]
fn a_value_that_is_too_large_is_cut_and_noted_and_the_next_entry_is_read() {
    let large = 5_u64 << 20;
    let binary = [b"COREDUMP\n".as_slice(), &large.to_le_bytes()].concat();
    for field in [binary.as_slice(), b"COREDUMP="] {
        let entries = with_large(field, std::iter::repeat_n(b'x', large as usize));
        let messages: Vec<&str> = entries.iter().map(|entry| entry.message.as_str()).collect();
        assert_eq!(messages, ["before", "after"]);
        assert_eq!((entries[0].pid, entries[0].more["VEDETTE_CUT"].as_str()), (Some(7), "COREDUMP"));
        assert_eq!(entries[0].more["COREDUMP"].len(), 256 << 10);
        assert!(!entries[1].more.contains_key("VEDETTE_CUT"));
    }
}

#[test]
fn an_entry_of_many_large_values_stays_within_its_limit() {
    let mut bytes = b"__CURSOR=s=ab;i=1;b=c\n".to_vec();
    for number in 0..20 {
        bytes.extend_from_slice(format!("FIELD{number}={}\n", "x".repeat(200_000)).as_bytes());
    }
    bytes.push(b'\n');
    let entry = &parse(&[&bytes])[0];
    let total: usize = entry.more.values().map(String::len).sum();
    assert!(total < 600 << 10, "{total}");
    assert!(entry.more["VEDETTE_CUT"].starts_with("FIELD2 FIELD3"), "{}", entry.more["VEDETTE_CUT"]);
}

#[test]
fn the_place_of_a_cursor_is_its_sequence_number() {
    assert_eq!(cursor_parts("s=ab;i=4ece7;b=cd"), ("ab", 0x4ece7));
    assert_eq!(cursor_parts("nonsense"), ("unknown", 0));
}

#[test]
fn after_a_lost_queue_reading_goes_on_at_the_first_hole() {
    let stored = |begun| Stored { id: "journal:ab".to_owned(), ranges: vec![(10, 20), (30, 40)], begun, floor: 0 };
    assert_eq!(first_missing("s=ab;i=27;b=cd", &[stored(false)]).as_deref(), Some("s=ab;i=13"), "behind 19");
    assert_eq!(first_missing("s=ab;i=27;b=cd", &[stored(true)]), None, "it was gone on with since");
    assert_eq!(first_missing("s=other;i=27", &[stored(false)]), None);
    assert_eq!(
        [9, 10, 19, 20, 30, 39, 40].map(|at| stored(false).has(at)),
        [false, true, true, false, true, true, false]
    );
}

#[test]
fn a_host_without_a_journal_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let context = CollectorContext::new(dir.path(), Arc::new(|| 1));
    let Ok(Plan::Absent(why)) = Definition::build(&Settings::default(), &context) else { panic!("not absent") };
    assert!(why.contains("/var/log/journal"), "{why}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&[&bytes]);
    }
}
