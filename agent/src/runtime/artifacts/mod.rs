//! Artifacts: requests for files, and their own lane, which opens with the first request, since it takes memory and a file.

mod requests;

use super::{
    collectors::{LaneSink, QueueSink},
    context::AgentContext,
    delivery::LaneDelivery,
};
use crate::now;
use anyhow::Result;
use requests::ArtifactRequests;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use vedette_collectors::Requests;
use vedette_transport::{BatchContext, BatchLimits, Lane, LaneConfig, Post, Queue, Quota};
use vedette_wire::{
    LaneName,
    policy::{ArtifactLimits, SignedRequest},
};

/// Size of a batch of artifacts, and of its intake.
const BATCH_BYTES: usize = 2 << 20;
/// Page cache of the queue.
const CACHE_BYTES: usize = 1 << 20;

/// Requests, and the lane for their answers.
pub(super) struct Artifacts {
    agent: Arc<AgentContext>,
    requests: ArtifactRequests,
    lane: Option<LaneSink>,
}

impl Artifacts {
    pub(super) fn load(agent: Arc<AgentContext>) -> Self {
        let requests = ArtifactRequests::load(&agent.identity, &agent.enrollment);
        Self { agent, requests, lane: None }
    }

    /// The collector's view of the requests.
    pub(super) fn requests(&self) -> &Requests {
        self.requests.requests()
    }

    /// Whether a request is open.
    pub(super) fn is_open(&self) -> bool {
        self.requests.is_open()
    }

    /// Adds requests, and records answered ones; true if a request is new.
    pub(super) async fn take(&mut self, signed: Vec<SignedRequest>, limits: &ArtifactLimits) -> Result<bool> {
        if let Some(lane) = &self.lane {
            self.requests.settle(&lane.sink).await?;
        }
        self.requests.take(signed, limits)
    }

    /// The lane; absent until there is something for it.
    pub(super) fn destination(&mut self, context: &watch::Sender<BatchContext>) -> Result<Option<LaneSink>> {
        let agent = &self.agent;
        let dir = &agent.config.state_dir;
        if self.lane.is_none() && (self.requests.is_open() || dir.join("blobs.redb").exists()) {
            let quota = Quota { cache_bytes: CACHE_BYTES, ..agent.config.quota };
            let queue = Queue::open(dir, LaneName::Blobs, quota, fastrand::u64(1..))?;
            let owner = (agent.enrollment.organization, agent.enrollment.agent);
            queue.set_owner(owner, &agent.enrollment.replaces, &agent.host, fastrand::u64(1..))?;
            let delivery = LaneDelivery::new(&agent.client);
            let lane = Lane::start(LaneConfig {
                queue,
                limits: BatchLimits { bytes_max: BATCH_BYTES, records_max: 64, ..agent.config.batches.clone() },
                context: context.subscribe(),
                intake_bytes_max: BATCH_BYTES,
                in_flight_bytes_max: 2 * BATCH_BYTES,
                now: Arc::new(now),
                codec: delivery.codec(),
                post: Some(Arc::clone(&delivery) as Arc<dyn Post>),
            })?;
            let sink = Arc::new(QueueSink::new(&lane, Arc::clone(&agent.statuses), Arc::clone(&agent.events)));
            self.lane = Some(LaneSink { lane: Arc::new(lane), sink });
        }
        Ok(self.lane.clone())
    }

    /// Closes the lane. Remaining artifacts are sent after the next start.
    pub(super) async fn close(self) {
        if let Some(LaneSink { lane, sink }) = self.lane {
            drop(sink);
            match Arc::try_unwrap(lane) {
                Ok(lane) => lane.stop(Duration::ZERO).await,
                Err(lane) => lane.close(),
            }
        }
    }
}
