use super::*;
use crate::{
    Body, Chunk, PACKED_ENTRIES, Record, Source, codec,
    packed::tests::{assert_halves, assert_survives_damage, assert_unpacks},
};
use proptest::prelude::*;
use std::{collections::HashMap, sync::Arc};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn chunk() -> Chunk {
    Chunk::new(Arc::new(Source { collector: "journal", id: "journal:s".to_owned(), name: None }))
}

fn head(realtime: u64, monotonic: u64, hash: u64) -> EntryHead {
    EntryHead { sequence: [0x5e; 16], boot: [0xb0; 16], realtime, monotonic, hash }
}

/// Entries whose fields come from a small set, so that they repeat.
fn entry() -> impl Strategy<Value = (EntryHead, u64, Fields)> {
    let name = prop_oneof!["MESSAGE|PRIORITY|_PID|_UID|_COMM|_EXE|A|B".prop_map(String::into_bytes), any::<Vec<u8>>()];
    let value = prop_oneof!["[0-9a]{0,2}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..200)];
    let fields = prop::collection::vec((name, value), 0..12);
    (any::<(u64, u64, u64)>(), 0..3_u64, fields)
        .prop_map(|((realtime, monotonic, hash), span, fields)| (head(realtime, monotonic, hash), span + 1, fields))
}

fn add(packer: &mut EntryPacker, known: &mut HashMap<(Vec<u8>, Vec<u8>), usize>, fields: &Fields) {
    for field in fields {
        match known.get(field) {
            Some(number) => packer.repeat(*number),
            None => drop(known.insert(field.clone(), packer.field(&field.0, &field.1))),
        }
    }
}

/// The entries packed, and the records that are expected.
fn packed(entries: &[(EntryHead, u64, Fields)], start: u64) -> (Chunk, Vec<Record>) {
    let (mut chunk, mut packer, mut at, mut expected) = (chunk(), EntryPacker::default(), start, Vec::new());
    let mut known = HashMap::new();
    for (head, span, fields) in entries {
        let position = Position(at, at + span);
        assert!(packer.begin(head, position));
        add(&mut packer, &mut known, fields);
        let whole = Unpacked {
            position,
            head: *head,
            fields: fields.iter().map(|(name, value)| (&name[..], &value[..])).collect(),
            plain: 0,
        };
        expected.push(Record { source: 0, observed: 7, position, body: Body::Journal(whole.into_entry()) });
        at = position.1;
    }
    chunk.push_entries(7, &mut packer);
    assert_eq!((packer.plain_bytes(), packer.finish().is_none()), (0, true), "it is empty");
    (chunk, expected)
}

proptest! {
    #[test]
    fn entries_come_out_as_they_went_in(entries in prop::collection::vec(entry(), 1..20), start in 0..1_u64 << 50) {
        let (chunk, expected) = packed(&entries, start);
        prop_assert_eq!(chunk.version, PACKED_ENTRIES);
        assert_unpacks(&chunk, &expected);
    }

    #[test]
    fn halves_hold_the_same_entries(entries in prop::collection::vec(entry(), 2..20)) {
        let (chunk, expected) = packed(&entries, 5);
        prop_assert_eq!(assert_halves(&chunk, &expected) + 40, chunk.plain_bytes(), "the envelope aside");
    }

    #[test]
    fn damaged_entries_are_an_error_or_entries(
        entries in prop::collection::vec(entry(), 1..6), at in any::<usize>(), byte in any::<u8>()
    ) {
        let (chunk, _) = packed(&entries, 0);
        assert_survives_damage(&chunk, at, byte);
    }
}

/// A single entry has no halves.
#[test]
fn one_entry_is_not_halved() {
    let (chunk, expected) = packed(&[(head(1, 2, 3), 1, Vec::new())], 5);
    assert_halves(&chunk, &expected);
}

#[test]
fn halves_are_of_one_size_and_share_their_fields() {
    let (mut packer, mut field) = (EntryPacker::default(), 0);
    for at in 0..100 {
        assert!(packer.begin(&head(at, at, at), Position(at, at + 1)));
        match at {
            0 => field = packer.field(b"A", &[b'x'; 1000]),
            _ => packer.repeat(field),
        }
    }
    let mut chunk = chunk();
    chunk.push_entries(1, &mut packer);
    let halves = codec::halve(&chunk.encode()).expect("records").expect("two");
    assert_eq!(halves.each_ref().map(|half| half.count), [50, 50]);
    assert!(halves.iter().all(|half| half.bytes.len() < 3000 && half.plain > 50_000));
}

/// The packer stops where the reader does.
#[test]
fn a_body_has_as_many_different_fields_as_a_reader_takes() {
    let (mut packer, mut chunk) = (EntryPacker::default(), chunk());
    let most = TEXT_FIELDS_MAX as u64 / FIELDS_MAX + 1;
    for at in 0..most {
        assert!(packer.begin(&head(at, at, at), Position(at, at + 1)));
        for _ in 0..FIELDS_MAX {
            packer.field(b"A", b"");
        }
    }
    assert!(!packer.begin(&head(0, 0, 0), Position(most, most + 1)));
    chunk.push_entries(1, &mut packer);
    assert_eq!(chunk.decode().expect("decodes").len() as u64, most);
    assert!(codec::decode_records(&hostile(most, FIELDS_MAX)).is_ok());
    assert!(codec::decode_records(&hostile(most + 1, FIELDS_MAX)).is_err());
}

#[test]
fn positions_behind_the_last_entry_are_refused() {
    let (mut packer, mut chunk) = (EntryPacker::default(), chunk());
    assert!(packer.begin(&head(1, 1, 1), Position(5, 6)));
    chunk.push_entries(1, &mut packer);
    let (entry, body) = chunk.bodies().next().expect("one");
    for (position, is_right) in [(Position(5, 6), true), (Position(5, 7), false), (Position(5, 5), false)] {
        let mut record = Vec::new();
        codec::append_record(0, entry.observed, position, body, &mut record);
        assert_eq!(codec::decode_records(&record).is_ok(), is_right, "{position:?}");
    }
}

/// Text that is not UTF-8 is larger as a row.
#[test]
fn the_decoded_size_counts_replaced_bytes() {
    let size = |value: &[u8]| {
        let (mut packer, mut chunk) = (EntryPacker::default(), chunk());
        assert!(packer.begin(&head(1, 1, 1), Position(5, 6)));
        packer.field(b"A", value);
        chunk.push_entries(1, &mut packer);
        codec::scan(&header(1), &chunk.encode(), |_| {}).expect("scans")
    };
    assert_eq!(size(&[0xff; 100]), size(&[b'x'; 300]));
}

#[test]
fn entries_of_another_boot_or_sequence_or_place_are_not_packed_together() {
    let (mut packer, first) = (EntryPacker::default(), head(1, 1, 1));
    assert!(packer.begin(&first, Position(5, 6)));
    for (head, position) in [
        (EntryHead { boot: [1; 16], ..first }, Position(6, 7)),
        (EntryHead { sequence: [1; 16], ..first }, Position(6, 7)),
        (first, Position(7, 8)),
        (first, Position(5, 6)),
        (first, Position(6, 5)),
    ] {
        assert!(!packer.begin(&head, position), "{position:?}");
    }
    assert!(packer.begin(&first, Position(6, 9)));
    let mut chunk = chunk();
    chunk.push_entries(1, &mut packer);
    let records = chunk.decode().expect("decodes");
    let Body::Journal(last) = &records[1].body else { panic!("an entry") };
    let (s, b) = ("5e".repeat(16), "b0".repeat(16));
    assert_eq!((records[1].position, &last.cursor), (Position(6, 9), &format!("s={s};i=8;b={b};m=1;t=1;x=1")));
}

/// A few bytes repeat a field any number of times; a reader must not build all of that.
#[test]
fn fields_that_repeat_to_more_than_a_batch_may_be_are_refused() {
    let (large, mut packer) = (vec![b'x'; 1 << 20], EntryPacker::default());
    let mut field = 0;
    for at in 0..300 {
        assert!(packer.begin(&head(0, 0, 0), Position(at, at + 1)));
        match at {
            0 => field = packer.field(b"A", &large),
            _ => packer.repeat(field),
        }
    }
    let mut chunk = chunk();
    chunk.push_entries(1, &mut packer);
    assert!(chunk.plain_bytes() > 300 << 20, "an agent counts it");
    let bytes = chunk.encode();
    assert!(bytes.len() < 2 << 20);
    assert!(matches!(codec::decode_records(&bytes), Err(codec::DecodeError::TooLarge { .. })), "and can be split");
    assert!(codec::unpack(&bytes).is_err());
    let halves = codec::halve(&bytes).expect("records").expect("two");
    assert_eq!(halves.map(|half| half.count), [150, 150]);
    // Two records that are within the limit alone.
    let (mut half, mut packer) = (Chunk { entries: Vec::new(), bodies: Vec::new(), ..chunk }, EntryPacker::default());
    for at in 0..100 {
        assert!(packer.begin(&head(0, 0, 0), Position(at, at + 1)));
        match at {
            0 => field = packer.field(b"A", &large),
            _ => packer.repeat(field),
        }
    }
    half.push_entries(1, &mut packer);
    let both = half.encode().repeat(2);
    assert!(codec::unpack(&half.encode()).is_ok());
    let ignore = |_: codec::Scanned<'_>| {};
    assert!(matches!(codec::scan(&header(200), &both, ignore), Err(codec::DecodeError::TooLarge { .. })));
    assert!(codec::unpack(&both).is_err());
    assert!(codec::scan(&header(100), &half.encode(), ignore).is_ok_and(|plain| plain > 100 << 20), "as decoded");
    let halves = codec::halve(&both).expect("records").expect("two");
    assert!(halves.iter().all(|half| half.count == 100 && half.plain > 100 << 20), "they can be sent");
}

fn header(records: u32) -> crate::Header {
    let organization = crate::OrganizationId(Default::default());
    let header = crate::Header::new(
        organization,
        crate::AgentId([7; 16]),
        crate::LaneName::Records,
        crate::geo::WorkspaceGeo::Europe,
    );
    crate::Header { records, ..header }
}

/// A record that states a number of entries, each with as many empty new fields; hashes are there for a few.
fn hostile(count: u64, fields: u64) -> Vec<u8> {
    let mut body = Vec::new();
    columns::begin(HEAD, &mut body);
    body.extend([0; 2 * ID_BYTES]);
    body.resize(body.len() + HASH_BYTES * usize::try_from(count).map_or(0, |count| count % 100), 0);
    let at = body.len();
    put(count, &mut body);
    // Positions, times, fields of each entry, references to new fields, and their lengths.
    for number in [1, 0, 0, fields, 0, 0, 0] {
        body.push(1);
        put(number, &mut body);
    }
    columns::finish(HEAD, at, &mut body);
    let mut record = Vec::new();
    codec::append_record(0, 1, Position(0, count), &body, &mut record);
    record
}

/// Counts of fields and of entries cost no bytes where all are equal.
#[test]
fn counts_without_bytes_behind_them_are_refused() {
    for (count, fields) in
        [(1, u64::MAX), (1, 1 << 40), (u64::MAX, 1), (u64::MAX / 8, 1), (1 << 40, 0), (700, 0), (1, FIELDS_MAX + 1)]
    {
        let bytes = hostile(count, fields);
        assert!(codec::decode_records(&bytes).is_err(), "{count} entries of {fields} fields");
        drop((codec::halve(&bytes), codec::outline(&bytes), codec::unpack(&bytes)));
    }
}
