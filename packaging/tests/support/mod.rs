//! Commands of the tests.
#![allow(clippy::print_stdout, reason = "a skipped test says why")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// The directory of this crate, in which cargo runs tests. A path from compile time may be of another clone.
pub(crate) fn packaging() -> &'static Path {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| std::env::current_dir().expect("is there"));
    &DIR
}

/// Runs a command to its end: what it prints, or that as an error if it fails.
pub(crate) fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// A tool that `packaging/tools` installs; absent, with a message, where it did not.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let dirs = try_run(Command::new(packaging().join("tools")).arg("--path")).expect("prints");
    let found = dirs.trim().split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: {name} is not installed; packaging/tools installs it");
    }
    found
}
