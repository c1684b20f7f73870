//! Starts and stops collectors as the policy says, and asks the workspace for the next policy.
//!
//! A collector that a policy switched off is noted in `off.json`, durably, before it stops. When it runs again, what was
//! written meanwhile is passed over and counted, and only then the note is taken away: a crash in between leaves nothing to
//! be collected that was written while it was off.

use super::{Board, CollectorState, QueueSink, VERSION, context, own::OwnRecords, post::Reloading, resume, runner};
use crate::{
    config::{CollectorPlan, OnDisable, Resolved, ResumeAt},
    identity::IdentityDir,
    now,
    policy::{Decision, Kept, Refused, decide},
};
use anyhow::Context;
use runner::Runner;
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use vedette_collectors::{Class, Cx, Outlet, Sink, StopSignal};
use vedette_transport::{Lane, Stamp};
use vedette_wire::{
    HostLabel,
    body::LifecycleEvent,
    policy::{Policy, SignedPolicy},
};

/// Collectors that do not end in this time are left behind.
const COLLECTORS_GRACE: Duration = Duration::from_secs(2);
/// The longest pause between two questions for the policy while nothing answers.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether an acknowledgement tells of a newer policy, and whether what waits is durable.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what could not be passed over is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
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
}

impl Supervisor {
    /// Nothing runs yet; `problem` is why there is no policy in force.
    pub(super) fn new(agent: Agent, kept: Kept, problem: Option<Refused>) -> Self {
        let off = std::fs::read(agent.identity.path(OFF)).ok();
        let off = off.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        for plan in &agent.config.collectors {
            agent.board.add(plan.spec.id, plan.spec.class);
        }
        if let Some(problem) = &problem {
            tracing::error!(error = %problem, "the policy that was kept cannot be used");
        }
        agent.state.lock().unwrap_or_else(PoisonError::into_inner).problem = problem.map(|problem| problem.to_string());
        Self { agent, kept, running: BTreeMap::new(), off, told: BTreeSet::new() }
    }

    /// Run collectors by the policy in force, and by each that follows it.
    pub(super) async fn govern(&mut self, mut resumed: watch::Receiver<bool>) -> Infallible {
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
            let (post, lane) = (Arc::clone(&self.agent.post), Arc::clone(&self.agent.lane));
            tokio::select! {
                signed = next_policy(&post, &lane, self.kept.revision()) => self.consider(&signed),
                _ = resumed.changed() => {}
                () = tokio::time::sleep(AGAIN_EVERY), if !settled => {}
            }
        }
    }

    /// Wait for every collector to end; they were told to stop.
    pub(super) async fn join(self) {
        Runner::join_all(self.running.into_values().map(|running| running.thread).collect(), COLLECTORS_GRACE).await;
    }

    fn consider(&mut self, signed: &SignedPolicy) {
        let problem = match self.kept.consider(signed) {
            Ok(policy) => {
                let collect = if policy.collect { "on" } else { "off" };
                tracing::info!(revision = policy.revision, tier = %policy.tier, collect, "another policy is in force");
                None
            }
            Err(why) => {
                tracing::error!(error = %why, "a policy was refused; the one in force stays");
                self.agent.own.lifecycle(LifecycleEvent::Policy, format!("a policy was refused: {why}"), None, None);
                Some(why.to_string())
            }
        };
        self.agent.state.lock().unwrap_or_else(PoisonError::into_inner).problem = problem;
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
        let leaving: Vec<Running> = leaving.iter().filter_map(|id| self.running.remove(id)).collect();
        leaving.iter().for_each(|running| running.stop.stop());
        Runner::join_all(leaving.into_iter().map(|running| running.thread).collect(), COLLECTORS_GRACE).await;
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
            self.settle_queue().await;
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

    /// Wait until what was handed over is durable, and purge it all where the configuration says so.
    async fn settle_queue(&self) {
        let purge = self.agent.config.policy.on_disable == OnDisable::Purge;
        self.agent.post.close(purge);
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
        if resume::is_due(self.agent.lane.queue()) && !resumed && plan.spec.class != Class::Inventory {
            let why = "the queue is new; waits for the workspace to say what it has";
            board.set(id, CollectorState::Waiting, Some(why.to_owned()));
            return Ok(());
        }
        let queue = self.agent.lane.queue();
        let cx = || -> anyhow::Result<Cx> {
            let cx = context(&self.agent.config, queue.cursors(id)?, queue.stored(id)?);
            Ok(Cx { enabled: enabled.clone(), ..cx })
        };
        // A required collector that the configuration switches off runs with its other settings.
        let mut settings = decision.settings.clone();
        if decision.conflict {
            settings.insert("enabled".to_owned(), true.into());
        }
        if let Some(since) = self.off.get(id).copied() {
            if let Some(skip) = plan.spec.skip.filter(|_| self.agent.config.policy.resume == ResumeAt::End) {
                let (sink, stop, table, cx) =
                    (Arc::clone(&self.agent.sink), StopSignal::default(), settings.clone(), cx()?);
                let skipping = move || {
                    let outlet = Outlet::new(Arc::clone(&sink) as Arc<dyn Sink>, stop);
                    skip(table, &cx, &outlet).and_then(|()| sink.wait_durable())
                };
                let skipped = tokio::task::spawn_blocking(skipping).await.context("passing over panicked")?;
                skipped.context("what was written while it was off cannot be passed over")?;
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
            cx: cx()?,
            sink: Arc::clone(&self.agent.sink),
            queue: Arc::clone(queue),
            board,
            stop: stop.clone(),
            deadline: runner::POLL_DEADLINE,
        };
        let thread = runner.start().context("cannot start a collector's thread")?;
        self.running.insert(id, Running { thread, stop, settings: decision.settings });
        Ok(())
    }

    fn keep_off(&self) -> anyhow::Result<()> {
        self.agent.identity.write(OFF, &serde_json::to_vec(&self.off)?)
    }
}

/// The next policy that the workspace has. While nothing answers, pauses grow; an acknowledgement that tells of a newer
/// revision ends them.
async fn next_policy(post: &Reloading, lane: &Lane, behind: u64) -> SignedPolicy {
    let (mut pause, mut said) = (Duration::from_millis(500), false);
    loop {
        match post.current().policy(behind, VERSION).await {
            Ok(Some(signed)) => return signed,
            Ok(None) => {
                pause = Duration::from_millis(500);
                continue;
            }
            Err(why) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::debug!(why, "the workspace cannot be asked for the policy");
                }
            }
        }
        let until = Instant::now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        let newer = || lane.status().sender.policy_revision.is_some_and(|revision| revision > behind);
        while Instant::now() < until && !newer() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
