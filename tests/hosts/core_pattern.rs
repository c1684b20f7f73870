//! kernel.core_pattern is the machine's: while it is set here, dumps of a host's processes go to the host's systemd-coredump(8).

use anyhow::Result;
use std::{fs, os::unix::fs::PermissionsExt};

const FILE: &str = "/proc/sys/kernel/core_pattern";

/// Puts the old pattern back when dropped.
pub(crate) struct Forward {
    before: String,
    _dir: tempfile::TempDir,
}

impl Forward {
    /// Forwards to the host with this init process.
    pub(crate) fn to(init: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let script = dir.path().join("forward");
        // The handler gets the process's id in its own namespace, as systemd's pattern asks for with %P on a machine of its own.
        fs::write(&script, format!("#!/bin/sh\nexec nsenter -t {init} -a /lib/systemd/systemd-coredump \"$@\"\n"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let before = fs::read_to_string(FILE)?;
        fs::write(FILE, format!("|{} %p %u %g %s %t %c %h", script.display()))?;
        Ok(Self { before, _dir: dir })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(fs::write(FILE, &self.before));
    }
}
