//! Splits bytes into lines, and lines into records where one takes several.

use vedette_wire::Position;

/// Longer lines are emitted in parts; records of several lines end before they are longer.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// A line, or several that are one record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// Content without `\n` or `\r\n`.
    pub(crate) bytes: &'a [u8],
    /// Content as in the file.
    pub(crate) whole: &'a [u8],
    /// Position in the file, including the line end.
    pub(crate) position: Position,
    /// Number of the part, from 1, of a long line.
    pub(crate) part: Option<u32>,
    /// The file is gone, and the line has no end.
    pub(crate) unfinished: bool,
}

/// Takes the lines of a file.
pub(crate) trait LineSink {
    /// Whether a record may take several lines.
    const JOINS: bool = false;

    /// Takes a line.
    fn take(&mut self, line: Line<'_>);

    /// Whether a record ends with a line, given with its end. The lines of a record come in order from its first one, and again
    /// from there when more of the file is read.
    fn ends_record(&mut self, _line: &[u8], _is_first: bool) -> bool {
        true
    }
}

#[cfg(test)]
impl<F: FnMut(Line<'_>)> LineSink for F {
    fn take(&mut self, line: Line<'_>) {
        self(line);
    }
}

/// Splits the bytes at an offset into lines; the first `searched` bytes have no line end, and `parts` of the first line were
/// emitted. Lines that `is_stored` are not taken. Returns the number of bytes used, and of parts of the line behind them.
pub(super) fn cut<S: LineSink>(
    pending: &[u8],
    searched: usize,
    (offset, mut parts): (u64, u32),
    is_stored: impl Fn(u64) -> bool,
    sink: &mut S,
) -> (usize, u32) {
    let give = |sink: &mut S, from: usize, to: usize, next: usize, part: Option<u32>| {
        let bytes = &pending[from..to];
        let bytes = if next > to { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
        let position = Position(offset + from as u64, offset + next as u64);
        if !is_stored(position.0) {
            sink.take(Line { bytes, whole: &pending[from..next], position, part, unfinished: false });
        }
    };
    let give_parts = |sink: &mut S, start: &mut usize, parts: &mut u32, to: usize| {
        while to - *start >= LINE_BYTES_MAX {
            *parts += 1;
            give(sink, *start, *start + LINE_BYTES_MAX, *start + LINE_BYTES_MAX, Some(*parts));
            *start += LINE_BYTES_MAX;
        }
    };
    // `start` of the record, and of its present line. A record of several lines is searched from its start.
    let (mut start, mut line) = (0, 0);
    let searched = if S::JOINS { 0 } else { searched };
    for end in memchr::memchr_iter(b'\n', &pending[searched..]) {
        let end = searched + end;
        if line > start && end - start > LINE_BYTES_MAX {
            give(sink, start, line - 1, line, None);
            start = line;
        }
        // A line exactly as long as a part is whole.
        if parts > 0 || end - start > LINE_BYTES_MAX {
            give_parts(sink, &mut start, &mut parts, end);
            line = start;
        }
        if parts == 0 && !sink.ends_record(&pending[line..=end], line == start) {
            line = end + 1;
            continue;
        }
        give(sink, start, end, end + 1, (parts > 0).then_some(parts + 1));
        (start, line, parts) = (end + 1, end + 1, 0);
    }
    if pending.len() - start > LINE_BYTES_MAX {
        if line > start {
            give(sink, start, line - 1, line, None);
            start = line;
        }
        give_parts(sink, &mut start, &mut parts, pending.len());
    }
    (start, parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record goes on while its lines end in `+`.
    #[derive(Default)]
    struct Joined {
        records: Vec<(String, Position, Option<u32>)>,
        firsts: usize,
    }

    impl LineSink for Joined {
        const JOINS: bool = true;

        fn take(&mut self, line: Line<'_>) {
            let text = String::from_utf8_lossy(line.whole).into_owned();
            self.records.push((text, line.position, line.part));
        }

        fn ends_record(&mut self, line: &[u8], is_first: bool) -> bool {
            self.firsts += usize::from(is_first);
            !line.ends_with(b"+\n")
        }
    }

    fn records(text: &str) -> (Vec<(String, Position, Option<u32>)>, usize) {
        let mut sink = Joined::default();
        let (used, _) = cut(text.as_bytes(), 0, (100, 0), |_| false, &mut sink);
        let firsts = sink.firsts;
        assert!(firsts >= sink.records.iter().filter(|record| record.2.is_none()).count());
        (sink.records, used)
    }

    #[test]
    fn a_record_of_several_lines_is_taken_when_its_last_line_is_there() {
        let (found, used) = records("a+\nb+\nc\nd\ne+\nf+\n");
        assert_eq!(
            found,
            [("a+\nb+\nc\n".to_owned(), Position(100, 108), None), ("d\n".to_owned(), Position(108, 110), None)]
        );
        assert_eq!(used, 10, "what has no end yet is read again");
    }

    #[test]
    fn a_record_without_an_end_is_cut_before_it_is_too_long_and_tiles() {
        let piece = format!("{}+\n", "x".repeat(300 << 10));
        let long = format!("{}+\n", "y".repeat((1 << 20) + 5));
        for text in [piece.repeat(8), format!("{piece}{long}{piece}z\n"), format!("{piece}{}", "w".repeat(1 << 20))] {
            let (found, used) = records(&text);
            let mut at = 100;
            for (bytes, position, _) in &found {
                assert_eq!((position.0, position.1 - position.0), (at, bytes.len() as u64));
                assert!(bytes.len() <= LINE_BYTES_MAX + 1);
                at = position.1;
            }
            assert_eq!(at, 100 + used as u64);
            assert!(text.len() - used <= LINE_BYTES_MAX);
        }
    }
}
