//! Entries of journal files, as this crate reads them and as journalctl exports them.
#![allow(dead_code, unreachable_pub, reason = "each program uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
};
use vedette_journal::{Cursor, JournalFile, Reader};

/// Entries: cursor, and fields with their values in order.
pub type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;

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

/// Parses the Journal Export Format.
pub fn parse(mut bytes: &[u8]) -> Entries {
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
