//! Files of the agent alone.

use super::{
    security::{Descriptor, PRIVATE_TREE},
    wide,
};
use crate::Volume;
use std::{
    fs::{self, OpenOptions, TryLockError},
    io::{self, Write},
    os::windows::{
        fs::{FileExt, OpenOptionsExt},
        io::{AsRawHandle, OwnedHandle},
    },
    path::Path,
    time::{Duration, Instant, SystemTime},
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateDirectoryW, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_DELETE_ON_CLOSE, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_ID_INFO, FileIdInfo, GetDiskFreeSpaceExW, GetFileInformationByHandleEx,
};

/// Time for which a rename is tried again, and pause between two attempts.
const RENAME_PATIENCE: Duration = Duration::from_secs(2);
const RENAME_PAUSE: Duration = Duration::from_millis(50);

/// Volume and file id of a file (`FILE_ID_INFO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity(u64, [u8; 16]);

/// Opens a file or directory without access to its content.
fn open(path: &Path, flags: u32) -> Option<OwnedHandle> {
    let file = OpenOptions::new().access_mode(0).custom_flags(FILE_FLAG_BACKUP_SEMANTICS | flags).open(path).ok()?;
    Some(file.into())
}

fn identity_of(path: &Path, flags: u32) -> Option<FileIdentity> {
    let handle = open(path, flags)?;
    let mut info = FILE_ID_INFO::default();
    // SAFETY: the handle is open, and the buffer is of the class's type and size.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let done = unsafe {
        let size = size_of::<FILE_ID_INFO>() as u32;
        GetFileInformationByHandleEx(handle.as_raw_handle(), FileIdInfo, (&raw mut info).cast(), size)
    };
    (done != 0).then_some(FileIdentity(info.VolumeSerialNumber, info.FileId.Identifier))
}

/// Identity of a file, or of a link itself; absent if it does not exist.
pub fn file_identity(path: &Path) -> Option<FileIdentity> {
    identity_of(path, FILE_FLAG_OPEN_REPARSE_POINT)
}

/// Identity, modification time and size of a file: it changes when the file is replaced or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFingerprint(FileIdentity, SystemTime, u64);

/// Fingerprint of a file; absent if it does not exist.
pub fn file_fingerprint(path: &Path) -> Option<FileFingerprint> {
    let meta = fs::metadata(path).ok()?;
    Some(FileFingerprint(identity_of(path, 0)?, meta.modified().ok()?, meta.len()))
}

/// Whether this user can create files in a directory: creates one that deletes itself.
///
/// # Errors
/// Those of `CreateFile`.
pub fn can_write_in(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".writable-{}", std::process::id()));
    let options = OpenOptions::new().write(true).create(true).custom_flags(FILE_FLAG_DELETE_ON_CLOSE).open(path);
    options.map(drop)
}

/// Nothing: who makes a file here gives it the rights of the directory.
pub fn foreign_owner(_: &Path) -> Option<String> {
    None
}

/// Unsupported: users have no numbers.
///
/// # Errors
/// Always `Unsupported`.
pub fn create_dir_for(_: &Path, _: (u32, u32)) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "users have no numbers on Windows"))
}

/// Creates a directory for this user, administrators and the system only; leaves an existing one as it is.
///
/// # Errors
/// Those of `CreateDirectory`.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    // Missing directories above it are private as well: ProgramData lets all users create files in what it holds.
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        create_private_dir(parent)?;
    }
    let descriptor = Descriptor::for_this_user(PRIVATE_TREE)?;
    let (path, attributes) = (wide(dir.as_os_str()), descriptor.attributes());
    // SAFETY: the path ends with NUL, and the attributes live until the call returns.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let done = unsafe { CreateDirectoryW(path.as_ptr(), &raw const attributes) };
    let error = io::Error::last_os_error();
    match done {
        0 if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        0 => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file atomically, with the access rights of its directory: to a temporary file, flush, rename.
///
/// # Errors
/// Those of `CreateFile`, `WriteFile`, `FlushFileBuffers` and `MoveFileEx`.
pub fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = dir.join(format!(".{name}.part"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    let began = Instant::now();
    loop {
        match fs::rename(&part, dir.join(name)) {
            // A scanner or an indexer may hold the file for a moment.
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied && began.elapsed() < RENAME_PATIENCE => {
                std::thread::sleep(RENAME_PAUSE);
            }
            done => return done,
        }
    }
}

/// Makes the names in a directory durable: NTFS journals them, and has no call for it.
///
/// # Errors
/// None.
pub fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Locks a directory for as long as the file is open; absent if another process holds the lock.
///
/// # Errors
/// Those of `CreateFile` and `LockFileEx`.
pub fn lock_dir(dir: &Path) -> io::Result<Option<fs::File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(".lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(err)) => Err(err),
    }
}

/// Fills a buffer from an offset of a file, and moves the file's position.
///
/// # Errors
/// Those of `ReadFile`; `UnexpectedEof` if the file ends before.
pub fn read_exact_at(file: &fs::File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => (buffer, offset) = (&mut buffer[length..], offset + length as u64),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// The volume of a directory, or of a file's directory.
///
/// # Errors
/// Those of `GetDiskFreeSpaceEx`.
pub fn volume(path: &Path) -> io::Result<Volume> {
    let path = std::path::absolute(path)?;
    let dir = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let dir = wide(dir.as_os_str());
    let (mut free_bytes, mut bytes) = (0, 0);
    // SAFETY: the path ends with NUL, and the numbers live until the call returns.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let done = unsafe { GetDiskFreeSpaceExW(dir.as_ptr(), &raw mut free_bytes, &raw mut bytes, std::ptr::null_mut()) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(Volume { bytes, free_bytes, free_inodes: None }) }
}

/// Gives a directory, and what inherits its rights, to this user, administrators and the system only. Rights that a file in it has
/// of its own, and the owner, stay.
///
/// # Errors
/// Those of `SetNamedSecurityInfo`.
pub fn make_private(dir: &Path) -> io::Result<()> {
    if dir.is_dir() { Descriptor::for_this_user(PRIVATE_TREE)?.apply(dir) } else { Ok(()) }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
mod tests {
    use super::*;

    #[test]
    fn a_private_directory_is_made_written_and_locked_once() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("a/b");
        create_private_dir(&dir).expect("makes");
        create_private_dir(&dir).expect("is there already");
        can_write_in(&dir).expect("is writable");
        for text in ["one", "two"] {
            write_private(&dir, "file", text.as_bytes()).expect("writes");
            assert_eq!(fs::read_to_string(dir.join("file")).expect("reads"), text);
        }
        assert!(can_write_in(&temp.path().join("absent")).is_err());
        let names: Vec<_> = fs::read_dir(&dir).expect("lists").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["file"], "nothing is left");
        make_private(&dir).expect("changes rights");
        assert_eq!(fs::read(dir.join("file")).expect("is still readable"), b"two");
        let lock = lock_dir(&dir).expect("opens");
        assert!(lock.is_some() && lock_dir(&dir).expect("opens").is_none());
        drop(lock);
        assert!(lock_dir(&dir).expect("opens").is_some());
    }

    #[test]
    fn identity_is_of_the_file_and_the_fingerprint_of_its_content() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (one, two) = (temp.path().join("one"), temp.path().join("two"));
        fs::write(&one, "a").expect("writes");
        fs::write(&two, "a").expect("writes");
        let before = (file_identity(&one), file_fingerprint(&one));
        assert!(before.0.is_some() && before.0 != file_identity(&two));
        fs::write(&one, "abc").expect("writes");
        assert_eq!(file_identity(&one), before.0);
        assert_ne!(file_fingerprint(&one), before.1);
        assert_eq!(file_identity(&temp.path().join("absent")), None);
        assert!(volume(&one).expect("is on one").bytes >= volume(&one).expect("is on one").free_bytes);
    }
}
