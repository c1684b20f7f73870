//! Reading the configuration again, on SIGHUP.

use super::{
    parts::Parts,
    tasks::{RestartReason, RunEnd},
};
use crate::{config::Resolved, exit::Exit, log, platform};
use parking_lot::Mutex;
use std::sync::Arc;
use vedette_wire::body::LifecycleEvent;

/// Loads the configuration from the sources that the process began with.
pub(crate) type Load = Box<dyn Fn() -> Result<Resolved, Exit> + Send + Sync>;

/// The signals, and a configuration that the next run is to use. It outlasts runs, so that no signal is lost between two.
pub(crate) struct Reload {
    signals: tokio::sync::Mutex<platform::ReloadSignals>,
    load: Load,
    next: Mutex<Option<Resolved>>,
}

impl Reload {
    /// Handles signals from now on.
    ///
    /// # Errors
    /// The system refuses the handler.
    pub(crate) fn new(load: Load) -> std::io::Result<Self> {
        let signals = tokio::sync::Mutex::new(platform::ReloadSignals::new()?);
        Ok(Self { signals, load, next: Mutex::new(None) })
    }

    /// The configuration of the next run, if there is another one.
    pub(super) fn take(&self) -> Option<Arc<Resolved>> {
        self.next.lock().take().map(Arc::new)
    }

    /// Waits for a signal and a configuration that is right; one that is wrong is reported.
    pub(crate) async fn next(&self) -> Resolved {
        let mut signals = self.signals.lock().await;
        loop {
            signals.wait().await;
            match (self.load)() {
                Ok(next) => return next,
                Err(exit) => {
                    for reason in exit.reasons() {
                        tracing::error!("{reason}");
                    }
                    tracing::error!("the configuration is wrong; the agent keeps the present one");
                }
            }
        }
    }

    /// Waits for a configuration that needs another run. One that is wrong is reported, and the present one stays. A change of
    /// the log's level alone takes effect at once.
    pub(super) async fn changed(&self, parts: &Parts) -> RunEnd {
        let mut digest = parts.config.digest.clone();
        loop {
            let next = self.next().await;
            if next.digest == digest {
                tracing::info!("the configuration has not changed");
                continue;
            }
            if next.log_json != parts.config.log_json {
                tracing::warn!("log.format takes effect when the agent is restarted");
            }
            if next.digest_without_log != parts.config.digest_without_log {
                *self.next.lock() = Some(next);
                return RunEnd::Restart(RestartReason::Reloaded);
            }
            log::set_level(next.log_level);
            tracing::info!(level = %next.log_level, "the level of the log has changed");
            let message = format!("log level {}", next.log_level);
            parts.events.lifecycle(LifecycleEvent::Configuration, message, None, Some(next.digest.clone()));
            digest.clone_from(&next.digest);
            // For the next run, whatever begins it.
            *self.next.lock() = Some(next);
        }
    }
}
