//! The service: what it is asked is asked of containerd, byte for byte.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Remembered;
use super::messages::{PullImageRequest, PullImageResponse, RemoveImageRequest};
use super::remembered::{Attempt, login};
use crate::registry::ImageRef;

/// Longest message that is looked into; as the limit of CRI's own clients.
const LIMIT_BYTES: usize = 16 << 20;

/// Why calls cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// The address cannot be one.
    #[error("{path}: {reason}")]
    Address {
        /// Where the image service is said to be.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// `runtime.v1.ImageService`. When the service behind it goes away and comes back, so does the connection.
#[derive(Clone)]
pub struct ImageService {
    channel: Channel,
    remembered: Remembered,
}

impl ImageService {
    /// Passes on to the image service at `socket`, a path; makes no connection yet. What pulls bring goes to
    /// `remembered`. Belongs to the tokio runtime that made it.
    ///
    /// # Errors
    /// [`CriError::Address`].
    pub fn new(socket: &Path, remembered: Remembered) -> Result<Self, CriError> {
        let bad = |reason: String| CriError::Address { path: socket.to_owned(), reason };
        let text = socket.to_str().filter(|text| text.starts_with('/') && !text.contains(':'));
        let text =
            text.ok_or_else(|| bad("the image service's socket must be an absolute path without a colon".into()))?;
        let endpoint = Endpoint::from_shared(format!("unix:{text}")).map_err(|error| bad(error.to_string()))?;
        Ok(Self { channel: endpoint.connect_lazy(), remembered })
    }

    async fn pass_on(mut self, request: http::Request<Body>) -> http::Response<Body> {
        let sent = async {
            poll_fn(|context| self.channel.poll_ready(context)).await?;
            self.channel.call(request).await
        };
        sent.await.unwrap_or_else(|error| {
            let mut reason = format!("containerd's image service cannot be reached: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                reason.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            tracing::warn!("{reason}");
            Status::unavailable(reason).into_http()
        })
    }

    async fn pull(self, request: http::Request<Body>) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let body = match collect(body).await {
            Ok(body) => body,
            Err(status) => return status.into_http(),
        };
        let attempt = self.attempt(&body);
        let response = self.pass_on(http::Request::from_parts(head, body.into_body())).await;
        let Some(attempt) = attempt else { return response };
        let (head, body) = response.into_parts();
        let body = match collect(body).await {
            Ok(body) => body,
            Err(status) => return status.into_http(),
        };
        // In the trailers, or in the head when there is no body.
        let code = body.trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        if code.is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::Ok) {
            let id = body.message::<PullImageResponse>().map(|answer| answer.image_ref);
            attempt.succeeded(id.unwrap_or_default());
        }
        http::Response::from_parts(head, body.into_body())
    }

    /// Remembers what a pull brings, if it brings something.
    fn attempt(&self, body: &Whole) -> Option<Attempt> {
        let passed_over = |reason: &str| {
            tracing::warn!(reason, "the credentials of a pull are not known here; it is passed on");
            None
        };
        let asked = match body.message::<PullImageRequest>() {
            Ok(asked) => asked,
            Err(reason) => return passed_over(reason),
        };
        let (Some(image), Some(auth)) = (asked.image, asked.auth) else { return None };
        let login = match login(&auth) {
            Ok(login) => login?,
            Err(reason) => return passed_over(reason),
        };
        let Ok(reference) = image.image.parse::<ImageRef>() else {
            return passed_over("its image is no reference");
        };
        tracing::debug!(image = %reference, "a pull brings credentials");
        let server = Some(auth.server_address).filter(|address| !address.is_empty());
        Some(self.remembered.begin(reference, server, login))
    }

    async fn remove(self, request: http::Request<Body>) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let body = match collect(body).await {
            Ok(body) => body,
            Err(status) => return status.into_http(),
        };
        if let Ok(RemoveImageRequest { image: Some(image) }) = body.message() {
            self.remembered.forget(&image.image);
        }
        self.pass_on(http::Request::from_parts(head, body.into_body())).await
    }
}

/// A whole body, which can be looked into and passed on.
struct Whole {
    bytes: Bytes,
    trailers: Option<http::HeaderMap>,
}

async fn collect(body: Body) -> Result<Whole, Status> {
    let whole = Limited::new(body, LIMIT_BYTES).collect().await;
    let whole = whole.map_err(|error| match error.downcast::<Status>() {
        Ok(status) => *status,
        Err(error) => Status::resource_exhausted(format!("a message of the image service: {error}")),
    })?;
    let trailers = whole.trailers().cloned();
    Ok(Whole { bytes: whole.to_bytes(), trailers })
}

impl Whole {
    /// An answer without a body must stay one: clients take the status from its head only then.
    fn into_body(self) -> Body {
        match self.trailers {
            None if self.bytes.is_empty() => Body::empty(),
            None => Body::new(Full::new(self.bytes)),
            Some(trailers) => Body::new(Full::new(self.bytes).with_trailers(ready(Some(Ok(trailers))))),
        }
    }

    /// The one message of the body (gRPC over HTTP/2, "Length-Prefixed-Message").
    fn message<M: Message + Default>(&self) -> Result<M, &'static str> {
        let (prefix, message) = self.bytes.split_at_checked(5).ok_or("the message is cut off")?;
        match prefix {
            [0, length @ ..] if u32::try_from(message.len()).is_ok_and(|bytes| length == bytes.to_be_bytes()) => {
                M::decode(message).map_err(|_| "the message is none of CRI's")
            }
            [0, ..] => Err("the message has another length than it says"),
            _ => Err("the message is compressed"),
        }
    }
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for ImageService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "PullImage" => this.pull(request).await,
                "RemoveImage" => this.remove(request).await,
                _ => this.pass_on(request).await,
            })
        }
        .boxed()
    }
}
