//! `vedette run`: starts collectors, transport and the agent's own events, and stops them.

mod artifacts;
mod collector_statuses;
mod directives;
mod endpoints;
mod events;
mod post;
mod rekey;
mod renew;
mod resume;
mod runner;
mod sinks;
pub(crate) mod status;
mod supervisor;

pub(crate) use collector_statuses::{CollectorState, CollectorStatuses};
pub(crate) use runner::{chunks_of, positions_source};
pub(crate) use sinks::QueueSink;

use crate::{
    cloud,
    config::{BASELINE_BYTES, Memory, Resolved},
    exit::Exit,
    identity::{Enrollment, IdentityDir},
    now,
    policy::PolicyStore,
};
use anyhow::Context;
use events::AgentEvents;
use post::WorkspaceClient;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use supervisor::{AgentParts, PolicyState, Supervisor};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use vedette_collectors::{CollectorContext, StopSignal};
use vedette_transport::{BatchContext, Lane, LaneConfig, Post, Queue, QueueError};
use vedette_wire::{HostLabel, Lane as LaneName, Stored, body::LifecycleEvent};

/// Reason for ending with an error.
const BROKEN: &str = "a part of the transport ended unexpectedly";
/// Reasons for restarting: this and the following three.
const DAMAGED: &str = "the queue is damaged";
/// See [`DAMAGED`].
const REKEYED: &str = "another key";
/// See [`DAMAGED`].
const GONE: &str = "the state directory was removed";
/// See [`DAMAGED`].
const LOST: &str = "the workspace lost acknowledged batches";
/// Minimum time between two re-readings of sources, whatever the workspace says.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(3600);
/// Poll interval for the state of the transport.
const STATE_POLL: Duration = Duration::from_secs(1);
/// What remains of the 5 s for a stop after collectors and batcher have ended.
const DELIVERY_GRACE: Duration = Duration::from_secs(1);
/// Maximum wait for room for the stop event.
const STOP_RECORD_GRACE: Duration = Duration::from_millis(500);

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Collects and ships until SIGTERM or SIGINT.
pub(crate) async fn run(config: Resolved) -> Result<(), Exit> {
    allow_many_files();
    let mut read_again = None;
    while run_once(&config, &mut read_again).await? == ExitReason::Again {
        tracing::warn!("beginning again");
    }
    Ok(())
}

/// Raises the limit of open files to the hard limit: every log file is held open, and the default of 1024 is meant for shells.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(err) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(error = %err, "no more than {:?} files can be open", limit.current);
    }
}

/// Why a run ended.
#[derive(Debug, PartialEq, Eq)]
enum ExitReason {
    Stopped,
    /// The queue was damaged, the agent has a new identity, sources must be read again, or the state directory was removed.
    Again,
}

/// `read_again` is when sources were last read again.
async fn run_once(config: &Resolved, read_again: &mut Option<Instant>) -> Result<ExitReason, Exit> {
    let identity = IdentityDir::new(&config.identity_dir);
    let enrollment = identity.enrolled(config)?;
    let (place, cx) = (config.place.clone(), context(config, Vec::new(), Vec::new()));
    let asking = tokio::task::spawn_blocking(move || cloud::instance(&place, &cx));
    let instance = asking.await.context("asking for the instance metadata panicked")?;
    let geography = cloud::geography(&config.place, instance.as_ref()).map_err(|err| Exit::config(err.to_string()))?;
    if let Some(host) = geography.filter(|host| host.workspace() != enrollment.geo) {
        return Err(Exit::config(format!(
            "host.geography: this host stands in {host}, whose data belongs to {}; it is enrolled at a workspace in {}; \
             enroll it there",
            host.workspace(),
            enrollment.geo
        )));
    }
    // The workspace would take two processes under one identity for two machines.
    let _lock = identity.lock()?;
    for dir in [&config.state_dir, &config.identity_dir] {
        close_to_others(dir)?;
    }
    let (lane, post, batch_context, host) = start_lane(config, &identity, &enrollment)?;
    let lane = Arc::new(lane);
    let statuses = Arc::new(CollectorStatuses::default());
    let events = Arc::new(AgentEvents::new(lane.intake().clone()));
    let (policy_store, problem) = PolicyStore::load(&identity, &enrollment);
    events.set_silent(policy_store.policy().is_none_or(|policy| !policy.collect));
    // Applies the stored policy before any request.
    if let Some(policy) = policy_store.policy() {
        post.endpoints().set(&policy.endpoints);
    }
    let sink = Arc::new(QueueSink::new(&lane, Arc::clone(&statuses), Arc::clone(&events)));
    let stop = StopSignal::default();

    events.lifecycle(LifecycleEvent::Start, format!("vedette {VERSION} started"), None, None);
    events.lifecycle(
        LifecycleEvent::Configuration,
        format!("collectors: {}", config.enabled().into_iter().collect::<Vec<_>>().join(", ")),
        None,
        Some(config.digest.clone()),
    );
    let policy = Arc::<Mutex<PolicyState>>::default();
    let mut supervisor = Supervisor::new(
        AgentParts {
            config: config.clone(),
            cloud: instance.map(Arc::new),
            identity,
            lane: Arc::clone(&lane),
            post: Arc::clone(&post),
            sink,
            events: Arc::clone(&events),
            statuses: Arc::clone(&statuses),
            stop: stop.clone(),
            batch_context,
            host: host.clone(),
            state: Arc::clone(&policy),
        },
        &enrollment,
        (policy_store, problem),
    );
    let status = status::SourceStatus {
        enrollment: enrollment.clone(),
        statuses: Arc::clone(&statuses),
        lane: Arc::clone(&lane),
        post: Arc::clone(&post),
        policy,
        started: tokio::time::Instant::now(),
    };
    let serve = || {
        status::serve(&config.state_dir, status.clone())
            .with_context(|| format!("cannot open the status socket in {}", config.state_dir.display()))
    };
    let mut socket = serve()?;
    let database = config.state_dir.join("records.redb");
    let opened = inode(&database);
    tracing::info!(agent = %enrollment.agent, organization = enrollment.organization_name,
        workspace = enrollment.workspace, "collecting");
    // Notifies systemd (Type=notify); does nothing elsewhere.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::warn!("SIGHUP is ignored; restart the agent to read its configuration again");
        }
    });
    let mut look = tokio::time::interval(STATE_POLL);
    let reason = {
        let beat = events.beat(|| status.heartbeat());
        tokio::pin!(beat);
        let resuming =
            resume::resume(Arc::clone(&lane), Arc::clone(&post), Arc::clone(&events), config.state_dir.clone());
        tokio::pin!(resuming);
        let renewing = renew::renew(IdentityDir::new(&config.identity_dir), Arc::clone(&post), Arc::clone(&events));
        tokio::pin!(renewing);
        let rekeying = rekey::rekey(
            IdentityDir::new(&config.identity_dir),
            enrollment.clone(),
            Arc::clone(&lane),
            Arc::clone(&post),
            host.clone(),
        );
        tokio::pin!(rekeying);
        let (resumed, mut is_resumed) = (watch::channel(false).0, false);
        let governing = supervisor.run(resumed.subscribe());
        tokio::pin!(governing);
        let mut endpoint = post.endpoints().in_use().url.clone();
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let now = post.endpoints().in_use().url.clone();
                    if now != endpoint {
                        endpoint = now;
                        if post.endpoints().wakes() {
                            lane.try_again();
                        }
                        events.heartbeat(|| status.heartbeat());
                    }
                    let lost = lane.take_lost().filter(|_| is_resumed);
                    if let Some(lost) = lost.filter(|_| read_again.is_none_or(|at| at.elapsed() >= READ_AGAIN_EVERY)) {
                        let queue = Arc::clone(lane.queue());
                        match tokio::task::spawn_blocking(move || queue.read_again(lost)).await? {
                            Ok(()) => {
                                *read_again = Some(Instant::now());
                                break LOST;
                            }
                            Err(err) => tracing::error!(error = %err, "the queue cannot be updated; trying again"),
                        }
                    }
                    if lane.queue().is_damaged() {
                        break DAMAGED;
                    }
                    if lane.is_broken() {
                        break BROKEN;
                    }
                    if inode(&database) != opened {
                        break GONE;
                    }
                    if inode(&config.state_dir.join(socket_name())).is_none() {
                        tracing::warn!("the status socket was removed; creating it again");
                        socket.abort();
                        socket = serve()?;
                    }
                }
                () = &mut resuming, if !is_resumed => {
                    is_resumed = true;
                    resumed.send_replace(true);
                }
                never = &mut governing => match never {},
                never = &mut renewing => match never {},
                () = &mut rekeying => break REKEYED,
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                never = &mut beat => match never {},
            }
        }
    };
    tracing::info!(reason, "stopping");
    if !matches!(reason, DAMAGED | REKEYED | LOST | GONE) {
        drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    }
    stop.stop();
    if reason == DAMAGED {
        // Nothing can become durable any more; releases whoever waits for room.
        lane.close();
    }
    supervisor.join().await;
    if reason != DAMAGED
        && let Some(handing_over) = events.lifecycle(LifecycleEvent::Stop, format!("stopped by {reason}"), None, None)
    {
        drop(tokio::time::timeout(STOP_RECORD_GRACE, handing_over).await);
    }
    socket.abort();
    drop(socket.await);
    drop(status);
    match Arc::try_unwrap(lane) {
        Ok(lane) => lane.stop(DELIVERY_GRACE).await,
        // A status request is still being answered: skip the grace, everything is handed over.
        Err(lane) => lane.close(),
    }
    match reason {
        // The supervisor of the service restarts the agent.
        BROKEN => Err(anyhow::anyhow!("{BROKEN}; see the log, and report this").into()),
        DAMAGED | REKEYED | LOST | GONE => Ok(ExitReason::Again),
        _ => Ok(ExitReason::Stopped),
    }
}

/// Device and inode of a file; absent if it does not exist.
fn inode(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((std::os::unix::fs::MetadataExt::dev(&meta), std::os::unix::fs::MetadataExt::ino(&meta)))
}

/// Makes files in the agent's directory its own, if an earlier release or a copy left them readable for others.
fn close_to_others(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() && meta.mode() & 0o077 != 0 {
            let path = entry.path();
            tracing::warn!(path = %path.display(), mode = format!("{:o}", meta.mode() & 0o777), "a file of the agent was accessible to others; its mode is corrected");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(|| {
                format!("{} is accessible to others, and its mode cannot be changed", path.display())
            })?;
        }
    }
    Ok(())
}

/// Context of a collector.
pub(crate) fn context(config: &Resolved, cursors: Vec<(String, Vec<u8>)>, stored: Vec<Stored>) -> CollectorContext {
    CollectorContext {
        root: config.root.clone(),
        clock: Arc::new(now),
        cursors,
        stored,
        enabled: config.enabled(),
        requests: None,
        cloud: None,
        once: None,
    }
}

fn start_lane(
    config: &Resolved,
    identity: &IdentityDir,
    enrollment: &Enrollment,
) -> Result<(Lane, Arc<WorkspaceClient>, watch::Sender<BatchContext>, HostLabel), Exit> {
    let post = Arc::new(WorkspaceClient::new(identity, enrollment, config)?);
    let queue =
        Queue::open(&config.state_dir, LaneName::Records, config.quota, fastrand::u64(1..)).map_err(describe)?;
    let host = vedette_collectors::host_label(&context(config, Vec::new(), Vec::new()));
    let host = rekey::with_machine(config, host);
    let (owner, replaced) = ((enrollment.organization, enrollment.agent), &enrollment.replaces);
    let foreign = queue.set_owner(owner, replaced, &host, fastrand::u64(1..)).map_err(describe)?;
    queue.begin_reread(fastrand::u64(1..)).map_err(describe)?;
    if foreign > 0 {
        tracing::error!(batches = foreign, "batches of an earlier enrollment are in quarantine");
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
    let baseline = status::rss_bytes().unwrap_or(0).max(BASELINE_BYTES);
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
        post: Some(Arc::clone(&post) as Arc<dyn Post>),
    })?;
    Ok((lane, post, context_sender, host))
}

fn describe(error: QueueError) -> Exit {
    match error {
        QueueError::Directory { .. } | QueueError::InUse { .. } | QueueError::Newer { .. } => {
            Exit::Failure(anyhow::Error::new(error))
        }
        other => Exit::Failure(anyhow::Error::new(other).context("the queue cannot be opened")),
    }
}

/// File name of the status socket.
pub(crate) fn socket_name() -> PathBuf {
    PathBuf::from("agent.sock")
}
