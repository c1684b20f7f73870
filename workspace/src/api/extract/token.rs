//! Requests that a token in their body authenticates.

use super::{Gate, ValidJson, connection};
use crate::api::{Api, ApiError};
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use vedette_wire::ProblemCode;

/// A request with a token.
pub(in crate::api) trait TokenRequest: DeserializeOwned + Send + Sync {
    /// What a valid token grants.
    type Grant: Send;

    /// Checks the token, before anything else of the request is used.
    fn authenticate(&self, api: &Api) -> impl Future<Output = Result<Self::Grant, ApiError>> + Send;
}

/// A request with a valid token, at the primary of a pair.
pub(in crate::api) struct TokenHolder<T: TokenRequest> {
    pub(in crate::api) api: Arc<Api>,
    pub(in crate::api) request: T,
    pub(in crate::api) grant: T::Grant,
}

impl<T: TokenRequest> FromRequest<Gate> for TokenHolder<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, gate: &Gate) -> Result<Self, ApiError> {
        let api = Arc::clone(&gate.0);
        api.require_primary().await?;
        let (parts, body) = request.into_parts();
        let from = connection(&parts).from;
        let ValidJson(request) = ValidJson::<T>::from_request(Request::from_parts(parts, body), gate).await?;
        match request.authenticate(&api).await {
            Ok(grant) => Ok(Self { api, request, grant }),
            Err(error) if *error.code() == ProblemCode::Token => Err(api.rate_limits.token_refused(from, error)),
            Err(error) => Err(error),
        }
    }
}
