//! The security data collection agent. The binary is `main.rs`; only it and the fuzz
//! targets use this library.

mod cli;
mod cloud;
mod commands;
mod config;
mod exit;
mod identity;
mod log;
mod runtime;

use vedette_platform as platform;

use std::process::ExitCode;

/// The program `vedette`.
///
/// # Panics
/// Panics if a rustls crypto provider is already installed; nothing else installs one.
pub fn main() -> ExitCode {
    platform::harden();
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("no crypto provider is installed yet");
    match commands::run(cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

/// Entry points of fuzz targets.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Loads a configuration from the text of a file.
    pub fn configuration(text: &str) {
        let _ = crate::config::load_text(text);
    }
}

/// Current wall-clock time, in nanoseconds since the Unix epoch.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
