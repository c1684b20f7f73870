//! Files of the agent alone.

use crate::Volume;
use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Device and inode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity(u64, u64);

/// Identity of a file, or of a link itself; absent if it does not exist.
pub fn file_identity(path: &Path) -> Option<FileIdentity> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some(FileIdentity(meta.dev(), meta.ino()))
}

/// Identity, modification time and size of a file: it changes when the file is replaced or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFingerprint(FileIdentity, (i64, i64), u64);

/// Fingerprint of a file; absent if it does not exist.
pub fn file_fingerprint(path: &Path) -> Option<FileFingerprint> {
    let meta = fs::metadata(path).ok()?;
    let identity = FileIdentity(meta.dev(), meta.ino());
    Some(FileFingerprint(identity, (meta.mtime(), meta.mtime_nsec()), meta.len()))
}

/// Whether this user can create files in a directory (access(2)).
///
/// # Errors
/// Those of access(2).
pub fn can_write_in(dir: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    Ok(access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Name or number of the user that a directory, or one above it, belongs to, if this process is root and that is someone else:
/// files that root makes there are out of that user's reach, and that user can lead root elsewhere by a link.
pub fn foreign_owner(dir: &Path) -> Option<String> {
    let mut metas = dir.ancestors().filter_map(|dir| fs::symlink_metadata(dir).ok());
    let meta = metas.find(|meta| meta.uid() != 0).filter(|_| rustix::process::geteuid().is_root())?;
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_owner = |line: &&str| line.split(':').nth(2).and_then(|uid| uid.parse().ok()) == Some(meta.uid());
    let name = users.lines().find(is_owner).and_then(|line| line.split(':').next());
    Some(name.map_or_else(|| meta.uid().to_string(), str::to_owned))
}

/// Creates a directory for this user only; leaves an existing one as it is.
///
/// # Errors
/// Those of mkdir(2).
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Creates a directory and gives it to a user and a group. A link in its place is refused.
///
/// # Errors
/// Those of mkdir(2), open(2) and fchown(2): only root may give files away.
pub fn create_dir_for(dir: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
    create_private_dir(dir)?;
    // Without CAP_DAC_OVERRIDE, root may not open for reading what belongs to the user already.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    Ok(rustix::fs::chownat(handle, "", user, group, AtFlags::EMPTY_PATH)?)
}

/// Writes a file of this user only, atomically: to a temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// Those of open(2), write(2), fsync(2) and rename(2).
pub fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = dir.join(format!(".{name}.part"));
    // One that a crash left, or a link that someone put there.
    match fs::remove_file(&part) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, dir.join(name))?;
    sync_dir(dir)
}

/// Makes the names in a directory durable (fsync(2)).
///
/// # Errors
/// Those of open(2) and fsync(2).
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Locks a directory for as long as the file is open (flock(2)); absent if another process holds the lock.
///
/// # Errors
/// Those of open(2) and flock(2).
pub fn lock_dir(dir: &Path) -> io::Result<Option<fs::File>> {
    let file = fs::File::open(dir)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(err)) => Err(err),
    }
}

/// Fills a buffer from an offset of a file (pread(2)).
///
/// # Errors
/// Those of pread(2); `UnexpectedEof` if the file ends before.
pub fn read_exact_at(file: &fs::File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// The volume of a file or directory (statvfs(3)).
///
/// # Errors
/// Those of statvfs(3).
pub fn volume(path: &Path) -> io::Result<Volume> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(Volume {
        bytes: volume.f_blocks * volume.f_frsize,
        free_bytes: volume.f_bavail * volume.f_frsize,
        free_inodes: (volume.f_files > 0).then_some(volume.f_favail),
    })
}

/// Makes the files in a directory this user's own, if an earlier release or a copy left them accessible to others.
///
/// # Errors
/// The mode of a file cannot be changed.
pub fn make_private(dir: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() && meta.mode() & 0o077 != 0 {
            let path = entry.path();
            tracing::warn!(path = %path.display(), mode = format!("{:o}", meta.mode() & 0o777), "a file of the agent was accessible to others; its mode is corrected");
            let failed = |err: io::Error| {
                let path = path.display();
                io::Error::new(
                    err.kind(),
                    format!("{path} is accessible to others, and its mode cannot be changed: {err}"),
                )
            };
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_for_a_user_is_its_own_and_no_link_takes_its_place() {
        if !rustix::process::geteuid().is_root() {
            // Cargo shows it with --nocapture.
            eprintln!("skipped: only root may give directories away");
            return;
        }
        let base = std::env::temp_dir().join(format!("vedette-platform-{}", std::process::id()));
        let dir = base.join("state");
        for _ in 0..2 {
            create_dir_for(&dir, (65532, 65533)).expect("the second time changes nothing");
            let meta = fs::metadata(&dir).expect("it is there");
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (65532, 65533, 0o700));
        }
        let (target, link) = (base.join("target"), base.join("link"));
        fs::create_dir(&target).expect("makes");
        std::os::unix::fs::symlink(&target, &link).expect("links");
        assert!(create_dir_for(&link, (65532, 65532)).is_err());
        assert_eq!(fs::metadata(&target).expect("it is there").uid(), 0, "it was not given away");
        fs::remove_dir_all(base).expect("removes");
    }
}
