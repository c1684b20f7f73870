//! Routes whose requests all have limits of size and time, and whose errors all are problem details.

use super::error::{ApiError, PROBLEM_JSON};
use crate::ingest::BATCH_BYTES_MAX;
use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use http_body_util::BodyExt as _;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::oneshot;
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

/// Time limit for discarding an unread body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) body_bytes_max: usize,
    /// From the head of the request to the answer.
    pub(super) time_max: Duration,
}

/// A router that takes no route without limits.
pub(super) struct Endpoints<S>(Router<S>);

impl<S: Clone + Send + Sync + 'static> Default for Endpoints<S> {
    fn default() -> Self {
        Self(Router::new())
    }
}

impl<S: Clone + Send + Sync + 'static> Endpoints<S> {
    pub(super) fn route(self, path: &str, limits: Limits, methods: MethodRouter<S>) -> Self {
        let time_max = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limits.time_max);
        let body_max = RequestBodyLimitLayer::new(limits.body_bytes_max);
        let methods: MethodRouter<S> = methods.layer::<_, Infallible>(body_max).layer(time_max);
        Self(self.0.route(path, methods))
    }

    pub(super) fn into_router(self, state: S) -> Router {
        let router = self.0.fallback(async || StatusCode::NOT_FOUND).with_state(state);
        router.layer(middleware::map_response(into_problem)).layer(middleware::from_fn(drain_unread))
    }
}

/// Replaces errors of layers and of the router by problem details.
async fn into_problem(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if is_error && response.headers().get(header::CONTENT_TYPE) != Some(&PROBLEM_JSON) {
        return ApiError::of_status(status).into_response();
    }
    response
}

/// Discards, within limits, what a handler has not read of the body: a client that is still sending may not see the answer.
async fn drain_unread(request: Request, next: Next) -> Response {
    let (back, unread) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body: Some(body), back: Some(back) }));
    let response = next.run(request).await;
    // Polls and accepted requests have no body, or it was read.
    if let Ok(mut body) = unread.await {
        let discard = async {
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > BATCH_BYTES_MAX {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(DRAIN_TIMEOUT, discard).await);
    }
    response
}

/// A body that goes back when its reader drops it before its end.
struct Lent {
    body: Option<Body>,
    back: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map_or_else(http_body::SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take())
            && !body.is_end_stream()
        {
            drop(back.send(body));
        }
    }
}
