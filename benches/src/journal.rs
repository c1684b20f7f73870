//! Reading of a journal from its begin: the reader alone, the agent, and journalctl on the same files.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use vedette_benches::world::{World, children_cpu_seconds, cpu_seconds};
use vedette_journal::{JournalFile, Reader};

/// Collectors that are switched off.
const OTHERS: [&str; 6] = ["host", "addresses", "sessions", "syslog", "processes", "crash_dumps"];
/// Compressed separately.
const BLOCK_BYTES: usize = 1 << 20;

/// `directory` is the journal of a machine: it is named by the machine's id, and holds `*.journal` files.
pub(crate) fn journal(directory: &Path) -> Result<()> {
    let directory = fs::canonicalize(directory)?;
    let machine =
        directory.file_name().and_then(|name| name.to_str()).context("the directory must be named by a machine id")?;
    let (entries, read, compressed) = reader(&directory)?;
    let per_entry = |seconds: f64| seconds / entries as f64 * 1e6;
    println!("entries       {entries}");
    println!("reader        {:.2} CPU-us per entry", per_entry(read));
    println!("floor         {:.2} CPU-us per entry (reader, zstd-1 of its fields)", per_entry(compressed));
    println!("journalctl    {:.2} CPU-us per entry (-o export)", per_entry(journalctl(&directory)?));

    let root = tempfile::tempdir()?;
    let of_root = root.path().join("var/log/journal");
    fs::create_dir_all(&of_root)?;
    fs::create_dir_all(root.path().join("etc"))?;
    writeln!(File::create(root.path().join("etc/machine-id"))?, "{machine}")?;
    copy(&directory, &of_root.join(machine))?;
    let mut config = format!("root = {:?}\n[collectors.journal]\nstart = \"beginning\"\n", root.path());
    config.extend(OTHERS.iter().map(|id| format!("[collectors.{id}]\nenabled = false\n")));
    let world = World::new(&config)?;
    let (agent, began) = (world.run()?, Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let Some(status) = world.status()? else { continue };
        let emitted = status["collectors"].as_array().into_iter().flatten().find(|one| one["id"] == "journal");
        if emitted.and_then(|one| one["emitted"].as_u64()) >= Some(entries) && status["queue"]["batches"] == 0 {
            break;
        }
        if began.elapsed() > Duration::from_secs(600) {
            bail!("not landed after ten minutes: {status}");
        }
    }
    println!("agent         {:.2} CPU-us per entry, landed", per_entry(cpu_seconds(agent.id())?));
    Ok(())
}

/// Number of entries, and seconds for them without and with compression.
fn reader(directory: &Path) -> Result<(u64, f64, f64)> {
    let mut seconds = [0.0; 2];
    let mut entries = 0;
    for (compresses, seconds) in [false, true].into_iter().zip(&mut seconds) {
        let before = cpu_seconds(std::process::id())?;
        let (mut reader, mut block) = (Reader::default(), Vec::with_capacity(BLOCK_BYTES + (1 << 16)));
        for path in files(directory)? {
            reader.add(path.clone(), JournalFile::open(File::open(path)?)?);
        }
        drop(reader.begin_pass());
        entries = 0;
        while let Some(entry) = reader.next_entry() {
            entries += 1;
            if !compresses {
                continue;
            }
            for field in &entry.fields {
                block.extend_from_slice(field.name());
                block.push(b'=');
                block.extend_from_slice(field.value());
                block.push(b'\n');
            }
            if block.len() >= BLOCK_BYTES {
                zstd::bulk::compress(&block, 1)?;
                block.clear();
            }
        }
        zstd::bulk::compress(&block, 1)?;
        *seconds = cpu_seconds(std::process::id())? - before;
    }
    Ok((entries, seconds[0], seconds[1]))
}

fn journalctl(directory: &Path) -> Result<f64> {
    let before = children_cpu_seconds()?;
    let mut command = Command::new("journalctl");
    command.args(["-o", "export", "-D"]).arg(directory).stdout(Stdio::null());
    if !command.status().context("cannot run journalctl")?.success() {
        bail!("journalctl fails");
    }
    Ok(children_cpu_seconds()? - before)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|name| name == "journal")).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for path in files(from)? {
        fs::copy(&path, to.join(path.file_name().context("a file has no name")?))?;
    }
    Ok(())
}
