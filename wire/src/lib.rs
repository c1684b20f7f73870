//! Every type that leaves a Vedette process: records, batches, replies and their codec. No I/O, no clock, no async.
//!
//! A *body* is what a collector saw; a [`Record`] is a body with its envelope; a [`Batch`] is records with a
//! [`Header`]. A batch is encoded ([`codec`]) and compressed once, and lies on disk and in the landing store as a
//! [`frame`]. Each kind of body lives in one file under [`body`]: its struct, its OCSF 1.8.0 rendering, its columns.

pub mod body;
pub mod chunk;
pub mod codec;
pub mod column;
pub mod frame;
pub mod geo;
pub mod id;
pub mod ledger;
pub mod lines;
pub mod ocsf;
pub mod policy;
pub mod record;
pub mod reply;
pub mod seal;
pub mod security_event;
pub mod set_aside;
pub mod stamp;
pub mod text;

pub use body::Body;
pub use chunk::{Chunk, Dropped, Source, Stored};
pub use codec::Compression;
pub use id::{AgentId, BatchKey, Epoch, Lane, OrganizationId};
pub use ledger::{Ledger, Reason};
pub use lines::Packer;
pub use policy::Policy;
pub use record::{Batch, Header, HostLabel, Position, Predecessor, Record, SourceRef, Told};
pub use set_aside::SetAside;

/// Version of the batch format: 2 has packed lines ([`lines`]) and several compressed streams one behind the other. A
/// receiver reads every version up to its own and refuses a later one with code `version`.
pub const FORMAT_VERSION: u16 = 2;
