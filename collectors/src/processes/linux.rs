//! Processes in `/proc` (proc(5)). Details that cannot be read are absent.
//!
//! Reading all of `/proc/PID` costs ten times as much as `/proc/PID/stat`, so `stat` detects changes: the start time another
//! process, the memory layout an exec under the same pid, the parent an orphan; the owner of the directory detects a change of
//! user.

mod accounts;
mod stat;

use crate::{CollectError, CollectorContext, Permission, Right};
use accounts::Accounts;
use rustix::{
    fs::{Mode, OFlags, openat, readlinkat},
    io::{Errno, retry_on_intr},
};
use stat::Stat;
use std::os::fd::OwnedFd;
use vedette_wire::body::{Change, Namespaces, Process, ProcessState};

pub(super) const READS: &str = "/proc, /etc/passwd, /etc/group";
pub(super) const PERMISSIONS: &[Permission] = &[Permission {
    any_of: &[Right::Capability("CAP_SYS_PTRACE")],
    lost: "executable, working directory and namespaces of other users' processes",
}];

/// Why there are no processes to observe.
pub(super) fn absent(context: &CollectorContext) -> Option<String> {
    let is_absent = !context.path("/proc/stat").exists();
    is_absent.then(|| "there is no /proc below the host's root".to_owned())
}

/// The permission that some processes need, and the agent lacks.
pub(super) fn missing_permission() -> String {
    let remedy = match may_ptrace() {
        false => "give the agent CAP_SYS_PTRACE",
        // ptrace(2): even then, processes with more capabilities or in an outer user namespace cannot be inspected.
        true => "they have capabilities that the agent lacks",
    };
    format!("executable, working directory and namespaces of some processes cannot be read; {remedy}")
}

/// What stays between polls.
#[derive(Default)]
pub(super) struct Host {
    accounts: Accounts,
}

impl Host {
    /// Reads again what all processes share.
    pub(super) fn refresh(&mut self, context: &CollectorContext, full: bool) {
        self.accounts.refresh(context);
        if full {
            self.accounts.forget();
        }
    }
}

/// What is cheap to read of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glance {
    stat: Stat,
    /// Effective user: owner of `/proc/PID`.
    owner: u32,
}

impl Glance {
    /// Whether the pid was not reused.
    pub(super) fn is_same_process(&self, other: &Self) -> bool {
        self.stat.is_same_process(&other.stat)
    }

    /// Whether nothing reportable can have changed.
    pub(super) fn looks_the_same(&self, other: &Self) -> bool {
        self.stat.looks_the_same(&other.stat) && self.owner == other.owner
    }
}

/// Reads processes during one poll.
pub(super) struct Reader<'a> {
    proc: OwnedFd,
    accounts: &'a Accounts,
    /// Some process is protected by ptrace(2): the link to its executable cannot be read.
    refused: bool,
    boot: String,
    boot_time: Option<i64>,
    ticks_per_second: u64,
    buffer: Vec<u8>,
}

/// Whether the agent has CAP_SYS_PTRACE, bit 19 of the effective capabilities (capabilities(7), proc(5)).
fn may_ptrace() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| effective & (1 << 19) != 0)
}

/// Longer command lines are cut; any user can start processes with 2 MiB of arguments (execve(2)).
const ARGS_BYTES_MAX: usize = 16 << 10;
/// Maximum size of any other file of a process.
const FILE_BYTES_MAX: usize = 64 << 10;

impl<'a> Reader<'a> {
    pub(super) fn new(context: &CollectorContext, host: &'a Host) -> Result<Self, CollectError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(context.path("/proc"), flags, Mode::empty())
            .map_err(|err| CollectError::read("/proc", err.into()))?;
        let boot_id = context.text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            proc,
            accounts: &host.accounts,
            refused: false,
            boot: boot_id.split('-').next().unwrap_or_default().to_owned(),
            boot_time: crate::host::boot_time(&context.text("/proc/stat").unwrap_or_default()),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            buffer: vec![0; 4096],
        })
    }

    /// First part of the boot id.
    pub(super) fn snapshot_prefix(&self) -> &str {
        &self.boot
    }

    /// Whether some process could not be inspected.
    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    /// Ids of all processes.
    pub(super) fn pids(&self) -> Result<Vec<u32>, CollectError> {
        let failed = |err: Errno| CollectError::read("/proc", err.into());
        let entries = rustix::fs::Dir::read_from(&self.proc).map_err(failed)?;
        let pid = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok()?.parse().ok();
        Ok(entries.filter_map(|entry| pid(entry.ok()?)).collect())
    }

    /// Looks at a process; absent if it has ended. The handle stays with that process if the pid is reused.
    pub(super) fn glance(&mut self, pid: u32) -> Option<(OwnedFd, Glance)> {
        let dir = self.open(pid)?;
        let stat = self.stat(&dir)?;
        let owner = rustix::fs::fstat(&dir).ok()?.st_uid;
        Some((dir, Glance { stat, owner }))
    }

    fn open(&self, pid: u32) -> Option<OwnedFd> {
        openat(&self.proc, pid.to_string(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    fn stat(&mut self, dir: &OwnedFd) -> Option<Stat> {
        let mut stat = Stat::parse(self.file(dir, "stat")?)?;
        // If the memory layout is hidden, a changed command line indicates an exec.
        if stat.is_masked() {
            stat.set_layout(self.file(dir, "cmdline").unwrap_or_default());
        }
        Some(stat)
    }

    fn file(&mut self, dir: &OwnedFd, name: &str) -> Option<&[u8]> {
        let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut length = 0;
        loop {
            let got = retry_on_intr(|| rustix::io::read(&file, &mut self.buffer[length..])).ok()?;
            length += got;
            // procfs fills the buffer: one read suffices for nearly every file.
            if got == 0 || length < self.buffer.len() || length >= FILE_BYTES_MAX {
                return Some(&self.buffer[..length]);
            }
            self.buffer.resize(length * 2, 0);
        }
    }

    fn link(&mut self, dir: &OwnedFd, name: &str) -> Option<String> {
        match readlinkat(dir, name, Vec::new()) {
            Ok(target) => Some(String::from_utf8_lossy(target.as_bytes()).into_owned()),
            Err(err) => {
                self.refused |= matches!(err, Errno::ACCESS | Errno::PERM);
                None
            }
        }
    }

    /// Parses `mnt:[4026531840]` (namespaces(7)); reading the link costs half as much as following it.
    fn namespace(ns: &OwnedFd, name: &str) -> Option<u64> {
        let target = readlinkat(ns, name, Vec::new()).ok()?;
        target.to_str().ok()?.strip_prefix(name)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
    }

    fn namespaces(dir: &OwnedFd) -> Namespaces {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(ns) = openat(dir, "ns", flags, Mode::empty()) else { return Namespaces::default() };
        Namespaces {
            mnt: Self::namespace(&ns, "mnt"),
            pid: Self::namespace(&ns, "pid"),
            net: Self::namespace(&ns, "net"),
            user: Self::namespace(&ns, "user"),
        }
    }

    /// Reads the details of a process; absent if it has ended.
    pub(super) fn process(&mut self, dir: &OwnedFd, pid: u32, glance: &Glance, change: Change) -> Option<Process> {
        let stat = &glance.stat;
        let status = self.file(dir, "status").map(|text| String::from_utf8_lossy(text).into_owned());
        // The process has ended.
        let status = status.filter(|text| !text.is_empty())?;
        let id = |key: &str| -> Option<u32> {
            // Real, effective, saved, file system.
            status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
        };
        let cmdline = self.file(dir, "cmdline").unwrap_or_default();
        let cut = cmdline.len() > ARGS_BYTES_MAX;
        let args = arguments(&cmdline[..cmdline.len().min(ARGS_BYTES_MAX)]);
        let cgroup = self.file(dir, "cgroup").and_then(cgroup_path);
        let path = if stat.kernel { None } else { self.link(dir, "exe") };
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
            args_cut: cut,
            user: id("Uid:").map(|id| self.accounts.user(id)),
            group: id("Gid:").map(|id| self.accounts.group(id)),
            started: self.boot_time.and_then(|boot| boot.checked_add(i64::try_from(since_boot).ok()?)),
            cwd: if stat.kernel { None } else { self.link(dir, "cwd") },
            session: Some(stat.session),
            container: cgroup.as_deref().and_then(container_id),
            cgroup,
            namespaces: Self::namespaces(dir),
            kernel: stat.kernel,
            state: Some(ProcessState::of_letter(stat.state)),
        })
    }
}

/// Splits NUL-terminated arguments. A process may overwrite them with anything (setproctitle(3)).
fn arguments(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument).into_owned()).collect()
}

/// Path of cgroup v2 (`0::/…`), or else of the systemd hierarchy of v1, or else the first one.
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

/// The 64 hexadecimal digits of a container id in a cgroup path.
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
