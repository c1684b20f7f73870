//! Renews the agent's certificate after two thirds of its life, while it runs and before it expires.

use super::{VERSION, own::OwnRecords, post::Reloading};
use crate::identity::{IdentityDir, signing_request};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often it is looked whether it is time: the clock may jump, and the file may be replaced.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The shortest pause between two attempts, and the longest.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(3600);

/// Look, and renew where it is time, for as long as the agent runs.
pub(super) async fn renew(identity: IdentityDir, post: Arc<Reloading>, own: Arc<OwnRecords>) -> Infallible {
    let mut pause = *PAUSE.start();
    loop {
        if own.is_silent() {
            post.prove(VERSION).await;
        }
        let wait = match due_in(&identity) {
            Ok(due) if post.is_trying() || !due.is_zero() => due.clamp(*PAUSE.start(), LOOK_EVERY),
            Ok(_) => match attempt(&identity, &post).await {
                Ok(()) => {
                    pause = *PAUSE.start();
                    pause
                }
                Err(why) => {
                    tracing::warn!(why, "the certificate cannot be renewed yet; tried again");
                    pause = (pause * 2).min(*PAUSE.end());
                    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
                }
            },
            Err(why) => {
                tracing::warn!(why, "when to renew the certificate is not known");
                LOOK_EVERY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn attempt(identity: &IdentityDir, post: &Reloading) -> Result<(), String> {
    let key = identity.key().map_err(|err| format!("{err:#}"))?;
    let csr = signing_request(&key).map_err(|err| format!("{err:#}"))?;
    let certificate = post.current().renew(csr).await?;
    let is_over = due_of(certificate.as_bytes())?.is_zero();
    post.try_certificate(certificate).map_err(|err| format!("the new certificate cannot be used: {err:?}"))?;
    if is_over {
        return Err("by this machine's clock the new one is as good as over; set the clock".to_owned());
    }
    tracing::info!("certificate renewed; the old one stays until the new one has delivered");
    Ok(())
}

/// How long until two thirds of the certificate's life are over; nothing where they are.
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
