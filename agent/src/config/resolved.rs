//! The resolved configuration: values that are consistent and ready to use.

use super::{CloudSetting, Config, Host, Log, PolicySection, Workspace};
use crate::platform::LOCATIONS;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;
use vedette_collectors::{AnySettings, CollectorContext, REGISTRY, Spec, settings::Bytes};
use vedette_transport::{
    BatchLimits, CACHE_BYTES, Quota, SEALED_BYTES_MAX,
    tls::{Proxy, Roots},
};
use vedette_wire::geo::{HostGeo, UnknownGeo, UnknownGeography, WorkspaceGeo};

/// Origin of each key: `file:line`, or the name of a variable.
pub(super) type Origins = BTreeMap<String, String>;

/// A collector and its settings.
#[derive(Debug, Clone)]
pub(crate) struct ConfiguredCollector {
    pub(crate) spec: &'static Spec,
    pub(crate) settings: AnySettings,
}

/// Assumed resident memory before collection starts, if less is measured.
pub(crate) const BASELINE_BYTES: u64 = 12 << 20;

/// Upper bound of the default batch size. Large batches are cheaper: each one costs an fsync, a request and a deletion.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// Division of `memory_max`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Chunks in the intake.
    pub(crate) intake: usize,
    /// Batches in flight.
    pub(crate) in_flight: usize,
}

/// Maximum for the intake, however much memory there is.
const INTAKE_BYTES_MAX: u64 = 2 << 20;

impl Memory {
    /// Page cache of the queue.
    pub(crate) fn cache(memory_max: u64) -> u64 {
        (memory_max / 10).min(CACHE_BYTES as u64)
    }

    /// Divides `memory_max`. Baseline, open batches and page cache come first. Of the rest, intake and batches in flight get an
    /// eighth each, and at least 1 MiB. More than half remains for collectors and for the allocator, since much memory is
    /// allocated by one thread and freed by another.
    pub(crate) fn plan(memory_max: u64, baseline: u64, batch_bytes_max: u64) -> Self {
        // For incompressible records: the sealed parts of the two open batches, the frame of one, and its copy in the
        // database's pages, which are rounded up.
        let sealed = batch_bytes_max.min(SEALED_BYTES_MAX as u64);
        let rest = memory_max.saturating_sub(baseline + 5 * sealed + Self::cache(memory_max));
        let eighth = (rest / 8).max(1 << 20);
        Self { intake: eighth.min(INTAKE_BYTES_MAX) as usize, in_flight: eighth as usize }
    }
}

/// Location of the host, as configured.
#[derive(Debug, Clone)]
pub(crate) struct HostLocation {
    pub(crate) cloud: CloudSetting,
    pub(crate) geography: Option<HostGeo>,
    pub(crate) metadata_url: Option<Url>,
    pub(crate) cloud_tags: Vec<String>,
}

/// The configuration in force.
#[derive(Clone)]
pub(crate) struct Resolved {
    pub(crate) workspace_url: Option<Url>,
    pub(crate) workspace_ca: Option<PathBuf>,
    pub(crate) roots: Roots,
    pub(crate) workspace_geo: Option<WorkspaceGeo>,
    pub(crate) proxy: Option<Proxy>,
    /// Time of failure before fail-over, and of success before fail-back.
    pub(crate) fail_over: (Duration, Duration),
    pub(crate) identity_dir: PathBuf,
    pub(crate) bootstrap: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) socket_dir: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) place: HostLocation,
    pub(crate) batches: BatchLimits,
    pub(crate) quota: Quota,
    pub(crate) memory_max: u64,
    pub(crate) log_level: tracing::Level,
    pub(crate) log_json: bool,
    /// Loopback address for metrics.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) policy: PolicySection,
    pub(crate) collectors: Vec<ConfiguredCollector>,
    /// SHA-256 of all settings before resolution, hex; identifies the configuration.
    pub(crate) digest: String,
    /// The same without `[log]` and `[collectors]`, whose changes need no restart of the tasks.
    pub(crate) restart_digest: String,
}

/// Whether a text is an entry of `no_proxy`: `*`, an address, a network, a name, or a domain with or without a leading dot.
fn is_no_proxy_entry(entry: &str) -> bool {
    use std::net::IpAddr;
    let is_network = |(address, bits): (&str, &str)| match (address.parse(), bits.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => bits <= 128,
        _ => false,
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    entry == "*" || entry.parse::<IpAddr>().is_ok() || entry.split_once('/').is_some_and(is_network) || is_name(entry)
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn report(&mut self, key: &str, message: &str) {
        // A key that no layer sets has the origin of its section, if any.
        let section = key.rsplit_once('.').map_or(key, |(section, _)| section);
        let place = self.origins.get(key).or_else(|| self.origins.get(section));
        self.problems.push(match place {
            Some(place) => format!("{place}: {key}: {message}"),
            None => format!("{key}: {message}"),
        });
    }

    fn check_range<T: PartialOrd>(&mut self, key: &str, value: T, range: std::ops::RangeInclusive<T>, text: &str) {
        if !range.contains(&value) {
            self.report(key, &format!("must be {text}"));
        }
    }

    fn check_absolute(&mut self, key: &str, path: &std::path::Path) {
        if !path.is_absolute() {
            self.report(key, &format!("{} must be an absolute path", path.display()));
        }
    }

    fn proxy(&mut self, workspace: &Workspace) {
        let is_proxy = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.path() == "/";
        if let Some(proxy) = &workspace.proxy {
            if proxy.contains(char::is_whitespace) || !Url::parse(proxy).is_ok_and(is_proxy) {
                self.report("workspace.proxy", "must be http://host:port or https://host:port");
            }
            if self.origins.get("workspace.proxy").is_some_and(|origin| origin.starts_with("--set"))
                && Url::parse(proxy).is_ok_and(|url| url.password().is_some())
            {
                let message = "a password is visible in the list of processes; write it in a file of conf.d";
                self.report("workspace.proxy", message);
            }
        }
        let exempt = workspace.no_proxy.iter().flat_map(|all| all.split(',')).map(str::trim);
        for entry in exempt.filter(|entry| !entry.is_empty() && !is_no_proxy_entry(entry)) {
            self.report("workspace.no_proxy", &format!("{entry:?} is not a name, domain, address or network"));
        }
    }

    fn paths(&mut self, config: &Config) {
        self.check_absolute("identity.bootstrap", &config.identity.bootstrap);
        self.check_absolute("identity.dir", &config.identity.dir);
        self.check_absolute("state.dir", &config.state.dir);
        self.check_absolute("host.root", &config.host.root);
        let root = &config.host.root;
        if root.is_absolute() && !root.is_dir() {
            self.report("host.root", &format!("{} is not a directory; mount the host's root there", root.display()));
        }
    }

    fn log(&mut self, log: &Log) -> tracing::Level {
        if !matches!(log.format.as_str(), "text" | "json") {
            self.report("log.format", "must be text or json");
        }
        log.level.parse().unwrap_or_else(|_| {
            self.report("log.level", "must be error, warn, info, debug or trace");
            tracing::Level::INFO
        })
    }
}

impl Resolved {
    /// Checks the values against each other.
    ///
    /// # Errors
    /// One line per problem.
    pub(super) fn from_config(config: Config, origins: &Origins) -> Result<Self, Vec<String>> {
        let mut checker = Checker { origins, problems: Vec::new() };
        let digest_of = |config: &Config| hex::encode(Sha256::digest(toml::to_string(config).unwrap_or_default()));
        let digest = digest_of(&config);
        let restart_digest =
            digest_of(&Config { log: Log::default(), collectors: Default::default(), ..config.clone() });
        let (workspace_url, workspace_geo) = workspace(&config.workspace, &mut checker);
        let place = host_place(&config.host, workspace_geo, &mut checker);
        checker.proxy(&config.workspace);
        checker.paths(&config);
        let (batches, quota) = transport(&config, &mut checker);
        if config.metrics.listen.is_some_and(|address| !address.ip().is_loopback()) {
            checker.report("metrics.listen", "must be a loopback address, as in 127.0.0.1:9464");
        }
        let log_level = checker.log(&config.log);
        let collectors = collectors(&config.collectors, &config.host.root, &mut checker);
        if !checker.problems.is_empty() {
            return Err(checker.problems);
        }
        let Config { workspace, identity, state, host, limits, log, metrics, policy, .. } = config;
        let no_proxy = workspace.no_proxy.unwrap_or_default();
        Ok(Self {
            workspace_url,
            workspace_ca: workspace.ca,
            roots: workspace.roots,
            workspace_geo,
            proxy: workspace.proxy.map(|url| Proxy { url, no_proxy }),
            fail_over: (workspace.fail_over_after.0, workspace.fail_back_after.0),
            identity_dir: identity.dir,
            bootstrap: identity.bootstrap,
            socket_dir: state.socket_dir.unwrap_or_else(|| match state.dir.as_path() {
                dir if dir == Path::new(LOCATIONS.state) => LOCATIONS.socket.into(),
                dir => dir.to_owned(),
            }),
            state_dir: state.dir,
            root: host.root,
            place,
            batches,
            quota,
            memory_max: limits.memory_max.0,
            log_level,
            log_json: log.format == "json",
            metrics: metrics.listen,
            policy,
            collectors,
            digest,
            restart_digest,
        })
    }

    /// Ids of the enabled collectors.
    pub(crate) fn enabled(&self) -> std::collections::BTreeSet<&'static str> {
        self.collectors
            .iter()
            .filter(|collector| collector.settings.enabled())
            .map(|collector| collector.spec.id)
            .collect()
    }
}

/// Why a text is not the URL of a workspace.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    #[error("{0:?} is not a URL ({1}); write https://host:port")]
    Syntax(String, url::ParseError),
    #[error("{0:?} must be https://host:port; data is sent over TLS only")]
    Scheme(String),
    #[error("{0:?} must be https://host:port, without a path, query or user name")]
    Rest(String),
}

/// Parses `https://host:port` without a path.
pub(crate) fn parse_url(text: &str) -> Result<Url, UrlError> {
    let url = Url::parse(text).map_err(|err| UrlError::Syntax(text.to_owned(), err))?;
    if url.scheme() != "https" || !url.has_host() {
        return Err(UrlError::Scheme(text.to_owned()));
    }
    if url.path() != "/" || url.query().is_some() || !url.username().is_empty() {
        return Err(UrlError::Rest(text.to_owned()));
    }
    Ok(url)
}

/// Context of a collector, without cursors.
pub(crate) fn collector_context(config: &Resolved) -> CollectorContext {
    let context = CollectorContext::new(&config.root, std::sync::Arc::new(crate::now));
    CollectorContext { enabled: config.enabled(), ..context }
}

fn workspace(workspace: &Workspace, checker: &mut Checker<'_>) -> (Option<Url>, Option<WorkspaceGeo>) {
    let url = workspace.url.as_deref();
    let url = url.and_then(|url| parse_url(url).map_err(|err| checker.report("workspace.url", &err.to_string())).ok());
    let geo = workspace
        .geo
        .as_deref()
        .and_then(|geo| geo.parse().map_err(|err: UnknownGeo| checker.report("workspace.geo", &err.to_string())).ok());
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    checker.check_range("workspace.fail_over_after", workspace.fail_over_after.0, second..=hour, "1s to 1h");
    checker.check_range("workspace.fail_back_after", workspace.fail_back_after.0, second..=24 * hour, "1s to 1d");
    if let Some(ca) = workspace.ca.as_ref().filter(|ca| !ca.is_file()) {
        checker.report("workspace.ca", &format!("{} is not a file; use the workspace's ca.pem", ca.display()));
    }
    (url, geo)
}

fn host_place(host: &Host, workspace_geo: Option<WorkspaceGeo>, checker: &mut Checker<'_>) -> HostLocation {
    let geography: Option<HostGeo> = host.geography.as_deref().and_then(|geography| {
        geography.parse().map_err(|err: UnknownGeography| checker.report("host.geography", &err.to_string())).ok()
    });
    let metadata_url = host.metadata_url.as_deref().and_then(|url| {
        let url = Url::parse(url).ok().filter(|url| url.scheme() == "http" && url.has_host());
        if url.is_none() {
            checker.report("host.metadata_url", "must be http://host:port");
        }
        url
    });
    if let (Some(host), Some(workspace)) = (geography, workspace_geo)
        && host.workspace() != workspace
    {
        let message = format!("is {workspace}, and data of a host in {host} belongs to {}", host.workspace());
        checker.report("workspace.geo", &message);
    }
    HostLocation { cloud: host.cloud, geography, metadata_url, cloud_tags: host.cloud_tags.clone() }
}

fn transport(config: &Config, checker: &mut Checker<'_>) -> (BatchLimits, Quota) {
    let (transport, memory_max) = (&config.transport, config.limits.memory_max.0);
    let default_bytes = (memory_max / 8).min(transport.queue_bytes_max.0 / 16);
    let batch_bytes_max = transport.batch_bytes_max.unwrap_or(Bytes(default_bytes.clamp(64 << 10, BATCH_BYTES_MAX))).0;
    checker.check_range("transport.batch_bytes_max", batch_bytes_max, 64 << 10..=8 << 20, "64KiB to 8MiB");
    checker.check_range("transport.batch_records_max", transport.batch_records_max, 1..=1_000_000, "1 to 1000000");
    let ages = Duration::from_millis(50)..=Duration::from_secs(300);
    checker.check_range("transport.batch_age_max", transport.batch_age_max.0, ages, "50ms to 5m");
    checker.check_range(
        "transport.queue_bytes_max",
        transport.queue_bytes_max.0,
        16 << 20..=u64::MAX,
        "at least 16MiB",
    );
    checker.check_range("transport.queue_volume_percent_max", transport.queue_volume_percent_max, 1..=100, "1 to 100");
    checker.check_range("limits.memory_max", memory_max, 32 << 20..=u64::MAX, "at least 32MiB");
    // Two fifths of the quota are for batches, whose space in the database is rounded up.
    let queue_bytes_min = 16 * batch_bytes_max;
    if transport.queue_bytes_max.0 < queue_bytes_min {
        let message = format!("must be at least 16 × batch_bytes_max, {}", Bytes(queue_bytes_min));
        checker.report("transport.queue_bytes_max", &message);
    }
    let batches = BatchLimits {
        bytes_max: batch_bytes_max as usize,
        records_max: transport.batch_records_max as usize,
        age_max: transport.batch_age_max.0,
        compression: transport.compression,
    };
    let quota = Quota {
        bytes_max: transport.queue_bytes_max.0,
        volume_share_max: f64::from(transport.queue_volume_percent_max) / 100.0,
        free_bytes_min: transport.disk_free_min.0,
        free_inodes_min: transport.inodes_free_min,
        cache_bytes: Memory::cache(memory_max) as usize,
    };
    (batches, quota)
}

fn collectors(
    tables: &BTreeMap<String, toml::Table>,
    root: &std::path::Path,
    checker: &mut Checker<'_>,
) -> Vec<ConfiguredCollector> {
    let mut configured = Vec::new();
    for spec in REGISTRY {
        match (spec.parse)(tables.get(spec.id).cloned().unwrap_or_default()) {
            Ok(settings) => configured.push(ConfiguredCollector { spec, settings }),
            Err(err) => checker.report(&format!("collectors.{}", spec.id), &err.message),
        }
    }
    let context = CollectorContext {
        enabled: configured
            .iter()
            .filter(|collector| collector.settings.enabled())
            .map(|collector| collector.spec.id)
            .collect(),
        ..CollectorContext::new(root, std::sync::Arc::new(crate::now))
    };
    for collector in &configured {
        // The policy may switch on what is off here.
        if let Err(err) = collector.settings.switched_on().build(&context) {
            // Messages begin with their key: `paths: …`.
            let (key, why) = err.message.split_once(": ").unwrap_or(("enabled", &err.message));
            if key == "enabled" && !collector.settings.enabled() {
                continue;
            }
            checker.report(&format!("collectors.{}.{key}", collector.spec.id), why);
        }
    }
    configured
}
