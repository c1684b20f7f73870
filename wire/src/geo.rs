//! Geographies: where a host stands, and which workspace geography keeps its data.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Geography of a workspace. Collected data never leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkspaceGeo {
    /// United States; also serves Brazil and Canada.
    UnitedStates,
    /// Europe; also serves the United Kingdom.
    Europe,
    /// Asia Pacific; also serves Japan and India.
    AsiaPacific,
    /// Australia.
    Australia,
}

/// A geography that is not one of those known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a workspace geography; use united-states, europe, asia-pacific or australia")]
pub struct UnknownGeo(String);

impl WorkspaceGeo {
    /// All of them.
    pub const ALL: [WorkspaceGeo; 4] =
        [WorkspaceGeo::UnitedStates, WorkspaceGeo::Europe, WorkspaceGeo::AsiaPacific, WorkspaceGeo::Australia];

    /// The name used in configuration, keys and certificates.
    pub fn name(self) -> &'static str {
        match self {
            WorkspaceGeo::UnitedStates => "united-states",
            WorkspaceGeo::Europe => "europe",
            WorkspaceGeo::AsiaPacific => "asia-pacific",
            WorkspaceGeo::Australia => "australia",
        }
    }

    /// The URI that a workspace's server certificate carries as subject alternative name.
    pub fn uri(self) -> String {
        format!("urn:vedette:geo:{}", self.name())
    }
}

impl fmt::Display for WorkspaceGeo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WorkspaceGeo {
    type Err = UnknownGeo;
    fn from_str(text: &str) -> Result<Self, UnknownGeo> {
        Self::ALL.into_iter().find(|geo| geo.name() == text).ok_or_else(|| UnknownGeo(text.to_owned()))
    }
}
