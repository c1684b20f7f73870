//! The host's files, opened beneath its root; no link leads out of it.
//!
//! The kernel opens a path without links in one step (openat2(2), `RESOLVE_IN_ROOT`). With links, or without that call (before
//! Linux 5.6, or in a sandbox), the path is walked component by component from handle to handle; an absolute link restarts at
//! the root, and `..` never leads above it.
//!
//! [`Root::log`] opens logs only: it refuses special files, `/proc`, `/sys` and `/dev`, and links that someone other than root
//! or the file's owner can have made.

pub(crate) mod glob;

use crate::CollectorContext;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::{File, Metadata},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

/// Maximum number of links in a path (path_resolution(7): the kernel follows 40).
const LINKS_MAX: usize = 40;

/// Kernel file systems (statfs(2)): proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, selinuxfs, configfs, bpf,
/// devpts.
const KERNEL_FILE_SYSTEMS: [i64; 11] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xf97c_ff8c,
    0x6265_6570,
    0xcafe_4a11,
    0x1cd1,
];

/// Device and inode of a file.
pub(crate) type DeviceInode = (u64, u64);

/// Root of a host's file system.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
}

/// A directory entry, held open without read permission.
#[derive(Debug)]
pub(crate) struct HostEntry {
    parent: OwnedFd,
    name: OsString,
    handle: File,
    meta: Metadata,
    /// Path on the host, without links.
    path: PathBuf,
    /// Links that were followed, each with its directory.
    links: Vec<(PathBuf, Metadata, Metadata)>,
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn open_at(dir: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

impl Root {
    /// Opens a root at a directory of this machine.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::openat(CWD, dir, flags, Mode::empty())? })
    }

    /// Finds the entry of a host path; follows links.
    pub(crate) fn find(&self, path: &Path) -> io::Result<HostEntry> {
        match self.find_without_links(path) {
            Ok(Some(found)) => Ok(found),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Err(err),
            _ => self.walk(path),
        }
    }

    /// Opens a file or directory of the host for reading; follows links. A FIFO does not block.
    pub(crate) fn read(&self, path: &Path) -> io::Result<File> {
        self.find(path)?.read()
    }

    /// Finds a file to read as a log.
    ///
    /// # Errors
    /// `InvalidInput` if it is not a log, or cannot be trusted to be what its name says; the message states why.
    pub(crate) fn log(&self, path: &Path) -> io::Result<HostEntry> {
        let found = self.find(path)?;
        found.check()?;
        Ok(found)
    }

    /// Entries of a directory; untrusted links to it are refused.
    pub(crate) fn entries(&self, dir: &Path) -> io::Result<(OwnedFd, rustix::fs::Dir)> {
        let found = self.find(dir)?;
        found.check_links()?;
        let handle = open_at(&found.parent, &found.name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let entries = rustix::fs::Dir::read_from(&handle)?;
        Ok((handle, entries))
    }

    /// Metadata of an entry of a directory; untrusted links to the directory are refused, and an entry that is a link is not
    /// followed.
    pub(crate) fn stat(&self, dir: &Path, name: &OsStr) -> io::Result<rustix::fs::Stat> {
        let found = self.find(dir)?;
        found.check_links()?;
        stat_at(&open_at(&found.parent, &found.name, OFlags::PATH | OFlags::DIRECTORY)?, name)
    }

    /// Absent if the path contains a link, or the kernel lacks the call.
    fn find_without_links(&self, path: &Path) -> io::Result<Option<HostEntry>> {
        let (Some(name), Some(dir)) = (path.file_name(), path.parent()) else { return Ok(None) };
        let relative = dir.strip_prefix("/").unwrap_or(dir);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let parent = rustix::fs::openat2(&self.dir, relative, flags, Mode::empty(), resolve)?;
        let handle = File::from(open_at(&parent, name, OFlags::PATH)?);
        let meta = handle.metadata()?;
        if meta.is_symlink() || path.components().any(|part| part == Component::ParentDir) {
            return Ok(None);
        }
        // Without doubled slashes.
        let path = path.components().collect();
        Ok(Some(HostEntry { parent, name: name.to_owned(), handle, meta, path, links: Vec::new() }))
    }

    /// Walks the path component by component, through links.
    fn walk(&self, path: &Path) -> io::Result<HostEntry> {
        let mut parts: VecDeque<OsString> = VecDeque::new();
        let ahead = |parts: &mut VecDeque<OsString>, path: &Path| {
            for part in path.components().rev() {
                match part {
                    Component::Normal(name) => parts.push_front(name.to_owned()),
                    Component::ParentDir => parts.push_front("..".into()),
                    Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                }
            }
        };
        ahead(&mut parts, path);
        // Directories along the path, each with its name.
        let mut above: Vec<(OwnedFd, OsString)> = vec![(self.dir.try_clone()?, "/".into())];
        let mut links = Vec::new();
        let join = |above: &[(OwnedFd, OsString)]| above.iter().map(|(_, name)| name).collect::<PathBuf>();
        while let Some(name) = parts.pop_front() {
            if name == ".." {
                above.truncate(above.len().saturating_sub(1).max(1));
                continue;
            }
            let (dir, _) = above.last().expect("the root stays");
            let handle = File::from(open_at(dir, &name, OFlags::PATH)?);
            let meta = handle.metadata()?;
            if meta.is_symlink() {
                if links.len() == LINKS_MAX {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let of = File::from(dir.try_clone()?).metadata()?;
                links.push((join(&above).join(&name), meta, of));
                let target = rustix::fs::readlinkat(&handle, "", Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    above.truncate(1);
                }
                ahead(&mut parts, target);
            } else if parts.is_empty() {
                let path = join(&above).join(&name);
                let parent = dir.try_clone()?;
                return Ok(HostEntry { parent, name, handle, meta, path, links });
            } else if meta.is_dir() {
                above.push((handle.into(), name));
            } else {
                return Err(rustix::io::Errno::NOTDIR.into());
            }
        }
        // The path ends in `..`, or is the root.
        let (dir, _) = above.last().expect("the root stays");
        let handle = File::from(dir.try_clone()?);
        let meta = handle.metadata()?;
        Ok(HostEntry { parent: dir.try_clone()?, name: ".".into(), handle, meta, path: join(&above), links })
    }
}

impl HostEntry {
    /// Metadata of the entry.
    pub(crate) fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// Path on the host, without links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the entry for reading.
    pub(crate) fn read(&self) -> io::Result<File> {
        let file = File::from(open_at(&self.parent, &self.name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
        let meta = file.metadata()?;
        if (meta.dev(), meta.ino()) != (self.meta.dev(), self.meta.ino()) {
            return Err(io::Error::other("the file was replaced while it was opened"));
        }
        Ok(file)
    }

    fn check(&self) -> io::Result<()> {
        if !self.meta.is_file() {
            return Err(refused("it is not a regular file".to_owned()));
        }
        let system = rustix::fs::fstatfs(&self.handle)?.f_type;
        #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
        let is_kernel_s = KERNEL_FILE_SYSTEMS.contains(&i64::from(system));
        if is_kernel_s || ["/proc", "/sys", "/dev"].iter().any(|dir| self.path.starts_with(dir)) {
            return Err(refused(format!("{} is on a kernel file system and no log", self.path.display())));
        }
        self.check_links()?;
        if self.meta.nlink() > 1 {
            // A hard link, which anyone may have made to another's file.
            let dir = File::from(self.parent.try_clone()?).metadata()?;
            if let Some(why) = self.distrust(&dir, "the directory") {
                let path = self.path.display();
                return Err(refused(format!("{path} is a hard link, and {why}")));
            }
        }
        Ok(())
    }

    /// Checks that links, their directories and their target belong to root or to the target's owner, and that nobody else can
    /// change them.
    fn check_links(&self) -> io::Result<()> {
        for (path, link, dir) in &self.links {
            // A group that can write to a directory of root's (`/var/log` of Ubuntu) cannot make root's link there.
            let is_root_s = link.uid() == 0 && link.nlink() == 1 && dir.uid() == 0 && dir.mode() & 0o002 == 0;
            let why = if link.uid() != 0 && link.uid() != self.meta.uid() {
                Some(format!("the link belongs to user {}", link.uid()))
            } else if is_root_s {
                None
            } else {
                self.distrust(dir, "its directory")
            };
            if let Some(why) = why {
                return Err(refused(format!(
                    "the link {} leads to {} of user {}, and {why}; name the target itself, or make both belong to one user",
                    path.display(),
                    self.path.display(),
                    self.meta.uid()
                )));
            }
        }
        Ok(())
    }

    /// Why someone other than root and the owner may have added a name to a directory.
    fn distrust(&self, dir: &Metadata, what: &str) -> Option<String> {
        let (owner, group, mode) = (dir.uid(), dir.gid(), dir.mode());
        // Members of the file's group can read it without a link.
        let is_of_group = group == 0 || group == self.meta.gid() && self.meta.mode() & 0o040 != 0;
        if owner != 0 && owner != self.meta.uid() {
            Some(format!("{what} belongs to user {owner}"))
        } else if mode & 0o002 != 0 {
            Some(format!("{what} is writable by everybody"))
        } else if mode & 0o020 != 0 && !is_of_group {
            Some(format!("{what} is writable by group {group}"))
        } else {
            None
        }
    }
}

/// Metadata of a directory entry; links are not followed.
pub(crate) fn stat_at(dir: &OwnedFd, name: &OsStr) -> io::Result<rustix::fs::Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Maximum size of a text file: dpkg's status of a large host has some 10 MiB.
const TEXT_BYTES_MAX: u64 = 64 << 20;

impl CollectorContext {
    /// The host's root, for opening files beneath it.
    pub(crate) fn host(&self) -> io::Result<Root> {
        Root::open(&self.root)
    }

    /// Reads a small file of the host; absent if it cannot be read or is larger.
    pub(crate) fn bytes(&self, host_path: &str, bytes_max: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = self.host().and_then(|root| root.read(Path::new(host_path))).ok()?.take(bytes_max + 1);
        file.read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= bytes_max).then_some(bytes)
    }

    /// Reads a small text file of the host and trims it; absent if it cannot be read or is empty.
    pub fn text(&self, host_path: &str) -> Option<String> {
        let bytes = self.bytes(host_path, TEXT_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests;
