//! Records, and the batches that carry them.

use crate::{
    AgentId, BatchKey, Body, Epoch, LaneName, Ledger, OrganizationId, OsFamily, Position, SetAside, geo::WorkspaceGeo,
};
use serde::{Deserialize, Serialize};

/// A source of records in a batch. Records name it by its index in [`Header::sources`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// Collector that reads the source.
    pub collector: String,
    /// Id of the source: device, inode and time first seen of a file; sequence number id of a journal; run of a poll.
    pub id: String,
    /// Display name: a path. Absent where the collector's name suffices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Position after the last record of this batch.
    pub reached: u64,
    /// Positions of dropped records: from, to, number of records.
    #[serde(default, rename = "skipped", skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<(u64, u64, u64)>,
}

/// A body with its envelope. Field names have one letter: a batch holds thousands of records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Index into [`Header::sources`].
    #[serde(rename = "s")]
    pub source: u32,
    /// Time of observation, nanoseconds UTC.
    #[serde(rename = "t")]
    pub observed: i64,
    /// Position in the source.
    #[serde(rename = "p")]
    pub position: Position,
    /// The observation.
    #[serde(rename = "b")]
    pub body: Body,
}

/// Facts of the host, once per batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLabel {
    /// Operating system family.
    #[serde(default, skip_serializing_if = "OsFamily::is_linux")]
    pub os_family: OsFamily,
    /// Host name.
    pub hostname: String,
    /// Operating system name: `NAME` of `/etc/os-release`, or `ProductName` of Windows.
    pub os_name: String,
    /// Operating system version: `VERSION_ID` of `/etc/os-release` (absent on rolling releases), or `DisplayVersion` of
    /// Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Hash of the machine's id. The workspace detects a key in use on two machines by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Hash of the boot's id: changes with each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

/// The previous epoch, as far as the agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its number.
    pub epoch: Epoch,
    /// Last known sequence.
    pub last_seq: u64,
    /// Lowest sequence that the agent still holds; absent where it holds none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_held: Option<u64>,
    /// Sequences that the agent does not try to deliver any more, and why.
    #[serde(default, skip_serializing_if = "SetAside::is_empty")]
    pub set_aside: SetAside,
}

/// A cursor in the collector's own format. The agent gets it back if it loses its queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorUpdate {
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
    /// Format version ([`crate::format_version`]).
    pub version: u16,
    /// Organization; the workspace compares it with the certificate.
    pub organization: OrganizationId,
    /// Agent; the workspace compares it with the certificate.
    pub agent: AgentId,
    /// Lane of the batch.
    pub lane: LaneName,
    /// Epoch of the queue.
    pub epoch: Epoch,
    /// Sequence in (lane, epoch), from 1, without gaps.
    pub seq: u64,
    /// Time of sealing, nanoseconds UTC. Its day is part of the landing key.
    pub sealed: i64,
    /// Workspace geography that the batch is meant for.
    pub geo: WorkspaceGeo,
    /// Policy revision in force when the records were observed.
    pub policy_revision: u64,
    /// Version of the agent.
    pub agent_version: String,
    /// The host.
    pub host: HostLabel,
    /// Sources of the records.
    pub sources: Vec<SourceRef>,
    /// Number of records after the header.
    pub records: u32,
    /// Counters since the epoch began, including this batch.
    pub ledger: Ledger,
    /// Lowest sequence that the agent still holds. A lower one that has not landed is missing.
    pub lowest_held: u64,
    /// Sequences that the agent does not try to deliver any more, and why.
    #[serde(default, skip_serializing_if = "SetAside::is_empty")]
    pub set_aside: SetAside,
    /// The previous epoch; absent in an agent's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<Predecessor>,
    /// Cursors that changed since the previous batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cursors: Vec<CursorUpdate>,
    /// The batch was resealed, or is part of a split one: its records are older than its sequence suggests.
    #[serde(rename = "again", default, skip_serializing_if = "std::ops::Not::not")]
    pub resealed: bool,
    /// Sequences of the parts that this batch was split into because it was too large; it has no records then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_into: Vec<u64>,
}

impl Header {
    /// An empty header before any epoch; the sealer fills in the rest.
    pub fn new(organization: OrganizationId, agent: AgentId, lane: LaneName, geo: WorkspaceGeo) -> Self {
        Self {
            version: crate::format_version(OsFamily::Linux),
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
            resealed: false,
            split_into: Vec::new(),
        }
    }

    /// Key of the batch.
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
    /// Header.
    pub header: Header,
    /// Records in the order of emission.
    pub records: Vec<Record>,
}
