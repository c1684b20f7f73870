//! Answers `vedette status` over the status socket.

use super::{Report, StatusSource};
use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::Mutex;
use vedette_platform::{LocalSocket, read_socket};

/// Poll interval for the socket's file.
const SOCKET_POLL: Duration = Duration::from_secs(1);

/// Answers each connection with a report.
pub(crate) struct Server {
    socket_dir: PathBuf,
    socket: Mutex<LocalSocket>,
    source: StatusSource,
}

impl Server {
    /// Binds the socket in its directory.
    pub(crate) fn bind(socket_dir: &Path, source: StatusSource) -> io::Result<Self> {
        let socket = Mutex::new(LocalSocket::bind(socket_dir)?);
        Ok(Self { socket_dir: socket_dir.to_owned(), socket, source })
    }

    /// Serves for ever; creates the socket again if it is removed.
    pub(crate) async fn serve(&self) -> Infallible {
        let mut socket = self.socket.lock().await;
        let mut poll = tokio::time::interval(SOCKET_POLL);
        loop {
            let reader = tokio::select! {
                reader = socket.accept() => Some(reader),
                _ = poll.tick() => None,
            };
            if let Some(reader) = reader {
                reader.write(&serde_json::to_vec(&self.source.report()).expect("reports serialize")).await;
                continue;
            }
            if socket.is_gone() {
                match LocalSocket::bind(&self.socket_dir) {
                    Ok(other) => {
                        tracing::warn!("the status socket was removed; it is created again");
                        *socket = other;
                    }
                    Err(err) => tracing::debug!(error = %err, "the status socket cannot be created again"),
                }
            }
        }
    }
}

/// Queries the agent whose socket is in this directory; absent if none runs.
pub(crate) fn ask(socket_dir: &Path) -> io::Result<Option<Report>> {
    let Some(bytes) = read_socket(socket_dir)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}
