//! The log, on standard error.

use crate::config::{self, Resolved};
use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Changes the level of the log.
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts the log of this process.
pub(crate) fn start(config: &Resolved) {
    let (level, handle) = reload::Layer::new(LevelFilter::from_level(config.log_level));
    drop(LEVEL.set(handle));
    let text = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        // A log that cannot be written (a full disk, a closed pipe) is not a reason to stop.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal() && !config::no_color());
    let log = tracing_subscriber::registry().with(level);
    if config.log_json {
        log.with(text.json()).init();
    } else {
        log.with(text).init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("unknown");
        tracing::error!(at, reason, "a thread of the agent panicked; report this with the log");
    }));
    if let Some(variable) = config::proxy_variable().filter(|_| config.proxy.is_none()) {
        tracing::warn!("{variable} is ignored; set [workspace] proxy if the workspace is reached through a proxy");
    }
}

/// Sets the level from now on.
pub(crate) fn set_level(level: tracing::Level) {
    if let Some(handle) = LEVEL.get() {
        drop(handle.reload(LevelFilter::from_level(level)));
    }
}
