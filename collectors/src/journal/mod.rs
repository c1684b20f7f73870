//! `journal`: the systemd journal, read from its files (docs/adr/0007-native-journal.md).
//!
//! The position of an entry is its sequence number, with those since the entry before it: journald counts through several sequences.
//! What rotation deleted unread shows as a jump of the numbers in a directory ([`numbers`]). The cursor of an entry becomes durable
//! together with it; after a restart each sequence continues behind its own.

mod block;
mod cursors;
mod files;
mod numbers;

use crate::{
    BuildError, CollectError, CollectorClass, CollectorContext, Outlet, Permission, Right,
    room::{Room, RoomWait},
    root::Root,
    spec::{Collector, Plan, Skip, Spec, Watch, collector_settings},
};
use block::{Block, Packing};
use cursors::{BEGIN, Begin, Cursors, Directory, source};
use files::{DIRECTORIES, Files, OpenFile};
use numbers::Numbers;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use vedette_journal::{Cursor, Entry, Id, JournalFile};
use vedette_wire::{Chunk, Dropped, Position, Reason};

/// Size of the records of a block, which are emitted together.
const BLOCK_BYTES: usize = 256 << 10;
/// Pause after a pass that read something, and the longest one.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Maximum number of times that a pass begins anew, since a file has appeared.
const PASS_TRIES: usize = 3;

/// Settings of `[collectors.journal]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether the collector runs.
    enabled: bool,
    /// Where to start in the journal at the very first start: `end` or `beginning`.
    start: crate::tail::Start,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, start: crate::tail::Start::End }
    }
}

/// Whether this agent can read the journal: it exists, and a file of it can be opened.
pub(crate) fn is_readable(context: &CollectorContext) -> bool {
    context.host().is_ok_and(|root| files::list(&root).0.iter().any(|named| root.read(&named.path).is_ok()))
}

collector_settings!(Settings);

/// The collector.
enum Definition {}

impl Collector for Definition {
    type Settings = Settings;
    const ID: &'static str = "journal";
    const CLASS: CollectorClass = CollectorClass::Event;
    const KIND: &'static str = "journal";
    const SUMMARY: &'static str = "entries of the systemd journal with their trusted fields";
    const READS: &'static str = "the files in /var/log/journal and /run/log/journal, of this machine, of its containers and of \
                                 namespaces";
    const PERMISSIONS: &'static [Permission] = &[Permission {
        any_of: &[Right::Group("systemd-journal"), Right::Capability("CAP_DAC_READ_SEARCH")],
        lost: "entries of the system and of other users",
    }];
    const SKIP: Option<Skip<Settings>> = Some(skip);

    fn build(settings: &Settings, context: &CollectorContext) -> Result<Plan, BuildError> {
        let is_absent =
            |root: Root| matches!(files::list(&root), (files, unlisted) if files.is_empty() && unlisted.is_empty());
        if context.host().map_or(true, is_absent) {
            return Ok(Plan::Absent(format!("this host keeps no journal in {} or {}", DIRECTORIES[0], DIRECTORIES[1])));
        }
        Ok(Plan::Watch(Box::new(Journal { start: settings.start })))
    }
}

pub(crate) const SPEC: Spec = Spec::of::<Definition>();

/// Moves to the newest entry of each sequence; counts the skipped ones by their sequence numbers.
fn skip(_: &Settings, context: &CollectorContext, outlet: &Outlet) -> Result<(), CollectError> {
    let root = context.host().map_err(|err| CollectError::read("the host's root", err))?;
    let mut cursors = Cursors::of(context);
    let mut newest: BTreeMap<Id, Cursor> = BTreeMap::new();
    let mut skipped: BTreeMap<Id, u64> = BTreeMap::new();
    let (named, unlisted) = files::list(&root);
    for named in named {
        let Ok(mut file) = root.read(&named.path).map_err(drop).and_then(|file| JournalFile::open(file).map_err(drop))
        else {
            continue;
        };
        let Some(last) = file.last() else { continue };
        cursors.note(last.seqnum_id, &files::directory(&named.path).unwrap_or_default());
        let cursor = newest.entry(last.seqnum_id).or_insert(last.cursor());
        if cursor.seqnum < last.cursor().seqnum {
            *cursor = last.cursor();
        }
        cursors.seek(&mut file, Begin::New);
        *skipped.entry(last.seqnum_id).or_default() += file.remaining();
    }
    if let (true, Some((path, err))) = (newest.is_empty(), unlisted.into_iter().next()) {
        return Err(CollectError::read(path.display().to_string(), err));
    }
    let ids: BTreeSet<String> = newest.keys().map(|id| cursors.sequence(*id).source.id.clone()).collect();
    // Without a visible journal, it is read as configured by `start` once it is.
    let mut forget: Vec<String> =
        context.cursors.iter().map(|(id, _)| id.clone()).filter(|id| !ids.contains(id)).collect();
    if newest.is_empty() {
        return outlet.emit(Chunk { forget, ..Chunk::new(source(BEGIN)) });
    }
    for (id, cursor) in newest {
        let begin = cursors.begin_of(id);
        let sequence = cursors.sequence(id);
        let mut chunk = Chunk { forget: std::mem::take(&mut forget), ..Chunk::new(sequence.source.clone()) };
        let last = sequence.last.and_then(|last| last.seqnum).map(|(_, seqnum)| seqnum).or(begin);
        if let (Some(last), Some((_, newest))) = (last, cursor.seqnum)
            && newest > last
        {
            let positions = Some(Position(last + 1, newest + 1));
            chunk.dropped.push(Dropped { reason: Reason::Policy, count: skipped[&id], positions });
        }
        chunk.cursor = Some(sequence.encode(&cursor.to_string()));
        outlet.emit(chunk)?;
    }
    Ok(())
}

struct Journal {
    start: crate::tail::Start,
}

impl Watch for Journal {
    fn watch(&mut self, context: &CollectorContext, outlet: &mut Outlet) -> Result<(), CollectError> {
        let root = context.host().map_err(|err| CollectError::read("the host's root", err))?;
        let mut reading = Reading::new(context, outlet);
        if let Some(lines) = context.once {
            reading.files.update(&root, &mut reading.cursors, Begin::Last(lines as u64));
            return reading.once(lines);
        }
        if reading.cursors.is_first_start() && self.start == crate::tail::Start::End {
            reading.begin_at_end(&root)?;
        }
        let mut pause = PAUSE;
        while !outlet.is_stopped() {
            pause = if reading.pass(&root)? { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
            outlet.pause(pause);
        }
        Ok(())
    }
}

/// Reading of all journals of a host.
struct Reading<'a> {
    context: &'a CollectorContext,
    outlet: &'a Outlet,
    cursors: Cursors,
    files: Files,
    /// Sequences of which there are files.
    present: BTreeSet<Id>,
    waits: BTreeMap<Id, RoomWait>,
    /// The last reported problem.
    reported: Option<String>,
    /// The files that were there at the start are open.
    is_started: bool,
    numbers: Numbers,
    packing: Packing,
    /// Boot, monotonic time and hash of the last entry of the volatile journal, by directory.
    volatile: BTreeMap<Directory, (Id, u64, u64)>,
}

impl<'a> Reading<'a> {
    fn new(context: &'a CollectorContext, outlet: &'a Outlet) -> Self {
        Self {
            context,
            outlet,
            cursors: Cursors::of(context),
            files: Files::new(),
            present: BTreeSet::new(),
            waits: BTreeMap::new(),
            reported: None,
            is_started: false,
            numbers: Numbers::default(),
            packing: Packing::default(),
            volatile: BTreeMap::new(),
        }
    }

    /// Moves to the end of all files. A restart before the first entry must not start at a later end.
    fn begin_at_end(&mut self, root: &Root) -> Result<(), CollectError> {
        self.files.update(root, &mut self.cursors, Begin::End);
        self.is_started = true;
        let Some(newest) = self.files.newest.map(|head| head.cursor()) else { return Ok(()) };
        self.cursors.begin_behind(newest);
        let mut begin = Chunk::new(source(BEGIN));
        begin.cursor = Some(newest.to_string().into_bytes());
        self.outlet.emit(begin)
    }

    /// Reads what is visible, as far as there is room; true if that was anything.
    fn pass(&mut self, root: &Root) -> Result<bool, CollectError> {
        for _ in 0..PASS_TRIES {
            self.files.begin_pass();
            // A file that is opened now is not a part of this pass: its entries may come after those of others.
            let begin = if std::mem::replace(&mut self.is_started, true) { Begin::New } else { Begin::First };
            if !self.files.update(root, &mut self.cursors, begin) {
                break;
            }
        }
        self.files.reader.extend_pass();
        self.present = self.files.sequences();
        let mut has_read = false;
        loop {
            self.exclude_full();
            let mut block = Block::default();
            // Files that were given up explain a jump of the numbers.
            self.add_lost(&mut block);
            while block.bytes < BLOCK_BYTES {
                let Some(entry) = self.files.reader.next_entry() else { break };
                if self.files.is_hollow(&entry) {
                    self.add_dropped(&mut block, (entry.head.seqnum_id, Reason::RotatedAway, 1));
                    self.numbers.explain_numbers(entry.head.seqnum_id, 1, &self.cursors);
                    continue;
                }
                let is_copy = self.is_moved_copy(&entry);
                self.add(&mut block, &entry, is_copy);
            }
            self.add_damage(&mut block);
            let chunks = self.finish(block);
            if chunks.is_empty() {
                self.report();
                return Ok(has_read);
            }
            has_read = true;
            for chunk in chunks {
                self.outlet.emit(chunk)?;
            }
            if self.outlet.is_stopped() {
                return Ok(has_read);
            }
        }
    }

    /// Leaves out the sequences that hold their share of the queue, with the others of their directory; journald keeps their
    /// entries. If others continued, a jump of the directory's numbers would not show what is deleted meanwhile.
    fn exclude_full(&mut self) {
        let mut full = BTreeSet::new();
        for (id, sequence) in self.cursors.sequences() {
            if self.waits.entry(id).or_default().check(self.outlet, &sequence.source) != Room::Free {
                self.files.reader.exclude(id);
                full.extend(self.cursors.directory_of(id));
            }
        }
        for (id, sequence) in self.cursors.sequences() {
            if full.iter().any(|directory| sequence.is_in(directory)) {
                self.files.reader.exclude(id);
            }
        }
    }

    /// Whether an entry was read from the volatile journal before journald moved it to the disk, where it has another number.
    fn is_moved_copy(&mut self, entry: &Entry) -> bool {
        let Some(OpenFile { directory, is_volatile, .. }) = self.files.reader.last_key() else { return false };
        let place = (entry.head.boot_id, entry.head.monotonic, entry.head.xor_hash);
        if *is_volatile {
            match self.volatile.get_mut(directory) {
                Some(known) => *known = place,
                None => drop(self.volatile.insert(directory.clone(), place)),
            }
            return false;
        }
        let Some((boot, monotonic, hash)) = self.volatile.get(directory) else { return false };
        place.0 == *boot && (place.1 < *monotonic || (place.1 == *monotonic && place.2 == *hash))
    }

    /// Adds an entry to the last chunk of a block, or to another one for another sequence; of a copy only the position.
    fn add(&mut self, block: &mut Block, entry: &Entry, is_copy: bool) {
        let (id, seqnum) = (entry.head.seqnum_id, entry.head.seqnum);
        let rotated_away = self.numbers.jump(&entry.head, &mut self.files, &self.cursors);
        block.count(entry);
        if block.open != Some(id) {
            self.close(block);
            let forget = self.cursors.replaced_by(id, &self.present);
            block.chunks.push(Chunk { forget, ..Chunk::new(Arc::clone(&self.cursors.sequence(id).source)) });
            block.open = Some(id);
        }
        let chunk = block.chunks.last_mut().expect("pushed above");
        if rotated_away > 0 {
            chunk.dropped.push(Dropped { reason: Reason::RotatedAway, count: rotated_away, positions: None });
        }
        let sequence = self.cursors.sequence(id);
        // The numbers in between are of other sequences, or in no file.
        let before = sequence.last.and_then(|last| last.seqnum).filter(|(of, _)| *of == id);
        let from = before.map_or(seqnum, |(_, before)| seqnum.min(before.saturating_add(1)));
        let position = Position(from, seqnum.saturating_add(1));
        sequence.last = Some(entry.cursor());
        if is_copy {
            // Its number is accounted for, as no record.
            chunk.dropped.push(Dropped { reason: Reason::RotatedAway, count: 0, positions: Some(position) });
        } else if !sequence.has(seqnum) {
            self.packing.add(chunk, self.context.now(), entry, position);
        }
    }

    /// Completes the last chunk of a block with its entries and the cursor of the last one.
    fn close(&mut self, block: &mut Block) {
        if let (Some(id), Some(chunk)) = (block.open.take(), block.chunks.last_mut()) {
            self.packing.finish(self.context.now(), chunk);
            chunk.cursor = self.cursors.encode(id);
        }
    }

    /// The chunks of a block.
    fn finish(&mut self, mut block: Block) -> Vec<Chunk> {
        self.close(&mut block);
        block.chunks
    }

    /// Counts entries that cannot be read, or are given up. Their numbers are unknown.
    fn add_damage(&mut self, block: &mut Block) {
        for dropped in self.numbers.take_damage(&mut self.files, &self.cursors) {
            self.add_dropped(block, dropped);
        }
    }

    /// Counts the entries of deleted files that were given up.
    fn add_lost(&mut self, block: &mut Block) {
        for (id, count) in self.files.take_lost() {
            self.numbers.explain_numbers(id, count, &self.cursors);
            self.add_dropped(block, (id, Reason::RotatedAway, count));
        }
    }

    /// Counts entries of a sequence that are lost.
    fn add_dropped(&mut self, block: &mut Block, (id, reason, count): (Id, Reason, u64)) {
        if count > 0 {
            self.close(block);
            let mut chunk = Chunk::new(self.cursors.sequence(id).source.clone());
            chunk.dropped.push(Dropped { reason, count, positions: None });
            block.chunks.push(chunk);
        }
    }

    /// Reports a problem that is new or over.
    fn report(&mut self) {
        let is_long = |wait: &RoomWait| wait.is_long();
        let waits =
            self.waits.values().any(is_long).then(|| CollectError::NoRoom("the journal".to_owned()).to_string());
        let problem = self.files.problem().or(waits);
        if problem == self.reported {
            return;
        }
        match &problem {
            Some(problem) => self.outlet.report_problem(SPEC.id, problem),
            None => self.outlet.recovered(SPEC.id),
        }
        self.reported = problem;
    }

    /// Emits the last entries of all files.
    fn once(&mut self, lines: usize) -> Result<(), CollectError> {
        self.files.begin_pass();
        let mut last = VecDeque::new();
        while let Some(entry) = self.files.reader.next_entry() {
            if last.len() == lines {
                last.pop_front();
            }
            last.push_back(entry);
        }
        let mut block = Block::default();
        for entry in &last {
            self.add(&mut block, entry, false);
        }
        if let (true, Some(problem)) = (last.is_empty(), self.files.problem()) {
            return Err(CollectError::read("the journal", std::io::Error::other(problem)));
        }
        self.finish(block).into_iter().try_for_each(|chunk| self.outlet.emit(chunk))
    }
}

/// Reads all entries of a file, and builds their records.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(file) = JournalFile::open(bytes.to_vec()) else { return };
    let mut reader = vedette_journal::Reader::default();
    reader.add((), file);
    reader.begin_pass();
    let (mut packing, mut at) = (Packing::default(), 0);
    loop {
        let (mut block, mut chunk, begin) = (Block::default(), Chunk::new(source("fuzz")), at);
        while block.bytes < BLOCK_BYTES
            && let Some(entry) = reader.next_entry()
        {
            block.count(&entry);
            packing.add(&mut chunk, 0, &entry, Position(at, at + 1));
            at += 1;
        }
        packing.finish(0, &mut chunk);
        assert_eq!(chunk.decode().expect("what was packed can be unpacked").len() as u64, at - begin);
        if at == begin {
            break;
        }
    }
}

#[cfg(test)]
mod tests;
