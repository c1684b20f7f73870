//! Chunks and batch contexts for this crate's tests.

use crate::BatchContext;
use std::sync::Arc;
use vedette_wire::{AgentId, Body, Chunk, OrganizationId, Position, Source, body::Syslog, geo::WorkspaceGeo};

pub(crate) fn context() -> BatchContext {
    BatchContext {
        organization: OrganizationId("01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a UUID")),
        agent: AgentId([1; 16]),
        geo: WorkspaceGeo::Europe,
        agent_version: "0.1.0".to_owned(),
        host: Default::default(),
        policy_revision: 1,
    }
}

/// A chunk with one line of a file, at a position.
pub(crate) fn chunk_of(text: &str, at: u64, cursor: &str) -> Chunk {
    let source = Arc::new(Source { collector: "test", id: "file".to_owned(), name: None });
    let mut chunk = Chunk::new(source);
    let body = Body::Syslog(Syslog { raw: text.as_bytes().to_vec(), ..Syslog::default() });
    chunk.push(5, Position(at, at + text.len() as u64), &body);
    chunk.cursor = Some(cursor.as_bytes().to_vec());
    chunk
}

pub(crate) fn chunk(at: u64, cursor: &str) -> Chunk {
    chunk_of("a line", at * 6, cursor)
}

/// What later headers report as set aside.
pub(crate) fn set_aside(queue: &super::Queue) -> vedette_wire::SetAside {
    super::lock(&queue.meta).set_aside.clone()
}

impl super::Queue {
    /// A queue without a disk.
    pub(crate) fn in_memory(opener: super::store::Opener, random: u64) -> Self {
        let nowhere = std::path::Path::new("/nonexistent/records.redb");
        let first = (super::Quota::bytes(1 << 30), random, super::Resume::First);
        Self::load(opener, nowhere, false, vedette_wire::LaneName::Records, first).expect("opens")
    }
}
