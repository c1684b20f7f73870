//! Bodies: one file per kind, with its struct, its OCSF rendering and its columns.

mod address;
mod artifact;
mod container_log;
mod crash;
mod heartbeat;
mod host;
mod journal;
mod lifecycle;
pub mod login;
mod process;
mod session;
mod snapshot;
mod syslog;
mod unknown;

pub use address::Address;
pub use artifact::{Artifact, WholeFile};
pub use container_log::{Container, ContainerLog, Stream};
pub use crash::Crash;
pub use heartbeat::{CollectorHealth, Heartbeat};
pub use host::{CloudInstance, Cpu, Firmware, Hardware, Host, OperatingSystem};
pub use journal::Journal;
pub use lifecycle::{Lifecycle, LifecycleEvent};
pub use process::{Namespaces, Principal, PrincipalId, Process, ProcessState};
pub use session::Session;
pub use snapshot::{Change, Snapshot};
pub use syslog::{Inferred, Span, Syslog, severity_and_facility};
pub use unknown::Unknown;

use crate::{
    column::{Column, Value},
    ocsf::{Event, OcsfClass},
    position::Position,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A kind of body, for tables and reference pages.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name, as in column `kind`.
    pub name: &'static str,
    /// Name of the SQL view.
    pub view: &'static str,
    /// One-line description.
    pub help: &'static str,
    /// OCSF classes of its records.
    pub classes: &'static [OcsfClass],
    /// Columns in addition to the common ones.
    pub columns: &'static [Column],
}

/// Source and position of a body, as shown in a row.
#[derive(Debug, Clone, Copy)]
pub struct RowContext<'a> {
    /// Display name of the source: a path, or the address of a socket.
    pub source_name: Option<&'a str>,
    /// Position in the source.
    pub position: Position,
}

/// Common interface of all bodies.
pub trait Observation {
    /// Its kind.
    const KIND: Kind;
    /// OCSF class.
    fn class(&self) -> OcsfClass {
        Self::KIND.classes[0]
    }
    /// OCSF `activity_id`.
    fn activity(&self) -> u8;
    /// Event time, nanoseconds UTC, where the source states one.
    fn time(&self) -> Option<i64> {
        None
    }
    /// OCSF `severity_id`; 1 is informational.
    fn severity(&self) -> u8 {
        1
    }
    /// Human-readable message.
    fn message(&self) -> Option<Cow<'_, str>> {
        None
    }
    /// Adds the attributes of the class.
    fn render(&self, event: &mut Event);
    /// One value per column of the kind, in order.
    fn row<'a>(&'a self, context: &RowContext<'a>) -> Vec<Value<'a>>;
}

macro_rules! bodies {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// An observation of a collector.
        #[expect(clippy::large_enum_variant, reason = "bodies are encoded at once, and few exist at a time")]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub enum Body {
            $(#[doc = concat!("A `", $name, "`.")] #[serde(rename = $name)] $variant($variant),)*
        }

        /// All kinds, in the order of the reference page.
        pub const KINDS: &[Kind] = &[$($variant::KIND),*];

        impl Body {
            /// Its kind.
            pub fn kind(&self) -> &'static Kind {
                match self { $(Body::$variant(_) => const { &$variant::KIND },)* }
            }
            /// OCSF class.
            pub fn class(&self) -> OcsfClass {
                match self { $(Body::$variant(body) => body.class(),)* }
            }
            /// OCSF `activity_id`.
            pub fn activity(&self) -> u8 {
                match self { $(Body::$variant(body) => body.activity(),)* }
            }
            /// Event time, nanoseconds UTC, where the source states one.
            pub fn time(&self) -> Option<i64> {
                match self { $(Body::$variant(body) => body.time(),)* }
            }
            /// OCSF `severity_id`.
            pub fn severity(&self) -> u8 {
                match self { $(Body::$variant(body) => body.severity(),)* }
            }
            /// Message for people.
            pub fn message(&self) -> Option<Cow<'_, str>> {
                match self { $(Body::$variant(body) => body.message(),)* }
            }
            /// One value per column of the kind.
            pub fn row<'a>(&'a self, context: &RowContext<'a>) -> Vec<Value<'a>> {
                match self { $(Body::$variant(body) => body.row(context),)* }
            }
            pub(crate) fn render(&self, event: &mut Event) {
                match self { $(Body::$variant(body) => body.render(event),)* }
            }
        }

        $(impl From<$variant> for Body {
            fn from(body: $variant) -> Self { Body::$variant(body) }
        })*
    };
}

bodies! {
    Host "host",
    Process "process",
    Address "address",
    Session "session",
    Syslog "syslog",
    Journal "journal",
    Crash "crash",
    Heartbeat "heartbeat",
    Lifecycle "lifecycle",
    Artifact "artifact",
    ContainerLog "container_log",
    Unknown "unknown",
}
