//! One file: reading it in blocks, cutting lines, knowing its cursor.

use super::{
    cursor::{BEFORE_BYTES, Cursor, text_and_bytes},
    input::{Input, Next, ZEROS_MIN, Zeros},
    rotation::GRANULARITY_NS,
    unpacked::Unpacked,
};
use crate::root::Found;
use std::{
    cell::Cell,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};
use vedette_wire::{Position, Stored};

/// Bytes read at once.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// A longer line goes as parts.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// How reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// At the end of the file.
    End,
    /// There may be more.
    More,
    /// The file is not the one that it was.
    Truncated,
    /// There may be more, behind positions that hold nothing but zeros.
    Hole(Position),
}

/// Length, and times of modification and of change, seconds and nanoseconds.
pub(crate) type Stamp = (u64, i64, i64, i64, i64);

/// A line without its end.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// Its bytes, without `\n` or `\r\n`.
    pub(crate) bytes: &'a [u8],
    /// Its bytes as they stand in the file.
    pub(crate) whole: &'a [u8],
    /// Its bytes in the file, with its end.
    pub(crate) position: Position,
    /// Which part it is, from 1, of a line that goes as parts.
    pub(crate) part: Option<u32>,
    /// The file is gone, and the line will never have its end.
    pub(crate) unfinished: bool,
}

/// A file and where it is read.
#[derive(Debug)]
pub(crate) struct File {
    input: Input,
    device: u64,
    inode: u64,
    generation: i64,
    /// Where it was begun.
    begin: Option<u64>,
    /// What the workspace has of it already.
    stored: Option<Arc<Stored>>,
    /// The length that it was seen to have, before it was truncated.
    seen_length: Cell<u64>,
    /// Start of the first line not handed over.
    offset: u64,
    before: Vec<u8>,
    /// Parts of the line at `offset` that were handed over.
    parts: u32,
    /// Length and times of change at the last look that found nothing: as long as they stand there is nothing to read.
    quiet: Option<Stamp>,
    /// What was read behind `offset`: an unfinished line.
    pending: Vec<u8>,
}

impl File {
    /// Read a file that is new, from an offset on.
    pub(crate) fn open(found: &Found, offset: u64, now: i64) -> io::Result<Self> {
        Self::new(Input::Open(found.read()?), found, offset, now)
    }

    /// Read the lines of a compressed file that is new, from the beginning on.
    pub(crate) fn open_unpacked(found: &Found, now: i64) -> io::Result<Self> {
        Self::new(Input::Unpacked(Unpacked::open(found.read()?)?), found, 0, now)
    }

    fn new(input: Input, found: &Found, offset: u64, now: i64) -> io::Result<Self> {
        let meta = found.meta();
        let mut file = Self {
            input,
            device: meta.dev(),
            inode: meta.ino(),
            generation: now,
            begin: Some(offset),
            stored: None,
            seen_length: Cell::new(0),
            offset,
            before: Vec::new(),
            parts: 0,
            quiet: None,
            pending: Vec::new(),
        };
        if let Input::Open(_) = file.input {
            file.before = file.read_before()?;
        }
        Ok(file)
    }

    /// Read a file on from where a cursor left it; absent where it is not the file that it was.
    pub(crate) fn resume(found: &Found, cursor: &Cursor) -> io::Result<Option<Self>> {
        let mut file = Self::open(found, cursor.offset, cursor.generation)?;
        let same = file.before == cursor.before && !file.was_truncated()?;
        file.be_of(cursor);
        if let Some(hole) = file.first_hole(cursor) {
            (file.offset, file.parts) = (hole, 0);
            file.before = file.read_before()?;
        }
        Ok(same.then_some(file))
    }

    /// The same with what the file was compressed to meanwhile.
    pub(crate) fn resume_unpacked(
        found: &Found,
        cursor: &Cursor,
        stopped: &dyn Fn() -> bool,
    ) -> io::Result<Option<Self>> {
        let mut file = Self::open_unpacked(found, cursor.generation)?;
        let from = file.first_hole(cursor).unwrap_or(cursor.offset);
        let before = if from == cursor.offset { cursor.before.as_slice() } else { &[] };
        let Input::Unpacked(unpacked) = &mut file.input else { return Ok(None) };
        if !unpacked.skip_to(from, before, stopped)? || cursor.offset > 0 && cursor.before.is_empty() {
            return Ok(None);
        }
        file.be_of(cursor);
        (file.offset, file.before) = (from, before.to_vec());
        file.parts = if from == cursor.offset { cursor.parts } else { 0 };
        Ok(Some(file))
    }

    /// The source keeps its name, also where the device has another number now, in a copy and in an archive.
    fn be_of(&mut self, cursor: &Cursor) {
        (self.device, self.inode) = (cursor.device, cursor.inode);
        self.begin = cursor.begin;
        self.stored = cursor.stored.clone();
        self.parts = cursor.parts;
    }

    fn first_hole(&self, cursor: &Cursor) -> Option<u64> {
        cursor.stored.as_ref().filter(|stored| !stored.begun).and_then(|stored| stored.first_hole(cursor.begin))
    }

    /// Whether the file itself is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.input, Input::Open(_))
    }

    /// Whether its bytes come from an archive, which does not grow.
    pub(crate) fn is_unpacked(&self) -> bool {
        matches!(self.input, Input::Unpacked(_))
    }

    /// Whether there was nothing more to read at the last look.
    pub(crate) fn was_quiet(&self) -> bool {
        self.quiet.is_some()
    }

    /// Whether it holds a descriptor, of its own file or of an archive.
    pub(crate) fn holds_descriptor(&self) -> bool {
        !matches!(self.input, Input::Closed)
    }

    /// Give the descriptor back. What was read of an unfinished line is read once more.
    pub(crate) fn close(&mut self) {
        self.input = Input::Closed;
        self.pending.clear();
    }

    /// Whether a closed file has changed since it was closed.
    pub(crate) fn has_changed(&self, meta: &Stamp) -> bool {
        self.quiet.as_ref() != Some(meta)
    }

    /// Open it again; false where another file has its name now.
    pub(crate) fn reopen(&mut self, found: &Found, key: (u64, u64)) -> io::Result<bool> {
        if (found.meta().dev(), found.meta().ino()) != key {
            return Ok(false);
        }
        self.input = Input::Open(found.read()?);
        self.quiet = None;
        Ok(true)
    }

    /// Start of the first line not handed over.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The open file.
    pub(crate) fn file(&self) -> io::Result<&std::fs::File> {
        self.input.file()
    }

    /// The cursor as it stands; the file was `seen` under its name.
    pub(crate) fn cursor(&self, path: &Path, seen: i64) -> Cursor {
        let (path, raw_path) = text_and_bytes(path);
        Cursor {
            device: self.device,
            inode: self.inode,
            generation: self.generation,
            begin: self.begin,
            parts: self.parts,
            path,
            raw_path,
            length: self.seen_length.get(),
            offset: self.offset,
            seen,
            before: self.before.clone(),
            stored: self.stored.clone(),
        }
    }

    fn read_before(&self) -> io::Result<Vec<u8>> {
        let length = self.offset.min(BEFORE_BYTES as u64);
        let mut before = vec![0; length as usize];
        match self.file()?.read_exact_at(&mut before, self.offset - length) {
            Ok(()) => Ok(before),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
            Err(err) => Err(err),
        }
    }

    /// The file is shorter than what was read, or other bytes stand there.
    pub(crate) fn was_truncated(&self) -> io::Result<bool> {
        if !self.is_open() {
            return Ok(false);
        }
        let read = self.offset + self.pending.len() as u64;
        let length = self.file()?.metadata()?.len();
        if length < read || self.read_before()? != self.before {
            return Ok(true);
        }
        self.seen_length.set(length);
        // An unfinished line: what comes behind it must not be taken for its end when it is another's.
        let last = &self.pending[self.pending.len().saturating_sub(BEFORE_BYTES)..];
        let mut there = vec![0; last.len()];
        match self.file()?.read_exact_at(&mut there, read - last.len() as u64) {
            Ok(()) => Ok(there != last),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(err) => Err(err),
        }
    }

    /// Hand over the unfinished last line, which will not be finished.
    pub(crate) fn take_rest(&mut self, take: impl FnOnce(Line<'_>)) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            let position = Position(self.offset, self.offset + rest.len() as u64);
            let part = (self.parts > 0).then_some(self.parts + 1);
            take(Line { bytes: &rest, whole: &rest, position, part, unfinished: true });
            self.offset = position.1;
            self.parts = 0;
            let kept = rest.len().saturating_sub(BEFORE_BYTES);
            self.before.extend_from_slice(&rest[kept..]);
            self.before.drain(..self.before.len().saturating_sub(BEFORE_BYTES));
        }
    }

    /// Whether more was seen to be there than was read.
    pub(crate) fn has_unread(&self) -> bool {
        self.offset > 0 && self.seen_length.get() > self.offset + self.pending.len() as u64
    }

    /// Positions that were seen to be there and are destroyed unread.
    pub(crate) fn destroyed(&self) -> Option<Position> {
        let length = self.seen_length.get();
        (length > self.offset).then_some(Position(self.offset, length))
    }

    /// Go behind everything that is there; the positions passed over, where there are any.
    pub(crate) fn skip(&mut self) -> io::Result<Option<Position>> {
        let (from, to) = (self.offset, self.file()?.metadata()?.len());
        self.pending.clear();
        (self.offset, self.parts) = (to, 0);
        self.before = self.read_before()?;
        Ok((to > from).then_some(Position(from, to)))
    }

    /// Begin again at the beginning, as another source.
    pub(crate) fn restart(&mut self, now: i64) {
        self.seen_length.set(0);
        self.offset = 0;
        self.generation = now.max(self.generation + 1);
        (self.begin, self.stored, self.parts, self.quiet) = (Some(0), None, 0, None);
        self.before.clear();
        self.pending.clear();
    }

    /// Move to where the last so many lines begin, within one line's limit.
    pub(crate) fn seek_to_last_lines(&mut self, lines: usize) {
        let Ok(file) = self.file() else { return };
        let end = file.metadata().map_or(0, |meta| meta.len());
        let from = end.saturating_sub(LINE_BYTES_MAX as u64);
        let mut tail = vec![0; (end - from) as usize];
        if file.read_exact_at(&mut tail, from).is_err() {
            return;
        }
        let body = tail.strip_suffix(b"\n").unwrap_or(&tail);
        let cut = memchr::memrchr_iter(b'\n', body).nth(lines.saturating_sub(1));
        let cut = cut.or_else(|| if from == 0 { None } else { memchr::memchr(b'\n', body) });
        self.offset = cut.map_or(from, |at| from + at as u64 + 1);
        self.before = self.read_before().unwrap_or_default();
        self.pending.clear();
    }

    /// Whether anything may have changed since the last look that found nothing. One system call: there may be thousands
    /// of files.
    pub(crate) fn is_quiet(&self) -> io::Result<bool> {
        match &self.input {
            Input::Closed => Ok(true),
            Input::Unpacked(_) => Ok(false),
            Input::Open(file) => Ok(self.quiet.is_some() && self.quiet == Some(stamp(&file.metadata()?))),
        }
    }

    /// There was nothing more to read than when this stamp was taken. Not where the file was changed a moment ago: what
    /// comes within the same tick of the kernel's clock has the same stamp.
    pub(crate) fn now_quiet(&mut self, stamp: Stamp, now: i64) {
        let changed = stamp.3.saturating_mul(1_000_000_000).saturating_add(stamp.4);
        self.quiet = (now.saturating_sub(changed) > 2 * GRANULARITY_NS).then_some(stamp);
    }

    /// Length and times of change now.
    pub(crate) fn stamp(&self) -> io::Result<Stamp> {
        match &self.input {
            Input::Unpacked(_) => Ok((u64::MAX, 0, 0, 0, 0)),
            _ => Ok(stamp(&self.file()?.metadata()?)),
        }
    }

    /// Read on, up to about `bytes_max`, and hand each whole line to `take`.
    ///
    /// The cursor advances over whole lines only; an unfinished last line waits for its end. A line that is longer
    /// than [`LINE_BYTES_MAX`] goes as parts of that length. A hole, and zeros that fill a page or more where a line
    /// would begin, are passed over.
    ///
    /// What was read last is read once more in the same system call (preadv(2)): where other bytes stand there, the file
    /// was truncated meanwhile, and nothing of the block is taken. `block` is memory to read into, the same each time.
    pub(crate) fn read(
        &mut self,
        block: &mut Vec<u8>,
        bytes_max: usize,
        mut take: impl FnMut(Line<'_>),
    ) -> io::Result<Reading> {
        let mut taken = 0;
        loop {
            let had = self.pending.len();
            let room = match self.input.next(self.offset + had as u64, BLOCK_BYTES) {
                Next::Data(room) => room,
                // A truncation is noticed by the bytes that are gone.
                _ if self.was_truncated()? => return Ok(Reading::Truncated),
                Next::Hole(data) => return self.pass_over(data, &mut take),
                Next::Nothing => return Ok(Reading::End),
            };
            // Only ever made longer: nothing is zeroed for each read.
            block.resize(block.len().max(had + room), 0);
            block[..had].copy_from_slice(&self.pending);
            let last = self.last_bytes();
            let read = self.input.read(&last, self.offset + had as u64, &mut block[had..had + room])?;
            let Some(got) = read else { return Ok(Reading::Truncated) };
            if had == 0 && block[..got].starts_with(&[0]) {
                match self.input.zeros(self.offset)? {
                    Zeros::Until(text) if text - self.offset >= ZEROS_MIN as u64 => {
                        return self.pass_over(text, &mut take);
                    }
                    Zeros::Until(_) => {}
                    Zeros::ToTheEnd => return Ok(Reading::End),
                }
            }
            let used = self.cut_lines(&block[..had + got], had, &mut take);
            taken += used;
            // An idle file keeps no memory.
            self.pending = block[used..had + got].to_vec();
            self.seen_length.set(self.seen_length.get().max(self.offset + self.pending.len() as u64));
            if got < room && !self.input.is_damaged() {
                return Ok(Reading::End);
            }
            if taken >= bytes_max {
                return Ok(Reading::More);
            }
        }
    }

    /// What was read last, of [`BEFORE_BYTES`].
    fn last_bytes(&self) -> Vec<u8> {
        let of_pending = self.pending.len().min(BEFORE_BYTES);
        let of_before = self.before.len().min(BEFORE_BYTES - of_pending);
        let before = &self.before[self.before.len() - of_before..];
        [before, &self.pending[self.pending.len() - of_pending..]].concat()
    }

    /// Go on at an offset. What was read of a line before it has its end there.
    fn pass_over(&mut self, data: u64, take: impl FnMut(Line<'_>)) -> io::Result<Reading> {
        // A file system knows holes of whole blocks: the zeros before and behind it are of it too.
        let text = self.pending.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.pending.truncate(text);
        self.take_rest(take);
        let to = match self.input.zeros(data)? {
            Zeros::Until(text) => text,
            Zeros::ToTheEnd => data,
        };
        let from = std::mem::replace(&mut self.offset, to);
        self.parts = 0;
        self.before = self.read_before()?;
        self.seen_length.set(self.seen_length.get().max(to));
        Ok(Reading::Hole(Position(from, to)))
    }

    /// It is so long, and was read from where it should.
    pub(crate) fn saw(&self, length: u64) {
        self.seen_length.set(length);
    }

    /// Cut what was read into lines; the first `searched` bytes hold no line end. Returns how much was used.
    fn cut_lines(&mut self, pending: &[u8], searched: usize, take: &mut impl FnMut(Line<'_>)) -> usize {
        let (mut start, mut parts) = (0, self.parts);
        let (offset, stored) = (self.offset, &self.stored);
        let mut give = |from: usize, to: usize, next: usize, part: Option<u32>| {
            let bytes = &pending[from..to];
            let bytes = if next > to { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
            let position = Position(offset + from as u64, offset + next as u64);
            if stored.as_ref().is_none_or(|stored| !stored.has(position.0)) {
                take(Line { bytes, whole: &pending[from..next], position, part, unfinished: false });
            }
        };
        let give_parts = |start: &mut usize, parts: &mut u32, to: usize, give: &mut dyn FnMut(_, _, _, _)| {
            while to - *start >= LINE_BYTES_MAX {
                *parts += 1;
                give(*start, *start + LINE_BYTES_MAX, *start + LINE_BYTES_MAX, Some(*parts));
                *start += LINE_BYTES_MAX;
            }
        };
        for end in memchr::memchr_iter(b'\n', &pending[searched..]) {
            let end = searched + end;
            // A line that is exactly as long as a part is whole.
            if parts > 0 || end - start > LINE_BYTES_MAX {
                give_parts(&mut start, &mut parts, end, &mut give);
            }
            give(start, end, end + 1, (parts > 0).then_some(parts + 1));
            (start, parts) = (end + 1, 0);
        }
        if pending.len() - start > LINE_BYTES_MAX {
            give_parts(&mut start, &mut parts, pending.len(), &mut give);
        }
        self.parts = parts;
        if start == 0 {
            return 0;
        }
        let kept = start.saturating_sub(BEFORE_BYTES);
        if start >= BEFORE_BYTES {
            self.before.clear();
        }
        self.before.extend_from_slice(&pending[kept..start]);
        let surplus = self.before.len().saturating_sub(BEFORE_BYTES);
        self.before.drain(..surplus);
        self.offset += start as u64;
        start
    }
}

pub(crate) fn stamp(meta: &std::fs::Metadata) -> Stamp {
    (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}
