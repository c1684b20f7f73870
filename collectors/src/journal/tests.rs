#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

#[allow(dead_code, unreachable_pub, reason = "it is another crate's tests' too")]
#[path = "../../../journal/tests/support/writer.rs"]
pub(super) mod writer;

use super::*;
use crate::{Sink, StopSignal, outlet::store_cursors};
use parking_lot::Mutex;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use vedette_wire::{Body, Source, Stored, body::Journal as Record};
use writer::{Codec, Layout, Written, write};

pub(super) const LAYOUT: Layout = Layout { is_compact: true, codec: Codec::Zstd, first_array: 4 };
pub(super) const MACHINE: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "cccccccccccccccccccccccccccccccc";
/// The sequence that the writer writes.
pub(super) const SEQUENCE: &str = "journal:5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

/// Stores emitted records, and cursors as the queue does.
#[derive(Default)]
pub(super) struct MemorySink {
    pub(super) records: Mutex<Vec<(String, Position, Record)>>,
    cursors: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) dropped: Mutex<Vec<(Reason, u64, Option<Position>)>>,
    pub(super) problems: Mutex<Vec<String>>,
    /// Id of a source without room.
    pub(super) full: Mutex<Option<String>>,
}

impl Sink for MemorySink {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        for record in chunk.decode().expect("records") {
            let Body::Journal(body) = record.body else { panic!("no entry") };
            self.records.lock().push((chunk.source.id.clone(), record.position, body));
        }
        let dropped = chunk.dropped.iter().map(|dropped| (dropped.reason, dropped.count, dropped.positions));
        self.dropped.lock().extend(dropped);
        store_cursors(&mut self.cursors.lock(), &chunk);
        Ok(())
    }

    fn has_room(&self, source: &Source, _: bool) -> bool {
        self.full.lock().as_deref().is_none_or(|full| source.id != full)
    }

    fn report_problem(&self, _: &'static str, message: String) {
        self.problems.lock().push(message);
    }
}

/// A host with journals, and an agent whose queue holds what was emitted.
pub(super) struct Host {
    dir: tempfile::TempDir,
    pub(super) sink: Arc<MemorySink>,
    start: crate::tail::Start,
    stored: Vec<Stored>,
}

impl Host {
    pub(super) fn new(start: crate::tail::Start) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir_all(dir.path().join("etc")).expect("creates");
        fs::write(dir.path().join("etc/machine-id"), format!("{MACHINE}\n")).expect("writes");
        Self { dir, sink: Arc::default(), start, stored: Vec::new() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file of the persistent journal, in place as journald does; `change` is made to it.
    pub(super) fn put(
        &self,
        path: &str,
        numbers: impl IntoIterator<Item = u64>,
        change: impl FnOnce(&mut writer::Journal),
    ) {
        let entries = numbers.into_iter().map(|seqnum| Written {
            seqnum,
            at: seqnum,
            fields: vec![format!("MESSAGE=message {seqnum}").into_bytes(), b"_UID=1000".to_vec()],
        });
        let mut journal = write(LAYOUT, &entries.collect::<Vec<_>>());
        journal.bytes[16] = 1;
        change(&mut journal);
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("creates");
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("opens");
        file.write_all_at(&journal.bytes, 0).expect("writes");
    }

    fn context(&self) -> CollectorContext {
        let cursors = self.sink.cursors.lock().clone().into_iter().collect();
        let stored = self.stored.clone();
        CollectorContext { cursors, stored, ..CollectorContext::new(self.dir.path(), Arc::new(|| 1)) }
    }

    /// Runs an agent; `between` is called after each pass but the last.
    pub(super) fn run(&self, between: &[&dyn Fn()]) {
        let (context, outlet) = (self.context(), self.outlet());
        let root = context.host().expect("a root");
        let mut reading = Reading::new(&context, &outlet);
        if reading.cursors.is_first_start() && self.start == crate::tail::Start::End {
            reading.begin_at_end(&root).expect("emits");
        }
        reading.pass(&root).expect("reads");
        for change in between {
            change();
            reading.pass(&root).expect("reads");
        }
    }

    fn outlet(&self) -> Outlet {
        Outlet::new(Arc::clone(&self.sink) as Arc<dyn Sink>, StopSignal::default())
    }

    /// Numbers of the emitted entries, at which their positions end.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let records = self.sink.records.lock();
        let number = |(_, position, record): &(String, Position, Record)| {
            assert_eq!(record.message, format!("message {}", position.1 - 1));
            position.1 - 1
        };
        records.iter().map(number).collect()
    }

    fn cursor(&self, id: &str) -> Option<String> {
        self.sink.cursors.lock().get(id).map(|cursor| String::from_utf8_lossy(cursor).into_owned())
    }
}

pub(super) fn system(machine: &str) -> String {
    format!("var/log/journal/{machine}/system.journal")
}

pub(super) fn is(journal: &mut writer::Journal, sequence: u8) {
    journal.bytes[72..88].copy_from_slice(&[sequence; 16]);
}

#[test]
fn it_starts_at_the_end_and_continues_after_a_restart_without_loss_or_repeat() {
    let host = Host::new(crate::tail::Start::End);
    host.put(&system(MACHINE), 1..=5, |_| {});
    host.run(&[]);
    assert!(host.numbers().is_empty());
    // The restart comes before the first entry.
    assert!(host.cursor(BEGIN).is_some_and(|cursor| cursor.contains(";i=5;")));
    host.put(&system(MACHINE), 1..=8, |_| {});
    host.run(&[&|| host.put(&system(MACHINE), 1..=9, |_| {})]);
    host.put(&system(MACHINE), 1..=11, |_| {});
    host.run(&[]);
    assert_eq!(host.numbers(), [6, 7, 8, 9, 10, 11]);
    let cursors = host.sink.cursors.lock();
    assert_eq!(cursors.keys().collect::<Vec<_>>(), [SEQUENCE], "the start position is forgotten");
    assert!(String::from_utf8_lossy(&cursors[SEQUENCE]).starts_with("s=5e5e"), "as journalctl writes it");
}

#[test]
fn a_cursor_of_an_agent_that_ran_journalctl_is_continued() {
    let host = Host::new(crate::tail::Start::End);
    host.put(&system(MACHINE), 1..=9, |_| {});
    let text = format!("s={};i=4;b={};m=4;t=660e9165b69c4;x=1c", "5e".repeat(16), "b0".repeat(16));
    host.sink.cursors.lock().insert(SEQUENCE.to_owned(), text.into_bytes());
    host.run(&[]);
    assert_eq!(host.numbers(), [5, 6, 7, 8, 9]);
}

#[test]
fn a_file_rotated_and_vacuumed_while_it_is_read_is_read_to_its_end() {
    let host = Host::new(crate::tail::Start::Beginning);
    let archived = host.path(&format!("var/log/journal/{MACHINE}/system@1.journal"));
    host.put(&system(MACHINE), 1..=5, |_| {});
    host.run(&[
        // Written, rotated and deleted between two passes.
        &|| {
            host.put(&system(MACHINE), 1..=8, |journal| journal.bytes[16] = 2);
            fs::rename(host.path(&system(MACHINE)), &archived).expect("renames");
            host.put(&system(MACHINE), 9..=10, |_| {});
            fs::remove_file(&archived).expect("removes");
        },
        &|| host.put(&system(MACHINE), 9..=12, |_| {}),
    ]);
    assert_eq!(host.numbers(), (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_file_that_is_closed_and_written_again_continues() {
    let host = Host::new(crate::tail::Start::Beginning);
    let user = format!("var/log/journal/{MACHINE}/user-1000.journal");
    host.put(&user, [1, 3], |journal| journal.bytes[16] = 0);
    host.put(&system(MACHINE), [2, 4], |_| {});
    host.run(&[
        &|| {},
        &|| {
            host.put(&user, [1, 3, 5], |_| {});
            let later = std::time::SystemTime::now() + Duration::from_secs(5);
            let file = fs::File::options().write(true).open(host.path(&user)).expect("opens");
            file.set_modified(later).expect("sets");
        },
        &|| {},
    ]);
    assert_eq!(host.numbers(), [1, 2, 3, 4, 5]);
}

#[test]
fn the_volatile_journal_and_its_copy_on_the_disk_are_read_once() {
    let host = Host::new(crate::tail::Start::Beginning);
    let volatile = format!("run/log/journal/{MACHINE}/system.journal");
    host.put(&volatile, 1..=5, |_| {});
    host.run(&[&|| {
        host.put(&volatile, 1..=7, |journal| journal.bytes[16] = 2);
        host.put(&system(MACHINE), 1..=9, |journal| is(journal, 0x77));
        fs::remove_file(host.path(&volatile)).expect("removes");
    }]);
    assert_eq!(host.numbers(), (1..=9).collect::<Vec<_>>());
    host.run(&[]);
    assert_eq!(host.numbers().len(), 9, "nor after a restart");
}

/// Numbers of moved entries begin behind those of the persistent journal (systemd 253 and earlier: in its sequence; later: in
/// the volatile one's).
#[test]
fn what_is_moved_to_the_disk_under_higher_numbers_is_read_once() {
    for sequence in [0x77, 0x5e] {
        let host = Host::new(crate::tail::Start::Beginning);
        let volatile = format!("run/log/journal/{MACHINE}/system.journal");
        let archived = format!("var/log/journal/{MACHINE}/system@1.journal");
        if sequence == 0x77 {
            host.put(&archived, 1..=2, |journal| is(journal, 0x77));
        }
        host.put(&volatile, 3..=7, |_| {});
        let moved = |journal: &mut writer::Journal| {
            is(journal, sequence);
            // The same entries: times and hashes of 3 to 7 under the numbers 103 to 107.
            for entry in journal.entries.clone() {
                let number = u64::from_le_bytes(journal.bytes[entry + 16..entry + 24].try_into().expect("eight bytes"));
                let old = number - 100;
                for (at, value) in [(24, 1_795_404_079_000_000 + old), (32, old), (56, old * 7)] {
                    journal.bytes[entry + at..entry + at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
        };
        host.run(&[&|| {
            host.put(&system(MACHINE), 103..=110, moved);
            fs::remove_file(host.path(&volatile)).expect("removes");
        }]);
        let before: &[u64] = if sequence == 0x77 { &[1, 2] } else { &[] };
        assert_eq!(host.numbers(), [before, &[3, 4, 5, 6, 7, 108, 109, 110]].concat());
        assert!(host.sink.dropped.lock().iter().all(|(_, count, _)| *count == 0), "nothing is lost");
        host.run(&[]);
        assert_eq!(host.numbers().len(), before.len() + 8, "nor after a restart");
    }
}

#[test]
fn deleted_files_that_are_not_read_are_given_up_and_counted() {
    let host = Host::new(crate::tail::Start::Beginning);
    *host.sink.full.lock() = Some(SEQUENCE.to_owned());
    let names: Vec<String> =
        (1..=7_u64).map(|number| format!("var/log/journal/{MACHINE}/system@{number}.journal")).collect();
    for (number, name) in (1..).zip(&names) {
        host.put(name, number * 2..=number * 2 + 1, |journal| journal.bytes[16] = 2);
    }
    host.run(&[&|| names.iter().for_each(|name| fs::remove_file(host.path(name)).expect("removes")), &|| {
        *host.sink.full.lock() = None
    }]);
    assert_eq!(host.numbers(), [8, 9, 10, 11, 12, 13, 14, 15], "the four newest are held");
    assert_eq!(*host.sink.dropped.lock(), [(Reason::RotatedAway, 2, None); 3]);
}

#[test]
fn what_appears_while_the_agent_runs_is_read_whole_though_the_clock_was_set_back() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 50..=52, |_| {});
    host.run(&[&|| {
        // After an unclean stop journald begins another sequence; here in another boot, before the first by the clock.
        host.put(&format!("var/log/journal/{MACHINE}/other.journal"), 3..=4, |journal| {
            is(journal, 0x77);
            for entry in journal.entries.clone() {
                journal.bytes[entry + 40..entry + 56].copy_from_slice(&[0xb1; 16]);
            }
        });
        // A container shares the boot, and was written before the host's newest entry.
        host.put(&system(OTHER), 5..=6, |journal| is(journal, 0x78));
    }]);
    assert_eq!(host.numbers(), [50, 51, 52, 3, 4, 5, 6]);
}

/// Gives entries from an index on another boot, and moves their clock by microseconds.
fn of_boot(journal: &mut writer::Journal, from: usize, boot: u8, clock: i64) {
    for entry in journal.entries.iter().skip(from) {
        let entry = *entry;
        journal.bytes[entry + 40..entry + 56].copy_from_slice(&[boot; 16]);
        let time = u64::from_le_bytes(journal.bytes[entry + 24..entry + 32].try_into().expect("eight bytes"));
        journal.bytes[entry + 24..entry + 32].copy_from_slice(&time.saturating_add_signed(clock).to_le_bytes());
    }
}

#[test]
fn numbers_that_a_power_cut_gave_back_are_read_again_as_another_source() {
    // journald 252 continues from the last number on the disk, which may be less than what was read.
    for (end, number_nine) in [(8, None), (12, Some(9))] {
        let host = Host::new(crate::tail::Start::Beginning);
        host.put(&system(MACHINE), 1..=9, |_| {});
        host.run(&[]);
        let boot = "b1b1b1b1-b1b1-b1b1-b1b1-b1b1b1b1b1b1\n";
        fs::create_dir_all(host.path("proc/sys/kernel/random")).expect("creates");
        fs::write(host.path("proc/sys/kernel/random/boot_id"), boot).expect("writes");
        host.put(&system(MACHINE), 1..=end, |journal| of_boot(journal, 5, 0xb1, 1_000_000));
        host.run(&[]);
        let again: Vec<u64> = (6..=end).collect();
        assert_eq!(host.numbers()[9..], again, "{number_nine:?}");
        let sources: BTreeSet<String> = host.sink.records.lock()[9..].iter().map(|(id, ..)| id.clone()).collect();
        let other = format!("{SEQUENCE}:{}", "b1".repeat(16));
        assert_eq!(sources, BTreeSet::from([other.clone()]), "their positions are not repetitions");
        assert_eq!(host.sink.cursors.lock().keys().collect::<Vec<_>>(), [&other]);
        host.put(&system(MACHINE), 1..=end + 1, |journal| of_boot(journal, 5, 0xb1, 1_000_000));
        host.run(&[]);
        assert_eq!(host.numbers().last(), Some(&(end + 1)));
        assert_eq!(host.numbers().len(), 9 + again.len() + 1, "nor is anything repeated after another restart");
    }
}

#[test]
fn a_boot_with_its_clock_behind_is_read_from_its_begin() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 50..=52, |_| {});
    host.run(&[]);
    // The volatile journal of the next boot is another sequence.
    fs::create_dir_all(host.path("proc/sys/kernel/random")).expect("creates");
    let boot = "b1b1b1b1-b1b1-b1b1-b1b1-b1b1b1b1b1b1\n";
    fs::write(host.path("proc/sys/kernel/random/boot_id"), boot).expect("writes");
    host.put(&format!("run/log/journal/{MACHINE}/system.journal"), 1..=3, |journal| {
        is(journal, 0x77);
        of_boot(journal, 0, 0xb1, -60_000_000);
    });
    host.run(&[]);
    assert_eq!(host.numbers(), [50, 51, 52, 1, 2, 3]);
}

#[test]
fn a_directory_that_cannot_be_listed_is_named_and_no_cursor_is_forgotten() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=2, |_| {});
    host.run(&[]);
    // A link that its owner cannot be trusted with stands for a directory without permission, which root never lacks.
    let dir = host.path("var/log/journal");
    fs::rename(&dir, host.path("moved")).expect("renames");
    std::os::unix::fs::symlink("/moved", &dir).expect("links");
    std::os::unix::fs::lchown(&dir, Some(1234), Some(1234)).expect("chowns");
    assert!(Definition::build(&Settings::default(), &host.context()).is_ok_and(|plan| matches!(plan, Plan::Watch(_))));
    skip(&Settings::default(), &host.context(), &host.outlet()).expect_err("it cannot know");
    host.run(&[]);
    assert!(host.sink.problems.lock()[0].contains("/var/log/journal"), "{:?}", host.sink.problems.lock());
    assert!(host.cursor(SEQUENCE).is_some());
}

#[test]
fn journals_of_containers_and_namespaces_are_read_and_an_older_agent_does_not_see_their_cursors() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=2, |_| {});
    host.put(&system(OTHER), 3..=4, |journal| is(journal, 0x77));
    host.put(&system(&format!("{MACHINE}.web")), 5..=6, |journal| is(journal, 0x78));
    host.put("var/log/journal/remote/remote-h2.journal", 7..=8, |journal| is(journal, 0x79));
    host.run(&[]);
    assert_eq!(host.numbers(), [1, 2, 3, 4, 5, 6], "what other hosts sent is not of this one");
    let own = host.cursor(SEQUENCE).expect("it has one");
    assert!(own.starts_with("s=5e"), "{own}");
    for sequence in ["77", "78"] {
        let cursor = host.cursor(&format!("journal:{}", sequence.repeat(16))).expect("it has one");
        assert!(cursor.starts_with("S=7"), "{cursor}");
    }
    host.put(&system(OTHER), 3..=9, |journal| is(journal, 0x77));
    host.run(&[]);
    assert_eq!(host.numbers(), [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]);
}

#[test]
fn a_sequence_without_room_waits_and_others_continue() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=2, |_| {});
    host.put(&system(OTHER), 3..=4, |journal| is(journal, 0x77));
    *host.sink.full.lock() = Some(SEQUENCE.to_owned());
    host.run(&[&|| *host.sink.full.lock() = None]);
    assert_eq!(host.numbers(), [3, 4, 1, 2]);
}

#[test]
fn damaged_entries_are_counted_and_their_file_is_named() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=9, |journal| journal.bytes[journal.entries[4]] = 0);
    host.run(&[]);
    assert_eq!(host.numbers(), [1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(*host.sink.dropped.lock(), [(Reason::Unparseable, 1, None)]);
    let problems = host.sink.problems.lock();
    assert!(problems[0].contains("/system.journal is damaged"), "{problems:?}");
}

/// Records, drops and cursors of two sequences that alternate in a block stay with their sequence.
#[test]
fn what_is_lost_between_two_entries_of_a_block_is_another_chunk() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=3, |_| {});
    let (context, outlet) = (host.context(), host.outlet());
    let mut reading = Reading::new(&context, &outlet);
    reading.files.update(&context.host().expect("a root"), &mut reading.cursors, Begin::First);
    reading.files.begin_pass();
    let (mut block, other) = (Block::default(), Id([7; 16]));
    for number in 1..=3 {
        let entry = reading.files.reader.next_entry().expect("three");
        reading.add(&mut block, &entry, false);
        if number == 2 {
            reading.add_dropped(&mut block, (other, Reason::RotatedAway, 4));
        }
    }
    assert!(block.bytes > 3 * 200);
    let chunks = reading.finish(block);
    let found: Vec<_> = chunks
        .iter()
        .map(|chunk| (chunk.source.id.as_str(), chunk.count(), chunk.dropped.len(), chunk.cursor.is_some()))
        .collect();
    let other = format!("journal:{other}");
    assert_eq!(found, [(SEQUENCE, 2, 0, true), (other.as_str(), 0, 1, false), (SEQUENCE, 1, 0, true)]);
    let cursor = |chunk: &Chunk| String::from_utf8_lossy(chunk.cursor.as_deref().expect("one")).into_owned();
    assert!(cursor(&chunks[0]).contains(";i=2;") && cursor(&chunks[2]).contains(";i=3;"));
    assert_eq!(chunks[2].entries[0].position, Position(3, 4));
}

#[test]
fn what_is_no_journal_is_named_and_the_rest_is_read() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=2, |_| {});
    fs::write(host.path(&format!("var/log/journal/{MACHINE}/torn.journal")), "LPKSHHRH").expect("writes");
    host.run(&[]);
    assert_eq!(host.numbers(), [1, 2]);
    assert!(host.sink.problems.lock()[0].contains("torn.journal: it is not a journal file"));
}

#[test]
fn after_a_lost_queue_reading_continues_at_the_first_hole() {
    let mut host = Host::new(crate::tail::Start::End);
    host.put(&system(MACHINE), 1..=9, |_| {});
    let text = format!("s={};i=8;b={};m=8;t=660e9165b69c8;x=38", "5e".repeat(16), "b0".repeat(16));
    host.sink.cursors.lock().insert(SEQUENCE.to_owned(), text.into_bytes());
    host.stored = vec![Stored { id: SEQUENCE.to_owned(), ranges: vec![(1, 4), (6, 8)], begun: false, floor: 0 }];
    host.run(&[]);
    assert_eq!(host.numbers(), [4, 5, 8, 9]);
    host.sink.records.lock().clear();
    host.stored[0].begun = true;
    host.run(&[]);
    assert!(host.numbers().is_empty(), "it was continued since");
}

#[test]
fn skipping_counts_what_is_passed_and_moves_every_sequence() {
    let host = Host::new(crate::tail::Start::Beginning);
    host.put(&system(MACHINE), 1..=2, |_| {});
    host.run(&[]);
    host.put(&system(MACHINE), 1..=7, |_| {});
    host.put(&system(OTHER), 3..=4, |journal| is(journal, 0x77));
    skip(&Settings::default(), &host.context(), &host.outlet()).expect("skips");
    assert_eq!(*host.sink.dropped.lock(), [(Reason::Policy, 5, Some(Position(3, 8)))]);
    host.put(&system(MACHINE), 1..=8, |_| {});
    host.put(&system(OTHER), 3..=5, |journal| is(journal, 0x77));
    host.run(&[]);
    assert_eq!(host.numbers(), [1, 2, 5, 8]);
}

#[test]
fn once_gives_the_last_entries_of_all_files() {
    let host = Host::new(crate::tail::Start::End);
    host.put(&system(MACHINE), [1, 3, 5], |_| {});
    host.put(&format!("var/log/journal/{MACHINE}/user-1.journal"), [2, 4, 6], |_| {});
    let context = CollectorContext { once: Some(3), ..host.context() };
    Journal { start: crate::tail::Start::End }.watch(&context, &mut host.outlet()).expect("reads");
    assert_eq!(host.numbers(), [4, 5, 6]);
}

#[test]
fn a_host_without_a_journal_says_so() {
    let dir = tempfile::tempdir().expect("temp dir");
    let context = CollectorContext::new(dir.path(), Arc::new(|| 1));
    let Ok(Plan::Absent(why)) = Definition::build(&Settings::default(), &context) else { panic!("not absent") };
    assert!(why.contains("/var/log/journal"), "{why}");
    assert!(!is_readable(&context) && files::directory(Path::new("/var/log/journal/remote/a.journal")).is_none());
}
