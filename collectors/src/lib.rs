//! Collectors: they observe the host and yield records. They know nothing of batches, disk or network.
//!
//! A collector is a folder with a settings struct and a build function, and one line in [`REGISTRY`]. There are two
//! shapes: a [`Poll`] is asked at intervals, a [`Watch`] owns a loop. What is the same for all (ticker, jitter,
//! deadline, panic isolation, restart, stop) lives in the agent's runner.

mod addresses;
mod artifacts;
mod crash_dumps;
mod cx;
mod host;
mod journal;
mod outlet;
mod processes;
mod root;
mod sessions;
pub mod settings;
mod spec;
mod syslog;
mod syslog_listener;
mod tail;

pub use artifacts::{Requests, Wanted};
pub use cx::{Clock, Cx};
pub use host::label as host_label;
pub use outlet::{Outlet, Progress, Sink, StopSignal, Wake, Waker};
pub use spec::{BuildError, Class, CollectError, Plan, Poll, Skip, Spec, Watch};

/// Every collector, in the order of the reference page.
pub static REGISTRY: &[Spec] = &[
    host::SPEC,
    processes::SPEC,
    addresses::SPEC,
    sessions::SPEC,
    syslog::SPEC,
    syslog_listener::SPEC,
    journal::SPEC,
    crash_dumps::SPEC,
    artifacts::SPEC,
];

/// The collector with this id.
pub fn find(id: &str) -> Option<&'static Spec> {
    REGISTRY.iter().find(|spec| spec.id == id)
}
