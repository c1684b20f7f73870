//! Console events, and the stop of the service control manager.

use super::service;
use std::io;
use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
};

/// Events that stop the agent.
pub struct StopSignals {
    interrupt: CtrlC,
    r#break: CtrlBreak,
    close: CtrlClose,
    shutdown: CtrlShutdown,
}

impl StopSignals {
    /// Handles console events and service controls from now on.
    ///
    /// # Errors
    /// Those of `SetConsoleCtrlHandler`.
    pub fn new() -> io::Result<Self> {
        Ok(Self { interrupt: ctrl_c()?, r#break: ctrl_break()?, close: ctrl_close()?, shutdown: ctrl_shutdown()? })
    }

    /// Waits for one of them; returns its name.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl+C",
            _ = self.r#break.recv() => "Ctrl+Break",
            _ = self.close.recv() => "the closed console",
            _ = self.shutdown.recv() => "the shutdown of the system",
            () = service::stopped() => "the service control manager",
        }
    }
}

/// Signals that ask for a reload of the configuration: there are none.
pub struct ReloadSignals(());

impl ReloadSignals {
    /// Nothing to do.
    ///
    /// # Errors
    /// None.
    pub fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Waits for ever.
    pub async fn wait(&mut self) {
        std::future::pending().await
    }
}
