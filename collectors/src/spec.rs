//! The description of a collector in the registry, and its two shapes.

use crate::{BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, settings::Interval};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    any::Any,
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};
use vedette_wire::Body;

/// A collector that is called at intervals.
pub trait Poll: Send {
    /// Observes once.
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and restarts the collector after a backoff.
    fn poll(&mut self, context: &CollectorContext) -> Result<Vec<Body>, CollectError>;

    /// Missing permissions and their remedy; reported when they change.
    fn missing_permission(&self) -> Option<String> {
        None
    }
}

/// A collector that runs its own loop on its own thread.
pub trait Watch: Send {
    /// Observes until [`Outlet::wait`] returns a stop, or once with [`CollectorContext::once`].
    ///
    /// # Errors
    /// [`CollectError`]; the runner reports it and restarts the collector after a pause.
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError>;
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

/// Operating systems that the agent runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
}

impl Platform {
    /// Name in the reference.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "Linux",
            Self::Windows => "Windows",
        }
    }
}

/// What settings of all collectors have in common.
pub trait CollectorSettings:
    Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// Whether the collector runs. One without such a setting always does.
    fn enabled(&self) -> bool {
        true
    }

    /// Switches the collector on or off.
    fn set_enabled(&mut self, _enabled: bool) {}

    /// Poll interval; absent if the collector has none.
    fn every(&mut self) -> Option<&mut Interval> {
        None
    }
}

/// Implements [`CollectorSettings`] for settings with `enabled`, and with `every` if that is named.
macro_rules! collector_settings {
    ($settings:ty $(, $every:ident)?) => {
        impl crate::spec::CollectorSettings for $settings {
            fn enabled(&self) -> bool {
                self.enabled
            }

            fn set_enabled(&mut self, enabled: bool) {
                self.enabled = enabled;
            }

            $(fn every(&mut self) -> Option<&mut crate::settings::Interval> {
                Some(&mut self.$every)
            })?
        }
    };
}
pub(crate) use collector_settings;

/// A collector: what the registry says of it, its settings, and how to build it from them.
pub trait Collector: 'static {
    /// Settings of `[collectors.ID]`.
    type Settings: CollectorSettings;
    /// Id in configuration and records.
    const ID: &'static str;
    /// Class, for policies.
    const CLASS: CollectorClass;
    /// Kind of its records, by name in [`vedette_wire::body::KINDS`].
    const KIND: &'static str;
    /// One-line description.
    const SUMMARY: &'static str;
    /// Files and interfaces that it reads.
    const READS: &'static str;
    /// Permissions that it needs beyond those of any user.
    const PERMISSIONS: &'static [Permission] = &[];
    /// Platforms that it runs on.
    const PLATFORMS: &'static [Platform] = &[Platform::Linux];
    /// Ids of collectors that read the same; it depends on them what this one reads. Of other collectors it is not told.
    const DEFERS_TO: &'static [&'static str] = &[];
    /// Skips what the sources hold now; absent if they hold nothing to read later.
    const SKIP: Option<Skip<Self::Settings>> = None;

    /// Builds the collector, which is switched on.
    ///
    /// # Errors
    /// The setting that cannot be used, and the remedy.
    fn build(settings: &Self::Settings, context: &CollectorContext) -> Result<Plan, BuildError>;
}

/// Emits cursors at the end of all sources, and counts what they skip as dropped by policy.
pub type Skip<S> = fn(&S, &CollectorContext, &Outlet) -> Result<(), CollectError>;

/// An entry of the registry: a [`Collector`] without its types.
pub struct Spec {
    /// Id in configuration and records.
    pub id: &'static str,
    /// Class, for policies.
    pub class: CollectorClass,
    /// Kind of its records, by name in [`vedette_wire::body::KINDS`].
    pub kind: &'static str,
    /// One-line description.
    pub summary: &'static str,
    /// Files and interfaces that it reads.
    pub reads: &'static str,
    /// Permissions that it needs beyond those of any user.
    pub permissions: &'static [Permission],
    /// Platforms that it runs on.
    pub platforms: &'static [Platform],
    /// Ids of collectors on which it depends what this one reads.
    pub defers_to: &'static [&'static str],
    /// Checks a table of settings; errors keep their place.
    pub check: fn(toml::de::ValueDeserializer<'_>) -> Result<(), toml::de::Error>,
    /// JSON schema of the settings, with descriptions and defaults.
    pub schema: fn() -> schemars::Schema,
    /// Defaults as TOML.
    pub defaults: fn() -> toml::Table,
    /// Parses a table of settings.
    pub parse: fn(toml::Table) -> Result<AnySettings, BuildError>,
    /// Whether its sources hold what can be read later.
    pub can_skip: bool,
}

impl Spec {
    /// The entry of a collector.
    pub const fn of<C: Collector>() -> Self {
        Self {
            id: C::ID,
            class: C::CLASS,
            kind: C::KIND,
            summary: C::SUMMARY,
            reads: C::READS,
            permissions: C::PERMISSIONS,
            platforms: C::PLATFORMS,
            defers_to: C::DEFERS_TO,
            check: |table| C::Settings::deserialize(table).map(drop),
            schema: || schemars::schema_for!(C::Settings),
            defaults: || toml::Table::try_from(C::Settings::default()).expect("settings are tables"),
            parse: |table| match table.try_into() {
                Ok(settings) => Ok(AnySettings(Arc::new(Typed::<C>(settings)))),
                Err(err) => Err(BuildError { collector: C::ID, message: toml::de::Error::message(&err).to_owned() }),
            },
            can_skip: C::SKIP.is_some(),
        }
    }

    /// Whether it continues at stored cursors: of its sources, or of requested files.
    pub fn has_cursors(&self) -> bool {
        self.can_skip || self.class == CollectorClass::Artifact
    }
}

impl Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Settings of any collector. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AnySettings(Arc<dyn Erased>);

impl AnySettings {
    /// Whether the collector is switched on.
    pub fn enabled(&self) -> bool {
        self.0.enabled()
    }

    /// The same settings, switched on.
    pub fn switched_on(&self) -> Self {
        if self.enabled() { self.clone() } else { self.0.switched_on() }
    }

    /// The same settings with another poll interval; unchanged if the collector has none.
    pub fn with_every(&self, every: Duration) -> Self {
        self.0.with_every(Interval(every))
    }

    /// Poll interval; absent if the collector has none.
    pub fn every(&self) -> Option<Duration> {
        self.0.every()
    }

    /// Builds the collector.
    ///
    /// # Errors
    /// The setting that cannot be used, and the remedy.
    pub fn build(&self, context: &CollectorContext) -> Result<Plan, BuildError> {
        self.0.build(context)
    }

    /// Emits cursors at the end of all sources, and counts what they skip as dropped by policy. Does nothing if they hold
    /// nothing to read later.
    ///
    /// # Errors
    /// As for [`Watch::watch`].
    pub fn skip(&self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
        self.0.skip(context, outlet)
    }
}

impl PartialEq for AnySettings {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(&*other.0)
    }
}

/// [`AnySettings`] of one collector, without its types.
trait Erased: Debug + Send + Sync + Any {
    fn enabled(&self) -> bool;
    fn switched_on(&self) -> AnySettings;
    fn with_every(&self, every: Interval) -> AnySettings;
    fn every(&self) -> Option<Duration>;
    fn build(&self, context: &CollectorContext) -> Result<Plan, BuildError>;
    fn skip(&self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError>;
    fn equals(&self, other: &dyn Erased) -> bool;
}

struct Typed<C: Collector>(C::Settings);

impl<C: Collector> Debug for Typed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<C: Collector> Typed<C> {
    fn changed(&self, change: impl FnOnce(&mut C::Settings)) -> AnySettings {
        let mut settings = self.0.clone();
        change(&mut settings);
        AnySettings(Arc::new(Self(settings)))
    }
}

impl<C: Collector> Erased for Typed<C> {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn switched_on(&self) -> AnySettings {
        self.changed(|settings| settings.set_enabled(true))
    }

    fn with_every(&self, every: Interval) -> AnySettings {
        self.changed(|settings| {
            if let Some(own) = settings.every() {
                *own = every;
            }
        })
    }

    fn every(&self) -> Option<Duration> {
        self.0.clone().every().map(|every| every.0)
    }

    fn build(&self, context: &CollectorContext) -> Result<Plan, BuildError> {
        if !self.0.enabled() {
            return Ok(Plan::Off);
        }
        if let Some(every) = self.every() {
            interval(C::ID, "every", Interval(every))?;
        }
        C::build(&self.0, context)
    }

    fn skip(&self, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
        C::SKIP.map_or(Ok(()), |skip| skip(&self.0, context, outlet))
    }

    fn equals(&self, other: &dyn Erased) -> bool {
        (other as &dyn Any).downcast_ref::<Self>().is_some_and(|other| self.0 == other.0)
    }
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
