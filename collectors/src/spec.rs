//! The description of a collector in the registry, and its two shapes.

use crate::{CollectorContext, Outlet, root::glob::Pattern, settings::Interval};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use vedette_wire::Body;

/// Class of a collector, for policies. In the order in which push sources drop chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectorClass {
    /// State of the host.
    Inventory,
    /// Events on the host.
    Event,
    /// Crash dumps.
    Crash,
    /// Requested files.
    Artifact,
}

/// Why a collector cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("[collectors.{collector}] {message}")]
pub struct BuildError {
    /// Id of the collector.
    pub collector: &'static str,
    /// The problem and its remedy.
    pub message: String,
}

/// Why a collector cannot observe.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The host has no such source, which is no error.
    #[error("{0}")]
    Absent(String),
    /// The source cannot be read.
    #[error("cannot read {what}: {source}; {advice}")]
    Read {
        /// Path, or name of a kernel interface.
        what: String,
        /// Cause.
        #[source]
        source: std::io::Error,
        /// Remedy.
        advice: &'static str,
    },
    /// The source holds its share of the queue.
    #[error("{0} waits: it fills its share of the queue")]
    NoRoom(String),
    /// The agent is stopping.
    #[error("stopped")]
    Stopped,
}

impl CollectError {
    /// A source that cannot be read, with advice for the kind of error.
    pub fn read(what: impl Into<String>, source: std::io::Error) -> Self {
        let advice = match source.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "give the agent's user the right to read it (group adm or systemd-journal, or a capability)"
            }
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::InvalidInput => "it is skipped",
            _ => "the collector retries",
        };
        Self::Read { what: what.into(), source, advice }
    }
}

/// A collector that is called at intervals.
pub trait Poll: Send {
    /// Observes once.
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and restarts the collector after a backoff.
    fn poll(&mut self, cx: &CollectorContext) -> Result<Vec<Body>, CollectError>;

    /// Missing permissions and their remedy; reported when they change.
    fn complaint(&self) -> Option<String> {
        None
    }
}

/// A collector that runs its own loop on its own thread.
pub trait Watch: Send {
    /// Observes until [`Outlet::wait`] returns a stop, or once with [`CollectorContext::once`].
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and restarts the collector after a pause.
    fn watch(&mut self, cx: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError>;
}

/// What to run.
pub enum Plan {
    /// Nothing: switched off.
    Off,
    /// Nothing: the host has nothing to observe, or another collector observes it.
    Absent(String),
    /// A poll at an interval.
    Poll(Duration, Box<dyn Poll>),
    /// A loop on its own thread.
    Watch(Box<dyn Watch>),
}

/// An entry of the registry.
pub struct Spec {
    /// Id in configuration and records.
    pub id: &'static str,
    /// Class, for policies.
    pub class: CollectorClass,
    /// Kind of its records, by name in [`vedette_wire::body::KINDS`].
    pub kind: &'static str,
    /// One-line description.
    pub summary: &'static str,
    /// Files and interfaces that it reads, and permissions that it needs.
    pub reads: &'static str,
    /// Checks a table of settings; errors keep their place.
    pub check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
    /// JSON schema of the settings, with descriptions and defaults.
    pub schema: fn() -> schemars::Schema,
    /// Defaults as TOML.
    pub defaults: fn() -> toml::Table,
    /// Builds the collector from checked settings.
    pub build: fn(toml::Table, &CollectorContext) -> Result<Plan, BuildError>,
    /// Skips what the sources hold now, counted as dropped by policy; absent if they hold nothing to read later.
    pub skip: Option<Skip>,
}

/// Emits cursors at the end of all sources, and counts what they skip.
pub type Skip = fn(toml::Table, &CollectorContext, &Outlet) -> Result<(), CollectError>;

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

/// Minimum interval.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Checks an interval against the minimum.
pub(crate) fn interval(collector: &'static str, key: &str, interval: Interval) -> Result<Duration, BuildError> {
    if interval.0 < INTERVAL_MIN {
        return Err(BuildError { collector, message: format!("{key}: must be at least 1s") });
    }
    Ok(interval.0)
}

/// Parses the setting `paths`.
pub(crate) fn patterns(collector: &'static str, paths: &[String]) -> Result<Vec<Pattern>, BuildError> {
    let wrong = |message: String| BuildError { collector, message: format!("paths: {message}") };
    paths.iter().map(|path| Pattern::new(path).map_err(wrong)).collect()
}

/// Parses settings from a checked table.
pub(crate) fn parse<S: DeserializeOwned>(collector: &'static str, table: toml::Table) -> Result<S, BuildError> {
    table.try_into().map_err(|err: toml::de::Error| BuildError { collector, message: err.message().to_owned() })
}
