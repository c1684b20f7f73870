//! Blocks: entries that are emitted together. A field that the reader shares between entries is sent once per record.

use vedette_journal::{Entry, Field, Id};
use vedette_wire::{Chunk, EntryHead, EntryPacker, Position};

/// Maximum size of an entry's values; the rest is cut. One value has [`vedette_journal::VALUE_BYTES_MAX`].
const ENTRY_BYTES_MAX: usize = 512 << 10;
/// Maximum length of the list of names of cut fields.
const CUT_BYTES_MAX: usize = 1 << 10;
/// Field that names the fields that were cut.
const CUT: &[u8] = b"VEDETTE_CUT";
/// Fields that are not sent: the entry has the boot itself, and the other is the agent's own.
const LEFT_OUT: [&[u8]; 2] = [b"_BOOT_ID", CUT];

/// Counted for an entry beside its fields.
const ENTRY_BYTES: usize = 200;

/// The chunks of a block.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) chunks: Vec<Chunk>,
    /// Sequence of the last chunk, while its entries are being packed.
    pub(super) open: Option<Id>,
    /// Size of the entries that were read, also of those that are not sent.
    pub(super) bytes: usize,
}

impl Block {
    /// Counts an entry.
    pub(super) fn count(&mut self, entry: &Entry) {
        self.bytes += ENTRY_BYTES + entry.fields.iter().map(|field| bytes(field)).sum::<usize>();
    }
}

/// Size of a field.
fn bytes(field: &Field) -> usize {
    field.name().len() + field.value().len()
}

/// Packs entries. A field that the reader shares between entries is tagged with its number in the record.
#[derive(Debug, Default)]
pub(super) struct Packing {
    packer: EntryPacker,
    /// Number of records that were completed; tags of earlier ones have no meaning.
    record: u64,
}

impl Packing {
    /// Appends the packed entries to a chunk.
    pub(super) fn finish(&mut self, observed: i64, chunk: &mut Chunk) {
        chunk.push_entries(observed, &mut self.packer);
        self.record += 1;
    }

    /// Adds an entry to a chunk; it is packed until [`Packing::finish`].
    pub(super) fn add(&mut self, chunk: &mut Chunk, observed: i64, entry: &Entry, position: Position) {
        if !self.begin(entry, position) {
            self.finish(observed, chunk);
            let begun = self.begin(entry, position);
            debug_assert!(begun, "an empty packer takes any entry");
        }
        let (mut room, mut cut) = (ENTRY_BYTES_MAX, Vec::new());
        for field in &entry.fields {
            self.add_field(field, &mut room, &mut cut);
        }
        if !cut.is_empty() {
            self.packer.field(CUT, &cut);
        }
    }

    fn begin(&mut self, entry: &Entry, position: Position) -> bool {
        let head = &entry.head;
        let (sequence, boot, hash) = (head.seqnum_id.0, head.boot_id.0, head.xor_hash);
        let head = EntryHead { sequence, boot, realtime: head.realtime, monotonic: head.monotonic, hash };
        self.packer.begin(&head, position)
    }

    fn add_field(&mut self, field: &Field, room: &mut usize, cut: &mut Vec<u8>) {
        let (name, value) = (field.name(), field.value());
        if let Some((record, number)) = field.tag()
            && record == self.record
            && value.len() <= *room
        {
            *room = room.saturating_sub(name.len() + value.len());
            self.packer.repeat(number);
            return;
        }
        if LEFT_OUT.contains(&name) {
            return;
        }
        let length = value.len().min(*room);
        if (field.is_cut() || length < value.len()) && cut.len() < CUT_BYTES_MAX {
            if !cut.is_empty() {
                cut.push(b' ');
            }
            cut.extend_from_slice(name);
        }
        *room = room.saturating_sub(name.len() + length);
        let number = self.packer.field(name, &value[..length]);
        // One that was cut for lack of room may be whole in another entry.
        if length == value.len() {
            field.set_tag((self.record, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{
        cursors::source,
        tests::{
            LAYOUT,
            writer::{Written, write},
        },
    };
    use vedette_journal::{JournalFile, Reader};
    use vedette_wire::{Body, body::Journal as Record};

    /// The record of an entry, as the workspace unpacks it.
    fn packed(entry: &Entry) -> Record {
        let (mut packing, mut chunk) = (Packing::default(), Chunk::new(source("journal:test")));
        let number = entry.head.seqnum;
        packing.add(&mut chunk, 1, entry, Position(number, number + 1));
        packing.finish(1, &mut chunk);
        let record = chunk.decode().expect("a record").remove(0);
        let Body::Journal(record) = record.body else { panic!("an entry") };
        record
    }

    #[test]
    fn fields_become_columns_and_the_rest_is_kept() {
        let fields = "PRIORITY=6 PRIORITY=high SYSLOG_FACILITY=10 _UID=1000 _COMM=sudo CODE_LINE=7 TWICE=1 TWICE=2 _BOOT_ID=other";
        let fields = ["MESSAGE=two\nlines"].into_iter().chain(fields.split(' ')).map(|field| field.as_bytes().to_vec());
        let entry = Written { seqnum: 31, at: 5, fields: fields.collect() };
        let mut file = JournalFile::open(write(LAYOUT, &[entry]).bytes).expect("a journal");
        let head = file.peek().expect("an entry");
        let entry = Entry { fields: file.fields(&head), head, is_whole: true };
        let record = packed(&entry);
        assert_eq!(record.cursor, entry.cursor().to_string());
        assert_eq!((&*record.message, record.uid, record.facility), ("two\nlines", Some(1000), Some(10)));
        assert_eq!(record.time, 1_795_404_079_000_005_000);
        assert_eq!(record.boot_id.as_deref(), Some("b0".repeat(16).as_str()), "the entry's own");
        let more = record.more.iter().map(|(name, value)| (&**name, &**value));
        assert_eq!(more.collect::<Vec<_>>(), [("CODE_LINE", "7"), ("PRIORITY", "high"), ("TWICE", "1\n2")]);
        assert_eq!(record.priority, Some(6), "the first");
        assert!(record.cursor.starts_with("s=5e5e") && record.cursor.contains(";i=1f;b=b0b0"), "{}", record.cursor);
    }

    #[test]
    fn an_entry_of_many_large_values_stays_within_its_limit() {
        let fields = (0..20).map(|number| format!("FIELD{number:02}={}", "x".repeat(200_000)));
        // The list of what was cut is not the sender's.
        let fields = ["VEDETTE_CUT=forged".to_owned()].into_iter().chain(fields).map(String::into_bytes).collect();
        let mut file =
            JournalFile::open(write(LAYOUT, &[Written { seqnum: 1, at: 1, fields }]).bytes).expect("a journal");
        let head = file.peek().expect("an entry");
        let entry = Entry { fields: file.fields(&head), head, is_whole: true };
        let record = packed(&entry);
        let total: usize = record.more.values().map(|value| value.len()).sum();
        assert!(total < 600 << 10, "{total}");
        assert!(record.more["VEDETTE_CUT"].starts_with("FIELD02 FIELD03"), "{}", record.more["VEDETTE_CUT"]);
    }

    /// Entries of one block, as the workspace unpacks them; also the encoded size.
    fn blocks(written: &[Written]) -> (Vec<Record>, usize) {
        let mut reader = Reader::default();
        reader.add((), JournalFile::open(write(LAYOUT, written).bytes).expect("a journal"));
        drop(reader.begin_pass());
        let (mut packing, mut chunk) = (Packing::default(), Chunk::new(source("journal:test")));
        while let Some(entry) = reader.next_entry() {
            let number = entry.head.seqnum;
            packing.add(&mut chunk, 1, &entry, Position(number, number + 1));
        }
        packing.finish(1, &mut chunk);
        let records = chunk.decode().expect("records").into_iter();
        let entry = |record: vedette_wire::Record| match record.body {
            Body::Journal(entry) => entry,
            other => panic!("{other:?}"),
        };
        (records.map(entry).collect(), chunk.bodies.len())
    }

    /// A field that one entry has no room for is whole in the next, and one that is repeated counts in each.
    #[test]
    fn a_field_that_is_cut_in_one_entry_is_whole_in_another() {
        let large = |number: u64| format!("LARGE{number}={}", "x".repeat(250_000)).into_bytes();
        let shared = format!("SHARED={}", "y".repeat(400)).into_bytes();
        // The first three entries make the reader share the field; the fourth has no room for it.
        let written: Vec<Written> = (1..=5)
            .map(|seqnum| {
                let fields = match seqnum {
                    4 => vec![large(1), large(2), large(3), shared.clone()],
                    _ => vec![shared.clone()],
                };
                Written { seqnum, at: seqnum, fields }
            })
            .collect();
        let (entries, _) = blocks(&written);
        let lengths: Vec<usize> = entries.iter().map(|entry| entry.more["SHARED"].len()).collect();
        assert_eq!(lengths, [400, 400, 400, 0, 400]);
        assert_eq!(entries[3].more["VEDETTE_CUT"], "LARGE3 SHARED");

        // Cut in the first entry that has it.
        let written: Vec<Written> =
            written.into_iter().skip(3).map(|entry| Written { seqnum: entry.seqnum - 3, ..entry }).collect();
        let (entries, _) = blocks(&written);
        assert_eq!((entries[0].more["SHARED"].len(), entries[1].more["SHARED"].len()), (0, 400));
        assert!(!entries[1].more.contains_key("VEDETTE_CUT"));
    }

    #[test]
    fn repeated_fields_count_for_the_limit_of_an_entry() {
        let large = (0..2).map(|at| format!("LARGE{at}={}", "x".repeat(240_000)).into_bytes());
        let shared = (0..200).map(|at| format!("SHARED{at}={}", "y".repeat(450)).into_bytes());
        let fields: Vec<_> = large.chain(shared).collect();
        let written: Vec<Written> =
            (1..=4).map(|seqnum| Written { seqnum, at: seqnum, fields: fields.clone() }).collect();
        let (entries, size) = blocks(&written);
        // What four entries of the maximum size take, less the shared fields of one of them.
        assert!(size < 4 * ENTRY_BYTES_MAX - 40_000, "{size}: shared fields are recognised");
        for entry in &entries {
            let total: usize = entry.more.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!((500_000..ENTRY_BYTES_MAX + 16_000).contains(&total), "{total}");
        }
    }

    /// Anyone can log a large field under the name that is the agent's own.
    #[test]
    fn fields_that_are_not_sent_are_counted_for_the_block() {
        let field = format!("VEDETTE_CUT={}", "x".repeat(200_000)).into_bytes();
        let written: Vec<Written> =
            (1..=9).map(|seqnum| Written { seqnum, at: seqnum, fields: vec![field.clone()] }).collect();
        let (entries, size) = blocks(&written);
        assert_eq!((entries.len(), entries[0].more.len()), (9, 0));
        assert!(size < 500, "{size}");
        let mut file = JournalFile::open(write(LAYOUT, &written).bytes).expect("a journal");
        let head = file.peek().expect("an entry");
        let mut block = Block::default();
        block.count(&Entry { fields: file.fields(&head), head, is_whole: true });
        assert!(block.bytes > 200_000);
    }

    /// Fields that the reader shares between entries are sent once per block, and mean the same in each.
    #[test]
    fn shared_fields_are_sent_once_per_block() {
        let name = |number: u64| format!("MESSAGE=message {number}").into_bytes();
        let shared: Vec<Vec<u8>> = (0..20).map(|at| format!("SHARED{at}={}", "x".repeat(100)).into_bytes()).collect();
        let written: Vec<Written> = (1..=60)
            .map(|seqnum| {
                let fields = [name(seqnum)].into_iter().chain(shared.iter().skip((seqnum % 3) as usize).cloned());
                Written { seqnum, at: seqnum, fields: fields.collect() }
            })
            .collect();
        let mut reader = Reader::default();
        reader.add((), JournalFile::open(write(LAYOUT, &written).bytes).expect("a journal"));
        drop(reader.begin_pass());
        let (mut packing, mut found) = (Packing::default(), Vec::new());
        for block in 0..3 {
            let mut chunk = Chunk::new(source("journal:test"));
            for _ in 0..20 {
                let entry = reader.next_entry().expect("sixty");
                let number = entry.head.seqnum;
                packing.add(&mut chunk, 1, &entry, Position(number, number + 1));
            }
            packing.finish(1, &mut chunk);
            assert_eq!(chunk.entries.len(), 1);
            // Twenty entries of 2 KB, of which each shared field is sent once per record.
            assert!(chunk.bodies.len() < 5_000 && chunk.plain_bytes() > 40_000, "{block}: {}", chunk.bodies.len());
            found.extend(chunk.decode().expect("records"));
        }
        for (record, written) in found.iter().zip(&written) {
            let Body::Journal(entry) = &record.body else { panic!("an entry") };
            assert_eq!(entry.message, format!("message {}", written.seqnum));
            assert_eq!(entry.more.len(), written.fields.len() - 1);
            assert!(entry.more.values().all(|value| value.len() == 100));
        }
        assert_eq!(found.len(), 60);
    }
}
