//! Starts and stops collectors by policy, and polls the workspace for the next policy.
//!
//! Before a collector is switched off by policy, that is recorded durably in `off.json`. When it is switched on again, it skips
//! and counts what was written meanwhile before the record is removed. So a crash in between never leads to the collection of
//! what was written while the collector was off.

use super::{
    CollectorState, CollectorStatuses, QueueSink,
    artifacts::ArtifactRequests,
    context,
    directives::{Rest, bring_policy, next},
    events::AgentEvents,
    post::WorkspaceClient,
    resume, runner,
};
use crate::{
    config::{CollectorPlan, OnDisable, Resolved, ResumeAt},
    identity::{Enrollment, IdentityDir},
    now,
    policy::{Decision, PolicyStore, Refused, decide},
};
use anyhow::Context;
use runner::Runner;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::{oneshot, watch};
use vedette_collectors::{CollectError, CollectorClass, CollectorContext, Outlet, Sink, Skip, StopSignal, Waker};
use vedette_transport::{BatchContext, BatchLimits, Lane, LaneConfig, Post, Queue, Quota};
use vedette_wire::{
    AgentId, HostLabel, Lane as LaneName,
    body::{CloudInstance, LifecycleEvent},
    policy::{Directives, Policy, SignedPolicy, SignedRequest},
};

/// Collectors that do not stop in time are abandoned.
const COLLECTORS_GRACE: Duration = Duration::from_secs(2);
/// Poll interval for durability.
const DURABLE_POLL: Duration = Duration::from_millis(500);
/// Retry interval of a policy that is not fully applied, and of open artifact requests.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// Time limit of a skip: a file system may hang.
const SKIP_PATIENCE: Duration = Duration::from_secs(30);
/// File in the identity directory: ids of switched-off collectors with the time, nanoseconds UTC.
const OFF: &str = "off.json";

/// State of the policy, for status.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct PolicyState {
    /// Revision; 0 without a policy.
    pub(crate) revision: u64,
    pub(crate) tier: String,
    pub(crate) collect: bool,
    /// Why the last policy was refused, the stored one cannot be used, or policies cannot be verified.
    pub(crate) problem: Option<String>,
}

/// Parts of the agent that the supervisor uses.
pub(super) struct AgentParts {
    pub(super) config: Resolved,
    pub(super) cloud: Option<Arc<CloudInstance>>,
    pub(super) identity: IdentityDir,
    pub(super) lane: Arc<Lane>,
    pub(super) post: Arc<WorkspaceClient>,
    pub(super) sink: Arc<QueueSink>,
    pub(super) events: Arc<AgentEvents>,
    pub(super) statuses: Arc<CollectorStatuses>,
    pub(super) stop: StopSignal,
    pub(super) batch_context: watch::Sender<BatchContext>,
    pub(super) host: HostLabel,
    pub(super) state: Arc<Mutex<PolicyState>>,
}

/// A running collector.
struct Running {
    thread: JoinHandle<()>,
    stop: StopSignal,
    waker: Waker,
    settings: toml::Table,
}

/// Supervises the collectors.
pub(super) struct Supervisor {
    agent: AgentParts,
    store: PolicyStore,
    running: BTreeMap<&'static str, Running>,
    off: BTreeMap<String, i64>,
    /// Reported conflicts.
    reported: BTreeSet<&'static str>,
    /// Pause before the next poll.
    rest: Rest,
    /// Skips in progress, on their own threads, since a file system may hang.
    skipping: BTreeMap<&'static str, oneshot::Receiver<Result<(), CollectError>>>,
    /// Artifact requests.
    requests: ArtifactRequests,
    blobs: Option<Blobs>,
    /// Agents that this one replaces.
    replaces: Vec<AgentId>,
}

/// The lane of artifacts.
struct Blobs {
    lane: Arc<Lane>,
    sink: Arc<QueueSink>,
}

/// The collector of artifacts.
const ARTIFACTS: &str = "artifacts";
/// Size of a batch of artifacts, and of its intake.
const BLOB_BYTES: usize = 2 << 20;

impl Supervisor {
    /// Creates a supervisor without running collectors; `problem` is why no policy is in force.
    pub(super) fn new(
        agent: AgentParts,
        enrollment: &Enrollment,
        (store, problem): (PolicyStore, Option<Refused>),
    ) -> Self {
        let off = std::fs::read(agent.identity.path(OFF)).ok();
        let off = off.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        for plan in &agent.config.collectors {
            agent.statuses.add(plan.spec.id, plan.spec.class);
        }
        if let Some(problem) = &problem {
            let collects = store.policy().is_some();
            tracing::error!(error = %problem, collects, "the stored policy cannot be used until the workspace sends one");
        }
        agent.state.lock().unwrap_or_else(PoisonError::into_inner).problem = problem.map(|problem| problem.to_string());
        let requests = ArtifactRequests::load(&agent.identity, enrollment);
        let (running, reported) = (BTreeMap::new(), BTreeSet::new());
        let (skipping, replaces) = (BTreeMap::new(), enrollment.replaces.clone());
        Self { agent, store, running, off, reported, requests, blobs: None, rest: Rest::default(), skipping, replaces }
    }

    /// Runs collectors by the policy in force, and by each that replaces it.
    pub(super) async fn run(&mut self, mut resumed: watch::Receiver<bool>) -> Infallible {
        // Requests from before the start.
        self.take_requests(Vec::new()).await;
        // The poll continues while other events are handled; a new one would restart its pauses.
        let mut asking = self.ask();
        loop {
            // The borrow must not live over the wait.
            let is_resumed = *resumed.borrow_and_update();
            let settled = match self.apply(is_resumed).await {
                Ok(()) => true,
                Err(err) => {
                    tracing::error!(error = format!("{err:#}"), "the policy cannot be applied yet; trying again");
                    false
                }
            };
            tokio::select! {
                directives = &mut asking => {
                    let known = self.store.revision();
                    if let Some(signed) = &directives.policy {
                        self.accept_policy(signed);
                    }
                    if directives.bring_policy {
                        bring_policy(&self.agent.post, self.store.signed()).await;
                    }
                    let is_new = self.take_requests(directives.artifacts).await || self.store.revision() != known;
                    self.rest.answered(is_new);
                    asking = self.ask();
                }
                () = tokio::time::sleep(AGAIN_EVERY), if self.requests.is_open() => drop(self.take_requests(Vec::new()).await),
                _ = resumed.changed() => {}
                () = tokio::time::sleep(AGAIN_EVERY), if !settled => {}
            }
        }
    }

    /// The next poll.
    fn ask(&self) -> Pin<Box<dyn Future<Output = Directives> + Send>> {
        let (post, lane) = (Arc::clone(&self.agent.post), Arc::clone(&self.agent.lane));
        let (rest, after) = (self.rest, self.store.revision());
        Box::pin(async move {
            rest.wait(&lane, after).await;
            next(&post, &lane, after).await
        })
    }

    /// Waits for the stopped collectors to end. Remaining artifacts are sent after the next start.
    pub(super) async fn join(self) {
        Runner::join_all(self.running.into_values().map(|running| running.thread).collect(), COLLECTORS_GRACE).await;
        if let Some(blobs) = self.blobs {
            drop(blobs.sink);
            match Arc::try_unwrap(blobs.lane) {
                Ok(lane) => lane.stop(Duration::ZERO).await,
                Err(lane) => lane.close(),
            }
        }
    }

    /// Adds artifact requests, records answered ones, and wakes the collector.
    async fn take_requests(&mut self, signed: Vec<SignedRequest>) -> bool {
        let Some(limits) = self.store.policy().map(|policy| policy.artifacts.clone()) else { return false };
        let settled = match &self.blobs {
            Some(blobs) => self.requests.settle(&blobs.sink).await,
            None => Ok(()),
        };
        let taken = settled.and_then(|()| self.requests.take(signed, &limits));
        match taken {
            Ok(is_new) => {
                if let Some(running) = self.running.get(ARTIFACTS) {
                    running.waker.wake();
                }
                is_new
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "artifact requests cannot be stored");
                false
            }
        }
    }

    /// The lane of artifacts; opened with the first request, since it takes memory and a file.
    fn blobs(&mut self) -> anyhow::Result<Option<&Blobs>> {
        let dir = &self.agent.config.state_dir;
        if self.blobs.is_none() && (self.requests.is_open() || dir.join("blobs.redb").exists()) {
            let quota = Quota { cache_bytes: 1 << 20, ..self.agent.config.quota };
            let queue = Queue::open(dir, LaneName::Blobs, quota, fastrand::u64(1..))?;
            let batch_context = self.agent.batch_context.borrow().clone();
            let owner = (batch_context.organization, batch_context.agent);
            queue.set_owner(owner, &self.replaces, &self.agent.host, fastrand::u64(1..))?;
            let lane = Lane::start(LaneConfig {
                queue,
                limits: BatchLimits { bytes_max: BLOB_BYTES, records_max: 64, ..self.agent.config.batches.clone() },
                context: self.agent.batch_context.subscribe(),
                intake_bytes_max: BLOB_BYTES,
                in_flight_bytes_max: 2 * BLOB_BYTES,
                now: Arc::new(now),
                post: Some(Arc::clone(&self.agent.post) as Arc<dyn Post>),
            })?;
            let (statuses, events) = (Arc::clone(&self.agent.statuses), Arc::clone(&self.agent.events));
            let sink = Arc::new(QueueSink::new(&lane, statuses, events));
            self.blobs = Some(Blobs { lane: Arc::new(lane), sink });
        }
        Ok(self.blobs.as_ref())
    }

    /// Puts a policy in force. A refused policy is repeated by the workspace: pauses between polls grow, and a changed reason
    /// is reported.
    fn accept_policy(&mut self, signed: &SignedPolicy) {
        let problem = match self.store.accept(signed) {
            Ok(policy) => {
                let collect = if policy.collect { "on" } else { "off" };
                tracing::info!(revision = policy.revision, tier = %policy.tier, collect, "policy changed");
                None
            }
            Err(why) => Some(why.to_string()),
        };
        self.rest.is_refused = problem.is_some();
        let mut state = self.agent.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &problem
            && state.problem.as_ref() != Some(why)
        {
            tracing::error!(error = why, "policy refused; keeping the one in force");
            self.agent.events.lifecycle(LifecycleEvent::Policy, format!("a policy was refused: {why}"), None, None);
        }
        state.problem = problem;
    }

    /// Applies the policy in force to all collectors.
    async fn apply(&mut self, resumed: bool) -> anyhow::Result<()> {
        let Some(policy) = self.store.policy().cloned() else {
            self.agent.events.set_silent(true);
            for plan in &self.agent.config.collectors {
                let why = "no policy is in force; waiting for the workspace";
                self.agent.statuses.set(plan.spec.id, CollectorState::Waiting, Some(why.to_owned()));
            }
            return Ok(());
        };
        self.agent.post.endpoints().set(&policy.endpoints);
        let cx = context(&self.agent.config, Vec::new(), Vec::new());
        let decisions = decide(&policy, &self.agent.config.collectors, &cx);
        let before = self.off.len();
        for decision in decisions.iter().filter(|decision| decision.by_policy) {
            self.off.entry(decision.id.to_owned()).or_insert_with(now);
        }
        if self.off.len() != before {
            self.keep_off()?;
        }
        let leaves = |decision: &&Decision| {
            self.running.get(decision.id).is_some_and(|is| !decision.run || is.settings != decision.settings)
        };
        let leaving: Vec<&'static str> = decisions.iter().filter(leaves).map(|decision| decision.id).collect();
        let by_policy = decisions.iter().any(|decision| decision.by_policy && leaving.contains(&decision.id));
        let leaving: Vec<Running> = leaving.iter().filter_map(|id| self.running.remove(id)).collect();
        leaving.iter().for_each(|running| running.stop.stop());
        Runner::join_all(leaving.into_iter().map(|running| running.thread).collect(), COLLECTORS_GRACE).await;
        if by_policy && policy.collect {
            // Their records belong to the previous policy.
            self.durable().await;
        }
        self.batch_context(&policy).await;
        let enabled = decisions.iter().filter(|decision| decision.run).map(|decision| decision.id).collect();
        let plans = self.agent.config.collectors.clone();
        let mut failed = None;
        for (plan, decision) in plans.iter().zip(decisions) {
            if let Err(err) = self.reconcile(plan, decision, &enabled, resumed).await {
                self.agent.statuses.set(plan.spec.id, CollectorState::Waiting, Some(format!("{err:#}")));
                failed.get_or_insert(err);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Assigns later records to this policy. Before collection is switched off, makes earlier records durable under the
    /// previous policy; after that nothing about this host is emitted.
    async fn batch_context(&self, policy: &Policy) {
        let revision = self.agent.batch_context.borrow().policy_revision;
        let was = {
            let mut state = self.agent.state.lock().unwrap_or_else(PoisonError::into_inner);
            let was = state.clone();
            (state.revision, state.tier, state.collect) =
                (policy.revision, policy.tier.name().to_owned(), policy.collect);
            was
        };
        if !policy.collect {
            if was.collect {
                let said = format!("policy revision {} switches collection off", policy.revision);
                let telling = self.agent.events.lifecycle(LifecycleEvent::Policy, said, None, None);
                if let Some(telling) = telling {
                    drop(tokio::time::timeout(COLLECTORS_GRACE, telling).await);
                }
            }
            self.agent.events.set_silent(true);
            if revision != policy.revision || !self.agent.batch_context.borrow().host.hostname.is_empty() {
                self.settle_queue().await;
            }
        }
        let host = if policy.collect { self.agent.host.clone() } else { HostLabel::default() };
        self.agent.batch_context.send_if_modified(|batch_context| {
            let changed = (batch_context.policy_revision, &batch_context.host) != (policy.revision, &host);
            (batch_context.policy_revision, batch_context.host) = (policy.revision, host);
            changed
        });
        if policy.collect {
            self.agent.events.set_silent(false);
            if revision != policy.revision {
                let said = format!("policy revision {} is in force", policy.revision);
                self.agent.events.lifecycle(LifecycleEvent::Policy, said, None, None);
            }
        }
    }

    async fn durable(&self) {
        let sink = Arc::clone(&self.agent.sink);
        drop(tokio::task::spawn_blocking(move || sink.wait_durable()).await);
    }

    /// Waits until everything is durable, and purges the queue if so configured.
    async fn settle_queue(&self) {
        let purge = self.agent.config.policy.on_disable == OnDisable::Purge;
        self.agent.post.close(purge);
        if purge {
            // Batches in damaged queues were observed before, too.
            for path in vedette_transport::queue::salvage::broken(&self.agent.config.state_dir, LaneName::Records) {
                tracing::warn!(path = %path.display(), "a damaged queue is deleted: the queue is being purged by policy");
                drop(std::fs::remove_file(path));
            }
        }
        let sink = Arc::clone(&self.agent.sink);
        let mut durable = tokio::task::spawn_blocking(move || sink.wait_durable());
        let mut last = false;
        while !last {
            last = tokio::time::timeout(DURABLE_POLL, &mut durable).await.is_ok();
            let queue = Arc::clone(self.agent.lane.queue());
            // Purges first as well: a full queue takes nothing until it has room.
            if purge
                && let Err(err) =
                    tokio::task::spawn_blocking(move || queue.purge_all()).await.expect("the queue does not panic")
            {
                tracing::error!(error = %err, "the queue cannot be purged");
            }
        }
        self.agent.post.close(false);
    }

    /// Applies a decision to one collector.
    async fn reconcile(
        &mut self,
        plan: &CollectorPlan,
        decision: Decision,
        enabled: &BTreeSet<&'static str>,
        resumed: bool,
    ) -> anyhow::Result<()> {
        let (id, statuses) = (decision.id, Arc::clone(&self.agent.statuses));
        if !decision.run {
            statuses.note(id, None);
            statuses.set(id, CollectorState::Disabled, decision.why);
            return Ok(());
        }
        if decision.conflict
            && self.reported.insert(id)
            && let Some(why) = &decision.why
        {
            tracing::warn!(collector = id, why, "the configuration and the policy disagree");
            self.agent.events.lifecycle(LifecycleEvent::Policy, why.clone(), Some(id), None);
        }
        statuses.note(id, decision.why.clone());
        if self.running.contains_key(id) {
            return Ok(());
        }
        let is_artifact = plan.spec.class == CollectorClass::Artifact;
        if is_artifact {
            // It counts as running; its thread and lane start with the first request.
            statuses.set(id, CollectorState::Running, None);
            if self.blobs()?.is_none() {
                return Ok(());
            }
        }
        let lane = match &self.blobs {
            Some(blobs) if is_artifact => Arc::clone(&blobs.lane),
            _ => Arc::clone(&self.agent.lane),
        };
        let sink = match &self.blobs {
            Some(blobs) if is_artifact => Arc::clone(&blobs.sink),
            _ => Arc::clone(&self.agent.sink),
        };
        if resume::waits(lane.queue(), plan.spec) && !resumed && !is_artifact {
            let why = "waiting for the workspace's positions";
            statuses.set(id, CollectorState::Waiting, Some(why.to_owned()));
            return Ok(());
        }
        // A required collector that is switched off runs with its other settings.
        let mut settings = decision.settings.clone();
        if !plan.enabled {
            settings.insert("enabled".to_owned(), true.into());
        }
        if let Some(since) = self.off.get(id).copied() {
            if let Some(skip) = plan.spec.skip.filter(|_| self.agent.config.policy.resume == ResumeAt::End) {
                self.skip(id, skip, (settings.clone(), self.cx(id, &lane, enabled)?), Arc::clone(&sink)).await?;
            }
            let off = Duration::from_nanos(now().saturating_sub(since).max(0).cast_unsigned());
            let said = format!("was switched off by policy for {} s", off.as_secs());
            self.agent.events.lifecycle(LifecycleEvent::Policy, said, Some(id), None);
            self.off.remove(id);
            self.keep_off()?;
        }
        let stop = self.agent.stop.child();
        let runner = Runner {
            spec: plan.spec,
            settings,
            cx: self.cx(id, &lane, enabled)?,
            sink,
            queue: Arc::clone(lane.queue()),
            statuses,
            stop: stop.clone(),
            deadline: runner::POLL_DEADLINE,
        };
        let thread = runner.start().context("cannot start a collector's thread")?;
        self.running.insert(id, Running { thread, waker: stop.waker(), stop, settings: decision.settings });
        Ok(())
    }

    fn cx(&self, id: &str, lane: &Lane, enabled: &BTreeSet<&'static str>) -> anyhow::Result<CollectorContext> {
        let cx = context(&self.agent.config, lane.queue().cursors(id)?, lane.queue().stored(id)?);
        let requests = Some(self.requests.requests().clone());
        Ok(CollectorContext { enabled: enabled.clone(), requests, cloud: self.agent.cloud.clone(), ..cx })
    }

    /// Skips what was written while a collector was off, on a thread; a skip that hangs is awaited later.
    async fn skip(
        &mut self,
        id: &'static str,
        skip: Skip,
        (table, cx): (toml::Table, CollectorContext),
        sink: Arc<QueueSink>,
    ) -> anyhow::Result<()> {
        let mut done = match self.skipping.remove(id) {
            Some(done) => done,
            None => {
                let (tell, done) = oneshot::channel();
                let stop = self.agent.stop.child();
                let work = move || {
                    let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, stop);
                    drop(tell.send(skip(table, &cx, &outlet).and_then(|()| sink.wait_durable())));
                };
                std::thread::Builder::new().name(format!("skip-{id}")).spawn(work)?;
                done
            }
        };
        match tokio::time::timeout(SKIP_PATIENCE, &mut done).await {
            Ok(skipped) => Ok(skipped.context("skipping panicked")??),
            Err(_) => {
                self.skipping.insert(id, done);
                anyhow::bail!("still skipping what was written while it was off");
            }
        }
    }

    fn keep_off(&self) -> anyhow::Result<()> {
        self.agent.identity.write(OFF, &serde_json::to_vec(&self.off)?)
    }
}
