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
        tracing::warn!(
            error = %err,
            limit = limit.current,
            "cannot raise the limit of open files; raise it for the service (LimitNOFILE) or container"
        );
    }
}

/// Resident memory (`VmRSS` of `/proc/self/status`).
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Unmaps the pages of the program's code and constants; those that run again are mapped again. The kernel maps 64 KiB around each page
/// that is touched, so that after a start nearly the whole program is resident. Afterwards the agent uses some three quarters of it.
#[expect(unsafe_code, reason = "there is no safe call for it")]
pub fn release_program_pages() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (from, to) in program_ranges(&maps, release_program_pages as fn() as usize) {
        // SAFETY: the range is of a private mapping of the program's file that the process never writes to, so its pages are those of
        // the file in any case, and the kernel maps them again.
        let released = unsafe { rustix::mm::madvise(from as *mut _, to - from, rustix::mm::Advice::LinuxDontNeed) };
        if let Err(err) = released {
            tracing::debug!(error = %err, "pages of the program stay mapped");
        }
    }
}

/// Ranges of the program's code and, before it, of its constants, by the address of a function (proc_pid_maps(5)). What is
/// behind the code stays: linkers put relocated data there, which would be lost.
fn program_ranges(maps: &str, function: usize) -> Vec<(usize, usize)> {
    let mappings = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        // Device and inode; memory without a file would be lost.
        let (rights, file) = (fields.next()?, fields.skip(1).take(2).collect::<Vec<_>>());
        if file.last() == Some(&"0") {
            return None;
        }
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?, rights, file))
    });
    let mappings: Vec<_> = mappings.collect();
    let is_code = |(from, to, rights, _): &&(usize, usize, &str, Vec<&str>)| {
        *rights == "r-xp" && (*from..*to).contains(&function)
    };
    let Some((code, _, _, file)) = mappings.iter().find(is_code) else { return Vec::new() };
    let is_part = |(from, _, rights, of): &&(usize, usize, &str, Vec<&str>)| {
        of == file && from <= code && matches!(*rights, "r-xp" | "r--p")
    };
    mappings.iter().filter(is_part).map(|(from, to, ..)| (*from, *to)).collect()
}

/// Ends this process at once, as a power cut would: nothing of it runs any more.
pub fn kill_self() {
    // It cannot fail: a process may signal itself.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
555500000000-555500010000 r--p 00000000 fe:00 77                         /usr/bin/vedette
555500010000-555500090000 r-xp 00010000 fe:00 77                         /usr/bin/vedette (deleted)
555500090000-5555000a0000 r--p 00090000 fe:00 77                         /usr/bin/vedette
5555000a0000-5555000a1000 rw-p 000a0000 fe:00 77                         /usr/bin/vedette
7f0000000000-7f0000010000 r-xp 00010000 fe:00 12                         /usr/lib/libc.so.6
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
";

    #[test]
    fn code_and_constants_are_released_and_relocated_data_is_not() {
        let expected = [(0x5555_0000_0000, 0x5555_0001_0000), (0x5555_0001_0000, 0x5555_0009_0000)];
        assert_eq!(program_ranges(MAPS, 0x5555_0002_0000), expected);
        assert!(program_ranges(MAPS, 0x1000).is_empty() && program_ranges("torn", 0).is_empty());
        let maps = std::fs::read_to_string("/proc/self/maps").expect("reads");
        assert!(!program_ranges(&maps, program_ranges as fn(&str, usize) -> _ as usize).is_empty());
    }

    /// Resident bytes of the program's code, `Rss` of `/proc/self/smaps`.
    fn resident_code() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("reads");
        let (from, to) = *program_ranges(&text, resident_code as fn() -> u64 as usize).last().expect("code");
        let (_, mapping) = text.split_once(&format!("{from:x}-{to:x} ")).expect("the mapping");
        let rss = mapping.lines().find_map(|line| line.strip_prefix("Rss:")).expect("its size");
        rss.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    #[test]
    fn released_code_is_not_resident_and_runs_again() {
        let before = resident_code();
        release_program_pages();
        let after = resident_code();
        assert!(after < before, "{after} of {before} KiB");
    }
}
