//! Families of operating systems.

use serde::{Deserialize, Serialize};

/// Operating system family. Agents before it was added run on Linux.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsFamily {
    /// Linux.
    #[default]
    Linux,
    /// Windows.
    Windows,
    /// A family of a later release.
    #[serde(other)]
    Other,
}

impl OsFamily {
    pub(crate) fn is_linux(&self) -> bool {
        *self == Self::Linux
    }

    /// Name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Other => "other",
        }
    }

    /// `type_id` and `type` of OCSF's `os` object.
    pub(crate) fn ocsf(self) -> (u16, &'static str) {
        match self {
            Self::Linux => (200, "Linux"),
            Self::Windows => (100, "Windows"),
            Self::Other => (99, "Other"),
        }
    }
}
