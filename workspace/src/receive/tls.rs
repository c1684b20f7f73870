//! TLS 1.2 and 1.3 with client certificates of this authority; a connection without one may only enroll.
//!
//! Each phase of a connection has a time limit: handshake, first request, silence.

use super::{
    From, OfPair, Peer, Receiver,
    connections::{Activity, Place, Places, Watched, network},
    router,
};
use crate::ca::PAIR;
use anyhow::{Context, Result};
use axum::{Extension, Router};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Time limit of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limits of a connection without a certificate, for silence and in total: enrolling takes a second.
const UNKNOWN_IDLE: Duration = Duration::from_secs(10);
const UNKNOWN_AGE_MAX: Duration = Duration::from_secs(60);
/// Time limit for an agent's silence; polls are held for less.
const IDLE: Duration = Duration::from_secs(150);
/// Time limit for the head of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Poll interval for changed certificates.
const CERTIFICATE_POLL: Duration = Duration::from_secs(1);
/// Grace for requests under way at a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The server's TLS configuration, from the files of `init`.
pub(crate) fn config(dir: &Path) -> Result<Arc<ServerConfig>> {
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| format!("{}/{name}", dir.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read("ca.pem")?) {
        roots.add(certificate?)?;
    }
    let provider = CryptoProvider::get_default().expect("main installs it").clone();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read("server.pem")?).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")?)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain?, key)?;
    // Tests decode captured traffic; a release build ignores this variable.
    #[cfg(debug_assertions)]
    {
        config.key_log = Arc::new(rustls::KeyLogFile::new());
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Flow-control windows of a stream and of a connection (RFC 9113 §5.2): one batch, and two.
const WINDOW_BYTES: u32 = 2 << 20;
/// Maximum size of an HTTP/2 frame (RFC 9113 §4.2).
const FRAME_BYTES: u32 = 256 << 10;

/// Fingerprints of the certificate files.
fn stamps(dir: &Path) -> [Option<(u64, i64, i64, u64)>; 3] {
    ["ca.pem", "server.pem", "server.key"].map(|name| {
        let meta = std::fs::metadata(dir.join(name)).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    })
}

/// Accepts connections until a stop; then requests under way get a grace. Changed certificates apply to new connections.
pub(crate) async fn serve(
    listener: TcpListener,
    dir: PathBuf,
    tls: Arc<ServerConfig>,
    receiver: Arc<Receiver>,
    file_limit: u64,
    mut stop: watch::Receiver<bool>,
) {
    let router = router(receiver);
    let mut acceptor = TlsAcceptor::from(tls);
    let (mut known, mut look) = (stamps(&dir), tokio::time::interval(CERTIFICATE_POLL));
    let mut complained = known;
    let places = Arc::new(Places::new(file_limit));
    let mut open = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
            _ = look.tick() => {
                let now = stamps(&dir);
                if now != known {
                    match config(&dir) {
                        Ok(tls) => {
                            tracing::info!("certificates reloaded");
                            (acceptor, known) = (TlsAcceptor::from(tls), now);
                        }
                        // The files may be half written: try again later.
                        Err(err) if complained != now => {
                            tracing::warn!(error = format!("{err:#}"), "new certificates cannot be used; keeping the old ones");
                            complained = now;
                        }
                        Err(_) => {}
                    }
                }
                continue;
            }
        };
        match accepted {
            Ok((socket, from)) => {
                // IPv4 on an IPv6 socket is the same address.
                let from = from.ip().to_canonical();
                let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
                let places = Arc::clone(&places);
                open.spawn(async move {
                    let Some(place) = places.unknown(from).await else {
                        return tracing::debug!(%from, "too many connections without a certificate; this one is closed");
                    };
                    let router = router.layer(Extension(From(network(from))));
                    connection(socket, acceptor, router, (places, place), stop).await;
                });
            }
            Err(err) => {
                // Most likely out of descriptors, until connections close.
                tracing::warn!(error = %err, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, async { while open.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("requests under way were cut off");
    }
}

async fn connection(
    socket: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    (places, unknown): (Arc<Places>, Place),
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
        () = unknown.give_way.notified() => return tracing::debug!("handshake closed for newer ones of its address"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let of_pair = certificate.is_some_and(is_of_pair);
    let peer = certificate.and_then(peer_of);
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let router = router.layer(Extension(peer)).layer(Extension(OfPair(of_pair)));
    let (place, idle, age_max) = match peer {
        Some(peer) => {
            let Some(known) = places.known(peer).await else {
                return tracing::warn!(agent = %peer.agent, "too many connections; this one is closed");
            };
            drop(unknown);
            (known, IDLE, None)
        }
        None if of_pair => (unknown, IDLE, None),
        None => (unknown, UNKNOWN_IDLE, Some(UNKNOWN_AGE_MAX)),
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
        () = place.give_way.notified() => tracing::debug!("connection closed for newer ones of its peer"),
    }
}

/// Serves the requests of a connection until it ends, or until a stop.
async fn exchange(
    io: TokioIo<Watched<TlsStream<TcpStream>>>,
    is_http2: bool,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
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

fn log_end(done: Result<(), hyper::Error>) {
    if let Err(err) = done {
        tracing::debug!(error = %err, "connection ended");
    }
}

/// Whether a certificate is the other workspace's of the pair; names of agents never look like it.
fn is_of_pair(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(PAIR))
}

/// Organization and agent in the subject of a certificate.
fn peer_of(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let organization = subject.iter_organization().next()?.as_str().ok()?.parse().ok()?;
    let agent = subject.iter_common_name().next()?.as_str().ok()?.parse().ok()?;
    Some(Peer { organization, agent })
}
