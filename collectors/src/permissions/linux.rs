//! Linux.

use super::Right;
use nix::unistd::{Group, getegid, getgroups};

/// Numbers of capabilities (linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_DAC_READ_SEARCH", 2), ("CAP_NET_BIND_SERVICE", 10), ("CAP_SYS_PTRACE", 19)];

/// Whether this process has a right.
pub(super) fn has(right: &Right) -> bool {
    match right {
        Right::Capability(name) => {
            let number = CAPABILITIES.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
            number.is_some_and(|number| effective() >> number & 1 == 1)
        }
        Right::Group(name) => {
            let Ok(Some(group)) = Group::from_name(name) else { return false };
            getegid() == group.gid || getgroups().is_ok_and(|groups| groups.contains(&group.gid))
        }
    }
}

/// Effective capabilities (proc_pid_status(5), `CapEff`); none if they cannot be read.
fn effective() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}
