//! `vedette`: the security data collection agent.

mod cli;
mod cloud;
mod commands;
mod config;
mod exit;
mod identity;
mod policy;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    share_heaps();
    // Files are the agent's alone, even in a directory that others can read.
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    // Memory holds keys: other processes of the user cannot read it, and no core dump is written (PR_SET_DUMPABLE(2const)).
    let hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    hidden.expect("a process may say so of itself");
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing installed one before");
    match commands::run(cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

/// Limits malloc to two arenas (mallopt(3), `M_ARENA_MAX`). One thread allocates a batch and another frees it; with glibc's
/// eight arenas per core each keeps several batches, a quarter of the agent's memory while it catches up. Mapping each batch
/// (`M_MMAP_THRESHOLD`) needs still less memory, but a sixth more processor time.
fn share_heaps() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    // SAFETY: the call takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Wall clock, nanoseconds UTC.
fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
