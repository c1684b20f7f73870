//! What a collector is given: the clock, the host's root, its cursors, and whether it runs once.

use crate::{Requests, root::Root};
use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};
use vedette_wire::body::CloudInstance;

/// The largest text file that is read whole: dpkg's status of a large host has some 10 MiB.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Wall clock, nanoseconds UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The context of one collector.
#[derive(Clone)]
pub struct Cx {
    /// The host's root: `/`, `/host` in a container, a fixture directory in a test.
    pub root: PathBuf,
    /// Wall clock.
    pub clock: Clock,
    /// Where the collector's sources were left, by source id.
    pub cursors: Vec<(String, Vec<u8>)>,
    /// What the workspace has of them, where the cursors came from it.
    pub stored: Vec<vedette_wire::Stored>,
    /// Collectors that the configuration switches on: two that would observe the same agree on one.
    pub enabled: BTreeSet<&'static str>,
    /// Artifacts that the organization asks for; absent where nobody can ask.
    pub requests: Option<Requests>,
    /// What the cloud says of the machine; the agent asks, collectors never see a network.
    pub cloud: Option<Arc<CloudInstance>>,
    /// Give what is there, so many of each source at the most, and end.
    pub once: Option<usize>,
}

impl Cx {
    /// A host with nothing remembered of it and every collector off.
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

    /// A path of the host, given as the host sees it (`/etc/hostname`), below the root.
    pub fn path(&self, host_path: impl AsRef<Path>) -> PathBuf {
        let host_path = host_path.as_ref();
        self.root.join(host_path.strip_prefix("/").unwrap_or(host_path))
    }

    /// A path below the root as the host sees it.
    pub fn host_path(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(rest) => format!("/{}", rest.display()),
            Err(_) => path.display().to_string(),
        }
    }

    /// The host's files, which are opened beneath its root.
    pub(crate) fn host(&self) -> std::io::Result<Root> {
        Root::open(&self.root)
    }

    /// Read a small file of the host; absent where it cannot be read or is larger.
    pub(crate) fn bytes(&self, host_path: &str, bytes_max: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = self.host().and_then(|root| root.read(Path::new(host_path))).ok()?.take(bytes_max + 1);
        file.read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= bytes_max).then_some(bytes)
    }

    /// Read a small text file of the host, without the white space around it; absent where it cannot be read or is
    /// empty.
    pub fn text(&self, host_path: &str) -> Option<String> {
        let bytes = self.bytes(host_path, TEXT_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Whether the root is this machine's own.
    pub fn is_this_host(&self) -> bool {
        self.root == Path::new("/")
    }
}

impl std::fmt::Debug for Cx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("root", &self.root).field("once", &self.once).finish_non_exhaustive()
    }
}
