//! Journals that systemd's own programs write and read.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "files of a test; it says why it is skipped")]

pub mod writer;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use vedette_journal::{Cursor, JournalFile, Reader};

/// Entries: cursor, and fields with their values in order.
pub type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

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

/// Journal files in a directory.
pub fn journals(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "journal" || ext == "journal~"))
        .collect();
    out.sort();
    out
}

/// Reads files with this crate; the number is that of damaged entries and fields.
pub fn read_all(paths: &[&Path]) -> (Entries, u64) {
    read_from(paths, None)
}

/// Reads what is behind a cursor.
pub fn read_after(paths: &[&Path], cursor: &str) -> Entries {
    read_from(paths, Some(cursor)).0
}

fn read_from(paths: &[&Path], cursor: Option<&str>) -> (Entries, u64) {
    let mut reader = Reader::default();
    for path in paths {
        let mut file = JournalFile::open(fs::File::open(path).expect("opens")).expect("a journal");
        if let Some(cursor) = cursor {
            file.seek_after(&Cursor::parse(cursor).expect("a cursor"));
        }
        reader.add(path.to_path_buf(), file);
    }
    assert!(reader.begin_pass().is_empty());
    reader.extend_pass();
    let mut out = Entries::new();
    while let Some(entry) = reader.next_entry() {
        let fields = entry.fields.iter();
        let fields = fields.map(|field| (String::from_utf8_lossy(field.name()).into_owned(), field.value().to_vec()));
        out.push((entry.cursor().to_string(), fields.filter(|(name, _)| name != "_BOOT_ID").collect()));
    }
    let damage = reader.files().map(|(_, file)| file.take_damage()).map(|damage| damage.entries + damage.fields).sum();
    (out, damage)
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

/// Parses the Journal Export Format.
fn parse(mut bytes: &[u8]) -> Entries {
    let (mut out, mut cursor, mut fields) = (Entries::new(), String::new(), Vec::new());
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n').expect("a line");
        let line = &bytes[..end];
        bytes = &bytes[end + 1..];
        if line.is_empty() {
            out.push((std::mem::take(&mut cursor), std::mem::take(&mut fields)));
            continue;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => (&line[..equals], line[equals + 1..].to_vec()),
            None => {
                let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
                let value = bytes[8..8 + length].to_vec();
                bytes = &bytes[8 + length + 1..];
                (line, value)
            }
        };
        match name {
            b"__CURSOR" => cursor = String::from_utf8(value).expect("text"),
            b"_BOOT_ID" => {}
            name if name.starts_with(b"__") => {}
            name => fields.push((String::from_utf8_lossy(name).into_owned(), value)),
        }
    }
    out
}
