//! Positions in the sequences of the host's journals.
//!
//! Each sequence of journald has its own cursor, under the source id `journal:ID`, in journalctl's format: an agent before the
//! native reader hands the newest of them to `journalctl --after-cursor`. It reads the journal of this machine alone, so
//! cursors of other machines and of namespaces have their first keys in upper case, which that agent ignores.

use super::SPEC;
use crate::CollectorContext;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::Arc,
};
use vedette_journal::{Cursor, Id, JournalFile};
use vedette_wire::{Source, Stored};

/// Source id of the start position before the first entry.
pub(super) const BEGIN: &str = "begin";

/// Where files of a sequence without a cursor begin, if nothing was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// At their first entry; they have appeared since the start.
    New,
    /// At their first entry.
    First,
    /// Behind their last entry.
    End,
    /// At most this many entries before their end.
    Last(u64),
}

/// A source of this collector.
pub(super) fn source(id: &str) -> Arc<Source> {
    Arc::new(Source { collector: SPEC.id, id: id.to_owned(), name: None })
}

/// A sequence.
pub(super) struct Sequence {
    pub(super) source: Arc<Source>,
    /// The last entry that was read.
    pub(super) last: Option<Cursor>,
    /// Entries that the workspace has already.
    stored: Option<Stored>,
    /// Directory of its files, once one was found.
    directory: Option<Directory>,
    /// Of this machine, without a namespace.
    is_own: bool,
}

/// Machine id and namespace.
pub(super) type Directory = (Id, Option<String>);

impl Sequence {
    /// Whether the workspace has an entry already.
    pub(super) fn has(&self, seqnum: u64) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.has(seqnum))
    }

    /// A cursor as it is stored.
    pub(super) fn encode(&self, cursor: &Cursor) -> Vec<u8> {
        let text = cursor.to_string();
        let text = if self.is_own { text } else { text.replacen("s=", "S=", 1).replacen("i=", "I=", 1) };
        text.into_bytes()
    }
}

fn decode(bytes: &[u8]) -> Option<Cursor> {
    let text = std::str::from_utf8(bytes).ok()?;
    Cursor::parse(&text.replacen("S=", "s=", 1).replacen("I=", "i=", 1))
}

/// The last entry that the workspace has before the first one that it lacks; absent if reading continues at the cursor.
pub(super) fn first_missing(id: Id, stored: &Stored) -> Option<Cursor> {
    let hole = Some(stored).filter(|stored| !stored.begun)?.first_missing(None)?;
    Some(Cursor { seqnum: Some((id, hole.saturating_sub(1))), ..Cursor::default() })
}

/// The sequences, and where those without a cursor begin.
pub(super) struct Cursors {
    sequences: BTreeMap<Id, Sequence>,
    /// The newest entry that was read before this start, of any sequence.
    newest: Option<Cursor>,
    /// Source ids with a stored cursor.
    ids: BTreeSet<String>,
    own_machine: Option<Id>,
    stored: Vec<Stored>,
}

impl Cursors {
    pub(super) fn of(context: &CollectorContext) -> Self {
        let machine = context.text("/etc/machine-id");
        let mut cursors = Self {
            sequences: BTreeMap::new(),
            newest: None,
            ids: BTreeSet::new(),
            own_machine: machine.and_then(|machine| machine.trim().parse().ok()),
            stored: context.stored.clone(),
        };
        for (id, bytes) in &context.cursors {
            cursors.ids.insert(id.clone());
            let Some(cursor) = decode(bytes) else { continue };
            if cursors.newest.is_none_or(|newest| cursor.realtime >= newest.realtime) {
                cursors.newest = Some(cursor);
            }
            if let Some((sequence, _)) = cursor.seqnum
                && id != BEGIN
            {
                let sequence = cursors.sequence(sequence);
                let hole = sequence.stored.as_ref().and_then(|stored| first_missing(cursor.seqnum?.0, stored));
                sequence.last = hole.or(Some(cursor));
            }
        }
        cursors
    }

    /// Whether nothing was ever read.
    pub(super) fn is_first_start(&self) -> bool {
        self.newest.is_none()
    }

    /// Sets the start position of a first start.
    pub(super) fn begin_behind(&mut self, newest: Cursor) {
        self.newest = Some(newest);
        self.ids.insert(BEGIN.to_owned());
    }

    /// Notes that an entry was read; its cursor as it is stored.
    pub(super) fn advance(&mut self, id: Id, cursor: Cursor) -> Vec<u8> {
        let sequence = self.sequence(id);
        sequence.last = Some(cursor);
        sequence.encode(&cursor)
    }

    /// Notes the directory of a file: its machine, and its namespace.
    pub(super) fn note(&mut self, sequence: Id, directory: Directory) {
        let is_own = directory.1.is_none() && self.own_machine.is_none_or(|own| own == directory.0);
        let sequence = self.sequence(sequence);
        (sequence.is_own, sequence.directory) = (is_own, Some(directory));
    }

    /// The state of a sequence.
    pub(super) fn sequence(&mut self, id: Id) -> &mut Sequence {
        let stored = &self.stored;
        self.sequences.entry(id).or_insert_with(|| {
            let source = source(&format!("journal:{id}"));
            let stored = stored.iter().find(|stored| stored.id == source.id).cloned();
            Sequence { source, last: None, stored, directory: None, is_own: true }
        })
    }

    /// All sequences.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (Id, &Sequence)> {
        self.sequences.iter().map(|(id, sequence)| (*id, sequence))
    }

    /// Moves a file to the position of its sequence.
    ///
    /// A sequence without a cursor is new, or was read by an agent that kept one cursor for all, or is a copy: journald moves
    /// the volatile journal to the disk. At a start, it continues behind the newest entry that was read, by boot or by the
    /// clock. Later, what appears is new, and only entries of the same boot that its directory had already are copies.
    pub(super) fn seek(&self, file: &mut JournalFile<File>, begin: Begin) {
        let Some(sequence) = self.sequences.get(&file.header().seqnum_id) else { return };
        let beside = self.sequences.values().filter(|other| other.directory == sequence.directory);
        let beside = beside.filter_map(|other| other.last).max_by_key(|last| last.realtime);
        match (sequence.last, begin) {
            (Some(last), _) => file.seek_after(&last),
            (None, Begin::New) => {
                if let Some(Cursor { monotonic, .. }) = beside.or(self.newest.filter(|_| sequence.is_own)) {
                    file.seek_after(&Cursor { monotonic, ..Cursor::default() });
                }
            }
            (None, begin) => match (beside.or(self.newest), begin) {
                (Some(place), _) => file.seek_after(&place),
                (None, Begin::End) => file.seek_last(0),
                (None, Begin::Last(count)) => file.seek_last(count),
                (None, Begin::First | Begin::New) => {}
            },
        }
    }

    /// Stored cursors that a cursor of this sequence replaces: those of sequences of which no file is left.
    pub(super) fn replaced_by(&mut self, id: Id, present: &BTreeSet<Id>) -> Vec<String> {
        let own = self.sequence(id).source.id.clone();
        let is_present = |known: &str| present.iter().any(|id| known == format!("journal:{id}"));
        let replaced: Vec<String> =
            self.ids.iter().filter(|known| **known != own && !is_present(known)).cloned().collect();
        self.ids.retain(|known| !replaced.contains(known));
        self.ids.insert(own);
        replaced
    }
}
