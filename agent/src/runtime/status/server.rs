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
    state_dir: PathBuf,
    socket: Mutex<LocalSocket>,
    source: StatusSource,
}

impl Server {
    /// Binds the socket in the state directory.
    pub(crate) fn bind(state_dir: &Path, source: StatusSource) -> io::Result<Self> {
        let socket = Mutex::new(LocalSocket::bind(state_dir)?);
        Ok(Self { state_dir: state_dir.to_owned(), socket, source })
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
                match LocalSocket::bind(&self.state_dir) {
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

/// Asks the agent that uses this state directory; absent if none runs.
pub(crate) fn ask(state_dir: &Path) -> io::Result<Option<Report>> {
    let Some(bytes) = read_socket(state_dir)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other)
}
