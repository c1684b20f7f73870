//! utmp(5): fixed records, on x86-64 and every other platform with 32-bit times in it 384 bytes long (glibc
//! `bits/types/struct_utmp`, `__WORDSIZE_TIME64_COMPAT32`), elsewhere 400.

use vedette_wire::body::{Change, Session};

const RECORD_BYTES: usize = if cfg!(target_arch = "x86_64") || cfg!(target_pointer_width = "32") { 384 } else { 400 };
const USER_PROCESS: u16 = 7;

/// The sessions of users; a torn record at the end is left out.
pub(super) fn sessions(bytes: &[u8]) -> impl Iterator<Item = Session> {
    bytes.chunks_exact(RECORD_BYTES).filter_map(session)
}

fn session(record: &[u8]) -> Option<Session> {
    if u16::from_le_bytes([record[0], record[1]]) != USER_PROCESS {
        return None;
    }
    let pid = u32::from_le_bytes(record[4..8].try_into().ok()?);
    let line = text(&record[8..40]);
    let user = text(&record[44..76]).filter(|user| !user.is_empty())?;
    let host = text(&record[76..332]).filter(|host| !host.is_empty());
    let seconds = if RECORD_BYTES == 384 {
        i64::from(u32::from_le_bytes(record[340..344].try_into().ok()?))
    } else {
        i64::from_le_bytes(record[344..352].try_into().ok()?)
    };
    let terminal = line.filter(|line| !line.is_empty());
    // A display such as `:0` stands where a remote host would.
    let (display, remote_host) = match host {
        Some(host) if host.starts_with(':') => (Some(host), None),
        other => (None, other),
    };
    Some(Session {
        change: Change::Snapshot,
        snapshot: None,
        id: format!("{}/{pid}/{seconds}", terminal.as_deref().unwrap_or("-")),
        user,
        user_id: None,
        terminal,
        display,
        remote_host,
        since: seconds.checked_mul(1_000_000_000),
        service: None,
        class: None,
        source: "utmp".to_owned(),
        leader: Some(pid),
    })
}

fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    Some(String::from_utf8_lossy(&field[..end]).into_owned())
}
