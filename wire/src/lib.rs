//! All types that leave a Vedette process: records, batches, replies and their codec. No I/O, no clock, no async.
//!
//! A *body* is an observation of a collector. A [`Record`] is a body with its envelope. A [`Batch`] is records with a
//! [`Header`]. A batch is encoded ([`codec`]) and compressed once, and stored as a [`frame`] on disk and in the landing store. Each
//! kind of body has one file under [`body`]: its struct, its OCSF 1.8.0 rendering, its columns.
//!
//! ```
//! use vedette_wire::{AgentId, Compression, Header, LaneName, OrganizationId, codec, geo::WorkspaceGeo, seal::Sealer};
//! use vedette_wire::{Body, Position, SourceRef, body::Syslog, codec::append_body};
//!
//! let organization: OrganizationId = "019ac0de-0000-7000-8000-000000000001".parse()?;
//! let source = SourceRef {
//!     collector: "syslog".to_owned(),
//!     id: "8:1:2:0".to_owned(),
//!     name: Some("/var/log/syslog".to_owned()),
//!     reached: 6,
//!     dropped: Vec::new(),
//! };
//! let header = Header::new(organization, AgentId([7; 16]), LaneName::Records, WorkspaceGeo::Europe);
//! let header = Header { epoch: vedette_wire::Epoch(1), seq: 1, records: 1, sources: vec![source], ..header };
//!
//! let mut body = Vec::new();
//! append_body(&Body::Syslog(Syslog { raw: b"hello".to_vec(), ..Syslog::default() }), &mut body);
//! let mut sealer = Sealer::default();
//! sealer.append(0, 1_764_242_000_000_000_000, Position(0, 6), &body);
//! let sealed = sealer.seal(0, &header)?;
//!
//! let plain = codec::decompress(&sealed, Compression::Zstd, 1 << 20)?;
//! let batch = codec::decode(&plain)?;
//! assert_eq!(batch.records[0].position, Position(0, 6));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod body;
pub mod chunk;
pub mod codec;
pub mod column;
mod columns;
pub mod digest;
pub mod entries;
pub mod frame;
pub mod geo;
pub mod id;
pub mod ledger;
pub mod lines;
pub mod ocsf;
pub mod os;
mod packed;
pub mod policy;
pub mod position;
pub mod problem;
pub mod record;
pub mod render;
pub mod reply;
pub mod seal;
pub mod security_event;
pub mod set_aside;
pub mod stamp;
pub mod text;

pub use body::Body;
pub use chunk::{Chunk, Dropped, Source, Stored};
pub use codec::Compression;
pub use entries::{EntryHead, EntryPacker};
pub use id::{AgentId, BatchKey, Epoch, LaneName, OrganizationId};
pub use ledger::{Ledger, Reason};
pub use lines::Packer;
pub use os::OsFamily;
pub use policy::Policy;
pub use position::Position;
pub use problem::{Problem, ProblemCode};
pub use record::{Batch, CursorUpdate, Header, HostLabel, Predecessor, Record, SourceRef};
pub use set_aside::SetAside;

/// Version of the batch format. A receiver reads every version up to its own, and refuses a later one with code `version`. So an
/// agent states the earliest that has its records, and an older workspace takes what it can read.
pub const FORMAT_VERSION: u16 = PACKED_ENTRIES;

/// Version with packed lines ([`lines`]) and concatenated compressed streams.
pub(crate) const PACKED_LINES: u16 = 2;
/// Version with records of Windows, whose processes have no state and whose users are not numbers.
const WINDOWS: u16 = 3;
/// Version with packed entries of the journal ([`entries`]).
pub(crate) const PACKED_ENTRIES: u16 = 4;

/// Earliest version of the batches of a host.
pub fn format_version(family: OsFamily) -> u16 {
    if family.is_linux() { PACKED_LINES } else { WINDOWS }
}
