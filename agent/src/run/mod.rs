//! `vedette run`: puts collectors, transport and the agent's own records together, and takes them apart again.

mod board;
mod own;
mod runner;
mod sinks;
pub(crate) mod status;

pub(crate) use board::{Board, CollectorState};
pub(crate) use runner::{Runner, chunks_of, positions_source};
pub(crate) use sinks::QueueSink;

use crate::{
    config::{BASELINE_BYTES, Memory, Resolved},
    exit::Exit,
    identity::{Enrollment, IdentityDir},
    now,
    policy::Policy,
};
use anyhow::Context;
use own::OwnRecords;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use vedette_collectors::{Cx, StopSignal};
use vedette_transport::{
    HttpPost, Lane, LaneConfig, Queue, QueueError, Stamp,
    tls::{self, ClientSettings},
};
use vedette_wire::{Lane as LaneName, body::LifecycleEvent};

/// Why the agent ends by itself.
const BROKEN: &str = "a part of the transport ended unexpectedly";
/// How often the transport is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What is left of the 5 s that a stop may take after collectors and batcher have ended.
const DELIVERY_GRACE: Duration = Duration::from_secs(1);
/// Collectors that do not end in this time are left behind.
const COLLECTORS_GRACE: Duration = Duration::from_secs(2);
/// The record of the stop waits so long for room.
const STOP_RECORD_GRACE: Duration = Duration::from_millis(500);

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Collect and ship until SIGTERM or SIGINT.
pub(crate) async fn run(config: Resolved) -> Result<(), Exit> {
    let identity = IdentityDir::new(&config.identity_dir);
    let enrollment = identity.enrolled(&config)?;
    let lane = start_lane(&config, &identity, &enrollment)?;
    let board = Arc::new(Board::default());
    let own = Arc::new(OwnRecords::new(lane.intake().clone()));
    let policy = Policy { revision: enrollment.policy_revision, collect: true };
    let sink = Arc::new(QueueSink::new(lane.intake().clone(), Arc::clone(&board), Arc::clone(&own)));
    let stop = StopSignal::default();

    own.lifecycle(LifecycleEvent::Start, format!("vedette {VERSION} started"), None, None);
    own.lifecycle(
        LifecycleEvent::Configuration,
        format!("collectors: {}", config.enabled().into_iter().collect::<Vec<_>>().join(", ")),
        None,
        Some(config.digest.clone()),
    );
    let mut runners = Vec::new();
    for plan in &config.collectors {
        board.add(plan.spec.id, plan.spec.class);
        if !plan.enabled || !policy.allows(plan.spec.class) {
            board.set(plan.spec.id, CollectorState::Disabled, None);
            continue;
        }
        let cx = context(&config, cursors(&lane, plan.spec.id)?);
        let runner = Runner {
            spec: plan.spec,
            settings: plan.settings.clone(),
            cx,
            sink: Arc::clone(&sink),
            queue: Arc::clone(lane.queue()),
            board: Arc::clone(&board),
            stop: stop.child(),
            deadline: runner::POLL_DEADLINE,
        };
        runners.push(runner.start().context("cannot start a collector's thread")?);
    }
    let status = status::Source {
        enrollment: enrollment.clone(),
        board: Arc::clone(&board),
        lane: Arc::new(lane),
        policy_revision: policy.revision,
    };
    let socket = status::serve(&config.state_dir, status.clone())
        .with_context(|| format!("cannot open the status socket in {}", config.state_dir.display()))?;
    tracing::info!(agent = %enrollment.agent, organization = enrollment.organization_name,
        workspace = enrollment.workspace, "collecting");
    // Where systemd waits for it (Type=notify); elsewhere this does nothing.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let reason = {
        let beat = own.beat(|| status.heartbeat());
        tokio::pin!(beat);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    if status.lane.is_broken() {
                        break BROKEN;
                    }
                }
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                never = &mut beat => match never {},
            }
        }
    };
    tracing::info!(reason, "stopping");
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    stop.stop();
    Runner::join_all(runners, COLLECTORS_GRACE).await;
    if let Some(handing_over) = own.lifecycle(LifecycleEvent::Stop, format!("stopped by {reason}"), None, None) {
        drop(tokio::time::timeout(STOP_RECORD_GRACE, handing_over).await);
    }
    socket.abort();
    drop(socket.await);
    let status::Source { lane, .. } = status;
    match Arc::try_unwrap(lane) {
        Ok(lane) => lane.stop(DELIVERY_GRACE).await,
        // A status request is still being answered: end without the grace, everything is handed over already.
        Err(lane) => lane.close(),
    }
    if reason == BROKEN {
        // Whoever supervises the agent starts it again.
        return Err(anyhow::anyhow!("{BROKEN}; see the log, and report this").into());
    }
    Ok(())
}

/// What a collector is given.
pub(crate) fn context(config: &Resolved, cursors: Vec<(String, Vec<u8>)>) -> Cx {
    Cx { root: config.root.clone(), clock: Arc::new(now), cursors, enabled: config.enabled(), once: None }
}

fn cursors(lane: &Lane, collector: &str) -> Result<Vec<(String, Vec<u8>)>, Exit> {
    Ok(lane.queue().cursors(collector)?)
}

fn start_lane(config: &Resolved, identity: &IdentityDir, enrollment: &Enrollment) -> Result<Lane, Exit> {
    let client = tls::client(&ClientSettings {
        ca_pem: identity.read("ca.pem")?,
        identity_pem: Some((identity.read("cert.pem")?, identity.read("key.pem")?)),
        geo: Some(enrollment.geo),
        proxy: config.proxy.clone(),
    })?;
    let random = fastrand::u64(..);
    let (queue, aside) =
        Queue::open(&config.state_dir, LaneName::Records, config.queue_bytes_max, random).map_err(describe)?;
    if let Some(path) = aside {
        tracing::error!(path = %path.display(), "a damaged queue was moved aside; what it held is not sent");
    }
    let foreign = queue.quarantine_foreign(enrollment.organization, enrollment.agent).map_err(describe)?;
    if foreign > 0 {
        tracing::error!(batches = foreign, "batches of an earlier enrollment were left; they are in quarantine");
    }
    let host = vedette_collectors::host_label(&context(config, Vec::new()));
    // Nothing changes the stamp yet; the sender is kept so that the receiver stays open.
    let (_, stamp) = watch::channel(Stamp {
        organization: enrollment.organization,
        agent: enrollment.agent,
        geo: enrollment.geo,
        agent_version: VERSION.to_owned(),
        host,
        policy_revision: enrollment.policy_revision,
    });
    // Measured where it is more than what `check` reckons with; then the least is what is left.
    let baseline = status::rss_bytes().unwrap_or(0).max(BASELINE_BYTES);
    let memory = Memory::plan(config.memory_max, baseline, config.batches.bytes_max as u64);
    let memory = memory.unwrap_or(Memory { intake: 1 << 20, in_flight: 1 << 20 });
    let mut limits = config.batches.clone();
    limits.compression = enrollment.compression.unwrap_or(limits.compression);
    let lane = Lane::start(LaneConfig {
        queue,
        limits,
        stamp,
        intake_bytes_max: memory.intake,
        in_flight_bytes_max: memory.in_flight,
        now: Arc::new(now),
        post: Some(Arc::new(HttpPost::new(client, &enrollment.workspace))),
    })?;
    Ok(lane)
}

fn describe(error: QueueError) -> Exit {
    match error {
        QueueError::Directory { .. } | QueueError::InUse { .. } | QueueError::Newer { .. } => {
            Exit::Failure(anyhow::Error::new(error))
        }
        other => Exit::Failure(anyhow::Error::new(other).context("the queue cannot be opened")),
    }
}

/// Where the status socket is.
pub(crate) fn socket_name() -> PathBuf {
    PathBuf::from("agent.sock")
}
