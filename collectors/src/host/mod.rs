//! `host`: facts of the host, at start and every hour.

mod facts;
mod virtualization;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Poll,
    settings::Interval,
    spec::{Collector, Plan, Spec, collector_settings},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use vedette_wire::{Body, record::HostLabel, text};

pub(crate) use facts::{boot_time, time_zone};

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
    const READS: &'static str =
        "/etc/os-release, /etc/machine-id, /etc/localtime, /proc, /sys/class/dmi/id; serial number and UUID as root";

    fn build(settings: &Settings, _cx: &CollectorContext) -> Result<Plan, BuildError> {
        let every = settings.every.0;
        Ok(Plan::Poll(every, Box::new(Host::default())))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

#[derive(Default)]
struct Host {
    /// Serial number and UUID exist, but this user cannot read them.
    refused: bool,
}

impl Poll for Host {
    fn poll(&mut self, cx: &CollectorContext) -> Result<Vec<Body>, CollectError> {
        let serial = std::fs::File::open(cx.path("/sys/class/dmi/id/product_serial"));
        self.refused = serial.is_err_and(|err| err.kind() == std::io::ErrorKind::PermissionDenied);
        Ok(vec![facts::read(cx).into()])
    }

    fn problem(&self) -> Option<String> {
        let why = "serial number and UUID of the machine cannot be read; give the agent CAP_DAC_READ_SEARCH";
        self.refused.then(|| why.to_owned())
    }
}

/// The host label of batches.
pub fn label(cx: &CollectorContext) -> HostLabel {
    let facts = facts::read(cx);
    let (hostname, os_name, os_version) = (facts.hostname, facts.os.name, facts.os.version);
    let os_version = os_version.as_deref().map(text::label);
    HostLabel { hostname: text::label(&hostname), os_name: text::label(&os_name), os_version, ..HostLabel::default() }
}
