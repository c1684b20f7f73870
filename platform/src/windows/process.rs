//! The agent's own process.

use windows_sys::Win32::System::{
    ProcessStatus::{GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS},
    Threading::GetCurrentProcess,
};

/// Nothing to do: other users cannot open the process, and files get the rights of their directory.
pub fn harden() {}

/// Nothing to do: Windows limits handles per process to 16 million.
pub fn raise_file_limit() {}

/// Nothing to do: Windows trims working sets itself.
pub fn release_program_pages() {}

/// Resident memory (working set).
pub fn resident_bytes() -> Option<u64> {
    let size = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    let mut counters = PROCESS_MEMORY_COUNTERS { cb: size, ..PROCESS_MEMORY_COUNTERS::default() };
    // SAFETY: the handle of the own process is always valid, and the buffer has the stated size.
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    let done = unsafe { GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, size) };
    (done != 0).then_some(counters.WorkingSetSize as u64)
}

/// Ends this process at once: nothing of it runs any more.
pub fn kill_self() {
    std::process::abort();
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_memory() {
        assert!(super::resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
