//! Reads files in turns of limited size, as far as the queue has room.

use super::{
    CHUNK_BYTES, DeviceInode, Followed, LineParser, PENDING_BYTES_MAX, Parsing, Read, Reading, State, TURN_BYTES,
    TURNS_MAX, TailContext, Tailer,
};
use crate::{CollectError, room::Room};
use std::time::Instant;
use vedette_wire::{Dropped, Reason};

impl<P: LineParser> Tailer<P> {
    /// Gives each file a turn; returns whether there was anything, and whether there is more.
    pub(super) fn read_all(&mut self, at: &TailContext<'_>, state: &mut State) -> Result<Read, CollectError> {
        let open = |(key, followed): (&DeviceInode, &Followed)| followed.file.holds_descriptor().then_some(*key);
        let mut turns: Vec<DeviceInode> = state.files.iter().filter_map(open).collect();
        let (mut any, began) = (false, Instant::now());
        self.pending = state.files.values().map(|followed| followed.file.pending_bytes()).sum();
        loop {
            let mut more = Vec::new();
            for key in turns {
                match self.read_one(at, state, key)? {
                    Read::Nothing => continue,
                    Read::More => more.push(key),
                    Read::Truncated => self.truncated(at, state, key)?,
                    Read::Grew => {}
                    Read::Done => self.let_go(at, state, key)?,
                }
                any = true;
                if at.outlet.is_stopped() {
                    return Ok(Read::Grew);
                }
            }
            if more.is_empty() {
                break;
            }
            if began.elapsed() > TURNS_MAX {
                return Ok(Read::More);
            }
            turns = more;
        }
        let is_over = |followed: &Followed| {
            let is_read = followed.file.is_open() && !followed.room.is_waiting();
            !followed.listed && is_read && followed.grew.elapsed() > self.patience
        };
        let over: Vec<DeviceInode> =
            state.files.iter().filter(|(_, followed)| is_over(followed)).map(|(key, _)| *key).collect();
        for key in over {
            self.let_go(at, state, key)?;
        }
        Ok(if any { Read::Grew } else { Read::Nothing })
    }

    /// Drops a file that will not grow, after emitting its unfinished line.
    fn let_go(&mut self, at: &TailContext<'_>, state: &mut State, key: DeviceInode) -> Result<(), CollectError> {
        let Some(mut followed) = state.files.remove(&key) else { return Ok(()) };
        self.rest(at, &mut followed)?;
        self.forget(at, &followed.cursor())
    }

    /// A turn of one file.
    fn read_one(&mut self, at: &TailContext<'_>, state: &mut State, key: DeviceInode) -> Result<Read, CollectError> {
        let Some(followed) = state.files.get_mut(&key) else { return Ok(Read::Nothing) };
        let before = followed.file.pending_bytes();
        let mut read = self.turn(at, followed);
        self.pending = (self.pending + followed.file.pending_bytes()).saturating_sub(before);
        if self.pending > PENDING_BYTES_MAX && followed.file.is_open() {
            // Others need the memory: an open record is emitted without its end.
            if P::JOINS && followed.file.has_open_record() && read.is_ok() {
                read = self.open_record(at, followed);
            }
            self.pending -= followed.file.pending_bytes();
            followed.file.forget_pending();
        }
        followed.was_read = true;
        followed.at_end = matches!(read, Ok(Read::Grew | Read::Nothing)) && !followed.room.is_waiting();
        match read {
            Ok(read) => {
                followed.problem = None;
                Ok(read)
            }
            Err(CollectError::Stopped) => Err(CollectError::Stopped),
            Err(err) if followed.file.is_unpacked() && !followed.room.is_waiting() => {
                let cursor = followed.cursor();
                state.files.remove(&key);
                self.lost(at, &cursor, &err.to_string())?;
                Ok(Read::Grew)
            }
            Err(err) => {
                followed.problem = Some(err.to_string());
                Ok(Read::Nothing)
            }
        }
    }

    fn turn(&mut self, at: &TailContext<'_>, followed: &mut Followed) -> Result<Read, CollectError> {
        let failed = |err| CollectError::read(followed.source.name.clone().unwrap_or_default(), err);
        if followed.file.is_quiet().map_err(failed)? {
            if P::JOINS && followed.file.waits_for_record(at.context.now(), P::JOIN_NS) {
                return self.open_record(at, followed);
            }
            return Ok(Read::Nothing);
        }
        let waited = followed.room.is_waiting();
        match followed.room.check(at.outlet, &followed.source) {
            Room::Free if waited => followed.grew = Instant::now(),
            Room::Free => {}
            // A copy continues where the file was truncated.
            Room::Full | Room::LongFull if followed.file.was_truncated().map_err(failed)? => {
                return Ok(Read::Truncated);
            }
            Room::Full => return Ok(Read::Nothing),
            Room::LongFull => return Err(CollectError::NoRoom(followed.source.name.clone().unwrap_or_default())),
        }
        // Taken before reading, so that a later write changes it.
        let fingerprint = followed.file.fingerprint().map_err(failed)?;
        let (mut read, from) = (Read::Nothing, followed.file.offset());
        loop {
            let (parser, chunks, block) = (&mut self.parser, &mut self.chunks, &mut self.block);
            chunks.begin(&followed.source, at.context.now());
            let ended = followed.file.read(block, CHUNK_BYTES, &mut Parsing { parser, chunks });
            let mut chunk = chunks.end();
            if ended.as_ref().is_ok_and(|ended| *ended != Reading::Truncated) && !followed.file.is_unpacked() {
                followed.file.saw(fingerprint.0);
            }
            if let Ok(Reading::Hole(positions)) = &ended {
                chunk.dropped.push(Dropped { reason: Reason::Hole, count: 1, positions: Some(*positions) });
            }
            // Includes what was read before an error.
            if !chunk.entries.is_empty() || !chunk.dropped.is_empty() {
                read = Read::Grew;
                followed.grew = Instant::now();
                chunk.cursor = Some(followed.cursor().encode());
                at.outlet.emit(chunk)?;
            }
            match ended.map_err(failed)? {
                Reading::Truncated => return Ok(Read::Truncated),
                Reading::End if followed.file.is_unpacked() => return Ok(Read::Done),
                Reading::End if read == Read::Nothing => {
                    followed.file.now_quiet(fingerprint, at.context.now());
                    return Ok(read);
                }
                Reading::End => return Ok(read),
                Reading::More | Reading::Hole(_) if at.outlet.is_stopped() => return Ok(read),
                Reading::More | Reading::Hole(_) if followed.file.offset() - from >= TURN_BYTES => {
                    return Ok(Read::More);
                }
                Reading::More | Reading::Hole(_) => {}
            }
        }
    }

    /// Emits lines whose record did not end in time.
    fn open_record(&mut self, at: &TailContext<'_>, followed: &mut Followed) -> Result<Read, CollectError> {
        if !matches!(followed.room.check(at.outlet, &followed.source), Room::Free) {
            return Ok(Read::Nothing);
        }
        let (parser, chunks) = (&mut self.parser, &mut self.chunks);
        chunks.begin(&followed.source, at.context.now());
        followed.file.take_open_record(&mut Parsing { parser, chunks });
        let mut chunk = chunks.end();
        chunk.cursor = Some(followed.cursor().encode());
        at.outlet.emit(chunk)?;
        Ok(Read::Grew)
    }

    /// Emits a last line that will get no end.
    pub(super) fn rest(&mut self, at: &TailContext<'_>, followed: &mut Followed) -> Result<(), CollectError> {
        let (parser, chunks, block) = (&mut self.parser, &mut self.chunks, &mut self.block);
        chunks.begin(&followed.source, at.context.now());
        if followed.file.is_open() && followed.file.pending_bytes() == 0 {
            // It was freed for lack of memory.
            drop(followed.file.read(block, CHUNK_BYTES, &mut Parsing { parser, chunks }));
        }
        followed.file.take_rest(&mut Parsing { parser, chunks });
        let chunk = chunks.end();
        if chunk.entries.is_empty() { Ok(()) } else { at.outlet.emit(chunk) }
    }
}
