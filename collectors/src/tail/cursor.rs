//! Where a file was left, and how to recognise it.

use crate::Cx;
use serde::{Deserialize, Serialize};
use std::{os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};
use vedette_wire::Stored;

/// How many bytes before the cursor are remembered.
pub(crate) const BEFORE_BYTES: usize = 64;

/// Where a file was left. Kept as named MessagePack under [`Cursor::id`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Device.
    pub(crate) device: u64,
    /// Inode.
    pub(crate) inode: u64,
    /// When this content was first seen, nanoseconds UTC: a reused inode or a truncated file is another source.
    pub(crate) generation: i64,
    /// Last known path on the host.
    pub(crate) path: String,
    /// Start of the first line not handed over.
    pub(crate) offset: u64,
    /// Offset at which it was begun; absent in cursors of older releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) begin: Option<u64>,
    /// Parts of the line at `offset` that were handed over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parts: u32,
    /// When the last scan began that found the file under its name, nanoseconds UTC: what had that name since may not
    /// have been seen.
    #[serde(default)]
    pub(crate) seen: i64,
    /// The bytes right before `offset`.
    #[serde(with = "serde_bytes")]
    pub(crate) before: Vec<u8>,
    /// What the workspace has of it already.
    #[serde(skip)]
    pub(crate) stored: Option<Arc<Stored>>,
}

impl Cursor {
    /// From what the queue kept; absent for what is no file's cursor.
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

    /// Identity of the source.
    pub(crate) fn id(&self) -> String {
        format!("{:x}:{:x}:{}", self.device, self.inode, self.generation)
    }

    /// The path that the file has now: its own, or another in the same directory.
    pub(crate) fn find_renamed(&self, cx: &Cx) -> Option<PathBuf> {
        let path = cx.path(&self.path);
        let is_it = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.key() && meta.is_file())
        };
        if is_it(&path) {
            return Some(path);
        }
        std::fs::read_dir(path.parent()?).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(is_it)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
