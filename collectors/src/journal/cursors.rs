//! Positions in the sequences of the host's journals.
//!
//! Each sequence of journald has its own cursor, under the source id `journal:ID`, in journalctl's format: an agent before the
//! native reader hands the one with the highest number to `journalctl --after-cursor`. It reads the journal of this machine alone, so
//! cursors of other machines and of namespaces have their first keys in upper case, which that agent ignores.

use super::SPEC;
use crate::CollectorContext;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::Arc,
};
use vedette_journal::{Cursor, EntryHead, Id, JournalFile};
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
    pub(super) is_own: bool,
}

/// Machine id and namespace.
pub(super) type Directory = (Id, Option<String>);

impl Sequence {
    /// Whether the workspace has an entry already.
    pub(super) fn has(&self, seqnum: u64) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.has(seqnum))
    }

    /// Whether its files are in a directory.
    pub(super) fn is_in(&self, directory: &Directory) -> bool {
        self.directory.as_ref() == Some(directory)
    }

    /// Whether no file of it was found.
    pub(super) fn is_gone(&self) -> bool {
        self.directory.is_none()
    }

    /// A cursor's text as it is stored.
    pub(super) fn encode(&self, text: &str) -> Vec<u8> {
        if self.is_own {
            return text.as_bytes().to_vec();
        }
        text.replacen("s=", "S=", 1).replacen("i=", "I=", 1).into_bytes()
    }
}

fn decode(bytes: &[u8]) -> Option<Cursor> {
    let text = std::str::from_utf8(bytes).ok()?;
    Cursor::parse(&text.replacen("S=", "s=", 1).replacen("I=", "i=", 1))
}

/// The last entry that the workspace has before the first one that it lacks; absent if reading continues at the cursor.
fn first_missing(id: Id, stored: &Stored) -> Option<Cursor> {
    let hole = Some(stored).filter(|stored| !stored.begun)?.first_missing(None)?;
    Some(Cursor { seqnum: Some((id, hole.saturating_sub(1))), ..Cursor::default() })
}

/// Whether an entry is behind a place of another sequence or of an earlier numbering. Entries of the present boot are behind
/// every place of an earlier one, whatever the clock said then.
fn is_behind(place: &Cursor, head: &EntryHead, boot: Option<Id>) -> bool {
    let is_of_earlier_boot = place.monotonic.is_some_and(|(of, _)| Some(of) != boot);
    (is_of_earlier_boot && Some(head.boot_id) == boot) || place.is_before(head)
}

/// Whether a sequence begins again below the entry that was read last: after a power cut, journald 252 and 253 continue from the
/// last number on the disk, which may be less than what was read. `file` is behind that number.
fn is_rewound(file: &mut JournalFile<File>, last: &Cursor, present: Option<Id>) -> bool {
    let (Some(realtime), Some((boot, _))) = (last.realtime, last.monotonic) else { return false };
    // An entry of the same number that compares as later is another one.
    let is_same_number = |head: &EntryHead| last.seqnum == Some((head.seqnum_id, head.seqnum));
    if file.peek().is_some_and(|head| is_same_number(&head)) {
        return true;
    }
    match file.before() {
        Some(head) if is_same_number(&head) => head.boot_id != boot || last.xor_hash != Some(head.xor_hash),
        // What ends before the number, and is of the present boot.
        Some(head) => {
            file.peek().is_none() && head.boot_id != boot && Some(head.boot_id) == present && head.realtime > realtime
        }
        None => false,
    }
}

/// The sequences, and where those without a cursor begin.
pub(super) struct Cursors {
    sequences: BTreeMap<Id, Sequence>,
    /// The newest entry that was read before this start, of any sequence.
    newest: Option<Cursor>,
    /// Source ids with a stored cursor.
    ids: BTreeSet<String>,
    own_machine: Option<Id>,
    /// Id of the present boot.
    boot: Option<Id>,
    stored: Vec<Stored>,
}

impl Cursors {
    pub(super) fn of(context: &CollectorContext) -> Self {
        let machine = context.text("/etc/machine-id");
        let boot = context.text("/proc/sys/kernel/random/boot_id").map(|boot| boot.trim().replace('-', ""));
        let mut cursors = Self {
            sequences: BTreeMap::new(),
            newest: None,
            ids: BTreeSet::new(),
            own_machine: machine.and_then(|machine| machine.trim().parse().ok()),
            boot: boot.and_then(|boot| boot.parse().ok()),
            stored: context.stored.clone(),
        };
        for (id, bytes) in &context.cursors {
            cursors.ids.insert(id.clone());
            let Some(cursor) = decode(bytes) else { continue };
            if cursors.newest.is_none_or(|newest| cursor.realtime >= newest.realtime) {
                cursors.newest = Some(cursor);
            }
            if let Some((number, _)) = cursor.seqnum
                && id != BEGIN
            {
                let own = source(id);
                let stored = context.stored.iter().find(|stored| stored.id == *id).cloned();
                let hole = stored.as_ref().and_then(|stored| first_missing(number, stored));
                let sequence = cursors.sequence(number);
                // A rewound sequence has two, of which the newer counts.
                if sequence.last.is_none_or(|last| cursor.realtime >= last.realtime) {
                    (sequence.source, sequence.stored, sequence.last) = (own, stored, hole.or(Some(cursor)));
                }
            }
        }
        cursors
    }

    /// The number of a start position, if it is of this sequence.
    pub(super) fn begin_of(&self, id: Id) -> Option<u64> {
        self.newest.and_then(|newest| newest.seqnum).filter(|(of, _)| *of == id).map(|(_, number)| number)
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

    /// The cursor of the last entry of a sequence that was read, as it is stored.
    pub(super) fn encode(&mut self, id: Id) -> Option<Vec<u8>> {
        let sequence = self.sequence(id);
        sequence.last.map(|last| sequence.encode(&last.to_string()))
    }

    /// Notes the directory of a file: its machine, and its namespace.
    pub(super) fn note(&mut self, sequence: Id, directory: &Directory) {
        let is_own = directory.1.is_none() && self.own_machine.is_none_or(|own| own == directory.0);
        let sequence = self.sequence(sequence);
        sequence.is_own = is_own;
        if sequence.directory.as_ref() != Some(directory) {
            sequence.directory = Some(directory.clone());
        }
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

    /// Directory of a sequence's files, once one was found.
    pub(super) fn directory_of(&self, id: Id) -> Option<&Directory> {
        self.sequences.get(&id)?.directory.as_ref()
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
    pub(super) fn seek(&mut self, file: &mut JournalFile<File>, begin: Begin) {
        let (id, boot) = (file.header().seqnum_id, self.boot);
        let directory = self.sequences.get(&id).and_then(|sequence| sequence.directory.clone());
        let beside = self.sequences.values().filter(|other| other.directory == directory);
        let beside = beside.filter_map(|other| other.last).max_by_key(|last| last.realtime);
        let newest = self.newest;
        let sequence = self.sequence(id);
        match (sequence.last, begin) {
            (Some(last), _) if last.seqnum.is_some() => {
                file.seek_after(&last);
                if is_rewound(file, &last, boot) {
                    // By boot and clock. The numbers come twice, so they are another source's.
                    let place = Cursor { seqnum: None, ..last };
                    file.seek(|head| is_behind(&place, head, boot));
                    if let Some(first) = file.peek() {
                        sequence.source = source(&format!("journal:{id}:{}", first.boot_id));
                        (sequence.stored, sequence.last) = (None, Some(place));
                    }
                }
            }
            (Some(place), _) => file.seek(|head| is_behind(&place, head, boot)),
            (None, Begin::New) => {
                if let Some(Cursor { monotonic, .. }) = beside.or(newest.filter(|_| sequence.is_own)) {
                    file.seek_after(&Cursor { monotonic, ..Cursor::default() });
                }
            }
            (None, begin) => match (beside.or(newest), begin) {
                (Some(place), _) => file.seek(|head| is_behind(&place, head, boot)),
                (None, Begin::End) => file.seek_last(0),
                (None, Begin::Last(count)) => file.seek_last(count),
                (None, Begin::First | Begin::New) => {}
            },
        }
    }

    /// Stored cursors that a cursor of this sequence replaces: those of sequences of which no file is left.
    pub(super) fn replaced_by(&mut self, id: Id, present: &BTreeSet<Id>) -> Vec<String> {
        let own = self.sequence(id).source.id.clone();
        let current = self.sequences.iter().filter(|(id, _)| present.contains(id));
        let current: BTreeSet<&str> = current.map(|(_, sequence)| sequence.source.id.as_str()).collect();
        let replaced: Vec<String> =
            self.ids.iter().filter(|known| **known != own && !current.contains(known.as_str())).cloned().collect();
        self.ids.retain(|known| !replaced.contains(known));
        self.ids.insert(own);
        replaced
    }
}
