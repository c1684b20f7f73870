//! `vedette-workspace`: receives, segregates, lands and serves what agents send.

mod api;
mod batch_index;
mod clock;
mod commands;
mod health;
mod ingest;
mod keys;
mod metrics;
mod replication;
mod server;
mod store;
#[cfg(feature = "lake")]
mod tables;

use commands::LogFormat;
use std::process::ExitCode;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Stack of the runtime's threads: expressions of a statement are planned recursively.
const STACK_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    // Files are the workspace's alone, even in a directory that others can read.
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    // Memory holds keys: other processes of the user cannot read it, and no core dump is written (PR_SET_DUMPABLE(2const)).
    let hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    hidden.expect("a process may say so of itself");
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("no crypto provider is installed yet");
    let arguments = commands::parse();
    let level = arguments.log.unwrap_or(tracing::Level::INFO);
    // Messages of libraries at `info` are noise: Delta logs every snapshot.
    let of_libraries = if level > tracing::Level::INFO { level } else { level.min(tracing::Level::WARN) };
    let shown = Targets::new().with_default(of_libraries).with_targets([
        ("vedette_workspace", level),
        ("vedette_lake", level),
        ("vedette_wire", level),
    ]);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let log = match arguments.log_format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()) && !no_color()).boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(shown)).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(err) => {
            tracing::error!(error = %err, "cannot start the tokio runtime");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(commands::run(arguments));
    // A process may crash at exit while its threads run; an abandoned query may not yield.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!("{err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether `NO_COLOR` is set and not empty (<https://no-color.org>).
#[expect(clippy::disallowed_methods, reason = "only the environment says so")]
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
