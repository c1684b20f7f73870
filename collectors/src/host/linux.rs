//! Facts of a Linux host. Facts that cannot be read are absent.

use super::{Dmi, virtualization};
use crate::{CollectorContext, Permission, Right};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use vedette_wire::{
    OsFamily,
    body::{Cpu, Firmware, Hardware, Host, OperatingSystem},
};

pub(super) const READS: &str = "/etc/os-release, /etc/machine-id, /etc/localtime, /proc, /sys/class/dmi/id";
pub(super) const PERMISSIONS: &[Permission] = &[Permission {
    any_of: &[Right::Capability("CAP_DAC_READ_SEARCH")],
    lost: "serial number and UUID of the machine",
}];

/// The permission that some facts need, if the agent lacks it.
pub(super) fn missing_permission(context: &CollectorContext) -> Option<String> {
    let serial = std::fs::File::open(context.path("/sys/class/dmi/id/product_serial"));
    let is_refused = serial.is_err_and(|err| err.kind() == std::io::ErrorKind::PermissionDenied);
    let why = "serial number and UUID of the machine cannot be read; give the agent CAP_DAC_READ_SEARCH";
    is_refused.then(|| why.to_owned())
}

/// machine-id(5).
pub(super) fn machine_id(context: &CollectorContext) -> Option<String> {
    context.text("/etc/machine-id").filter(|id| id != "uninitialized")
}

/// Id of the running boot (random(4)).
pub(super) fn boot_id(context: &CollectorContext) -> Option<String> {
    context.text("/proc/sys/kernel/random/boot_id")
}

/// Strings by which clouds name themselves.
pub(super) fn dmi(context: &CollectorContext) -> Dmi {
    let dmi = |name: &str| context.text(&format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
    Dmi {
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        bios_version: dmi("bios_version"),
        chassis_asset_tag: dmi("chassis_asset_tag"),
    }
}

pub(super) fn read(context: &CollectorContext) -> Host {
    let stat = context.text("/proc/stat").unwrap_or_default();
    let dmi = |name: &str| context.text(&format!("/sys/class/dmi/id/{name}")).filter(|text| !super::is_filler(text));
    let hostname = hostname(context).unwrap_or_default();
    let cpuinfo = context.text("/proc/cpuinfo").unwrap_or_default();
    Host {
        os: operating_system(context),
        domain: domain(context, &hostname),
        machine_id: machine_id(context),
        boot_id: boot_id(context),
        boot_time: boot_time(&stat),
        time_zone: Some(time_zone(context).0),
        cpu: cpu(context, &cpuinfo),
        memory_bytes: memory_bytes(context),
        virtualization: hypervisor(context, &cpuinfo),
        container: container(context),
        firmware: Firmware { vendor: dmi("bios_vendor"), version: dmi("bios_version"), date: dmi("bios_date") },
        hardware: Hardware {
            vendor: dmi("sys_vendor"),
            product: dmi("product_name"),
            serial: dmi("product_serial"),
            uuid: dmi("product_uuid"),
        },
        hostname,
        cloud: context.cloud.as_deref().cloned().map(Box::new),
    }
}

/// The host's name. `/proc` has the reader's: in a container, the container's (uts_namespaces(7)).
fn hostname(context: &CollectorContext) -> Option<String> {
    let kernel = || context.text("/proc/sys/kernel/hostname");
    let file = || context.text("/etc/hostname");
    let name = if context.is_this_host() { kernel().or_else(file) } else { file().or_else(kernel) };
    // RFC 1035 §2.3.4
    name.filter(|name| name.len() <= 255 && !name.contains(char::is_control))
}

fn operating_system(context: &CollectorContext) -> OperatingSystem {
    let text = context.text("/etc/os-release").or_else(|| context.text("/usr/lib/os-release")).unwrap_or_default();
    let release = os_release(&text);
    let field = |key: &str| release.get(key).filter(|value| !value.is_empty()).cloned();
    // The architecture is the kernel's, which is this machine's whatever the root.
    let architecture = sysinfo::System::cpu_arch();
    OperatingSystem {
        family: OsFamily::Linux,
        name: field("NAME").unwrap_or_else(|| "Linux".to_owned()),
        id: field("ID"),
        version: field("VERSION_ID"),
        // Debian has no BUILD_ID; its point release is in another file.
        build: field("BUILD_ID").or_else(|| {
            context.text("/etc/debian_version").filter(|_| release.get("ID").is_some_and(|id| id == "debian"))
        }),
        pretty_name: field("PRETTY_NAME"),
        edition: field("VARIANT"),
        kernel: context.text("/proc/sys/kernel/osrelease"),
        architecture: (!architecture.is_empty()).then_some(architecture),
    }
}

/// Parses os-release(5): shell-like assignments with optional quotes.
fn os_release(text: &str) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once('=') else { continue };
        if key.starts_with('#') {
            continue;
        }
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let value = quoted.unwrap_or(value);
        let mut plain = String::with_capacity(value.len());
        let mut escaped = false;
        for letter in value.chars() {
            escaped = letter == '\\' && !escaped;
            if !escaped {
                plain.push(letter);
            }
        }
        out.insert(key.to_owned(), plain);
    }
    out
}

/// Hypervisor of this machine; absent on bare metal.
fn hypervisor(context: &CollectorContext, cpuinfo: &str) -> Option<String> {
    let dmi: Vec<String> = ["sys_vendor", "product_name", "bios_vendor", "board_vendor"]
        .iter()
        .filter_map(|name| context.text(&format!("/sys/class/dmi/id/{name}")))
        .collect();
    if let Some(name) = virtualization::by_dmi(&dmi) {
        return Some(name.to_owned());
    }
    if let Some(hypervisor) = context.text("/sys/hypervisor/type") {
        return Some(hypervisor);
    }
    // The processor reports a hypervisor (CPUID leaf 1, ECX bit 31), but not which one.
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().any(|flag| flag == "hypervisor").then(|| "vm-other".to_owned())
}

/// Container manager of this machine's init, as systemd-detect-virt(1) names it; absent outside containers.
fn container(context: &CollectorContext) -> Option<String> {
    if let Some(name) = context.text("/run/systemd/container") {
        return Some(name);
    }
    if context.path("/run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    if context.path("/.dockerenv").exists() {
        return Some("docker".to_owned());
    }
    let environ = std::fs::read(context.path("/proc/1/environ")).ok()?;
    environ
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"container="))
        .map(|name| String::from_utf8_lossy(name).into_owned())
}
/// Domain of the host's full name in `/etc/hosts`, or else `domain` or `search` of resolv.conf(5).
fn domain(context: &CollectorContext, hostname: &str) -> Option<String> {
    if let Some((_, domain)) = hostname.split_once('.') {
        return Some(domain.to_owned());
    }
    let hosts = context.text("/etc/hosts").unwrap_or_default();
    let full = hosts
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split_whitespace().skip(1))
        .find_map(|name| name.strip_prefix(hostname)?.strip_prefix('.'));
    if let Some(domain) = full.filter(|_| !hostname.is_empty()) {
        return Some(domain.to_owned());
    }
    let resolv = context.text("/etc/resolv.conf")?;
    resolv.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("domain" | "search")).then(|| words.next()).flatten().map(str::to_owned)
    })
}

/// `btime` of `/proc/stat`, nanoseconds UTC.
pub(crate) fn boot_time(stat: &str) -> Option<i64> {
    let seconds: i64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    seconds.checked_mul(1_000_000_000)
}

fn memory_bytes(context: &CollectorContext) -> Option<u64> {
    let meminfo = context.text("/proc/meminfo")?;
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn cpu(context: &CollectorContext, cpuinfo: &str) -> Cpu {
    let field = |line: &str, key: &str| -> Option<String> {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    let logical = cpuinfo.lines().filter_map(|line| field(line, "processor")).count();
    let mut cores: Vec<(String, String)> = Vec::new();
    for processor in cpuinfo.split("\n\n") {
        let find = |key| processor.lines().find_map(|line| field(line, key));
        if let (Some(socket), Some(core)) = (find("physical id"), find("core id")) {
            cores.push((socket, core));
        }
    }
    cores.sort_unstable();
    cores.dedup();
    // cpuinfo may name no cores (ARM, some hypervisors): the kernel's count for this machine.
    let physical = if context.is_this_host() { sysinfo::System::physical_core_count().ok() } else { None };
    let count = |count: usize| u32::try_from(count).ok().filter(|count| *count > 0);
    Cpu {
        model: cpuinfo.lines().find_map(|line| field(line, "model name").or_else(|| field(line, "Model"))),
        logical: count(logical),
        cores: count(cores.len()).or_else(|| physical.and_then(count)),
    }
}

/// The host's time zone and its IANA name: the rules in `/etc/localtime` (TZif, RFC 9636), named by its link target or by
/// `/etc/timezone`; or else UTC.
pub(crate) fn time_zone(context: &CollectorContext) -> (String, TimeZone) {
    let link = std::fs::read_link(context.path("/etc/localtime")).ok();
    let from_link = link.as_ref().and_then(|target| {
        let target = target.to_string_lossy().into_owned();
        target.split_once("zoneinfo/").map(|(_, name)| name.to_owned())
    });
    let name = from_link.or_else(|| context.text("/etc/timezone"));
    let rules = context.bytes("/etc/localtime", TZIF_BYTES_MAX);
    let zone = rules.and_then(|rules| TimeZone::tzif(name.as_deref().unwrap_or("localtime"), &rules).ok());
    let zone = zone.or_else(|| TimeZone::get(name.as_deref()?).ok());
    match (name, zone) {
        (Some(name), zone) => (name, zone.unwrap_or(TimeZone::UTC)),
        (None, Some(zone)) => ("localtime".to_owned(), zone),
        (None, None) => ("UTC".to_owned(), TimeZone::UTC),
    }
}

/// The rules of the largest zones have some 4 kB.
const TZIF_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests;
