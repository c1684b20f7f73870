//! `serve`: receives from agents, and materialises what has landed.

use crate::{
    api::{self, Api, RateLimits},
    batch_index::BatchIndex,
    clock::now,
    health::Health,
    ingest::{Ingest, IngestSettings, LandingStore, ReadError},
    keys::Authority,
    metrics::Metrics,
    replication,
    server::{self, Certificates},
    store::ControlStore,
};
use anyhow::{Context, Result};
use std::{io::Write, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use vedette_wire::policy::StoreLevel;

/// Addresses of `serve`.
pub(super) struct Listen<'a> {
    /// For agents.
    pub(super) agents: SocketAddr,
    /// File to write that address to.
    pub(super) address_file: Option<&'a Path>,
    /// Loopback address for metrics.
    pub(super) metrics: Option<SocketAddr>,
}

pub(super) async fn serve(
    dir: &Path,
    listen: Listen<'_>,
    settings: IngestSettings,
    certificate_life: Duration,
) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    let file_limit = server::raise_file_limit();
    restrict_to_owner(&dir)?;
    let (control, landing, _lock) = open(&dir).await?;
    let signer = control.signer(&dir).await?;
    control.first_policies(&signer, super::policy::upgrade_change()).await?;
    let closing = control.clone();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(watch_gaps(control.clone(), stopped.clone()));
    let pending = control.watch_directives(stopped.clone());
    if control.primary().await?.is_some() {
        tokio::spawn(replication::follow(dir.clone(), control.clone(), stopped.clone()));
    }
    let (health, metrics, geo) = (Arc::new(Health::default()), Arc::new(Metrics::new()), control.geo().await?);
    if let Some(address) = listen.metrics {
        serve_metrics(address, api::metrics_router(Arc::clone(&metrics), control.clone())).await?;
    }
    let stores = (control.clone(), landing.clone());
    let api = Api {
        dir: dir.clone(),
        control: control.clone(),
        ingest: Arc::new(Ingest::new(stores, geo, settings, Arc::clone(&metrics))),
        authority: Authority::load(&dir)?,
        geo,
        policy_key: signer.public(),
        pending,
        certificate_life,
        rate_limits: RateLimits::default(),
        metrics: Arc::clone(&metrics),
    };
    let router = api::router(api, Arc::clone(&health));
    let certificates = Certificates::load(&dir)?;
    // Handled before anyone learns the address.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let listener = TcpListener::bind(listen.agents).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", listen.agents))?;
    let address = listener.local_addr()?;
    if let Some(path) = listen.address_file {
        write_address(path, address)?;
    }
    #[cfg(feature = "lake")]
    let materialiser =
        crate::tables::start(control, landing, &dir, settings.memory_max, (health, metrics), stopped.clone())?;
    tracing::info!(%address, "listening");
    let serving = tokio::spawn(server::serve(listener, certificates, router, file_limit, stopped));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tracing::warn!("SIGHUP is ignored; restart to change settings; changed certificates are reloaded"),
        }
    }
    tracing::info!("stopping");
    stop.send_replace(true);
    serving.await?;
    #[cfg(feature = "lake")]
    tokio::task::spawn_blocking(move || materialiser.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the materialiser panicked"))?;
    closing.close().await;
    Ok(())
}

/// Writes the address where others wait for it. Renamed, so that they see a whole address or none.
fn write_address(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let part = path.with_extension("part");
    std::fs::File::create(&part)?.write_all(address.to_string().as_bytes())?;
    std::fs::rename(&part, path)
}

/// Serves metrics in the background.
async fn serve_metrics(address: SocketAddr, router: axum::Router) -> Result<()> {
    anyhow::ensure!(
        address.ip().is_loopback(),
        "--metrics {address}: must be a loopback address, as in 127.0.0.1:9465"
    );
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for metrics"))?;
    tracing::info!(address = %listener.local_addr()?, "serving metrics");
    tokio::spawn(async move {
        if let Err(err) = axum::serve(listener, router).await {
            tracing::error!(error = %err, "metrics are no longer served");
        }
    });
    Ok(())
}

/// Opens the stores of a directory, after checking that nobody else serves it, and that they are whole and belong together.
async fn open(dir: &Path) -> Result<(ControlStore, LandingStore, std::fs::File)> {
    let control = ControlStore::open(dir).await?;
    let lock = lock(dir)?;
    let wrong = control.integrity().await?;
    if let Some(first) = wrong.first() {
        anyhow::bail!(
            "the control store in {} is damaged: {first}; restore control.sqlite from a backup; what the backup lacks is recovered from landed batches and agents",
            dir.display()
        );
    }
    if !dir.join("landing").is_dir() && control.last_landed().await?.is_some() {
        anyhow::bail!(
            "{} does not exist, though batches have landed in it; is its disk mounted?",
            dir.join("landing").display()
        );
    }
    let landing = LandingStore::open(&dir.join("landing"))?;
    reconcile(&control, &landing).await?;
    #[cfg(feature = "lake")]
    for id in control.organization_ids().await? {
        let organization = control.organization_of(id).await?;
        if let Some(newer) = crate::tables::foreign_batches(dir, &control, id).await? {
            anyhow::bail!("{}: {newer}", organization.name);
        }
    }
    Ok((control, landing, lock))
}

/// Checks the ledger for lasting gaps until a stop.
async fn watch_gaps(control: ControlStore, mut stop: watch::Receiver<bool>) {
    let mut checks = tokio::time::interval(GAPS_EVERY);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            _ = checks.tick() => {}
        }
        if let Err(err) = control.alert_gaps(now()).await {
            tracing::error!(error = format!("{err:#}"), "the ledger cannot be checked for gaps; trying again");
        }
    }
}

/// The directory holds keys and all data, so nobody else may read it, whoever created it.
fn restrict_to_owner(dir: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let meta = std::fs::metadata(dir).with_context(|| {
        format!("cannot open {}; create a workspace there with `vedette-workspace init`", dir.display())
    })?;
    if meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), mode = format!("{:o}", meta.mode() & 0o777), "the workspace's directory was accessible to others; its mode is corrected");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} is accessible to others, and its mode cannot be changed", dir.display()))
}

/// Default memory: half of the machine's or of its cgroup's (proc_meminfo(5), cgroup v2 `memory.max`), but at least 512 MiB.
pub(super) fn memory_max() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let machine = kib.map_or(u64::MAX, |kib: u64| kib.saturating_mul(1024));
    // Limits of its own cgroup and of those above (cgroups(7)): `0::/system.slice/vedette-workspace.service`.
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limit = |dir: &Path| std::fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    let cgroup = Path::new("/sys/fs/cgroup").join(own);
    let cgroup = cgroup.ancestors().take_while(|dir| dir.starts_with("/sys/fs/cgroup")).filter_map(limit).min();
    (machine.min(cgroup.unwrap_or(u64::MAX)) / 2).max(512 << 20)
}

/// Locks a directory for one process, as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = dir.join("serve.lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!("{} is served by another process; stop it, or serve another directory", dir.display())
        }
        Err(std::fs::TryLockError::Error(err)) => Err(err).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Interval of checks for gaps.
const GAPS_EVERY: Duration = Duration::from_secs(300);
/// How far before the newest recorded batch the landing store is searched.
const RECONCILE_SECONDS: i64 = 3600;

/// Records landed batches that are not in the control store: a batch is recorded after its object, and a power cut may lose that.
async fn reconcile(control: &ControlStore, landing: &LandingStore) -> Result<()> {
    // SQLite loses only the last transactions: batches well before the newest recorded one are recorded.
    let since = control.last_landed().await?.map_or(i64::MIN, |newest| newest / 1_000_000_000 - RECONCILE_SECONDS);
    let mut recovered = 0;
    for (key, bytes) in landing.list(since).await? {
        if control.is_recorded(key.as_str()).await? {
            continue;
        }
        let index = match landing.read(key.as_str()).await {
            Ok((batch, _)) => {
                let (organization, revision) = (batch.header.organization, batch.header.policy_revision);
                let policy = control.policy(organization, revision).await?;
                let index = BatchIndex::of(batch, policy.map_or(StoreLevel::All, |(policy, _)| policy.store));
                let checked = index.check();
                checked
                    .inspect_err(|wrong| {
                        tracing::error!(key = key.as_str(), wrong, "a landed batch is not in the ledger")
                    })
                    .ok();
                checked.is_ok().then_some(index)
            }
            Err(ReadError::Damaged(err)) => {
                tracing::error!(key = key.as_str(), error = %err, "a landed batch cannot be read; it is not in the ledger");
                None
            }
            Err(ReadError::Store(err)) => return Err(err.into()),
        };
        recovered += u64::from(
            control
                .record_found(key.as_str(), &key.organization.to_string(), &key.day, bytes, index.as_ref(), now())
                .await?,
        );
    }
    if recovered > 0 {
        tracing::info!(recovered, "recorded landed batches that were not in the control store");
    }
    Ok(())
}
