//! Room in the queue: limits of the file and of its volume.

use super::{Queue, QueueError};
use vedette_platform::volume;

/// Limits of the queue: size of its file, fraction of the volume, and free space that must remain.
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

/// Default size of redb's page cache. redb's own default, 1 GiB, would take most of a small host's memory.
pub const CACHE_BYTES: usize = 8 << 20;

impl Quota {
    /// A limit of the file's size only.
    pub fn bytes(bytes_max: u64) -> Self {
        Self { bytes_max, volume_share_max: 1.0, free_bytes_min: 0, free_inodes_min: 0, cache_bytes: CACHE_BYTES }
    }
}

/// Bytes of batches that fit into a file of this size. redb grows a file by doubling; with batches in two fifths of the limit
/// it stays below the limit.
fn batch_capacity(file: u64) -> u64 {
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
        batch_capacity(self.limit())
    }

    /// Space for further batches, if `used` bytes of `capacity` are in use.
    pub(super) fn free(&self, capacity: u64, used: u64) -> u64 {
        let free = capacity.saturating_sub(used);
        let Ok(volume) = volume(self.path()) else { return free };
        if volume.free_bytes >= self.quota.free_bytes_min {
            return free;
        }
        // Space in the present file counts even on a full volume.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        free.min(batch_capacity(file).saturating_sub(used))
    }

    /// Checks the room for a batch.
    pub(super) fn check_room(&self, added: u64, used: u64) -> Result<(), QueueError> {
        let limit = self.limit();
        let capacity = batch_capacity(limit);
        if added > batch_capacity(self.quota.bytes_max) {
            return Err(QueueError::TooLarge { bytes: added, limit: self.quota.bytes_max });
        }
        if used + added > capacity {
            return Err(QueueError::Full { limit });
        }
        // The present file may be filled even on a full volume, as in `free`.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        let Ok(volume) = volume(self.path()) else { return Ok(()) };
        let floor = |free, floor, unit| QueueError::NoFreeSpace { path: self.path().to_owned(), free, floor, unit };
        if used + added > batch_capacity(file) && volume.free_bytes < self.quota.free_bytes_min {
            return Err(floor(volume.free_bytes, self.quota.free_bytes_min, "bytes"));
        }
        match volume.free_inodes {
            Some(free) if free < self.quota.free_inodes_min => Err(floor(free, self.quota.free_inodes_min, "inodes")),
            _ => Ok(()),
        }
    }
}
