#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use std::{path::Path, sync::Arc};

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("has a parent")).expect("makes directories");
    std::fs::write(path, text).expect("writes");
}

fn cx(root: &Path) -> Cx {
    Cx::new(root, Arc::new(|| 0))
}

#[test]
fn a_fixture_host_is_read_as_it_stands() {
    let dir = tempfile::tempdir().expect("temp dir");
    let root = dir.path();
    put(
        root,
        "etc/os-release",
        "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\n# PRETTY_NAME=no\nVARIANT='a \\\"b'\n",
    );
    put(root, "etc/debian_version", "12.11\n");
    put(root, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    put(root, "etc/hosts", "127.0.0.1 localhost\n10.0.0.1 web1.example.net web1\n");
    put(root, "proc/sys/kernel/hostname", "web1\n");
    put(root, "proc/sys/kernel/osrelease", "6.18.44\n");
    put(root, "proc/stat", "cpu 1 2 3\nbtime 1795400000\n");
    put(root, "proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
    put(
        root,
        "proc/cpuinfo",
        "processor : 0\nmodel name : A CPU\nphysical id : 0\ncore id : 0\n\nprocessor : 1\nmodel name : A CPU\nphysical id : 0\ncore id : 0\n",
    );
    put(root, "sys/class/dmi/id/sys_vendor", "QEMU\n");
    put(root, "sys/class/dmi/id/product_serial", "Not Specified\n");
    put(root, "run/systemd/container", "systemd-nspawn\n");
    std::os::unix::fs::symlink("/usr/share/zoneinfo/Europe/Berlin", root.join("etc/localtime")).expect("links");
    let host = read(&cx(root));
    assert_eq!(host.os.name, "Debian GNU/Linux");
    assert_eq!((host.os.version.as_deref(), host.os.build.as_deref()), (Some("12"), Some("12.11")));
    assert_eq!((host.os.pretty_name.as_deref(), host.os.edition.as_deref()), (None, Some("a \"b")));
    assert_eq!((host.hostname.as_str(), host.domain.as_deref()), ("web1", Some("example.net")));
    assert_eq!(host.boot_time, Some(1_795_400_000_000_000_000));
    assert_eq!(host.memory_bytes, Some(16 << 20));
    assert_eq!((host.cpu.logical, host.cpu.cores), (Some(2), Some(1)));
    assert_eq!(host.virtualization.as_deref(), Some("qemu"));
    assert_eq!(host.container.as_deref(), Some("systemd-nspawn"));
    assert_eq!(host.time_zone.as_deref(), Some("Europe/Berlin"));
    assert_eq!((host.hardware.vendor.as_deref(), host.hardware.serial), (Some("QEMU"), None));
}

#[test]
fn an_empty_root_gives_absent_facts_and_no_zeros() {
    let dir = tempfile::tempdir().expect("temp dir");
    let host = read(&cx(dir.path()));
    assert_eq!(host.os.name, "Linux");
    assert_eq!((host.memory_bytes, host.boot_time, host.machine_id, host.cpu.logical), (None, None, None, None));
}

#[test]
fn this_machine_agrees_with_uname_and_os_release() {
    let host = read(&cx(Path::new("/")));
    let uname = rustix::system::uname();
    assert_eq!(host.hostname, uname.nodename().to_string_lossy());
    assert_eq!(host.os.kernel.as_deref(), Some(&*uname.release().to_string_lossy()));
    assert_eq!(host.os.architecture.as_deref(), Some(&*uname.machine().to_string_lossy()));
    assert!(host.memory_bytes.is_some_and(|bytes| bytes > 64 << 20));
}
