//! Files that were moved, compressed or deleted while the agent was stopped.

#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::{rotation::*, *};
use std::fs;

/// Compresses a file as logrotate does: the archive keeps the modification time.
fn compress(path: &Path, to: &Path) {
    let text = fs::read(path).expect("reads");
    let modified = fs::metadata(path).expect("is there").modified().expect("has one");
    let file = fs::File::create(to).expect("makes");
    match to.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => {
            let mut gz = flate2::write::GzEncoder::new(&file, flate2::Compression::fast());
            gz.write_all(&text).expect("writes");
            gz.finish().expect("ends");
        }
        Some("zst") => zstd::stream::copy_encode(&text[..], &file, 1).expect("writes"),
        Some("bz2") => {
            let mut bz2 = bzip2::write::BzEncoder::new(&file, bzip2::Compression::fast());
            bz2.write_all(&text).expect("writes");
            bz2.finish().expect("ends");
        }
        other => panic!("{other:?}"),
    }
    file.set_modified(modified).expect("sets");
    fs::remove_file(path).expect("removes");
}

/// Reads the first lines of `a.log`, and stops.
fn first_run(dir: &Path, lines: std::ops::Range<u64>) -> Arc<MemorySink> {
    append(&dir.join("a.log"), &numbered(lines.clone()));
    let running = start(dir, "/*.log", Start::Beginning, Arc::default());
    running.until(lines.end as usize);
    running.stop()
}

#[test]
fn a_file_compressed_while_the_agent_was_down_continues_in_its_archive() {
    for ending in ["gz", "zst", "bz2"] {
        let dir = tempfile::tempdir().expect("temp dir");
        let log = dir.path().join("a.log");
        let sink = first_run(dir.path(), 0..1000);
        append(&log, &numbered(1000..3000));
        compress(&log, &dir.path().join(format!("a.log.1.{ending}")));
        append(&log, &numbered(3000..3010));
        let running = start(dir.path(), "/*.log", Start::Beginning, sink);
        assert_each_once(&running, 3010);
        let sources: BTreeSet<String> = running.sink.lines.lock().iter().map(|(source, _, _)| source.clone()).collect();
        assert_eq!(sources.len(), 2, "the archive continues the file's source");
        // The archive's cursor is dropped, and is not searched for at the next start.
        files_with_cursors(&running.sink, 1);
        assert_eq!(running.stop().dropped(), []);
    }
}

#[test]
fn several_generations_of_which_the_older_were_compressed_are_read() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, name) = (dir.path().join("a.log"), |name: &str| dir.path().join(name));
    let sink = first_run(dir.path(), 0..100);
    append(&log, &numbered(100..200));
    compress(&log, &name("a.log.3.gz"));
    append(&log, &numbered(200..300));
    compress(&log, &name("a.log.2.gz"));
    append(&log, &numbered(300..400));
    fs::rename(&log, name("a.log.1")).expect("renames");
    append(&log, &numbered(400..410));
    let running = start(dir.path(), "/*.log", Start::Beginning, sink);
    assert_each_once(&running, 410);
    running.stop();
}

#[test]
fn an_archive_of_a_file_that_was_fully_read_is_not_read_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    append(&log, &numbered(0..500));
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(500);
    append(&log, &numbered(500..600));
    compress(&log, &dir.path().join("a.log.1.gz"));
    append(&log, &numbered(600..610));
    assert_each_once(&running, 610);
    append(&log, &numbered(610..620));
    assert_each_once(&running, 620);
    running.stop();
}

#[test]
fn an_archive_that_is_still_written_is_neither_read_nor_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, rotated) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
    append(&log, &numbered(0..20_000));
    let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
    running.until(20_000);
    fs::rename(&log, &rotated).expect("renames");
    append(&log, &numbered(20_000..20_010));
    // Empty at first, then partial, then complete.
    let archive = fs::File::create(dir.path().join("a.log.1.gz")).expect("makes");
    running.until(20_010);
    let mut gz = flate2::write::GzEncoder::new(&archive, flate2::Compression::fast());
    let text = fs::read(&rotated).expect("reads");
    gz.write_all(&text[..text.len() / 2]).expect("writes");
    gz.flush().expect("writes");
    append(&dir.path().join("b.log"), &numbered(20_010..20_011));
    running.until(20_011);
    gz.write_all(&text[text.len() / 2..]).expect("writes");
    gz.finish().expect("ends");
    fs::remove_file(&rotated).expect("removes");
    append(&dir.path().join("c.log"), &numbered(20_011..20_012));
    assert_each_once(&running, 20_012);
    assert_eq!(running.stop().dropped(), []);
}

#[test]
fn a_file_that_was_moved_to_another_directory_is_read_to_its_end() {
    for (to, configuration) in [
        ("archive/a.log-20261126", None),
        ("srv/old/a.log.1", Some("/*.log {\n  olddir /srv/old\n}\n")),
        ("srv/old/a.log.1.gz", Some("/*.log {\n  olddir /srv/old\n}\n")),
    ] {
        let dir = tempfile::tempdir().expect("temp dir");
        let (log, old) = (dir.path().join("a.log"), dir.path().join(to));
        fs::create_dir_all(old.parent().expect("has one")).expect("makes");
        if let Some(text) = configuration {
            fs::create_dir_all(dir.path().join("etc/logrotate.d")).expect("makes");
            fs::write(dir.path().join("etc/logrotate.d/a"), text).expect("writes");
        }
        let sink = first_run(dir.path(), 0..100);
        append(&log, &numbered(100..200));
        if to.ends_with(".gz") {
            compress(&log, &old)
        } else {
            fs::rename(&log, &old).expect("renames")
        }
        append(&log, &numbered(200..210));
        let running = start(dir.path(), "/*.log", Start::Beginning, sink);
        assert_each_once(&running, 210);
        assert_eq!(running.stop().dropped(), [], "{to}");
    }
}

#[test]
fn a_lost_file_is_counted_with_the_unread_bytes_that_were_known() {
    let dir = tempfile::tempdir().expect("temp dir");
    let log = dir.path().join("a.log");
    let sink = first_run(dir.path(), 0..10);
    let read = fs::metadata(&log).expect("is there").len();
    {
        // The cursor knows of more bytes than were read.
        let mut cursors = sink.cursors.lock();
        let (id, bytes) = cursors.iter().find(|(id, _)| *id != SCANNED).expect("one");
        let cursor = Cursor::decode(id, bytes, &[]).expect("a cursor");
        let id = id.clone();
        cursors.insert(id, Cursor { length: read + 500, ..cursor }.encode());
    }
    fs::remove_file(&log).expect("removes");
    append(&log, &numbered(10..12));
    let running = start_patient(dir.path(), "/*.log", Start::Beginning, sink, Duration::from_millis(1));
    assert_each_once(&running, 12);
    files_with_cursors(&running.sink, 1);
    let dropped = running.stop().dropped();
    assert_eq!(dropped, [(Reason::RotatedAway, 1, Some(Position(read, read + 500)))]);
}

#[test]
fn a_damaged_archive_is_read_up_to_the_damage_and_the_rest_is_counted() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, archive) = (dir.path().join("a.log"), dir.path().join("a.log.1.gz"));
    let sink = first_run(dir.path(), 0..10);
    append(&log, &numbered(10..20_000));
    compress(&log, &archive);
    let bytes = fs::read(&archive).expect("reads");
    let modified = fs::metadata(&archive).expect("is there").modified().expect("has one");
    fs::write(&archive, &bytes[..bytes.len() / 2]).expect("writes");
    let mut readable = Vec::new();
    let half = fs::File::open(&archive).expect("opens");
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(half), &mut readable).expect_err("it is cut");
    let readable = readable.iter().filter(|byte| **byte == b'\n').count();
    fs::File::options().append(true).open(&archive).and_then(|file| file.set_modified(modified)).expect("sets");
    let running = start_patient(dir.path(), "/*.log", Start::Beginning, sink, Duration::from_millis(1));
    files_with_cursors(&running.sink, 0);
    let sink = running.stop();
    assert_eq!(
        sink.dropped().iter().map(|(reason, count, _)| (*reason, *count)).collect::<Vec<_>>(),
        [(Reason::RotatedAway, 1)]
    );
    assert!(readable > 100);
    assert_eq!(sink.lines.lock().len(), readable, "the intact part is read");
}

#[test]
fn the_unread_part_of_a_truncated_file_is_read_from_its_copy() {
    for to in ["srv/old/a.log.1", "srv/old/a.log.1.gz", "a.log.1.gz"] {
        let dir = tempfile::tempdir().expect("temp dir");
        let (log, copy) = (dir.path().join("a.log"), dir.path().join(to));
        fs::create_dir_all(dir.path().join("etc/logrotate.d")).expect("makes");
        fs::write(dir.path().join("etc/logrotate.d/a"), "/*.log {\n  copytruncate\n  olddir /srv/old\n}\n")
            .expect("writes");
        fs::create_dir_all(copy.parent().expect("has one")).expect("makes");
        append(&log, &numbered(0..100));
        let running = start(dir.path(), "/*.log", Start::Beginning, Arc::default());
        running.until(100);
        // Its share of the queue is used up for a while.
        *running.sink.full.lock() = Some("/a.log".to_owned());
        append(&log, &numbered(100..200));
        std::thread::sleep(Duration::from_millis(1500));
        let whole_text = fs::read(&log).expect("reads");
        if to.ends_with(".gz") {
            let mut gz =
                flate2::write::GzEncoder::new(fs::File::create(&copy).expect("makes"), flate2::Compression::fast());
            gz.write_all(&whole_text).expect("writes");
            gz.finish().expect("ends");
        } else {
            fs::write(&copy, &whole_text).expect("writes");
        }
        fs::File::options().write(true).open(&log).and_then(|file| file.set_len(0)).expect("truncates");
        std::thread::sleep(Duration::from_millis(1500));
        *running.sink.full.lock() = None;
        append(&log, &numbered(200..210));
        assert_each_once(&running, 210);
        assert_eq!(running.stop().dropped(), [], "{to}");
    }
}

/// `/var/log/containers/NAME.log → /var/log/pods/POD/CONTAINER/0.log`, which the kubelet renames and compresses.
#[test]
fn generations_behind_a_link_are_read() {
    for is_compressed in [false, true] {
        let dir = tempfile::tempdir().expect("temp dir");
        let (links, pod) = (dir.path().join("containers"), dir.path().join("pods/web"));
        fs::create_dir_all(&links).expect("makes");
        fs::create_dir_all(&pod).expect("makes");
        let log = pod.join("0.log");
        append(&log, &numbered(0..100));
        std::os::unix::fs::symlink("../pods/web/0.log", links.join("web.log")).expect("links");
        let running = start(dir.path(), "/containers/*.log", Start::Beginning, Arc::default());
        running.until(100);
        let sink = running.stop();
        append(&log, &numbered(100..200));
        let first = pod.join("0.log.20261126-010203");
        if is_compressed {
            compress(&log, &first.with_added_extension("gz"));
        } else {
            fs::rename(&log, &first).expect("renames");
        }
        append(&log, &numbered(200..300));
        fs::rename(&log, pod.join("0.log.20261126-020304")).expect("renames");
        append(&log, &numbered(300..310));
        let running = start(dir.path(), "/containers/*.log", Start::Beginning, sink);
        assert_each_once(&running, 310);
        assert_eq!(running.stop().dropped(), []);
    }
}
