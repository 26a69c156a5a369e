//! The connection, and what every request has: namespace, lease, a time limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1::version_client::VersionClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::{Address, ContainerdError};

/// Longest silence: a containerd that collects garbage on a slow disk answers nobody for a while.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// As containerd's own clients (`defaults.DefaultMaxRecvMsgSize`).
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Room for some of containerd's pieces of 1 MiB on their way; the default of 64 KiB would stop it after each 16th of one.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How long it is tried again when containerd is away, or somebody else writes the same content: longer than a restart takes.
const PATIENCE_LIMIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Patience with what may come right.
pub(super) struct Patience {
    begun: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Pauses when trying again may help and there is patience left.
    pub(super) async fn with(&mut self, error: ContainerdError) -> Result<(), ContainerdError> {
        if !error.is_transient() || self.begun.elapsed() > PATIENCE_LIMIT {
            return Err(error);
        }
        tracing::info!(%error, "trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// A connection to one namespace of containerd, shared by its clones. When containerd goes away and comes back, so does the
/// connection. Belongs to the tokio runtime that made it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    address: Arc<Address>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Connects, and makes sure that it is containerd who answers.
    ///
    /// # Errors
    /// [`ContainerdError::Socket`], [`ContainerdError::NotContainerd`], [`ContainerdError::Timeout`].
    pub async fn connect(address: &Address) -> Result<Self, ContainerdError> {
        let socket = || address.socket().to_owned();
        // The system says what is wrong more clearly than the gRPC library, and knows paths that are no URLs.
        tokio::net::UnixStream::connect(address.socket())
            .await
            .map_err(|source| ContainerdError::Socket { socket: socket(), source })?;
        let strange = |reason: String| ContainerdError::NotContainerd { socket: socket(), reason };
        let endpoint = Endpoint::from_shared(format!("unix:{}", address.socket().display()))
            .map_err(|error| strange(error.to_string()))?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let client = Self { channel: endpoint.connect_lazy(), address: Arc::new(address.clone()), lease: None };
        let mut version = VersionClient::new(client.channel());
        match client.answer("its version", version.version(client.request(()))).await {
            Ok(said) => {
                tracing::debug!(version = said.version, %address, "connected");
                Ok(client)
            }
            Err(error @ ContainerdError::Timeout { .. }) => Err(error),
            Err(ContainerdError::Unavailable { message, .. } | ContainerdError::Refused { message, .. }) => {
                Err(strange(message))
            }
            Err(error) => Err(strange(error.to_string())),
        }
    }

    /// Which containerd, and which namespace.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The same connection, with what is written belonging to a lease.
    pub(super) fn leased(&self, lease: MetadataValue<Ascii>) -> Self {
        Self { lease: Some(lease), ..self.clone() }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with its headers.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        // A namespace consists of letters, digits and a few signs: always a header.
        if let Ok(namespace) = self.address.namespace().parse() {
            headers.insert("containerd-namespace", namespace);
        }
        if let Some(lease) = &self.lease {
            headers.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Asks something that may be asked twice, and waits for an answer: while containerd is away, for a while.
    pub(super) async fn ask<M: Clone, T, Fut>(
        &self,
        what: &str,
        message: M,
        call: impl Fn(Request<M>) -> Fut,
    ) -> Result<T, ContainerdError>
    where
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut patience = Patience::new();
        loop {
            match self.answer(what, call(self.request(message.clone()))).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.with(error).await?,
            }
        }
    }

    /// Waits for the answer to what is asked once, for a limited time.
    pub(super) async fn answer<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ContainerdError> {
        Ok(self.in_time(what, call).await?.into_inner())
    }

    /// Waits for the next step of something, for a limited time.
    pub(super) async fn in_time<T>(
        &self,
        what: &str,
        step: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, ContainerdError> {
        match tokio::time::timeout(SILENCE_LIMIT, step).await {
            Ok(done) => done.map_err(|status| ContainerdError::of(&self.address, what, &status)),
            Err(_) => Err(ContainerdError::Timeout {
                at: self.address().clone(),
                what: what.to_owned(),
                limit: SILENCE_LIMIT,
            }),
        }
    }

    pub(super) fn odd(&self, what: &str, reason: impl Into<String>) -> ContainerdError {
        ContainerdError::Answer { at: self.address().clone(), what: what.to_owned(), reason: reason.into() }
    }
}
