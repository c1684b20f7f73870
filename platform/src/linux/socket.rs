//! The local socket: a Unix socket in a directory, whose permissions decide who may connect.

use super::files::file_identity;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::{
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixStream as BlockingStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};

/// File name of the socket.
const NAME: &str = "agent.sock";
/// Time limit for a reader.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept: most likely out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Passes a path to the socket that fits into `sun_path` (unix(7), 108 bytes with its NUL), however deep the directory is.
fn with_socket_path<T>(dir: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let open = std::fs::File::open(dir)?;
    let path = dir.join(NAME);
    if path.as_os_str().len() < 108 {
        return work(&path);
    }
    // A process that is not dumpable can open `/proc/self/fd` only as root.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let done = work(&Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())).join(NAME));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    done
}

/// A listening socket that writes a report to whoever connects.
pub struct LocalSocket {
    dir: PathBuf,
    listener: UnixListener,
}

impl LocalSocket {
    /// Binds the socket in a directory. The caller's lock excludes another process, so an existing socket is stale.
    ///
    /// # Errors
    /// Those of unlink(2), bind(2) and chmod(2).
    pub fn bind(dir: &Path) -> io::Result<Self> {
        super::files::create_private_dir(dir)?;
        let listener = with_socket_path(dir, |path| {
            match std::fs::remove_file(path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o660))?;
            Ok(listener)
        })?;
        Ok(Self { dir: dir.to_owned(), listener })
    }

    /// Whether the socket's file was removed.
    pub fn is_gone(&self) -> bool {
        file_identity(&self.dir.join(NAME)).is_none()
    }

    /// Waits for a reader.
    pub async fn accept(&self) -> Reader {
        loop {
            match self.listener.accept().await {
                Ok((socket, _)) => return Reader(socket),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// A connection.
pub struct Reader(UnixStream);

impl Reader {
    /// Writes a report, unless the reader is too slow.
    pub async fn write(mut self, report: &[u8]) {
        drop(tokio::time::timeout(WRITE_TIMEOUT, self.0.write_all(report)).await);
    }
}

/// Reads the report of the process that listens in a directory; absent if none does.
///
/// # Errors
/// Those of connect(2) and read(2).
pub fn read_socket(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut socket = match with_socket_path(dir, |path| BlockingStream::connect(path)) {
        Ok(socket) => socket,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(err) => return Err(err),
    };
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
