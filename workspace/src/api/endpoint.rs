//! Routes whose requests all have limits of size and time, and whose errors all are problem details.

use super::error::{ApiError, PROBLEM_JSON};
use crate::{ingest::BATCH_BYTES_MAX, metrics::Metrics};
use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use http_body_util::BodyExt as _;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};
use tracing::Instrument as _;

/// Time limit for discarding an unread body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) body_bytes_max: usize,
    /// From the head of the request to the end of its body. What is late is refused before anything is done.
    pub(super) body_time_max: Duration,
    /// From the head of the request to its answer, without what the body's end is waited for after that. The handler may have
    /// done its work: the answer is 503, after which agents try again.
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
        let time_max = TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, limits.time_max);
        let body_max = RequestBodyLimitLayer::new(limits.body_bytes_max);
        let body_time = middleware::from_fn_with_state(limits.body_time_max, limit_body_time);
        let methods: MethodRouter<S> =
            methods.layer::<_, Infallible>(body_time).layer::<_, Infallible>(body_max).layer(time_max);
        Self(self.0.route(path, methods))
    }

    pub(super) fn into_router(self, state: S, metrics: Arc<Metrics>) -> Router {
        let router = self.0.fallback(async || StatusCode::NOT_FOUND).with_state(state);
        router
            .layer(middleware::map_response(into_problem))
            .layer(middleware::from_fn(drain_unread))
            .layer(middleware::from_fn_with_state(metrics, observe))
    }
}

/// Counts a request and gives it a span.
async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    // The route and not the path, which a peer chooses.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let span = tracing::debug_span!("request", method = %request.method(), route);
    let response = next.run(request).instrument(span).await;
    metrics.answered(&route, response.status().as_u16(), began.elapsed());
    response
}

/// Replaces errors of layers and of the router by problem details.
async fn into_problem(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.headers().get(header::CONTENT_TYPE) == Some(&PROBLEM_JSON) {
        return response;
    }
    let mut problem = ApiError::of_status(status).into_response();
    // 405 names the methods of the path (RFC 9110 §15.5.6).
    if let Some(allow) = response.headers().get(header::ALLOW) {
        problem.headers_mut().insert(header::ALLOW, allow.clone());
    }
    problem
}

/// Ends a body that is late.
async fn limit_body_time(State(time_max): State<Duration>, request: Request, next: Next) -> Response {
    let deadline = Box::pin(tokio::time::sleep(time_max));
    next.run(request.map(|body| Body::new(Timed { body, deadline }))).await
}

/// A body with a deadline.
struct Timed {
    body: Body,
    deadline: Pin<Box<tokio::time::Sleep>>,
}

/// The body did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("the request took too long")]
struct BodyTimeout;

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                let expired = self.deadline.as_mut().poll(context);
                expired.map(|()| Some(Err(axum::Error::new(BodyTimeout))))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Discards, within limits, what a handler has not read of the body: a client that is still sending may not see the answer.
async fn drain_unread(request: Request, next: Next) -> Response {
    let (back, unread) = oneshot::channel();
    // Such a client waits for the answer before it sends; reading would have it send (RFC 9110 §10.1.1).
    let is_waiting = request.headers().contains_key(header::EXPECT);
    let request = request.map(|body| Body::new(Lent { body: Some(body), back: Some(back), is_waiting }));
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
    /// Whether the client sends only once the body is read.
    is_waiting: bool,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        self.is_waiting = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
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
            && !self.is_waiting
        {
            drop(back.send(body));
        }
    }
}
