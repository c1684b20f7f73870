//! Records, and the batches that carry them.

use crate::{AgentId, BatchKey, Body, Epoch, Lane, Ledger, OrganizationId, SetAside, geo::WorkspaceGeo};
use serde::{Deserialize, Serialize};

/// Where in its source a record was read: half-open, in the source's own unit.
///
/// Bytes for a file, sequence numbers for a journal, a running number for a poll. The positions of one source tile:
/// no hole, no overlap. That is what loss and repetition are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position(pub u64, pub u64);

/// A source that records of a batch come from. Records name it by its index in [`Header::sources`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// Collector that reads the source.
    pub collector: String,
    /// Identity of the source: a file's device, inode and first position; a journal's machine and boot; a poll's run.
    pub id: String,
    /// What a person calls it: a path. Absent where the collector's name says it all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Position just behind the last record of this batch.
    pub reached: u64,
    /// Positions of which there is no record since it was dropped: from, to, how many records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<(u64, u64, u64)>,
}

/// A body with its envelope. Field names are one letter: there are thousands of records in a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Index into [`Header::sources`].
    #[serde(rename = "s")]
    pub source: u32,
    /// When it was observed, nanoseconds UTC.
    #[serde(rename = "t")]
    pub observed: i64,
    /// Where it was read.
    #[serde(rename = "p")]
    pub position: Position,
    /// What was seen.
    #[serde(rename = "b")]
    pub body: Body,
}

/// What is the same for the whole host, once per batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLabel {
    /// Host name as `uname -n` gives it.
    pub hostname: String,
    /// Operating system name, `/etc/os-release` `NAME`.
    pub os_name: String,
    /// Operating system version, `/etc/os-release` `VERSION_ID`; absent on rolling releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// `/etc/machine-id`, hashed by the agent: by it the workspace sees a key that is in use on two machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// `/proc/sys/kernel/random/boot_id`, hashed: another one after each start of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

/// The epoch before this one, as far as the agent knows what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its number.
    pub epoch: Epoch,
    /// Last sequence known of it.
    pub last_seq: u64,
    /// Lowest sequence of it that the agent still holds; absent where it holds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_held: Option<u64>,
    /// What it neither delivered nor holds, and why.
    #[serde(default, skip_serializing_if = "SetAside::is_empty")]
    pub set_aside: SetAside,
}

/// Where the agent goes on with a source, in the collector's own format: what it would have to be given back were its
/// queue lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Collector that reads the source.
    #[serde(rename = "c")]
    pub collector: String,
    /// Identity of the source.
    #[serde(rename = "i")]
    pub id: String,
    /// The cursor; absent where the source is gone.
    #[serde(rename = "v", default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Vec<u8>>,
}

/// The head of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Format version, [`crate::FORMAT_VERSION`].
    pub version: u16,
    /// Organization; the workspace checks it against the certificate.
    pub organization: OrganizationId,
    /// Agent; the workspace checks it against the certificate.
    pub agent: AgentId,
    /// Lane the batch travels on.
    pub lane: Lane,
    /// Life of the queue database.
    pub epoch: Epoch,
    /// Sequence in (lane, epoch), from 1, without holes.
    pub seq: u64,
    /// When it was sealed, nanoseconds UTC. Its day is part of the landing key.
    pub sealed: i64,
    /// Workspace geography the batch is meant for.
    pub geo: WorkspaceGeo,
    /// Policy revision in force when the records were observed.
    pub policy_revision: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// The host.
    pub host: HostLabel,
    /// Sources of the records.
    pub sources: Vec<SourceRef>,
    /// Number of records behind the header.
    pub records: u32,
    /// Counters since the epoch began, this batch included.
    pub ledger: Ledger,
    /// Lowest sequence that the agent still holds: below it and not landed is missing.
    pub lowest_held: u64,
    /// What it neither delivered nor holds, and why.
    #[serde(default, skip_serializing_if = "SetAside::is_empty")]
    pub set_aside: SetAside,
    /// The epoch before; absent in an agent's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<Predecessor>,
    /// Cursors that changed since the batch before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<Told>,
    /// It was sealed again, or is a part of what was split: it stands behind what was sealed later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Sequences into which this batch was split since it was too large; it has no records itself then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_into: Vec<u64>,
}

impl Header {
    /// An empty batch, the first of no epoch yet; whoever seals it says the rest.
    pub fn new(organization: OrganizationId, agent: AgentId, lane: Lane, geo: WorkspaceGeo) -> Self {
        Self {
            version: crate::FORMAT_VERSION,
            organization,
            agent,
            lane,
            epoch: Epoch(0),
            seq: 0,
            sealed: 0,
            geo,
            policy_revision: 0,
            agent_version: String::new(),
            host: HostLabel::default(),
            sources: Vec::new(),
            records: 0,
            ledger: Ledger::default(),
            lowest_held: 0,
            set_aside: SetAside::default(),
            predecessor: None,
            cursors: Vec::new(),
            again: false,
            split_into: Vec::new(),
        }
    }

    /// The key of the batch.
    pub fn key(&self) -> BatchKey {
        BatchKey {
            organization: self.organization,
            agent: self.agent,
            lane: self.lane,
            epoch: self.epoch,
            seq: self.seq,
        }
    }
}

/// A decoded batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its head.
    pub header: Header,
    /// Its records, in the order they were emitted.
    pub records: Vec<Record>,
}
