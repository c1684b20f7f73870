//! `host`: facts of the host, at start and every hour.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod smbios;
mod virtualization;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
use linux as platform;
#[cfg(windows)]
use windows as platform;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Permission, Poll,
    settings::Interval,
    spec::{Collector, Plan, Platform, Spec, collector_settings},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use vedette_wire::{Body, record::HostLabel, text};

#[cfg(target_os = "linux")]
pub(crate) use linux::{boot_time, time_zone};

/// Settings of `[collectors.host]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Poll interval.
    every: Interval,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(3600)) }
    }
}

collector_settings!(Settings, every);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "host";
    const CLASS: CollectorClass = CollectorClass::Inventory;
    const KIND: &'static str = "host";
    const SUMMARY: &'static str = "operating system, machine name, hardware, firmware, virtualisation";
    const READS: &'static str = platform::READS;
    const PERMISSIONS: &'static [Permission] = platform::PERMISSIONS;
    const PLATFORMS: &'static [Platform] = &[Platform::Linux, Platform::Windows];

    fn build(settings: &Settings, _cx: &CollectorContext) -> Result<Plan, BuildError> {
        let every = settings.every.0;
        Ok(Plan::Poll(every, Box::new(Host::default())))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

#[derive(Default)]
struct Host {
    /// A permission that some facts need, and its remedy.
    missing_permission: Option<String>,
}

impl Poll for Host {
    fn poll(&mut self, context: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        self.missing_permission = platform::missing_permission(context);
        Ok(vec![platform::read(context).into()])
    }

    fn missing_permission(&self) -> Option<String> {
        self.missing_permission.clone()
    }
}

/// Placeholders that vendors write.
fn is_filler(text: &str) -> bool {
    ["To Be Filled By O.E.M.", "Not Specified", "System Product Name", "Default string", "None"].contains(&text)
}

/// The host label of batches.
pub fn label(context: &CollectorContext) -> HostLabel {
    let facts = platform::read(context);
    let (hostname, os_name, os_version) = (facts.hostname, facts.os.name, facts.os.version);
    let os_family = facts.os.family;
    let os_version = os_version.as_deref().map(text::label);
    let (hostname, os_name) = (text::label(&hostname), text::label(&os_name));
    HostLabel { os_family, hostname, os_name, os_version, ..HostLabel::default() }
}

/// Id of the machine, which an installation keeps; absent if it has none.
pub fn machine_id(context: &CollectorContext) -> Option<String> {
    platform::machine_id(context)
}

/// Id of the running boot; absent if the platform has none.
pub fn boot_id(context: &CollectorContext) -> Option<String> {
    platform::boot_id(context)
}

/// Strings of the firmware (SMBIOS) by which clouds name themselves; empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dmi {
    /// Vendor of the system.
    pub vendor: String,
    /// Product name of the system.
    pub product: String,
    /// Version of the firmware.
    pub bios_version: String,
    /// Asset tag of the chassis.
    pub chassis_asset_tag: String,
}

/// Reads the strings of the firmware.
pub fn dmi(context: &CollectorContext) -> Dmi {
    platform::dmi(context)
}
