//! The journal files of a host: found by name, opened, and closed when they are read to their end.

use super::cursors::{Begin, Cursors, Directory};
use crate::root::{
    Root,
    glob::{Expansion, Pattern},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
};
use vedette_journal::{Damage, Id, JournalFile, OpenError, Reader, State};

/// Directories of journals: persistent, volatile.
pub(super) const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Device and inode.
type DeviceInode = (u64, u64);

/// A journal file on disk.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) path: PathBuf,
    identity: DeviceInode,
    /// Size, and time of the last change in seconds and nanoseconds.
    state: (i64, i64, i64),
}

/// Position in a file that is closed, since it was read to its end.
#[derive(Debug)]
struct Finished {
    file_id: Id,
    sequence: Id,
    state: (i64, i64, i64),
    index: u64,
}

/// An open file.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    path: PathBuf,
    identity: DeviceInode,
    state: (i64, i64, i64),
    /// Its directory entry is gone; what it holds is read to the end.
    is_gone: bool,
}

/// Lists the journal files of a host. A directory of journals is named by a machine id, with or without the name of a namespace
/// (systemd-journald.service(8)); others hold journals of other hosts.
pub(super) fn list(root: &Root) -> Vec<Named> {
    let mut out = Vec::new();
    for dir in DIRECTORIES {
        for name in ["*.journal", "*.journal~"] {
            let pattern = Pattern::new(&format!("{dir}/*/{name}")).expect("a pattern");
            out.extend(Expansion::default().expand(root, &pattern).into_iter().filter_map(|named| {
                let stat = named.stat;
                (named.is_file() && directory(&named.path).is_some()).then_some(Named {
                    path: named.path,
                    identity: (stat.st_dev, stat.st_ino),
                    state: (stat.st_size, stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
                })
            }));
        }
    }
    out
}

/// Machine id and namespace in the directory of a journal file; absent if it is the directory of something else.
pub(super) fn directory(path: &Path) -> Option<Directory> {
    let name = path.parent()?.file_name()?.to_str()?;
    let (id, namespace) = name.split_once('.').map_or((name, None), |(id, namespace)| (id, Some(namespace)));
    Some((id.parse().ok()?, namespace.map(str::to_owned)))
}

/// The files, and the positions in them.
pub(super) struct Files {
    pub(super) reader: Reader<OpenFile, File>,
    open: BTreeSet<DeviceInode>,
    finished: BTreeMap<DeviceInode, Finished>,
    /// Files that cannot be read, with the reason.
    refused: BTreeMap<PathBuf, String>,
    /// Open files whose header cannot be read any more.
    unreadable: BTreeMap<PathBuf, String>,
    /// Files that have damage, with the first of it.
    damaged: BTreeMap<PathBuf, String>,
}

impl Files {
    pub(super) fn new() -> Self {
        Self {
            reader: Reader::default(),
            open: BTreeSet::new(),
            finished: BTreeMap::new(),
            refused: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            damaged: BTreeMap::new(),
        }
    }

    /// Begins a pass of the reader.
    pub(super) fn begin_pass(&mut self) {
        let errors = self.reader.begin_pass();
        self.unreadable = errors.into_iter().map(|(key, err)| (key.path.clone(), err.to_string())).collect();
    }

    /// Opens new and changed files at their positions, and closes those that are read to their end. True if it opened any.
    pub(super) fn update(&mut self, root: &Root, cursors: &mut Cursors, begin: Begin) -> bool {
        let named = list(root);
        let present: BTreeMap<DeviceInode, &Named> = named.iter().map(|named| (named.identity, named)).collect();
        self.close_finished(&present);
        self.finished.retain(|identity, _| present.contains_key(identity));
        self.refused = std::mem::take(&mut self.unreadable);
        self.damaged.retain(|path, _| named.iter().any(|named| named.path == *path));
        let mut has_opened = false;
        for named in &named {
            let unchanged = self.finished.get(&named.identity).is_some_and(|finished| finished.state == named.state);
            if unchanged || self.open.contains(&named.identity) {
                continue;
            }
            if let Err(err) = self.open(root, named, cursors, begin).inspect(|()| has_opened = true) {
                let advice = match &err {
                    OpenError::Io(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                        "; add the agent's user to group systemd-journal"
                    }
                    _ => "",
                };
                self.refused.insert(named.path.clone(), format!("{err}{advice}"));
            }
        }
        has_opened
    }

    /// Sequences on disk.
    pub(super) fn sequences(&mut self) -> BTreeSet<Id> {
        let open = self.reader.files().map(|(_, file)| file.header().seqnum_id);
        open.chain(self.finished.values().map(|finished| finished.sequence)).collect()
    }

    fn open(&mut self, root: &Root, named: &Named, cursors: &mut Cursors, begin: Begin) -> Result<(), OpenError> {
        let mut file = JournalFile::open(root.read(&named.path)?)?;
        cursors.note(file.header().seqnum_id, directory(&named.path).unwrap_or_default());
        match self.finished.remove(&named.identity) {
            Some(finished) if finished.file_id == file.header().file_id => file.seek_index(finished.index),
            _ => cursors.seek(&mut file, begin),
        }
        let key = OpenFile { path: named.path.clone(), identity: named.identity, state: named.state, is_gone: false };
        self.open.insert(named.identity);
        self.reader.add(key, file);
        Ok(())
    }

    /// Closes files that are read to their end, unless journald writes them now. A deleted file is closed then too.
    fn close_finished(&mut self, present: &BTreeMap<DeviceInode, &Named>) {
        let (open, finished) = (&mut self.open, &mut self.finished);
        for (key, _) in self.reader.files() {
            match present.get(&key.identity) {
                Some(named) => (key.path, key.is_gone) = (named.path.clone(), false),
                None => key.is_gone = true,
            }
        }
        self.reader.retain(|key, file| {
            // journald renames a file that was not closed in order, and does not write it any more.
            let is_left = key.is_gone || key.path.extension().is_none_or(|extension| extension != "journal");
            let is_written = file.header().state == State::Online && !is_left;
            if file.remaining() > 0 || is_written {
                return true;
            }
            open.remove(&key.identity);
            // If the file has changed since it was opened, it is opened once more.
            let (file_id, sequence) = (file.header().file_id, file.header().seqnum_id);
            finished.insert(key.identity, Finished { file_id, sequence, state: key.state, index: file.index() });
            false
        });
    }

    /// Damage since the last call, by sequence; what status shows changes with it.
    pub(super) fn take_damage(&mut self) -> Vec<(Id, Damage)> {
        let mut out = Vec::new();
        for (key, file) in self.reader.files() {
            let damage = file.take_damage();
            if damage == Damage::default() {
                continue;
            }
            let what = damage.first.clone().unwrap_or_default();
            self.damaged.entry(key.path.clone()).or_insert(what);
            out.push((file.header().seqnum_id, damage));
        }
        out
    }

    /// What cannot be read; absent if everything can.
    pub(super) fn problem(&self) -> Option<String> {
        let refused = self.refused.iter().map(|(path, why)| format!("cannot read {}: {why}", path.display()));
        let damaged = self.damaged.iter();
        let damaged =
            damaged.map(|(path, what)| format!("{} is damaged: {what}; what is whole is read", path.display()));
        let mut all = refused.chain(damaged);
        let first = all.next()?;
        let more = all.count();
        Some(if more == 0 { first } else { format!("{first}; and {more} more files") })
    }
}
