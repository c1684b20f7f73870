//! What differs between operating systems: identity of files, private files, volumes, the own process, signals, service control,
//! the local socket. All other code of transport and agent is the same everywhere.
//!
//! ```
//! let dir = std::env::temp_dir();
//! assert_eq!(vedette_platform::file_identity(&dir), vedette_platform::file_identity(&dir));
//! assert!(vedette_platform::volume(&dir)?.bytes > 0);
//! # Ok::<(), std::io::Error>(())
//! ```

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(windows)]
pub use windows::*;

/// A volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    /// Number of files that this user may still create; absent on volumes without a fixed number.
    pub free_inodes: Option<u64>,
}

/// Default locations.
#[derive(Debug, Clone, Copy)]
pub struct Locations {
    /// Root of the file system.
    pub root: &'static str,
    /// Configuration file.
    pub config: &'static str,
    /// Bootstrap file.
    pub bootstrap: &'static str,
    /// Directory of the identity.
    pub identity: &'static str,
    /// Directory of the state.
    pub state: &'static str,
    /// Directory of the local socket.
    pub socket: &'static str,
}
