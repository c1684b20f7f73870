//! Opening the queue, without reading its batches. A database that cannot be read is moved aside.

use super::{
    BATCHES, CURSORS, Cursors, FORMAT, FORMAT_FILE, META, Meta, Owner, QUARANTINE, Queue, QueueError, Quota, Resume,
    lock, positions, salvage, shares,
    store::{Opener, Store, catch_panic},
};
use parking_lot::Mutex;
use redb::{Database, DatabaseError, ReadableTable};
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};
use vedette_wire::{AgentId, HostLabel, LaneName};

impl Queue {
    /// Opens or creates the queue of a lane in `dir`. `epoch` is that of a new queue.
    ///
    /// Renames a damaged database to `<lane>.redb.broken-…` and creates a new one, so that the agent starts; [`salvage`]
    /// processes the old one.
    ///
    /// # Errors
    /// [`QueueError::InUse`], [`QueueError::Newer`] and [`QueueError::Directory`] state the remedy.
    pub fn open(dir: &Path, lane: LaneName, quota: Quota, epoch: u64) -> Result<Self, QueueError> {
        let path = dir.join(format!("{lane}.redb"));
        let directory = |source| QueueError::Directory { path: dir.to_owned(), source };
        let writable = || -> std::io::Result<()> {
            // Only the agent may read the queue.
            vedette_platform::create_private_dir(dir)?;
            check_writable(dir)
        };
        writable().map_err(directory)?;
        let marker = dir.join(format!("{lane}.begun"));
        let is_missing_or_empty = std::fs::metadata(&path).map_or(true, |meta| meta.is_file() && meta.len() == 0);
        let broken = salvage::broken(dir, lane);
        let resume = match (is_missing_or_empty, marker.exists() || !broken.is_empty()) {
            (true, true) => Resume::Lost,
            _ => Resume::First,
        };
        let opener = |path: PathBuf| move || Database::builder().set_cache_size(quota.cache_bytes).create(&path);
        let load = |resume| Self::load(Box::new(opener(path.clone())), &path, true, lane, (quota, epoch, resume));
        let loaded = match load(resume) {
            Err(QueueError::Storage { source, .. }) if is_damage(&source) => {
                let moved_to = salvage::damaged_name(&path);
                tracing::warn!(path = %path.display(), moved_to = %moved_to.display(), error = %source,
                    "the queue cannot be read; moving it aside and creating a new one");
                std::fs::rename(&path, &moved_to).map_err(directory)?;
                load(Resume::Lost)?
            }
            other => other?,
        };
        if !marker.exists() {
            // Marks that there was a queue, in case its file disappears.
            std::fs::File::create(&marker).and_then(|file| file.sync_all()).map_err(directory)?;
        }
        let format = format!("{FORMAT}\n");
        let format_file = dir.join(FORMAT_FILE);
        let is_file = std::fs::symlink_metadata(&format_file).is_ok_and(|meta| meta.is_file());
        if is_file && std::fs::read_to_string(&format_file).is_ok_and(|present| present == format) {
            vedette_platform::sync_dir(dir).map_err(directory)?;
        } else {
            vedette_platform::write_private(dir, FORMAT_FILE, format.as_bytes()).map_err(directory)?;
        }
        Ok(loaded)
    }

    /// Opens a queue for inspection; creates and moves nothing, and migrates an older format.
    ///
    /// # Errors
    /// [`QueueError::Absent`], [`QueueError::InUse`], [`QueueError::Storage`].
    pub fn inspect(dir: &Path, lane: LaneName, quota: Quota) -> Result<Self, QueueError> {
        let path = dir.join(format!("{lane}.redb"));
        if !path.is_file() {
            return Err(QueueError::Absent { path });
        }
        let from = path.clone();
        let opener = move || Database::builder().set_cache_size(quota.cache_bytes).open(&from);
        Self::load(Box::new(opener), &path, false, lane, (quota, 0, Resume::Cursors))
    }

    pub(super) fn load(
        opener: Opener,
        path: &Path,
        replaces_damaged: bool,
        lane: LaneName,
        (quota, epoch, resume): (Quota, u64, Resume),
    ) -> Result<Self, QueueError> {
        let failed = |source: redb::Error| QueueError::Storage { path: path.to_owned(), source: Box::new(source) };
        let mut in_use = false;
        let opened = catch_panic(|| {
            (opener)().map_err(|err| {
                in_use = matches!(err, DatabaseError::DatabaseAlreadyOpen);
                err.into()
            })
        });
        if in_use {
            return Err(QueueError::InUse { path: path.to_owned() });
        }
        let db = opened.map_err(failed)?;
        let prepared = catch_panic(|| {
            let format = prepare(&db, epoch, resume)?;
            if format > FORMAT {
                return Ok(Err(format));
            }
            let meta = Meta::read(&db)?.1.ok_or_else(|| redb::Error::Corrupted("it has no state".to_owned()))?;
            Ok(Ok((meta, Self::all_cursors(&db)?, shares::load(&db)?)))
        });
        let (meta, unsent_cursors, held): (Meta, Cursors, shares::Held) =
            prepared.map_err(failed)?.map_err(|format| QueueError::Newer { path: path.to_owned(), found: format })?;
        Ok(Self {
            store: Store::new(db, opener, path, replaces_damaged),
            lane,
            quota,
            meta: Mutex::new(meta),
            writing: Mutex::new(()),
            unsent_cursors: Mutex::new(unsent_cursors),
            resealed: AtomicU64::new(0),
            split: AtomicU64::new(0),
            held: Mutex::new(held),
            replaced: Mutex::default(),
        })
    }

    /// Sets the sealing agent. A change of organization or agent begins another epoch, since the workspace counts sequences by
    /// agent. Batches of agents that this one replaces after a re-key are resealed for this host; batches of any other go into
    /// quarantine. Returns the number of the latter.
    ///
    /// # Errors
    /// [`QueueError::Storage`]. The next start continues with the batches that remain.
    pub fn set_owner(
        &self,
        owner: Owner,
        replaced: &[AgentId],
        host: &HostLabel,
        epoch: u64,
    ) -> Result<u64, QueueError> {
        *lock(&self.replaced) = (replaced.to_vec(), host.clone());
        self.begin(owner, epoch)?;
        self.adopt_all()
    }

    pub(super) fn begin(&self, owner: Owner, epoch: u64) -> Result<(), QueueError> {
        self.write(redb::Durability::Immediate, |_, meta| {
            if meta.owner == Some(owner) {
                return Ok(None);
            }
            if meta.owner.is_some() {
                meta.begin_epoch(epoch, None);
                // The previous epoch is another agent's.
                meta.predecessor = None;
                meta.set_aside = Default::default();
            }
            meta.owner = Some(owner);
            Ok(Some(()))
        })?;
        Ok(())
    }
}

/// Whether an error means damage. A new file would not help against a full disk or missing permissions.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error {
        redb::Error::Io(err) => {
            !matches!(err.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        }
        _ => true,
    }
}

/// Fails if a file cannot be created in the directory.
fn check_writable(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    std::fs::File::create(&probe)?;
    std::fs::remove_file(&probe)
}

/// Creates missing tables and state, and migrates an older format. Returns the format of the file.
fn prepare(db: &Database, epoch: u64, resume: Resume) -> Result<u64, redb::Error> {
    let tx = db.begin_write()?;
    let format = {
        let mut meta = tx.open_table(META)?;
        let format = match meta.get("format")? {
            None => 0,
            Some(format) => u64::from_le_bytes(
                format
                    .value()
                    .try_into()
                    .map_err(|_| redb::Error::Corrupted("meta `format` is not a number".to_owned()))?,
            ),
        };
        if format == 0 {
            meta.insert("format", FORMAT.to_le_bytes().as_slice())?;
        }
        format
    };
    if format > FORMAT {
        tx.abort()?;
        return Ok(format);
    }
    tx.open_table(BATCHES)?;
    tx.open_table(QUARANTINE)?;
    tx.open_table(CURSORS)?;
    positions::prepare(&tx)?;
    salvage::prepare(&tx)?;
    shares::prepare(&tx)?;
    match format {
        0 => Meta::new(epoch, resume).write(&tx)?,
        1 => Meta::migrate(&tx)?,
        _ => {}
    }
    tx.commit()?;
    Ok(format)
}
