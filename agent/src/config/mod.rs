//! The configuration as written. It resolves to [`resolved::Resolved`].

mod layers;
mod reference;
mod resolved;

#[cfg(fuzzing)]
pub(crate) use layers::load_text;
pub(crate) use layers::{Sources, credentials_dir, load, no_color, proxy_variable};
pub(crate) use reference::{collectors_page, configuration_page, default_file};
pub(crate) use resolved::{
    BASELINE_BYTES, ConfiguredCollector, HostLocation, Memory, Resolved, collector_context,
    parse_url as parse_workspace_url,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};
use vedette_collectors::settings::{Bytes, Interval};
use vedette_platform::LOCATIONS;
use vedette_transport::tls::Roots;
use vedette_wire::Compression;

/// The whole configuration. All sections have defaults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) workspace: Workspace,
    pub(crate) identity: Identity,
    pub(crate) state: State,
    pub(crate) host: Host,
    pub(crate) transport: Transport,
    pub(crate) limits: ResourceLimits,
    pub(crate) log: Log,
    pub(crate) metrics: Metrics,
    pub(crate) policy: PolicySection,
    pub(crate) collectors: BTreeMap<String, toml::Table>,
}

/// The destination. `vedette enroll` records `url`, `ca` and `geo`; where the
/// configuration sets one of these too, it must have the same value.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Workspace {
    /// URL of the workspace, `https://host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// CA certificate of the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Trusted certificate authorities of the workspace: `ca` (its CA certificate), `platform` (those of the operating system,
    /// or of `SSL_CERT_FILE` and `SSL_CERT_DIR`) or `both`. The workspace's certificate must carry its geography in any case.
    #[schemars(with = "String")]
    pub(crate) roots: Roots,
    /// Geography of the workspace: `united-states`, `europe`, `asia-pacific` or `australia`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) geo: Option<String>,
    /// HTTP proxy to the workspace, `http://host:port` or `http://user:password@host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<String>,
    /// Hosts to reach without the proxy, comma-separated: names, domains (`.example.net`), addresses and networks
    /// (`10.0.0.0/8`). The agent does not read `NO_PROXY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_proxy: Option<String>,
    /// Time without a delivered batch after which the agent fails over to the other workspace of the pair, if the policy names
    /// one; 1s to 1h.
    pub(crate) fail_over_after: Interval,
    /// Time for which the preferred workspace must accept every probe before the agent fails back to it; 1s to 1d.
    pub(crate) fail_back_after: Interval,
}

/// Identity of the agent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Identity {
    /// Directory of key, certificate, enrollment and policy; only the agent writes to it.
    pub(crate) dir: PathBuf,
    /// File that enrolls the agent at its first start and is then deleted; see docs/provisioning.md.
    pub(crate) bootstrap: PathBuf,
}

/// State that survives a restart.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// Directory of the queue.
    pub(crate) dir: PathBuf,
    /// Directory of the status socket. By default `/run/vedette` if `dir` is the default, and `dir` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket_dir: Option<PathBuf>,
}

/// The observed host.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Host {
    /// Its root directory: `/`, or the mount point in a container.
    pub(crate) root: PathBuf,
    /// Geography of the host: `united-states`, `brazil`, `canada`, `europe`, `united-kingdom`, `asia-pacific`, `japan`, `india`
    /// or `australia`. By default that of the cloud's region. The host's data goes only to the workspace geography that serves
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) geography: Option<String>,
    /// Cloud whose instance metadata to query: `auto` (the one that the firmware names), `off`, `azure`, `aws` or `gcp`.
    #[schemars(with = "String")]
    pub(crate) cloud: CloudSetting,
    /// Tags of the cloud's machine to include in the host's record.
    pub(crate) cloud_tags: Vec<String>,
    /// Base URL of the metadata service, if not `http://169.254.169.254`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metadata_url: Option<String>,
}

/// Cloud whose metadata to query.
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

/// Batching, queueing and sending.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Transport {
    /// Codec of batches: `zstd` or `gzip`.
    #[schemars(with = "String")]
    pub(crate) compression: Compression,
    /// Maximum size of a batch's records in bytes, unpacked and before compression, 64KiB to 8MiB; compressed at most 2MiB. By
    /// default 8MiB, or an eighth of `memory_max` or a sixteenth of `queue_bytes_max` if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch_bytes_max: Option<Bytes>,
    /// Maximum number of records in a batch, 1 to 1000000.
    pub(crate) batch_records_max: u32,
    /// Age of a batch's first record at which the batch is sealed, 50ms to 5m.
    pub(crate) batch_age_max: Interval,
    /// Maximum size of the queue file; sources wait when it is reached. At least 16MiB, and 16 batches.
    pub(crate) queue_bytes_max: Bytes,
    /// Maximum percentage of the volume for the queue file, 1 to 100; if
    /// `queue_bytes_max` is less, that applies.
    pub(crate) queue_volume_percent_max: u8,
    /// Free bytes that the queue leaves on the volume.
    pub(crate) disk_free_min: Bytes,
    /// Number of free inodes below which the queue takes nothing.
    pub(crate) inodes_free_min: u64,
}

/// Limits of resources.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ResourceLimits {
    /// Target for resident memory (VmRSS), from which the sizes of batches, queue cache and buffers follow; at least 32MiB. It
    /// is not enforced: an agent with a backlog used 59MiB at a target of 64MiB, and 38MiB at 32MiB.
    pub(crate) memory_max: Bytes,
}

/// Log messages on standard error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// Lowest level to log: `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) level: String,
    /// Format: `text` or `json`.
    pub(crate) format: String,
}

/// Metrics of the agent for Prometheus; `vedette status --format prometheus` prints the same.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Loopback address for `GET /metrics`, as in "127.0.0.1:9464"; absent, the agent does not listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
}

/// How this host follows the organization's policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicySection {
    /// What to do with queued records when the policy switches collection off: `send` or `purge`.
    #[schemars(with = "String")]
    pub(crate) on_disable: OnDisable,
    /// Where sources continue when collection is switched on again: `end`, which collects nothing written meanwhile, or
    /// `cursor`, where they stopped.
    #[schemars(with = "String")]
    pub(crate) resume: ResumeAt,
}

/// What to do with queued records when collection is switched off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnDisable {
    #[default]
    Send,
    Purge,
}

/// Where sources continue when collection is switched on again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResumeAt {
    #[default]
    End,
    Cursor,
}

impl Default for Identity {
    fn default() -> Self {
        Self { dir: LOCATIONS.identity.into(), bootstrap: LOCATIONS.bootstrap.into() }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { dir: LOCATIONS.state.into(), socket_dir: None }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: LOCATIONS.root.into(),
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

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { memory_max: Bytes(64 << 20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned() }
    }
}

/// A section of the file: its name, its check, and its reference text.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
    pub(crate) schema: fn() -> schemars::Schema,
    pub(crate) defaults: fn() -> toml::Table,
}

macro_rules! sections {
    ($($name:literal $section:ty),*) => {
        /// All sections except `[collectors.…]`, which the registry describes.
        pub(crate) const SECTIONS: &[Section] = &[$(Section {
            name: $name,
            check: |value| <$section>::deserialize(value).map(drop),
            schema: || schemars::schema_for!($section),
            defaults: || toml::Table::try_from(<$section>::default()).expect("sections are tables"),
        }),*];
    };
}
sections!("workspace" Workspace, "identity" Identity, "state" State, "host" Host, "transport" Transport, "limits" ResourceLimits, "log" Log, "metrics" Metrics,
    "policy" PolicySection);
