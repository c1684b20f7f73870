//! How much the queue may take of the volume that it lies on.

use super::{Queue, QueueError};

/// The smaller of a byte cap and a share of the volume, with a floor of what stays free for others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    /// Bytes of the file.
    pub bytes_max: u64,
    /// Part of the volume, 0 to 1.
    pub volume_share_max: f64,
    /// Bytes of the volume that stay free.
    pub free_bytes_min: u64,
    /// Inodes of the volume that stay free, where it has a fixed number of them.
    pub free_inodes_min: u64,
    /// Memory of redb's page cache in bytes; half of it may be pages that are not written yet. A batch that is in it is
    /// sent and deleted without being read back.
    pub cache_bytes: usize,
}

/// What is of use; redb's own default of 1 GiB would be most of a small host.
pub const CACHE_BYTES: usize = 8 << 20;

impl Quota {
    /// Nothing but a byte cap.
    pub fn bytes(bytes_max: u64) -> Self {
        Self { bytes_max, volume_share_max: 1.0, free_bytes_min: 0, free_inodes_min: 0, cache_bytes: CACHE_BYTES }
    }
}

/// Space for batches in a file of so many bytes: redb grows it by doubling, and with two fifths it stays below its limit.
fn batches_of(file: u64) -> u64 {
    file / 5 * 2
}

impl Queue {
    /// The limit of the file in bytes.
    pub fn limit(&self) -> u64 {
        let Ok(volume) = rustix::fs::statvfs(self.path()) else { return self.quota.bytes_max };
        let share = (volume.f_blocks * volume.f_frsize) as f64 * self.quota.volume_share_max;
        self.quota.bytes_max.min(share as u64)
    }

    /// Space that batches may take.
    pub(super) fn capacity(&self) -> u64 {
        batches_of(self.limit())
    }

    /// Of so much the space that batches may still take, where `kept` is taken.
    pub(super) fn free(&self, capacity: u64, kept: u64) -> u64 {
        let free = capacity.saturating_sub(kept);
        let Ok(volume) = rustix::fs::statvfs(self.path()) else { return free };
        if volume.f_bavail * volume.f_frsize >= self.quota.free_bytes_min {
            return free;
        }
        // What the file holds without growing.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        free.min(batches_of(file).saturating_sub(kept))
    }

    /// Whether a batch may be added that takes so much space.
    pub(super) fn room(&self, added: u64, kept: u64) -> Result<(), QueueError> {
        let limit = self.limit();
        let room = batches_of(limit);
        if added > batches_of(self.quota.bytes_max) {
            return Err(QueueError::TooLarge { bytes: added, limit: self.quota.bytes_max });
        }
        if kept + added > room {
            return Err(QueueError::Full { limit });
        }
        // By the same measure: what the file holds without growing may be used down to the last byte of the volume.
        let file = std::fs::metadata(self.path()).map_or(0, |meta| meta.len());
        let Ok(volume) = rustix::fs::statvfs(self.path()) else { return Ok(()) };
        let floor = |free, floor, unit| QueueError::Floor { path: self.path().to_owned(), free, floor, unit };
        let free = volume.f_bavail * volume.f_frsize;
        if kept + added > batches_of(file) && free < self.quota.free_bytes_min {
            return Err(floor(free, self.quota.free_bytes_min, "bytes"));
        }
        if volume.f_files > 0 && volume.f_favail < self.quota.free_inodes_min {
            return Err(floor(volume.f_favail, self.quota.free_inodes_min, "inodes"));
        }
        Ok(())
    }
}
