//! One file: reads blocks, splits lines, and keeps the cursor.

use super::{
    cursor::{BEFORE_BYTES, Cursor, text_and_bytes},
    input::{Input, Next, ZEROS_MIN, Zeros},
    lines::{LINE_BYTES_MAX, Line, LineSink, cut},
    rotation::GRANULARITY_NS,
    unpacked::Unpacked,
};
use crate::root::HostEntry;
use std::{
    cell::Cell,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};
use vedette_wire::{Position, Stored};

/// Block size.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// The end of the file.
    End,
    /// There may be more.
    More,
    /// The file was truncated or replaced.
    Truncated,
    /// There may be more, after positions that hold only NUL bytes.
    Hole(Position),
}

/// Length, and times of modification and of change, seconds and nanoseconds.
pub(crate) type FileFingerprint = (u64, i64, i64, i64, i64);

/// A file and its reading position.
#[derive(Debug)]
pub(crate) struct File {
    input: Input,
    device: u64,
    inode: u64,
    generation: i64,
    /// Offset of the first line read.
    begin: Option<u64>,
    /// The workspace's positions.
    stored: Option<Arc<Stored>>,
    /// Last known length before a truncation.
    seen_length: Cell<u64>,
    /// Start of the first line not emitted.
    offset: u64,
    before: Vec<u8>,
    /// Number of emitted parts of the line at `offset`.
    parts: u32,
    /// Fingerprint at the last read that found nothing: while it is the same, there is nothing to read.
    quiet: Option<FileFingerprint>,
    /// Bytes after `offset`: an unfinished line.
    pending: Vec<u8>,
}

impl File {
    /// Opens a new file at an offset.
    pub(crate) fn open(found: &HostEntry, offset: u64, now: i64) -> io::Result<Self> {
        Self::new(Input::Open(found.read()?), found, offset, now)
    }

    /// Opens a new compressed file at its start.
    pub(crate) fn open_unpacked(found: &HostEntry, now: i64) -> io::Result<Self> {
        Self::new(Input::Unpacked(Unpacked::open(found.read()?)?), found, 0, now)
    }

    fn new(input: Input, found: &HostEntry, offset: u64, now: i64) -> io::Result<Self> {
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

    /// Reopens a file at a cursor; absent if it is another file.
    pub(crate) fn resume(found: &HostEntry, cursor: &Cursor) -> io::Result<Option<Self>> {
        let mut file = Self::open(found, cursor.offset, cursor.generation)?;
        let same = file.before == cursor.before && !file.was_truncated()?;
        file.be_of(cursor);
        if let Some(hole) = file.first_missing(cursor) {
            (file.offset, file.parts) = (hole, 0);
            file.before = file.read_before()?;
        }
        Ok(same.then_some(file))
    }

    /// Continues a cursor in a compressed copy of its file.
    pub(crate) fn resume_unpacked(
        found: &HostEntry,
        cursor: &Cursor,
        stopped: &dyn Fn() -> bool,
    ) -> io::Result<Option<Self>> {
        let mut file = Self::open_unpacked(found, cursor.generation)?;
        let from = file.first_missing(cursor).unwrap_or(cursor.offset);
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

    /// Takes over a cursor's source, even with another device number, in a copy or in an archive.
    fn be_of(&mut self, cursor: &Cursor) {
        (self.device, self.inode) = (cursor.device, cursor.inode);
        self.begin = cursor.begin;
        self.stored = cursor.stored.clone();
        self.parts = cursor.parts;
    }

    fn first_missing(&self, cursor: &Cursor) -> Option<u64> {
        cursor.stored.as_ref().filter(|stored| !stored.begun).and_then(|stored| stored.first_missing(cursor.begin))
    }

    /// Whether the file itself is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.input, Input::Open(_))
    }

    /// Whether the content comes from an archive, which does not grow.
    pub(crate) fn is_unpacked(&self) -> bool {
        matches!(self.input, Input::Unpacked(_))
    }

    /// Whether no name leads to the open file any more (fstat(2), `st_nlink`).
    pub(crate) fn is_deleted(&self) -> bool {
        matches!(&self.input, Input::Open(file) if file.metadata().is_ok_and(|meta| meta.nlink() == 0))
    }

    /// Whether the last read found nothing.
    pub(crate) fn was_quiet(&self) -> bool {
        self.quiet.is_some()
    }

    /// Whether it holds a descriptor.
    pub(crate) fn holds_descriptor(&self) -> bool {
        !matches!(self.input, Input::Closed)
    }

    /// Closes the descriptor. An unfinished line is read again later.
    pub(crate) fn close(&mut self) {
        self.input = Input::Closed;
        self.pending.clear();
    }

    /// Whether a closed file has changed.
    pub(crate) fn has_changed(&self, meta: &FileFingerprint) -> bool {
        self.quiet.as_ref() != Some(meta)
    }

    /// Reopens the file; false if its name belongs to another file.
    pub(crate) fn reopen(&mut self, found: &HostEntry, key: (u64, u64)) -> io::Result<bool> {
        if (found.meta().dev(), found.meta().ino()) != key {
            return Ok(false);
        }
        self.input = Input::Open(found.read()?);
        self.quiet = None;
        Ok(true)
    }

    /// Start of the first line not emitted.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The open file.
    pub(crate) fn file(&self) -> io::Result<&std::fs::File> {
        self.input.file()
    }

    /// The cursor; `seen` is when the file was last found under its name.
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

    /// Whether the file is shorter than the position, or has other bytes before it.
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
        // The bytes after an unfinished line must belong to the same line.
        let last = &self.pending[self.pending.len().saturating_sub(BEFORE_BYTES)..];
        let mut on_disk = vec![0; last.len()];
        match self.file()?.read_exact_at(&mut on_disk, read - last.len() as u64) {
            Ok(()) => Ok(on_disk != last),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
            Err(err) => Err(err),
        }
    }

    /// Emits the unfinished last line, which will get no end.
    pub(crate) fn take_rest(&mut self, sink: &mut impl LineSink) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            let position = Position(self.offset, self.offset + rest.len() as u64);
            let part = (self.parts > 0).then_some(self.parts + 1);
            sink.take(Line { bytes: &rest, whole: &rest, position, part, unfinished: true });
            self.advance(&rest);
            self.parts = 0;
        }
    }

    /// Emits the whole lines of a record that has no end yet.
    pub(crate) fn take_open_record(&mut self, sink: &mut impl LineSink) {
        let Some(last) = memchr::memrchr(b'\n', &self.pending) else { return };
        let rest = self.pending.split_off(last + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        let position = Position(self.offset, self.offset + lines.len() as u64);
        sink.take(Line { bytes: &lines[..last], whole: &lines, position, part: None, unfinished: false });
        self.advance(&lines);
    }

    /// Whether whole lines wait for the end of their record, and the file did not change for a while, in nanoseconds.
    pub(crate) fn waits_for_record(&self, now: i64, wait: i64) -> bool {
        let changed = |(_, seconds, nanoseconds, _, _): FileFingerprint| {
            seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
        };
        // The clock may have been set back since.
        self.quiet.is_some_and(|quiet| now.abs_diff(changed(quiet)) > wait.unsigned_abs()) && self.has_open_record()
    }

    /// Whether whole lines wait for the end of their record.
    pub(crate) fn has_open_record(&self) -> bool {
        memchr::memchr(b'\n', &self.pending).is_some()
    }

    /// Number of bytes that wait in memory for the end of their line or record.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Frees the bytes of an unfinished line, which is read again when the file grows.
    pub(crate) fn forget_pending(&mut self) {
        self.pending = Vec::new();
    }

    /// Passes over bytes that were taken.
    fn advance(&mut self, taken: &[u8]) {
        let keep_from = taken.len().saturating_sub(BEFORE_BYTES);
        if taken.len() >= BEFORE_BYTES {
            self.before.clear();
        }
        self.before.extend_from_slice(&taken[keep_from..]);
        let surplus = self.before.len().saturating_sub(BEFORE_BYTES);
        self.before.drain(..surplus);
        self.offset += taken.len() as u64;
    }

    /// Whether known bytes are unread.
    pub(crate) fn has_unread(&self) -> bool {
        self.offset > 0 && self.seen_length.get() > self.offset + self.pending.len() as u64
    }

    /// Known bytes that are destroyed unread.
    pub(crate) fn destroyed(&self) -> Option<Position> {
        let length = self.seen_length.get();
        (length > self.offset).then_some(Position(self.offset, length))
    }

    /// Skips to the end; returns the skipped positions, if any.
    pub(crate) fn skip(&mut self) -> io::Result<Option<Position>> {
        let (from, to) = (self.offset, self.file()?.metadata()?.len());
        self.pending.clear();
        (self.offset, self.parts) = (to, 0);
        self.before = self.read_before()?;
        Ok((to > from).then_some(Position(from, to)))
    }

    /// Restarts at the beginning as another source.
    pub(crate) fn restart(&mut self, now: i64) {
        self.seen_length.set(0);
        self.offset = 0;
        self.generation = now.max(self.generation + 1);
        (self.begin, self.stored, self.parts, self.quiet) = (Some(0), None, 0, None);
        self.before.clear();
        self.pending.clear();
    }

    /// Moves to the start of the last `lines` lines, within the maximum length of one line.
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

    /// Whether nothing can have changed since a read that found nothing. One system call, since there may be thousands of
    /// files.
    pub(crate) fn is_quiet(&self) -> io::Result<bool> {
        match &self.input {
            Input::Closed => Ok(true),
            Input::Unpacked(_) => Ok(false),
            Input::Open(file) => Ok(self.quiet.is_some() && self.quiet == Some(fingerprint(&file.metadata()?))),
        }
    }

    /// Records that a read found nothing after this fingerprint was taken. Not if the file has just changed: a write within the
    /// same tick of the kernel's clock leaves the same fingerprint.
    pub(crate) fn now_quiet(&mut self, fingerprint: FileFingerprint, now: i64) {
        let changed = fingerprint.3.saturating_mul(1_000_000_000).saturating_add(fingerprint.4);
        self.quiet = (now.saturating_sub(changed) > 2 * GRANULARITY_NS).then_some(fingerprint);
    }

    /// Present fingerprint.
    pub(crate) fn fingerprint(&self) -> io::Result<FileFingerprint> {
        match &self.input {
            Input::Unpacked(_) => Ok((u64::MAX, 0, 0, 0, 0)),
            _ => Ok(fingerprint(&self.file()?.metadata()?)),
        }
    }

    /// Reads up to about `bytes_max` and passes whole lines to `sink`.
    ///
    /// The cursor advances over whole lines only. Lines longer than [`LINE_BYTES_MAX`] are emitted in parts of that length.
    /// Holes are skipped, and so are NUL bytes that fill at least a page in place of a line.
    ///
    /// The same system call (preadv(2)) reads the last bytes again: if they differ, the file was truncated, and the block is
    /// discarded. `block` is a reusable buffer.
    pub(crate) fn read(
        &mut self,
        block: &mut Vec<u8>,
        bytes_max: usize,
        sink: &mut impl LineSink,
    ) -> io::Result<Reading> {
        let mut used_bytes = 0;
        loop {
            let had = self.pending.len();
            let room = match self.input.next(self.offset + had as u64, BLOCK_BYTES) {
                Next::Data(room) => room,
                // The missing bytes reveal a truncation.
                _ if self.was_truncated()? => return Ok(Reading::Truncated),
                Next::Hole(data) => return self.pass_over(data, sink),
                Next::Nothing => return Ok(Reading::End),
            };
            // The buffer only grows, so no read has to zero it.
            block.resize(block.len().max(had + room), 0);
            block[..had].copy_from_slice(&self.pending);
            let last = self.last_bytes();
            let read = self.input.read(&last, self.offset + had as u64, &mut block[had..had + room])?;
            let Some(got) = read else { return Ok(Reading::Truncated) };
            if had == 0 && block[..got].starts_with(&[0]) {
                match self.input.zeros(self.offset)? {
                    Zeros::Until(text) if text - self.offset >= ZEROS_MIN as u64 => {
                        return self.pass_over(text, sink);
                    }
                    Zeros::Until(_) => {}
                    Zeros::ToTheEnd => return Ok(Reading::End),
                }
            }
            let used = self.cut_lines(&block[..had + got], had, sink);
            used_bytes += used;
            // An idle file keeps no memory.
            self.pending = block[used..had + got].to_vec();
            self.seen_length.set(self.seen_length.get().max(self.offset + self.pending.len() as u64));
            if got < room && !self.input.is_damaged() {
                return Ok(Reading::End);
            }
            if used_bytes >= bytes_max {
                return Ok(Reading::More);
            }
        }
    }

    /// The last bytes read, up to [`BEFORE_BYTES`].
    fn last_bytes(&self) -> Vec<u8> {
        let of_pending = self.pending.len().min(BEFORE_BYTES);
        let of_before = self.before.len().min(BEFORE_BYTES - of_pending);
        let before = &self.before[self.before.len() - of_before..];
        [before, &self.pending[self.pending.len() - of_pending..]].concat()
    }

    /// Continues at an offset; emits an unfinished line before it.
    fn pass_over(&mut self, data: u64, sink: &mut impl LineSink) -> io::Result<Reading> {
        // File systems have holes of whole blocks; NUL bytes around a hole belong to it.
        let text = self.pending.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.pending.truncate(text);
        self.take_rest(sink);
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

    /// Records the file's length.
    pub(crate) fn saw(&self, length: u64) {
        self.seen_length.set(length);
    }

    /// Splits the bytes into lines; the first `searched` bytes have no line end. Returns the number of bytes used.
    fn cut_lines(&mut self, pending: &[u8], searched: usize, sink: &mut impl LineSink) -> usize {
        let stored = &self.stored;
        let is_stored = |position| stored.as_ref().is_some_and(|stored| stored.has(position));
        let (start, parts) = cut(pending, searched, (self.offset, self.parts), is_stored, sink);
        self.parts = parts;
        if start == 0 {
            return 0;
        }
        self.advance(&pending[..start]);
        start
    }
}

pub(crate) fn fingerprint(meta: &std::fs::Metadata) -> FileFingerprint {
    (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}
