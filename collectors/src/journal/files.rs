//! The journal files of a host: found by name, opened, and closed when they are read to their end.

use super::cursors::{Begin, Cursors, Directory};
use crate::root::{
    DeviceInode, Root,
    glob::{Expansion, Pattern},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use vedette_journal::{Damage, Entry, EntryHead, Id, JournalFile, OpenError, Reader, State};
use vedette_wire::Reason;

/// Directories of journals: persistent, volatile.
pub(super) const DIRECTORIES: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Maximum number of deleted files that are held for their unread entries: they take space that journald has given back.
const GONE_MAX: usize = 4;

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
    pub(super) directory: Directory,
    /// It is of the volatile journal.
    pub(super) is_volatile: bool,
    /// Its directory entry is gone; what it holds is read to the end.
    is_gone: bool,
}

/// Lists the journal files of a host. A directory of journals is named by a machine id, with or without the name of a namespace
/// (systemd-journald.service(8)); others hold journals of other hosts. Directories that cannot be listed are returned as well.
pub(super) fn list(root: &Root) -> (Vec<Named>, Vec<(PathBuf, io::Error)>) {
    let (mut out, mut expansion) = (Vec::new(), Expansion::default());
    for dir in DIRECTORIES {
        let pattern = Pattern::new(&format!("{dir}/*/*.journal*")).expect("a pattern");
        out.extend(expansion.expand(root, &pattern).into_iter().filter_map(|named| {
            let stat = named.stat;
            let is_journal = named.path.extension().is_some_and(|name| name == "journal" || name == "journal~");
            // journald is about to write an empty one.
            let is_one = is_journal && named.is_file() && stat.st_size > 0 && directory(&named.path).is_some();
            is_one.then_some(Named {
                path: named.path,
                identity: (stat.st_dev, stat.st_ino),
                state: (stat.st_size, stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            })
        }));
    }
    (out, expansion.problems)
}

/// Machine id and namespace in the directory of a journal file; absent if it is the directory of something else.
pub(super) fn directory(path: &Path) -> Option<Directory> {
    let name = path.parent()?.file_name()?.to_str()?;
    let (id, namespace) = name.split_once('.').map_or((name, None), |(id, namespace)| (id, Some(namespace)));
    Some((id.parse().ok()?, namespace.map(str::to_owned)))
}

/// Why a file or directory cannot be read, with the remedy.
fn advised(err: &OpenError) -> String {
    match err {
        OpenError::Io(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            format!("{err}; add the agent's user to group systemd-journal")
        }
        err => err.to_string(),
    }
}

/// Whether no name leads to an open file any more. journald frees the content of a file that it deletes, also for those who have it
/// open (fallocate(2), `FALLOC_FL_PUNCH_HOLE`): what reads as damage then was rotated away.
fn is_deleted(file: &JournalFile<File>) -> bool {
    file.source().metadata().is_ok_and(|meta| meta.nlink() == 0)
}

/// Whether the content of a deleted file is freed, its header included.
fn is_freed(file: &mut JournalFile<File>) -> bool {
    is_deleted(file) && file.refresh().is_err()
}

/// The files, and the positions in them.
pub(super) struct Files {
    pub(super) reader: Reader<OpenFile, File>,
    finished: BTreeMap<DeviceInode, Finished>,
    /// The newest entry of the files that were passed over at a first start.
    pub(super) newest: Option<EntryHead>,
    /// Files that cannot be read, with the reason.
    refused: BTreeMap<PathBuf, String>,
    /// Open files whose header cannot be read any more.
    unreadable: BTreeMap<PathBuf, String>,
    /// Files that have damage, with their paths and the first of it.
    damaged: BTreeMap<DeviceInode, (PathBuf, String)>,
    /// Numbers of entries of deleted files that were given up, by sequence.
    lost: Vec<(Id, u64)>,
}

impl Files {
    pub(super) fn new() -> Self {
        Self {
            reader: Reader::default(),
            finished: BTreeMap::new(),
            newest: None,
            refused: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            damaged: BTreeMap::new(),
            lost: Vec::new(),
        }
    }

    /// Begins a pass of the reader.
    pub(super) fn begin_pass(&mut self) {
        let errors = self.reader.begin_pass();
        self.unreadable = errors.into_iter().map(|(key, err)| (key.path.clone(), err.to_string())).collect();
    }

    /// Opens new and changed files at their positions, and closes those that are read to their end. True if it opened any.
    pub(super) fn update(&mut self, root: &Root, cursors: &mut Cursors, begin: Begin) -> bool {
        let (named, unlisted) = list(root);
        let present: BTreeMap<DeviceInode, &Named> = named.iter().map(|named| (named.identity, named)).collect();
        self.close_finished(&present);
        // What is deleted is not a problem; close_finished has counted it.
        self.unreadable.retain(|path, _| named.iter().any(|named| named.path == *path));
        self.finished.retain(|identity, _| present.contains_key(identity));
        self.refused = std::mem::take(&mut self.unreadable);
        self.refused.extend(unlisted.into_iter().map(|(path, err)| (path, advised(&err.into()))));
        self.damaged.retain(|identity, _| present.contains_key(identity));
        let open: BTreeSet<DeviceInode> = self.reader.files().map(|(key, _)| key.identity).collect();
        let mut opened = Vec::new();
        for named in &named {
            let unchanged = self.finished.get(&named.identity).is_some_and(|finished| finished.state == named.state);
            if unchanged || open.contains(&named.identity) {
                continue;
            }
            let open = || JournalFile::open(root.read(&named.path)?);
            match open() {
                Ok(file) => opened.push((named, directory(&named.path).unwrap_or_default(), file)),
                // It was vacuumed meanwhile.
                Err(OpenError::Io(err)) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => drop(self.refused.insert(named.path.clone(), advised(&err))),
            }
        }
        // The number of a sequence is set with its first entry. A file's place depends on what its directory holds besides.
        for (key, file) in self.reader.files() {
            cursors.note(file.header().seqnum_id, &key.directory);
        }
        for (_, directory, file) in &opened {
            cursors.note(file.header().seqnum_id, directory);
        }
        let has_opened = !opened.is_empty();
        for (named, directory, file) in opened {
            self.add((named, directory), file, cursors, begin);
        }
        has_opened
    }

    /// Sequences on disk.
    pub(super) fn sequences(&mut self) -> BTreeSet<Id> {
        let open = self.reader.files().map(|(_, file)| file.header().seqnum_id);
        open.chain(self.finished.values().map(|finished| finished.sequence)).collect()
    }

    /// Adds an open file at its position.
    fn add(
        &mut self,
        (named, directory): (&Named, Directory),
        mut file: JournalFile<File>,
        cursors: &mut Cursors,
        begin: Begin,
    ) {
        match self.finished.remove(&named.identity) {
            Some(finished) if finished.file_id == file.header().file_id => file.seek_index(finished.index),
            _ => cursors.seek(&mut file, begin),
        }
        if begin == Begin::End && cursors.sequence(file.header().seqnum_id).is_own {
            self.newest = self.newest.into_iter().chain(file.last()).max_by_key(|head| head.realtime);
        }
        let is_idle = file.remaining() == 0 && file.header().state != State::Online;
        if is_idle {
            let (file_id, sequence) = (file.header().file_id, file.header().seqnum_id);
            let finished = Finished { file_id, sequence, state: named.state, index: file.index() };
            self.finished.insert(named.identity, finished);
            return;
        }
        // The search has filled buffers; the passes need the last entry.
        file.last();
        file.release();
        let key = OpenFile {
            path: named.path.clone(),
            identity: named.identity,
            state: named.state,
            directory,
            is_volatile: named.path.starts_with(DIRECTORIES[1]),
            is_gone: false,
        };
        self.reader.add(key, file);
    }

    /// Closes files that are read to their end, unless journald writes them now. A deleted file is closed then too.
    fn close_finished(&mut self, present: &BTreeMap<DeviceInode, &Named>) {
        for (key, _) in self.reader.files() {
            match present.get(&key.identity) {
                Some(named) => (key.path, key.is_gone) = (named.path.clone(), false),
                None => key.is_gone = true,
            }
        }
        // The oldest ones come first: numbers of a sequence grow.
        let gone = self.reader.files().filter(|(key, file)| key.is_gone && file.remaining() > 0);
        let mut gone: Vec<(u64, DeviceInode)> =
            gone.map(|(key, file)| (file.header().tail_seqnum, key.identity)).collect();
        gone.sort_unstable();
        let given_up: Vec<DeviceInode> = gone.iter().rev().skip(GONE_MAX).map(|(_, identity)| *identity).collect();
        let (lost, finished) = (&mut self.lost, &mut self.finished);
        self.reader.retain(|key, file| {
            if given_up.contains(&key.identity) || key.is_gone && is_freed(file) {
                lost.push((file.header().seqnum_id, file.remaining()));
                return false;
            }
            // journald renames a file that was not closed in order, and does not write it any more.
            let is_left = key.is_gone || key.path.extension().is_none_or(|extension| extension != "journal");
            let is_written = file.header().state == State::Online && !is_left;
            if file.remaining() > 0 || is_written {
                return true;
            }
            // If the file has changed since it was opened, it is opened once more.
            let (file_id, sequence) = (file.header().file_id, file.header().seqnum_id);
            finished.insert(key.identity, Finished { file_id, sequence, state: key.state, index: file.index() });
            false
        });
    }

    /// Whether the last entry has lost fields because its file was deleted: they do not come back.
    pub(super) fn is_hollow(&self, entry: &Entry) -> bool {
        !entry.is_whole && self.reader.last_file().is_some_and(|(_, file)| is_deleted(file))
    }

    /// Whether an entry of a directory with a number between two others may be in a file: one that is open and not read to its end, or
    /// one that cannot be read.
    pub(super) fn may_hold(&mut self, directory: &Directory, from: u64, to: u64) -> bool {
        let holds = |file: &mut JournalFile<File>| {
            file.peek().is_some_and(|head| head.seqnum < to) && file.header().tail_seqnum > from
        };
        let is_open = self.reader.files().any(|(key, file)| key.directory == *directory && holds(file));
        let refused = self.refused.keys().chain(self.unreadable.keys());
        is_open || refused.filter_map(|path| self::directory(path)).any(|of| of == *directory)
    }

    /// Numbers of entries that were given up since the last call, by sequence.
    pub(super) fn take_lost(&mut self) -> Vec<(Id, u64)> {
        std::mem::take(&mut self.lost)
    }

    /// Entries that could not be read since the last call, by sequence, with the reason; what status shows changes with it.
    pub(super) fn take_damage(&mut self) -> Vec<(Id, Reason, u64)> {
        let mut out = Vec::new();
        for (key, file) in self.reader.files() {
            let Damage { entries, first, fields } = file.take_damage();
            if (entries, fields) == (0, 0) {
                continue;
            }
            let reason = if is_deleted(file) {
                Reason::RotatedAway
            } else {
                self.damaged.entry(key.identity).or_insert_with(|| (key.path.clone(), first.unwrap_or_default()));
                Reason::Unparseable
            };
            out.push((file.header().seqnum_id, reason, entries));
        }
        out
    }

    /// What cannot be read; absent if everything can.
    pub(super) fn problem(&self) -> Option<String> {
        let refused = self.refused.iter().map(|(path, why)| format!("cannot read {}: {why}", path.display()));
        let damaged = self.damaged.values();
        let damaged =
            damaged.map(|(path, what)| format!("{} is damaged: {what}; what is whole is read", path.display()));
        let mut all = refused.chain(damaged);
        let first = all.next()?;
        let more = all.count();
        Some(if more == 0 { first } else { format!("{first}; and {more} more files") })
    }
}

#[cfg(test)]
mod tests {
    use crate::journal::tests::{Host, MACHINE, SEQUENCE, system};
    use std::{fs, os::unix::fs::FileExt};
    use vedette_wire::Reason;

    /// journald deletes a file that is open here, and frees its content, whole or up to its header so far.
    #[test]
    fn what_journald_frees_of_a_deleted_file_is_rotated_away_and_no_damage() {
        for kept in [0, 512] {
            let host = Host::new(crate::tail::Start::Beginning);
            let name = format!("var/log/journal/{MACHINE}/system@1.journal");
            host.put(&name, 1..=5, |journal| journal.bytes[16] = 2);
            *host.sink.full.lock() = Some(SEQUENCE.to_owned());
            let delete = || {
                let path = host.path(&name);
                let file = fs::OpenOptions::new().write(true).open(&path).expect("opens");
                let length = usize::try_from(file.metadata().expect("is open").len()).expect("it is small");
                file.write_all_at(&vec![0; length - kept], kept as u64).expect("writes");
                fs::remove_file(path).expect("removes");
            };
            host.run(&[&delete, &|| *host.sink.full.lock() = None, &|| host.put(&system(MACHINE), 6..=7, |_| {})]);
            assert_eq!(host.numbers(), [6, 7], "{kept}");
            let dropped = host.sink.dropped.lock().clone();
            assert!(dropped.iter().all(|(reason, ..)| *reason == Reason::RotatedAway), "{dropped:?}");
            assert_eq!(dropped.iter().map(|(_, count, _)| count).sum::<u64>(), 5, "{kept}: {dropped:?}");
            assert!(host.sink.problems.lock().is_empty(), "{:?}", host.sink.problems.lock());
        }
    }
}
