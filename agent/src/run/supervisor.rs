//! Starts and stops collectors as the policy says, and asks the workspace for the next policy.
//!
//! A collector that a policy switched off is noted in `off.json`, durably, before it stops. When it runs again, what was
//! written meanwhile is passed over and counted, and only then the note is taken away: a crash in between leaves nothing to
//! be collected that was written while it was off.

use super::{
    Board, CollectorState, QueueSink,
    artifacts::Asked,
    context,
    directives::{Rest, bring_policy, next},
    own::OwnRecords,
    post::Reloading,
    resume, runner,
};
use crate::{
    config::{CollectorPlan, OnDisable, Resolved, ResumeAt},
    identity::{Enrollment, IdentityDir},
    now,
    policy::{Decision, Kept, Refused, decide},
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
use vedette_collectors::{Class, CollectError, Cx, Outlet, Sink, Skip, StopSignal, Waker};
use vedette_transport::{BatchLimits, Lane, LaneConfig, Post, Queue, Quota, Stamp};
use vedette_wire::{
    AgentId, HostLabel, Lane as LaneName,
    body::{CloudInstance, LifecycleEvent},
    policy::{Directives, Policy, SignedPolicy, SignedRequest},
};

/// Collectors that do not end in this time are left behind.
const COLLECTORS_GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether what waits is durable.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what could not be passed over is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// Passing over takes longer on a file system that hangs.
const SKIP_PATIENCE: Duration = Duration::from_secs(30);
/// The note in the identity directory: ids of collectors, and since when they are off, nanoseconds UTC.
const OFF: &str = "off.json";

/// What status says of the policy.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct PolicyState {
    /// 0 where none is in force.
    pub(crate) revision: u64,
    pub(crate) tier: String,
    pub(crate) collect: bool,
    /// Why the last one was refused, or none is in force.
    pub(crate) problem: Option<String>,
}

/// What collectors need of the agent.
pub(super) struct Agent {
    pub(super) config: Resolved,
    pub(super) cloud: Option<Arc<CloudInstance>>,
    pub(super) identity: IdentityDir,
    pub(super) lane: Arc<Lane>,
    pub(super) post: Arc<Reloading>,
    pub(super) sink: Arc<QueueSink>,
    pub(super) own: Arc<OwnRecords>,
    pub(super) board: Arc<Board>,
    pub(super) stop: StopSignal,
    pub(super) stamp: watch::Sender<Stamp>,
    pub(super) host: HostLabel,
    pub(super) state: Arc<Mutex<PolicyState>>,
}

/// A collector that runs.
struct Running {
    thread: JoinHandle<()>,
    stop: StopSignal,
    waker: Waker,
    settings: toml::Table,
}

/// The collectors of a running agent.
pub(super) struct Supervisor {
    agent: Agent,
    kept: Kept,
    running: BTreeMap<&'static str, Running>,
    off: BTreeMap<String, i64>,
    /// Conflicts that were told.
    told: BTreeSet<&'static str>,
    /// How long the workspace is not asked, since its answers changed nothing.
    rest: Rest,
    /// Passing over what was written while they were off, on threads of their own: a file system may hang.
    skipping: BTreeMap<&'static str, oneshot::Receiver<Result<(), CollectError>>>,
    /// Artifacts that were asked for.
    asked: Asked,
    blobs: Option<Blobs>,
    /// Agents that this one takes the place of.
    replaces: Vec<AgentId>,
}

/// The lane that artifacts travel on.
struct Blobs {
    lane: Arc<Lane>,
    sink: Arc<QueueSink>,
}

/// The collector of artifacts.
const ARTIFACTS: &str = "artifacts";
/// Of a batch of artifacts, and of what waits for one.
const BLOB_BYTES: usize = 2 << 20;

impl Supervisor {
    /// Nothing runs yet; `problem` is why there is no policy in force.
    pub(super) fn new(agent: Agent, enrollment: &Enrollment, (kept, problem): (Kept, Option<Refused>)) -> Self {
        let off = std::fs::read(agent.identity.path(OFF)).ok();
        let off = off.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        for plan in &agent.config.collectors {
            agent.board.add(plan.spec.id, plan.spec.class);
        }
        if let Some(problem) = &problem {
            let waits = kept.policy().is_none();
            tracing::error!(error = %problem, waits, "the policy that was kept cannot be used; where it waits, nothing is \
                collected until the workspace has sent one");
        }
        agent.state.lock().unwrap_or_else(PoisonError::into_inner).problem = problem.map(|problem| problem.to_string());
        let asked = Asked::load(&agent.identity, enrollment);
        let (running, told) = (BTreeMap::new(), BTreeSet::new());
        let (skipping, replaces) = (BTreeMap::new(), enrollment.replaces.clone());
        Self { agent, kept, running, off, told, asked, blobs: None, rest: Rest::default(), skipping, replaces }
    }

    /// Run collectors by the policy in force, and by each that follows it.
    pub(super) async fn govern(&mut self, mut resumed: watch::Receiver<bool>) -> Infallible {
        // What was asked for before the start.
        self.asked_for(Vec::new()).await;
        // It goes on while other things happen; else pauses would begin anew with each of them.
        let mut asking = self.ask();
        loop {
            // The borrow must not live over the wait.
            let is_resumed = *resumed.borrow_and_update();
            let settled = match self.apply(is_resumed).await {
                Ok(()) => true,
                Err(err) => {
                    tracing::error!(error = format!("{err:#}"), "the policy cannot be followed yet; tried again");
                    false
                }
            };
            tokio::select! {
                directives = &mut asking => {
                    let known = self.kept.revision();
                    if let Some(signed) = &directives.policy {
                        self.consider(signed);
                    }
                    if directives.bring_policy {
                        bring_policy(&self.agent.post, self.kept.signed()).await;
                    }
                    let is_new = self.asked_for(directives.artifacts).await || self.kept.revision() != known;
                    self.rest.answered(is_new);
                    asking = self.ask();
                }
                () = tokio::time::sleep(AGAIN_EVERY), if self.asked.is_open() => drop(self.asked_for(Vec::new()).await),
                _ = resumed.changed() => {}
                () = tokio::time::sleep(AGAIN_EVERY), if !settled => {}
            }
        }
    }

    /// The next question to the workspace.
    fn ask(&self) -> Pin<Box<dyn Future<Output = Directives> + Send>> {
        let (post, lane) = (Arc::clone(&self.agent.post), Arc::clone(&self.agent.lane));
        let (rest, behind) = (self.rest, self.kept.revision());
        Box::pin(async move {
            rest.wait(&lane, behind).await;
            next(&post, &lane, behind).await
        })
    }

    /// Wait for every collector to end; they were told to stop. What artifacts have left is sent after the next start.
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

    /// Take requests for artifacts in, note those that are answered, and run the collector once there was one.
    async fn asked_for(&mut self, signed: Vec<SignedRequest>) -> bool {
        let Some(limits) = self.kept.policy().map(|policy| policy.artifacts.clone()) else { return false };
        let settled = match &self.blobs {
            Some(blobs) => self.asked.settle(&blobs.sink).await,
            None => Ok(()),
        };
        let taken = settled.and_then(|()| self.asked.take(signed, &limits));
        match taken {
            Ok(is_new) => {
                if let Some(running) = self.running.get(ARTIFACTS) {
                    running.waker.wake();
                }
                is_new
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "requests for artifacts cannot be kept");
                false
            }
        }
    }

    /// The lane of artifacts, opened when the first is asked for: it takes memory and a file.
    fn blobs(&mut self) -> anyhow::Result<Option<&Blobs>> {
        let dir = &self.agent.config.state_dir;
        if self.blobs.is_none() && (self.asked.is_open() || dir.join("blobs.redb").exists()) {
            let quota = Quota { cache_bytes: 1 << 20, ..self.agent.config.quota };
            let queue = Queue::open(dir, LaneName::Blobs, quota, fastrand::u64(1..))?;
            let stamp = self.agent.stamp.borrow().clone();
            let owner = (stamp.organization, stamp.agent);
            queue.own(owner, &self.replaces, &self.agent.host, fastrand::u64(1..))?;
            let lane = Lane::start(LaneConfig {
                queue,
                limits: BatchLimits { bytes_max: BLOB_BYTES, records_max: 64, ..self.agent.config.batches.clone() },
                stamp: self.agent.stamp.subscribe(),
                intake_bytes_max: BLOB_BYTES,
                in_flight_bytes_max: 2 * BLOB_BYTES,
                now: Arc::new(now),
                post: Some(Arc::clone(&self.agent.post) as Arc<dyn Post>),
            })?;
            let (board, own) = (Arc::clone(&self.agent.board), Arc::clone(&self.agent.own));
            let sink = Arc::new(QueueSink::new(&lane, board, own));
            self.blobs = Some(Blobs { lane: Arc::new(lane), sink });
        }
        Ok(self.blobs.as_ref())
    }

    /// A policy that is refused comes again as long as the workspace has no other: it is asked for after longer and longer
    /// pauses, and reported when the reason changes.
    fn consider(&mut self, signed: &SignedPolicy) {
        let problem = match self.kept.consider(signed) {
            Ok(policy) => {
                let collect = if policy.collect { "on" } else { "off" };
                tracing::info!(revision = policy.revision, tier = %policy.tier, collect, "another policy is in force");
                None
            }
            Err(why) => Some(why.to_string()),
        };
        self.rest.is_refused = problem.is_some();
        let mut state = self.agent.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &problem
            && state.problem.as_ref() != Some(why)
        {
            tracing::error!(error = why, "a policy was refused; the one in force stays");
            self.agent.own.lifecycle(LifecycleEvent::Policy, format!("a policy was refused: {why}"), None, None);
        }
        state.problem = problem;
    }

    /// Have run what the policy in force says, and nothing else.
    async fn apply(&mut self, resumed: bool) -> anyhow::Result<()> {
        let Some(policy) = self.kept.policy().cloned() else {
            self.agent.own.set_silent(true);
            for plan in &self.agent.config.collectors {
                let why = "no policy is in force; waits for the workspace to send one";
                self.agent.board.set(plan.spec.id, CollectorState::Waiting, Some(why.to_owned()));
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
            // What they saw belongs under the policy before.
            self.durable().await;
        }
        self.stamp(&policy).await;
        let enabled = decisions.iter().filter(|decision| decision.run).map(|decision| decision.id).collect();
        let plans = self.agent.config.collectors.clone();
        let mut failed = None;
        for (plan, decision) in plans.iter().zip(decisions) {
            if let Err(err) = self.follow(plan, decision, &enabled, resumed).await {
                self.agent.board.set(plan.spec.id, CollectorState::Waiting, Some(format!("{err:#}")));
                failed.get_or_insert(err);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What is observed from now on is observed under this policy. Before it is switched off, what was observed under the
    /// last one is made durable under that; then nothing more is said of this host.
    async fn stamp(&self, policy: &Policy) {
        let revision = self.agent.stamp.borrow().policy_revision;
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
                let telling = self.agent.own.lifecycle(LifecycleEvent::Policy, said, None, None);
                if let Some(telling) = telling {
                    drop(tokio::time::timeout(COLLECTORS_GRACE, telling).await);
                }
            }
            self.agent.own.set_silent(true);
            if revision != policy.revision || !self.agent.stamp.borrow().host.hostname.is_empty() {
                self.settle_queue().await;
            }
        }
        let host = if policy.collect { self.agent.host.clone() } else { HostLabel::default() };
        self.agent.stamp.send_if_modified(|stamp| {
            let changed = (stamp.policy_revision, &stamp.host) != (policy.revision, &host);
            (stamp.policy_revision, stamp.host) = (policy.revision, host);
            changed
        });
        if policy.collect {
            self.agent.own.set_silent(false);
            if revision != policy.revision {
                let said = format!("policy revision {} is in force", policy.revision);
                self.agent.own.lifecycle(LifecycleEvent::Policy, said, None, None);
            }
        }
    }

    async fn durable(&self) {
        let sink = Arc::clone(&self.agent.sink);
        drop(tokio::task::spawn_blocking(move || sink.wait_durable()).await);
    }

    /// Wait until what was handed over is durable, and purge it all where the configuration says so.
    async fn settle_queue(&self) {
        let purge = self.agent.config.policy.on_disable == OnDisable::Purge;
        self.agent.post.close(purge);
        if purge {
            // What would be salvaged was observed before as well.
            for path in vedette_transport::queue::salvage::broken(&self.agent.config.state_dir, LaneName::Records) {
                tracing::warn!(path = %path.display(), "a damaged queue is deleted: policy has what is queued purged");
                drop(std::fs::remove_file(path));
            }
        }
        let sink = Arc::clone(&self.agent.sink);
        let mut durable = tokio::task::spawn_blocking(move || sink.wait_durable());
        let mut last = false;
        while !last {
            last = tokio::time::timeout(LOOK_EVERY, &mut durable).await.is_ok();
            let queue = Arc::clone(self.agent.lane.queue());
            // Also before: a full queue takes nothing until there is room.
            if purge
                && let Err(err) =
                    tokio::task::spawn_blocking(move || queue.purge_all()).await.expect("the queue does not panic")
            {
                tracing::error!(error = %err, "what is queued cannot be purged");
            }
        }
        self.agent.post.close(false);
    }

    /// One collector.
    async fn follow(
        &mut self,
        plan: &CollectorPlan,
        decision: Decision,
        enabled: &BTreeSet<&'static str>,
        resumed: bool,
    ) -> anyhow::Result<()> {
        let (id, board) = (decision.id, Arc::clone(&self.agent.board));
        if !decision.run {
            board.note(id, None);
            board.set(id, CollectorState::Disabled, decision.why);
            return Ok(());
        }
        if decision.conflict
            && self.told.insert(id)
            && let Some(why) = &decision.why
        {
            tracing::warn!(collector = id, why, "the configuration and the policy disagree");
            self.agent.own.lifecycle(LifecycleEvent::Policy, why.clone(), Some(id), None);
        }
        board.note(id, decision.why.clone());
        if self.running.contains_key(id) {
            return Ok(());
        }
        let is_artifact = plan.spec.class == Class::Artifact;
        if is_artifact {
            // It runs as far as anybody can see; its thread and its lane come with the first request.
            board.set(id, CollectorState::Running, None);
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
            let why = "waits for the workspace to say what it has";
            board.set(id, CollectorState::Waiting, Some(why.to_owned()));
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
            let said =
                format!("was off by policy for {} s; what was written meanwhile is not collected", off.as_secs());
            self.agent.own.lifecycle(LifecycleEvent::Policy, said, Some(id), None);
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
            board,
            stop: stop.clone(),
            deadline: runner::POLL_DEADLINE,
        };
        let thread = runner.start().context("cannot start a collector's thread")?;
        self.running.insert(id, Running { thread, waker: stop.waker(), stop, settings: decision.settings });
        Ok(())
    }

    fn cx(&self, id: &str, lane: &Lane, enabled: &BTreeSet<&'static str>) -> anyhow::Result<Cx> {
        let cx = context(&self.agent.config, lane.queue().cursors(id)?, lane.queue().stored(id)?);
        let requests = Some(self.asked.requests().clone());
        Ok(Cx { enabled: enabled.clone(), requests, cloud: self.agent.cloud.clone(), ..cx })
    }

    /// Pass over what was written while a collector was off, on a thread; what hangs is waited for again later.
    async fn skip(
        &mut self,
        id: &'static str,
        skip: Skip,
        (table, cx): (toml::Table, Cx),
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
            Ok(skipped) => Ok(skipped.context("passing over panicked")??),
            Err(_) => {
                self.skipping.insert(id, done);
                anyhow::bail!("what was written while it was off is still being passed over");
            }
        }
    }

    fn keep_off(&self) -> anyhow::Result<()> {
        self.agent.identity.write(OFF, &serde_json::to_vec(&self.off)?)
    }
}
