//! Applies the policy: polls the workspace for the next one, and starts and stops collectors accordingly.
//!
//! Before a collector is switched off by policy, that is recorded durably in `off.json`. When the collector is switched on
//! again, it first skips and counts what was written meanwhile; then the record is removed. So a crash in between never leads
//! to the collection of what was written while the collector was off.

mod directives;

use crate::{
    config::{ConfiguredCollector, OnDisable, Resolved, ResumeAt, collector_context},
    now,
    runtime::{
        artifacts::Artifacts,
        collectors::{CollectorState, LaneSink, StartRequest, Supervisor},
        context::AgentContext,
        delivery::resume,
        policy::{Decision, PolicyStore, decide},
    },
};
use anyhow::Result;
use directives::{PollPace, next, upload_policy};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use vedette_collectors::{AnySettings, CollectorClass, CollectorContext, Spec};
use vedette_transport::BatchContext;
use vedette_wire::{
    HostLabel, LaneName,
    body::LifecycleEvent,
    policy::{Directives, Policy, SignedPolicy, SignedRequest},
};

/// Maximum time to wait until the last event fits into the intake, before collection is switched off.
const EVENT_GRACE: Duration = Duration::from_secs(2);
/// Interval of checks whether all records are durable.
const DURABLE_POLL: Duration = Duration::from_millis(500);
/// Retry interval of a policy that is not fully applied, and of open artifact requests.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// File in the identity directory: ids of switched-off collectors with the time, nanoseconds UTC.
const OFF: &str = "off.json";
/// The collector of artifacts.
const ARTIFACTS: &str = "artifacts";

/// The running collectors that a collector defers to.
fn relevant(spec: &Spec, enabled: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    enabled.iter().copied().filter(|id| spec.defers_to.contains(id)).collect()
}

/// Applies the policy.
pub(super) struct Reconciler {
    agent: Arc<AgentContext>,
    /// The configuration in force.
    config: Arc<Resolved>,
    store: PolicyStore,
    /// The policy revision and the host that batch headers name.
    batch_context: watch::Sender<BatchContext>,
    collectors: Supervisor,
    artifacts: Artifacts,
    /// Collectors that a policy switched off, with the time.
    off: BTreeMap<String, i64>,
    /// Reported conflicts between configuration and policy.
    reported: BTreeSet<&'static str>,
    /// Pause before the next poll.
    pace: PollPace,
}

impl Reconciler {
    /// Creates a reconciler without running collectors.
    pub(super) fn new(
        agent: Arc<AgentContext>,
        store: PolicyStore,
        batch_context: watch::Sender<BatchContext>,
    ) -> Self {
        let off = std::fs::read(agent.identity.path(OFF)).ok();
        let off = off.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let config = Arc::clone(&agent.in_force.borrow());
        for collector in &config.collectors {
            agent.statuses.add(collector.spec.id, collector.spec.class);
        }
        if let Some(problem) = store.problem() {
            let has_policy = store.policy().is_some();
            tracing::error!(
                error = problem,
                has_policy,
                "the stored policy cannot be used; waiting for the workspace to send one"
            );
        }
        let collectors = Supervisor::new(Arc::clone(&agent.statuses), agent.stop.clone());
        let artifacts = Artifacts::load(Arc::clone(&agent));
        let (reported, pace) = (BTreeSet::new(), PollPace::default());
        Self { agent, config, store, batch_context, collectors, artifacts, off, reported, pace }
    }

    /// Applies policies until a stop; then waits for the collectors to end.
    pub(super) async fn run_until(mut self, resumed: watch::Receiver<bool>, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            never = self.run(resumed) => match never {},
        }
        self.collectors.join().await;
        self.artifacts.close().await;
    }

    /// Runs collectors by the policy in force, and by each that replaces it.
    async fn run(&mut self, mut resumed: watch::Receiver<bool>) -> Infallible {
        // Resumes artifact requests that were open before the start.
        self.accept_requests(Vec::new()).await;
        // The poll continues while other events are handled; a new one would restart its pauses.
        let mut polling = self.poll();
        let mut in_force = self.agent.in_force.subscribe();
        loop {
            self.config = Arc::clone(&in_force.borrow_and_update());
            // The borrow must end before the await.
            let is_resumed = *resumed.borrow_and_update();
            let is_applied = match self.apply(is_resumed).await {
                Ok(()) => true,
                Err(err) => {
                    tracing::error!(error = format!("{err:#}"), "the policy cannot be applied yet; trying again");
                    false
                }
            };
            tokio::select! {
                directives = &mut polling => {
                    self.apply_directives(directives).await;
                    polling = self.poll();
                }
                () = tokio::time::sleep(RETRY_EVERY), if self.artifacts.is_open() => drop(self.accept_requests(Vec::new()).await),
                _ = resumed.changed() => {}
                _ = in_force.changed() => self.reported.clear(),
                () = tokio::time::sleep(RETRY_EVERY), if !is_applied => {}
            }
        }
    }

    /// The next poll.
    fn poll(&self) -> Pin<Box<dyn Future<Output = Directives> + Send>> {
        let (agent, pace, after) = (Arc::clone(&self.agent), self.pace, self.store.revision());
        Box::pin(async move {
            pace.wait(&agent.delivery, after).await;
            next(&agent.client, &agent.delivery, after).await
        })
    }

    /// Applies the directives of a poll.
    async fn apply_directives(&mut self, directives: Directives) {
        let known = self.store.revision();
        if let Some(signed) = &directives.policy {
            self.accept_policy(signed);
        }
        if directives.wants_policy {
            upload_policy(&self.agent.client, self.store.signed()).await;
        }
        let is_new = self.accept_requests(directives.artifacts).await || self.store.revision() != known;
        self.pace.answered(is_new);
    }

    /// Adds artifact requests, records answered ones, and wakes the collector.
    async fn accept_requests(&mut self, signed: Vec<SignedRequest>) -> bool {
        let Some(policy) = self.store.policy() else { return false };
        match self.artifacts.take(signed, &policy.artifacts).await {
            Ok(is_new) => {
                self.collectors.wake(ARTIFACTS);
                is_new
            }
            Err(err) => {
                tracing::error!(error = format!("{err:#}"), "artifact requests cannot be stored");
                false
            }
        }
    }

    /// Puts a policy in force. The workspace repeats a policy that was refused; so pauses between polls
    /// grow, and a refusal is reported only when its reason changes.
    fn accept_policy(&mut self, signed: &SignedPolicy) {
        let before = self.store.problem();
        let accepted = self.store.accept(signed);
        self.pace.is_refused = accepted.is_err();
        match accepted {
            Ok(policy) => {
                let collect = if policy.collect { "on" } else { "off" };
                tracing::info!(revision = policy.revision, tier = %policy.tier, collect, "policy changed");
            }
            Err(why) if before != Some(why.to_string()) => {
                tracing::error!(error = %why, "policy refused; keeping the one in force");
                self.agent.events.lifecycle(LifecycleEvent::Policy, format!("a policy was refused: {why}"), None, None);
            }
            Err(_) => {}
        }
    }

    /// Applies the policy in force to all collectors.
    async fn apply(&mut self, is_resumed: bool) -> Result<()> {
        let Some(policy) = self.store.policy() else {
            self.store.set_own_events_off(true);
            for collector in &self.config.collectors {
                let why = "no policy is in force; waiting for the workspace";
                self.agent.statuses.set(collector.spec.id, CollectorState::Waiting, Some(why.to_owned()));
            }
            return Ok(());
        };
        let decisions = decide(&policy, &self.config.collectors, &collector_context(&self.config));
        self.record_off(&decisions)?;
        let enabled = decisions.iter().filter(|decision| decision.runs).map(|decision| decision.id).collect();
        self.stop_outdated(&policy, &decisions, &enabled).await;
        self.switch_policy(&policy).await;
        let config = Arc::clone(&self.config);
        let mut failed = None;
        for (collector, decision) in config.collectors.iter().zip(decisions) {
            if let Err(err) = self.reconcile(collector, decision, &enabled, is_resumed).await {
                self.agent.statuses.set(collector.spec.id, CollectorState::Waiting, Some(format!("{err:#}")));
                failed.get_or_insert(err);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Records durably which collectors the policy switches off.
    fn record_off(&mut self, decisions: &[Decision]) -> Result<()> {
        let before = self.off.len();
        for decision in decisions.iter().filter(|decision| decision.is_off_by_policy) {
            self.off.entry(decision.id.to_owned()).or_insert_with(now);
        }
        if self.off.len() == before { Ok(()) } else { self.store_off() }
    }

    fn store_off(&self) -> Result<()> {
        self.agent.identity.write(OFF, &serde_json::to_vec(&self.off)?)
    }

    /// Stops collectors that no longer run, or that run with other settings, or beside others of those that they defer to.
    async fn stop_outdated(&mut self, policy: &Policy, decisions: &[Decision], enabled: &BTreeSet<&'static str>) {
        let is_outdated = |(collector, decision): &(&ConfiguredCollector, &Decision)| {
            let enabled = relevant(collector.spec, enabled);
            self.collectors.is_running(decision.id)
                && (!decision.runs || self.collectors.is_outdated(decision.id, &decision.settings, &enabled))
        };
        let all = self.config.collectors.iter().zip(decisions);
        let outdated: Vec<&Decision> = all.filter(is_outdated).map(|(_, decision)| decision).collect();
        let ids: Vec<&'static str> = outdated.iter().map(|decision| decision.id).collect();
        self.collectors.stop(&ids).await;
        if policy.collect && outdated.iter().any(|decision| decision.is_off_by_policy) {
            // Their records belong to the previous policy.
            let sink = Arc::clone(&self.agent.records.sink);
            drop(tokio::task::spawn_blocking(move || sink.wait_durable()).await);
        }
    }

    /// From now on batches name this policy. Before collection is switched off, makes earlier records durable under the
    /// previous policy; after that nothing about this host is emitted.
    async fn switch_policy(&self, policy: &Arc<Policy>) {
        let previous = self.store.applied();
        let (revision, has_host) = {
            let context = self.batch_context.borrow();
            (context.policy_revision, !context.host.hostname.is_empty())
        };
        self.store.set_applied(Arc::clone(policy));
        if !policy.collect {
            if previous.is_some_and(|previous| previous.collect) {
                let message = format!("policy revision {} switches collection off", policy.revision);
                if let Some(emitting) = self.agent.events.lifecycle(LifecycleEvent::Policy, message, None, None) {
                    drop(tokio::time::timeout(EVENT_GRACE, emitting).await);
                }
            }
            self.store.set_own_events_off(true);
            if revision != policy.revision || has_host {
                self.flush_or_purge_queue().await;
            }
        }
        let host = if policy.collect { self.agent.host.clone() } else { HostLabel::default() };
        self.batch_context.send_if_modified(|context| {
            let is_changed = (context.policy_revision, &context.host) != (policy.revision, &host);
            (context.policy_revision, context.host) = (policy.revision, host);
            is_changed
        });
        if policy.collect {
            self.store.set_own_events_off(false);
            if revision != policy.revision {
                let message = format!("policy revision {} is in force", policy.revision);
                self.agent.events.lifecycle(LifecycleEvent::Policy, message, None, None);
            }
        }
    }

    /// Waits until everything is durable, and purges the queue if so configured.
    async fn flush_or_purge_queue(&self) {
        let purges = self.agent.config.policy.on_disable == OnDisable::Purge;
        self.agent.client.close(purges);
        if purges {
            // Damaged queues hold records from before collection was switched off, too.
            for path in vedette_transport::queue::salvage::broken(&self.agent.config.state_dir, LaneName::Records) {
                tracing::warn!(path = %path.display(), "deleting a damaged queue, since the policy switched collection off and `policy.on_disable` is `purge`");
                drop(std::fs::remove_file(path));
            }
        }
        let sink = Arc::clone(&self.agent.records.sink);
        let mut durable = tokio::task::spawn_blocking(move || sink.wait_durable());
        let mut is_last = false;
        while !is_last {
            is_last = tokio::time::timeout(DURABLE_POLL, &mut durable).await.is_ok();
            let queue = Arc::clone(self.agent.records.lane.queue());
            // Purges before the wait, too, since a full queue accepts nothing.
            if purges
                && let Err(err) =
                    tokio::task::spawn_blocking(move || queue.purge_all()).await.expect("the queue does not panic")
            {
                tracing::error!(error = %err, "the queue cannot be purged");
            }
        }
        self.agent.client.close(false);
    }

    /// Applies a decision to one collector.
    async fn reconcile(
        &mut self,
        collector: &ConfiguredCollector,
        decision: Decision,
        enabled: &BTreeSet<&'static str>,
        is_resumed: bool,
    ) -> Result<()> {
        let (id, statuses) = (decision.id, Arc::clone(&self.agent.statuses));
        if !decision.runs {
            statuses.set_runs_because(id, None);
            statuses.set(id, CollectorState::Disabled, decision.why);
            return Ok(());
        }
        self.report_conflict(&decision);
        statuses.set_runs_because(id, decision.why.clone());
        if self.collectors.is_running(id) {
            return Ok(());
        }
        let destination = if collector.spec.class == CollectorClass::Artifact {
            // It counts as running; its thread and lane start with the first request.
            statuses.set(id, CollectorState::Running, None);
            let Some(destination) = self.artifacts.destination(&self.batch_context)? else { return Ok(()) };
            destination
        } else {
            if !is_resumed && resume::waits(self.agent.records.lane.queue(), collector.spec) {
                let why = "waiting for the workspace's positions";
                statuses.set(id, CollectorState::Waiting, Some(why.to_owned()));
                return Ok(());
            }
            self.agent.records.clone()
        };
        // A required collector that is switched off runs with its other settings.
        let settings = decision.settings.switched_on();
        self.skip_time_off(collector, &settings, enabled, &destination).await?;
        let context = self.context(collector.spec, enabled);
        self.collectors.start(StartRequest {
            spec: collector.spec,
            decided: decision.settings,
            settings,
            context,
            destination,
        })
    }

    /// Reports once that configuration and policy disagree.
    fn report_conflict(&mut self, decision: &Decision) {
        if decision.is_conflict
            && self.reported.insert(decision.id)
            && let Some(why) = &decision.why
        {
            tracing::warn!(collector = decision.id, why, "the configuration and the policy disagree");
            self.agent.events.lifecycle(LifecycleEvent::Policy, why.clone(), Some(decision.id), None);
        }
    }

    /// Skips what was written while a policy had switched a collector off.
    async fn skip_time_off(
        &mut self,
        collector: &ConfiguredCollector,
        settings: &AnySettings,
        enabled: &BTreeSet<&'static str>,
        destination: &LaneSink,
    ) -> Result<()> {
        let id = collector.spec.id;
        let Some(since) = self.off.get(id).copied() else { return Ok(()) };
        if collector.spec.can_skip && self.agent.config.policy.resume == ResumeAt::End {
            let queue = destination.lane.queue();
            let (cursors, stored) = (queue.cursors(id)?, queue.stored(id)?);
            let context = CollectorContext { cursors, stored, ..self.context(collector.spec, enabled) };
            self.collectors.skip(id, (settings.clone(), context), Arc::clone(&destination.sink)).await?;
        }
        let off = Duration::from_nanos(now().saturating_sub(since).max(0).cast_unsigned());
        let message = format!("the policy had switched the collector off for {} s", off.as_secs());
        self.agent.events.lifecycle(LifecycleEvent::Policy, message, Some(id), None);
        self.off.remove(id);
        self.store_off()
    }

    /// A collector's context without its cursors.
    fn context(&self, spec: &Spec, enabled: &BTreeSet<&'static str>) -> CollectorContext {
        CollectorContext {
            enabled: relevant(spec, enabled),
            requests: Some(self.artifacts.requests().clone()),
            cloud: self.agent.cloud.clone(),
            ..collector_context(&self.config)
        }
    }
}
