//! `vedette`: the security data collection agent.

mod cli;
mod cloud;
mod commands;
mod config;
mod exit;
mod identity;
mod platform;
mod runtime;

use std::process::ExitCode;

fn main() -> ExitCode {
    platform::harden();
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing installed one before");
    match commands::run(cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

/// Wall clock, nanoseconds UTC.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
