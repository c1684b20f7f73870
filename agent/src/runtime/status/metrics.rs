//! Metrics over HTTP on loopback: `GET /metrics`.

use super::{
    StatusSource,
    prometheus::{CONTENT_TYPE, render},
};
use std::{convert::Infallible, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Maximum size of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Time limit for a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of requests at once; more of them wait.
const AT_ONCE: usize = 4;
/// Pause after a failed accept: most likely out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests for metrics.
pub(crate) struct MetricsServer {
    listener: TcpListener,
    source: StatusSource,
}

impl MetricsServer {
    /// Listens on a loopback address.
    pub(crate) async fn bind(address: SocketAddr, source: StatusSource) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, source })
    }

    /// Serves for ever.
    pub(crate) async fn serve(&self) -> Infallible {
        // Dropped with this task.
        let mut open = JoinSet::new();
        loop {
            if open.len() >= AT_ONCE {
                open.join_next().await;
            }
            let Ok((socket, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let source = self.source.clone();
            open.spawn(async move {
                if let Ok(Err(err)) = tokio::time::timeout(TIMEOUT, answer(socket, &source)).await {
                    tracing::debug!(error = %err, "a request for metrics ended early");
                }
            });
        }
    }
}

/// Reads the head of one request (RFC 9112 §2.1), answers it and closes the connection.
async fn answer(mut socket: TcpStream, source: &StatusSource) -> io::Result<()> {
    let (mut head, mut block) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = socket.read(&mut block).await?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(&block[..count]);
    }
    let is_metrics = head.starts_with(b"GET /metrics HTTP/1.") || head.starts_with(b"GET /metrics?");
    let (status, body) = if is_metrics {
        ("200 OK", render(&source.report()))
    } else {
        ("404 Not Found", "there is nothing here but GET /metrics\n".to_owned())
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.shutdown().await
}
