//! Generates a syslog file. Equal sizes give equal files. Each line has 200 to 250 bytes, and a program name such as sshd, sudo
//! or nginx.

use anyhow::Result;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

const SEED: u64 = 20_261_123;
const APPS: [&str; 6] = ["sshd", "sudo", "systemd", "CRON", "nginx", "app"];
const WORDS: [&str; 24] = [
    "accepted",
    "connection",
    "from",
    "user",
    "session",
    "opened",
    "closed",
    "request",
    "completed",
    "status",
    "unit",
    "started",
    "job",
    "finished",
    "upstream",
    "client",
    "timeout",
    "retry",
    "cache",
    "miss",
    "token",
    "refresh",
    "queue",
    "worker",
];

/// Writes at least `bytes` bytes; the same lines each time.
///
/// # Errors
/// The file cannot be written.
pub fn generate(path: &Path, bytes: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let (mut written, mut time, mut line) = (0, 0_u64, String::new());
    while written < bytes {
        use std::fmt::Write as _;
        line.clear();
        time += random.u64(0..20_000);
        let (seconds, micros) = (time / 1_000_000, time % 1_000_000);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            line,
            "2026-11-{:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00 web{} {}[{}]: ",
            1 + seconds / 86_400 % 28,
            random.u32(1..4),
            APPS[random.usize(0..APPS.len())],
            random.u32(300..40_000)
        )?;
        let length = random.usize(199..250);
        while line.len() < length {
            match random.u8(0..4) {
                0 => write!(line, "id={:08x} ", random.u32(..))?,
                1 => write!(line, "{}.{}.{}.{} ", 10, random.u8(..), random.u8(..), random.u8(..))?,
                _ => write!(line, "{} ", WORDS[random.usize(0..WORDS.len())])?,
            }
        }
        line.truncate(length);
        line.push('\n');
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
    }
    out.flush()?;
    Ok(())
}
