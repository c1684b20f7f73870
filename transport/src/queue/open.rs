//! Opening the queue: in constant time, whatever the backlog; a database that cannot be read is moved aside.

use super::{BATCHES, CACHE_BYTES, CURSORS, FORMAT, META, QUARANTINE, Quarantine, Queue, QueueError, put};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable};
use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicU64},
};
use vedette_wire::{Epoch, Lane, Ledger, SetAside};

impl Queue {
    /// Open the queue of a lane in `dir`, or make it. `random` becomes the epoch of a new one.
    ///
    /// A damaged database is renamed to `<lane>.redb.broken-<epoch>` and a new one is made: the agent starts all the
    /// same. The second value is the path it was moved to.
    ///
    /// # Errors
    /// [`QueueError::InUse`], [`QueueError::Newer`] and [`QueueError::Directory`] say what to do.
    pub fn open(dir: &Path, lane: Lane, bytes_max: u64, random: u64) -> Result<(Self, Option<PathBuf>), QueueError> {
        let path = dir.join(format!("{lane}.redb"));
        let writable = || -> std::io::Result<()> {
            // What it holds is for the agent alone.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            tempfile_probe(dir)
        };
        writable().map_err(|source| QueueError::Directory { path: dir.to_owned(), source })?;
        match load(&path, lane, bytes_max, random) {
            Err(QueueError::Storage { source, .. }) if is_damage(&source) => {
                let aside = dir.join(format!("{lane}.redb.broken-{:016x}", random));
                tracing::warn!(path = %path.display(), aside = %aside.display(), error = %source,
                    "queue cannot be read; moved aside, starting with a new one");
                std::fs::rename(&path, &aside)
                    .map_err(|source| QueueError::Directory { path: dir.to_owned(), source })?;
                Ok((load(&path, lane, bytes_max, random)?, Some(aside)))
            }
            other => Ok((other?, None)),
        }
    }
}

/// Whether the file itself is at fault. A full disk or a missing right is not cured by another file.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        redb::Error::Io(err) => {
            !matches!(err.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
        _ => true,
    }
}

/// A directory that can be listed but not written is found out here, not at the first commit.
fn tempfile_probe(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    std::fs::File::create(&probe)?;
    std::fs::remove_file(&probe)
}

fn load(path: &Path, lane: Lane, bytes_max: u64, random: u64) -> Result<Queue, QueueError> {
    let failed = |source: redb::Error| QueueError::Storage { path: path.to_owned(), source: Box::new(source) };
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|err| match err {
        DatabaseError::DatabaseAlreadyOpen => QueueError::InUse { path: path.to_owned() },
        other => failed(other.into()),
    })?;
    prepare(&db, random).map_err(failed)?;
    let meta = read_meta(&db).map_err(failed)?;
    if meta.format > FORMAT {
        return Err(QueueError::Newer { path: path.to_owned(), found: meta.format });
    }
    Ok(Queue {
        db,
        path: path.to_owned(),
        lane,
        epoch: Epoch(meta.epoch),
        predecessor: None,
        bytes_max,
        ledger: Mutex::new(meta.ledger),
        next_seq: AtomicU64::new(meta.next_seq),
        batches: AtomicU64::new(meta.batches),
        bytes: AtomicU64::new(meta.bytes),
        quarantine: Mutex::new(meta.quarantine),
        set_aside: Mutex::new(meta.set_aside),
    })
}

/// Make the tables and the first numbers where they are missing.
fn prepare(db: &Database, random: u64) -> Result<(), redb::Error> {
    let tx = db.begin_write()?;
    {
        tx.open_table(BATCHES)?;
        tx.open_table(QUARANTINE)?;
        tx.open_table(CURSORS)?;
        let mut meta = tx.open_table(META)?;
        if meta.get("format")?.is_none() {
            put(&mut meta, "format", FORMAT)?;
            put(&mut meta, "epoch", random)?;
            put(&mut meta, "next_seq", 1)?;
        }
    }
    tx.commit()?;
    Ok(())
}

#[derive(Debug)]
struct Meta {
    format: u64,
    epoch: u64,
    next_seq: u64,
    batches: u64,
    bytes: u64,
    quarantine: Quarantine,
    ledger: Ledger,
    set_aside: SetAside,
}

fn read_meta(db: &Database) -> Result<Meta, redb::Error> {
    let table = db.begin_read()?.open_table(META)?;
    let number = |key: &str| super::number(table.get(key)?.map(|value| value.value().to_vec()), key);
    let ledger = match table.get("ledger")? {
        None => Ledger::default(),
        Some(bytes) => rmp_serde::from_slice(bytes.value())
            .map_err(|err| redb::Error::Corrupted(format!("the ledger cannot be decoded: {err}")))?,
    };
    let set_aside = match table.get("set_aside")? {
        None => SetAside::default(),
        Some(bytes) => rmp_serde::from_slice(bytes.value())
            .map_err(|err| redb::Error::Corrupted(format!("`set_aside` cannot be decoded: {err}")))?,
    };
    Ok(Meta {
        set_aside,
        format: number("format")?,
        epoch: number("epoch")?,
        next_seq: number("next_seq")?.max(1),
        batches: number("batches")?,
        bytes: number("bytes")?,
        quarantine: Quarantine {
            batches: number("quarantine_batches")?,
            bytes: number("quarantine_bytes")?,
            dropped: number("quarantine_dropped")?,
        },
        ledger,
    })
}
