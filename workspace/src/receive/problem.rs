//! Problem details (RFC 9457) as replies.

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use vedette_wire::reply::Problem;

/// A refusal: status, stable code, title, and what to do.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    title: String,
    detail: Option<String>,
    retry_after_seconds: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, title: impl Into<String>) -> Self {
        Self { status, code, title: title.into(), detail: None, retry_after_seconds: None }
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// An internal error: logged with details, answered without, retried by the agent.
    pub(super) fn internal(error: &anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "request failed");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the workspace cannot process this now")
            .retry_after(5)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem {
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            title: self.title,
            detail: self.detail,
        };
        let body = serde_json::to_vec(&problem).expect("strings and numbers serialize");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) async fn not_found(body: Body) -> Refusal {
    super::batch::drain(body).await;
    Refusal::new(StatusCode::NOT_FOUND, "path", "there is nothing at this path")
        .detail("check [workspace] url; it is the workspace's address without a path")
}
