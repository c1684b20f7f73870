//! `manifest.toml`: what each package contains.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// All packages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    #[serde(rename = "package")]
    pub(crate) packages: Vec<Package>,
}

/// A package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Cargo package.
    #[serde(rename = "crate")]
    pub(crate) cargo: String,
    /// Name of its binary.
    pub(crate) program: String,
    pub(crate) summary: String,
    pub(crate) description: String,
    pub(crate) deb_depends: Vec<String>,
    pub(crate) rpm_requires: Vec<String>,
    /// Its systemd unit.
    pub(crate) unit: String,
    /// Files whose format an earlier release cannot read, with the newest format that this one knows.
    #[serde(default)]
    pub(crate) formats: Vec<StoredFormat>,
    /// Directories that purge deletes.
    pub(crate) state: Vec<String>,
    /// Its container image.
    pub(crate) image: Image,
    pub(crate) files: Vec<File>,
}

/// A number in a file, which a downgrade must not exceed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredFormat {
    pub(crate) path: String,
    pub(crate) newest: u64,
}

/// What an image has besides its files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Image {
    /// User and group id of its process.
    pub(crate) user: u32,
    /// Directories that belong to that user.
    pub(crate) directories: Vec<String>,
    /// Capabilities of the program's file (capabilities(7)), permitted; the program makes them effective.
    #[serde(default)]
    pub(crate) capabilities: Vec<Capability>,
    /// Arguments of the program.
    pub(crate) arguments: Vec<String>,
    /// Variables of the environment.
    pub(crate) environment: Vec<String>,
}

/// A capability (linux/capability.h).
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Capability {
    CapDacReadSearch = 2,
    CapSysPtrace = 19,
}

/// Where a file is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// In deb, rpm and tar.
    #[default]
    Packages,
    /// In the image.
    Image,
    /// In all of them.
    All,
}

/// A file of a package, or several with a wildcard in `source`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// `bin:NAME`, `made:PATH`, or a path in the repository.
    pub(crate) source: String,
    /// Path on the host; a directory if it ends in a slash.
    pub(crate) to: String,
    #[serde(default = "default_mode")]
    pub(crate) mode: String,
    /// Configuration, which an upgrade does not overwrite.
    #[serde(default)]
    pub(crate) conffile: bool,
    #[serde(default)]
    pub(crate) gzip: bool,
    #[serde(default, rename = "in")]
    pub(crate) form: Form,
}

fn default_mode() -> String {
    "0644".to_owned()
}

impl Manifest {
    /// Reads the manifest of a repository.
    ///
    /// # Errors
    /// It cannot be read, or has a typo.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let path = root.join("packaging/manifest.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is wrong", path.display()))
    }
}
