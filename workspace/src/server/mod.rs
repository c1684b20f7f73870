//! The listener: connections over TLS, their limits, and their end. A connection without a client certificate may only enroll.
//!
//! Each phase of a connection has a time limit: handshake, first request, silence.

mod connections;
mod tls;

pub(crate) use connections::raise_file_limit;
pub(crate) use tls::Certificates;

use crate::api;
use axum::{Extension, Router};
use connections::{Activity, Slot, Slots, Watched, network};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tls::CERTIFICATE_POLL;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Time limit of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limits of a connection without a certificate, for silence and in total: enrolling takes a second.
const UNKNOWN_IDLE: Duration = Duration::from_secs(10);
const UNKNOWN_AGE_MAX: Duration = Duration::from_secs(60);
/// Time limit for an agent's silence; polls are held for less.
const IDLE: Duration = Duration::from_secs(150);
/// Time limit for the head of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Grace for requests under way at a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Flow-control windows of a stream and of a connection (RFC 9113 §5.2): one batch, and two.
const WINDOW_BYTES: u32 = 2 << 20;
/// Maximum size of an HTTP/2 frame (RFC 9113 §4.2).
const FRAME_BYTES: u32 = 256 << 10;

/// Accepts connections until a stop; then requests under way get a grace. Changed certificates apply to new connections.
pub(crate) async fn serve(
    listener: TcpListener,
    mut certificates: Certificates,
    router: Router,
    file_limit: u64,
    mut stop: watch::Receiver<bool>,
) {
    let mut poll = tokio::time::interval(CERTIFICATE_POLL);
    let slots = Arc::new(Slots::new(file_limit));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = poll.tick() => {
                certificates.reload();
                continue;
            }
        };
        match accepted {
            Ok((socket, peer)) => {
                // IPv4 on an IPv6 socket is the same address.
                let peer = peer.ip().to_canonical();
                let (acceptor, router, stop) = (certificates.acceptor(), router.clone(), stop.clone());
                let slots = Arc::clone(&slots);
                connections.spawn(async move {
                    let Some(slot) = slots.unknown(peer).await else {
                        return tracing::debug!(%peer, "too many connections without a certificate; this one is closed");
                    };
                    connection((socket, peer), acceptor, router, (slots, slot), stop).await;
                });
            }
            Err(err) => {
                // Most likely out of descriptors, until connections close.
                tracing::warn!(error = %err, "cannot accept a connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(
            "closing connections that are still open some time after the stop; agents send again what was not acknowledged"
        );
    }
}

async fn connection(
    (socket, peer): (TcpStream, IpAddr),
    acceptor: TlsAcceptor,
    router: Router,
    (slots, unknown_slot): (Arc<Slots>, Slot),
    stop: watch::Receiver<bool>,
) {
    let nodelay = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket));
    let stream = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return tracing::debug!(error = %err, ?nodelay, "handshake failed"),
            Err(_) => return tracing::debug!("handshake took too long"),
        },
        () = unknown_slot.give_way.notified() => {
            return tracing::debug!("handshake closed to make room for a newer connection from its address");
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let (is_pair, agent) = (certificate.is_some_and(tls::is_pair), certificate.and_then(tls::agent_of));
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let router = router.layer(Extension(api::Connection { from: network(peer), agent, is_pair }));
    let (slot, idle, age_max) = match agent {
        Some(key) => {
            let Some(known) = slots.known(key).await else {
                return tracing::warn!(agent = %key.agent, "too many connections; this one is closed");
            };
            drop(unknown_slot);
            (known, IDLE, None)
        }
        None if is_pair => (unknown_slot, IDLE, None),
        None => (unknown_slot, UNKNOWN_IDLE, Some(UNKNOWN_AGE_MAX)),
    };
    let activity = Activity::new();
    let silent = activity.clone();
    let aged = async {
        match age_max {
            Some(most) => tokio::time::sleep(most).await,
            None => std::future::pending().await,
        }
    };
    let io = TokioIo::new(Watched { stream, activity });
    tokio::select! {
        done = exchange(io, is_http2, router, stop) => log_end(done),
        () = silent.silence(idle) => tracing::debug!("connection was idle for too long"),
        () = aged => tracing::debug!("connection without a certificate was open for too long"),
        () = slot.give_way.notified() => tracing::debug!("connection closed for newer ones of its peer"),
    }
}

/// Serves the requests of a connection until it ends, or until a stop.
async fn exchange(
    io: TokioIo<Watched<TlsStream<TcpStream>>>,
    is_http2: bool,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let service = TowerToHyperService::new(router);
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    tokio::pin!(stopped);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(hyper_util::rt::TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(60)))
            .max_concurrent_streams(64)
            // A whole batch fits into the window.
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES);
        let mut serving = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            done = serving.as_mut() => return done,
            () = &mut stopped => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
        let mut serving = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            done = serving.as_mut() => return done,
            () = &mut stopped => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    }
}

fn log_end(done: hyper::Result<()>) {
    if let Err(err) = done {
        tracing::debug!(error = %err, "connection ended");
    }
}
