//! Permissions that collectors need, and whether this process has them.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(windows)]
use windows as platform;

/// A right of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// A capability (capabilities(7)), by name.
    Capability(&'static str),
    /// Membership in a group, by name.
    Group(&'static str),
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Capability(name) => f.write_str(name),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// A permission, and what a collector cannot observe without it.
#[derive(Debug, Clone, Copy)]
pub struct Permission {
    /// Any of these suffices.
    pub any_of: &'static [Right],
    /// What is lost without them.
    pub lost: &'static str,
}

impl Permission {
    /// Its rights, as in "group adm or CAP_DAC_READ_SEARCH".
    pub fn names(&self) -> String {
        self.any_of.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    }
}

/// Permissions that this process lacks.
pub fn missing(permissions: &'static [Permission]) -> Vec<&'static Permission> {
    permissions.iter().filter(|permission| !permission.any_of.iter().any(platform::has)).collect()
}
