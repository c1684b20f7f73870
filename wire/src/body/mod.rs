//! Bodies: what collectors see. One file a kind: its struct, its OCSF rendering, its columns.

mod address;
mod artifact;
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
pub use crash::Crash;
pub use heartbeat::{CollectorHealth, Heartbeat};
pub use host::{CloudInstance, Cpu, Firmware, Hardware, Host, OperatingSystem};
pub use journal::Journal;
pub use lifecycle::{Lifecycle, LifecycleEvent};
pub use process::{Namespaces, Principal, Process};
pub use session::Session;
pub use snapshot::{Change, Snapshot};
pub use syslog::{Inferred, Span, Syslog, severity_and_facility};
pub use unknown::Unknown;

use crate::{
    column::{Column, Value},
    ocsf::{Class, Event},
    record::Position,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A kind of body, for tables and reference pages.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name, as in the column `kind`.
    pub name: &'static str,
    /// View for people.
    pub view: &'static str,
    /// One line.
    pub help: &'static str,
    /// OCSF classes that its records render to.
    pub classes: &'static [Class],
    /// Columns beside the common ones.
    pub columns: &'static [Column],
}

/// Where a body was read, as far as a row shows it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What a person calls the source: a path.
    pub source_name: Option<&'a str>,
    /// Position in it.
    pub position: Position,
}

/// What every body can say of itself.
pub trait Observation {
    /// Its kind.
    const KIND: Kind;
    /// OCSF class.
    fn class(&self) -> Class {
        Self::KIND.classes[0]
    }
    /// OCSF `activity_id`.
    fn activity(&self) -> u8;
    /// When it happened, nanoseconds UTC, where the source tells.
    fn time(&self) -> Option<i64> {
        None
    }
    /// OCSF `severity_id`; 1 is informational.
    fn severity(&self) -> u8 {
        1
    }
    /// A line for people.
    fn message(&self) -> Option<Cow<'_, str>> {
        None
    }
    /// The class's own attributes.
    fn render(&self, event: &mut Event);
    /// One value for each column of the kind, in order.
    fn row<'a>(&'a self, place: &Place<'a>) -> Vec<Value<'a>>;
}

macro_rules! bodies {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// What a collector saw.
        #[expect(clippy::large_enum_variant, reason = "bodies are encoded where they are made, never kept in bulk")]
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub enum Body {
            $(#[doc = concat!("A `", $name, "`.")] #[serde(rename = $name)] $variant($variant),)*
        }

        /// Every kind, in the order of the reference page.
        pub const KINDS: &[Kind] = &[$($variant::KIND),*];

        impl Body {
            /// Its kind.
            pub fn kind(&self) -> &'static Kind {
                match self { $(Body::$variant(_) => const { &$variant::KIND },)* }
            }
            /// OCSF class.
            pub fn class(&self) -> Class {
                match self { $(Body::$variant(body) => body.class(),)* }
            }
            /// OCSF `activity_id`.
            pub fn activity(&self) -> u8 {
                match self { $(Body::$variant(body) => body.activity(),)* }
            }
            /// When it happened, nanoseconds UTC, where the source tells.
            pub fn time(&self) -> Option<i64> {
                match self { $(Body::$variant(body) => body.time(),)* }
            }
            /// OCSF `severity_id`.
            pub fn severity(&self) -> u8 {
                match self { $(Body::$variant(body) => body.severity(),)* }
            }
            /// A line for people.
            pub fn message(&self) -> Option<Cow<'_, str>> {
                match self { $(Body::$variant(body) => body.message(),)* }
            }
            /// One value for each column of the kind.
            pub fn row<'a>(&'a self, place: &Place<'a>) -> Vec<Value<'a>> {
                match self { $(Body::$variant(body) => body.row(place),)* }
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
    Unknown "unknown",
}
