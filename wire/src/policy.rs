//! The organization's policy: what its agents collect, what its workspace keeps, and how far artifacts go.
//!
//! A policy is a JSON text that the workspace signs as it stands (Ed25519, RFC 8032): whoever verifies looks at the bytes
//! that were signed, and a later release may add fields. The revision only grows.

use crate::{AgentId, OrganizationId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// What an organization's policy may switch off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Collection, but for artifacts.
    Free,
    /// Nothing.
    Standard,
}

/// Which security events the workspace keeps ([`crate::security_event`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// None.
    None,
    /// Those that tell of a breach or of an important change.
    Minimal,
    /// A whole trail of users.
    Common,
    /// All.
    All,
}

macro_rules! names {
    ($ty:ty, $expected:literal, $($value:path => $name:literal),*) => {
        impl $ty {
            /// Its name, in policies and on the command line.
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
names!(Store, "none, minimal, common, all",
    Store::None => "none", Store::Minimal => "minimal", Store::Common => "common", Store::All => "all");

/// How far artifact requests may go. They cannot be switched off; a host's own configuration may narrow them further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArtifactLimits {
    /// Globs of host paths that may be asked for; none means all that the host itself allows.
    pub paths: Vec<String>,
    /// Bytes of one artifact.
    pub bytes_max: u64,
    /// Artifacts of one agent in an hour.
    pub per_hour_max: u32,
}

impl Default for ArtifactLimits {
    fn default() -> Self {
        Self { paths: Vec::new(), bytes_max: 1 << 30, per_hour_max: 60 }
    }
}

/// What a policy says of one collector. What it reads is never said from outside: that is the host's own affair.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorPolicy {
    /// Whether it runs; absent, the host's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Seconds between two looks; absent, the host's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u32>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Grows with every change.
    pub revision: u64,
    /// When it was made, nanoseconds UTC.
    pub issued: i64,
    /// The organization's tier.
    pub tier: Tier,
    /// Whether collectors of class inventory, event and crash run.
    pub collect: bool,
    /// What the workspace keeps.
    pub store: Store,
    /// How far artifact requests go.
    #[serde(default)]
    pub artifacts: ArtifactLimits,
    /// Workspaces that agents deliver to, `https://host:port`: the first is preferred, the others are its pair in the same
    /// geography. None means the one that each agent was enrolled at, which comes last where it is not named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Single collectors, by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub collectors: BTreeMap<String, CollectorPolicy>,
    /// Agents of the organization that are revoked, each with the time, nanoseconds UTC: the newest [`REVOKED_MAX`]. A workspace
    /// that is restored from a backup takes them from the policy that an agent brings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked: BTreeMap<AgentId, i64>,
}

/// Most revoked agents that a policy names.
pub const REVOKED_MAX: usize = 1000;

impl Policy {
    /// The first one of an organization: everything is collected and kept.
    pub fn first(organization: OrganizationId, tier: Tier, issued: i64) -> Self {
        Self {
            organization,
            revision: 1,
            issued,
            tier,
            collect: true,
            store: Store::All,
            artifacts: ArtifactLimits::default(),
            endpoints: Vec::new(),
            collectors: BTreeMap::new(),
            revoked: BTreeMap::new(),
        }
    }

    /// Adds a revoked agent, and gives up the oldest ones beyond [`REVOKED_MAX`].
    pub fn revoke(&mut self, agent: AgentId, time: i64) {
        self.revoked.insert(agent, time);
        while self.revoked.len() > REVOKED_MAX {
            let oldest = self.revoked.iter().min_by_key(|(_, time)| **time).map(|(agent, _)| *agent);
            self.revoked.remove(&oldest.expect("there is one"));
        }
    }

    /// Whether a collector's records are allowed by it. What the standard tier requires is allowed whatever is said of that
    /// collector alone: an agent runs it where nothing else of its group observes anything.
    pub fn allows(&self, collector: &str) -> bool {
        let off = self.collectors.get(collector).is_some_and(|collector| collector.enabled == Some(false));
        let required = || REQUIRED.iter().any(|(_, ids)| ids.contains(&collector));
        !off || self.tier == Tier::Standard && required()
    }

    /// Whether its tier allows what it says.
    ///
    /// # Errors
    /// What is not allowed, and what to do.
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
            return Err("a collector looks at least once a day, and not more than once a second".to_owned());
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

/// A policy as it travels and lies on disk: the text that was signed, and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPolicy {
    /// The policy, JSON.
    pub policy: String,
    /// Ed25519 over [`SignedPolicy::message`], hex.
    pub signature: String,
}

impl SignedPolicy {
    /// What is signed: a text that no other signature of this key begins with, and the policy as it stands.
    pub fn message(policy: &str) -> Vec<u8> {
        [b"vedette policy 1\n", policy.as_bytes()].concat()
    }
}

/// Endpoints of a policy.
const ENDPOINTS_MAX: usize = 8;

/// Every collector, and whether it looks at intervals.
pub const COLLECTORS: &[(&str, bool)] = &[
    ("host", true),
    ("processes", true),
    ("addresses", true),
    ("sessions", true),
    ("syslog", false),
    ("syslog_listener", false),
    ("journal", false),
    ("crash_dumps", true),
    ("artifacts", false),
];

/// Collectors that the standard tier requires, by what they are for: of each group one at least runs.
pub const REQUIRED: &[(&str, &[&str])] = &[
    ("machine facts", &["host"]),
    ("network addresses", &["addresses"]),
    ("running processes", &["processes"]),
    ("logged-in users", &["sessions"]),
    ("operating system logs", &["syslog", "journal"]),
    ("crash dumps", &["crash_dumps"]),
];

/// A request for a file of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRequest {
    /// Its id, a UUID.
    pub id: String,
    /// Organization that asks.
    pub organization: OrganizationId,
    /// Agent that is asked.
    pub agent: AgentId,
    /// Path on the host.
    pub path: String,
    /// When it was made, nanoseconds UTC.
    pub issued: i64,
    /// When it is over, nanoseconds UTC.
    pub expires: i64,
}

/// A request as it travels: the text that was signed, and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// The request, JSON.
    pub request: String,
    /// Ed25519 over [`SignedRequest::message`] by the policy key, hex.
    pub signature: String,
}

impl SignedRequest {
    /// What is signed: a text that no policy's signature begins with, and the request as it stands.
    pub fn message(request: &str) -> Vec<u8> {
        [b"vedette artifact 1\n", request.as_bytes()].concat()
    }
}

/// What the workspace has for an agent: the answer to its long poll.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directives {
    /// The policy in force, where the agent has an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<SignedPolicy>,
    /// Open requests for artifacts; each is told again now and then until it is answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<SignedRequest>,
    /// The agent has a policy that the workspace has not, which was restored from a backup: it brings it (`POST /v1/policy`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bring_policy: bool,
}
