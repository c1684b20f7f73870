//! utmp(5): records of a fixed size. It is 384 bytes where the format has 32-bit times (x86-64 and 32-bit platforms; glibc
//! `bits/types/struct_utmp`, `__WORDSIZE_TIME64_COMPAT32`), and 400 bytes elsewhere.

use vedette_wire::body::{Change, Session};

const RECORD_BYTES: usize = if cfg!(target_arch = "x86_64") || cfg!(target_pointer_width = "32") { 384 } else { 400 };
const USER_PROCESS: u16 = 7;

/// Sessions of users; ignores a partial record at the end.
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
    let (display, remote_host) = host.as_deref().map_or((None, None), display_and_host);
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

/// Splits `ut_host` into display and remote host. The field holds a host, a display, or what a terminal multiplexer writes:
///
/// ```text
/// 192.0.2.7    192.0.2.7:S.1 (screen)    192.0.2.7 via mosh [99]    192.0.2.7:0 (XDMCP)
/// :0           :pts/0:S.0 (screen)       tmux(4242).%0
/// ```
pub(super) fn display_and_host(field: &str) -> (Option<String>, Option<String>) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_display = |text: &str| match text.split_once('.') {
        Some((display, screen)) => is_number(display) && is_number(screen),
        None => is_number(text),
    };
    if field.strip_prefix(':').is_some_and(is_display) {
        return (Some(field.to_owned()), None);
    }
    let host = field.split_once(" via mosh").map_or(field, |(host, _)| host);
    let host = host.rsplit_once(":S.").filter(|(_, window)| is_number(window)).map_or(host, |(host, _)| host);
    let is_address = |host: &str| host.split('%').next().is_some_and(|host| host.parse::<std::net::IpAddr>().is_ok());
    if is_address(host) {
        return (None, Some(host.to_owned()));
    }
    let (host, display) = match host.split_once(':') {
        Some((host, display)) if is_display(display) => (host, Some(format!(":{display}"))),
        _ => (host, None),
    };
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_name = !host.is_empty() && host.bytes().all(|byte| is_name_byte(byte) || byte >= 0x80);
    if is_name { (display, Some(host.to_owned())) } else { (None, None) }
}

fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    Some(String::from_utf8_lossy(&field[..end]).into_owned())
}
