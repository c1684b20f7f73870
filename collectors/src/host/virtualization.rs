//! Hypervisors by their DMI strings, as systemd-detect-virt(1) names them.

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

/// Hypervisor that the strings of vendor, product and firmware name; absent if none does.
pub(super) fn by_dmi(dmi: &[String]) -> Option<&'static str> {
    // The product distinguishes Hyper-V from bare metal of the same vendor.
    if dmi.iter().any(|text| text == "Microsoft Corporation") && dmi.iter().any(|text| text == "Virtual Machine") {
        return Some("microsoft");
    }
    let named = |mark: &str| dmi.iter().any(|text| text.contains(mark));
    BY_DMI.iter().find(|(mark, _)| named(mark)).map(|(_, name)| *name)
}
