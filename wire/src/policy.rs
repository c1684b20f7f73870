//! The organization's policy: what its agents collect, what its workspace keeps, and the limits of artifact requests.
//!
//! A policy is a JSON text that the workspace signs verbatim (Ed25519, RFC 8032). A verifier checks the signed bytes, so later
//! releases can add fields. Revisions only grow.

use crate::{AgentId, OrganizationId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Tier: what an organization pays for. The variants state what its policy may switch off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// All collection except artifacts.
    Free,
    /// Single collectors that no required group needs.
    Standard,
}

/// Store level: which security events the workspace keeps ([`crate::security_event`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreLevel {
    /// None.
    None,
    /// Events that indicate a breach or an important change.
    Minimal,
    /// A complete trail of user activity.
    Common,
    /// All.
    All,
}

macro_rules! names {
    ($ty:ty, $expected:literal, $($value:path => $name:literal),*) => {
        impl $ty {
            /// Name in policies and on the command line.
            pub fn name(self) -> &'static str {
                match self { $($value => $name),* }
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
        impl TryFrom<String> for $ty {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl FromStr for $ty {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                [$($value),*].into_iter().find(|value| value.name() == text)
                    .ok_or_else(|| format!("{text:?} is not one of {}", $expected))
            }
        }
    };
}
names!(Tier, "free, standard", Tier::Free => "free", Tier::Standard => "standard");
names!(StoreLevel, "none, minimal, common, all",
    StoreLevel::None => "none", StoreLevel::Minimal => "minimal", StoreLevel::Common => "common", StoreLevel::All => "all");

/// Limits of artifact requests. A policy cannot switch artifacts off; a host's configuration may narrow the limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArtifactLimits {
    /// Globs of host paths that may be requested; empty for all paths that the host allows.
    pub paths: Vec<String>,
    /// Maximum size of an artifact in bytes.
    pub bytes_max: u64,
    /// Maximum number of artifacts per agent and hour.
    pub per_hour_max: u32,
}

impl Default for ArtifactLimits {
    fn default() -> Self {
        Self { paths: Vec::new(), bytes_max: 1 << 30, per_hour_max: 60 }
    }
}

/// Policy of one collector. What it reads is set on the host only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorPolicy {
    /// On or off; absent, the host's configuration decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Poll interval in seconds; absent, the host's configuration decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u32>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Organization.
    pub organization: OrganizationId,
    /// Revision; grows with each change.
    pub revision: u64,
    /// Time of issue, nanoseconds UTC.
    pub issued: i64,
    /// Tier of the organization.
    pub tier: Tier,
    /// Whether collectors of the classes inventory, event and crash run.
    pub collect: bool,
    /// Store level.
    pub store: StoreLevel,
    /// Limits of artifact requests.
    #[serde(default)]
    pub artifacts: ArtifactLimits,
    /// Workspaces to deliver to, as `https://host:port`: the preferred one first, then its pair in the same geography. Empty
    /// for the endpoint of each agent's enrollment. That endpoint is the last resort when it is not named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Policies of single collectors, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collectors: BTreeMap<String, CollectorPolicy>,
    /// The newest [`REVOKED_MAX`] revoked agents of the organization, each with its time of revocation, nanoseconds UTC. A
    /// workspace restored from a backup takes them from the policy that an agent brings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked: BTreeMap<AgentId, i64>,
}

/// Maximum number of revoked agents in a policy.
pub const REVOKED_MAX: usize = 100;

impl Policy {
    /// The first policy of an organization: collects and keeps everything.
    pub fn first(organization: OrganizationId, tier: Tier, issued: i64) -> Self {
        Self {
            organization,
            revision: 1,
            issued,
            tier,
            collect: true,
            store: StoreLevel::All,
            artifacts: ArtifactLimits::default(),
            endpoints: Vec::new(),
            collectors: BTreeMap::new(),
            revoked: BTreeMap::new(),
        }
    }

    /// Whether a collector's records are allowed. On the standard tier required collectors are always allowed: an agent runs
    /// one where no other of its group observes anything.
    pub fn allows(&self, collector: &str) -> bool {
        let off = self.collectors.get(collector).is_some_and(|collector| collector.enabled == Some(false));
        let required = || REQUIRED.iter().any(|(_, ids)| ids.contains(&collector));
        !off || self.tier == Tier::Standard && required()
    }

    /// Checks the policy against its tier.
    ///
    /// # Errors
    /// The forbidden setting, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.tier == Tier::Standard && !self.collect {
            return Err(
                "collection cannot be switched off on the standard tier; an organization on the free tier may \
                        (`policy set --tier free --collect off`)"
                    .to_owned(),
            );
        }
        let off = |id: &str| self.collectors.get(id).is_some_and(|collector| collector.enabled == Some(false));
        if self.tier == Tier::Standard
            && let Some((what, ids)) = REQUIRED.iter().find(|(_, ids)| ids.iter().all(|id| off(id)))
        {
            return Err(format!("{what} ({}) cannot be switched off on the standard tier", ids.join(" or ")));
        }
        if off("artifacts") {
            return Err("collector artifacts cannot be switched off by policy; limit it with `--artifacts`".to_owned());
        }
        if self
            .collectors
            .values()
            .any(|collector| collector.every_seconds.is_some_and(|every| !(1..=86_400).contains(&every)))
        {
            return Err("a collector's interval must be 1 s to 1 d".to_owned());
        }
        if self.endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("a policy names {ENDPOINTS_MAX} endpoints at the most"));
        }
        if self.artifacts.bytes_max == 0 || self.artifacts.per_hour_max == 0 {
            return Err("artifacts cannot be switched off by policy; limit them to at least 1 byte and 1 an hour, or \
                        narrow them in the host's own configuration"
                .to_owned());
        }
        Ok(())
    }
}

/// A policy in transit and on disk: the signed text and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    /// The policy as JSON.
    pub policy: String,
    /// Ed25519 over [`SignedPolicy::message`], hex.
    pub signature: String,
}

impl SignedPolicy {
    /// The signed bytes: a prefix that no other signature of this key has, then the policy.
    pub fn message(policy: &str) -> Vec<u8> {
        [b"vedette policy 1\n", policy.as_bytes()].concat()
    }
}

/// Maximum number of endpoints.
const ENDPOINTS_MAX: usize = 8;

/// Header of a policy poll with the collectors of the agent ([`ReportedCollectors`]).
pub const COLLECTORS_HEADER: &str = "vedette-collectors";

/// Maximum number of collectors that an agent reports, and of bytes of an id.
const REPORTED_MAX: usize = 256;
const ID_BYTES_MAX: usize = 64;

/// The collectors of an agent, by id, each with whether it has a poll interval. As text: `host;every,syslog`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedCollectors(pub BTreeMap<String, bool>);

impl fmt::Display for ReportedCollectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (id, has_interval)) in self.0.iter().enumerate() {
            let (comma, every) = (if index == 0 { "" } else { "," }, if *has_interval { ";every" } else { "" });
            write!(f, "{comma}{id}{every}")?;
        }
        Ok(())
    }
}

/// A text is not a list of collectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list of collectors is not ID[;every],…")]
pub struct ReportedError;

impl FromStr for ReportedCollectors {
    type Err = ReportedError;
    fn from_str(text: &str) -> Result<Self, ReportedError> {
        let is_id = |id: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)
        };
        let one = |part: &str| {
            let mut parts = part.split(';');
            let id = parts.next().filter(|id| is_id(id)).ok_or(ReportedError)?;
            // A later release may say more.
            Ok((id.to_owned(), parts.any(|part| part == "every")))
        };
        let all: BTreeMap<String, bool> = text.split(',').take(REPORTED_MAX + 1).map(one).collect::<Result<_, _>>()?;
        if all.len() > REPORTED_MAX { Err(ReportedError) } else { Ok(Self(all)) }
    }
}

/// Groups of collectors that the standard tier requires, by purpose; at least one of each group runs.
pub const REQUIRED: &[(&str, &[&str])] = &[
    ("machine facts", &["host"]),
    ("network addresses", &["addresses"]),
    ("running processes", &["processes"]),
    ("logged-in users", &["sessions"]),
    ("operating system logs", &["syslog", "journal"]),
    ("crash dumps", &["crash_dumps"]),
];

/// A request for a file of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRequest {
    /// Id, a UUID.
    pub id: String,
    /// Requesting organization.
    pub organization: OrganizationId,
    /// Agent of the host.
    pub agent: AgentId,
    /// Path on the host.
    pub path: String,
    /// Time of issue, nanoseconds UTC.
    pub issued: i64,
    /// Time of expiry, nanoseconds UTC.
    pub expires: i64,
}

/// A request in transit: the signed text and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// The request as JSON.
    pub request: String,
    /// Ed25519 over [`SignedRequest::message`] by the policy key, hex.
    pub signature: String,
}

impl SignedRequest {
    /// The signed bytes: a prefix that no policy has, then the request.
    pub fn message(request: &str) -> Vec<u8> {
        [b"vedette artifact 1\n", request.as_bytes()].concat()
    }
}

/// The workspace's answer to a policy poll.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directives {
    /// The policy in force, if the agent has an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SignedPolicy>,
    /// Open artifact requests; each is repeated until it is answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<SignedRequest>,
    /// The workspace was restored from a backup and lacks the agent's policy: the agent sends it (`POST /v1/policy`).
    #[serde(default, rename = "bring_policy", skip_serializing_if = "std::ops::Not::not")]
    pub wants_policy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reported_collectors_are_read_as_written_and_nothing_else_is() {
        let all = ReportedCollectors([("host".to_owned(), true), ("syslog".to_owned(), false)].into());
        assert_eq!((all.to_string().as_str(), all.to_string().parse()), ("host;every,syslog", Ok(all.clone())));
        let many = (0..=REPORTED_MAX).map(|number| format!("c{number}")).collect::<Vec<_>>().join(",");
        assert_eq!("host;often;every".parse(), Ok(ReportedCollectors([("host".to_owned(), true)].into())));
        for wrong in ["", "a b", "é", "host,,syslog", &"x".repeat(65), &many] {
            assert_eq!(wrong.parse::<ReportedCollectors>(), Err(ReportedError), "{wrong}");
        }
        assert!(many.rsplit_once(',').expect("has some").0.parse::<ReportedCollectors>().is_ok());
    }
}
