//! Journals that systemd's own programs write and read.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "files of a test; it says why it is skipped")]

pub mod compare;
pub mod writer;

#[allow(unused_imports, reason = "each test program uses a part")]
pub use compare::{Entries, journals, parse, read_after, read_all};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// The program that writes journals from the export format.
pub struct JournalRemote(&'static str);

impl JournalRemote {
    /// Absent, with a line that says why, where it is not installed.
    pub fn find() -> Option<Self> {
        let path = ["/lib/systemd/systemd-journal-remote", "/usr/lib/systemd/systemd-journal-remote"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let has_journalctl = Command::new("journalctl").arg("--version").output().is_ok();
        match path {
            Some(path) if has_journalctl => Some(Self(path)),
            _ => {
                println!("skipped: systemd-journal-remote or journalctl is not installed");
                None
            }
        }
    }

    /// Writes a journal file.
    pub fn write(&self, path: &Path, export: &[u8], environment: &[(&str, &str)]) {
        self.run(path, export, environment, &[]);
    }

    /// Writes a journal file and its predecessors.
    pub fn write_rotated(&self, path: &Path, export: &[u8]) {
        // Each run appends; the environment's format differs, so that the file is rotated at its begin.
        let count = 3;
        let entries: Vec<&[u8]> = split_entries(export);
        for (number, part) in entries.chunks(entries.len().div_ceil(count)).enumerate() {
            let compact = if number % 2 == 0 { "1" } else { "0" };
            self.run(path, &part.concat(), &[("SYSTEMD_JOURNAL_COMPACT", compact)], &[]);
            let archived = path.with_file_name(format!("remote@{number}.journal"));
            if number + 1 < count {
                fs::rename(path, archived).expect("renames");
            }
        }
    }

    fn run(&self, path: &Path, export: &[u8], environment: &[(&str, &str)], arguments: &[&str]) {
        let source = path.with_extension("export");
        fs::write(&source, export).expect("writes");
        let output = Command::new(self.0)
            .args(arguments)
            .arg("-o")
            .arg(path)
            .arg(&source)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Entries of the export format, each with the empty line behind it.
fn split_entries(export: &[u8]) -> Vec<&[u8]> {
    let (mut out, mut from) = (Vec::new(), 0);
    let mark = b"\n\n__REALTIME_TIMESTAMP=";
    for at in 0..export.len() {
        if export[at..].starts_with(mark) {
            out.push(&export[from..at + 2]);
            from = at + 2;
        }
    }
    out.push(&export[from..]);
    out
}

/// Reads files with journalctl.
pub fn export_of(paths: &[&Path]) -> Entries {
    export(paths, &[])
}

/// Reads what is behind a cursor with journalctl.
pub fn export_after(paths: &[&Path], cursor: &str) -> Entries {
    export(paths, &[format!("--after-cursor={cursor}")])
}

fn export(paths: &[&Path], arguments: &[String]) -> Entries {
    let mut command = Command::new("journalctl");
    command.args(["--output=export", "--all", "--quiet", "--no-pager"]).args(arguments);
    for path in paths {
        command.arg("--file").arg(path);
    }
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    parse(&output.stdout)
}
