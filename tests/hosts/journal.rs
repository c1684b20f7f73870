//! Entry by entry equality with the host's own journalctl, for files that its journald wrote in each format that it knows.

// The same reading and comparing as in the tests of the crate.
#[path = "../../journal/tests/support/compare.rs"]
mod compare;

use crate::{Scene, host::Host};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// Settings of journald: compression, keyed hash, compact mode. Releases that do not know one ignore it.
const FORMATS: [(&str, &str, &str); 5] =
    [("ZSTD", "1", "1"), ("LZ4", "1", "1"), ("XZ", "1", "0"), ("ZSTD", "0", "1"), ("NONE", "1", "0")];
/// Where the files are compared, on the host.
const CORPUS: &str = "/var/tmp/corpus";

pub(crate) fn equals(scene: &mut Scene) -> Result<String> {
    let host = &scene.host;
    let lines = scene.of(20_000, 500);
    for (compression, keyed, compact) in FORMATS {
        write(host, lines, (compression, keyed, compact))?;
    }
    // The agent reads all of them.
    scene.workspace.has_lines("journal", "formatZSTD11", lines)?;
    if !scene.short {
        // One file of a million.
        host.must_within("seq -f 'million %.0f' 1 1000000 | systemd-cat -t million; journalctl --rotate --quiet", 300)?;
    }
    host.must("rm -rf /run/systemd/system/systemd-journald.service.d; systemctl daemon-reload; systemctl restart systemd-journald")?;
    // Archived files are not written any more.
    host.must_within(
        &format!(
            "journalctl --rotate --quiet; rm -rf {CORPUS} && mkdir {CORPUS} && cp /var/log/journal/*/*@*.journal {CORPUS}; \
             journalctl --output=export --all --quiet --no-pager --file='{CORPUS}/*.journal' > {CORPUS}/export"
        ),
        300,
    )?;
    let dir = host.root().join(CORPUS.trim_start_matches('/'));
    let files = compare::journals(&dir);
    ensure!(!files.is_empty(), "no file was archived");
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let (ours, damage) = compare::read_all(&paths);
    let theirs = compare::parse(&std::fs::read(dir.join("export"))?);
    ensure!(damage == 0, "{damage} entries or fields are damaged");
    ensure!(ours.len() == theirs.len(), "{} entries, journalctl has {}", ours.len(), theirs.len());
    if let Some((ours, theirs)) = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs) {
        bail!("{} and {} differ", ours.0, theirs.0);
    }
    let incompatible = incompatible(&files)?;
    host.must(&format!("rm -rf {CORPUS}"))?;
    Ok(format!("{} entries in {} files, {incompatible}", ours.len(), files.len()))
}

/// Lets journald write a file of a format, with short, long and binary fields.
fn write(host: &Host, lines: u64, (compression, keyed, compact): (&str, &str, &str)) -> Result<()> {
    let tag = format!("format{compression}{keyed}{compact}");
    host.must(&format!(
        "mkdir -p /run/systemd/system/systemd-journald.service.d && printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nEnvironment=SYSTEMD_JOURNAL_COMPRESS={compression} \
         SYSTEMD_JOURNAL_KEYED_HASH={keyed} SYSTEMD_JOURNAL_COMPACT={compact}\\n' > /run/systemd/system/systemd-journald.service.d/test.conf; \
         systemctl daemon-reload; systemctl restart systemd-journald; journalctl --rotate --quiet"
    ))?;
    host.must_within(&format!("seq -f '{tag} %.0f' 1 {lines} | systemd-cat -t {tag}"), 120)?;
    host.must(
        "for n in $(seq 1 50); do head -c 4000 /dev/urandom | base64 -w0; echo; head -c 20000 /dev/zero | tr '\\0' a; echo; done | \
         systemd-cat -t long; printf 'MESSAGE=two\\nMESSAGE=values\\nEMPTY=\\n' | logger --journald; journalctl --sync",
    )?;
    Ok(())
}

/// Flags of the formats that the files have (journal-def.h): which compressions were really written.
fn incompatible(files: &[PathBuf]) -> Result<String> {
    let mut names = std::collections::BTreeSet::new();
    for file in files {
        let bytes = std::fs::read(file)?;
        let flags = u32::from_le_bytes(bytes.get(12..16).context("a header")?.try_into()?);
        for (bit, name) in [(1, "xz"), (2, "lz4"), (4, "keyed hash"), (8, "zstd"), (16, "compact")] {
            if flags & bit != 0 {
                names.insert(name);
            }
        }
    }
    Ok(names.into_iter().collect::<Vec<_>>().join(", "))
}
