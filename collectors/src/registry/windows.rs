//! Collectors of Windows.

use crate::{Spec, addresses, host, processes};

/// All collectors of this platform, in the order of the reference page.
pub static REGISTRY: &[Spec] = &[host::SPEC, processes::SPEC, addresses::SPEC];

/// Ids of collectors that run on other platforms alone.
pub static ELSEWHERE: &[&str] =
    &["artifacts", "crash_dumps", "journal", "sessions", "syslog", "syslog_listener", "container_logs"];
