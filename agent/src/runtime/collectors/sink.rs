//! Sinks of a running agent: chunks go into the transport's intake.

use super::CollectorStatuses;
use crate::runtime::events::AgentEvents;
use std::sync::Arc;
use vedette_collectors::{CollectError, CollectorClass, Sink, StopSignal};
use vedette_transport::{Intake, Lane, Queue};
use vedette_wire::{Chunk, Reason, Source, body::LifecycleEvent};

/// A lane, and the sink of its collectors.
#[derive(Clone)]
pub(in crate::runtime) struct LaneSink {
    pub(in crate::runtime) lane: Arc<Lane>,
    pub(in crate::runtime) sink: Arc<QueueSink>,
}

/// Passes chunks to the transport, and problems to status and workspace.
#[derive(Debug)]
pub(crate) struct QueueSink {
    intake: Intake,
    queue: Arc<Queue>,
    statuses: Arc<CollectorStatuses>,
    events: Arc<AgentEvents>,
}

impl QueueSink {
    pub(crate) fn new(lane: &Lane, statuses: Arc<CollectorStatuses>, events: Arc<AgentEvents>) -> Self {
        Self { intake: lane.intake().clone(), queue: Arc::clone(lane.queue()), statuses, events }
    }

    /// Waits until everything handed over so far is durable, or for a stop.
    pub(super) fn wait_durable_unless(&self, stop: &StopSignal) -> Result<(), CollectError> {
        self.intake.wait_durable_unless(|| stop.is_stopped()).map_err(|_| CollectError::Stopped)
    }

    /// Waits until everything handed over so far is durable.
    pub(crate) fn wait_durable(&self) -> Result<(), CollectError> {
        self.intake.wait_durable().map_err(|_| CollectError::Stopped)
    }

    /// Emits that a collector failed or recovered.
    pub(crate) fn lifecycle(&self, event: LifecycleEvent, collector: &'static str, message: String) {
        self.events.lifecycle(event, message, Some(collector), None);
    }
}

impl Sink for QueueSink {
    fn put(&self, chunk: Chunk, stop: &StopSignal) -> Result<(), CollectError> {
        self.intake.put_unless(chunk, || stop.is_stopped()).map_err(|_| CollectError::Stopped)
    }

    fn offer(&self, mut chunk: Chunk, class: CollectorClass) -> Result<(), CollectError> {
        if !self.has_room(&chunk.source, false) {
            chunk.give_up(Reason::QueueFull);
        }
        self.intake.offer(chunk, class as u8).map_err(|_| CollectError::Stopped)
    }

    fn has_room(&self, source: &Source, waits: bool) -> bool {
        self.queue.has_room_for(source, waits)
    }

    fn report_problem(&self, collector: &'static str, message: String) {
        self.statuses.report_problem(collector, message.clone());
        self.lifecycle(LifecycleEvent::CollectorError, collector, message);
    }

    fn recovered(&self, collector: &'static str) {
        self.statuses.clear_problem(collector);
        self.lifecycle(LifecycleEvent::CollectorRecovered, collector, "the collector works again".to_owned());
    }
}
