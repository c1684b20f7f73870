//! Processes of Windows, by a Toolhelp snapshot and the memory of each process, through sysinfo. Details that cannot be
//! read are absent.
//!
//! The image, the command line and the user of a process do not change, so a pid and its start time are all that a glance sees.

mod accounts;

use crate::{CollectError, CollectorContext, Permission};
use accounts::Accounts;
use std::ffi::OsStr;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use vedette_wire::body::{Change, Namespaces, Principal, PrincipalId, Process};

pub(super) const PERMISSIONS: &[Permission] = &[];
pub(super) const READS: &str =
    "a Toolhelp snapshot; command line, executable and user of other users' processes as LocalSystem";

/// Maximum size of the arguments of a process.
const ARGS_BYTES_MAX: usize = 16 << 10;

/// Why there are no processes to observe.
pub(super) fn absent(_context: &CollectorContext) -> Option<String> {
    None
}

/// The permission that some processes need, and the agent lacks.
pub(super) fn missing_permission() -> String {
    "executable, command line and user of some processes cannot be read; run the agent as LocalSystem".to_owned()
}

/// What stays between polls.
#[derive(Default)]
pub(super) struct Host {
    /// Absent before the first poll, and if Windows does not list processes.
    system: Option<System>,
    accounts: Accounts,
    problem: Option<String>,
}

impl Host {
    /// Lists processes; with `full`, discards names of accounts.
    pub(super) fn refresh(&mut self, _context: &CollectorContext, full: bool) {
        let unset = UpdateKind::OnlyIfNotSet;
        let kind = ProcessRefreshKind::nothing().with_cmd(unset).with_exe(unset).with_cwd(unset).with_user(unset);
        // A list that was kept would show the former process of a reused pid, and hold a handle of each process.
        let listed = System::new().map(|mut system| {
            let count = system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
            (system, count)
        });
        (self.system, self.problem) = match listed {
            Ok((_, 0)) => (None, Some("Windows lists none".to_owned())),
            Ok((system, _)) => (Some(system), None),
            Err(err) => (None, Some(err.to_string())),
        };
        if full {
            self.accounts.forget();
        }
    }
}

/// What is cheap to read of a process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glance {
    /// Seconds since 1970.
    started: u64,
    ppid: u32,
}

impl Glance {
    /// Whether the pid was not reused.
    pub(super) fn is_same_process(&self, other: &Self) -> bool {
        self == other
    }

    /// Whether nothing reportable can have changed.
    pub(super) fn looks_the_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// Reads processes during one poll.
pub(super) struct Reader<'a> {
    system: &'a System,
    accounts: &'a Accounts,
    refused: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(_context: &CollectorContext, host: &'a Host) -> Result<Self, CollectError> {
        let failed = || {
            let why = host.problem.clone().unwrap_or_else(|| "they are not listed".to_owned());
            CollectError::read("processes", std::io::Error::other(why))
        };
        let system = host.system.as_ref().ok_or_else(failed)?;
        Ok(Self { system, accounts: &host.accounts, refused: false })
    }

    /// Prefix of ids of snapshots. The boot time is none: Windows computes it anew each time, to a second.
    pub(super) fn snapshot_prefix(&self) -> &str {
        "windows"
    }

    /// Whether some process could not be inspected.
    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    /// Ids of all processes but the idle process, which is none.
    pub(super) fn pids(&self) -> Result<Vec<u32>, CollectError> {
        Ok(self.system.processes().keys().map(|pid| pid.as_u32()).filter(|pid| *pid != 0).collect())
    }

    /// Looks at a process. Its handle is its pid, since all processes were listed at once.
    pub(super) fn glance(&mut self, pid: u32) -> Option<(Pid, Glance)> {
        let handle = Pid::from_u32(pid);
        let process = self.system.process(handle)?;
        let ppid = process.parent().map_or(0, Pid::as_u32);
        Some((handle, Glance { started: process.start_time(), ppid }))
    }

    /// Reads the details of a process.
    pub(super) fn process(&mut self, handle: &Pid, pid: u32, glance: &Glance, change: Change) -> Option<Process> {
        let process = self.system.process(*handle)?;
        let user = process.user_id().map(|sid| {
            let sid = sid.to_string();
            Principal { name: self.accounts.name(&sid), id: PrincipalId::Sid(sid) }
        });
        self.refused |= user.is_none();
        let (args, args_cut) = arguments(process.cmd().iter().map(|argument| text(argument)));
        let started = i64::try_from(glance.started).ok().filter(|seconds| *seconds > 0);
        Some(Process {
            change,
            snapshot: None,
            uid: format!("{pid}/{}", glance.started),
            pid,
            ppid: glance.ppid,
            name: text(process.name()),
            path: process.exe().and_then(|path| present(path.as_os_str())),
            deleted: false,
            args,
            args_cut,
            user,
            group: None,
            started: started.and_then(|seconds| seconds.checked_mul(1_000_000_000)),
            cwd: process.cwd().and_then(|path| present(path.as_os_str())),
            session: process.session_id().map(Pid::as_u32),
            cgroup: None,
            container: None,
            namespaces: Namespaces::default(),
            kernel: false,
            state: None,
        })
    }
}

/// A text that is not empty.
fn present(of: &OsStr) -> Option<String> {
    (!of.is_empty()).then(|| text(of))
}

fn text(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// Arguments within the limit, and whether they were cut.
fn arguments(all: impl Iterator<Item = String>) -> (Vec<String>, bool) {
    let (mut out, mut left) = (Vec::new(), ARGS_BYTES_MAX);
    for mut argument in all {
        let Some(rest) = left.checked_sub(argument.len()) else {
            argument.truncate(argument.floor_char_boundary(left));
            out.push(argument);
            return (out, true);
        };
        left = rest;
        out.push(argument);
    }
    (out, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_with_its_command_line_and_user() {
        let context = CollectorContext::new("C:\\", std::sync::Arc::new(|| 1));
        let mut host = Host::default();
        host.refresh(&context, true);
        let mut reader = Reader::new(&context, &host).expect("reads");
        let pid = std::process::id();
        assert!(reader.pids().expect("lists").contains(&pid));
        let (handle, glance) = reader.glance(pid).expect("is there");
        let process = reader.process(&handle, pid, &glance, Change::Snapshot).expect("is there");
        assert_eq!(process.args, std::env::args().collect::<Vec<_>>());
        assert_eq!(process.path.as_deref(), std::env::current_exe().ok().as_deref().and_then(|path| path.to_str()));
        assert!(matches!(process.user, Some(Principal { id: PrincipalId::Sid(sid), .. }) if sid.starts_with("S-1-5-")));
        assert!(process.started.is_some() && process.state.is_none());
    }

    #[test]
    fn arguments_are_cut_at_the_limit() {
        let long = || "x".repeat(ARGS_BYTES_MAX / 2);
        assert_eq!(arguments([long(), long()].into_iter()), (vec![long(), long()], false));
        assert_eq!(
            arguments([long(), long(), "y".to_owned()].into_iter()),
            (vec![long(), long(), String::new()], true)
        );
        let (cut, is_cut) = arguments(["powershell".to_owned(), "é".repeat(ARGS_BYTES_MAX)].into_iter());
        assert!(is_cut && cut[1].len() > ARGS_BYTES_MAX - 16 && cut[1].chars().all(|letter| letter == 'é'));
    }
}
