//! Files of the agent alone.

use anyhow::{Context, Result};
use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Device and inode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity(u64, u64);

/// Identity of a file, or of a link itself; absent if it does not exist.
pub(crate) fn file_identity(path: &Path) -> Option<FileIdentity> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some(FileIdentity(meta.dev(), meta.ino()))
}

/// Identity, modification time and size of a file: it changes when the file is replaced or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileFingerprint(FileIdentity, (i64, i64), u64);

/// Fingerprint of a file; absent if it does not exist.
pub(crate) fn file_fingerprint(path: &Path) -> Option<FileFingerprint> {
    let meta = fs::metadata(path).ok()?;
    let identity = FileIdentity(meta.dev(), meta.ino());
    Some(FileFingerprint(identity, (meta.mtime(), meta.mtime_nsec()), meta.len()))
}

/// Whether this user can create files in a directory (access(2)).
pub(crate) fn can_write_in(dir: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    Ok(access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Creates a directory for this user only.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file of this user only, atomically: to a temporary file, fsync, rename, fsync of the directory.
pub(crate) fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = dir.join(format!(".{name}.part"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

/// Makes the files in a directory this user's own, if an earlier release or a copy left them accessible to others.
pub(crate) fn make_private(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() && meta.mode() & 0o077 != 0 {
            let path = entry.path();
            tracing::warn!(path = %path.display(), mode = format!("{:o}", meta.mode() & 0o777), "a file of the agent was accessible to others; its mode is corrected");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).with_context(|| {
                format!("{} is accessible to others, and its mode cannot be changed", path.display())
            })?;
        }
    }
    Ok(())
}
