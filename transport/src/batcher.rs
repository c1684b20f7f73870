//! Builds batches from chunks: records of one lane and one policy revision, sealed by size or age.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{
    Chunk, Compression, Header, Ledger, OrganizationId, Position, Reason, Source, SourceRef,
    chunk::Entry,
    geo::WorkspaceGeo,
    record::HostLabel,
    seal::{CompressedBody, Sealer},
};

/// Maximum size of a batch's sealed records, unless one chunk is larger. With a header of a few sources and redb's overhead it
/// fills a page of 2 MiB: redb rounds pages up to powers of two and writes them whole.
pub const SEALED_BYTES_MAX: usize = (2 << 20) - (16 << 10);

/// Maximum number of position runs before the last chunk of a batch. The workspace accepts 2,000.
const RUNS_MAX: usize = 1_500;

/// Limits at which a batch is sealed, and its codec.
#[derive(Debug, Clone)]
pub struct BatchLimits {
    /// Size of the records in bytes, decoded.
    pub bytes_max: usize,
    /// Number of records.
    pub records_max: usize,
    /// Age of the first record in the batch.
    pub age_max: Duration,
    /// Codec of the records.
    pub compression: Compression,
}

/// Fields that all headers of this agent share.
#[derive(Debug, Clone)]
pub struct BatchContext {
    /// Organization, from the certificate.
    pub organization: OrganizationId,
    /// Agent, from the key.
    pub agent: vedette_wire::AgentId,
    /// Geography of the workspace.
    pub geo: WorkspaceGeo,
    /// Version of the agent.
    pub agent_version: String,
    /// The host.
    pub host: HostLabel,
    /// Policy revision in force.
    pub policy_revision: u64,
}

/// A source in an open batch.
#[derive(Debug)]
struct OpenSource {
    source: Arc<Source>,
    /// First position.
    from: u64,
    /// End of the last position.
    reached: u64,
    /// Number of records.
    records: u64,
    /// Size of its records in bytes, decoded.
    bytes: u64,
    dropped: Vec<(u64, u64, u64)>,
}

/// The open batch.
#[derive(Debug, Default)]
pub(crate) struct BatchBuilder {
    sealer: Sealer,
    count: u32,
    /// Size of the records, decoded.
    plain_bytes: usize,
    /// Lowest format version that has the records.
    version: u16,
    /// Number of records by collector.
    counts: BTreeMap<&'static str, u64>,
    sources: Vec<OpenSource>,
    /// Indexes of the sources.
    index: HashMap<Arc<Source>, u32>,
    /// Number of position runs, stored and dropped.
    runs: usize,
    since: Option<Instant>,
    /// Cursors to store, by (collector, source id); `None` deletes.
    pub(crate) cursors: BTreeMap<(&'static str, String), Option<Vec<u8>>>,
    /// Floors to store: collector, source id and position.
    pub(crate) floors: Vec<(&'static str, String, u64)>,
    /// Counts to add to the ledger.
    pub(crate) ledger: Ledger,
    /// The batch holds records of bulk sources only.
    pub(crate) is_bulk: bool,
}

impl BatchBuilder {
    /// Adds a chunk. The caller separates policy revisions.
    #[cfg(test)]
    pub(crate) fn add(&mut self, chunk: Chunk) {
        self.add_compressed(chunk, None);
    }

    /// Adds a chunk. If `compressed` is given, it replaces the chunk's only body. All chunks of a batch must have the same
    /// policy revision.
    pub(crate) fn add_compressed(&mut self, mut chunk: Chunk, compressed: Option<CompressedBody>) {
        self.since.get_or_insert_with(Instant::now);
        let collector = chunk.source.collector;
        self.version = self.version.max(chunk.version);
        self.ledger.emit(collector, chunk.count());
        for dropped in &chunk.dropped {
            self.ledger.emit(collector, dropped.count);
            self.ledger.drop(collector, dropped.reason, dropped.count);
            if let Some(Position(from, to)) = dropped.positions {
                let at = self.source(&chunk.source);
                // Consecutive losses are one run.
                match self.sources[at as usize].dropped.last_mut() {
                    Some((_, end, count)) if *end == from => (*end, *count) = (to, *count + dropped.count),
                    _ => {
                        self.sources[at as usize].dropped.push((from, to, dropped.count));
                        self.runs += 1;
                    }
                }
                if dropped.reason == Reason::Policy {
                    self.floors.push((collector, chunk.source.id.clone(), to));
                }
            }
        }
        if let (Some(compressed), [entry]) = (compressed, chunk.entries.as_slice()) {
            let (entry, at) = (*entry, self.source(&chunk.source));
            *self.counts.entry(collector).or_default() += u64::from(entry.count);
            self.sealer.append_compressed(at, entry.observed, entry.position, compressed);
            self.count_entry(at, entry);
            chunk.entries.clear();
        }
        if !chunk.entries.is_empty() {
            *self.counts.entry(collector).or_default() += chunk.count();
            let at = self.source(&chunk.source);
            for (entry, body) in chunk.bodies() {
                self.sealer.append(at, entry.observed, entry.position, body);
                self.count_entry(at, entry);
            }
        }
        for id in chunk.forget {
            self.cursors.insert((collector, id), None);
        }
        if let Some(cursor) = chunk.cursor {
            self.cursors.insert((collector, chunk.source.id.clone()), Some(cursor));
        }
    }

    fn count_entry(&mut self, at: u32, entry: Entry) {
        self.count += entry.count;
        self.plain_bytes += entry.plain;
        let source = &mut self.sources[at as usize];
        self.runs += usize::from(source.records == 0 || source.reached != entry.position.0);
        source.from = source.from.min(entry.position.0);
        source.reached = source.reached.max(entry.position.1);
        source.records += u64::from(entry.count);
        source.bytes += entry.plain as u64;
    }

    /// Sources, with the size of their records, decoded.
    pub(crate) fn bytes_by_source(&self) -> impl Iterator<Item = (&Source, u64)> + Clone {
        self.sources.iter().map(|open| (open.source.as_ref(), open.bytes))
    }

    /// Whether the batch holds records, drops or a cursor of a source.
    pub(crate) fn holds(&self, source: &Arc<Source>) -> bool {
        self.index.contains_key(source) || self.cursors.contains_key(&(source.collector, source.id.clone()))
    }

    fn source(&mut self, source: &Arc<Source>) -> u32 {
        *self.index.entry(Arc::clone(source)).or_insert_with(|| {
            let source = Arc::clone(source);
            self.sources.push(OpenSource {
                source,
                from: u64::MAX,
                reached: 0,
                records: 0,
                bytes: 0,
                dropped: Vec::new(),
            });
            u32::try_from(self.sources.len() - 1).expect("fewer sources than records")
        })
    }

    /// Whether a chunk must go into the next batch.
    pub(crate) fn is_full_for(&self, chunk: &Chunk, compressed: Option<&CompressedBody>, limits: &BatchLimits) -> bool {
        let sealed = compressed.map_or(chunk.bodies.len(), CompressedBody::sealed_bytes);
        self.count > 0
            && (self.plain_bytes + chunk.plain_bytes() > limits.bytes_max
                || self.sealer.sealed_bytes() + sealed > SEALED_BYTES_MAX)
    }

    /// Drops the records of a batch that can never fit, and counts them. Keeps cursors and other counts.
    pub(crate) fn drop_records(&mut self) {
        for (collector, count) in std::mem::take(&mut self.counts) {
            self.ledger.drop(collector, Reason::Oversize, count);
        }
        self.sealer.clear();
        for source in &mut self.sources {
            if source.records > 0 {
                source.dropped.push((source.from, source.reached, source.records));
            }
            (source.from, source.reached, source.records, source.bytes) = (u64::MAX, 0, 0, 0);
        }
        (self.count, self.plain_bytes, self.version) = (0, 0, 0);
    }

    /// Whether the batch must be sealed now.
    pub(crate) fn is_full(&self, limits: &BatchLimits) -> bool {
        self.plain_bytes >= limits.bytes_max
            || self.sealer.sealed_bytes() >= SEALED_BYTES_MAX
            || self.runs >= RUNS_MAX
            || self.count as usize >= limits.records_max
    }

    /// When the batch must be sealed regardless of its size.
    pub(crate) fn deadline(&self, limits: &BatchLimits) -> Option<Instant> {
        self.since.map(|since| since + limits.age_max)
    }

    /// Whether no chunk was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.since.is_none()
    }

    /// Whether there are records or losses. A batch of cursors alone is not sent.
    pub(crate) fn is_worth_sending(&self) -> bool {
        self.count > 0
            || self.sources.iter().any(|source| !source.dropped.is_empty())
            || self.ledger.0.values().any(|counters| counters.dropped_total() > 0)
    }

    /// The header of the batch. The caller adds the sequence and other facts of the queue.
    pub(crate) fn header(&self, context: &BatchContext, lane: vedette_wire::LaneName, sealed_at: i64) -> Header {
        Header {
            version: self.version,
            sealed: sealed_at,
            policy_revision: context.policy_revision,
            agent_version: context.agent_version.clone(),
            host: context.host.clone(),
            sources: self
                .sources
                .iter()
                .map(|open| SourceRef {
                    collector: open.source.collector.to_owned(),
                    id: open.source.id.clone(),
                    name: open.source.name.clone(),
                    reached: open.reached,
                    dropped: open.dropped.clone(),
                })
                .collect(),
            records: self.count,
            ..Header::new(context.organization, context.agent, lane, context.geo)
        }
    }

    /// Seals the batch; the result starts with `zeros` zero bytes.
    pub(crate) fn seal(&mut self, zeros: usize, header: &Header) -> std::io::Result<Vec<u8>> {
        self.sealer.seal(zeros, header)
    }

    /// Codec of the records.
    pub(crate) fn compression(&self) -> Compression {
        self.sealer.compression()
    }

    /// Sets the codec; has an effect on an empty batch only.
    pub(crate) fn set_compression(&mut self, compression: Compression) {
        if self.is_empty() {
            self.sealer.set_compression(compression);
        }
    }

    /// Empties the batch; keeps the sealer's buffers.
    pub(crate) fn clear(&mut self) {
        let mut sealer = std::mem::take(&mut self.sealer);
        sealer.clear();
        *self = BatchBuilder { sealer, ..BatchBuilder::default() };
    }
}
