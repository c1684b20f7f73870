//! Where systems store dumps, and what they record with them.

use super::elf;
use crate::{
    CollectorContext,
    root::{
        Root,
        glob::{Expansion, Named, Pattern},
    },
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};
use vedette_wire::{body::Crash, stamp::When};

/// Origin of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// systemd-coredump(8): an ELF core, often compressed, with extended attributes.
    SystemdCoredump,
    /// Apport of Ubuntu: a text file that contains the core.
    Apport,
    /// kdump: kernel memory.
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

/// Files that may be dumps. Directories that cannot be listed are among the expansion's problems.
pub(super) fn candidates(
    context: &CollectorContext,
    root: &Root,
    own: &[Pattern],
    expansion: &mut Expansion,
) -> Vec<(Named, Format)> {
    let known = [
        ("/var/lib/systemd/coredump/core.*", Format::SystemdCoredump),
        ("/var/crash/*.crash", Format::Apport),
        ("/var/crash/*/vmcore", Format::Kdump),
        ("/var/crash/*/dump.*", Format::Kdump),
    ];
    let mut patterns: Vec<(Pattern, Format)> =
        known.into_iter().filter_map(|(text, format)| Some((Pattern::new(text).ok()?, format))).collect();
    patterns.extend(own.iter().map(|pattern| (pattern.clone(), Format::Core)));
    patterns
        .extend(core_pattern(context).and_then(|text| Pattern::new(&text).ok()).map(|pattern| (pattern, Format::Core)));
    let mut out = Vec::new();
    for (pattern, format) in patterns {
        out.extend(expansion.expand(root, &pattern).into_iter().map(|named| (named, format)));
    }
    out
}

/// An absolute kernel.core_pattern as a glob.
fn core_pattern(context: &CollectorContext) -> Option<String> {
    glob_of(&context.text("/proc/sys/kernel/core_pattern")?)
}

/// Converts `/var/cores/core.%e.%p` to `/var/cores/core.*.*` (core(5)); absent for a pipe or a relative name.
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
                // Two adjacent wildcards become one: `**` has another meaning.
                _ if glob.ends_with('*') => {}
                _ => glob.push('*'),
            },
            '*' | '?' | '[' | ']' | '{' | '}' => glob.push_str(&format!("[{letter}]")),
            other => glob.push(other),
        }
    }
    // core_uses_pid appends the pid.
    if !glob.ends_with('*') {
        glob.push('*');
    }
    Some(glob)
}

/// Reads the facts of a dump; false if the file is none.
pub(super) fn read(
    context: &CollectorContext,
    file: &File,
    path: &Path,
    format: Format,
    crash: &mut Crash,
) -> io::Result<bool> {
    match format {
        Format::Core => elf::read(file, crash),
        Format::SystemdCoredump => {
            // An uncompressed core holds more facts than the attributes.
            let is_dump = elf::read(file, crash)? || is_compressed(file)?;
            coredump(file, path, crash);
            Ok(is_dump)
        }
        Format::Apport => apport(context, file, path, crash),
        Format::Kdump => {
            crash.process = Some("kernel".to_owned());
            Ok(true)
        }
    }
}

/// Whether a file starts as zstd (RFC 8878 §3.1.1), lz4 (frame format) or xz (file format).
fn is_compressed(file: &File) -> io::Result<bool> {
    let mut head = [0; 6];
    let length = file.read_at(&mut head, 0)?;
    let magics: [&[u8]; 3] = [b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\xfd7zXZ\0"];
    Ok(magics.iter().any(|magic| head[..length].starts_with(magic)))
}

/// Unescapes `my\x20app`, as systemd-coredump writes process names in file names.
pub(super) fn unescape(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                out.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                out.extend_from_slice(b"\\x");
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads `user.coredump.*` (systemd.journal-fields(7), `COREDUMP_*`), or else the name
/// `core.COMM.UID.BOOT.PID.MICROSECONDS[.zst]`.
fn coredump(file: &File, path: &Path, crash: &mut Crash) {
    let attribute = |name: &str| -> Option<String> {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::fgetxattr(file.as_fd(), format!("user.coredump.{name}"), &mut value).ok()?;
        Some(String::from_utf8_lossy(value.get(..length)?).into_owned())
    };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = ["zst", "lz4", "xz"].iter().find_map(|end| name.strip_suffix(&format!(".{end}"))).unwrap_or(name);
    // From the right, since a process name may contain dots.
    let parts: Vec<&str> = name.rsplitn(5, '.').collect();
    if let [time, pid, _boot, uid, comm] = parts.as_slice() {
        crash.process = comm.strip_prefix("core.").map(unescape).or_else(|| crash.process.take());
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

/// Reads the `Key: value` lines before the core; continuation lines start with a space (apport's problem_report). Pid and user
/// are in the copy of `/proc/PID/status`; the report's name holds the user, too: `_usr_bin_app.1000.crash`.
fn apport(context: &CollectorContext, file: &File, path: &Path, crash: &mut Crash) -> io::Result<bool> {
    let mut kind = String::new();
    let mut block = String::new();
    for line in BufReader::new(file.take(1 << 20)).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some(line) = line.strip_prefix(' ') {
            let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
            match line.split_once(':') {
                Some(("Pid", value)) if block == "ProcStatus" => crash.pid = number(value).or(crash.pid),
                Some(("Uid", value)) if block == "ProcStatus" => crash.user_id = number(value).or(crash.user_id),
                _ => {}
            }
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        if key == "CoreDump" || key == "VmCore" {
            break;
        }
        value.trim().clone_into(&mut block);
        let value = std::mem::replace(&mut block, key.to_owned());
        match key {
            "ProblemType" => kind = value,
            "Date" => crash.time = date(context, &value).or(crash.time),
            "ExecutablePath" => crash.path = Some(value),
            "ProcCmdline" => crash.cmd_line = Some(value),
            "Signal" => crash.signal = value.parse().ok(),
            "Package" => crash.package = Some(value),
            "Pid" => crash.pid = value.parse().ok(),
            _ => {}
        }
    }
    if kind == "KernelCrash" || kind == "KernelOops" {
        crash.process = Some("kernel".to_owned());
        return Ok(true);
    }
    let name = crash.path.as_deref().and_then(|path| path.rsplit('/').next()).map(str::to_owned);
    crash.process = name.or_else(|| crash.process.take());
    let of_name = path.file_stem().and_then(|name| name.to_str()?.rsplit_once('.')?.1.parse().ok());
    crash.user_id = crash.user_id.or(of_name);
    Ok(kind == "Crash")
}

/// Parses `Thu Nov 26 10:00:28 2026`, in the host's time zone (asctime(3)).
fn date(context: &CollectorContext, text: &str) -> Option<i64> {
    let (_weekday, date) = text.split_once(' ')?;
    match vedette_wire::stamp::head(date.as_bytes()).stamp?.when {
        When::Local(time) => Some(crate::syslog::parse::to_utc(time, &crate::host::time_zone(context).1)),
        When::Utc(time) => Some(time),
        When::Yearless(_) | When::Impossible => None,
    }
}

/// `name version` of the Debian package that owns a file.
pub(super) fn package(context: &CollectorContext, executable: &str) -> Option<String> {
    // /bin links to /usr/bin on most hosts, and dpkg knows one of the two names.
    let other = executable.strip_prefix("/usr").map_or_else(|| format!("/usr{executable}"), str::to_owned);
    const LISTS: &str = "/var/lib/dpkg/info";
    let (_, lists) = context.host().and_then(|root| root.entries(Path::new(LISTS))).ok()?;
    let name = lists.filter_map(Result::ok).find_map(|entry| {
        let name = entry.file_name().to_str().ok()?.strip_suffix(".list")?.to_owned();
        let text = context.text(&format!("{LISTS}/{name}.list"))?;
        text.lines().any(|line| line == executable || line == other).then_some(name)
    })?;
    let name = name.split(':').next().unwrap_or(&name);
    let status = context.text("/var/lib/dpkg/status")?;
    let head = format!("Package: {name}");
    let paragraph = status.split("\n\n").find(|paragraph| paragraph.lines().next() == Some(&head))?;
    let version = paragraph.lines().find_map(|line| line.strip_prefix("Version: "))?;
    Some(format!("{name} {version}"))
}
