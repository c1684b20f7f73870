//! Renews the certificate after two thirds of its life.

use super::{VERSION, events::AgentEvents, post::WorkspaceClient};
use crate::identity::{IdentityDir, signing_request};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest interval between checks: the clock may jump, and the file may be replaced.
const EXPIRY_POLL: Duration = Duration::from_secs(60);
/// Shortest and longest pause between attempts.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(3600);

/// Renews the certificate whenever it is due.
pub(super) async fn renew(identity: IdentityDir, post: Arc<WorkspaceClient>, events: Arc<AgentEvents>) -> Infallible {
    let mut pause = *PAUSE.start();
    loop {
        if events.is_silent() {
            post.prove(VERSION).await;
        }
        let wait = match due_in(&identity) {
            Ok(due) if post.is_trying() || !due.is_zero() => due.clamp(*PAUSE.start(), EXPIRY_POLL),
            Ok(_) => match attempt(&identity, &post).await {
                Ok(()) => {
                    pause = *PAUSE.start();
                    pause
                }
                Err(why) => {
                    tracing::warn!(why, "the certificate cannot be renewed yet; trying again");
                    pause = (pause * 2).min(*PAUSE.end());
                    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
                }
            },
            Err(why) => {
                tracing::warn!(why, "the time to renew the certificate is unknown");
                EXPIRY_POLL
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn attempt(identity: &IdentityDir, post: &WorkspaceClient) -> Result<(), String> {
    let key = identity.key().map_err(|err| format!("{err:#}"))?;
    let csr = signing_request(&key).map_err(|err| format!("{err:#}"))?;
    let certificate = post.current().renew(csr).await?;
    let is_over = due_of(certificate.as_bytes())?.is_zero();
    post.try_certificate(certificate).map_err(|err| format!("the new certificate cannot be used: {err:?}"))?;
    if is_over {
        return Err("the new certificate expires too soon by this machine's clock; set the clock".to_owned());
    }
    tracing::info!("certificate renewed; keeping the old one until the new one has delivered");
    Ok(())
}

/// Time until two thirds of the certificate's life have passed.
fn due_in(identity: &IdentityDir) -> Result<Duration, String> {
    due_of(&identity.read("cert.pem").map_err(|err| format!("{err:#}"))?)
}

fn due_of(pem: &[u8]) -> Result<Duration, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|err| err.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|err| err.to_string())?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let due = from + (to - from) / 3 * 2;
    Ok(Duration::from_secs(due.saturating_sub(now).max(0).cast_unsigned()))
}
