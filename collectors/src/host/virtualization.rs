//! Hypervisor and container manager, as systemd-detect-virt(1) names them.

use crate::CollectorContext;

/// DMI strings with their meaning. The first one found in vendor, product or firmware applies.
const BY_DMI: [(&str, &str); 13] = [
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VMW", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Xen", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("Google Compute Engine", "google"),
];

/// Hypervisor of this machine; absent on bare metal.
pub(super) fn hypervisor(cx: &CollectorContext, cpuinfo: &str) -> Option<String> {
    let dmi: Vec<String> = ["sys_vendor", "product_name", "bios_vendor", "board_vendor"]
        .iter()
        .filter_map(|name| cx.text(&format!("/sys/class/dmi/id/{name}")))
        .collect();
    // The product distinguishes Hyper-V from bare metal of the same vendor.
    if dmi.iter().any(|text| text == "Microsoft Corporation") && dmi.iter().any(|text| text == "Virtual Machine") {
        return Some("microsoft".to_owned());
    }
    if let Some((_, name)) = BY_DMI.iter().find(|(mark, _)| dmi.iter().any(|text| text.contains(mark))) {
        return Some((*name).to_owned());
    }
    if let Some(hypervisor) = cx.text("/sys/hypervisor/type") {
        return Some(hypervisor);
    }
    // The processor reports a hypervisor (CPUID leaf 1, ECX bit 31), but not which one.
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().any(|flag| flag == "hypervisor").then(|| "vm-other".to_owned())
}

/// Container manager of this machine's init; absent outside containers.
pub(super) fn container(cx: &CollectorContext) -> Option<String> {
    if let Some(name) = cx.text("/run/systemd/container") {
        return Some(name);
    }
    if cx.path("/run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    if cx.path("/.dockerenv").exists() {
        return Some("docker".to_owned());
    }
    let environ = std::fs::read(cx.path("/proc/1/environ")).ok()?;
    environ
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(b"container="))
        .map(|name| String::from_utf8_lossy(name).into_owned())
}
