//! The configuration as it is written. What it resolves to is [`resolved::Resolved`].

mod layers;
mod reference;
mod resolved;

pub(crate) use layers::{Sources, load, no_color, proxy_variable};
pub(crate) use reference::{collectors_page, configuration_page, default_file};
pub(crate) use resolved::{
    BASELINE_BYTES, CollectorPlan, HostPlace, Memory, Resolved, parse_url as parse_workspace_url,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use vedette_collectors::settings::{Bytes, Interval};
use vedette_transport::tls::Roots;
use vedette_wire::Compression;

/// The whole configuration; every section has defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) workspace: Workspace,
    pub(crate) identity: Identity,
    pub(crate) state: State,
    pub(crate) host: Host,
    pub(crate) transport: Transport,
    pub(crate) limits: Limits,
    pub(crate) log: Log,
    pub(crate) policy: PolicySection,
    pub(crate) collectors: BTreeMap<String, toml::Table>,
}

/// Where data goes. `vedette enroll` notes all of it; what is stated here as well must agree.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workspace {
    /// Address of the workspace, `https://host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// The workspace's CA certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Whose certificates are taken for the workspace's authority: `ca` (its CA certificate), `platform` (those that the
    /// operating system trusts, or that `SSL_CERT_FILE` and `SSL_CERT_DIR` name) or `both`. The workspace's certificate has
    /// to carry the geography all the same.
    #[schemars(with = "String")]
    pub(crate) roots: Roots,
    /// Geography of the workspace: `united-states`, `europe`, `asia-pacific` or `australia`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) geo: Option<String>,
    /// HTTP proxy towards the workspace, `http://host:port` or `http://user:password@host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<String>,
    /// Who is reached without it, with commas between: names, domains (`.example.net`), addresses and networks
    /// (`10.0.0.0/8`). The agent reads no `NO_PROXY` from its environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_proxy: Option<String>,
    /// A workspace that took no batch for so long is left for its pair, where the policy names one; 1s to 1h.
    pub(crate) fail_over_after: Interval,
    /// The preferred one is gone back to when it has taken every batch that it was tried with for so long; 1s to 1d.
    pub(crate) fail_back_after: Interval,
}

/// Who this agent is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Identity {
    /// Directory of key, certificate, enrollment and policy; only the agent writes there.
    pub(crate) dir: PathBuf,
    /// File that enrolls the agent at its first start, and is deleted then: docs/provisioning.md.
    pub(crate) bootstrap: PathBuf,
}

/// What survives a restart.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// Directory of the queue and of the status socket.
    pub(crate) dir: PathBuf,
}

/// The machine that is observed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Host {
    /// Its root: `/`, or where a container mounts it.
    pub(crate) root: PathBuf,
    /// Geography that it stands in: `united-states`, `brazil`, `canada`, `europe`, `united-kingdom`, `asia-pacific`, `japan`,
    /// `india` or `australia`. Where it is not set, that of the cloud's region. What the host sends goes to the workspace
    /// geography of it and to no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) geography: Option<String>,
    /// Cloud whose instance metadata is asked: `auto` (the one that the firmware names), `off`, `azure`, `aws` or `gcp`.
    #[schemars(with = "String")]
    pub(crate) cloud: CloudSetting,
    /// Tags of the cloud's machine that are part of the host's record.
    pub(crate) cloud_tags: Vec<String>,
    /// Base address of the metadata service, where it is not `http://169.254.169.254`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata_url: Option<String>,
}

/// Cloud whose metadata is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CloudSetting {
    #[default]
    Auto,
    Off,
    Azure,
    Aws,
    Gcp,
}

/// How records are batched, kept and sent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Transport {
    /// Codec of batches: `zstd` or `gzip`.
    #[schemars(with = "String")]
    pub(crate) compression: Compression,
    /// Records of a batch in bytes before compression, 64KiB to 8MiB; compressed it has 2MiB at the most. Where it is not
    /// set: 8MiB, or an eighth of `memory_max` or a sixteenth of `queue_bytes_max` where that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch_bytes_max: Option<Bytes>,
    /// Records of a batch, 1 to 1000000.
    pub(crate) batch_records_max: u32,
    /// Age of the first record at which a batch is sealed, 50ms to 5m.
    pub(crate) batch_age_max: Interval,
    /// Size of the queue's file; when it is reached, sources wait. At least 16MiB, and 16 batches.
    pub(crate) queue_bytes_max: Bytes,
    /// Percent of its volume that the queue's file may take, 1 to 100; the smaller of both limits holds.
    pub(crate) queue_volume_percent_max: u8,
    /// Bytes of the volume that the queue leaves free for others.
    pub(crate) disk_free_min: Bytes,
    /// Inodes of the volume below which the queue takes nothing more.
    pub(crate) inodes_free_min: u64,
}

/// What the agent may take of the machine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    /// Resident memory (VmRSS) by which batches, queue and what waits are planned; at least 32MiB. It is not enforced: catching
    /// up took 59MiB of 64MiB, and 38MiB of 32MiB.
    pub(crate) memory_max: Bytes,
}

/// What the agent says of itself on stderr.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Least severe messages: `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) level: String,
    /// `text` or `json`.
    pub(crate) format: String,
}

/// How this host follows the organization's policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicySection {
    /// What becomes of what was observed and queued before the policy switched collection off: `send`, or `purge`.
    #[schemars(with = "String")]
    pub(crate) on_disable: OnDisable,
    /// Where sources go on when it is switched on again: `end`, so that nothing is collected that was written meanwhile, or
    /// `cursor`, where they were left.
    #[schemars(with = "String")]
    pub(crate) resume: ResumeAt,
}

/// What becomes of what is queued when collection is switched off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnDisable {
    #[default]
    Send,
    Purge,
}

/// Where sources go on when collection is switched on again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResumeAt {
    #[default]
    End,
    Cursor,
}

impl Default for Identity {
    fn default() -> Self {
        Self { dir: "/var/lib/vedette/identity".into(), bootstrap: "/etc/vedette/bootstrap.toml".into() }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/vedette/state".into() }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: "/".into(),
            geography: None,
            cloud: CloudSetting::Auto,
            cloud_tags: Vec::new(),
            metadata_url: None,
        }
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Self {
            url: None,
            ca: None,
            roots: Roots::Ca,
            geo: None,
            proxy: None,
            no_proxy: None,
            fail_over_after: Interval(Duration::from_secs(60)),
            fail_back_after: Interval(Duration::from_secs(300)),
        }
    }
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd,
            batch_bytes_max: None,
            batch_records_max: 100_000,
            batch_age_max: Interval(Duration::from_secs(1)),
            queue_bytes_max: Bytes(1 << 30),
            queue_volume_percent_max: 20,
            disk_free_min: Bytes(128 << 20),
            inodes_free_min: 1000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_max: Bytes(64 << 20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned() }
    }
}

/// A section of the file: its name, how it is checked, and what the reference says of it.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
    pub(crate) schema: fn() -> schemars::Schema,
    pub(crate) defaults: fn() -> toml::Table,
}

macro_rules! sections {
    ($($name:literal $section:ty),*) => {
        /// Every section but `[collectors.…]`, which the registry describes.
        pub(crate) const SECTIONS: &[Section] = &[$(Section {
            name: $name,
            check: |value| <$section>::deserialize(value).map(drop),
            schema: || schemars::schema_for!($section),
            defaults: || toml::Table::try_from(<$section>::default()).expect("sections are tables"),
        }),*];
    };
}
sections!("workspace" Workspace, "identity" Identity, "state" State, "host" Host, "transport" Transport, "limits" Limits, "log" Log,
    "policy" PolicySection);
