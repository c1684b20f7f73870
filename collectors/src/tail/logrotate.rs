//! The `olddir` directories of logrotate(8)'s configuration.
//!
//! ```text
//! /var/log/app/*.log {
//!     olddir /var/log/archive
//! }
//! ```

use crate::root::{
    Root,
    glob::{Expansion, Pattern},
};
use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

const FILES: [&str; 2] = ["/etc/logrotate.conf", "/etc/logrotate.d/*"];
/// Maximum size of a configuration file.
const BYTES_MAX: u64 = 1 << 20;

/// All directories that the configuration names, as written: absolute, or relative to the log's directory.
pub(super) fn old_directories(root: &Root) -> BTreeSet<PathBuf> {
    let mut expansion = Expansion::default();
    let mut out = BTreeSet::new();
    for pattern in FILES.into_iter().filter_map(|path| Pattern::new(path).ok()) {
        for named in expansion.expand(root, &pattern) {
            let mut text = String::new();
            let read = root.log(&named.path).and_then(|found| found.read());
            if read.and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text)).is_ok() {
                out.extend(named_in(&text));
            }
        }
    }
    out
}

fn named_in(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let directory = line.trim().strip_prefix("olddir")?;
        let name = directory.trim().trim_matches('"');
        (directory.starts_with([' ', '\t']) && !name.is_empty()).then(|| Path::new(name).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_found_and_comments_are_not() {
        let text =
            "# olddir /no\nnoolddir\n/var/log/*.log {\n\tolddir /var/log/old\n  olddir \"arch ive\"\n olddirs x\n}\n";
        assert_eq!(named_in(text).collect::<Vec<_>>(), [Path::new("/var/log/old"), Path::new("arch ive")]);
    }
}
