//! Files that someone creates to do harm: too many, endless, sparse, or links to files of another user.

#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::{rotation::*, *};
use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
};

fn start_tailer(dir: &Path, glob: &str, change: impl FnOnce(Tailer<Raw>) -> Tailer<Raw>) -> Running {
    start_with(dir, change(Tailer::new("syslog", &[glob.to_owned()], Start::Beginning, Raw)), Arc::default())
}

#[test]
fn more_files_than_descriptors_are_read_and_followed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let name = |number: u64| dir.path().join(format!("{number:03}.log"));
    for number in 0..60 {
        append(&name(number), &numbered(number..number + 1));
    }
    let running = start_tailer(dir.path(), "/*.log", |tailer| Tailer { open_max: 4, ..tailer });
    running.until(60);
    let descriptors = || {
        let links = fs::read_dir("/proc/self/fd").expect("lists").filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links.filter(|path| path.starts_with(dir.path()) && path.extension().is_some_and(|end| end == "log")).count()
    };
    assert!(descriptors() <= 4, "{}", descriptors());
    // Closed files that grow are reopened, including the last.
    for number in 0..60 {
        append(&name(number), &numbered(60 + number..61 + number));
    }
    assert_each_once(&running, 120);
    // A closed file that is renamed and written to is found.
    append(&name(7), &numbered(120..121));
    fs::rename(name(7), dir.path().join("007.log.1")).expect("renames");
    append(&name(7), &numbered(121..122));
    assert_each_once(&running, 122);
    running.stop();
}

#[test]
fn a_file_without_end_does_not_keep_the_others_waiting() {
    let dir = tempfile::tempdir().expect("temp dir");
    // The file sorts before the other, and is many times longer than what the tailer reads before it turns to the next file.
    let flood = "f".repeat(1023) + "\n";
    append(&dir.path().join("a.log"), &flood.repeat(64 << 10));
    append(&dir.path().join("z.log"), "security\n");
    let running = start_tailer(dir.path(), "/*.log", |tailer| tailer);
    let began = Instant::now();
    while !running.texts().iter().any(|text| text == "security") {
        assert!(began.elapsed() < Duration::from_secs(20), "{} lines", running.texts().len());
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = running.sink.lines.lock().iter().position(|(_, _, text)| text == "security");
    assert!(before.is_some_and(|lines| lines < 8 << 10), "{before:?} lines of the flood before it");
    running.until((64 << 10) + 1);
    running.stop();
}

#[test]
fn a_source_that_holds_its_share_of_the_queue_waits_alone_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (flood, quiet) = (dir.path().join("flood.log"), dir.path().join("quiet.log"));
    append(&flood, &numbered(0..50));
    let sink = Arc::new(MemorySink::default());
    let tailer = Tailer::new("syslog", &["/*.log".to_owned()], Start::Beginning, Raw);
    let running = start_with(dir.path(), tailer, Arc::clone(&sink));
    running.until(50);
    *sink.full.lock() = Some("/flood.log".to_owned());
    append(&flood, &numbered(50..100));
    append(&quiet, &numbered(100..110));
    running.until(60);
    let began = Instant::now();
    while sink.complaints.lock().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "the wait is not reported");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(sink.complaints.lock()[0].starts_with("/flood.log waits"));
    // Meanwhile it is copied and truncated, as in rotation, and written to.
    fs::copy(&flood, dir.path().join("flood.log.1")).expect("copies");
    fs::File::options().write(true).open(&flood).and_then(|file| file.set_len(0)).expect("truncates");
    std::thread::sleep(Duration::from_millis(1500));
    append(&flood, &numbered(110..120));
    append(&quiet, &numbered(120..130));
    running.until(70);
    assert_eq!(running.texts().len(), 70);
    *sink.full.lock() = None;
    assert_each_once(&running, 130);
    running.stop();
}

#[test]
fn a_waiting_file_is_not_released_when_it_is_renamed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let flood = dir.path().join("flood.log");
    append(&flood, &numbered(0..50));
    let sink = Arc::new(MemorySink::default());
    let tailer = Tailer::new("syslog", &["/*.log".to_owned()], Start::Beginning, Raw);
    let patience = Duration::from_millis(500);
    let running = start_with(dir.path(), Tailer { patience, ..tailer }, Arc::clone(&sink));
    running.until(50);
    *sink.full.lock() = Some("/flood.log".to_owned());
    append(&flood, &numbered(50..100));
    std::thread::sleep(Duration::from_millis(1200));
    fs::rename(&flood, dir.path().join("flood.log.1")).expect("renames");
    append(&dir.path().join("other.log"), &numbered(100..101));
    running.until(51);
    std::thread::sleep(Duration::from_millis(2500));
    *sink.full.lock() = None;
    assert_each_once(&running, 101);
    running.stop();
}

#[test]
fn generations_of_a_flood_that_wait_take_no_descriptor_from_others() {
    let dir = tempfile::tempdir().expect("temp dir");
    let flood = dir.path().join("flood.log");
    append(&flood, &numbered(0..10));
    let sink = Arc::new(MemorySink::default());
    let tailer = Tailer::new("syslog", &["/*.log".to_owned()], Start::Beginning, Raw);
    let running = start_with(dir.path(), Tailer { open_max: 4, ..tailer }, Arc::clone(&sink));
    running.until(10);
    *sink.full.lock() = Some("/flood.log".to_owned());
    for generation in 1..=6 {
        append(&flood, &numbered(generation * 10..generation * 10 + 10));
        std::thread::sleep(Duration::from_millis(400));
        fs::rename(&flood, dir.path().join(format!("flood.log.{generation}"))).expect("renames");
        append(&flood, "");
        std::thread::sleep(Duration::from_millis(400));
    }
    append(&dir.path().join("quiet.log"), &numbered(70..80));
    running.until(20);
    assert_eq!(running.texts().len(), 20);
    *sink.full.lock() = None;
    assert_each_once(&running, 80);
    assert_eq!(running.stop().dropped(), []);
}

#[test]
fn holes_are_skipped_and_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "first\nhalf");
    let file = fs::File::options().write(true).open(&log).expect("opens");
    let far = 1_u64 << 40;
    if file.write_all_at(b"behind\n", far + 100).is_err() {
        // This file system has no sparse files of that length.
        return;
    }
    let began = Instant::now();
    let running = start_tailer(dir.path(), "/*.log", |tailer| tailer);
    assert_eq!(running.until(3), ["first", "half", "behind"]);
    assert!(began.elapsed() < Duration::from_secs(15), "the hole of 1 TiB was read");
    // Data may still appear before the end of the file.
    file.set_len(far * 2).expect("extends");
    std::thread::sleep(Duration::from_millis(300));
    file.write_all_at(b"into the hole\n", far + (1 << 20)).expect("writes");
    assert_eq!(running.until(4)[3], "into the hole");
    let sink = running.stop();
    let holes: Vec<Position> =
        sink.dropped().into_iter().filter(|(reason, ..)| *reason == Reason::Hole).filter_map(|(.., at)| at).collect();
    assert_eq!(holes, [Position(10, far + 100), Position(far + 107, far + (1 << 20))]);
    assert_tiled(&sink);
}

/// Records and drops leave no gap and do not overlap.
fn assert_tiled(sink: &MemorySink) {
    let mut spans: Vec<Position> = sink.lines.lock().iter().map(|(_, position, _)| *position).collect();
    spans.extend(sink.dropped().into_iter().filter_map(|(.., positions)| positions));
    spans.sort();
    for pair in spans.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{spans:?}");
    }
}

#[test]
fn zeros_that_copytruncate_left_swallow_no_line() {
    for is_sparse in [true, false] {
        let dir = tempfile::tempdir().expect("temp dir");
        let log = dir.path().join("a.log");
        append(&log, &numbered(0..2000));
        let running = start_tailer(dir.path(), "/*.log", |tailer| tailer);
        running.until(2000);
        // The writer continues at its offset; the bytes before it are NUL.
        let length = fs::metadata(&log).expect("is there").len();
        let file = fs::File::options().write(true).open(&log).expect("opens");
        file.set_len(0).expect("truncates");
        if !is_sparse {
            file.write_all_at(&vec![0; length as usize], 0).expect("writes");
        }
        file.write_all_at(numbered(2000..2010).as_bytes(), length).expect("writes");
        assert_each_once(&running, 2010);
        running.stop();
    }
}

#[test]
fn two_files_with_the_same_ends_are_both_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let text = |middle: &str| format!("{}\n{middle}\n{}\n", "h".repeat(80), "t".repeat(80));
    append(&dir.path().join("report.log"), &text("one"));
    let running =
        start_tailer(dir.path(), "/*.log", |tailer| Tailer { copy_wait: Duration::from_millis(200), ..tailer });
    running.until(3);
    append(&dir.path().join("report-2.log"), &text("two"));
    let mut texts = running.until(6);
    texts.retain(|text| text.len() == 3);
    assert_eq!(texts, ["one", "two"], "report-2.log is not a copy, since report.log was not truncated");
    running.stop();
}

#[test]
fn a_file_that_no_glob_matches_is_not_read_and_is_counted_when_one_does_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, "one\n");
    append(&dir.path().join("b.txt"), "b\n");
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(1);
    let sink = running.stop();
    let cursor = sink.cursors.lock().len();
    append(&log, "private\n");
    let running = start(dir.path(), "/*.txt", Start::Beginning, sink);
    assert_eq!(running.until(2), ["one", "b"]);
    append(&log, "private too\n");
    let sink = running.stop();
    assert_eq!(sink.cursors.lock().len(), cursor + 1, "the cursor stays");
    assert_eq!(sink.lines.lock().len(), 2);
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    while running.sink.dropped().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    append(&log, "new\n");
    assert_eq!(running.until(3), ["one", "b", "new"]);
    assert_eq!(running.stop().dropped(), [(Reason::Policy, 1, Some(Position(4, 24)))]);
}

#[test]
fn a_link_of_another_user_is_not_followed_and_is_reported() {
    let dir = tempfile::tempdir().expect("temp dir");
    if !rustix::process::getuid().is_root() {
        return;
    }
    fs::create_dir(dir.path().join("logs")).expect("makes");
    fs::write(dir.path().join("shadow"), "root:secret\n").expect("writes");
    append(&dir.path().join("logs/own.log"), "own\n");
    symlink("../shadow", dir.path().join("logs/x.log")).expect("links");
    std::os::unix::fs::lchown(dir.path().join("logs/x.log"), Some(1234), None).expect("chowns");
    let running = start_tailer(dir.path(), "/logs/*.log", |tailer| tailer);
    assert_eq!(running.until(1), ["own"]);
    while running.sink.complaints.lock().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sink = running.stop();
    assert_eq!(sink.lines.lock().len(), 1);
    let complaints = sink.complaints.lock();
    assert!(complaints[0].contains("/logs/x.log") && complaints[0].contains("belongs to user 1234"), "{complaints:?}");
}

#[test]
fn link_loops_and_non_utf8_names_do_not_stop_other_files() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().expect("temp dir");
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.log"));
    append(&odd, "odd\n");
    fs::create_dir(dir.path().join("d")).expect("makes");
    symlink("..", dir.path().join("d/up")).expect("links");
    symlink("../d", dir.path().join("d/self")).expect("links");
    append(&dir.path().join("d/in.log"), "in\n");
    let running = start(dir.path(), "/**/*.log", Start::Beginning, Arc::default());
    let mut texts = running.until(2);
    texts.sort();
    assert_eq!(texts, ["in", "odd"]);
    let sink = running.stop();
    append(&odd, "more\n");
    let running = start(dir.path(), "/**/*.log", Start::Beginning, sink);
    assert_eq!(running.until(3)[2], "more");
    running.stop();
}

#[test]
fn a_root_whose_name_holds_a_wildcard_is_a_root() {
    let dir = tempfile::tempdir().expect("temp dir");
    let root = dir.path().join("[host]*");
    fs::create_dir(&root).expect("makes");
    append(&root.join("a.log"), "a\n");
    let running = start_tailer(&root, "/*.log", |tailer| tailer);
    assert_eq!(running.until(1), ["a"]);
    running.stop();
}

#[test]
fn paths_that_match_nothing_are_reported() {
    let dir = tempfile::tempdir().expect("temp dir");
    for (glob, expects_each, expected) in [
        ("/absent.log", true, "/absent.log: it does not exist"),
        ("/absent.log", false, "no file matches any of `paths`"),
        ("/nowhere/*.log", false, "no file matches any of `paths`"),
    ] {
        let running = start_tailer(dir.path(), glob, |tailer| tailer.expecting_each(expects_each));
        while running.sink.complaints.lock().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(running.stop().complaints.lock()[0].contains(expected));
    }
    // Files that match may appear later.
    let running = start_tailer(dir.path(), "/*.log", |tailer| tailer);
    append(&dir.path().join("a.log"), "a\n");
    assert_eq!(running.until(1), ["a"]);
    assert!(running.stop().complaints.lock().is_empty());
}
