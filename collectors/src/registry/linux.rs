//! Collectors of Linux.

use crate::{
    Spec, addresses, artifacts, container_logs, crash_dumps, host, journal, processes, sessions, syslog,
    syslog_listener,
};

/// All collectors of this platform, in the order of the reference page.
pub static REGISTRY: &[Spec] = &[
    host::SPEC,
    processes::SPEC,
    addresses::SPEC,
    sessions::SPEC,
    syslog::SPEC,
    syslog_listener::SPEC,
    journal::SPEC,
    container_logs::SPEC,
    crash_dumps::SPEC,
    artifacts::SPEC,
];

/// Ids of collectors that run on other platforms alone.
pub static ELSEWHERE: &[&str] = &[];
