//! What a collector is: its entry in the registry, and its two shapes.

use crate::{Cx, Outlet, root::glob::Pattern, settings::Interval};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use vedette_wire::Body;

/// Policy speaks in classes. In the order in which they are dropped where sources cannot wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// State of the machine.
    Inventory,
    /// What happens on it.
    Event,
    /// Crash dumps.
    Crash,
    /// Files extracted on request.
    Artifact,
}

/// Why a collector cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
#[error("[collectors.{collector}] {message}")]
pub struct BuildError {
    /// The collector.
    pub collector: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Why a collector could not observe.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The host has no such source; not an error of anybody.
    #[error("{0}")]
    Absent(String),
    /// The source is there and cannot be read.
    #[error("cannot read {what}: {source}; {advice}")]
    Read {
        /// A path, or the name of a kernel interface.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// The source holds its share of the queue.
    #[error(
        "{0} waits: what was read of it fills its share of the queue; it is read on when the workspace has taken half of \
         that, and other sources go on"
    )]
    NoRoom(String),
    /// The agent stops.
    #[error("stopped")]
    Stopped,
}

impl CollectError {
    /// A source that cannot be read, with advice by kind of error.
    pub fn read(what: impl Into<String>, source: std::io::Error) -> Self {
        let advice = match source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "give the agent's user the right to read it (group adm or systemd-journal, or a capability)"
            }
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::InvalidInput => "it is left alone",
            _ => "the collector tries again",
        };
        Self::Read { what: what.into(), source, advice }
    }
}

/// A collector that is asked at intervals.
pub trait Poll: Send {
    /// What is to be reported now.
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and asks again at the next interval.
    fn poll(&mut self, cx: &Cx) -> Result<Vec<Body>, CollectError>;

    /// A right that it lacks, and what to do about it; reported when it changes, while it goes on with the rest.
    fn complaint(&self) -> Option<String> {
        None
    }
}

/// A collector that owns a loop, on a thread of its own.
pub trait Watch: Send {
    /// Observe until [`Outlet::wait`] says stop, or once where [`Cx::once`] is set.
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and starts the collector again after a pause.
    fn watch(&mut self, cx: &Cx, outlet: &mut Outlet) -> Result<(), CollectError>;
}

/// What is to be run.
pub enum Plan {
    /// The settings say off.
    Off,
    /// This host has nothing to observe, or another collector observes the same.
    Absent(String),
    /// Ask at intervals.
    Poll(Duration, Box<dyn Poll>),
    /// Run on a thread of its own.
    Watch(Box<dyn Watch>),
}

/// An entry of the registry.
pub struct Spec {
    /// Id: the name in the configuration and in records.
    pub id: &'static str,
    /// Class that policy speaks in.
    pub class: Class,
    /// Kind of record that it yields, by its name in [`vedette_wire::body::KINDS`].
    pub kind: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Files and interfaces that it reads, and the rights that it takes.
    pub reads: &'static str,
    /// Check a table of settings, keeping the place of an error.
    pub check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
    /// JSON schema of the settings, with help and defaults.
    pub schema: fn() -> schemars::Schema,
    /// Defaults as TOML.
    pub defaults: fn() -> toml::Table,
    /// Build from settings that were checked.
    pub build: fn(toml::Table, &Cx) -> Result<Plan, BuildError>,
    /// Pass over what its sources hold now, counted as dropped by policy; absent where they hold nothing that could be
    /// read later.
    pub skip: Option<Skip>,
}

/// Emits the cursors that stand behind all that is there, and what was dropped.
pub type Skip = fn(toml::Table, &Cx, &Outlet) -> Result<(), CollectError>;

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(crate) fn check<S: DeserializeOwned>(table: toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error> {
    S::deserialize(table).map(drop)
}

pub(crate) fn schema<S: schemars::JsonSchema>() -> schemars::Schema {
    schemars::schema_for!(S)
}

pub(crate) fn defaults<S: Default + Serialize>() -> toml::Table {
    toml::Table::try_from(S::default()).expect("settings are tables")
}

/// The shortest interval at which anything is looked at.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// An interval that is not so short that the collector does nothing else.
pub(crate) fn interval(collector: &'static str, key: &str, interval: Interval) -> Result<Duration, BuildError> {
    if interval.0 < INTERVAL_MIN {
        return Err(BuildError { collector, message: format!("{key}: must be at least 1s") });
    }
    Ok(interval.0)
}

/// Patterns of the setting `paths`.
pub(crate) fn patterns(collector: &'static str, paths: &[String]) -> Result<Vec<Pattern>, BuildError> {
    let wrong = |message: String| BuildError { collector, message: format!("paths: {message}") };
    paths.iter().map(|path| Pattern::new(path).map_err(wrong)).collect()
}

/// Settings from a checked table.
pub(crate) fn parse<S: DeserializeOwned>(collector: &'static str, table: toml::Table) -> Result<S, BuildError> {
    table.try_into().map_err(|err: toml::de::Error| BuildError { collector, message: err.message().to_owned() })
}
