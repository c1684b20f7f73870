//! Version 1: one file per endpoint.

pub(super) mod batch;
pub(super) mod directives;
pub(super) mod enroll;
pub(super) mod pair_exchange;
pub(super) mod pair_join;
pub(super) mod policy;
pub(super) mod positions;
pub(super) mod rekey;
pub(super) mod renew;

use super::ApiError;
use crate::keys::Authority;
use rcgen::CertificateSigningRequestParams;
use vedette_wire::{AgentId, ProblemCode, text::is_printable};

/// Maximum length of fields. Host names have at most 64 characters on Linux (gethostname(2)), and more elsewhere.
const FIELD_BYTES_MAX: usize = 255;

/// Refuses fields that are too long or not printable.
fn check_fields(fields: &[&str]) -> Result<(), ApiError> {
    if !fields.iter().all(|field| field.len() <= FIELD_BYTES_MAX && field.chars().all(is_printable)) {
        return Err(ApiError::shape("host name, version or machine is not valid"));
    }
    Ok(())
}

/// Parses a signing request; also returns the agent.
fn signing_request(csr: &str) -> Result<(CertificateSigningRequestParams, AgentId), ApiError> {
    Authority::read_request(csr)
        .map_err(|err| ApiError::new(ProblemCode::Csr, format!("the signing request is not valid: {err:#}")))
}
