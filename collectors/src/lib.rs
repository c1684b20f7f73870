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
mod artifacts;
mod class;
mod context;
mod crash_dumps;
mod error;
mod host;
mod journal;
mod outlet;
mod processes;
mod requests;
mod root;
mod sessions;
pub mod settings;
mod spec;
mod syslog;
mod syslog_listener;
mod tail;

pub use class::CollectorClass;
pub use context::{Clock, CollectorContext};
pub use error::{BuildError, CollectError};
pub use host::label as host_label;
pub use outlet::{Outlet, Progress, Sink, StopSignal, Wake, Waker};
pub use requests::{ApprovedRequest, Requests};
pub use spec::{AnySettings, Collector, CollectorSettings, Plan, Poll, Skip, Spec, Watch};

/// All collectors, in the order of the reference page.
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

/// Finds a collector by id.
pub fn find(id: &str) -> Option<&'static Spec> {
    REGISTRY.iter().find(|spec| spec.id == id)
}
