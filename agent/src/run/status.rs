//! Status over a unix socket in the state directory; the directory's permissions decide who may ask.

use super::{CollectorStatuses, VERSION, post::WorkspaceClient, socket_name, supervisor::PolicyState};
use crate::{identity::Enrollment, now};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::UnixListener, task::JoinHandle, time::Instant};
use vedette_transport::Lane;
use vedette_wire::{
    Reason,
    body::{CollectorHealth, Heartbeat},
};

/// Output of `vedette status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) version: String,
    pub(crate) agent: String,
    pub(crate) organization: String,
    pub(crate) organization_name: String,
    pub(crate) workspace: String,
    pub(crate) endpoint: String,
    /// Start of its use, RFC 3339, and reason.
    #[serde(default)]
    pub(crate) endpoint_since: String,
    #[serde(default)]
    pub(crate) endpoint_why: String,
    pub(crate) policy_revision: u64,
    #[serde(default)]
    pub(crate) policy: PolicyState,
    pub(crate) collectors: Vec<Collector>,
    pub(crate) queue: QueueReport,
    pub(crate) delivery: Delivery,
    pub(crate) rss_bytes: Option<u64>,
    #[serde(skip)]
    pub(crate) oldest_sealed: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Collector {
    pub(crate) id: String,
    pub(crate) class: String,
    pub(crate) state: String,
    pub(crate) emitted: u64,
    pub(crate) dropped: u64,
    pub(crate) dropped_by_reason: BTreeMap<Reason, u64>,
    pub(crate) last_error: Option<String>,
    /// Sources that it cannot read, watch or bind.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
}

impl Collector {
    fn health(self) -> CollectorHealth {
        let Self { id, state, emitted, dropped, last_error, .. } = self;
        CollectorHealth { id, state, emitted, dropped, why: last_error }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct QueueReport {
    /// Size of the file in bytes.
    pub(crate) bytes: u64,
    pub(crate) batches: u64,
    pub(crate) oldest_unsent_seconds: Option<f64>,
    /// Why sources wait.
    pub(crate) waiting: Option<String>,
    pub(crate) quarantine: QuarantineReport,
}

/// Batches that the workspace refuses for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct QuarantineReport {
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    /// Number of batches deleted for lack of space.
    pub(crate) dropped: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub(crate) delivered: u64,
    /// Seconds since a batch landed, or since the start.
    #[serde(default)]
    pub(crate) idle_seconds: f64,
    /// Batches deleted because policy forbids them.
    pub(crate) purged: u64,
    pub(crate) last_error: Option<String>,
}

/// What a report is built from.
#[derive(Clone)]
pub(crate) struct SourceStatus {
    pub(crate) enrollment: Enrollment,
    pub(crate) statuses: Arc<CollectorStatuses>,
    pub(crate) lane: Arc<Lane>,
    pub(super) post: Arc<WorkspaceClient>,
    pub(crate) policy: Arc<Mutex<PolicyState>>,
    pub(crate) started: Instant,
}

impl SourceStatus {
    pub(crate) fn report(&self) -> Report {
        let lane = self.lane.status();
        let counters = |id: &str| lane.ledger.0.get(id).cloned().unwrap_or_default();
        let collectors = self.statuses.lines().into_iter().map(|(id, line)| {
            let trouble = line.why.clone().filter(|_| line.is_trouble);
            let said: Vec<String> = line.note.into_iter().chain(line.stuck).chain(line.why).collect();
            Collector {
                id: id.to_owned(),
                class: format!("{:?}", line.class).to_lowercase(),
                state: line.state.name().to_owned(),
                emitted: counters(id).emitted,
                dropped: counters(id).dropped_total(),
                dropped_by_reason: counters(id).dropped,
                last_error: (!said.is_empty()).then(|| said.join("; ")),
                trouble,
            }
        });
        let in_use = self.post.endpoints().in_use().clone();
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report {
            version: VERSION.to_owned(),
            agent: self.enrollment.agent.to_string(),
            organization: self.enrollment.organization.to_string(),
            organization_name: self.enrollment.organization_name.clone(),
            workspace: self.enrollment.workspace.clone(),
            endpoint: in_use.url,
            endpoint_since: Timestamp::from_nanosecond(in_use.since.into())
                .map_or_else(|_| String::new(), |at| format!("{at:.0}")),
            endpoint_why: in_use.why,
            policy_revision: policy.revision,
            policy,
            collectors: collectors.collect(),
            queue: QueueReport {
                bytes: lane.queue.file_bytes,
                batches: lane.queue.batches,
                oldest_unsent_seconds: lane.queue.oldest_sealed.map(|sealed| (now() - sealed).max(0) as f64 / 1e9),
                waiting: lane.waiting,
                quarantine: QuarantineReport {
                    batches: lane.queue.quarantine.batches,
                    bytes: lane.queue.quarantine.bytes,
                    dropped: lane.queue.quarantine.dropped,
                },
            },
            delivery: Delivery {
                delivered: lane.sender.delivered,
                idle_seconds: lane.sender.delivered_at.unwrap_or(self.started).elapsed().as_secs_f64(),
                purged: lane.sender.purged,
                last_error: lane.sender.last_error,
            },
            rss_bytes: rss_bytes(),
            oldest_sealed: lane.queue.oldest_sealed,
        }
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let (report, in_use) = (self.report(), self.post.endpoints().in_use().clone());
        Heartbeat {
            version: report.version,
            policy_revision: report.policy_revision,
            endpoint: Some(in_use.url),
            endpoint_since: Some(in_use.since),
            endpoint_why: Some(in_use.why),
            queue_bytes: report.queue.bytes,
            queue_batches: report.queue.batches,
            oldest_unsent: report.oldest_sealed,
            rss_bytes: report.rss_bytes,
            waiting: report.queue.waiting,
            quarantined: report.queue.quarantine.batches,
            collectors: report.collectors.into_iter().map(Collector::health).collect(),
        }
    }
}

/// Resident memory (`VmRSS` of `/proc/self/status`).
pub(crate) fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Passes a path to the socket that fits into `sun_path` (unix(7), 108 bytes with its NUL), however deep the directory is.
fn at_socket<T>(state_dir: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let dir = std::fs::File::open(state_dir)?;
    let path = state_dir.join(socket_name());
    if path.as_os_str().len() < 108 {
        return work(&path);
    }
    // A process that is not dumpable can open `/proc/self/fd` only as root.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let done = work(&Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(socket_name()));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    done
}

/// Answers each connection with a report.
pub(crate) fn serve(state_dir: &Path, source: SourceStatus) -> io::Result<JoinHandle<()>> {
    let listener = at_socket(state_dir, |path| {
        // The queue's lock excludes another agent, so an existing socket is stale.
        match std::fs::remove_file(path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    })?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok((mut socket, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let report = serde_json::to_vec(&source.report()).expect("reports serialize");
            drop(tokio::time::timeout(Duration::from_secs(2), socket.write_all(&report)).await);
        }
    }))
}

/// Asks the agent that uses this state directory; absent if none runs.
pub(crate) fn ask(state_dir: &Path) -> io::Result<Option<Report>> {
    let mut socket = match at_socket(state_dir, |path| std::os::unix::net::UnixStream::connect(path)) {
        Ok(socket) => socket,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(err) => return Err(err),
    };
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}
