//! Signals.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that stop the agent.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Handles SIGTERM and SIGINT from now on.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them; returns its name.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Signals that ask for a reload of the configuration.
pub struct ReloadSignals(Signal);

impl ReloadSignals {
    /// Handles SIGHUP from now on; without a handler it ends the agent.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for one.
    pub async fn wait(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
