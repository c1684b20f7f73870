//! TLS: 1.2 and 1.3, client certificates signed by our authority; a connection without one may only enroll.

use super::{OfPair, Peer, Receiver, router};
use crate::ca::PAIR;
use anyhow::{Context, Result};
use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
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
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A peer that does not finish its handshake is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections at the most.
const CONNECTIONS_MAX: usize = 10_000;
/// How often the files of certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Requests under way at a stop get so long.
const DRAIN: Duration = Duration::from_secs(5);

/// The server's side of TLS, from the files that `init` made.
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
    // Tests decode what was captured on the wire; a release keeps no keys, whatever the environment says.
    #[cfg(debug_assertions)]
    {
        config.key_log = Arc::new(rustls::KeyLogFile::new());
    }
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What a client may send of one batch, and of two, before it hears of it (RFC 9113 §5.2).
const WINDOW_BYTES: u32 = 2 << 20;
/// Of an HTTP/2 frame (RFC 9113 §4.2).
const FRAME_BYTES: u32 = 256 << 10;

/// The files that a configuration is made of, as they are on disk.
fn stamps(dir: &Path) -> [Option<(u64, i64, i64, u64)>; 3] {
    ["ca.pem", "server.pem", "server.key"].map(|name| {
        let meta = std::fs::metadata(dir.join(name)).ok()?;
        Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
    })
}

/// Accept until told to stop; then requests under way get a little time. Certificates are read again when they change:
/// new connections get the new ones.
pub(crate) async fn serve(
    listener: TcpListener,
    dir: PathBuf,
    tls: Arc<ServerConfig>,
    receiver: Arc<Receiver>,
    mut stop: watch::Receiver<bool>,
) {
    let router = router(receiver);
    let mut acceptor = TlsAcceptor::from(tls);
    let (mut known, mut look) = (stamps(&dir), tokio::time::interval(LOOK_EVERY));
    let mut complained = known;
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut open = tokio::task::JoinSet::new();
    loop {
        let accept = async {
            let permit = Arc::clone(&connections).acquire_owned().await.expect("never closed");
            listener.accept().await.map(|(socket, _)| (socket, permit))
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept => accepted,
            Some(_) = open.join_next() => continue,
            _ = look.tick() => {
                let now = stamps(&dir);
                if now != known {
                    match config(&dir) {
                        Ok(tls) => {
                            tracing::info!("certificates were read again");
                            (acceptor, known) = (TlsAcceptor::from(tls), now);
                        }
                        // Half of it may be written: it is looked at again.
                        Err(err) if complained != now => {
                            tracing::warn!(error = format!("{err:#}"), "new certificates cannot be used; the old ones stay");
                            complained = now;
                        }
                        Err(_) => {}
                    }
                }
                continue;
            }
        };
        match accepted {
            Ok((socket, permit)) => {
                let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
                open.spawn(async move {
                    connection(socket, acceptor, router, stop).await;
                    drop(permit);
                });
            }
            Err(err) => {
                // Out of descriptors, most likely: it passes when connections close.
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

async fn connection(socket: TcpStream, acceptor: TlsAcceptor, router: Router, mut stop: watch::Receiver<bool>) {
    let nodelay = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return tracing::debug!(error = %err, ?nodelay, "handshake failed"),
        Err(_) => return tracing::debug!("handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let of_pair = OfPair(certificate.is_some_and(is_of_pair));
    let router = router.layer(Extension(certificate.and_then(peer_of))).layer(Extension(of_pair));
    let service = TowerToHyperService::new(router);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(hyper_util::rt::TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .max_concurrent_streams(64)
        // A batch comes in one go, without waiting for the window to be opened again.
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        done = serving.as_mut() => return log_end(done),
        _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
    }
    log_end(serving.await);
}

fn log_end(done: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(err) = done {
        tracing::debug!(error = %err, "connection ended");
    }
}

/// Whether our authority signed a certificate for the other workspace of the pair; names of agents are never like it.
fn is_of_pair(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    certificate.subject().iter_common_name().any(|name| name.as_str() == Ok(PAIR))
}

/// Organization and agent from the subject of a certificate that our authority signed.
fn peer_of(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let organization = subject.iter_organization().next()?.as_str().ok()?.parse().ok()?;
    let agent = subject.iter_common_name().next()?.as_str().ok()?.parse().ok()?;
    Some(Peer { organization, agent })
}
