//! The other workspace of the pair, by client certificate.

use super::{Gate, connection};
use crate::api::{Api, ApiError};
use axum::{extract::FromRequestParts, http::request::Parts};
use std::sync::Arc;
use vedette_wire::ProblemCode;

/// The secondary of the pair.
pub(in crate::api) struct PairPeer {
    pub(in crate::api) api: Arc<Api>,
}

impl FromRequestParts<Gate> for PairPeer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gate: &Gate) -> Result<Self, ApiError> {
        if !connection(parts).is_pair {
            return Err(ApiError::new(ProblemCode::Identity, "this is not the pair of this workspace"));
        }
        Ok(Self { api: Arc::clone(&gate.0) })
    }
}
