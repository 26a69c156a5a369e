//! HTTP: notifications in, state out. Everything that a client may choose is bounded: connections, the head's size and
//! time, the body's size and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::BuilderError;
use super::events::{self, Push, Rejection, Told};
use super::filter::Filter;
use super::job::{Accepted, Job, JobState};
use super::metrics::Refusal;
use super::worker::Worker;
use crate::config::IndexVersion;
use crate::observe::page;
use crate::units::Digest;

/// Connections at the same time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// Longest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Longest body. An event has about 1 KiB, and registries send at most some hundreds at once.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Time for a head, also that between two requests of one connection.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// Time for a body.
const BODY_LIMIT: Duration = Duration::from_secs(15);
/// Time for all requests of a connection; afterwards clients open a new one.
const CONNECTION_LIMIT: Duration = Duration::from_secs(600);
/// Time that requests may still take when the service stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Jobs that are shown at most.
const MAX_SHOWN: u64 = 1000;

/// What notifications come in through.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What all connections share.
pub(super) struct Server {
    pub worker: Arc<Worker>,
    pub filter: Filter,
    /// sha256 of the bearer token, so that comparing takes the same time whatever is shown.
    pub token: Option<Digest>,
    pub stopped: watch::Receiver<bool>,
}

type Answer = Response<Full<Bytes>>;

impl Server {
    /// Accepts connections until the service stops, then lets requests that are under way end.
    pub(super) async fn run(self: Arc<Self>, listener: Listener) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut stopped = self.stopped.clone();
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            let accepted = tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => break,
                accepted = listener.accept(&self, slot) => accepted,
            };
            if let Err(error) = accepted {
                // Out of descriptors, most likely: they come back when connections end.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        drop(listener);
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        // What does not end is cut off with the process; its sender tries again.
        let _ = tokio::time::timeout(STOP_LIMIT, slots.acquire_many(all)).await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        _slot: OwnedSemaphorePermit,
    ) {
        let mut stopped = self.stopped.clone();
        let service = service_fn(move |request| {
            let this = Arc::clone(&self);
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            _ = stopped.wait_for(|stop| *stop) => None,
            () = tokio::time::sleep(CONNECTION_LIMIT) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                let limit = HEAD_LIMIT + BODY_LIMIT;
                tokio::time::timeout(limit, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET, "/readyz") => self.ready().await,
            (&Method::GET, "/metrics") => match self.worker.queue.blocking(|queue| queue.counts()).await {
                Ok(counts) => typed(StatusCode::OK, page::CONTENT_TYPE, self.worker.metrics.page(counts)),
                Err(error) => unavailable(&error),
            },
            (&Method::GET, "/v1/jobs") => match self.authorized(&request) {
                true => self.jobs(request.uri().query().unwrap_or_default()).await,
                false => self.unauthorized(),
            },
            (&Method::POST, "/v1/notifications/distribution") => self.notified(request, events::distribution).await,
            (&Method::POST, "/v1/notifications/ecr") => self.notified(request, events::ecr).await,
            (
                _,
                "/healthz"
                | "/readyz"
                | "/metrics"
                | "/v1/jobs"
                | "/v1/notifications/distribution"
                | "/v1/notifications/ecr",
            ) => text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn ready(&self) -> Answer {
        if *self.stopped.borrow() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match self.worker.queue.blocking(|queue| queue.counts()).await {
            Ok(_) => text(StatusCode::OK, "ready\n"),
            Err(error) => unavailable(&error),
        }
    }

    /// `?state=WORD&limit=NUMBER`
    async fn jobs(&self, query: &str) -> Answer {
        let (mut state, mut limit) = (None, 100);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (key.as_ref(), value.parse::<u64>()) {
                ("state", _) if JobState::of(&value).is_some() => state = JobState::of(&value),
                ("limit", Ok(number)) => limit = number.min(MAX_SHOWN),
                _ => {
                    return text(
                        StatusCode::BAD_REQUEST,
                        "known are state=queued|running|done|skipped|failed, limit\n",
                    );
                }
            }
        }
        match self.worker.queue.blocking(move |queue| queue.status(state, limit)).await {
            Ok(status) => json(StatusCode::OK, &status),
            Err(error) => unavailable(&error),
        }
    }

    fn authorized(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let (scheme, shown) = shown.split_at_checked(7).unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"bearer ") && same(&Digest::of(shown), token)
    }

    fn unauthorized(&self) -> Answer {
        self.worker.metrics.refused(Refusal::Unauthorized);
        let mut answer = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        answer
    }

    async fn notified(
        &self,
        request: Request<Incoming>,
        read: fn(&[u8], Option<&str>) -> Result<Told, BuilderError>,
    ) -> Answer {
        if !self.authorized(&request) {
            return self.unauthorized();
        }
        let metrics = &self.worker.metrics;
        let refuse = |refusal, status, words: &str| {
            metrics.refused(refusal);
            text(status, words)
        };
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        let body = match tokio::time::timeout(BODY_LIMIT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return refuse(Refusal::TooLong, StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 1 MiB\n");
            }
            Ok(Err(_)) => return refuse(Refusal::Unreadable, StatusCode::BAD_REQUEST, "the body was cut off\n"),
            Err(_) => return refuse(Refusal::TooSlow, StatusCode::REQUEST_TIMEOUT, "the body came too slowly\n"),
        };
        let settings = &self.worker.config.builder;
        let found = match read(&body, settings.registry.as_deref()) {
            Ok(found) => found,
            Err(error) => return refuse(Refusal::Unreadable, StatusCode::BAD_REQUEST, &format!("{error}\n")),
        };
        let mut jobs: Vec<Job> = Vec::new();
        let mut ignored = 0_u64;
        for found in found {
            match found.and_then(|push| self.job(push)) {
                // A registry that repeats itself in one envelope is told of duplicates like any other.
                Ok(job) => jobs.push(job),
                Err(reason) => {
                    ignored += 1;
                    metrics.rejected(reason);
                    tracing::debug!(reason = reason.word(), "an event was ignored");
                }
            }
        }
        let max_queued = settings.max_queued;
        let accepted = match jobs.is_empty() {
            true => Ok(Accepted::default()),
            false => self.worker.queue.blocking(move |q| q.accept(&jobs, SystemTime::now(), max_queued)).await,
        };
        match accepted {
            Ok(told) => {
                metrics.accepted(told);
                if told.accepted > 0 {
                    self.worker.wake.notify_one();
                }
                let Accepted { accepted, duplicates } = told;
                let told = serde_json::json!({"accepted": accepted, "duplicates": duplicates, "ignored": ignored});
                json(StatusCode::ACCEPTED, &told)
            }
            Err(error) => {
                metrics.refused(Refusal::Unavailable);
                unavailable(&error)
            }
        }
    }

    fn job(&self, push: Push) -> Result<Job, Rejection> {
        self.filter.check(&push)?;
        let settings = &self.worker.config.builder;
        let tag = push.tag.unwrap_or_default();
        let target = match settings.index {
            IndexVersion::V1 => String::new(),
            IndexVersion::V2 => settings.target_tag.replace("{tag}", &tag),
        };
        let (registry, repository) = (push.image.registry().to_owned(), push.image.repository().to_owned());
        // A tag of 128 characters has no room for more.
        if !target.is_empty()
            && format!("{registry}/{repository}:{target}").parse::<crate::registry::ImageRef>().is_err()
        {
            return Err(Rejection::Tag);
        }
        Ok(Job { registry, repository, digest: push.digest, target, tag })
    }
}

impl Listener {
    async fn accept(&self, server: &Arc<Server>, slot: OwnedSemaphorePermit) -> std::io::Result<()> {
        let server = Arc::clone(server);
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                drop(tokio::spawn(server.connection(stream, slot)));
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                drop(tokio::spawn(server.connection(stream, slot)));
            }
        }
        Ok(())
    }
}

/// Whether two digests are the same, in a time that does not depend on where they differ.
fn same(a: &Digest, b: &Digest) -> bool {
    let differing = a.hex().bytes().zip(b.hex().bytes()).fold(0_u8, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(differing) == 0
}

fn unavailable(error: &BuilderError) -> Answer {
    tracing::error!(%error, "the queue cannot be used");
    // Paths and SQL are not for senders.
    let words = match error {
        BuilderError::Full { .. } => "too many images wait; try again later\n",
        _ => "the queue cannot be used now; try again later\n",
    };
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, words);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
    answer
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn text(status: StatusCode, words: &str) -> Answer {
    typed(status, "text/plain; charset=utf-8", words.to_owned())
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => typed(status, "application/json", body + "\n"),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written\n"),
    }
}

#[cfg(test)]
#[path = "tests/server.rs"]
mod tests;
