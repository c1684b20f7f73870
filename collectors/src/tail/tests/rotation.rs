//! Rotation of all kinds, by example and at random against a model.

#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

use super::*;
use proptest::prelude::*;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
};

pub(super) fn numbered(numbers: std::ops::Range<u64>) -> String {
    numbers.map(|number| format!("line {number:06} {}\n", "x".repeat((number % 90) as usize))).collect()
}

fn numbers(texts: &[String]) -> Vec<u64> {
    let number = |text: &String| text.strip_prefix("line ").and_then(|rest| rest.get(..6)).and_then(|n| n.parse().ok());
    let mut numbers: Vec<u64> = texts.iter().map(|text| number(text).unwrap_or_else(|| panic!("{text:?}"))).collect();
    numbers.sort_unstable();
    numbers
}

/// A file of this machine.
fn found(path: &Path) -> crate::root::HostEntry {
    Root::open(Path::new("/")).and_then(|root| root.log(path)).expect("is there")
}

/// Waits until the tailer has expanded its globs once.
fn scanned(running: &Running) {
    while !running.sink.cursors.lock().contains_key(SCANNED) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that lines 0 to `count` arrived once each.
pub(super) fn assert_each_once(running: &Running, count: u64) {
    let texts = running.until(count as usize);
    // A repeated line would arrive after the first one.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(numbers(&running.texts()), (0..count).collect::<Vec<_>>(), "{} texts", texts.len());
}

#[test]
fn a_file_that_is_compressed_and_deleted_while_behind_is_read_to_its_end() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    scanned(&running);
    // More than one turn, and renamed at once.
    append(&log, &numbered(0..20_000));
    let rotated = dir.path().join("a.log.1");
    fs::rename(&log, &rotated).expect("renames");
    fs::write(dir.path().join("a.log.1.gz"), fs::read(&rotated).expect("reads")).expect("writes");
    fs::remove_file(&rotated).expect("removes");
    append(&log, &numbered(20_000..20_010));
    assert_each_once(&running, 20_010);
    running.stop();
}

#[test]
fn a_reused_inode_is_another_file() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, &numbered(0..50));
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(50);
    let sink = running.stop();
    let inode = fs::metadata(&log).expect("is there").ino();
    fs::remove_file(&log).expect("removes");
    let mut others = Vec::new();
    // Some file systems reuse inode numbers at once, others later or never.
    let reused = (0..1000).any(|n| {
        append(&log, &numbered(50..150));
        let same = fs::metadata(&log).expect("is there").ino() == inode;
        if !same {
            let other = dir.path().join(format!("other {n}"));
            fs::rename(&log, &other).expect("renames");
            others.push(other);
        }
        same
    });
    if !reused {
        append(&log, &numbered(50..150));
    }
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    assert_each_once(&running, 150);
    running.stop();
}

#[test]
fn files_that_begin_with_the_same_4096_bytes_are_two() {
    let dir = tempfile::tempdir().expect("temp dir");
    let same = format!("{}\n", "h".repeat(4095));
    for name in ["a.log", "b.log"] {
        append(&dir.path().join(name), &same);
    }
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    assert_eq!(running.until(2).len(), 2);
    append(&dir.path().join("a.log"), "of a\n");
    append(&dir.path().join("b.log"), "of b\n");
    let mut texts = running.until(4);
    texts.sort();
    assert_eq!(texts[2..], ["of a", "of b"]);
    let sink = running.stop();
    append(&dir.path().join("b.log"), "more of b\n");
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    assert_eq!(running.until(5).last().expect("there are some"), "more of b");
    assert_eq!(running.texts().len(), 5);
    running.stop();
}

#[test]
fn a_file_of_two_names_is_read_once_and_a_link_that_points_elsewhere_is_followed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (first, second, link) = (dir.path().join("a.log"), dir.path().join("b.log"), dir.path().join("c.log"));
    append(&first, &numbered(0..10));
    fs::hard_link(&first, &second).expect("links");
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    append(&old, &numbered(10..20));
    append(&new, &numbered(20..30));
    symlink("old", &link).expect("links");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(20);
    let next = dir.path().join("next");
    symlink("new", &next).expect("links");
    fs::rename(&next, &link).expect("replaces");
    running.until(30);
    // The former target is read for a while longer.
    append(&old, &numbered(30..31));
    assert_each_once(&running, 31);
    running.stop();
}

#[test]
fn a_directory_that_appears_later_and_one_that_is_replaced_are_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let running = start(dir.path(), "/apps/*/out.log", Start::End, Arc::default());
    scanned(&running);
    fs::create_dir_all(dir.path().join("apps/one")).expect("makes");
    append(&dir.path().join("apps/one/out.log"), &numbered(0..10));
    running.until(10);
    // The watch is on the renamed directory: polling finds the new one.
    fs::rename(dir.path().join("apps/one"), dir.path().join("gone")).expect("renames");
    fs::create_dir(dir.path().join("apps/one")).expect("makes");
    append(&dir.path().join("apps/one/out.log"), &numbered(10..20));
    assert_each_once(&running, 20);
    running.stop();
}

#[test]
fn bytes_are_kept_as_they_are() {
    let dir = tempfile::tempdir().expect("temp dir");
    let lines: [&[u8]; 4] = [b"nul \0 inside", b"\xff\xfe not UTF-8 \xc3", b"", b"\0\0\0"];
    let content: Vec<u8> = lines.iter().flat_map(|line| [line, b"\r\n".as_slice()].concat()).collect();
    fs::write(dir.path().join("a.log"), content).expect("writes");
    let mut file = File::open(&found(&dir.path().join("a.log")), 0, 1).expect("opens");
    let mut found: Vec<Vec<u8>> = Vec::new();
    file.read(&mut Vec::new(), 1 << 20, &mut |line: Line<'_>| found.push(line.bytes.to_vec())).expect("reads");
    assert_eq!(found, lines);
}

#[test]
fn a_line_of_a_hundred_megabytes_goes_as_numbered_parts_also_over_a_restart() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    let megabyte = "y".repeat(1 << 20);
    append(&log, "first\n");
    for _ in 0..60 {
        append(&log, &megabyte);
    }
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(60);
    let sink = running.stop();
    for _ in 0..40 {
        append(&log, &megabyte);
    }
    append(&log, "the end\nlast\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    let texts = running.until(103);
    let parts = running.sink.parts.lock().clone();
    assert_eq!(texts.len(), 103);
    assert_eq!((&texts[0], &texts[101], &texts[102]), (&"first".to_owned(), &"the end".to_owned(), &"last".to_owned()));
    let expected: Vec<Option<u32>> = [None].into_iter().chain((1..=101).map(Some)).chain([None]).collect();
    assert_eq!(parts, expected);
    running.stop();
}

#[test]
fn an_unfinished_line_of_a_file_that_is_gone_is_sent_and_flagged() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "whole\nhalf a li");
    let patience = Duration::from_millis(300);
    let running = start_patient(dir.path(), "/a.log", Start::Beginning, Arc::default(), patience);
    running.until(1);
    fs::remove_file(&log).expect("removes");
    assert_eq!(running.until(2), ["whole", "half a li"]);
    assert_eq!(*running.sink.unfinished.lock(), [false, true]);
    running.stop();
}

#[test]
fn bytes_that_were_seen_and_destroyed_unread_are_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "read\n");
    let mut file = File::open(&found(&log), 0, 1).expect("opens");
    file.read(&mut Vec::new(), 1 << 20, &mut |_: Line<'_>| ()).expect("reads");
    append(&log, "seen, not read\n");
    assert!(!file.was_truncated().expect("looks"));
    fs::write(&log, "").expect("truncates");
    assert!(file.was_truncated().expect("looks"));
    assert_eq!(file.destroyed(), Some(Position(5, 20)));
}

#[test]
fn after_a_lost_queue_only_the_holes_are_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "old\nl1\nl2\nl3\nl4\nl5\n");
    let mut file = File::open(&found(&log), 4, 1).expect("opens");
    file.read(&mut Vec::new(), 1 << 20, &mut |_: Line<'_>| ()).expect("reads");
    let mut cursor = file.cursor(Path::new("/a.log"), 1);
    // Starts after "old"; l2 and l4 are stored.
    let read = |ranges: &[(u64, u64)], begun: bool, cursor: &mut Cursor| {
        let stored = vedette_wire::Stored { id: cursor.id(), ranges: ranges.to_vec(), begun, floor: 0 };
        cursor.stored = Some(Arc::new(stored));
        let mut file = File::resume(&found(&log), cursor).expect("opens").expect("it is the same");
        let mut lines = Vec::new();
        let mut keep = |line: Line<'_>| lines.push(String::from_utf8_lossy(line.bytes).into_owned());
        file.read(&mut Vec::new(), 1 << 20, &mut keep).expect("reads");
        lines
    };
    assert_eq!(read(&[(7, 10), (13, 16)], false, &mut cursor), ["l1", "l3", "l5"]);
    assert_eq!(read(&[(4, 10), (13, 19)], false, &mut cursor), ["l3"]);
    assert_eq!(read(&[(7, 10), (13, 16)], true, &mut cursor), Vec::<String>::new(), "it was gone on with since");
    append(&log, "l6\n");
    assert_eq!(read(&[], false, &mut cursor), ["l6"], "nothing is stored: where the cursor stands");
}

/// The index finds at least what a comparison with each file finds.
#[test]
fn an_index_of_stems_finds_every_file_that_a_path_may_be_a_rotated_form_of() {
    use crate::tail::rotation::{StemIndex, may_be_rotated_form};
    let paths = [
        "/l/app.log",
        "/l/app.log.1",
        "/l/app-20261125.log",
        "/l/app.log-20261125",
        "/l/app",
        "/l/app.1",
        "/l/.hidden",
        "/l/.hidden.1",
        "/l/a.b.c",
        "/l/a.b.c.2",
        "/l/a.b-2026-11-25.c",
        "/m/app.log",
        "/l/é.log",
        "/l/é.log.1",
        "/l/x",
        "/l/x.1",
    ];
    let files = || paths.iter().zip(1..).map(|(path, number)| (Path::new(path), (0, number)));
    let stems = StemIndex::new(files());
    let mut pairs = 0;
    for path in paths.map(Path::new) {
        let begins = stems.candidates_for(path);
        for (original, key) in files().filter(|(original, _)| may_be_rotated_form(path, original)) {
            assert!(begins.contains(&key), "{} of {}", path.display(), original.display());
            pairs += 1;
        }
    }
    assert!(pairs >= 6, "{pairs}");
}

#[test]
fn ten_thousand_files_are_followed_and_cost_little_while_nothing_comes() {
    // Each is held open; a process may hold that many if its limit is raised.
    let limit = rustix::process::Rlimit { current: Some(12_000), maximum: Some(12_000) };
    let may = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if may.maximum.is_some_and(|most| most < 12_000) {
        println!("skipped: no more than {:?} open files are allowed", may.maximum);
        return;
    }
    let raised = rustix::process::Rlimit { maximum: may.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("may be raised");
    let dir = tempfile::tempdir().expect("temp dir");
    for number in 0..10_000_u64 {
        append(&dir.path().join(format!("{number}.log")), &numbered(number..number + 1));
    }
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    assert_each_once(&running, 10_000);
    append(&dir.path().join("777.log"), &numbered(10_000..10_001));
    assert_each_once(&running, 10_001);
    running.stop();
}

/// An action of a writer.
#[derive(Debug, Clone)]
enum Act {
    Append(u8),
    /// An unfinished line, to be finished later.
    Half,
    /// Renames and recreates the file, `generations` times in a row.
    Rename(u8),
    CopyTruncate,
    /// Compresses and deletes the oldest rotated file.
    Compress,
    Replace,
    /// Kills the agent, performs these actions, and restarts it.
    Down(Vec<Act>),
    Rest,
}

struct Writer {
    dir: PathBuf,
    next: u64,
    half: bool,
    generations: Vec<PathBuf>,
    made: u32,
    /// Numbers in a file that was destroyed before it was known to be read.
    at_risk: BTreeSet<u64>,
    /// Numbers in the present file.
    present: Vec<u64>,
}

impl Writer {
    fn log(&self) -> PathBuf {
        self.dir.join("a.log")
    }

    fn finish_line(&mut self) {
        if std::mem::take(&mut self.half) {
            append(&self.log(), "\n");
        }
    }

    fn generation(&mut self) -> PathBuf {
        self.made += 1;
        let path = self.dir.join(format!("a.log.{}", self.made));
        self.generations.push(path.clone());
        path
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Append(count) => {
                self.finish_line();
                append(&self.log(), &numbered(self.next..self.next + u64::from(*count)));
                self.present.extend(self.next..self.next + u64::from(*count));
                self.next += u64::from(*count);
            }
            Act::Half => {
                self.finish_line();
                append(&self.log(), numbered(self.next..self.next + 1).trim_end());
                self.present.push(self.next);
                self.next += 1;
                self.half = true;
            }
            Act::Rename(times) => {
                for _ in 0..*times {
                    self.finish_line();
                    let to = self.generation();
                    if fs::rename(self.log(), to).is_ok() {
                        self.present.clear();
                    }
                    self.act(&Act::Append(3));
                }
            }
            Act::CopyTruncate => {
                self.finish_line();
                let to = self.generation();
                if fs::copy(self.log(), to).is_ok() {
                    fs::File::options()
                        .write(true)
                        .open(self.log())
                        .and_then(|file| file.set_len(0))
                        .expect("truncates");
                    self.present.clear();
                }
            }
            Act::Compress if !self.generations.is_empty() => {
                let path = self.generations.remove(0);
                if let Ok(content) = fs::read(&path) {
                    fs::write(path.with_added_extension("gz"), content).expect("writes");
                    fs::remove_file(path).expect("removes");
                }
            }
            Act::Replace => {
                self.finish_line();
                if fs::remove_file(self.log()).is_ok() {
                    self.at_risk.extend(self.present.drain(..));
                }
                self.act(&Act::Append(2));
            }
            Act::Compress | Act::Rest | Act::Down(_) => {}
        }
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let simple = prop_oneof![
        4 => (1_u8..60).prop_map(Act::Append),
        1 => Just(Act::Half),
        2 => (1_u8..4).prop_map(Act::Rename),
        1 => Just(Act::Rest),
    ];
    let up = prop_oneof![
        6 => simple.clone(),
        2 => Just(Act::CopyTruncate),
        1 => Just(Act::Compress),
        1 => Just(Act::Replace),
        2 => prop::collection::vec(simple, 1..4).prop_map(Act::Down),
    ];
    prop::collection::vec(up, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rotation_at_random_loses_and_repeats_nothing_that_could_be_read(acts in acts()) {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut writer = Writer {
            dir: dir.path().to_owned(), next: 0, half: false, generations: Vec::new(), made: 0,
            at_risk: BTreeSet::new(), present: Vec::new(),
        };
        writer.act(&Act::Append(1));
        let mut running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
        running.until(1);
        for act in &acts {
            match act {
                Act::Down(meanwhile) => {
                    let sink = running.stop();
                    meanwhile.iter().for_each(|act| writer.act(act));
                    running = start(dir.path(), "/a.log", Start::Beginning, sink);
                }
                // A writer that destroys a file waits until it was read, as far as it can tell.
                Act::Compress | Act::Replace | Act::CopyTruncate => {
                    writer.finish_line();
                    let sure: BTreeSet<u64> = (0..writer.next).filter(|number| !writer.at_risk.contains(number)).collect();
                    let deadline = Instant::now() + Duration::from_secs(10);
                    while !sure.is_subset(&numbers(&running.texts()).into_iter().collect()) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    writer.act(act);
                }
                Act::Rest => std::thread::sleep(Duration::from_millis(40)),
                act => writer.act(act),
            }
        }
        writer.act(&Act::Append(1));
        let sure: BTreeSet<u64> = (0..writer.next).filter(|number| !writer.at_risk.contains(number)).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        let came = loop {
            let came = numbers(&running.texts());
            if sure.iter().all(|number| came.binary_search(number).is_ok()) {
                break came;
            }
            let lost: Vec<&u64> = sure.iter().filter(|number| came.binary_search(number).is_err()).collect();
            prop_assert!(Instant::now() < deadline, "lost {lost:?} of {}", writer.next);
            std::thread::sleep(Duration::from_millis(10));
        };
        std::thread::sleep(Duration::from_millis(30));
        let repeated = numbers(&running.texts());
        prop_assert!(repeated.windows(2).all(|pair| pair[0] != pair[1]), "{came:?}");
        running.stop();
    }
}

/// `app1.log` and `app10.log` with the same content are two files, though one name is a prefix of the other.
#[test]
fn a_file_whose_name_begins_like_another_and_holds_the_same_is_no_copy() {
    let (dir, file) = (Path::new("/var/log"), |name: &str| Path::new("/var/log").join(name));
    for (name, is_of) in [
        ("app1.log.1", true),
        ("app1-20261125.log", true),
        ("app1_old.log", true),
        ("app120261125.log", true),
        ("app1.log-20261125", true),
        ("app1.log.old", true),
        ("app1.log~", true),
        ("app1.2.log", true),
        ("app1-2026-11-25.log", true),
        ("app1-slow.log", false),
        ("app1.info", false),
        ("app1.log.err", false),
        ("app10.log", false),
        ("app1b.log", false),
        ("app1.log", false),
        ("app1.log.1.gz", false),
        ("app.log", false),
    ] {
        assert_eq!(super::super::rotation::may_be_rotated_form(&file(name), &dir.join("app1.log")), is_of, "{name}");
    }
}
