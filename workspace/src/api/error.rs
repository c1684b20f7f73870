//! Errors as problem details (RFC 9457).

use crate::ingest::IngestError;
use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use vedette_wire::{Problem, ProblemCode, codec::DecodeError};

/// Content type of problem details.
pub(super) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A refused or failed request: code, title, and what to do.
#[derive(Debug)]
pub(super) struct ApiError {
    code: ProblemCode,
    title: String,
    detail: Option<&'static str>,
    retry_after_seconds: Option<u64>,
}

/// HTTP status of a problem (RFC 9110 §15).
fn status(code: &ProblemCode) -> StatusCode {
    use ProblemCode as Code;
    match code {
        Code::Version => StatusCode::BAD_REQUEST,
        Code::Certificate => StatusCode::UNAUTHORIZED,
        Code::Clone | Code::Identity | Code::RekeyNotDemanded | Code::Token => StatusCode::FORBIDDEN,
        Code::Path => StatusCode::NOT_FOUND,
        Code::Method => StatusCode::METHOD_NOT_ALLOWED,
        Code::Body => StatusCode::REQUEST_TIMEOUT,
        Code::Conflict => StatusCode::CONFLICT,
        Code::Size => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::Geo | Code::Pair => StatusCode::MISDIRECTED_REQUEST,
        Code::Csr | Code::Digest | Code::Key | Code::Policy | Code::Shape => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Rate => StatusCode::TOO_MANY_REQUESTS,
        Code::PolicyRevision | Code::Unavailable | Code::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl ApiError {
    pub(super) fn new(code: ProblemCode, title: impl Into<String>) -> Self {
        Self { code, title: title.into(), detail: None, retry_after_seconds: None }
    }

    /// Too many requests; another may be sent after a time.
    pub(super) fn rate(title: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self::new(ProblemCode::Rate, title).retry_after(retry_after_seconds)
    }

    /// The request has the wrong form.
    pub(super) fn shape(title: impl Into<String>) -> Self {
        Self::new(ProblemCode::Shape, title)
    }

    /// The error for a response that a layer or the router made.
    pub(super) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::new(ProblemCode::Path, "there is nothing at this path")
                .detail("check [workspace] url; it is the workspace's address without a path"),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(ProblemCode::Method, "this path does not take this method"),
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(ProblemCode::Size, "the request is too large"),
            StatusCode::REQUEST_TIMEOUT => Self::new(ProblemCode::Body, "the request ended too early or took too long"),
            status if status.is_client_error() => Self::shape("the request cannot be decoded"),
            _ => Self::unavailable(),
        }
    }

    fn unavailable() -> Self {
        Self::new(ProblemCode::Unavailable, "the workspace cannot process this now").retry_after(5)
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    pub(super) fn code(&self) -> &ProblemCode {
        &self.code
    }

    pub(super) fn detail(self, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..self }
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }
}

/// An internal error: logged with details, answered without, retried by the agent.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "request failed");
        Self::unavailable()
    }
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> Self {
        use ProblemCode as Code;
        let title = error.to_string();
        match error {
            IngestError::TooManyBatches | IngestError::TooManyBytes => Self::rate(title, 1),
            IngestError::Digest => Self::new(Code::Digest, title),
            IngestError::Decode(DecodeError::Version { .. }) => {
                Self::new(Code::Version, title).detail("the agent is of a later release; upgrade the workspace")
            }
            IngestError::Decode(DecodeError::TooLarge { .. } | DecodeError::Many)
            | IngestError::TooLargeAsRows(_)
            | IngestError::TooManyRuns => Self::new(Code::Size, title).detail("the agent splits it"),
            IngestError::Decode(_) | IngestError::Shape(_) => Self::shape(title),
            IngestError::IdentityMismatch => Self::new(Code::Identity, title),
            IngestError::GeoMismatch { .. } => Self::new(Code::Geo, title),
            IngestError::KeyMismatch => Self::new(Code::Key, title),
            IngestError::Clone(_) => {
                Self::new(Code::Clone, title).detail("the agent re-keys by itself, and then sends its queue")
            }
            IngestError::PolicyRevision(_) => Self::new(Code::PolicyRevision, title).retry_after(5),
            IngestError::Policy(_) => Self::new(Code::Policy, title),
            IngestError::Conflict => Self::new(Code::Conflict, title),
            IngestError::Internal(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status(&self.code);
        let problem = Problem {
            status: status.as_u16(),
            code: self.code,
            title: self.title,
            detail: self.detail.map(str::to_owned),
        };
        let body = serde_json::to_vec(&problem).expect("strings and numbers serialize");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
