//! `vedette run`: composes the agent's parts and tasks, and stops them.

mod artifacts;
pub(crate) mod collectors;
mod context;
mod delivery;
mod delivery_watch;
pub(crate) mod events;
pub(crate) mod policy;
mod reconcile;
mod reload;
pub(crate) mod status;
mod tasks;
mod watchdog;

pub(crate) use reload::Reload;

use crate::{
    cloud,
    config::{BASELINE_BYTES, Memory, Resolved, collector_context},
    exit::{Exit, VERSION},
    identity::{Enrollment, IdentityDir},
    log, now, platform,
};
use anyhow::Context;
use collectors::{CollectorStatuses, LaneSink, QueueSink};
use context::AgentContext;
use delivery::{LaneDelivery, WorkspaceClient, rekey, renew, resume};
use delivery_watch::DeliveryWatch;
use events::AgentEvents;
use policy::PolicyStore;
use reconcile::Reconciler;
use status::StatusSource;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tasks::{RestartReason, RunEnd, Tasks};
use tokio::sync::watch;
use vedette_collectors::StopSignal;
use vedette_transport::{BatchContext, Lane, LaneConfig, Post, Queue, QueueError};
use vedette_wire::{HostLabel, LaneName, body::CloudInstance, body::LifecycleEvent};

/// Time after which what only a start needs has run; between two heartbeats.
const STARTED_AFTER: Duration = Duration::from_secs(75);
/// What remains of the 5 s for a stop after collectors and batcher have ended.
const DELIVERY_GRACE: Duration = Duration::from_secs(1);
/// Maximum wait for room for the stop event.
const STOP_RECORD_GRACE: Duration = Duration::from_millis(500);

/// Signals that stop the agent, for all its runs: one that arrives between two runs, or before the first, is not lost.
type SharedSignals = Arc<tokio::sync::Mutex<platform::StopSignals>>;

/// Collects and ships until a signal stops the agent.
pub(crate) async fn run(config: Resolved, signals: platform::StopSignals, reload: Reload) -> Result<(), Exit> {
    platform::raise_file_limit();
    tokio::spawn(async {
        tokio::time::sleep(STARTED_AFTER).await;
        platform::release_program_pages();
    });
    let (mut config, mut last_reread) = (Arc::new(config), None);
    let (signals, reload): (SharedSignals, _) = (Arc::new(signals.into()), Arc::new(reload));
    // The configuration before a reload, until the new one has worked.
    let mut before: Option<Arc<Resolved>> = None;
    loop {
        log::set_level(config.log_level);
        let end = match run_once(&config, (&signals, &reload), &mut last_reread).await {
            Ok(end) => end,
            Err(exit) => {
                let Some(before) = before.take() else { return Err(exit) };
                for reason in exit.reasons() {
                    tracing::error!("{reason}");
                }
                tracing::error!("the agent cannot run with the new configuration; continuing with the previous one");
                config = before;
                continue;
            }
        };
        before = None;
        match end {
            RunEnd::Signal(_) => return Ok(()),
            RunEnd::Restart(reason) => {
                tracing::warn!(%reason, "the agent restarts its tasks");
                if let Some((present, next)) = reload.take() {
                    (before, config) = (Some(present), next);
                }
            }
            RunEnd::Fatal(why) => {
                return Err(anyhow::anyhow!("{why}; this is a bug, please report it with the log").into());
            }
        }
    }
}

/// `last_reread` is when sources were last read again because the workspace lost batches.
async fn run_once(
    config: &Arc<Resolved>,
    (signals, reload): (&SharedSignals, &Arc<Reload>),
    last_reread: &mut Option<Instant>,
) -> Result<RunEnd, Exit> {
    let identity = IdentityDir::new(&config.identity_dir);
    let enrollment = identity.enrolled(config)?;
    let cloud = check_geography(config, &enrollment).await?;
    // The workspace would take two processes under one identity for two machines.
    let _lock = identity.lock()?;
    for dir in [&config.state_dir, &config.identity_dir] {
        platform::make_private(dir)?;
    }
    let (agent, reconciler, source) = compose(config, (identity, enrollment), cloud)?;
    let mut tasks = Tasks::new();
    if let Some(address) = config.metrics {
        let source = source.clone();
        tasks.spawn_restarting("metrics", move || {
            let source = source.clone();
            async move { match status::serve_metrics(address, source).await {} }
        });
    }
    let (of, reload) = (Arc::clone(&agent), Arc::clone(reload));
    tasks.spawn_restarting("reload", move || {
        let (agent, reload) = (Arc::clone(&of), Arc::clone(&reload));
        async move { reload.wait_for_restart(&agent).await }
    });
    if let Err(exit) = spawn(&mut tasks, &agent, reconciler, source, (signals, *last_reread)) {
        // The next run opens the same queue.
        stop(agent, tasks, &RunEnd::Restart(RestartReason::StartFailed)).await;
        return Err(exit);
    }
    let enrollment = &agent.enrollment;
    tracing::info!(agent = %enrollment.agent, organization = enrollment.organization_name,
        workspace = enrollment.workspace, "collecting");
    // Notifies systemd (Type=notify); does nothing elsewhere.
    platform::ready();
    let end = tasks.first_end().await;
    if end == RunEnd::Restart(RestartReason::BatchesLost) {
        *last_reread = Some(Instant::now());
    }
    stop(agent, tasks, &end).await;
    Ok(end)
}

/// Refuses to run if the host's data belongs to another geography; returns what the cloud says of this machine.
async fn check_geography(config: &Arc<Resolved>, enrollment: &Enrollment) -> Result<Option<CloudInstance>, Exit> {
    let shared = Arc::clone(config);
    let metadata = tokio::task::spawn_blocking(move || cloud::instance(&shared.place, &collector_context(&shared)));
    let instance = metadata.await.context("the query of the instance metadata panicked")?;
    let geography = cloud::geography(&config.place, instance.as_ref()).map_err(|err| Exit::config(err.to_string()))?;
    if let Some(host) = geography.filter(|host| host.workspace() != enrollment.geo) {
        return Err(Exit::config(format!(
            "host.geography: this host stands in {host}, whose data belongs to {}; it is enrolled at a workspace in {}; \
             enroll it there",
            host.workspace(),
            enrollment.geo
        )));
    }
    Ok(instance)
}

fn compose(
    config: &Arc<Resolved>,
    (identity, enrollment): (IdentityDir, Enrollment),
    cloud: Option<CloudInstance>,
) -> Result<(Arc<AgentContext>, Reconciler, StatusSource), Exit> {
    let store = PolicyStore::load(&identity, &enrollment);
    let client = Arc::new(WorkspaceClient::new(&identity, &enrollment, config, store.subscribe())?);
    let delivery = LaneDelivery::new(&client);
    let (lane, batch_context, host) = start_lane(config, &enrollment, &delivery)?;
    let statuses = Arc::new(CollectorStatuses::default());
    let events = Arc::new(AgentEvents::new(lane.intake().clone(), store.subscribe()));
    let sink = Arc::new(QueueSink::new(&lane, Arc::clone(&statuses), Arc::clone(&events)));
    let policy = store.subscribe();
    let agent = Arc::new(AgentContext {
        config: Arc::clone(config),
        in_force: watch::Sender::new(Arc::clone(config)),
        enrollment,
        identity,
        host,
        cloud: cloud.map(Arc::new),
        client,
        delivery,
        records: LaneSink { lane: Arc::new(lane), sink },
        events,
        statuses,
        stop: StopSignal::default(),
        started: tokio::time::Instant::now(),
    });
    agent.events.lifecycle(LifecycleEvent::Start, format!("vedette {VERSION} started"), None, None);
    agent.events.configuration(config);
    let reconciler = Reconciler::new(Arc::clone(&agent), store, batch_context);
    Ok((Arc::clone(&agent), reconciler, StatusSource::new(agent, policy)))
}

fn start_lane(
    config: &Resolved,
    enrollment: &Enrollment,
    delivery: &Arc<LaneDelivery>,
) -> Result<(Lane, watch::Sender<BatchContext>, HostLabel), Exit> {
    let queue =
        Queue::open(&config.state_dir, LaneName::Records, config.quota, fastrand::u64(1..)).map_err(describe)?;
    let host = rekey::with_machine(config, vedette_collectors::host_label(&collector_context(config)));
    let owner = (enrollment.organization, enrollment.agent);
    let foreign = queue.set_owner(owner, &enrollment.replaces, &host, fastrand::u64(1..)).map_err(describe)?;
    queue.begin_reread(fastrand::u64(1..)).map_err(describe)?;
    if foreign > 0 {
        tracing::error!(
            batches = foreign,
            "moved batches of an earlier enrollment to quarantine; see `vedette queue quarantine list`"
        );
    }
    let (context_sender, batch_context) = watch::channel(BatchContext {
        organization: enrollment.organization,
        agent: enrollment.agent,
        geo: enrollment.geo,
        agent_version: VERSION.to_owned(),
        host: host.clone(),
        policy_revision: enrollment.policy_revision,
    });
    // Measured, if it is more than the assumption.
    let baseline = platform::resident_bytes().unwrap_or(0).max(BASELINE_BYTES);
    let memory = Memory::plan(config.memory_max, baseline, config.batches.bytes_max as u64);
    let mut limits = config.batches.clone();
    limits.compression = enrollment.compression.unwrap_or(limits.compression);
    let lane = Lane::start(LaneConfig {
        queue,
        limits,
        context: batch_context,
        intake_bytes_max: memory.intake,
        in_flight_bytes_max: memory.in_flight,
        now: Arc::new(now),
        codec: delivery.codec(),
        post: Some(Arc::clone(delivery) as Arc<dyn Post>),
    })?;
    Ok((lane, context_sender, host))
}

fn describe(error: QueueError) -> Exit {
    match error {
        QueueError::Directory { .. } | QueueError::InUse { .. } | QueueError::Newer { .. } => {
            Exit::Failure(anyhow::Error::new(error))
        }
        other => Exit::Failure(anyhow::Error::new(other).context("the queue cannot be opened")),
    }
}

fn spawn(
    tasks: &mut Tasks,
    agent: &Arc<AgentContext>,
    reconciler: Reconciler,
    source: StatusSource,
    (signals, last_reread): (&SharedSignals, Option<Instant>),
) -> Result<(), Exit> {
    let socket_dir = &agent.config.socket_dir;
    let server = status::Server::bind(socket_dir, source.clone()).with_context(|| {
        format!("cannot open the status socket in {}; check [state] socket_dir", socket_dir.display())
    })?;
    let (server, signals) = (Arc::new(server), Arc::clone(signals));
    let resumed = Arc::new(watch::Sender::new(false));
    let delivery_watch =
        Arc::new(DeliveryWatch::new(Arc::clone(agent), source.clone(), resumed.subscribe(), last_reread));
    tasks.spawn_restarting("signals", move || {
        let signals = Arc::clone(&signals);
        async move { RunEnd::Signal(signals.lock().await.wait().await) }
    });
    tasks.spawn_restarting("status", move || {
        let server = Arc::clone(&server);
        async move { match server.serve().await {} }
    });
    tasks.spawn_restarting("delivery_watch", move || {
        let watch = Arc::clone(&delivery_watch);
        async move { watch.watch().await }
    });
    let of = Arc::clone(agent);
    tasks.spawn_restarting("heartbeat", move || {
        let (events, source) = (Arc::clone(&of.events), source.clone());
        async move { match events.beat(|| source.heartbeat()).await {} }
    });
    let of = Arc::clone(agent);
    tasks.spawn_restarting("watchdog", move || {
        let agent = Arc::clone(&of);
        async move { match watchdog::feed(&agent).await {} }
    });
    let of = Arc::clone(agent);
    tasks.spawn_restarting("renewal", move || {
        let agent = Arc::clone(&of);
        async move { match renew::renew(&agent.identity, &agent.client, &agent.events).await {} }
    });
    let of = Arc::clone(agent);
    tasks.spawn_restarting("rekey", move || {
        let agent = Arc::clone(&of);
        async move {
            let (lane, own) = (&agent.records.lane, (&agent.identity, &agent.enrollment, &agent.host));
            rekey::rekey(own, lane, (&agent.client, &agent.delivery)).await;
            RunEnd::Restart(RestartReason::Rekeyed)
        }
    });
    let (of, done) = (Arc::clone(agent), Arc::clone(&resumed));
    tasks.spawn_restarting("resume", move || {
        let (agent, done) = (Arc::clone(&of), Arc::clone(&done));
        async move {
            let (lane, state_dir) = (&agent.records.lane, &agent.config.state_dir);
            resume::resume(lane, &agent.client, &agent.events, state_dir).await;
            done.send_replace(true);
            std::future::pending().await
        }
    });
    tasks.spawn_until_stop("policy", |stop| reconciler.run_until(resumed.subscribe(), stop));
    Ok(())
}

/// Stops collectors, makes what they observed durable, and delivers for a moment.
async fn stop(agent: Arc<AgentContext>, tasks: Tasks, end: &RunEnd) {
    tracing::info!(reason = %end, "stopping");
    if !matches!(end, RunEnd::Restart(_)) {
        platform::stopping();
    }
    let is_damaged = *end == RunEnd::Restart(RestartReason::QueueDamaged);
    agent.stop.stop();
    if is_damaged {
        // Nothing can become durable any more; releases whoever waits for room.
        agent.records.lane.close();
    }
    tasks.stop().await;
    if !is_damaged
        && let Some(handing_over) = agent.events.lifecycle(LifecycleEvent::Stop, format!("stopped: {end}"), None, None)
    {
        drop(tokio::time::timeout(STOP_RECORD_GRACE, handing_over).await);
    }
    let lane = Arc::clone(&agent.records.lane);
    drop(agent);
    match Arc::try_unwrap(lane) {
        Ok(lane) => lane.stop(DELIVERY_GRACE).await,
        // Something still uses it: everything is handed over, so the grace is skipped.
        Err(lane) => lane.close(),
    }
}
