//! Reads the files of systemd-journald, after the Journal File Format (<https://systemd.io/JOURNAL_FILE_FORMAT/>).
//!
//! The crate only reads files that the caller opened ([`ReadAt`]). Its memory is bounded. It maps no file, since truncating a
//! mapped file kills the process. It skips and counts bad objects. No file makes a reader panic or loop: it refuses a chain
//! whose offsets do not grow.
//!
//! ```no_run
//! use vedette_journal::{JournalFile, Reader};
//!
//! let mut reader = Reader::default();
//! for path in ["/var/log/journal/4a1e/system.journal", "/var/log/journal/4a1e/user-1000.journal"] {
//!     reader.add(path.to_owned(), JournalFile::open(std::fs::File::open(path)?)?);
//! }
//! reader.begin_pass();
//! reader.extend_pass();
//! while let Some(entry) = reader.next_entry() {
//!     let message = entry.fields.iter().find(|field| field.name() == b"MESSAGE");
//!     println!("{} {:?}", entry.cursor(), message.map(|field| String::from_utf8_lossy(field.value())));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cursor;
mod data;
mod file;
mod format;
mod pages;
mod reader;

pub use cursor::{Cursor, EntryHead};
pub use data::{Field, Tag, VALUE_BYTES_MAX};
pub use file::{Damage, JournalFile, OpenError};
pub use format::{Header, Id, State};
pub use pages::ReadAt;
pub use reader::{Entry, Reader};
