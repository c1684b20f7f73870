//! Bodies. The route limits their size and time.

use crate::api::ApiError;
use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
};
use serde::de::DeserializeOwned;
use vedette_wire::ProblemCode;

/// Reads a whole body.
pub(in crate::api) async fn read(body: Body) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, usize::MAX).await.map_err(|err| {
        let is_too_large = std::iter::successors(std::error::Error::source(&err), |source| source.source())
            .any(|source| source.is::<http_body_util::LengthLimitError>());
        match is_too_large {
            true => ApiError::new(ProblemCode::Size, "the request is too large"),
            false => ApiError::new(ProblemCode::Body, "the request ended too early or took too long"),
        }
    })
}

/// A body in JSON. Parts of the request are authenticated before it is read.
pub(in crate::api) struct ValidJson<T>(pub(in crate::api) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for ValidJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request.into_body()).await?;
        let parsed = serde_json::from_slice(&bytes);
        Ok(Self(parsed.map_err(|err| ApiError::shape(format!("the request cannot be decoded: {err}")))?))
    }
}
