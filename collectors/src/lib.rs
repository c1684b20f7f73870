//! Collectors observe the host and emit records. They have no access to batches, disk or network.
//!
//! A collector is a folder with settings and an implementation of [`Collector`], and one line in [`REGISTRY`]. There are two shapes: a [`Poll`]
//! is called at intervals, a [`Watch`] runs its own loop. The agent's runner provides the rest: interval, jitter, deadline,
//! panic isolation, restart, stop.
//!
//! ```
//! use std::sync::Arc;
//! use vedette_collectors::{CollectorContext, Plan, find};
//!
//! let context = CollectorContext::new("/", Arc::new(|| 1_764_242_000_000_000_000));
//! let host = find("host").expect("is in the registry");
//! let settings = (host.parse)((host.defaults)())?;
//! let Plan::Poll(every, mut poll) = settings.build(&context)? else { panic!("host is polled") };
//! println!("every {every:?}: {:?}", poll.poll(&context)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod addresses;
mod class;
mod context;
mod error;
mod host;
mod outlet;
mod permissions;
mod processes;
mod registry;
mod requests;
pub mod settings;
mod spec;

// Sources and files of Linux.
#[cfg(target_os = "linux")]
mod artifacts;
#[cfg(target_os = "linux")]
mod container_logs;
#[cfg(target_os = "linux")]
mod crash_dumps;
#[cfg(target_os = "linux")]
mod journal;
#[cfg(target_os = "linux")]
mod room;
#[cfg(target_os = "linux")]
mod root;
#[cfg(target_os = "linux")]
mod sessions;
#[cfg(target_os = "linux")]
mod syslog;
#[cfg(target_os = "linux")]
mod syslog_listener;
#[cfg(target_os = "linux")]
mod tail;

pub use class::CollectorClass;
pub use context::{Clock, CollectorContext};
pub use error::{BuildError, CollectError};
pub use host::{Dmi, boot_id, dmi, label as host_label, machine_id};
pub use outlet::{Outlet, Progress, Sink, StopSignal, Wake, Waker};
pub use permissions::{Permission, Right, missing as missing_permissions};
pub use registry::{ELSEWHERE, REGISTRY};
pub use requests::{ApprovedRequest, Requests};
pub use spec::{AnySettings, Collector, CollectorSettings, Plan, Platform, Poll, Skip, Spec, Watch};

/// Finds a collector by id.
pub fn find(id: &str) -> Option<&'static Spec> {
    REGISTRY.iter().find(|spec| spec.id == id)
}

/// Entry points of fuzz targets.
#[cfg(all(fuzzing, target_os = "linux"))]
pub mod fuzzing {
    use crate::{container_logs, crash_dumps, journal, syslog};

    /// Parses a log line, as of the system and as of a container.
    ///
    /// # Panics
    /// A field lies outside of the line.
    pub fn line(raw: &[u8], now: i64) {
        syslog::fuzz(raw, now);
        container_logs::fuzz(raw);
    }

    /// Reads a journal file.
    pub fn journal(bytes: &[u8]) {
        journal::fuzz(bytes);
    }

    /// Reads the facts of a core.
    pub fn core(bytes: &[u8]) {
        crash_dumps::fuzz(bytes);
    }
}
