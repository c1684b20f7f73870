//! The context of a collector: clock, host root, cursors, and whether it runs once.

use crate::Requests;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};
use vedette_wire::body::CloudInstance;

/// Wall clock, nanoseconds UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The context of one collector.
#[derive(Clone)]
pub struct CollectorContext {
    /// The host's root: `/`, `/host` in a container, a fixture directory in a test.
    pub root: PathBuf,
    /// Wall clock.
    pub clock: Clock,
    /// Cursors by source id.
    pub cursors: Vec<(String, Vec<u8>)>,
    /// The workspace's positions, if the cursors came from it.
    pub stored: Vec<vedette_wire::Stored>,
    /// Enabled collectors: of two that would observe the same, one runs.
    pub enabled: BTreeSet<&'static str>,
    /// Artifact requests; absent where there can be none.
    pub requests: Option<Requests>,
    /// Instance metadata of the cloud. The agent queries it, since collectors have no network.
    pub cloud: Option<Arc<CloudInstance>>,
    /// Emit at most this many records of each source, and end.
    pub once: Option<usize>,
}

impl CollectorContext {
    /// A context without cursors and with all collectors off.
    pub fn new(root: impl Into<PathBuf>, clock: Clock) -> Self {
        let (cursors, stored) = (Vec::new(), Vec::new());
        Self {
            root: root.into(),
            clock,
            cursors,
            stored,
            enabled: BTreeSet::new(),
            requests: None,
            cloud: None,
            once: None,
        }
    }

    /// Now, nanoseconds UTC.
    pub fn now(&self) -> i64 {
        (self.clock)()
    }

    /// A host path (`/etc/hostname`) below the root.
    pub fn path(&self, host_path: impl AsRef<Path>) -> PathBuf {
        let host_path = host_path.as_ref();
        self.root.join(host_path.strip_prefix("/").unwrap_or(host_path))
    }

    /// The host path of a path below the root.
    pub fn host_path(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(rest) => format!("/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }

    /// Whether the root is this machine's own.
    pub fn is_this_host(&self) -> bool {
        self.root == Path::new("/")
    }
}

impl std::fmt::Debug for CollectorContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollectorContext").field("root", &self.root).field("once", &self.once).finish_non_exhaustive()
    }
}
