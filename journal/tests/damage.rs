//! Damaged, truncated, growing and hostile files; codecs that the journald at hand does not write.

#![expect(clippy::disallowed_methods, reason = "files of a test need not be durable")]

mod support;

use proptest::prelude::*;
use std::{fs, path::PathBuf};
use support::writer::{Codec, Journal, Layout, Written, write};
use vedette_journal::{Cursor, JournalFile, OpenError, Reader};

const COMPACT: Layout = Layout { is_compact: true, codec: Codec::Zstd, first_array: 4 };

fn entries(numbers: impl IntoIterator<Item = u64>) -> Vec<Written> {
    let fields = |number: u64| {
        let mut fields = vec![
            format!("MESSAGE=message {number}").into_bytes(),
            b"_HOSTNAME=h1".to_vec(),
            format!("PRIORITY={}", number % 8).into_bytes(),
        ];
        if number.is_multiple_of(5) {
            fields.push(format!("LONG={}", format!("{number} ").repeat(400)).into_bytes());
        }
        fields
    };
    numbers.into_iter().map(|number| Written { seqnum: number, at: 1000 + number, fields: fields(number) }).collect()
}

/// The numbers of all entries that can be read, with the sum of their fields' lengths, and the damage.
fn read(bytes: Vec<u8>) -> Result<(Vec<u64>, usize, u64), OpenError> {
    let mut file = JournalFile::open(bytes)?;
    let (mut numbers, mut length) = (Vec::new(), 0);
    while let Some(head) = file.peek() {
        file.advance();
        length += file.fields(&head).iter().map(|field| field.name().len() + field.value().len()).sum::<usize>();
        numbers.push(head.seqnum);
    }
    let damage = file.take_damage();
    Ok((numbers, length, damage.entries + damage.fields))
}

#[test]
fn every_codec_and_layout_is_read_by_us_and_by_journalctl() {
    let dir = tempfile::tempdir().expect("temp dir");
    for codec in [Codec::Plain, Codec::Xz, Codec::Lz4, Codec::Zstd] {
        for is_compact in [false, true] {
            let journal = write(Layout { is_compact, codec, first_array: 3 }, &entries(1..=100));
            let path = dir.path().join(format!("{codec:?}-{is_compact}.journal"));
            fs::write(&path, &journal.bytes).expect("writes");
            let (ours, damage) = support::read_all(&[&path]);
            assert_eq!((ours.len(), damage), (100, 0), "{codec:?}");
            let long = ours[49].1.iter().find(|(name, _)| name == "LONG").expect("the fifth has it");
            assert_eq!(long.1, "50 ".repeat(400).into_bytes(), "{codec:?}");
            if support::JournalRemote::find().is_some() {
                assert!(ours == support::export_of(&[&path]), "{codec:?} {is_compact}");
            }
        }
    }
}

#[test]
fn a_damaged_entry_is_skipped_and_counted_and_those_behind_it_are_read() {
    for layout in [COMPACT, Layout { is_compact: false, ..COMPACT }] {
        let Journal { mut bytes, entries: offsets, .. } = write(layout, &entries(1..=50));
        bytes[offsets[6]] = 9;
        let (numbers, _, damage) = read(bytes).expect("opens");
        assert_eq!(damage, 1);
        assert_eq!(numbers, (1..=50).filter(|number| *number != 7).collect::<Vec<_>>());
    }
}

#[test]
fn a_damaged_field_is_missing_and_counted_and_its_entry_is_read() {
    let Journal { mut bytes, .. } = write(COMPACT, &entries(1..=50));
    let (_, whole, _) = read(bytes.clone()).expect("opens");
    let at = bytes.windows(12).position(|part| part == b"_HOSTNAME=h1");
    // The first byte of the object is its type.
    bytes[at.expect("it is there") - 72] = 0;
    let (numbers, length, damage) = read(bytes).expect("opens");
    assert_eq!((numbers.len(), damage), (50, 50));
    assert_eq!(length, whole - 50 * "_HOSTNAMEh1".len());
}

/// A size that is less than the object's own head.
#[test]
fn objects_that_are_too_small_are_counted() {
    let Journal { bytes, entries: offsets, arrays, .. } = write(COMPACT, &entries(1..=50));
    let field = bytes.windows(12).position(|part| part == b"_HOSTNAME=h1").expect("it is there") - 72;
    for (object, lost) in [(offsets[6], 1), (field, 50), (arrays[2], 38)] {
        for size in [0_u64, 16, 23] {
            let mut bytes = bytes.clone();
            bytes[object + 8..object + 16].copy_from_slice(&size.to_le_bytes());
            assert_eq!(read(bytes).expect("opens").2, lost, "{object:#x} {size}");
        }
    }
}

#[test]
fn without_a_part_of_the_chain_the_rest_is_counted() {
    let Journal { mut bytes, arrays, .. } = write(COMPACT, &entries(1..=50));
    bytes[arrays[2]] = 0;
    let (numbers, _, damage) = read(bytes).expect("opens");
    assert_eq!((numbers, damage), ((1..=12).collect(), 38), "arrays of 4 and 8 entries come before it");
}

#[test]
fn a_chain_that_leads_back_ends() {
    let Journal { mut bytes, arrays, .. } = write(COMPACT, &entries(1..=50));
    let first = (arrays[0] as u64).to_le_bytes();
    bytes[arrays[1] + 16..arrays[1] + 24].copy_from_slice(&first);
    // As many entries as the header may claim.
    bytes[152..160].copy_from_slice(&u64::MAX.to_le_bytes());
    let (numbers, ..) = read(bytes).expect("opens");
    assert_eq!(numbers.len(), 12);
}

#[test]
fn every_truncation_reads_what_is_whole() {
    let Journal { bytes, .. } = write(COMPACT, &entries(1..=30));
    for length in 0..bytes.len() {
        match read(bytes[..length].to_vec()) {
            Ok((numbers, ..)) => assert!(numbers.iter().zip(1..).all(|(number, expected)| *number == expected)),
            Err(OpenError::Header(_)) => assert!(length < 272),
            Err(OpenError::Io(err)) => panic!("{err}"),
        }
    }
}

#[test]
fn other_files_and_later_formats_say_so() {
    let error = |bytes: &[u8]| JournalFile::open(bytes.to_vec()).err().map(|err| err.to_string()).unwrap_or_default();
    assert!(error(b"").contains("not a journal"));
    assert!(error(&[b'x'; 300]).contains("not a journal"));
    let mut bytes = write(COMPACT, &entries(1..=3)).bytes;
    bytes[13] = 1;
    assert!(error(&bytes).contains("later systemd (incompatible flags 0x100)"), "{}", error(&bytes));
}

#[test]
fn a_value_that_is_too_large_is_cut_and_says_so() {
    for codec in [Codec::Plain, Codec::Xz, Codec::Lz4, Codec::Zstd] {
        let large = [b"COREDUMP=".as_slice(), &vec![b'x'; 5 << 20]].concat();
        let entry = Written { seqnum: 1, at: 1, fields: vec![b"A=1".to_vec(), large, b"B=2".to_vec()] };
        let mut file = JournalFile::open(write(Layout { codec, ..COMPACT }, &[entry]).bytes).expect("opens");
        let head = file.peek().expect("an entry");
        let fields: Vec<_> = file.fields(&head).iter().map(|field| (field.value().len(), field.is_cut())).collect();
        assert_eq!(fields, [(1, false), (256 << 10, true), (1, false)], "{codec:?}");
    }
}

#[test]
fn a_bomb_takes_no_more_memory_than_a_value() {
    // A gigabyte of zeros in a few hundred kilobytes, and a block of lz4 that claims one.
    let zeros = zstd::bulk::compress(&vec![0; 1 << 30], 3).expect("compresses");
    let journal =
        write(COMPACT, &[Written { seqnum: 1, at: 1, fields: vec![[b"A=".to_vec(), vec![b'x'; 600]].concat()] }]);
    let mut bytes = journal.bytes;
    let offset = bytes.len().next_multiple_of(8);
    bytes.resize(offset + 72, 0);
    (bytes[offset], bytes[offset + 1]) = (1, 4);
    bytes.extend_from_slice(&zeros);
    let size = (bytes.len() - offset) as u64;
    bytes[offset + 8..offset + 16].copy_from_slice(&size.to_le_bytes());
    let item = journal.entries[0] + 64;
    bytes[item..item + 4].copy_from_slice(&(offset as u32).to_le_bytes());
    // It is zeros, without a name.
    assert_eq!(read(bytes.clone()).map(|read| read.2).expect("opens"), 1);
    bytes[offset + 1] = 2;
    bytes[offset + 72..offset + 80].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    assert_eq!(read(bytes).map(|read| read.2).expect("opens"), 1);
}

#[test]
fn a_file_that_grows_is_read_to_its_new_end_and_no_entry_before_the_others_of_its_sequence() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let put = |name: &str, numbers: &[u64]| {
        // In place, as journald writes.
        let bytes = write(COMPACT, &entries(numbers.iter().copied())).bytes;
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path(name)).expect("opens");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("writes");
    };
    put("system", &[1, 3]);
    put("user", &[2]);
    let mut reader = Reader::default();
    for name in ["system", "user"] {
        reader.add(name, JournalFile::open(fs::File::open(path(name)).expect("opens")).expect("a journal"));
    }
    let pass = |reader: &mut Reader<&str, fs::File>| {
        reader.extend_pass();
        std::iter::from_fn(|| reader.next_entry()).map(|entry| entry.head.seqnum).collect::<Vec<_>>()
    };
    assert!(reader.begin_pass().is_empty());
    assert_eq!(pass(&mut reader), [1, 2, 3]);
    // Between the two looks of a pass, both files grow: 6 comes before 5 is seen, if nothing bounds the pass.
    put("system", &[1, 3, 4]);
    assert!(reader.begin_pass().is_empty());
    put("user", &[2, 5]);
    put("system", &[1, 3, 4, 6]);
    assert_eq!(pass(&mut reader), [4]);
    assert!(reader.begin_pass().is_empty());
    assert_eq!(pass(&mut reader), [5, 6]);
    // Into an entry array that did not exist when the file was opened.
    put("system", &[1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
    assert!(reader.begin_pass().is_empty());
    assert_eq!(pass(&mut reader), (7..=17).collect::<Vec<_>>());
}

/// Reads a file beside a good one of the same sequence, which has entry 1000: numbers, and damage.
fn read_beside(bytes: Vec<u8>, place: Option<&Cursor>) -> (Vec<u64>, u64) {
    let mut reader = Reader::default();
    for bytes in [bytes, write(COMPACT, &entries([1000])).bytes] {
        let mut file = JournalFile::open(bytes).expect("opens");
        if let Some(place) = place {
            file.seek_after(place);
        }
        reader.add((), file);
    }
    assert!(reader.begin_pass().is_empty());
    reader.extend_pass();
    let numbers = std::iter::from_fn(|| reader.next_entry()).map(|entry| entry.head.seqnum).collect();
    (numbers, reader.files().map(|(_, file)| file.take_damage().entries).sum())
}

#[test]
fn damage_at_the_end_hides_nothing_before_it_and_is_counted_once() {
    let Journal { bytes, entries: offsets, arrays } = write(COMPACT, &entries(1..=500));
    let mut broken = bytes.clone();
    broken[arrays[5]] = 0;
    let (numbers, damage) = read_beside(broken.clone(), None);
    assert_eq!((numbers.len(), damage), (124 + 1, 376), "arrays of 4, 8, …, 64 entries come before it");
    let cut = read_beside(bytes[..bytes.len() * 6 / 10].to_vec(), None);
    assert!(cut.0.len() > 200 && cut.0.last() == Some(&1000) && cut.1 > 100, "{} {}", cut.0.len(), cut.1);
    let mut zeroed = bytes.clone();
    offsets[380..].iter().for_each(|offset| zeroed[*offset] = 0);
    assert_eq!(read_beside(zeroed, None), ((1..=380).chain([1000]).collect(), 120));
    // Alone, it has no other file whose numbers bound a pass.
    let mut reader = Reader::default();
    reader.add((), JournalFile::open(broken.clone()).expect("opens"));
    assert!(reader.begin_pass().is_empty());
    assert_eq!(std::iter::from_fn(|| reader.next_entry()).count(), 124);
    // What was read long ago is not counted at each start.
    let place = Cursor::parse(&format!("s={};i=3e7", "5e".repeat(16))).expect("a cursor");
    assert_eq!(read_beside(broken, Some(&place)), (vec![1000], 0));
}

#[test]
fn an_entry_behind_damage_is_not_read_again() {
    let Journal { mut bytes, entries: offsets, .. } = write(COMPACT, &entries(1..=900));
    offsets[450..600].iter().for_each(|offset| bytes[*offset] = 0);
    let place = Cursor::parse(&format!("s={};i={:x}", "5e".repeat(16), 850)).expect("a cursor");
    assert_eq!(read_beside(bytes, Some(&place)), ((851..=900).chain([1000]).collect(), 0));
}

#[test]
fn an_impossible_number_is_damage() {
    for (index, number) in [(6, 7 + (1_u64 << 40)), (499, u64::MAX), (499, 500 + (1 << 40))] {
        let Journal { mut bytes, entries: offsets, .. } = write(COMPACT, &entries(1..=500));
        bytes[offsets[index] + 16..offsets[index] + 24].copy_from_slice(&number.to_le_bytes());
        let (numbers, damage) = read_beside(bytes, None);
        assert_eq!((numbers.len(), numbers.last(), damage), (500, Some(&1000), 1));
    }
}

#[test]
fn one_entry_does_not_stand_for_many() {
    let Journal { mut bytes, entries: offsets, arrays } = write(COMPACT, &entries(1..=500));
    // All items of the largest array name one entry.
    let array = arrays[6] + 24;
    for item in 0..200 {
        bytes[array + 4 * item..array + 4 * item + 4].copy_from_slice(&(offsets[300] as u32).to_le_bytes());
    }
    let (numbers, damage) = read_beside(bytes, None);
    let mut sorted = numbers.clone();
    sorted.dedup();
    assert_eq!((sorted, damage), (numbers, 199));
}

#[test]
fn an_entry_that_names_one_large_field_often_has_it_once() {
    let large = [b"A=".as_slice(), &vec![b'x'; 200_000]].concat();
    let fields = (0..200).map(|number| if number == 0 { large.clone() } else { format!("B{number}=1").into_bytes() });
    let Journal { mut bytes, entries: offsets, .. } =
        write(COMPACT, &[Written { seqnum: 1, at: 1, fields: fields.collect() }]);
    let item = bytes[offsets[0] + 64..offsets[0] + 68].to_vec();
    for number in 1..200 {
        bytes[offsets[0] + 64 + 4 * number..offsets[0] + 68 + 4 * number].copy_from_slice(&item);
    }
    let mut file = JournalFile::open(bytes).expect("opens");
    let head = file.peek().expect("an entry");
    assert_eq!((file.fields(&head).len(), file.take_damage().fields), (1, 199));
}

#[test]
fn many_large_fields_are_cut_off() {
    let fields = (0..50).map(|number| [format!("A{number}=").as_bytes(), &vec![b'x'; 100_000]].concat()).collect();
    let mut file = JournalFile::open(write(COMPACT, &[Written { seqnum: 1, at: 1, fields }]).bytes).expect("opens");
    let head = file.peek().expect("an entry");
    let bytes: usize = file.fields(&head).iter().map(|field| field.value().len()).sum();
    assert!(bytes <= (1 << 20) + 100_000, "{bytes}");
    assert!(file.take_damage().fields > 30);
}

#[test]
fn entries_that_were_moved_to_the_disk_come_once() {
    // journald copies the volatile journal to the disk, into another sequence: /run is read while that happens.
    let volatile = write(COMPACT, &entries(1..=20)).bytes;
    let mut copied = write(COMPACT, &entries(1..=30)).bytes;
    copied[72..88].copy_from_slice(&[0x77; 16]);
    let mut reader = Reader::default();
    reader.add("volatile", JournalFile::open(volatile).expect("opens"));
    reader.add("persistent", JournalFile::open(copied).expect("opens"));
    assert!(reader.begin_pass().is_empty());
    let numbers: Vec<u64> = std::iter::from_fn(|| reader.next_entry()).map(|entry| entry.head.seqnum).collect();
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>());
}

#[test]
fn a_place_in_another_sequence_is_found_by_boot_and_time() {
    let mut copied = write(COMPACT, &entries(1..=30)).bytes;
    copied[72..88].copy_from_slice(&[0x77; 16]);
    let mut file = JournalFile::open(copied).expect("opens");
    let boot = "b0".repeat(16);
    let place = Cursor::parse(&format!("s={};i=63;b={boot};m={:x};t=0;x=0", "5e".repeat(16), 1010)).expect("a cursor");
    file.seek_after(&place);
    // Entry 10 has that time, and a later one by the clock.
    assert_eq!(file.peek().map(|head| head.seqnum), Some(10));
    file.seek_after(&Cursor::parse(&format!("s={};i=63", "5e".repeat(16))).expect("a cursor"));
    assert_eq!(file.peek().map(|head| head.seqnum), Some(1), "a place that says nothing of this sequence");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No change of bytes makes reading panic, hang, or return numbers out of the file.
    #[test]
    fn no_damage_makes_it_panic_or_hang(
        compact in any::<bool>(),
        codec in prop::sample::select(vec![Codec::Plain, Codec::Xz, Codec::Lz4, Codec::Zstd]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = write(Layout { is_compact: compact, codec, first_array: 2 }, &entries(1..=30)).bytes;
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let length = cut.index(bytes.len()) + 1;
        let _ = read(bytes[..length].to_vec());
        let _ = read(bytes.clone());
        if let Ok(mut file) = JournalFile::open(bytes) {
            file.seek_after(&Cursor::parse("i=5;t=1;x=2;s=5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e").expect("a cursor"));
            file.peek();
            file.last();
        }
    }
}
