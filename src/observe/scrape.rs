//! The page of metrics over HTTP, for whoever scrapes it. Read-only; what a client may choose is bounded.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::page;

/// Connections at the same time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
const MAX_HEAD_BYTES: usize = 16 << 10;
const HEAD_LIMIT: Duration = Duration::from_secs(15);

/// Where the page is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScrapeAddress {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a unix socket.
    Unix(PathBuf),
}

impl FromStr for ScrapeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => {
                let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
                if path.is_absolute() {
                    Ok(Self::Unix(path))
                } else {
                    Err(format!("{text:?}: the path is not absolute"))
                }
            }
            None => text.parse().map(Self::Tcp).map_err(|_| format!("{text:?} is no ADDRESS:PORT or unix:PATH")),
        }
    }
}

/// Writes the page.
pub type WritePage = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves `GET /metrics` and `GET /healthz` until it is dropped.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: &ScrapeAddress, page: WritePage) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = match address {
        ScrapeAddress::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
        ScrapeAddress::Unix(path) => {
            if std::os::unix::net::UnixStream::connect(path).is_err() {
                let _ = std::fs::remove_file(path);
            }
            Listener::Unix(UnixListener::bind(path)?)
        }
    };
    Ok(tokio::spawn(accept(listener, page)))
}

async fn accept(listener: Listener, page: WritePage) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let page = Arc::clone(&page);
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                drop(tokio::spawn(async move {
                    connection(stream, page).await;
                    drop(slot);
                }));
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                drop(tokio::spawn(async move {
                    connection(stream, page).await;
                    drop(slot);
                }));
            }),
        };
        if let Err(error) = accepted {
            // Out of descriptors, most likely: they come back when connections end.
            tracing::warn!(%error, "a connection cannot be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, page: WritePage) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let page = Arc::clone(&page);
        async move {
            let answer = match (request.method(), request.uri().path()) {
                (&Method::GET, "/metrics") => typed(StatusCode::OK, page::CONTENT_TYPE, page().await),
                (&Method::GET, "/healthz") => typed(StatusCode::OK, "text/plain", "ok\n".to_owned()),
                (_, "/metrics" | "/healthz") => typed(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new()),
                _ => typed(StatusCode::NOT_FOUND, "text/plain", "/metrics, /healthz\n".to_owned()),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
