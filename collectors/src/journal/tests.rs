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

#[test]
fn a_value_that_is_too_large_is_passed_over_and_the_next_entry_is_read() {
    let mut bytes = b"__CURSOR=s=ab;i=1;b=c\nMESSAGE=before\nCOREDUMP\n".to_vec();
    let large = 5_u64 << 20;
    bytes.extend_from_slice(&large.to_le_bytes());
    bytes.extend(std::iter::repeat_n(b'x', large as usize));
    bytes.extend_from_slice(b"\n\n__CURSOR=s=ab;i=2;b=c\nMESSAGE=after\n\n");
    let pieces: Vec<&[u8]> = bytes.chunks(70_000).collect();
    let messages: Vec<String> = parse(&pieces).into_iter().map(|entry| entry.message).collect();
    assert_eq!(messages, ["before", "after"]);
}

#[test]
fn the_place_of_a_cursor_is_its_sequence_number() {
    assert_eq!(place_of_parts("s=ab;i=4ece7;b=cd"), ("ab", 0x4ece7));
    assert_eq!(place_of_parts("nonsense"), ("unknown", 0));
}

#[test]
fn a_host_without_a_journal_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let cx = Cx {
        root: dir.path().to_owned(),
        clock: Arc::new(|| 1),
        cursors: Vec::new(),
        enabled: Default::default(),
        once: None,
    };
    let Ok(Plan::Absent(why)) = build(toml::Table::new(), &cx) else { panic!("not absent") };
    assert!(why.contains("/var/log/journal"), "{why}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse(&[&bytes]);
    }
}
