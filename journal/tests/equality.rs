//! Compares entries one by one with `journalctl --output=export`.
//!
//! `systemd-journal-remote` writes the files; it comes from Debian's package of that
//! name, and journalctl from `systemd`.

mod support;

use std::{fs, path::Path};
use support::{Entries, JournalRemote, export_of, read_all};

/// Entries with short, long (compressed), binary and repeated fields.
fn corpus(count: u64, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut random = move |below: u64| {
        // Constants of Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut out = Vec::new();
    // One clock for all sequences, and a boot every two seconds.
    let mut clock_us = seed;
    for number in 0..count {
        clock_us += 1 + random(3000);
        let (realtime, monotonic, boot) =
            (1_795_404_079_123_456 + clock_us, clock_us % 2_000_000, 0xabc + clock_us / 2_000_000);
        let head = format!(
            "__REALTIME_TIMESTAMP={realtime}\n__MONOTONIC_TIMESTAMP={monotonic}\n_BOOT_ID={boot:032x}\nPRIORITY={}\n_UID={}\n\
             _COMM=sudo\n_TRANSPORT=syslog\n_HOSTNAME=h{seed}\n_SYSTEMD_UNIT=cron{}.service\n",
            random(8),
            random(4),
            number % 5
        );
        out.extend_from_slice(head.as_bytes());
        let mut binary = |name: &str, value: &[u8]| {
            out.extend_from_slice(name.as_bytes());
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
            out.extend_from_slice(value);
            out.push(b'\n');
        };
        if number.is_multiple_of(97) {
            binary("BIG", &format!("x{number}").repeat(1 + random(4000) as usize).into_bytes());
        }
        if number.is_multiple_of(31) {
            binary("TWICE", b"1");
            binary("TWICE", b"2");
        }
        let lines = if number.is_multiple_of(7) { "\nsecond \u{1b}[31mline\u{0}" } else { "" };
        binary("MESSAGE", format!("message {number} {}{lines}", "ab".repeat(random(60) as usize)).as_bytes());
        out.push(b'\n');
    }
    out
}

fn assert_equal(ours: &Entries, theirs: &Entries, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: number of entries");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!(ours == theirs, "{what}: entry {index}: {} and {}", ours.0, theirs.0);
    }
}

#[test]
fn every_format_that_journald_writes_reads_as_journalctl_reads_it() {
    let Some(remote) = JournalRemote::find() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    for (keyed, compact) in [("1", "1"), ("0", "0"), ("1", "0"), ("0", "1")] {
        let path = dir.path().join(format!("keyed{keyed}compact{compact}.journal"));
        remote.write(
            &path,
            &corpus(5000, 1),
            &[("SYSTEMD_JOURNAL_KEYED_HASH", keyed), ("SYSTEMD_JOURNAL_COMPACT", compact)],
        );
        let (ours, damage) = read_all(&[&path]);
        assert_eq!(damage, 0);
        assert_equal(&ours, &export_of(&[&path]), &path.display().to_string());
    }
}

#[test]
fn several_files_are_merged_as_journalctl_merges_them() {
    let Some(remote) = JournalRemote::find() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let paths: Vec<_> = (1..=4)
        .map(|seed| {
            let path = dir.path().join(format!("{seed}.journal"));
            remote.write(&path, &corpus(1000 * seed, seed), &[]);
            path
        })
        .collect();
    let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
    assert_equal(&read_all(&paths).0, &export_of(&paths), "four sequences");
}

#[test]
fn a_rotated_file_and_its_successor_are_one_sequence() {
    let Some(remote) = JournalRemote::find() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("remote.journal");
    // systemd-journal-remote needs this directory.
    fs::create_dir_all("/run/systemd").expect("creates");
    remote.write_rotated(&path, &corpus(60_000, 9));
    let files = support::journals(dir.path());
    assert!(files.len() > 1, "it was not rotated: {files:?}");
    let files: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
    let ours = read_all(&files).0;
    assert_eq!(ours.len(), 60_000);
    assert_equal(&ours, &export_of(&files), "rotated");
}

#[test]
fn our_reader_and_journalctl_continue_after_a_cursor_of_ours() {
    let Some(remote) = JournalRemote::find() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let paths: Vec<_> = [3, 4]
        .map(|seed| {
            let path = dir.path().join(format!("{seed}.journal"));
            remote.write(&path, &corpus(500, seed), &[]);
            path
        })
        .into();
    let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
    let all = read_all(&paths).0;
    for index in [0, 1, 250, 499, 500, 998, 999] {
        let cursor = &all[index].0;
        assert_equal(&support::read_after(&paths, cursor), &all[index + 1..].to_vec(), cursor);
        assert_equal(&support::export_after(&paths, cursor), &all[index + 1..].to_vec(), cursor);
    }
}
