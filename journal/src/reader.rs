//! Several files as one sequence.

use crate::{Cursor, EntryHead, Field, Id, JournalFile, OpenError, pages::ReadAt};
use std::{cmp::Ordering, collections::BTreeMap, rc::Rc};

/// Maximum number of files whose buffers are kept.
const WARM_MAX: usize = 3;

/// An entry of one of the files.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Numbers, times and boot.
    pub head: EntryHead,
    /// Fields in the entry's order; a name may occur several times.
    pub fields: Vec<Rc<Field>>,
    /// Every field could be read.
    pub is_whole: bool,
}

impl Entry {
    /// Place of the entry.
    pub fn cursor(&self) -> Cursor {
        Cursor::of(&self.head)
    }
}

/// Merges files in the order of sd_journal_next(3). The caller names files by a key of its own.
///
/// journald numbers the entries of several files in one sequence. A reader that looks at one file after the other may see
/// entry 8 of one before entry 7 of another, and would take 7 for read later. So reading goes by passes: a pass ends at the
/// highest number that was visible at its begin, and all files are read after that.
pub struct Reader<K, S> {
    files: Vec<(K, JournalFile<S>)>,
    /// Highest number of this pass, by sequence.
    limits: BTreeMap<Id, u64>,
    /// The last entry, and the file it was in.
    last: Option<(EntryHead, usize)>,
    /// Files read last.
    warm: Vec<usize>,
}

impl<K, S> Default for Reader<K, S> {
    fn default() -> Self {
        Self { files: Vec::new(), limits: BTreeMap::new(), last: None, warm: Vec::new() }
    }
}

impl<K, S: ReadAt> Reader<K, S> {
    /// Adds a file at its present position.
    pub fn add(&mut self, key: K, file: JournalFile<S>) {
        self.files.push((key, file));
    }

    /// The files.
    pub fn files(&mut self) -> impl Iterator<Item = (&mut K, &mut JournalFile<S>)> {
        self.files.iter_mut().map(|(key, file)| (key, file))
    }

    /// Removes files.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut JournalFile<S>) -> bool) {
        let (mut at, mut kept) = (0, Vec::new());
        self.files.retain_mut(|(key, file)| {
            let keeps = keep(key, file);
            if keeps {
                kept.push(at);
            }
            at += 1;
            keeps
        });
        // A file's index is its place among those that stay.
        let moved = |index: usize| kept.iter().position(|kept| *kept == index);
        self.last = self.last.map(|(head, index)| (head, moved(index).unwrap_or(usize::MAX)));
        self.warm = self.warm.iter().filter_map(|index| moved(*index)).collect();
    }

    /// The key of the file that the last entry was in.
    pub fn last_key(&self) -> Option<&K> {
        self.last_file().map(|(key, _)| key)
    }

    /// The file that the last entry was in.
    pub fn last_file(&self) -> Option<&(K, JournalFile<S>)> {
        self.last.and_then(|(_, index)| self.files.get(index))
    }

    /// Begins a pass: what is visible now bounds it. The caller lists directories behind it, and adds new files.
    ///
    /// Headers that cannot be read again, with the keys of their files; other files are read all the same.
    pub fn begin_pass(&mut self) -> Vec<(&K, OpenError)> {
        self.limits.clear();
        let mut errors = Vec::new();
        for (key, file) in &mut self.files {
            if let Err(err) = file.refresh() {
                errors.push((&*key, err));
            }
            // Of a damaged end the header says what was written.
            let last = file.last().map_or(file.header().tail_seqnum, |head| head.seqnum);
            let limit = self.limits.entry(file.header().seqnum_id).or_default();
            *limit = last.max(*limit);
        }
        errors
    }

    /// Leaves the entries of a sequence for later passes.
    pub fn exclude(&mut self, sequence: Id) {
        self.limits.insert(sequence, 0);
    }

    /// Looks at all files again, so that every entry up to the end of the pass is visible.
    pub fn extend_pass(&mut self) {
        for (index, (_, file)) in self.files.iter_mut().enumerate() {
            // An error was reported at the begin, or will be at the next.
            drop(file.refresh());
            if !self.warm.contains(&index) {
                file.release();
            }
        }
    }

    /// The next entry of the pass; absent at its end. Copies of an entry in other files are skipped.
    pub fn next_entry(&mut self) -> Option<Entry> {
        loop {
            let mut next: Option<(EntryHead, usize)> = None;
            for (index, (_, file)) in self.files.iter_mut().enumerate() {
                let Some(head) = file.peek() else { continue };
                if head.seqnum > self.limits.get(&head.seqnum_id).copied().unwrap_or(0) {
                    continue;
                }
                if next.as_ref().is_none_or(|(first, _)| order(&head, first) == Ordering::Less) {
                    next = Some((head, index));
                }
            }
            let (head, index) = next?;
            self.files[index].1.advance();
            let is_copy = self.last.is_some_and(|(last, of)| of != index && is_copy(&head, &last));
            if is_copy {
                continue;
            }
            self.last = Some((head, index));
            self.keep_warm(index);
            let file = &mut self.files[index].1;
            let bad = file.bad_fields();
            let fields = file.fields(&head);
            let is_whole = file.bad_fields() == bad;
            return Some(Entry { head, fields, is_whole });
        }
    }

    /// Frees the buffers of files that were not read for a while.
    fn keep_warm(&mut self, index: usize) {
        if self.warm.last() == Some(&index) {
            return;
        }
        self.warm.retain(|warm| *warm != index);
        self.warm.push(index);
        if self.warm.len() > WARM_MAX {
            let cold = self.warm.remove(0);
            self.files[cold].1.release();
        }
    }
}

/// Order of entries of two files, by the rules of sd_journal_next(3).
fn order(one: &EntryHead, other: &EntryHead) -> Ordering {
    Cursor::of(other).order_of(one).unwrap_or(Ordering::Equal)
}

/// Whether two entries of different files are one: journald copies entries when it moves the volatile journal to the
/// disk, and gives them other numbers then.
fn is_copy(one: &EntryHead, other: &EntryHead) -> bool {
    let content = |head: &EntryHead| (head.boot_id, head.monotonic, head.realtime, head.xor_hash);
    content(one) == content(other)
}
