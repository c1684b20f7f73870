//! The host itself: OCSF 5001 Device Inventory Info, activity 2 Collect.

use super::{Kind, Observation, RowContext};
use crate::{
    OsFamily,
    column::{Column, Value, at, integer, text, time},
    ocsf::{Event, OcsfClass, milliseconds, object},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// Facts of the host. A fact that cannot be read is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Operating system.
    pub os: OperatingSystem,
    /// Host name.
    pub hostname: String,
    /// DNS domain, from `/etc/hosts` or `/etc/resolv.conf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// machine-id(5); `MachineGuid` of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Id of the running boot (random(4)); absent on Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Boot time, nanoseconds UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_time: Option<i64>,
    /// IANA time zone; `TimeZoneKeyName` of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Processors.
    pub cpu: Cpu,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Hypervisor, as systemd-detect-virt(1) names it; absent on bare metal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtualization: Option<String>,
    /// Container manager, as systemd-detect-virt(1) names it; absent outside containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Firmware (DMI).
    pub firmware: Firmware,
    /// Hardware (DMI).
    pub hardware: Hardware,
    /// Instance metadata of the cloud; absent on premises.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<Box<CloudInstance>>,
}

/// A machine as its cloud's instance metadata describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloudInstance {
    /// `azure`, `aws` or `gcp`.
    pub cloud: String,
    /// Region, as the cloud names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Availability zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Azure `vmId`, EC2 instance id, Google instance id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Size or machine type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Image of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Azure subscription, AWS account, Google project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Tags that the host's configuration allows.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// Operating system, from os-release(5) and uname(2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperatingSystem {
    /// Family.
    #[serde(skip_serializing_if = "OsFamily::is_linux")]
    pub family: OsFamily,
    /// `NAME` of os-release(5); `ProductName` of Windows.
    pub name: String,
    /// `ID`; absent on Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `VERSION_ID`; `DisplayVersion` of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `BUILD_ID`, on Debian the point release of `/etc/debian_version`; build and revision of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// `PRETTY_NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretty_name: Option<String>,
    /// `VARIANT`; `EditionID` of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edition: Option<String>,
    /// `uname -r`; version of the kernel of Windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Machine architecture, as `uname -m` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
}

/// Processors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Model name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Logical processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical: Option<u32>,
    /// Physical cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
}

/// Firmware, `/sys/class/dmi/id/bios_*`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Firmware {
    /// Vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Date as the vendor writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// Hardware, `/sys/class/dmi/id`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// `sys_vendor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// `product_name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// `product_serial`, readable by root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// `product_uuid`, readable by root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

const COLUMNS: &[Column] = &[
    text("domain", "DNS domain"),
    text("os_family", "`linux` or `windows`"),
    text("os_name", "operating system, `NAME` of os-release(5) or `ProductName` of Windows"),
    text("os_version", "its version, `VERSION_ID` or `DisplayVersion`"),
    text("os_build", "its build, `BUILD_ID`; on Debian the point release, on Windows build and revision"),
    text("os_pretty_name", "`PRETTY_NAME`"),
    text("os_edition", "`VARIANT` or `EditionID`"),
    text("kernel", "kernel release"),
    text("architecture", "machine architecture"),
    text("machine_id", "machine-id(5) or `MachineGuid`"),
    text("boot_id", "id of the running boot"),
    time("boot_time", "when the machine was booted"),
    text("time_zone", "IANA time zone"),
    text("cpu_model", "processor model"),
    integer("cpu_logical", "logical processors"),
    integer("cpu_cores", "physical cores"),
    integer("memory_bytes", "memory in bytes"),
    text("virtualization", "hypervisor; null on bare metal"),
    text("container", "container manager; null outside containers"),
    text("firmware_vendor", "firmware vendor (DMI)"),
    text("firmware_version", "firmware version (DMI)"),
    text("firmware_date", "firmware date (DMI)"),
    text("hardware_vendor", "hardware vendor (DMI)"),
    text("hardware_product", "hardware product (DMI)"),
    text("hardware_serial", "serial number (DMI)"),
    text("hardware_uuid", "system UUID (DMI)"),
    text("cloud", "`azure`, `aws` or `gcp`; null on premises"),
    text("region", "region, in the cloud's words"),
    text("zone", "availability zone"),
    text("instance_id", "the machine's id in the cloud"),
    text("instance_type", "size or machine type"),
    text("image", "image that the machine was made from"),
    text("account", "Azure subscription, AWS account or Google project"),
    text("tags", "allowed tags, JSON"),
];

/// OCSF writes UUIDs with hyphens; machine-id(5) has none.
fn as_uuid(text: &str) -> Option<String> {
    uuid::Uuid::try_parse(text.trim()).ok().map(|uuid| uuid.hyphenated().to_string())
}

impl Observation for Host {
    const KIND: Kind = Kind {
        name: "host",
        view: "hosts",
        help: "facts of the machine, at start and every hour",
        classes: &[OcsfClass::DeviceInventoryInfo],
        columns: COLUMNS,
    };

    fn activity(&self) -> u8 {
        2
    }

    fn render(&self, event: &mut Event) {
        let os = &self.os;
        let (type_id, os_type) = os.family.ocsf();
        event.set_in(
            "device",
            "os",
            object([
                ("name", json!(os.name)),
                ("type_id", json!(type_id)),
                ("type", json!(os_type)),
                ("version", json!(os.version)),
                ("build", json!(os.build)),
                ("edition", json!(os.edition)),
                ("kernel_release", json!(os.kernel)),
            ]),
        );
        event.set_in(
            "device",
            "hw_info",
            object([
                ("cpu_type", json!(self.cpu.model)),
                ("cpu_cores", json!(self.cpu.cores)),
                ("cpu_count", json!(self.cpu.logical)),
                ("cpu_architecture", json!(os.architecture)),
                // OCSF: "total amount of installed RAM, in megabytes".
                ("ram_size", json!(self.memory_bytes.map(|bytes| bytes >> 20))),
                ("serial_number", json!(self.hardware.serial)),
                ("uuid", json!(self.hardware.uuid.as_deref().and_then(as_uuid))),
                ("vendor_name", json!(self.hardware.vendor)),
                ("bios_ver", json!(self.firmware.version)),
                ("bios_date", json!(self.firmware.date)),
                ("bios_manufacturer", json!(self.firmware.vendor)),
            ]),
        );
        event.set_in("device", "hostname", self.hostname.as_str());
        event.set_in("device", "domain", self.domain.clone());
        event.set_in("device", "model", self.hardware.product.clone());
        event.set_in("device", "boot_time", self.boot_time.map(milliseconds));
        event.set_in("device", "boot_uid", self.boot_id.as_deref());
        event.set_in("device", "os_machine_uuid", self.machine_id.as_deref().and_then(as_uuid));
        event.set_in("device", "hypervisor", self.virtualization.clone());
        event.set_in("unmapped", "time_zone", self.time_zone.clone());
        event.set_in("unmapped", "container", self.container.clone());
        if let Some(cloud) = &self.cloud {
            event.set_in("device", "region", cloud.region.clone());
            event.set_in("device", "zone", cloud.zone.clone());
            event.set_in("device", "instance_uid", cloud.instance_id.clone());
            event.set_in("device", "image", cloud.image.clone().map(|uid| json!({"uid": uid})));
            event.set_in("unmapped", "cloud", cloud.cloud.as_str());
            event.set_in("unmapped", "account", cloud.account.clone());
            event.set_in("unmapped", "instance_type", cloud.instance_type.clone());
            event.set_in("unmapped", "tags", (!cloud.tags.is_empty()).then(|| json!(cloud.tags)));
        }
    }

    fn row<'a>(&'a self, _: &RowContext<'a>) -> Vec<Value<'a>> {
        let (os, firmware, hardware, cloud) = (&self.os, &self.firmware, &self.hardware, self.cloud.as_deref());
        let of = |of: fn(&'a CloudInstance) -> &'a Option<String>| -> Value<'a> {
            cloud.and_then(|cloud| of(cloud).as_ref()).into()
        };
        vec![
            self.domain.as_ref().into(),
            os.family.name().into(),
            os.name.as_str().into(),
            os.version.as_ref().into(),
            os.build.as_ref().into(),
            os.pretty_name.as_ref().into(),
            os.edition.as_ref().into(),
            os.kernel.as_ref().into(),
            os.architecture.as_ref().into(),
            self.machine_id.as_ref().into(),
            self.boot_id.as_ref().into(),
            at(self.boot_time),
            self.time_zone.as_ref().into(),
            self.cpu.model.as_ref().into(),
            self.cpu.logical.into(),
            self.cpu.cores.into(),
            self.memory_bytes.into(),
            self.virtualization.as_ref().into(),
            self.container.as_ref().into(),
            firmware.vendor.as_ref().into(),
            firmware.version.as_ref().into(),
            firmware.date.as_ref().into(),
            hardware.vendor.as_ref().into(),
            hardware.product.as_ref().into(),
            hardware.serial.as_ref().into(),
            hardware.uuid.as_ref().into(),
            cloud.map(|cloud| cloud.cloud.as_str()).into(),
            of(|cloud| &cloud.region),
            of(|cloud| &cloud.zone),
            of(|cloud| &cloud.instance_id),
            of(|cloud| &cloud.instance_type),
            of(|cloud| &cloud.image),
            of(|cloud| &cloud.account),
            cloud.filter(|cloud| !cloud.tags.is_empty()).map(|cloud| json!(cloud.tags).to_string()).into(),
        ]
    }
}
