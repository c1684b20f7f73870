//! Metrics over HTTP on loopback: `GET /metrics`.

use super::{
    StatusSource,
    prometheus::{CONTENT_TYPE, render},
};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE as TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, io, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};

/// Maximum size of a request's head; hyper's minimum.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Time limit for the head of a request. A scraper on this machine sends it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Time limit for a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of connections; further ones wait.
const CONNECTIONS_MAX: usize = 32;
/// Pause after a failed accept: most likely out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause before the address is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(10);

/// Answers requests for metrics, for ever. The agent works on while another program has the address.
pub(crate) async fn serve(address: SocketAddr, source: StatusSource) -> Infallible {
    let mut is_reported = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(err) if !is_reported => {
                tracing::error!(%address, error = %err, "cannot listen on metrics.listen; trying again every 10 s; choose a free port if another program has this one");
                is_reported = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_PAUSE).await;
    };
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "serving metrics");
    // Dropped with this task.
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= CONNECTIONS_MAX {
            open.join_next().await;
        }
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let source = source.clone();
        open.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(socket), service_fn(|request| answer(request, &source)));
            if let Ok(Err(err)) = tokio::time::timeout(TIMEOUT, connection).await {
                tracing::debug!(error = %err, "a request for metrics ended early");
            }
        });
    }
}

/// Answers one request; hyper leaves the body of an answer to HEAD out.
async fn answer(request: Request<Incoming>, source: &StatusSource) -> io::Result<Response<String>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, content_type, body) = match (request.uri().path(), is_read) {
        ("/metrics", true) => (StatusCode::OK, CONTENT_TYPE, render(&source.report())),
        ("/metrics", false) => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there is nothing here but GET /metrics\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(TYPE, HeaderValue::from_static(content_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}
