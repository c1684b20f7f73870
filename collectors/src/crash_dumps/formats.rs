//! Where each system leaves its dumps, and what it notes beside them.

use super::elf;
use crate::Cx;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
};
use vedette_wire::body::Crash;

/// Who wrote a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// systemd-coredump(8): an ELF core, perhaps compressed, with extended attributes.
    SystemdCoredump,
    /// Ubuntu's apport: a text file with the core in it.
    Apport,
    /// kdump: the kernel's own memory.
    Kdump,
    /// core(5).
    Core,
}

impl Format {
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::SystemdCoredump => "systemd-coredump",
            Format::Apport => "apport",
            Format::Kdump => "kdump",
            Format::Core => "core",
        }
    }
}

/// Every file that may be a dump.
pub(super) fn candidates(cx: &Cx, paths: &[String]) -> Vec<(PathBuf, Format)> {
    let mut globs = vec![
        ("/var/lib/systemd/coredump/core.*".to_owned(), Format::SystemdCoredump),
        ("/var/crash/*.crash".to_owned(), Format::Apport),
        ("/var/crash/*/vmcore".to_owned(), Format::Kdump),
        ("/var/crash/*/dump.*".to_owned(), Format::Kdump),
    ];
    globs.extend(paths.iter().map(|path| (path.clone(), Format::Core)));
    globs.extend(core_pattern(cx).map(|glob| (glob, Format::Core)));
    globs
        .into_iter()
        .flat_map(|(pattern, format)| {
            let found = glob::glob(&cx.path(&pattern).to_string_lossy()).into_iter().flatten();
            found.filter_map(Result::ok).map(move |path| (path, format))
        })
        .collect()
}

/// An absolute kernel.core_pattern as a glob.
fn core_pattern(cx: &Cx) -> Option<String> {
    glob_of(&cx.text("/proc/sys/kernel/core_pattern")?)
}

/// `/var/cores/core.%e.%p` is `/var/cores/core.*.*` (core(5)); absent for a pipe or a relative name.
pub(super) fn glob_of(pattern: &str) -> Option<String> {
    if !pattern.starts_with('/') {
        return None;
    }
    let mut glob = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '%' => match letters.next() {
                Some('%') => glob.push('%'),
                // Two of them side by side are one: `**` is another thing.
                _ if glob.ends_with('*') => {}
                _ => glob.push('*'),
            },
            '*' | '?' | '[' | ']' => glob.push_str(&format!("[{letter}]")),
            other => glob.push(other),
        }
    }
    // core_uses_pid puts the pid behind the name.
    if !glob.ends_with('*') {
        glob.push('*');
    }
    Some(glob)
}

/// Fill in what the dump tells; false where it is none.
pub(super) fn read(file: &File, path: &Path, format: Format, crash: &mut Crash) -> io::Result<bool> {
    match format {
        Format::Core => elf::read(file, crash),
        Format::SystemdCoredump => {
            // Where the core is not compressed it tells more than the attributes.
            elf::read(file, crash)?;
            coredump(file, path, crash);
            Ok(true)
        }
        Format::Apport => apport(file, crash),
        Format::Kdump => {
            crash.process = Some("kernel".to_owned());
            Ok(true)
        }
    }
}

/// `user.coredump.*` (systemd.journal-fields(7), `COREDUMP_*`), else the name
/// `core.COMM.UID.BOOT.PID.MICROSECONDS[.zst]`.
fn coredump(file: &File, path: &Path, crash: &mut Crash) {
    let attribute = |name: &str| -> Option<String> {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::fgetxattr(file.as_fd(), format!("user.coredump.{name}"), &mut value).ok()?;
        Some(String::from_utf8_lossy(value.get(..length)?).into_owned())
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = ["zst", "lz4", "xz"].iter().find_map(|end| name.strip_suffix(&format!(".{end}"))).unwrap_or(name);
    // From the right: a process's name may hold dots.
    let parts: Vec<&str> = name.rsplitn(5, '.').collect();
    if let [time, pid, _boot, uid, comm] = parts.as_slice() {
        crash.process = comm.strip_prefix("core.").map(str::to_owned).or_else(|| crash.process.take());
        crash.user_id = uid.parse().ok().or(crash.user_id);
        crash.pid = pid.parse().ok().or(crash.pid);
        crash.time = time.parse::<i64>().ok().and_then(|time| time.checked_mul(1000)).or(crash.time);
    }
    let number = |name: &str| attribute(name).and_then(|text| text.parse::<u32>().ok());
    crash.process = attribute("comm").or_else(|| crash.process.take());
    crash.path = attribute("exe").or_else(|| crash.path.take());
    crash.cmd_line = attribute("cmdline").or_else(|| crash.cmd_line.take());
    crash.unit = attribute("unit");
    crash.signal = number("signal").or(crash.signal);
    crash.pid = number("pid").or(crash.pid);
    crash.user_id = number("uid").or(crash.user_id);
    let time = attribute("timestamp").and_then(|text| text.parse::<i64>().ok()?.checked_mul(1000));
    crash.time = time.or(crash.time);
    crash.truncated |= attribute("truncated").as_deref() == Some("1");
}

/// `Key: value` lines up to the core itself.
fn apport(file: &File, crash: &mut Crash) -> io::Result<bool> {
    let mut is_crash = false;
    for line in BufReader::new(file.take(1 << 20)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some((key, value)) = line.split_once(": ") else {
            if line.starts_with("CoreDump:") {
                break;
            }
            continue;
        };
        match key {
            "ProblemType" => is_crash = value == "Crash",
            "ExecutablePath" => crash.path = Some(value.to_owned()),
            "ProcCmdline" => crash.cmd_line = Some(value.to_owned()),
            "Signal" => crash.signal = value.trim().parse().ok(),
            "Package" => crash.package = Some(value.to_owned()),
            "Pid" => crash.pid = value.trim().parse().ok(),
            _ => {}
        }
    }
    let name = crash.path.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
    crash.process = name.or_else(|| crash.process.take());
    Ok(is_crash)
}

/// `name version` of the Debian package that a file belongs to.
pub(super) fn package(cx: &Cx, executable: &str) -> Option<String> {
    // /bin is a link to /usr/bin on most hosts; dpkg knows one of the two names.
    let other = executable.strip_prefix("/usr").map_or_else(|| format!("/usr{executable}"), str::to_owned);
    let lists = std::fs::read_dir(cx.path("/var/lib/dpkg/info")).ok()?;
    let name = lists.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name().to_str()?.strip_suffix(".list")?.to_owned();
        let text = std::fs::read_to_string(entry.path()).ok()?;
        text.lines().any(|line| line == executable || line == other).then_some(name)
    })?;
    let name = name.split(':').next().unwrap_or(&name);
    let status = cx.text("/var/lib/dpkg/status")?;
    let head = format!("Package: {name}");
    let paragraph = status.split("\n\n").find(|paragraph| paragraph.lines().next() == Some(&head))?;
    let version = paragraph.lines().find_map(|line| line.strip_prefix("Version: "))?;
    Some(format!("{name} {version}"))
}
