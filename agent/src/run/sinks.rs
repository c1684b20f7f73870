//! Where collectors' chunks go when the agent runs: into the transport's intake.

use super::{Board, own::OwnRecords};
use std::sync::Arc;
use vedette_collectors::{Class, CollectError, Sink, StopSignal};
use vedette_transport::{Intake, Lane, Queue};
use vedette_wire::{Chunk, Reason, Source, body::LifecycleEvent};

/// Hands chunks to the transport, and complaints to the board and the organization.
#[derive(Debug)]
pub(crate) struct QueueSink {
    intake: Intake,
    queue: Arc<Queue>,
    board: Arc<Board>,
    own: Arc<OwnRecords>,
}

impl QueueSink {
    pub(crate) fn new(lane: &Lane, board: Arc<Board>, own: Arc<OwnRecords>) -> Self {
        Self { intake: lane.intake().clone(), queue: Arc::clone(lane.queue()), board, own }
    }

    /// Wait until everything handed over so far is durable.
    pub(crate) fn wait_durable(&self) -> Result<(), CollectError> {
        self.intake.wait_durable().map_err(|_| CollectError::Stopped)
    }

    /// A collector failed, or works again.
    pub(crate) fn lifecycle(&self, event: LifecycleEvent, collector: &'static str, message: String) {
        self.own.lifecycle(event, message, Some(collector), None);
    }
}

impl Sink for QueueSink {
    fn put(&self, chunk: Chunk, stop: &StopSignal) -> Result<(), CollectError> {
        self.intake.put_unless(chunk, || stop.is_stopped()).map_err(|_| CollectError::Stopped)
    }

    fn offer(&self, mut chunk: Chunk, class: Class) -> Result<(), CollectError> {
        if !self.has_room(&chunk.source, false) {
            chunk.give_up(Reason::QueueFull);
        }
        self.intake.offer(chunk, class as u8).map_err(|_| CollectError::Stopped)
    }

    fn has_room(&self, source: &Source, waits: bool) -> bool {
        self.queue.has_room_for(source, waits)
    }

    fn complain(&self, collector: &'static str, message: String) {
        self.board.complain(collector, message.clone());
        self.lifecycle(LifecycleEvent::CollectorError, collector, message);
    }

    fn recovered(&self, collector: &'static str) {
        self.board.recovered(collector);
        self.lifecycle(LifecycleEvent::CollectorRecovered, collector, "works again".to_owned());
    }
}
