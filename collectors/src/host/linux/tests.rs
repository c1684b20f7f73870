#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]

use super::*;
use std::{path::Path, sync::Arc};

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("has a parent")).expect("makes directories");
    std::fs::write(path, text).expect("writes");
}

fn context(root: &Path) -> CollectorContext {
    CollectorContext::new(root, Arc::new(|| 0))
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
    let host = read(&context(root));
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
    let host = read(&context(dir.path()));
    assert_eq!(host.os.name, "Linux");
    assert_eq!((host.memory_bytes, host.boot_time, host.machine_id, host.cpu.logical), (None, None, None, None));
}

#[test]
fn this_machine_agrees_with_uname_and_os_release() {
    let host = read(&context(Path::new("/")));
    let uname = rustix::system::uname();
    assert_eq!(host.hostname, uname.nodename().to_string_lossy());
    assert_eq!(host.os.kernel.as_deref(), Some(&*uname.release().to_string_lossy()));
    assert_eq!(host.os.architecture.as_deref(), Some(&*uname.machine().to_string_lossy()));
    assert!(host.memory_bytes.is_some_and(|bytes| bytes > 64 << 20));
}

/// Rules of Central Europe as in tzfile(5), version 2, all in the footer.
fn tzif() -> Vec<u8> {
    let counts = |types: u32, letters: u32| [0, 0, 0, 0, types, letters].map(u32::to_be_bytes).concat();
    let block = |counts: Vec<u8>| [b"TZif2".as_slice(), &[0; 15], &counts].concat();
    // Offset of 3,600 s, no daylight saving time, name at 0.
    let data = [&3600_i32.to_be_bytes(), [0, 0].as_slice(), b"CET\0"].concat();
    let whole = [block(counts(1, 4)), data.clone(), block(counts(1, 4)), data].concat();
    [whole.as_slice(), b"\nCET-1CEST,M3.5.0,M10.5.0/3\n"].concat()
}

#[test]
fn the_zone_is_read_of_the_file_where_no_link_names_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    std::fs::create_dir(dir.path().join("etc")).expect("makes");
    let context = CollectorContext::new(dir.path(), std::sync::Arc::new(|| 0));
    let offset = |text: &str, context: &CollectorContext| {
        let time: jiff::Timestamp = text.parse().expect("a time");
        let (name, zone) = time_zone(context);
        (name, zone.to_offset(time).seconds())
    };
    let (winter, summer) = ("2026-01-15T12:00:00Z", "2026-07-15T12:00:00Z");
    assert_eq!(offset(summer, &context), ("UTC".to_owned(), 0));
    std::fs::write(dir.path().join("etc/localtime"), tzif()).expect("writes");
    assert_eq!(offset(winter, &context), ("localtime".to_owned(), 3600));
    assert_eq!(offset(summer, &context), ("localtime".to_owned(), 7200));
    std::fs::write(dir.path().join("etc/timezone"), "Europe/Berlin\n").expect("writes");
    assert_eq!(offset(summer, &context), ("Europe/Berlin".to_owned(), 7200));
    // The rules apply, whatever the name is.
    std::fs::write(dir.path().join("etc/timezone"), "Nowhere/Land\n").expect("writes");
    assert_eq!(offset(summer, &context), ("Nowhere/Land".to_owned(), 7200));
}
