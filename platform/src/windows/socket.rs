//! The local socket: a named pipe, whose rights decide who may connect. Its name is random and stands in a file of the private
//! directory, so that nobody else can take the name before, or be taken for the agent.
//!
//! A closed pipe drops what the reader has not read. A report therefore has its length before it (4 bytes, little-endian), and
//! the writer waits until the reader closes the pipe.

use super::security::{Descriptor, PRIVATE_OBJECT};
use std::{
    fs::File,
    io::{self, Read},
    os::windows::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::windows::named_pipe::{NamedPipeServer, ServerOptions},
    sync::Mutex,
};
use windows_sys::Win32::{Foundation::ERROR_PIPE_BUSY, Storage::FileSystem::SECURITY_IDENTIFICATION};

/// Time limit for a reader.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept, and before a busy pipe is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum size of a report.
const REPORT_BYTES_MAX: u32 = 64 << 20;

/// File with the name of the pipe.
const NAME_FILE: &str = "agent.pipe";

/// A random name.
fn new_name() -> String {
    // Each state is keyed with random numbers of the system.
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    format!(r"\\.\pipe\vedette-{:016x}{:016x}", random(), random())
}

/// Name of the pipe of a directory; absent if there never was one.
fn name(dir: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(dir.join(NAME_FILE)) {
        Ok(name) => Ok(Some(name)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// A listening socket that writes a report to whoever connects.
pub struct LocalSocket {
    dir: PathBuf,
    name: String,
    /// The instance that the next reader connects to.
    next: Mutex<NamedPipeServer>,
}

fn instance(name: &str, is_first: bool) -> io::Result<NamedPipeServer> {
    let descriptor = Descriptor::for_this_user(PRIVATE_OBJECT)?;
    let mut attributes = descriptor.attributes();
    let mut options = ServerOptions::new();
    options.first_pipe_instance(is_first).reject_remote_clients(true);
    // SAFETY: the attributes and their descriptor live until the call returns.
    #[expect(unsafe_code, reason = "tokio takes the attributes as a pointer")]
    unsafe {
        options.create_with_security_attributes_raw(name, (&raw mut attributes).cast())
    }
}

impl LocalSocket {
    /// Creates the pipe of a directory.
    ///
    /// # Errors
    /// Those of `CreateNamedPipe`, and those of [`super::write_private`].
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let name = new_name();
        let next = Mutex::new(instance(&name, true)?);
        super::write_private(dir, NAME_FILE, name.as_bytes())?;
        Ok(Self { dir: dir.to_owned(), name, next })
    }

    /// Whether the file with the pipe's name was removed or replaced.
    pub fn is_gone(&self) -> bool {
        !name(&self.dir).is_ok_and(|name| name.as_ref() == Some(&self.name))
    }

    /// Waits for a reader.
    pub async fn accept(&self) -> Reader {
        let mut next = self.next.lock().await;
        loop {
            if next.connect().await.is_ok()
                && let Ok(other) = instance(&self.name, false)
            {
                return Reader(std::mem::replace(&mut next, other));
            }
            // The instance may be in any state.
            if let Ok(other) = instance(&self.name, false) {
                *next = other;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A connection.
pub struct Reader(NamedPipeServer);

impl Reader {
    /// Writes a report, unless the reader is too slow.
    pub async fn write(mut self, report: &[u8]) {
        let Ok(length) = u32::try_from(report.len()) else { return };
        let written = async {
            self.0.write_all(&length.to_le_bytes()).await?;
            self.0.write_all(report).await?;
            // Ends when the reader closes the pipe.
            self.0.read(&mut [0]).await
        };
        drop(tokio::time::timeout(WRITE_TIMEOUT, written).await);
    }
}

/// Reads the report of the process that listens for a directory; absent if none does.
///
/// # Errors
/// Those of `CreateFile` and `ReadFile`; `TimedOut` if no report comes.
pub fn read_socket(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(name) = name(dir)? else { return Ok(None) };
    let Some(pipe) = connect(&name)? else { return Ok(None) };
    // A blocking read of a pipe has no time limit.
    let (sender, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(report(pipe)));
    answer.recv_timeout(READ_TIMEOUT).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(Some)
}

fn connect(name: &str) -> io::Result<Option<File>> {
    let began = Instant::now();
    loop {
        // The server may see who connects, but not act as it.
        match File::options().read(true).write(true).security_qos_flags(SECURITY_IDENTIFICATION).open(name) {
            Ok(pipe) => return Ok(Some(pipe)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) if err.raw_os_error() == Some(ERROR_PIPE_BUSY.cast_signed()) && began.elapsed() < READ_TIMEOUT => {
                std::thread::sleep(PAUSE);
            }
            Err(err) => return Err(err),
        }
    }
}

fn report(mut pipe: File) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    pipe.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > REPORT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the report is too large"));
    }
    let mut bytes = vec![0; length as usize];
    pipe.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_reader_gets_a_whole_report() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().to_owned();
        assert_eq!(read_socket(&dir).expect("a missing pipe is not an error"), None);
        let socket = LocalSocket::bind(&dir).expect("binds");
        let report = vec![b'x'; 200_000];
        for _ in 0..3 {
            let dir = dir.clone();
            let reading = tokio::task::spawn_blocking(move || read_socket(&dir));
            socket.accept().await.write(&report).await;
            assert_eq!(reading.await.expect("no panic").expect("reads").as_deref(), Some(report.as_slice()));
        }
    }
}
