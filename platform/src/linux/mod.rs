//! Linux.

mod files;
mod process;
mod service;
mod signals;
mod socket;

pub use files::{
    FileFingerprint, FileIdentity, can_write_in, create_dir_for, create_private_dir, file_fingerprint, file_identity,
    foreign_owner, lock_dir, make_private, read_exact_at, sync_dir, volume, write_private,
};
pub use process::{harden, kill_self, raise_file_limit, release_program_pages, resident_bytes};
pub use service::{feed_watchdog, ready, run, stopping, watchdog};
pub use signals::{ReloadSignals, StopSignals};
pub use socket::{LocalSocket, Reader, read_socket};

/// Locations by the Filesystem Hierarchy Standard.
pub const LOCATIONS: crate::Locations = crate::Locations {
    root: "/",
    config: "/etc/vedette/vedette.toml",
    bootstrap: "/etc/vedette/bootstrap/bootstrap.toml",
    identity: "/var/lib/vedette/identity",
    state: "/var/lib/vedette/state",
    socket: "/run/vedette",
};
