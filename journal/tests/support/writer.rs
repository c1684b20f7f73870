//! Writes journal files of every format, as small as they can be: for codecs and layouts that the journald at hand does not
//! write, and as a corpus for fuzzing. Hash tables are absent; readers without a match do not need them.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Codec of large payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Plain,
    Xz,
    Lz4,
    Zstd,
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub is_compact: bool,
    pub codec: Codec,
    /// Number of entries in the first entry array; each further one has twice as many.
    pub first_array: u64,
}

/// An entry: number, microseconds of both clocks, fields.
pub struct Written {
    pub seqnum: u64,
    pub at: u64,
    pub fields: Vec<Vec<u8>>,
}

/// Payloads from this size on are compressed, as journald does by default.
const COMPRESSED_FROM: usize = 512;
const HEADER_BYTES: usize = 272;

/// Number of entries and length of a part of the file.
pub struct Journal {
    pub bytes: Vec<u8>,
    /// Offsets of entries, and of entry arrays.
    pub entries: Vec<usize>,
    pub arrays: Vec<usize>,
}

/// Writes entries of one boot into a file.
pub fn write(layout: Layout, entries: &[Written]) -> Journal {
    let mut out = Journal { bytes: vec![0; HEADER_BYTES], entries: Vec::new(), arrays: Vec::new() };
    let mut known: Vec<(Vec<u8>, usize)> = Vec::new();
    for entry in entries {
        let items: Vec<usize> = entry
            .fields
            .iter()
            .map(|field| match known.iter().find(|(payload, _)| payload == field) {
                Some((_, offset)) => {
                    let uses = u64_at(&out.bytes, offset + 56) + 1;
                    put(&mut out.bytes, offset + 56, &uses.to_le_bytes());
                    *offset
                }
                None => {
                    let offset = data(&mut out.bytes, layout, field);
                    known.push((field.clone(), offset));
                    offset
                }
            })
            .collect();
        let item_bytes = if layout.is_compact { 4 } else { 16 };
        let offset = object(&mut out.bytes, 3, 0, 64 + items.len() * item_bytes);
        for (at, value) in
            [(16, entry.seqnum), (24, 1_795_404_079_000_000 + entry.at), (32, entry.at), (56, entry.seqnum * 7)]
        {
            put(&mut out.bytes, offset + at, &value.to_le_bytes());
        }
        put(&mut out.bytes, offset + 40, &[0xb0; 16]);
        for (index, item) in items.iter().enumerate() {
            // The first entry of a field; journalctl refuses a field without one.
            if u64_at(&out.bytes, item + 40) == 0 {
                put(&mut out.bytes, item + 40, &(offset as u64).to_le_bytes());
            }
            put(&mut out.bytes, offset + 64 + index * item_bytes, &(*item as u32).to_le_bytes());
        }
        out.entries.push(offset);
        // The array behind the entry that fills the last one, as journald appends them.
        let capacity: u64 = (0..out.arrays.len()).map(|number| layout.first_array << number).sum();
        if out.entries.len() as u64 > capacity {
            let room = (layout.first_array << out.arrays.len()) as usize;
            let array = object(&mut out.bytes, 6, 0, 24 + room * if layout.is_compact { 4 } else { 8 });
            if let Some(last) = out.arrays.last() {
                put(&mut out.bytes, last + 16, &(array as u64).to_le_bytes());
            }
            out.arrays.push(array);
        }
        let (array, first) =
            (*out.arrays.last().expect("pushed"), layout.first_array * ((1 << (out.arrays.len() - 1)) - 1));
        let index = out.entries.len() - 1 - first as usize;
        put(&mut out.bytes, array + 24 + index * if layout.is_compact { 4 } else { 8 }, &(offset as u32).to_le_bytes());
    }
    header(&mut out, layout, entries);
    out
}

fn header(out: &mut Journal, layout: Layout, entries: &[Written]) {
    let flags =
        4 + match layout.codec {
            Codec::Plain => 0,
            Codec::Xz => 1,
            Codec::Lz4 => 2,
            Codec::Zstd => 8,
        } + if layout.is_compact { 16_u32 } else { 0 };
    let (length, last) =
        (out.bytes.len() as u64, *out.entries.iter().chain(&out.arrays).max().unwrap_or(&HEADER_BYTES) as u64);
    put(&mut out.bytes, 0, b"LPKSHHRH");
    put(&mut out.bytes, 12, &flags.to_le_bytes());
    out.bytes[16] = 2;
    put(&mut out.bytes, 24, &[0xf1; 16]);
    put(&mut out.bytes, 40, &[0xaa; 16]);
    put(&mut out.bytes, 56, &[0xb0; 16]);
    put(&mut out.bytes, 72, &[0x5e; 16]);
    let numbers = |at: fn(&Written) -> u64| (entries.first().map_or(0, at), entries.last().map_or(0, at));
    let (seqnums, times) = (numbers(|entry| entry.seqnum), numbers(|entry| entry.at));
    for (at, value) in [
        (88, HEADER_BYTES as u64),
        (96, length - HEADER_BYTES as u64),
        (136, last),
        (144, 1 + entries.len() as u64),
        (152, entries.len() as u64),
        (160, seqnums.1),
        (168, seqnums.0),
        (176, out.arrays.first().copied().unwrap_or(0) as u64),
        (184, 1_795_404_079_000_000 + times.0),
        (192, 1_795_404_079_000_000 + times.1),
        (200, times.1),
    ] {
        put(&mut out.bytes, at, &value.to_le_bytes());
    }
}

fn data(bytes: &mut Vec<u8>, layout: Layout, field: &[u8]) -> usize {
    let (payload, flags) = if field.len() < COMPRESSED_FROM {
        (field.to_vec(), 0)
    } else {
        match layout.codec {
            Codec::Plain => (field.to_vec(), 0),
            Codec::Xz => (xz(field), 1),
            Codec::Lz4 => {
                (([(field.len() as u64).to_le_bytes().to_vec(), lz4_flex::block::compress(field)].concat()), 2)
            }
            Codec::Zstd => (zstd::bulk::compress(field, 3).expect("compresses"), 4),
        }
    };
    let at = if layout.is_compact { 72 } else { 64 };
    let offset = object(bytes, 1, flags, at + payload.len());
    put(bytes, offset + 56, &1_u64.to_le_bytes());
    put(bytes, offset + at, &payload);
    offset
}

/// By xz(1), as lzma-rust2 is built without its encoder.
fn xz(field: &[u8]) -> Vec<u8> {
    let mut child = Command::new("xz")
        .args(["-0", "--check=none", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("xz-utils is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(field).expect("writes"));
        child.wait_with_output().expect("compresses").stdout
    })
}

/// Appends an object; its offset.
fn object(bytes: &mut Vec<u8>, kind: u8, flags: u8, size: usize) -> usize {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let offset = bytes.len();
    bytes.resize(offset + size, 0);
    bytes[offset] = kind;
    bytes[offset + 1] = flags;
    put(bytes, offset + 8, &(size as u64).to_le_bytes());
    offset
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
