//! Geographies: the location of a host, and the workspace geography that stores its data.

mod regions;

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

/// An unknown geography name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a workspace geography; use united-states, europe, asia-pacific or australia")]
pub struct UnknownGeo(String);

impl WorkspaceGeo {
    /// All workspace geographies.
    pub const ALL: [WorkspaceGeo; 4] =
        [WorkspaceGeo::UnitedStates, WorkspaceGeo::Europe, WorkspaceGeo::AsiaPacific, WorkspaceGeo::Australia];

    /// Name in configuration, keys and certificates.
    pub fn name(self) -> &'static str {
        match self {
            WorkspaceGeo::UnitedStates => "united-states",
            WorkspaceGeo::Europe => "europe",
            WorkspaceGeo::AsiaPacific => "asia-pacific",
            WorkspaceGeo::Australia => "australia",
        }
    }

    /// URI in the subject alternative name of a workspace's server certificate.
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

/// Geography of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostGeo {
    /// United States.
    UnitedStates,
    /// Brazil.
    Brazil,
    /// Canada.
    Canada,
    /// Europe, without the United Kingdom.
    Europe,
    /// United Kingdom.
    UnitedKingdom,
    /// Asia Pacific, without Japan, India and Australia.
    AsiaPacific,
    /// Japan.
    Japan,
    /// India.
    India,
    /// Australia.
    Australia,
}

/// A public cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cloud {
    /// Microsoft Azure.
    Azure,
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
}

/// Location of an organization's health and recommendations, which contain no records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Central {
    /// United States.
    UnitedStates,
    /// Europe.
    Europe,
}

/// Kinds of stored content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Records, alerts and artifacts: content of a host.
    OfHost,
    /// Health and recommendations: content of an organization.
    OfOrganization,
}

/// Why the geography of a host is unknown. It is never guessed: data in the wrong country cannot be recalled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownGeography {
    /// Unknown name.
    #[error(
        "{0:?} is not a geography; use united-states, brazil, canada, europe, united-kingdom, asia-pacific, japan, india or \
         australia"
    )]
    HostGeo(String),
    /// Unlisted region.
    #[error(
        "region {region:?} of {cloud} is in no geography that is known; set [host] geography to the one whose workspace is to \
         keep this host's data"
    )]
    Region {
        /// The cloud.
        cloud: Cloud,
        /// Region in the instance metadata.
        region: String,
    },
}

impl HostGeo {
    /// All host geographies.
    pub const ALL: [HostGeo; 9] = [
        HostGeo::UnitedStates,
        HostGeo::Brazil,
        HostGeo::Canada,
        HostGeo::Europe,
        HostGeo::UnitedKingdom,
        HostGeo::AsiaPacific,
        HostGeo::Japan,
        HostGeo::India,
        HostGeo::Australia,
    ];

    /// Name in configuration.
    pub fn name(self) -> &'static str {
        match self {
            HostGeo::UnitedStates => "united-states",
            HostGeo::Brazil => "brazil",
            HostGeo::Canada => "canada",
            HostGeo::Europe => "europe",
            HostGeo::UnitedKingdom => "united-kingdom",
            HostGeo::AsiaPacific => "asia-pacific",
            HostGeo::Japan => "japan",
            HostGeo::India => "india",
            HostGeo::Australia => "australia",
        }
    }

    /// Workspace geography for hosts in this geography.
    pub fn workspace(self) -> WorkspaceGeo {
        match self {
            HostGeo::UnitedStates | HostGeo::Brazil | HostGeo::Canada => WorkspaceGeo::UnitedStates,
            HostGeo::Europe | HostGeo::UnitedKingdom => WorkspaceGeo::Europe,
            HostGeo::AsiaPacific | HostGeo::Japan | HostGeo::India => WorkspaceGeo::AsiaPacific,
            HostGeo::Australia => WorkspaceGeo::Australia,
        }
    }

    /// Location of central content for an organization in this geography. The requirement names United States and Europe,
    /// "according to customer's location": every organization outside Europe uses the United States.
    pub fn central(self) -> Central {
        match self {
            HostGeo::Europe | HostGeo::UnitedKingdom => Central::Europe,
            _ => Central::UnitedStates,
        }
    }

    /// Geography of a cloud region.
    ///
    /// # Errors
    /// [`UnknownGeography::Region`].
    pub fn of_region(cloud: Cloud, region: &str) -> Result<Self, UnknownGeography> {
        let name = region.to_ascii_lowercase();
        let found = regions::REGIONS.iter().find(|(of, _, names)| *of == cloud && names.contains(&name.as_str()));
        found
            .map(|(_, geography, _)| *geography)
            .ok_or_else(|| UnknownGeography::Region { cloud, region: region.to_owned() })
    }
}

/// Where content is stored: a host's content in the workspace geography of the host, an organization's content centrally by the
/// location of the organization.
pub fn storage_geo(content: Content, host: HostGeo, organization: HostGeo) -> WorkspaceGeo {
    match (content, organization.central()) {
        (Content::OfHost, _) => host.workspace(),
        (Content::OfOrganization, Central::UnitedStates) => WorkspaceGeo::UnitedStates,
        (Content::OfOrganization, Central::Europe) => WorkspaceGeo::Europe,
    }
}

impl fmt::Display for HostGeo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HostGeo {
    type Err = UnknownGeography;
    fn from_str(text: &str) -> Result<Self, UnknownGeography> {
        Self::ALL
            .into_iter()
            .find(|geography| geography.name() == text)
            .ok_or_else(|| UnknownGeography::HostGeo(text.to_owned()))
    }
}

impl Cloud {
    /// Name in configuration and records.
    pub fn name(self) -> &'static str {
        match self {
            Cloud::Azure => "azure",
            Cloud::Aws => "aws",
            Cloud::Gcp => "gcp",
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of the requirement's table.
    #[test]
    fn each_geography_has_the_workspace_of_the_table() {
        for (hosts, workspace) in [
            (vec![HostGeo::UnitedStates, HostGeo::Brazil, HostGeo::Canada], WorkspaceGeo::UnitedStates),
            (vec![HostGeo::Europe, HostGeo::UnitedKingdom], WorkspaceGeo::Europe),
            (vec![HostGeo::AsiaPacific, HostGeo::Japan, HostGeo::India], WorkspaceGeo::AsiaPacific),
            (vec![HostGeo::Australia], WorkspaceGeo::Australia),
        ] {
            for host in hosts {
                assert_eq!(host.workspace(), workspace, "{host}");
                assert_eq!(host.name().parse(), Ok(host));
            }
        }
    }

    #[test]
    fn a_region_is_where_its_vendor_says_and_an_unknown_one_is_not_guessed() {
        for (cloud, region, geography) in [
            (Cloud::Azure, "eastus2", HostGeo::UnitedStates),
            (Cloud::Azure, "BrazilSouth", HostGeo::Brazil),
            (Cloud::Azure, "uksouth", HostGeo::UnitedKingdom),
            (Cloud::Azure, "koreacentral", HostGeo::AsiaPacific),
            (Cloud::Azure, "centralindia", HostGeo::India),
            (Cloud::Aws, "eu-west-1", HostGeo::Europe),
            (Cloud::Aws, "eu-west-2", HostGeo::UnitedKingdom),
            (Cloud::Aws, "ca-west-1", HostGeo::Canada),
            (Cloud::Aws, "ap-southeast-2", HostGeo::Australia),
            (Cloud::Aws, "ap-southeast-3", HostGeo::AsiaPacific),
            (Cloud::Aws, "ap-northeast-3", HostGeo::Japan),
            (Cloud::Gcp, "europe-west2", HostGeo::UnitedKingdom),
            (Cloud::Gcp, "europe-west10", HostGeo::Europe),
            (Cloud::Gcp, "australia-southeast2", HostGeo::Australia),
        ] {
            assert_eq!(HostGeo::of_region(cloud, region), Ok(geography), "{region}");
        }
        for (cloud, region) in [
            (Cloud::Azure, "southafricanorth"),
            (Cloud::Azure, "chinanorth3"),
            (Cloud::Aws, "me-south-1"),
            (Cloud::Aws, "eastus2"),
            (Cloud::Gcp, "northamerica-south1"),
            (Cloud::Gcp, ""),
        ] {
            let message = HostGeo::of_region(cloud, region).expect_err("is in no table").to_string();
            assert!(message.contains("set [host] geography"), "{message}");
        }
        let mut all: Vec<_> = regions::REGIONS
            .iter()
            .flat_map(|(cloud, _, names)| names.iter().map(move |n| (cloud.name(), n)))
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "no region stands twice");
    }

    /// Alerts stay with the host; central content follows the organization's location.
    #[test]
    fn what_is_of_a_host_stays_in_its_geography_and_what_is_of_an_organization_is_central() {
        use HostGeo::{Australia, Brazil, Canada, Europe, India, Japan, UnitedKingdom, UnitedStates};
        for host in HostGeo::ALL {
            for organization in HostGeo::ALL {
                assert_eq!(storage_geo(Content::OfHost, host, organization), host.workspace());
            }
            for (organization, central) in [
                (UnitedStates, WorkspaceGeo::UnitedStates),
                (Brazil, WorkspaceGeo::UnitedStates),
                (Canada, WorkspaceGeo::UnitedStates),
                (Europe, WorkspaceGeo::Europe),
                (UnitedKingdom, WorkspaceGeo::Europe),
                (HostGeo::AsiaPacific, WorkspaceGeo::UnitedStates),
                (Japan, WorkspaceGeo::UnitedStates),
                (India, WorkspaceGeo::UnitedStates),
                (Australia, WorkspaceGeo::UnitedStates),
            ] {
                assert_eq!(storage_geo(Content::OfOrganization, host, organization), central);
            }
        }
    }
}
