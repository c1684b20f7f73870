//! Builds a chunk from the lines of a file.

use super::Line;
use std::sync::Arc;
use vedette_wire::{Body, Chunk, Packer, Source, body::Syslog};

/// Builds chunks from parsed lines. One builder serves all files of a tailer, so that memory is reused.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    chunk: Option<Chunk>,
    packer: Packer,
    observed: i64,
}

impl ChunkBuilder {
    /// Starts a chunk of a source that is read now.
    pub(super) fn begin(&mut self, source: &Arc<Source>, now: i64) {
        self.chunk = Some(Chunk::new(Arc::clone(source)));
        self.observed = now;
    }

    /// Time of reading, nanoseconds UTC.
    pub(crate) fn observed(&self) -> i64 {
        self.observed
    }

    /// Name of the source: its path on the host.
    pub(crate) fn source_name(&self) -> &str {
        self.chunk.as_ref().and_then(|chunk| chunk.source.name.as_deref()).unwrap_or_default()
    }

    /// Adds a syslog line; `found` has its fields without the bytes. Whole lines are packed.
    pub(crate) fn syslog(&mut self, line: &Line<'_>, found: Syslog) {
        if !self.packer.continues_at(line.position.0) {
            self.pack();
        }
        if !self.packer.push(line.whole, line.position, &found) {
            self.push(line, &Body::Syslog(Syslog { raw: line.bytes.to_vec(), ..found }));
        }
    }

    /// Adds a line as a record of its own.
    pub(crate) fn push(&mut self, line: &Line<'_>, body: &Body) {
        self.pack();
        let observed = self.observed;
        self.chunk().push(observed, line.position, body);
    }

    /// Finishes the chunk.
    pub(super) fn end(&mut self) -> Chunk {
        self.pack();
        self.chunk.take().expect("begun")
    }

    fn chunk(&mut self) -> &mut Chunk {
        self.chunk.as_mut().expect("begun")
    }

    fn pack(&mut self) {
        let (observed, packer) = (self.observed, &mut self.packer);
        self.chunk.as_mut().expect("begun").push_packed(observed, packer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vedette_wire::Position;

    #[test]
    fn lines_are_packed_on_behind_a_hole() {
        let source = Arc::new(Source { collector: "syslog", id: "f".to_owned(), name: None });
        let mut chunks = ChunkBuilder::default();
        chunks.begin(&source, 7);
        for at in [0, 2, 10, 12] {
            let line =
                Line { bytes: b"a", whole: b"a\n", position: Position(at, at + 2), part: None, unfinished: false };
            chunks.syslog(&line, Syslog::default());
        }
        let chunk = chunks.end();
        let runs: Vec<_> = chunk.entries.iter().map(|entry| (entry.position, entry.count)).collect();
        assert_eq!(runs, [(Position(0, 4), 2), (Position(10, 14), 2)]);
    }
}
