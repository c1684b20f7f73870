//! `crash_dumps`: finds dumps of systemd-coredump, apport and kdump, and plain core files, and reports each once.
//!
//! The cursor holds the reported dumps, so a restart does not report them again.

mod elf;
mod formats;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Right, Wake,
    root::{
        Root,
        glob::{self, Expansion, Pattern},
    },
    settings::Interval,
    spec::{Collector, Plan, Skip, Spec, Watch, collector_settings},
};
use rustix::fs::Stat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use vedette_wire::{Body, Chunk, Dropped, Position, Reason, Source, body::Crash};

/// A dump is complete when its length and times have not changed for this long.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// Larger files are reported without a digest: they may be sparse, made to keep the agent busy.
const DIGEST_BYTES_MAX: u64 = 64 << 30;
/// Maximum number of remembered dumps; beyond it, those whose files are gone are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Settings of `[collectors.crash_dumps]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Poll interval for dumps.
    every: Interval,
    /// Globs of plain core files, in addition to the directory of an absolute kernel.core_pattern.
    paths: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(10)), paths: Vec::new() }
    }
}

collector_settings!(Settings, every);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "crash_dumps";
    const CLASS: CollectorClass = CollectorClass::Crash;
    const KIND: &'static str = "crash";
    const SUMMARY: &'static str = "crash dumps: process, executable, signal, time, size, SHA-256, package";
    const READS: &'static str = "/var/lib/systemd/coredump, /var/crash, `paths`, /var/lib/dpkg";
    const PERMISSIONS: &'static [Permission] =
        &[Permission { any_of: &[Right::Capability("CAP_DAC_READ_SEARCH")], lost: "dumps of other users' processes" }];
    const SKIP: Option<Skip<Settings>> = Some(skip);

    fn build(settings: &Settings, _cx: &CollectorContext) -> Result<Plan, BuildError> {
        let patterns = glob::patterns(SPEC.id, &settings.paths)?;
        Ok(Plan::Watch(Box::new(CrashDumps { every: settings.every.0, patterns })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

/// Marks existing dumps as reported.
fn skip(settings: &Settings, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
    let source = Arc::new(Source { collector: SPEC.id, id: SOURCE.to_owned(), name: None });
    let mut reported = Reported::of(context);
    let patterns = glob::patterns(SPEC.id, &settings.paths).map_err(|err| CollectError::Absent(err.message))?;
    let root = context.host().map_err(|err| CollectError::read(context.root.display().to_string(), err))?;
    let dumps = formats::candidates(context, &root, &patterns, &mut Expansion::default());
    let dumps = dumps.into_iter().filter(|(named, _)| named.is_file() && named.stat.st_size > 0);
    let count = dumps.filter(|(named, _)| reported.dumps.insert(identity(&named.stat))).count() as u64;
    let mut chunk = Chunk::new(source);
    if count > 0 {
        let positions = Some(Position(reported.count, reported.count + count));
        chunk.dropped.push(Dropped { reason: Reason::Policy, count, positions });
        reported.count += count;
    }
    reported.passed_over = context.now();
    chunk.cursor = Some(rmp_serde::to_vec_named(&reported).expect("numbers serialize"));
    outlet.emit(chunk)
}

struct CrashDumps {
    every: Duration,
    patterns: Vec<Pattern>,
}

/// Identity of a dump: device, inode, size, modification time.
type Identity = (u64, u64, u64, i64);

/// Creation time of a dump, if the file system records it (statx(2)), or else its modification time.
fn created(meta: &std::fs::Metadata) -> i64 {
    let made = meta.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    let made = made.and_then(|made| i64::try_from(made.as_nanos()).ok());
    made.unwrap_or_else(|| meta.mtime().saturating_mul(1_000_000_000))
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino, stat.st_size.cast_unsigned(), stat.st_mtime)
}

/// Id of the only source.
const SOURCE: &str = "dumps";

/// Reported dumps.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reported {
    dumps: BTreeSet<Identity>,
    count: u64,
    /// Older dumps are not reported; nanoseconds UTC.
    #[serde(default)]
    passed_over: i64,
}

impl Reported {
    fn of(context: &CollectorContext) -> Self {
        let cursor = context.cursors.iter().find(|(id, _)| id == SOURCE);
        cursor.and_then(|(_, bytes)| rmp_serde::from_slice(bytes).ok()).unwrap_or_default()
    }
}

impl Watch for CrashDumps {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let source = Arc::new(Source { collector: SPEC.id, id: SOURCE.to_owned(), name: None });
        let mut reported = Reported::of(context);
        let root = context.host().map_err(|err| CollectError::read(context.root.display().to_string(), err))?;
        let (mut growing, mut noted) = (Growing::default(), String::new());
        loop {
            let (mut dumps, mut expansion) = (BTreeSet::new(), Expansion::default());
            let mut problems = Vec::new();
            growing.begin();
            for (named, format) in formats::candidates(context, &root, &self.patterns, &mut expansion) {
                // Links are not followed: everybody may be able to write to a directory of dumps.
                let (path, identity) = (&named.path, identity(&named.stat));
                dumps.insert(identity);
                if reported.dumps.contains(&identity) || !named.is_file() || named.stat.st_size == 0 {
                    continue;
                }
                if context.once.is_none() && !growing.has_settled(path, &named.stat) {
                    continue;
                }
                match describe(context, outlet, &root, (path, format), reported.passed_over) {
                    // Stopped: the next start looks at it again.
                    Ok(Some(_)) if outlet.is_stopped() => return Ok(()),
                    Ok(Some(crash)) => {
                        let mut chunk = Chunk::new(Arc::clone(&source));
                        let at = reported.count;
                        chunk.push(context.now(), Position(at, at + 1), &Body::from(crash));
                        reported.count += 1;
                        reported.dumps.insert(identity);
                        chunk.cursor = Some(rmp_serde::to_vec_named(&reported).expect("numbers serialize"));
                        outlet.emit(chunk)?;
                    }
                    // No dump, or excluded by policy: not looked at again.
                    Ok(None) => drop(reported.dumps.insert(identity)),
                    Err(err) => problems.push(CollectError::read(path.display().to_string(), err).to_string()),
                }
                if outlet.is_stopped() {
                    return Ok(());
                }
            }
            problems.extend(expansion.problems.iter().map(|(path, err)| format!("{}: {err}", path.display())));
            let now = problems.join("; ");
            match (now == noted, now.is_empty()) {
                (true, _) => {}
                (false, true) => outlet.recovered(SPEC.id),
                (false, false) => outlet.report_problem(SPEC.id, &now),
            }
            noted = now;
            if reported.dumps.len() > REMEMBERED_MAX {
                reported.dumps.retain(|identity| dumps.contains(identity));
            }
            if context.once.is_some() {
                return Ok(());
            }
            let pause = if growing.now.is_empty() { self.every } else { SETTLED_AFTER };
            if outlet.wait(pause) == Wake::Stop {
                return Ok(());
            }
        }
    }
}

/// Length and times of change, seconds and nanoseconds.
type FileFingerprint = (i64, i64, u64, i64, u64);

/// Dumps that may still be written: their fingerprints at the last poll, and since when.
#[derive(Default)]
struct Growing {
    before: BTreeMap<PathBuf, (FileFingerprint, Instant)>,
    now: BTreeMap<PathBuf, (FileFingerprint, Instant)>,
}

impl Growing {
    fn begin(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }

    /// Whether a dump no longer changes. The values of its times do not matter: clocks jump, and copies keep times.
    fn has_settled(&mut self, path: &Path, stat: &Stat) -> bool {
        let fingerprint = (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
        let known = self.before.get(path).filter(|(known, _)| *known == fingerprint);
        let since = known.map_or_else(Instant::now, |(_, since)| *since);
        let settled = since.elapsed() >= SETTLED_AFTER;
        if !settled {
            self.now.insert(path.to_owned(), (fingerprint, since));
        }
        settled
    }
}

/// Describes a dump; absent if it is none, or is excluded by its time.
fn describe(
    context: &CollectorContext,
    outlet: &Outlet,
    root: &Root,
    (path, format): (&Path, formats::Format),
    passed_over: i64,
) -> io::Result<Option<Crash>> {
    let mut file = root.log(path)?.read()?;
    let meta = file.metadata()?;
    if created(&meta) < passed_over {
        return Ok(None);
    }
    let mut crash = Crash {
        file: path.display().to_string(),
        format: format.name().to_owned(),
        size: meta.len(),
        time: Some(meta.mtime().saturating_mul(1_000_000_000)),
        ..Crash::default()
    };
    if !formats::read(context, &file, path, format, &mut crash)? {
        return Ok(None);
    }
    crash.package =
        crash.path.as_deref().and_then(|executable| formats::package(context, executable)).or(crash.package);
    if meta.len() <= DIGEST_BYTES_MAX {
        crash.sha256 = digest(outlet, &mut file)?;
    }
    Ok(Some(crash))
}

/// Absent if the agent stops meanwhile.
fn digest(outlet: &Outlet, file: &mut File) -> io::Result<Option<String>> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 256 << 10];
    io::Seek::rewind(file)?;
    loop {
        if outlet.is_stopped() {
            return Ok(None);
        }
        let got = file.read(&mut block)?;
        if got == 0 {
            return Ok(Some(hex::encode(hash.finalize())));
        }
        hash.update(&block[..got]);
    }
}

/// Reads the notes of a core, and a core from a file in memory.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    use std::io::Write;
    elf::read_notes(bytes, &mut Crash::default());
    let file = rustix::fs::memfd_create("core", rustix::fs::MemfdFlags::CLOEXEC).expect("memory is there");
    let mut file = std::fs::File::from(file);
    file.write_all(bytes).expect("memory is there");
    let _ = elf::read(&file, &mut Crash::default());
}

#[cfg(test)]
mod tests;
