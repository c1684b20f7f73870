//! Notes of an ELF core (elf(5), core(5); include/uapi/linux/elfcore.h): process, signal, executable.
//!
//! A dump may be hostile. Only its header, program headers and notes are read, within limits. Every number is checked, and only
//! offsets of notes are followed.

use std::{fs::File, io, os::unix::fs::FileExt};
use vedette_wire::body::Crash;

const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
/// `"FILE"`
const NT_FILE: u32 = 0x4649_4c45;
const ET_CORE: u16 = 4;
/// Maximum number of program headers; a core has one per mapping.
const HEADERS_MAX: u16 = 16_384;
/// Maximum size of all notes together.
const NOTES_BYTES_MAX: u64 = 4 << 20;

/// Reads the facts in the notes; false if the file is not a core. Cores of 32-bit and big-endian machines are not read.
pub(super) fn read(file: &File, crash: &mut Crash) -> io::Result<bool> {
    let mut head = [0; 64];
    match file.read_exact_at(&mut head, 0) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    let kind = [head[16], head[17]];
    // ELFDATA2LSB, ELFDATA2MSB
    let is_core = match head[5] {
        1 => kind == ET_CORE.to_le_bytes(),
        2 => kind == ET_CORE.to_be_bytes(),
        _ => false,
    };
    if head[..4] != *b"\x7fELF" || !is_core {
        return Ok(false);
    }
    // ELFCLASS64
    if head[4..6] != [2, 1] {
        return Ok(true);
    }
    let (Some(offset), Some(size), Some(count)) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56)) else {
        return Ok(false);
    };
    let length = file.metadata()?.len();
    if size < 56 {
        return Ok(true);
    }
    let (mut header, mut left) = ([0; 56], NOTES_BYTES_MAX);
    for index in 0..count.min(HEADERS_MAX) {
        let Some(at) = offset.checked_add(u64::from(index) * u64::from(size)) else { break };
        if file.read_exact_at(&mut header, at).is_err() {
            crash.truncated = true;
            break;
        }
        let (Some(kind), Some(start), Some(bytes)) = (u32_at(&header, 0), u64_at(&header, 8), u64_at(&header, 32))
        else {
            break;
        };
        if start.checked_add(bytes).is_none_or(|end| end > length) {
            crash.truncated = true;
        }
        if kind == PT_NOTE {
            let mut notes = vec![0; bytes.min(left).min(length.saturating_sub(start)) as usize];
            left -= notes.len() as u64;
            if file.read_exact_at(&mut notes, start).is_ok() {
                read_notes(&notes, crash);
            }
        }
    }
    Ok(true)
}

/// Notes: `namesz, descsz, type`, then name and descriptor, each padded to four bytes.
pub(super) fn read_notes(mut notes: &[u8], crash: &mut Crash) {
    let padded = |length: u32| (length as usize).checked_next_multiple_of(4);
    while let (Some(name), Some(size), Some(kind)) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8)) {
        let Some((name, room)) = padded(name).zip(padded(size)) else { return };
        let Some(rest) = notes.get(12..).and_then(|rest| rest.get(name..)) else { return };
        let Some(descriptor) = rest.get(..size as usize) else { return };
        match kind {
            NT_PRSTATUS => prstatus(descriptor, crash),
            NT_PRPSINFO => prpsinfo(descriptor, crash),
            NT_FILE => mapped_files(descriptor, crash),
            _ => {}
        }
        notes = rest.get(room..).unwrap_or_default();
    }
}

/// `struct elf_prstatus` of the crashed thread is the first: `pr_cursig` at 12.
fn prstatus(descriptor: &[u8], crash: &mut Crash) {
    if let Some(signal) = u16_at(descriptor, 12)
        && crash.signal.is_none()
    {
        crash.signal = Some(u32::from(signal));
    }
}

/// `struct elf_prpsinfo` on 64-bit machines: `pr_uid` at 16, `pr_pid` at 24, `pr_fname[16]` at 40, `pr_psargs[80]`.
fn prpsinfo(descriptor: &[u8], crash: &mut Crash) {
    let text = |from: usize, to: usize| {
        let field = descriptor.get(from..to)?;
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        Some(String::from_utf8_lossy(&field[..end]).trim_end().to_owned()).filter(|text| !text.is_empty())
    };
    crash.user_id = u32_at(descriptor, 16);
    crash.pid = u32_at(descriptor, 24);
    crash.process = text(40, 56);
    crash.cmd_line = text(56, 136);
}

/// `count, page size`, then `start, end, offset` of each mapping, then the paths: the first is the executable.
fn mapped_files(descriptor: &[u8], crash: &mut Crash) {
    let Some(count) = u64_at(descriptor, 0) else { return };
    let names = usize::try_from(count).ok().and_then(|count| count.checked_mul(24)?.checked_add(16));
    let Some(names) = names.and_then(|at| descriptor.get(at..)) else { return };
    let end = names.iter().position(|byte| *byte == 0).unwrap_or(names.len());
    if end > 0 {
        crash.path = Some(String::from_utf8_lossy(&names[..end]).into_owned());
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
