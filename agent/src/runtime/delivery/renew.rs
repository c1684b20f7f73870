//! Renews the certificate after two thirds of its life.

use super::WorkspaceClient;
use crate::{
    exit::VERSION,
    identity::{IdentityDir, signing_request},
    runtime::events::AgentEvents,
};
use anyhow::{Result, anyhow, bail};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use vedette_transport::Backoff;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest interval between checks: the clock may jump, and the file may be replaced.
const EXPIRY_POLL: Duration = Duration::from_secs(60);
/// First and longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Renews the certificate whenever it is due.
pub(in crate::runtime) async fn renew(
    identity: &IdentityDir,
    client: &WorkspaceClient,
    events: &AgentEvents,
) -> Infallible {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        if events.are_own_events_off() {
            client.prove(VERSION).await;
        }
        let wait = match due_in(identity) {
            Ok(due) if client.has_trial() || !due.is_zero() => due.clamp(PAUSE_MIN, EXPIRY_POLL),
            Ok(_) => match attempt(identity, client).await {
                Ok(()) => {
                    backoff.reset();
                    PAUSE_MIN
                }
                Err(why) => {
                    tracing::warn!(why = format!("{why:#}"), "the certificate cannot be renewed yet; trying again");
                    backoff.pause()
                }
            },
            Err(why) => {
                tracing::warn!(why = format!("{why:#}"), "the time to renew the certificate is unknown");
                EXPIRY_POLL
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn attempt(identity: &IdentityDir, client: &WorkspaceClient) -> Result<()> {
    let csr = signing_request(&*identity.key()?)?;
    let certificate = client.current().renew(csr).await?;
    let is_over = due_of(certificate.as_bytes())?.is_zero();
    let tried = client.try_certificate(certificate);
    tried.map_err(|err| anyhow!("the new certificate cannot be used: {}", err.reasons().join("; ")))?;
    if is_over {
        bail!("the new certificate expires too soon by this machine's clock; set the clock");
    }
    tracing::info!("certificate renewed; keeping the old one until the new one has delivered");
    Ok(())
}

/// Time until two thirds of the certificate's life have passed.
fn due_in(identity: &IdentityDir) -> Result<Duration> {
    due_of(&identity.read("cert.pem")?)
}

fn due_of(pem: &[u8]) -> Result<Duration> {
    let der = CertificateDer::from_pem_slice(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|err| anyhow!("{err}"))?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let due = from + (to - from) / 3 * 2;
    Ok(Duration::from_secs(due.saturating_sub(now).max(0).cast_unsigned()))
}
