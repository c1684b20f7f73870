//! Linux.

mod files;
mod process;
mod signals;
mod socket;

pub(crate) use files::{
    FileFingerprint, FileIdentity, can_write_in, create_private_dir, file_fingerprint, file_identity, make_private,
    write_private,
};
pub(crate) use process::{harden, raise_file_limit, resident_bytes};
pub(crate) use signals::{StopSignals, ignore_reload};
pub(crate) use socket::{StatusSocket, read_status};
