//! Reading the configuration again, on SIGHUP.

use super::{
    context::AgentContext,
    tasks::{RestartReason, RunEnd},
};
use crate::{config::Resolved, exit::Exit, log, platform};
use parking_lot::Mutex;
use std::sync::Arc;

/// Loads the configuration from the sources that the process began with.
pub(crate) type Load = Box<dyn Fn() -> Result<Resolved, Exit> + Send + Sync>;

/// The signals, and a configuration that the next run is to use. A reload outlasts runs, so that no signal is lost between two.
pub(crate) struct Reload {
    signals: tokio::sync::Mutex<platform::ReloadSignals>,
    load: Load,
    /// The configuration in force and the one that replaces it, until a run takes them.
    pending: Mutex<Option<(Arc<Resolved>, Arc<Resolved>)>>,
}

impl Reload {
    /// Handles signals from now on.
    ///
    /// # Errors
    /// The system refuses the handler.
    pub(crate) fn new(load: Load) -> std::io::Result<Self> {
        let signals = tokio::sync::Mutex::new(platform::ReloadSignals::new()?);
        Ok(Self { signals, load, pending: Mutex::new(None) })
    }

    /// The configuration in force and that of the next run, if there is another one.
    pub(super) fn take(&self) -> Option<(Arc<Resolved>, Arc<Resolved>)> {
        self.pending.lock().take()
    }

    /// Waits for a signal and a configuration that is right; one that is wrong is reported.
    pub(crate) async fn next_valid(&self) -> Resolved {
        let mut signals = self.signals.lock().await;
        loop {
            signals.wait().await;
            match (self.load)() {
                Ok(next) => return next,
                Err(exit) => {
                    for reason in exit.reasons() {
                        tracing::error!("{reason}");
                    }
                    tracing::error!("the new configuration is invalid; keeping the current one");
                }
            }
        }
    }

    /// Waits for a configuration that needs another run. One that is wrong is reported, and the present one stays. Collectors and
    /// the level of the log change within the run.
    pub(super) async fn wait_for_restart(&self, agent: &AgentContext) -> RunEnd {
        loop {
            let next = Arc::new(self.next_valid().await);
            let present = Arc::clone(&agent.in_force.borrow());
            if next.digest == present.digest {
                tracing::info!("the configuration has not changed");
                continue;
            }
            if next.log_json != agent.config.log_json {
                tracing::warn!("a change of log.format takes effect when the agent's process is started anew");
            }
            // The next run uses it, even if something else ends this one.
            *self.pending.lock() = Some((Arc::clone(&present), Arc::clone(&next)));
            if next.restart_digest != present.restart_digest {
                return RunEnd::Restart(RestartReason::ConfigurationChanged);
            }
            log::set_level(next.log_level);
            agent.events.configuration(&next);
            let level = next.log_level;
            agent.in_force.send_replace(next);
            tracing::info!(%level, "the new configuration is in force; collectors with other settings start again");
        }
    }
}
