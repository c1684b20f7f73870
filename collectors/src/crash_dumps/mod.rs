//! `crash_dumps`: finds dumps of systemd-coredump, apport and kdump, and plain core files, and reports each once.
//!
//! What was reported is kept in the cursor, so that a restart does not report it again.

mod elf;
mod formats;

use crate::{
    Cx, Outlet, Wake,
    settings::Interval,
    spec::{self, BuildError, Class, CollectError, Plan, Spec, Watch},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use vedette_wire::{Body, Chunk, Dropped, Position, Reason, Source, body::Crash};

pub(crate) const SPEC: Spec = Spec {
    id: "crash_dumps",
    class: Class::Crash,
    kind: "crash",
    summary: "crash dumps: process, executable, signal, time, size, SHA-256, package",
    reads: "/var/lib/systemd/coredump, /var/crash, `paths`, /var/lib/dpkg; CAP_DAC_READ_SEARCH",
    check: spec::check::<Settings>,
    schema: spec::schema::<Settings>,
    defaults: spec::defaults::<Settings>,
    build,
    skip: Some(skip),
};

/// A file that was changed so recently may still be written.
const SETTLED_NS: i64 = 2_000_000_000;
/// A larger file is reported without its digest: it may be sparse, and made to keep the agent busy.
const DIGEST_BYTES_MAX: u64 = 64 << 30;
/// Dumps that are remembered at the most; older ones are forgotten when their files are gone.
const REMEMBERED_MAX: usize = 10_000;

/// Settings of `[collectors.crash_dumps]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether it runs.
    enabled: bool,
    /// How often dumps are looked for.
    every: Interval,
    /// Plain core files, as globs, beside the directory that an absolute kernel.core_pattern names.
    paths: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, every: Interval(Duration::from_secs(10)), paths: Vec::new() }
    }
}

fn build(table: toml::Table, _cx: &Cx) -> Result<Plan, BuildError> {
    let settings: Settings = spec::parse(SPEC.id, table)?;
    if !settings.enabled {
        return Ok(Plan::Off);
    }
    spec::interval(SPEC.id, "every", settings.every)?;
    for path in &settings.paths {
        let message = match glob::Pattern::new(path) {
            Err(err) => format!("paths: {path:?} is not a glob: {err}"),
            Ok(_) if !path.starts_with('/') => format!("paths: {path:?} must be absolute, as in \"/var/cores/core*\""),
            Ok(_) => continue,
        };
        return Err(BuildError { collector: SPEC.id, message });
    }
    Ok(Plan::Watch(Box::new(CrashDumps { settings })))
}

/// What is there counts as reported.
fn skip(table: toml::Table, cx: &Cx, outlet: &Outlet) -> Result<(), CollectError> {
    let settings: Settings = spec::parse(SPEC.id, table).map_err(|err| CollectError::Absent(err.message))?;
    let source = Arc::new(Source { collector: SPEC.id, id: SOURCE.to_owned(), name: None });
    let mut reported = Reported::of(cx);
    let there = formats::candidates(cx, &settings.paths);
    let there = there.into_iter().filter_map(|(path, _)| std::fs::symlink_metadata(path).ok());
    let new =
        there.filter(|meta| meta.is_file() && meta.len() > 0).filter(|meta| reported.dumps.insert(identity(meta)));
    let count = new.count() as u64;
    let mut chunk = Chunk::new(source);
    if count > 0 {
        let positions = Some(Position(reported.count, reported.count + count));
        chunk.dropped.push(Dropped { reason: Reason::Policy, count, positions });
        reported.count += count;
    }
    reported.passed_over = cx.now();
    chunk.cursor = Some(rmp_serde::to_vec_named(&reported).expect("numbers serialize"));
    outlet.emit(chunk)
}

struct CrashDumps {
    settings: Settings,
}

/// Which file a dump is: device, inode, size, modification time.
type Identity = (u64, u64, u64, i64);

/// When a dump was begun, where its file system says (statx(2)), or last written.
fn begun(meta: &std::fs::Metadata) -> i64 {
    let made = meta.created().ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
    let made = made.and_then(|made| i64::try_from(made.as_nanos()).ok());
    made.unwrap_or_else(|| meta.mtime().saturating_mul(1_000_000_000))
}

fn identity(meta: &std::fs::Metadata) -> Identity {
    (meta.dev(), meta.ino(), meta.len(), meta.mtime())
}

/// Id of the one source.
const SOURCE: &str = "dumps";

/// What was reported.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Reported {
    dumps: BTreeSet<Identity>,
    count: u64,
    /// Dumps that were begun before this are not to be reported, nanoseconds UTC.
    #[serde(default)]
    passed_over: i64,
}

impl Reported {
    fn of(cx: &Cx) -> Self {
        let kept = cx.cursors.iter().find(|(id, _)| id == SOURCE);
        kept.and_then(|(_, bytes)| rmp_serde::from_slice(bytes).ok()).unwrap_or_default()
    }
}

impl Watch for CrashDumps {
    fn watch(&mut self, cx: &Cx, outlet: &mut Outlet) -> Result<(), CollectError> {
        let source = Arc::new(Source { collector: SPEC.id, id: SOURCE.to_owned(), name: None });
        let mut reported = Reported::of(cx);
        let mut refused: BTreeSet<PathBuf> = BTreeSet::new();
        loop {
            let mut there = BTreeSet::new();
            for (path, format) in formats::candidates(cx, &self.settings.paths) {
                // Not through a link: a directory of dumps may be everybody's to write to.
                let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
                let identity = identity(&meta);
                there.insert(identity);
                let modified = meta.mtime().saturating_mul(1_000_000_000);
                let unsettled = cx.now().saturating_sub(modified) < SETTLED_NS && cx.once.is_none();
                if begun(&meta) < reported.passed_over {
                    reported.dumps.insert(identity);
                }
                if reported.dumps.contains(&identity) || !meta.is_file() || meta.len() == 0 || unsettled {
                    continue;
                }
                match describe(cx, outlet, &path, format) {
                    // Not told half: it is looked at again after the next start.
                    Ok(Some(_)) if outlet.is_stopped() => return Ok(()),
                    Ok(Some(crash)) => {
                        let mut chunk = Chunk::new(Arc::clone(&source));
                        let at = reported.count;
                        chunk.push(cx.now(), Position(at, at + 1), &Body::from(crash));
                        reported.count += 1;
                        reported.dumps.insert(identity);
                        chunk.cursor = Some(rmp_serde::to_vec_named(&reported).expect("numbers serialize"));
                        outlet.emit(chunk)?;
                    }
                    // Not a dump: no need to look at it again.
                    Ok(None) => drop(reported.dumps.insert(identity)),
                    Err(err) => {
                        if refused.insert(path.clone()) {
                            outlet.complain(SPEC.id, &CollectError::read(cx.host_path(&path), err));
                        }
                    }
                }
                if outlet.is_stopped() {
                    return Ok(());
                }
            }
            if reported.dumps.len() > REMEMBERED_MAX {
                reported.dumps.retain(|identity| there.contains(identity));
            }
            if cx.once.is_some() {
                return Ok(());
            }
            if outlet.wait(self.settings.every.0) == Wake::Stop {
                return Ok(());
            }
        }
    }
}

/// What the dump tells; absent where it is none.
fn describe(cx: &Cx, outlet: &Outlet, path: &Path, format: formats::Format) -> io::Result<Option<Crash>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    let mut crash = Crash {
        file: cx.host_path(path),
        format: format.name().to_owned(),
        size: meta.len(),
        time: Some(meta.mtime().saturating_mul(1_000_000_000)),
        ..Crash::default()
    };
    if !formats::read(&file, path, format, &mut crash)? {
        return Ok(None);
    }
    crash.package = crash.path.as_deref().and_then(|executable| formats::package(cx, executable)).or(crash.package);
    if meta.len() <= DIGEST_BYTES_MAX {
        crash.sha256 = digest(outlet, &mut file)?;
    }
    Ok(Some(crash))
}

/// Absent where the agent stops meanwhile.
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

#[cfg(test)]
mod tests;
