//! Programs that this one runs.

use anyhow::{Context, Result, bail};
use std::{ffi::OsStr, process::Command};

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or fails; the message contains what it printed on standard error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}; is it installed?"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Standard output of a program.
pub(crate) fn output<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    run(Command::new(program).args(arguments))
}
