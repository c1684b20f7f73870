//! Room in the queue: limits of the file and of its volume.

use super::{Queue, QueueError};
use vedette_platform::volume;

/// Limits: bytes of the file, its share of the volume, and a floor of free space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    /// Maximum size of the file in bytes.
    pub bytes_max: u64,
    /// Maximum share of the volume, 0 to 1.
    pub volume_share_max: f64,
    /// Minimum of free bytes on the volume.
    pub free_bytes_min: u64,
    /// Minimum of free inodes, on volumes with a fixed number of them.
    pub free_inodes_min: u64,
    /// redb's page cache in bytes; up to half of it may be unwritten pages. A cached batch is sent and deleted without being
    /// read from disk.
    pub cache_bytes: usize,
}

/// A useful size; redb's default of 1 GiB would be most of a small host.
pub const CACHE_BYTES: usize = 8 << 20;

impl Quota {
    /// A limit of the file's size only.
    pub fn bytes(bytes_max: u64) -> Self {
        Self { bytes_max, volume_share_max: 1.0, free_bytes_min: 0, free_inodes_min: 0, cache_bytes: CACHE_BYTES }
    }
}

/// Space for batches in a file of a size: redb doubles the file to grow it, and stays below the limit with two fifths of it.
fn batches_of(file: u64) -> u64 {
    file / 5 * 2
}

impl Queue {
    /// Limit of the file in bytes.
    pub fn limit(&self) -> u64 {
        let Ok(volume) = volume(self.path()) else { return self.quota.bytes_max };
        let share = volume.bytes as f64 * self.quota.volume_share_max;
        self.quota.bytes_max.min(share as u64)
    }

    /// Space for batches.
    pub(super) fn capacity(&self) -> u64 {
        batches_of(self.limit())
    }

    /// Remaining space for batches: of `capacity`, with `used` bytes in use.
    pub(super) fn free(&self, capacity: u64, used: u64) -> u64 {
        let free = capacity.saturating_sub(used);
        let Ok(volume) = volume(self.path()) else { return free };
        if volume.free_bytes >= self.quota.free_bytes_min {
            return free;
        }
        // Space in the present file counts even on a full volume.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        free.min(batches_of(file).saturating_sub(used))
    }

    /// Checks the room for a batch.
    pub(super) fn room(&self, added: u64, used: u64) -> Result<(), QueueError> {
        let limit = self.limit();
        let room = batches_of(limit);
        if added > batches_of(self.quota.bytes_max) {
            return Err(QueueError::TooLarge { bytes: added, limit: self.quota.bytes_max });
        }
        if used + added > room {
            return Err(QueueError::Full { limit });
        }
        // The present file may be filled even on a full volume, as in `free`.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        let Ok(volume) = volume(self.path()) else { return Ok(()) };
        let floor = |free, floor, unit| QueueError::NoFreeSpace { path: self.path().to_owned(), free, floor, unit };
        if used + added > batches_of(file) && volume.free_bytes < self.quota.free_bytes_min {
            return Err(floor(volume.free_bytes, self.quota.free_bytes_min, "bytes"));
        }
        match volume.free_inodes {
            Some(free) if free < self.quota.free_inodes_min => Err(floor(free, self.quota.free_inodes_min, "inodes")),
            _ => Ok(()),
        }
    }
}
