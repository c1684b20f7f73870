//! Status of the running agent: the report that `vedette status` prints, and the heartbeat.

mod metrics;
mod prometheus;
mod server;

pub(super) use metrics::serve as serve_metrics;
pub(crate) use prometheus::render as prometheus;
pub(crate) use server::{Server, ask};

use super::{context::AgentContext, policy::PolicyStatus};
use crate::{exit::VERSION, now, platform};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;
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
    pub(crate) problem: Option<String>,
    /// Permissions that the agent lacks for it, and what is lost.
    #[serde(default)]
    pub(crate) missing_permissions: Vec<String>,
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

/// Batches in quarantine: the workspace refuses them for good, or they belong to an earlier enrollment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct QuarantineReport {
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    /// Number of batches deleted, for lack of space or by `vedette queue quarantine drop`.
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

/// The policy in a report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PolicyState {
    /// Revision that the collectors follow; 0 without a policy.
    pub(crate) revision: u64,
    pub(crate) tier: String,
    pub(crate) collect: bool,
    /// Why the last policy was refused, the stored one cannot be used, or policies cannot be verified.
    pub(crate) problem: Option<String>,
}

impl PolicyState {
    fn of(status: &PolicyStatus) -> Self {
        let problem = status.problem.clone();
        match &status.applied {
            None => Self { problem, ..Self::default() },
            Some(policy) => {
                let (revision, tier) = (policy.revision, policy.tier.name().to_owned());
                Self { revision, tier, collect: policy.collect, problem }
            }
        }
    }
}

/// Permissions that this process lacks for a collector, and what is lost.
pub(crate) fn missing_permissions(spec: &vedette_collectors::Spec) -> Vec<String> {
    let missing = vedette_collectors::missing_permissions(spec.permissions).into_iter();
    missing.map(|permission| format!("{}: {}", permission.names(), permission.lost)).collect()
}

/// What a report is built from.
#[derive(Clone)]
pub(crate) struct StatusSource {
    agent: Arc<AgentContext>,
    policy: watch::Receiver<PolicyStatus>,
}

impl StatusSource {
    pub(super) fn new(agent: Arc<AgentContext>, policy: watch::Receiver<PolicyStatus>) -> Self {
        Self { agent, policy }
    }

    pub(crate) fn report(&self) -> Report {
        let (agent, lane) = (&self.agent, self.agent.records.lane.status());
        let counters = |id: &str| lane.ledger.0.get(id).cloned().unwrap_or_default();
        let collectors = agent.statuses.all().into_iter().map(|(id, status)| {
            let problem = status.reason.clone().filter(|_| status.is_problem);
            let problems: Vec<String> =
                status.runs_because.into_iter().chain(status.stuck).chain(status.reason).collect();
            Collector {
                id: id.to_owned(),
                class: format!("{:?}", status.class).to_lowercase(),
                state: status.state.name().to_owned(),
                emitted: counters(id).emitted,
                dropped: counters(id).dropped_total(),
                dropped_by_reason: counters(id).dropped,
                last_error: (!problems.is_empty()).then(|| problems.join("; ")),
                problem,
                missing_permissions: vedette_collectors::find(id).map(missing_permissions).unwrap_or_default(),
            }
        });
        let in_use = agent.client.endpoints().in_use().clone();
        let policy = PolicyState::of(&self.policy.borrow());
        Report {
            version: VERSION.to_owned(),
            agent: agent.enrollment.agent.to_string(),
            organization: agent.enrollment.organization.to_string(),
            organization_name: agent.enrollment.organization_name.clone(),
            workspace: agent.enrollment.workspace.clone(),
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
                idle_seconds: lane.sender.delivered_at.unwrap_or(agent.started).elapsed().as_secs_f64(),
                purged: lane.sender.purged,
                last_error: lane.sender.last_error,
            },
            rss_bytes: platform::resident_bytes(),
            oldest_sealed: lane.queue.oldest_sealed,
        }
    }

    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let (report, in_use) = (self.report(), self.agent.client.endpoints().in_use().clone());
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
