//! The agent's own process.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Keeps files and memory to this user, even in a directory that others can read: other processes of the user cannot read the
/// memory, which holds keys, and no core dump is written (PR_SET_DUMPABLE(2const)).
///
/// # Panics
/// The kernel refuses, which it never does for the process itself.
pub fn harden() {
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    set_dumpable_behavior(DumpableBehavior::NotDumpable).expect("a process may say so of itself");
    raise_capabilities();
    share_heaps();
}

/// Makes the permitted capabilities effective (capabilities(7)). Those of a file in an image are only permitted, since execve(2)
/// would refuse a file with effective ones where a container withholds one of them.
///
/// # Panics
/// The kernel refuses, which it never does: they are permitted.
fn raise_capabilities() {
    let mut sets = rustix::thread::capabilities(None).expect("a process may read its own");
    if sets.effective != sets.permitted {
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets).expect("permitted capabilities may become effective");
    }
}

/// Limits malloc to two arenas (mallopt(3), `M_ARENA_MAX`). One thread allocates a batch and another frees it; with glibc's
/// eight arenas per core each keeps several batches, a quarter of the agent's memory while it catches up. Mapping each batch
/// (`M_MMAP_THRESHOLD`) needs still less memory, but a sixth more processor time.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn share_heaps() {
    // SAFETY: the call takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(not(target_env = "gnu"))]
fn share_heaps() {}

/// Raises the limit of open files to the hard limit (getrlimit(2)): every log file is held open, and the default of 1024 is
/// meant for shells.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(err) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(error = %err, "no more than {:?} files can be open", limit.current);
    }
}

/// Resident memory (`VmRSS` of `/proc/self/status`).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Ends this process at once, as a power cut would: nothing of it runs any more.
pub fn kill_self() {
    // It cannot fail: a process may signal itself.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}
