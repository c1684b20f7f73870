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

/// Logs SIGHUP; without a handler it would end the agent.
///
/// # Errors
/// Those of sigaction(2).
pub fn ignore_reload() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!("SIGHUP is ignored; restart the agent to read its configuration again");
        }
    });
    Ok(())
}
