//! Reads the rest of a process. What cannot be read is absent.

use super::stat::Stat;
use crate::{CollectError, Cx};
use rustix::fs::{AtFlags, Mode, OFlags, openat, readlinkat, statat};
use std::{collections::HashMap, io::Read, os::fd::OwnedFd};
use vedette_wire::body::{Change, Namespaces, Principal, Process};

/// Names of users and groups, passwd(5) and group(5).
pub(super) struct Accounts {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Accounts {
    pub(super) fn read(cx: &Cx) -> Self {
        let table = |path: &str| {
            let text = cx.text(path).unwrap_or_default();
            // name:password:id:…; the first name of a number counts, as for getpwuid(3).
            text.lines()
                .rev()
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let (name, id) = (fields.next()?, fields.nth(1)?);
                    Some((id.parse().ok()?, name.to_owned()))
                })
                .collect()
        };
        Self { users: table("/etc/passwd"), groups: table("/etc/group") }
    }

    fn user(&self, id: u32) -> Principal {
        Principal { id, name: self.users.get(&id).cloned() }
    }

    fn group(&self, id: u32) -> Principal {
        Principal { id, name: self.groups.get(&id).cloned() }
    }
}

pub(super) struct Reader {
    proc: OwnedFd,
    accounts: Accounts,
    boot: String,
    boot_time: Option<i64>,
    ticks_per_second: u64,
    buffer: Vec<u8>,
}

/// A command line longer than this is cut.
const ARGS_BYTES_MAX: usize = 128 << 10;

impl Reader {
    pub(super) fn new(cx: &Cx, accounts: Accounts) -> Result<Self, CollectError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(cx.path("/proc"), flags, Mode::empty())
            .map_err(|err| CollectError::read("/proc", err.into()))?;
        let boot_id = cx.text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            proc,
            accounts,
            boot: boot_id.split('-').next().unwrap_or_default().to_owned(),
            boot_time: crate::host::boot_time(&cx.text("/proc/stat").unwrap_or_default()),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            buffer: Vec::with_capacity(4096),
        })
    }

    /// The first part of the boot id.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    pub(super) fn stat(&mut self, pid: u32) -> Option<Stat> {
        Stat::parse(self.file(pid, "stat")?)
    }

    fn file(&mut self, pid: u32, name: &str) -> Option<&[u8]> {
        let path = format!("{pid}/{name}");
        let file = openat(&self.proc, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        self.buffer.clear();
        let read = std::fs::File::from(file).take(ARGS_BYTES_MAX as u64).read_to_end(&mut self.buffer);
        read.ok().map(|_| self.buffer.as_slice())
    }

    fn link(&self, pid: u32, name: &str) -> Option<String> {
        let target = readlinkat(&self.proc, format!("{pid}/{name}"), Vec::new()).ok()?;
        Some(String::from_utf8_lossy(target.as_bytes()).into_owned())
    }

    /// The inode is the namespace's number (namespaces(7)).
    fn namespace(&self, pid: u32, name: &str) -> Option<u64> {
        let found = statat(&self.proc, format!("{pid}/ns/{name}"), AtFlags::empty()).ok()?;
        Some(found.st_ino)
    }

    pub(super) fn process(&mut self, pid: u32, stat: &Stat, change: Change) -> Option<Process> {
        let status = self.file(pid, "status").map(|text| String::from_utf8_lossy(text).into_owned());
        // Ended meanwhile.
        let status = status.filter(|text| !text.is_empty())?;
        let id = |key: &str| -> Option<u32> {
            // Real, effective, saved, file system.
            status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
        };
        let args = self.file(pid, "cmdline").map(arguments).unwrap_or_default();
        let cgroup = self.file(pid, "cgroup").and_then(cgroup_path);
        let path = if stat.kernel { None } else { self.link(pid, "exe") };
        let deleted = path.as_deref().is_some_and(|path| path.ends_with(" (deleted)"));
        let path = path.map(|path| path.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(path));
        let since_boot = u128::from(stat.start_ticks) * 1_000_000_000 / u128::from(self.ticks_per_second.max(1));
        Some(Process {
            change,
            snapshot: None,
            uid: format!("{}/{pid}/{}", self.boot, stat.start_ticks),
            pid,
            ppid: stat.ppid,
            name: stat.name.to_string(),
            path,
            deleted,
            args,
            user: id("Uid:").map(|id| self.accounts.user(id)),
            group: id("Gid:").map(|id| self.accounts.group(id)),
            started: self.boot_time.and_then(|boot| boot.checked_add(i64::try_from(since_boot).ok()?)),
            cwd: if stat.kernel { None } else { self.link(pid, "cwd") },
            session: Some(stat.session),
            container: cgroup.as_deref().and_then(container_id),
            cgroup,
            namespaces: Namespaces {
                mnt: self.namespace(pid, "mnt"),
                pid: self.namespace(pid, "pid"),
                net: self.namespace(pid, "net"),
                user: self.namespace(pid, "user"),
            },
            kernel: stat.kernel,
            state: stat.state,
        })
    }
}

/// NUL-terminated arguments. A process may overwrite them with anything (setproctitle(3)).
fn arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// The path of cgroup v2 (`0::/…`), else of the systemd hierarchy of v1, else the first.
fn cgroup_path(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let lines = || text.lines();
    lines()
        .find(|line| line.starts_with("0::") && line.len() > 4)
        .or_else(|| lines().find(|line| line.contains(":name=systemd:")))
        .or_else(|| lines().next())
        .and_then(path)
}

/// The 64 hexadecimal digits by which container runtimes name a container.
fn container_id(cgroup: &str) -> Option<String> {
    cgroup
        .split(['/', '-', '.', ':'])
        .rev()
        .find(|part| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_by_their_control_group() {
        let id = "4f".repeat(32);
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("/docker/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
        ] {
            assert_eq!(container_id(&path).as_deref(), Some(id.as_str()), "{path}");
        }
        assert_eq!(container_id("/user.slice/user-1000.slice/session-3.scope"), None);
    }

    #[test]
    fn the_path_of_the_unified_hierarchy_goes_first() {
        assert_eq!(cgroup_path(b"1:name=systemd:/a\n0::/b\n").as_deref(), Some("/b"));
        assert_eq!(cgroup_path(b"3:cpu:/c\n1:name=systemd:/a\n0::/\n").as_deref(), Some("/a"));
        assert_eq!(cgroup_path(b""), None);
    }

    #[test]
    fn arguments_are_split_at_nul() {
        assert_eq!(arguments(b"a\0b c\0\0"), ["a", "b c", ""]);
        assert_eq!(arguments(b"title without nul"), ["title without nul"]);
        assert!(arguments(b"").is_empty());
    }
}
