mod archives;
mod hostile;
mod rotation;

use super::{lines::LINE_BYTES_MAX, *};
use crate::{Sink, StopSignal, outlet::store_cursors};
use parking_lot::Mutex;
use std::{
    io::Write,
    path::Path,
    sync::{atomic::AtomicI64, atomic::Ordering},
};
use vedette_wire::{Body, Chunk, Position, body::Syslog};

/// Stores emitted chunks, and cursors as the queue does.
#[derive(Default)]
struct MemorySink {
    lines: Mutex<Vec<(String, Position, String)>>,
    cursors: Mutex<BTreeMap<String, Vec<u8>>>,
    complaints: Mutex<Vec<String>>,
    parts: Mutex<Vec<Option<u32>>>,
    unfinished: Mutex<Vec<bool>>,
    dropped: Mutex<Vec<(Reason, u64, Option<Position>)>>,
    /// Name of a source without room.
    full: Mutex<Option<String>>,
}

impl MemorySink {
    fn dropped(&self) -> Vec<(Reason, u64, Option<Position>)> {
        self.dropped.lock().clone()
    }
}

impl Sink for MemorySink {
    fn put(&self, chunk: Chunk, _: &StopSignal) -> Result<(), CollectError> {
        for record in chunk.decode().expect("records") {
            let Body::Syslog(line) = record.body else { panic!("not a line") };
            let text = String::from_utf8_lossy(&line.raw).into_owned();
            self.parts.lock().push(line.part);
            self.unfinished.lock().push(line.unfinished);
            self.lines.lock().push((chunk.source.id.clone(), record.position, text));
        }
        let dropped = chunk.dropped.iter().map(|dropped| (dropped.reason, dropped.count, dropped.positions));
        self.dropped.lock().extend(dropped);
        store_cursors(&mut self.cursors.lock(), &chunk);
        Ok(())
    }

    fn has_room(&self, source: &Source, _: bool) -> bool {
        self.full.lock().as_deref().is_none_or(|full| source.name.as_deref() != Some(full))
    }

    fn report_problem(&self, _: &'static str, message: String) {
        self.complaints.lock().push(message);
    }
}

struct Raw;
impl LineParser for Raw {
    fn parse(&mut self, line: &Line<'_>, chunks: &mut ChunkBuilder) {
        let (part, unfinished) = (line.part, line.unfinished);
        chunks.syslog(line, Syslog { part, unfinished, ..Syslog::default() });
    }
}

struct Running {
    sink: Arc<MemorySink>,
    signal: StopSignal,
    thread: Option<std::thread::JoinHandle<Result<(), CollectError>>>,
}

impl Running {
    fn texts(&self) -> Vec<String> {
        self.sink.lines.lock().iter().map(|(_, _, text)| text.clone()).collect()
    }

    /// Waits for a number of lines; a watchdog ends a test that would wait for ever.
    fn until(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.texts().len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.texts()
    }

    fn stop(mut self) -> Arc<MemorySink> {
        self.signal.stop();
        self.thread.take().expect("runs").join().expect("no panic").expect("no error");
        Arc::clone(&self.sink)
    }
}

/// Never returns the same time twice.
static TICKS: AtomicI64 = AtomicI64::new(1);

fn clock() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_nanos() as i64 + TICKS.fetch_add(1, Ordering::Relaxed)
}

fn start(dir: &Path, glob: &str, from: Start, sink: Arc<MemorySink>) -> Running {
    start_patient(dir, glob, from, sink, PATIENCE)
}

fn start_patient(dir: &Path, glob: &str, start: Start, sink: Arc<MemorySink>, patience: Duration) -> Running {
    start_with(dir, Tailer { patience, ..Tailer::new("syslog", &[glob.to_owned()], start, Raw) }, sink)
}

fn start_with(dir: &Path, mut tailer: Tailer<Raw>, sink: Arc<MemorySink>) -> Running {
    let cursors = sink.cursors.lock().clone().into_iter().collect();
    let context = CollectorContext { cursors, ..CollectorContext::new(dir, Arc::new(clock)) };
    let signal = StopSignal::default();
    let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, signal.clone());
    let thread = std::thread::spawn(move || tailer.run(&context, &outlet));
    Running { sink, signal, thread: Some(thread) }
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

#[test]
fn it_starts_at_the_end_and_goes_on_after_a_restart_without_loss_or_repeat() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "old 1\nold 2\n");
    let running = start(dir.path(), "/*.log", Start::End, Arc::default());
    while !running.sink.cursors.lock().contains_key(SCANNED) {
        std::thread::sleep(Duration::from_millis(5));
    }
    append(&log, "new 1\nnew 2\nhalf");
    assert_eq!(running.until(2), ["new 1", "new 2"]);
    let sink = running.stop();
    append(&log, " line\nwhile down\n");
    append(&dir.path().join("b.log"), "a file made while down\n");
    let running = start(dir.path(), "/*.log", Start::End, sink);
    let mut texts = running.until(5);
    texts[2..].sort();
    assert_eq!(texts, ["new 1", "new 2", "a file made while down", "half line", "while down"]);
    running.stop();
}

#[test]
fn a_glob_that_is_added_later_begins_at_the_end_too() {
    let dir = tempfile::tempdir().expect("temp dir");
    append(&dir.path().join("a.log"), "old a\n");
    append(&dir.path().join("b.txt"), "old b\n");
    let running = start(dir.path(), "/*.log", Start::End, Arc::default());
    while !running.sink.cursors.lock().contains_key(SCANNED) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sink = running.stop();
    let scans = sink.cursors.lock()[SCANNED].clone();
    let running = start(dir.path(), "/*.txt", Start::End, sink);
    while running.sink.cursors.lock()[SCANNED] == scans {
        std::thread::sleep(Duration::from_millis(5));
    }
    append(&dir.path().join("b.txt"), "new b\n");
    assert_eq!(running.until(1), ["new b"]);
    running.stop();
}

#[test]
fn a_file_whose_device_has_another_number_is_recognised_by_path_inode_and_content() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "1\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(1);
    let sink = running.stop();
    {
        let mut cursors = sink.cursors.lock();
        let (id, bytes) = cursors.iter().find(|(id, _)| *id != SCANNED).expect("one file");
        let mut cursor = Cursor::decode(id, bytes, &[]).expect("a cursor");
        let id = id.clone();
        cursors.remove(&id);
        cursor.device += 1;
        cursors.insert(cursor.id(), cursor.encode());
    }
    append(&log, "2\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    assert_eq!(running.until(2), ["1", "2"]);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(running.texts(), ["1", "2"]);
    running.stop();
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_the_new_one_from_its_beginning() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "1\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    assert_eq!(running.until(1), ["1"]);
    let mut writer = std::fs::OpenOptions::new().append(true).open(&log).expect("opens");
    std::fs::rename(&log, dir.path().join("a.log.1")).expect("renames");
    writer.write_all(b"2\n").expect("writes");
    append(&log, "3\n");
    writer.write_all(b"4\n").expect("writes");
    let mut texts = running.until(4);
    texts.sort();
    assert_eq!(texts, ["1", "2", "3", "4"]);
    running.stop();
}

#[test]
fn a_file_renamed_out_of_the_glob_while_the_agent_is_down_is_read_to_its_end() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "1\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(1);
    let sink = running.stop();
    append(&log, "2\n");
    std::fs::rename(&log, dir.path().join("a.log.1")).expect("renames");
    append(&log, "3\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    let mut texts = running.until(3);
    texts.sort();
    assert_eq!(texts, ["1", "2", "3"]);
    running.stop();
}

#[test]
fn a_truncated_file_is_another_source_even_when_it_has_grown_past_the_cursor() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "first 1\nfirst 2\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(2);
    let sink = running.stop();
    // copytruncate while stopped; the writer is already past the cursor.
    std::fs::OpenOptions::new().write(true).truncate(true).open(&log).expect("truncates");
    append(&log, "second, longer than the first two lines\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    assert_eq!(running.until(3)[2], "second, longer than the first two lines");
    let sink = running.stop();
    let lines = sink.lines.lock();
    assert_ne!(lines[0].0, lines[2].0, "the source id changed with the content");
    assert_eq!(lines[2].1, Position(0, 40));
}

#[test]
fn generations_that_came_and_went_while_the_agent_was_down_are_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = |name: &str| dir.path().join(name);
    append(&path("a.log.1"), "rotated before the agent ever ran\n");
    std::thread::sleep(Duration::from_millis(100));
    append(&path("a.log"), "1\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(1);
    let sink = running.stop();
    append(&path("a.log"), "2\n");
    std::fs::rename(path("a.log.1"), path("a.log.3")).expect("renames");
    std::fs::rename(path("a.log"), path("a.log.1")).expect("renames");
    append(&path("a.log"), "3\n");
    std::fs::rename(path("a.log.1"), path("a.log.2")).expect("renames");
    std::fs::rename(path("a.log"), path("a.log.1")).expect("renames");
    append(&path("a.log"), "4\n");
    append(&path("a.log.4.gz"), "compressed\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    running.until(4);
    std::thread::sleep(Duration::from_millis(200));
    let mut texts = running.texts();
    texts.sort();
    assert_eq!(texts, ["1", "2", "3", "4"]);
    running.stop();
}

fn copy_and_truncate(log: &Path, copy: &Path) {
    std::fs::copy(log, copy).expect("copies");
    std::fs::OpenOptions::new().write(true).open(log).and_then(|file| file.set_len(0)).expect("truncates");
}

#[test]
fn what_was_not_read_before_copytruncate_is_read_from_the_copy_as_the_same_source() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "first 1\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(1);
    let sink = running.stop();
    append(&log, "first 2\n");
    copy_and_truncate(&log, &dir.path().join("a.log.1"));
    append(&log, "second 1, of a longer line than all before\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    running.until(3);
    // Once more, while the copy's source is known.
    let sink = running.stop();
    let running = start(dir.path(), "/a.log", Start::Beginning, sink);
    std::thread::sleep(Duration::from_millis(200));
    let sink = running.stop();
    let mut lines = sink.lines.lock().clone();
    lines.sort_by(|a, b| a.2.cmp(&b.2));
    let texts: Vec<&str> = lines.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["first 1", "first 2", "second 1, of a longer line than all before"]);
    assert_eq!((lines[0].0.as_str(), lines[1].1), (lines[1].0.as_str(), Position(8, 16)), "they tile one source");
    assert_ne!(lines[1].0, lines[2].0);
}

#[test]
fn a_copy_that_the_glob_finds_as_well_is_not_read_twice() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, copy) = (dir.path().join("a.log"), dir.path().join("a-20261125.log"));
    append(&log, "1\n2\n");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(2);
    std::fs::copy(&log, &copy).expect("copies");
    std::thread::sleep(Duration::from_millis(300));
    std::fs::OpenOptions::new().write(true).open(&log).and_then(|file| file.set_len(0)).expect("truncates");
    append(&log, "3\n");
    running.until(3);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(running.texts(), ["1", "2", "3"]);
    // Another file with the same start is another file.
    append(&dir.path().join("a-errors.log"), "1\n");
    append(&log, "4\n");
    running.until(4);
    append(&dir.path().join("a-errors.log"), "an error\n");
    let mut texts = running.until(6);
    texts[3..].sort();
    assert_eq!(texts, ["1", "2", "3", "1", "4", "an error"]);
    let sink = running.stop();
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(running.texts().len(), 6, "nor after a restart: {:?}", running.texts());
    running.stop();
}

#[test]
fn an_unfinished_line_is_not_finished_by_another_files_bytes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "whole\nPARTIAL");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(1);
    std::thread::sleep(Duration::from_millis(100));
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&log).expect("truncates");
    file.write_all(b"whole\nabcdefghijklmnop\n").expect("writes");
    let texts = running.until(4);
    assert_eq!(texts, ["whole", "PARTIAL", "whole", "abcdefghijklmnop"], "what was read of it is kept");
    running.stop();
}

#[test]
fn positions_tile_the_file() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "one\r\n\ntwo\0\n");
    let mut expected = 0;
    for number in 0..20_000 {
        append(&log, &format!("line {number}\n"));
    }
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    running.until(20_003);
    let sink = running.stop();
    let lines = sink.lines.lock();
    for (_, position, _) in lines.iter() {
        assert_eq!(position.0, expected);
        expected = position.1;
    }
    assert_eq!(expected, std::fs::metadata(&log).expect("is there").len());
    assert_eq!(lines[0].2, "one");
}

#[test]
fn a_line_beyond_the_limit_goes_as_parts_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, &"x".repeat(5 * LINE_BYTES_MAX / 2));
    append(&log, "\nnext\n");
    let running = start(dir.path(), "/a.log", Start::Beginning, Arc::default());
    let texts = running.until(4);
    let lengths: Vec<usize> = texts.iter().map(String::len).collect();
    assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, LINE_BYTES_MAX / 2, 4]);
    running.stop();
}

#[test]
fn once_gives_the_last_lines_and_ends() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    for number in 0..300 {
        append(&log, &format!("{number}\n"));
    }
    let sink = Arc::new(MemorySink::default());
    let context = CollectorContext { once: Some(100), ..CollectorContext::new(dir.path(), Arc::new(|| 1)) };
    let (globs, start, patience) = (vec!["/a.log".to_owned()], Start::End, PATIENCE);
    let mut tailer = Tailer { patience, ..Tailer::new("syslog", &globs, start, Raw) };
    let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, StopSignal::default());
    tailer.run(&context, &outlet).expect("ends");
    let lines = sink.lines.lock();
    assert_eq!((lines.len(), lines[0].2.as_str(), lines[99].2.as_str()), (100, "200", "299"));
}

#[test]
fn what_is_no_file_is_left_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::create_dir(dir.path().join("dir.log")).expect("makes");
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.log")).expect("links");
    append(&dir.path().join("a.log"), "1\n");
    std::fs::hard_link(dir.path().join("a.log"), dir.path().join("b.log")).expect("links");
    std::os::unix::fs::symlink("a.log", dir.path().join("c.log")).expect("links");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(1);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(running.texts(), ["1"], "one file, however many names");
    running.stop();
}

/// Waits until this many files have a cursor, besides the record of scanned globs.
fn files_with_cursors(sink: &MemorySink, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let files = || sink.cursors.lock().keys().filter(|id| *id != SCANNED).count();
    while files() != count {
        assert!(Instant::now() < deadline, "{} files have a cursor, not {count}", files());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_rotated_file_that_grows_no_more_is_let_go_with_its_unfinished_line() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "whole\nhalf");
    let running = start_patient(dir.path(), "/a.log", Start::Beginning, Arc::default(), Duration::from_millis(200));
    assert_eq!(running.until(1), ["whole"]);
    std::fs::rename(&log, dir.path().join("gone")).expect("renames");
    assert_eq!(running.until(2), ["whole", "half"]);
    files_with_cursors(&running.sink, 0);
    running.stop();
}

#[test]
fn a_file_that_is_gone_after_a_restart_is_looked_for_and_then_forgotten() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (lost, other) = (dir.path().join("lost.log"), dir.path().join("other.log"));
    append(&lost, "line\n");
    append(&other, "line\n");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(2);
    let sink = running.stop();
    std::fs::remove_file(&lost).expect("removes");
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    append(&other, "more\n");
    running.until(3);
    files_with_cursors(&running.sink, 2);
    let running = start_patient(dir.path(), "/*.log", Start::Beginning, running.stop(), Duration::ZERO);
    files_with_cursors(&running.sink, 1);
    running.stop();
}
