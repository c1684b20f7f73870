//! Cursor of a file: its position, and how to recognise the file.

use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use vedette_wire::Stored;

/// Number of bytes before the cursor to remember.
pub(crate) const BEFORE_BYTES: usize = 64;

/// Cursor of a file. Stored as a MessagePack map with field names, under [`Cursor::id`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Device.
    pub(crate) device: u64,
    /// Inode.
    pub(crate) inode: u64,
    /// When this content was first seen, nanoseconds UTC. It tells a reused inode or a truncated file from the
    /// source before.
    pub(crate) generation: i64,
    /// Last known path on the host, with U+FFFD for invalid UTF-8.
    pub(crate) path: String,
    /// The path, if it is not UTF-8.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub(crate) raw_path: Option<Vec<u8>>,
    /// Start of the first line not emitted.
    pub(crate) offset: u64,
    /// Last known length; zero in cursors of older releases.
    #[serde(default, skip_serializing_if = "is_zero_length")]
    pub(crate) length: u64,
    /// Offset of the first line read; absent in cursors of older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begin: Option<u64>,
    /// Number of emitted parts of the line at `offset`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parts: u32,
    /// Start of the last scan that found the file under its name, nanoseconds UTC. Later files of that name may be unknown.
    #[serde(default)]
    pub(crate) seen: i64,
    /// The bytes before `offset`.
    #[serde(with = "serde_bytes")]
    pub(crate) before: Vec<u8>,
    /// Ranges of this file that the workspace has stored.
    #[serde(skip)]
    pub(crate) stored: Option<Arc<Stored>>,
}

impl Cursor {
    /// Decodes a stored cursor. Returns `None` if it cannot be decoded or is not the cursor of `id`.
    pub(crate) fn decode(id: &str, bytes: &[u8], stored: &[Stored]) -> Option<Self> {
        let mut cursor: Self = rmp_serde::from_slice(bytes).ok()?;
        cursor.stored = stored.iter().find(|stored| stored.id == id).cloned().map(Arc::new);
        (cursor.id() == id).then_some(cursor)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a cursor has string keys and known lengths")
    }

    pub(crate) fn key(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Id of the source.
    pub(crate) fn id(&self) -> String {
        format!("{:x}:{:x}:{}", self.device, self.inode, self.generation)
    }

    /// Path on the host.
    pub(crate) fn host_path(&self) -> PathBuf {
        self.raw_path.as_ref().map_or_else(|| PathBuf::from(&self.path), |raw| PathBuf::from(OsStr::from_bytes(raw)))
    }

    /// Bytes that are known to exist and were not read yet.
    pub(crate) fn unread(&self) -> Option<vedette_wire::Position> {
        (self.length > self.offset).then_some(vedette_wire::Position(self.offset, self.length))
    }
}

/// A path as text, and as bytes if it is not UTF-8.
pub(crate) fn text_and_bytes(path: &Path) -> (String, Option<Vec<u8>>) {
    match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (path.to_string_lossy().into_owned(), Some(path.as_os_str().as_bytes().to_vec())),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero_length(length: &u64) -> bool {
    *length == 0
}
