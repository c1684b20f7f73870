//! Windows.

mod files;
mod process;
mod security;
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

/// Locations below `%ProgramData%`, which is here wherever Windows was installed on its default drive.
pub const LOCATIONS: crate::Locations = crate::Locations {
    root: r"C:\",
    config: r"C:\ProgramData\Vedette\vedette.toml",
    bootstrap: r"C:\ProgramData\Vedette\bootstrap.toml",
    identity: r"C:\ProgramData\Vedette\identity",
    state: r"C:\ProgramData\Vedette\state",
    socket: r"C:\ProgramData\Vedette\state",
};

/// A path or text as the Windows API takes it: UTF-16 that ends with NUL.
fn wide(text: &std::ffi::OsStr) -> Vec<u16> {
    std::os::windows::ffi::OsStrExt::encode_wide(text).chain([0]).collect()
}
