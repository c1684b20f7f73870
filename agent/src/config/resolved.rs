//! The resolved configuration: values that are consistent and ready to use.

use super::{CloudSetting, Config, PolicySection, layers::Origins};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use url::Url;
use vedette_collectors::{CollectorContext, REGISTRY, Spec, settings::Bytes};
use vedette_transport::{
    BatchLimits, CACHE_BYTES, Quota, SEALED_BYTES_MAX,
    tls::{Proxy, Roots},
};
use vedette_wire::geo::{Geography, UnknownPlace, WorkspaceGeo};

/// A collector and its settings.
#[derive(Debug, Clone)]
pub(crate) struct CollectorPlan {
    pub(crate) spec: &'static Spec,
    pub(crate) settings: toml::Table,
    /// Whether the settings switch it on.
    pub(crate) enabled: bool,
}

/// Assumed resident memory before collection starts, if less is measured.
pub(crate) const BASELINE_BYTES: u64 = 12 << 20;

/// Default size of a batch: each batch costs an fsync, a request and a deletion.
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
pub(crate) struct HostPlace {
    pub(crate) cloud: CloudSetting,
    pub(crate) geography: Option<Geography>,
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
    pub(crate) root: PathBuf,
    pub(crate) place: HostPlace,
    pub(crate) batches: BatchLimits,
    pub(crate) quota: Quota,
    pub(crate) memory_max: u64,
    pub(crate) log_level: tracing::Level,
    pub(crate) log_json: bool,
    pub(crate) policy: PolicySection,
    pub(crate) collectors: Vec<CollectorPlan>,
    /// SHA-256 of the written configuration, hex; identifies it.
    pub(crate) digest: String,
}

/// Whether an entry of `no_proxy` is valid: `*`, an address, a network, a name, or a domain with or without a leading dot.
fn is_exempt(one: &str) -> bool {
    use std::net::IpAddr;
    let is_network = |(address, bits): (&str, &str)| match (address.parse(), bits.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(bits)) => bits <= 32,
        (Ok(IpAddr::V6(_)), Ok(bits)) => bits <= 128,
        _ => false,
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    one == "*" || one.parse::<IpAddr>().is_ok() || one.split_once('/').is_some_and(is_network) || is_name(one)
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn wrong(&mut self, key: &str, message: &str) {
        // A key that no layer sets has the origin of its section, if any.
        let section = key.rsplit_once('.').map_or(key, |(section, _)| section);
        let place = self.origins.get(key).or_else(|| self.origins.get(section));
        self.problems.push(match place {
            Some(place) => format!("{place}: {key}: {message}"),
            None => format!("{key}: {message}"),
        });
    }

    fn within<T: PartialOrd>(&mut self, key: &str, value: T, range: std::ops::RangeInclusive<T>, text: &str) {
        if !range.contains(&value) {
            self.wrong(key, &format!("must be {text}"));
        }
    }

    fn absolute(&mut self, key: &str, path: &std::path::Path) {
        if !path.is_absolute() {
            self.wrong(key, &format!("{} must be an absolute path", path.display()));
        }
    }
}

impl Resolved {
    /// Checks the values against each other.
    ///
    /// # Errors
    /// One line per problem.
    pub(super) fn from_config(config: Config, origins: &Origins) -> Result<Self, Vec<String>> {
        let mut check = Checker { origins, problems: Vec::new() };
        let digest = hex::encode(Sha256::digest(toml::to_string(&config).unwrap_or_default()));
        let workspace_url = config
            .workspace
            .url
            .as_deref()
            .and_then(|url| parse_url(url).map_err(|message| check.wrong("workspace.url", &message)).ok());
        let workspace_geo = config.workspace.geo.as_deref().and_then(|geo| {
            geo.parse()
                .map_err(|err: vedette_wire::geo::UnknownGeo| check.wrong("workspace.geo", &err.to_string()))
                .ok()
        });
        let place = HostPlace {
            cloud: config.host.cloud,
            geography: config.host.geography.as_deref().and_then(|geography| {
                geography.parse().map_err(|err: UnknownPlace| check.wrong("host.geography", &err.to_string())).ok()
            }),
            metadata_url: config.host.metadata_url.as_deref().and_then(|url| {
                let url = Url::parse(url).ok().filter(|url| url.scheme() == "http" && url.has_host());
                url.or_else(|| {
                    check.wrong("host.metadata_url", "must be http://host:port or https://host:port");
                    None
                })
            }),
            cloud_tags: config.host.cloud_tags,
        };
        if let (Some(host), Some(workspace)) = (place.geography, workspace_geo)
            && host.workspace() != workspace
        {
            let message = format!("is {workspace}, and data of a host in {host} belongs to {}", host.workspace());
            check.wrong("workspace.geo", &message);
        }
        let is_proxy = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.path() == "/";
        if let Some(proxy) = &config.workspace.proxy
            && (proxy.contains(char::is_whitespace) || !Url::parse(proxy).is_ok_and(is_proxy))
        {
            check.wrong("workspace.proxy", "must be http://host:port or https://host:port");
        }
        for one in
            config.workspace.no_proxy.iter().flat_map(|all| all.split(',')).map(str::trim).filter(|one| !one.is_empty())
        {
            if !is_exempt(one) {
                check.wrong("workspace.no_proxy", &format!("{one:?} is no name, domain, address or network"));
            }
        }
        let fail_over = (config.workspace.fail_over_after.0, config.workspace.fail_back_after.0);
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        check.within("workspace.fail_over_after", fail_over.0, second..=hour, "1s to 1h");
        check.within("workspace.fail_back_after", fail_over.1, second..=24 * hour, "1s to 1d");
        let (identity_dir, state_dir, root) = (config.identity.dir, config.state.dir, config.host.root);
        let bootstrap = config.identity.bootstrap;
        check.absolute("identity.bootstrap", &bootstrap);
        check.absolute("identity.dir", &identity_dir);
        check.absolute("state.dir", &state_dir);
        check.absolute("host.root", &root);
        let transport = config.transport;
        let share = (config.limits.memory_max.0 / 8).min(transport.queue_bytes_max.0 / 16);
        let batch_bytes_max = transport.batch_bytes_max.unwrap_or(Bytes(share.clamp(64 << 10, BATCH_BYTES_MAX)));
        check.within("transport.batch_bytes_max", batch_bytes_max.0, 64 << 10..=8 << 20, "64KiB to 8MiB");
        check.within("transport.batch_records_max", transport.batch_records_max, 1..=1_000_000, "1 to 1000000");
        let ages = Duration::from_millis(50)..=Duration::from_secs(300);
        check.within("transport.batch_age_max", transport.batch_age_max.0, ages, "50ms to 5m");
        check.within("transport.queue_bytes_max", transport.queue_bytes_max.0, 16 << 20..=u64::MAX, "at least 16MiB");
        check.within("transport.queue_volume_percent_max", transport.queue_volume_percent_max, 1..=100, "1 to 100");
        check.within("limits.memory_max", config.limits.memory_max.0, 32 << 20..=u64::MAX, "at least 32MiB");
        if let Some(ca) = config.workspace.ca.as_ref().filter(|ca| !ca.is_file()) {
            check.wrong("workspace.ca", &format!("{} is not there; use the workspace's ca.pem", ca.display()));
        }
        if root.is_absolute() && !root.is_dir() {
            check.wrong("host.root", &format!("{} is not a directory; mount the host's root there", root.display()));
        }
        if let Some(proxy) = &config.workspace.proxy
            && origins.get("workspace.proxy").is_some_and(|place| place.starts_with("--set"))
            && Url::parse(proxy).is_ok_and(|url| url.password().is_some())
        {
            let message = "a password is visible in the list of processes; write it in a file of conf.d";
            check.wrong("workspace.proxy", message);
        }
        // Two fifths of the quota are for batches, whose space in the database is rounded up.
        let queue_least = 16 * batch_bytes_max.0;
        if transport.queue_bytes_max.0 < queue_least {
            let message = format!("must be at least 16 × batch_bytes_max, {}", Bytes(queue_least));
            check.wrong("transport.queue_bytes_max", &message);
        }
        let log_level = config.log.level.parse().unwrap_or_else(|_| {
            check.wrong("log.level", "must be error, warn, info, debug or trace");
            tracing::Level::INFO
        });
        if !matches!(config.log.format.as_str(), "text" | "json") {
            check.wrong("log.format", "must be text or json");
        }
        let collectors = collectors(&config.collectors, &root, &mut check);
        if !check.problems.is_empty() {
            return Err(check.problems);
        }
        Ok(Self {
            workspace_url,
            workspace_ca: config.workspace.ca,
            roots: config.workspace.roots,
            workspace_geo,
            proxy: config
                .workspace
                .proxy
                .map(|url| Proxy { url, not_for: config.workspace.no_proxy.unwrap_or_default() }),
            fail_over,
            identity_dir,
            bootstrap,
            state_dir,
            root,
            place,
            batches: BatchLimits {
                bytes_max: batch_bytes_max.0 as usize,
                records_max: transport.batch_records_max as usize,
                age_max: transport.batch_age_max.0,
                compression: transport.compression,
            },
            quota: Quota {
                bytes_max: transport.queue_bytes_max.0,
                volume_share_max: f64::from(transport.queue_volume_percent_max) / 100.0,
                free_bytes_min: transport.disk_free_min.0,
                free_inodes_min: transport.inodes_free_min,
                cache_bytes: Memory::cache(config.limits.memory_max.0) as usize,
            },
            memory_max: config.limits.memory_max.0,
            log_level,
            log_json: config.log.format == "json",
            policy: config.policy,
            collectors,
            digest,
        })
    }

    /// Ids of the enabled collectors.
    pub(crate) fn enabled(&self) -> std::collections::BTreeSet<&'static str> {
        self.collectors.iter().filter(|plan| plan.enabled).map(|plan| plan.spec.id).collect()
    }
}

/// Parses `https://host:port` without a path.
pub(crate) fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|err| format!("{text:?} is no URL ({err}); write https://host:port"))?;
    if url.scheme() != "https" || !url.has_host() {
        return Err(format!("{text:?} must be https://host:port; data is sent over TLS only"));
    }
    if url.path() != "/" || url.query().is_some() || !url.username().is_empty() {
        return Err(format!("{text:?} must be https://host:port and nothing more"));
    }
    Ok(url)
}

fn collectors(
    written: &BTreeMap<String, toml::Table>,
    root: &std::path::Path,
    check: &mut Checker<'_>,
) -> Vec<CollectorPlan> {
    let plans: Vec<CollectorPlan> = REGISTRY
        .iter()
        .map(|spec| {
            let settings = written.get(spec.id).cloned().unwrap_or_default();
            let enabled = settings.get("enabled").or((spec.defaults)().get("enabled")).and_then(toml::Value::as_bool);
            CollectorPlan { spec, settings, enabled: enabled.unwrap_or(true) }
        })
        .collect();
    let cx = CollectorContext {
        enabled: plans.iter().filter(|plan| plan.enabled).map(|plan| plan.spec.id).collect(),
        ..CollectorContext::new(root, std::sync::Arc::new(crate::now))
    };
    for plan in &plans {
        if let Err(err) = (plan.spec.build)(plan.settings.clone(), &cx) {
            // Messages begin with their key: `paths: …`.
            let (key, why) = err.message.split_once(": ").unwrap_or(("enabled", &err.message));
            check.wrong(&format!("collectors.{}.{key}", plan.spec.id), why);
        }
    }
    plans
}
