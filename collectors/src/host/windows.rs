//! Facts of a Windows host, from the registry and the firmware. Facts that cannot be read are absent.

use super::{Dmi, smbios::Smbios, virtualization};
use crate::{CollectorContext, Permission};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use vedette_wire::{
    OsFamily,
    body::{Cpu, Firmware, Hardware, Host, OperatingSystem},
};
use windows_registry::{Key, LOCAL_MACHINE};
use windows_sys::Win32::System::SystemInformation::{GetSystemFirmwareTable, RSMB};

pub(super) const READS: &str = "the registry, SMBIOS";
pub(super) const PERMISSIONS: &[Permission] = &[];

const CURRENT_VERSION: &str = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion";
const TCPIP: &str = r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters";
const TIME_ZONE: &str = r"SYSTEM\CurrentControlSet\Control\TimeZoneInformation";
const PROCESSORS: &str = r"HARDWARE\DESCRIPTION\System\CentralProcessor";
const PREFETCH: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters";

/// The permission that some facts need, if the agent lacks it: none does.
pub(super) fn missing_permission(_context: &CollectorContext) -> Option<String> {
    None
}

fn key(path: &str) -> Option<Key> {
    LOCAL_MACHINE.open(path).ok()
}

fn text(path: &str, name: &str) -> Option<String> {
    present(key(path)?.get_string(name).ok()?)
}

fn present(text: String) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A text of the firmware that is not a placeholder.
fn fact(text: String) -> Option<String> {
    present(text).filter(|text| !super::is_filler(text))
}

/// `MachineGuid`, which the installation of Windows makes.
pub(super) fn machine_id(_context: &CollectorContext) -> Option<String> {
    text(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid")
}

/// Number of the boot, which Windows counts for its prefetcher.
pub(super) fn boot_id(_context: &CollectorContext) -> Option<String> {
    key(PREFETCH)?.get_u32("BootId").ok().map(|number| number.to_string())
}

/// Strings by which clouds name themselves.
pub(super) fn dmi(_context: &CollectorContext) -> Dmi {
    let Smbios { vendor, product, bios_version, chassis_asset_tag, .. } = firmware();
    Dmi { vendor, product, bios_version, chassis_asset_tag }
}

#[expect(unsafe_code, reason = "there is no safe call for it")]
fn firmware() -> Smbios {
    // SAFETY: with a size of 0 the call only answers with the size.
    let size = unsafe { GetSystemFirmwareTable(RSMB, 0, std::ptr::null_mut(), 0) };
    let mut raw = vec![0_u8; size as usize];
    // SAFETY: the buffer has the stated size.
    let written = unsafe { GetSystemFirmwareTable(RSMB, 0, raw.as_mut_ptr(), size) };
    raw.truncate(written as usize);
    Smbios::parse(&raw)
}

pub(super) fn read(context: &CollectorContext) -> Host {
    let smbios = firmware();
    let named = [&smbios.vendor, &smbios.product, &smbios.bios_vendor].map(Clone::clone);
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let boot = System::boot_time().ok().and_then(|seconds| i64::try_from(seconds).ok()?.checked_mul(1_000_000_000));
    Host {
        os: operating_system(),
        hostname: text(TCPIP, "Hostname").or_else(|| System::host_name().ok()).unwrap_or_default(),
        domain: text(TCPIP, "Domain").or_else(|| text(TCPIP, "DhcpDomain")),
        machine_id: machine_id(context),
        boot_id: None,
        boot_time: boot.filter(|time| *time > 0),
        time_zone: text(TIME_ZONE, "TimeZoneKeyName"),
        cpu: cpu(),
        memory_bytes: System::new_with_specifics(memory)
            .ok()
            .map(|system| system.total_memory())
            .filter(|bytes| *bytes > 0),
        virtualization: virtualization::by_dmi(&named).map(str::to_owned),
        container: None,
        firmware: Firmware {
            vendor: fact(smbios.bios_vendor),
            version: fact(smbios.bios_version),
            date: fact(smbios.bios_date),
        },
        hardware: Hardware {
            vendor: fact(smbios.vendor),
            product: fact(smbios.product),
            serial: fact(smbios.serial),
            uuid: fact(smbios.uuid),
        },
        cloud: context.cloud.as_deref().cloned().map(Box::new),
    }
}

fn operating_system() -> OperatingSystem {
    let field = |name: &str| text(CURRENT_VERSION, name);
    let build = field("CurrentBuild");
    let revision = key(CURRENT_VERSION).and_then(|key| key.get_u32("UBR").ok());
    let product = field("ProductName").unwrap_or_else(|| "Windows".to_owned());
    let name = product_name(&product, build.as_deref().and_then(|build| build.parse().ok()));
    let architecture = System::cpu_arch();
    OperatingSystem {
        family: OsFamily::Windows,
        name,
        id: None,
        version: field("DisplayVersion").or_else(|| field("ReleaseId")).or_else(|| field("CurrentVersion")),
        build: build.map(|build| revision.map_or_else(|| build.clone(), |revision| format!("{build}.{revision}"))),
        pretty_name: None,
        edition: field("EditionID"),
        kernel: System::kernel_version().ok(),
        architecture: (!architecture.is_empty()).then_some(architecture),
    }
}

/// First build of Windows 11, whose `ProductName` still says Windows 10.
const WINDOWS_11: u32 = 22_000;

fn product_name(product: &str, build: Option<u32>) -> String {
    match product.strip_prefix("Windows 10") {
        Some(edition) if build.is_some_and(|build| build >= WINDOWS_11) => format!("Windows 11{edition}"),
        _ => product.to_owned(),
    }
}

fn cpu() -> Cpu {
    let logical = key(PROCESSORS).and_then(|key| key.keys().ok().map(Iterator::count));
    let count = |count: usize| u32::try_from(count).ok().filter(|count| *count > 0);
    Cpu {
        model: text(&format!(r"{PROCESSORS}\0"), "ProcessorNameString"),
        logical: logical.and_then(count),
        cores: System::physical_core_count().ok().and_then(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_a_system_and_a_processor() {
        let host = read(&CollectorContext::new("C:\\", std::sync::Arc::new(|| 1)));
        assert!(!host.hostname.is_empty(), "{host:?}");
        assert!(host.os.name.starts_with("Windows") || host.os.name.starts_with("Microsoft Windows"), "{host:?}");
        assert_eq!(host.os.family, OsFamily::Windows);
        assert!(host.cpu.logical.is_some() && host.memory_bytes.is_some() && host.machine_id.is_some(), "{host:?}");
    }

    #[test]
    fn windows_11_is_known_by_its_build() {
        assert_eq!(product_name("Windows 10 Pro", Some(22_631)), "Windows 11 Pro");
        assert_eq!(product_name("Windows 10 Pro", Some(19_045)), "Windows 10 Pro");
        assert_eq!(product_name("Windows Server 2025 Standard", Some(26_100)), "Windows Server 2025 Standard");
    }
}
