//! Service control: sd_notify(3), for units with `Type=notify`. It does nothing where nothing listens.

use sd_notify::{NotifyState, notify};
use std::time::Duration;

/// Runs a service; here it is a process like others.
///
/// # Errors
/// Those of the service.
pub fn run<E>(service: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    service()
}

/// Reports that the service works.
pub fn ready() {
    drop(notify(&[NotifyState::Ready]));
}

/// Reports that the service is about to end.
pub fn stopping() {
    drop(notify(&[NotifyState::Stopping]));
}

/// Interval at which the supervisor expects signs of life (`WatchdogSec`, sd_watchdog_enabled(3)); absent if it expects none.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Gives the supervisor a sign of life.
pub fn feed_watchdog() {
    drop(notify(&[NotifyState::Watchdog]));
}
