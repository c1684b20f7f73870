//! Writes numbered lines at a rate, with rotation; what arrived is counted by the numbers.

use anyhow::Result;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

/// Rotation of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// None.
    Never,
    /// Renamed and recreated (logrotate's `create`) after a number of lines.
    Rename(u64),
    /// Copied and truncated between two lines (logrotate's `copytruncate`) after a number of lines.
    CopyTruncate(u64),
}

/// Number of rotated files to keep.
const KEPT: usize = 12;
/// Interval of bursts of lines.
const BURST: Duration = Duration::from_millis(10);

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<Result<Written>>,
}

/// Record of what was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Number of lines.
    pub lines: u64,
    /// The number after the last line of each burst, and the time just before it was written, microseconds UTC.
    pub bursts: Vec<(u64, i64)>,
}

/// The line with a number: 200 to 250 bytes, the number first in its message, the fingerprint incompressible.
pub fn line(number: u64) -> String {
    let mut random = fastrand::Rng::with_seed(number);
    let fingerprint: String = (0..43).map(|_| random.alphanumeric()).collect();
    let user = ["root", "deploy", "postgres", "www-data", "backup"][random.usize(..5)];
    format!(
        "<38>1 2026-11-25T10:00:00.000000Z gen sshd {} - - {number:012} Accepted publickey for {user} from 192.0.2.{} port \
         {} ssh2: RSA SHA256:{fingerprint} session {:08x} opened by (uid=0)\n",
        1000 + number % 9000,
        random.u8(1..),
        random.u16(20_000..),
        random.u32(..),
    )
}

impl Writer {
    /// Starts at a rate in lines per second.
    pub fn start(path: &Path, rate: u64, rotation: Rotation) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, path) = (Arc::clone(&stop), Arc::clone(&written), path.to_owned());
        let thread = std::thread::spawn(move || write(&path, rate, rotation, &stopped, &count));
        Self { stop, written, thread }
    }

    /// Number of lines so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Stops; returns the number of lines.
    ///
    /// # Errors
    /// Lines could not be written.
    pub fn stop(self) -> Result<u64> {
        Ok(self.stop_with_bursts()?.lines)
    }

    /// Stops; returns what was written when.
    ///
    /// # Errors
    /// Lines could not be written.
    pub fn stop_with_bursts(self) -> Result<Written> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the writer does not panic")
    }
}

fn write(path: &Path, rate: u64, rotation: Rotation, stop: &AtomicBool, written: &AtomicU64) -> Result<Written> {
    let mut bursts = Vec::new();
    let mut file = File::options().create(true).append(true).open(path)?;
    let (began, mut number, mut rotated) = (Instant::now(), 0, 0);
    while !stop.load(Ordering::Acquire) {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        let mut text = String::new();
        while number < due {
            text.push_str(&line(number));
            number += 1;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        bursts.push((number, i64::try_from(now.as_micros())?));
        file.write_all(text.as_bytes())?;
        written.store(number, Ordering::Release);
        match rotation {
            Rotation::Rename(lines) if number - rotated >= lines => {
                rotated = number;
                shift(path)?;
                fs::rename(path, generation(path, 1))?;
                file = File::options().create(true).append(true).open(path)?;
            }
            Rotation::CopyTruncate(lines) if number - rotated >= lines => {
                rotated = number;
                shift(path)?;
                fs::copy(path, generation(path, 1))?;
                file.set_len(0)?;
            }
            _ => {}
        }
        std::thread::sleep(BURST);
    }
    Ok(Written { lines: number, bursts })
}

fn generation(path: &Path, number: usize) -> PathBuf {
    PathBuf::from(format!("{}.{number}", path.display()))
}

fn shift(path: &Path) -> Result<()> {
    for number in (1..KEPT).rev() {
        let from = generation(path, number);
        if from.exists() {
            fs::rename(from, generation(path, number + 1))?;
        }
    }
    Ok(())
}
