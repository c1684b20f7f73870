//! Tokens for enrollment and for pairs: 256 random bits, stored as a digest.

use anyhow::Result;
use sha2::{Digest, Sha256};

/// A new token with a prefix that names its use.
pub(crate) fn new_token(prefix: &str) -> Result<String> {
    let mut secret = [0_u8; 32];
    let provider = rustls::crypto::CryptoProvider::get_default().expect("main installs it");
    provider
        .secure_random
        .fill(&mut secret)
        .map_err(|_| anyhow::anyhow!("cannot get random bytes from the operating system"))?;
    Ok(format!("{prefix}{}", hex::encode(secret)))
}

/// Stored digest of a token.
pub(crate) fn token_digest(token: &str) -> String {
    hex::encode(Sha256::digest(token.trim().as_bytes()))
}
