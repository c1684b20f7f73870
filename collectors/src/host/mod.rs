//! `host`: facts of the host, at start and every hour.

mod facts;
mod virtualization;

use crate::{
    CollectorContext, Poll,
    settings::Interval,
    spec::{self, BuildError, CollectError, CollectorClass, Plan, Spec},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use vedette_wire::{Body, record::HostLabel, text};

pub(crate) use facts::{boot_time, time_zone};

pub(crate) const SPEC: Spec = Spec {
    id: "host",
    class: CollectorClass::Inventory,
    kind: "host",
    summary: "operating system, machine name, hardware, firmware, virtualisation",
    reads: "/etc/os-release, /etc/machine-id, /etc/localtime, /proc, /sys/class/dmi/id; serial number and UUID as root",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
    skip: None,
};

/// Settings of `[collectors.host]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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

fn build(table: toml::Table, _cx: &CollectorContext) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    let every = spec::interval(SPEC.id, "every", settings.every)?;
    Ok(if settings.enabled { Plan::Poll(every, Box::new(Host::default())) } else { Plan::Off })
}

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

    fn complaint(&self) -> Option<String> {
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
