//! What the configuration resolves to: values that were checked against each other and can be used as they are.

use super::{CloudSetting, Config, PolicySection, layers::Origins};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use url::Url;
use vedette_collectors::{Cx, REGISTRY, Spec, settings::Bytes};
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
    /// The settings say that it runs.
    pub(crate) enabled: bool,
}

/// Resident memory before the agent collects, where it is not measured to be more.
pub(crate) const BASELINE_BYTES: u64 = 12 << 20;

/// Of a batch, where nothing is said and there is room: each costs its own fsync, request and deletion.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// How `memory_max` is divided, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Chunks that wait for the batcher.
    pub(crate) intake: usize,
    /// Sealed batches on their way.
    pub(crate) in_flight: usize,
}

/// Bytes between collectors and queue, however much memory there is.
const INTAKE_BYTES_MAX: u64 = 2 << 20;

impl Memory {
    /// Pages of the queue.
    pub(crate) fn cache(memory_max: u64) -> u64 {
        (memory_max / 10).min(CACHE_BYTES as u64)
    }

    /// Baseline, the batch that is being made and the queue's pages come first; of the rest, waiting chunks and
    /// batches in flight get an eighth each; more than half is what collectors hold while they look, and what the allocator
    /// keeps: much of this is made by one thread and freed by another. 1 MiB for each is the least.
    pub(crate) fn plan(memory_max: u64, baseline: u64, batch_bytes_max: u64) -> Self {
        // What of the two open batches is sealed, the frame of one, and that once more in the database's pages, which are
        // rounded up; for records that do not compress.
        let sealed = batch_bytes_max.min(SEALED_BYTES_MAX as u64);
        let rest = memory_max.saturating_sub(baseline + 5 * sealed + Self::cache(memory_max));
        let eighth = (rest / 8).max(1 << 20);
        Self { intake: eighth.min(INTAKE_BYTES_MAX) as usize, in_flight: eighth as usize }
    }
}

/// Where the host stands, as far as the configuration says.
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
    /// How long an endpoint fails until the next is used, and how long the preferred one works until it is used again.
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
    /// SHA-256 of what was written, hex: tells one configuration from another.
    pub(crate) digest: String,
}

/// Whether one entry of `no_proxy` is `*`, an address, a network, a name, or a domain with or without a dot before it.
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
        // A key that no layer sets has its section's place, or none.
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
    /// Check the values against each other.
    ///
    /// # Errors
    /// A line for each problem.
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
                    check.wrong("host.metadata_url", "must be http://host:port");
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
            check.wrong("workspace.proxy", "must be http://host:port");
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
        // Of the quota two fifths are batches, each with its space in the database rounded up.
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

    /// Ids of the collectors that are switched on.
    pub(crate) fn enabled(&self) -> std::collections::BTreeSet<&'static str> {
        self.collectors.iter().filter(|plan| plan.enabled).map(|plan| plan.spec.id).collect()
    }
}

/// `https://host:port` without anything behind it.
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
    let cx = Cx {
        enabled: plans.iter().filter(|plan| plan.enabled).map(|plan| plan.spec.id).collect(),
        ..Cx::new(root, std::sync::Arc::new(crate::now))
    };
    for plan in &plans {
        if let Err(err) = (plan.spec.build)(plan.settings.clone(), &cx) {
            // `paths: …`: the key that it is about stands first.
            let (key, why) = err.message.split_once(": ").unwrap_or(("enabled", &err.message));
            check.wrong(&format!("collectors.{}.{key}", plan.spec.id), why);
        }
    }
    plans
}
