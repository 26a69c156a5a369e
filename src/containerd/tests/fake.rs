//! A server that speaks as containerd does, and does what a test wants.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use containerd_client::services::v1 as api;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::containerd::{Address, Client};
use crate::units::Digest;

/// What the server has, does and saw.
#[derive(Default)]
pub struct State {
    /// What a read gives.
    pub pieces: Vec<Vec<u8>>,
    /// Offset and size of the last read.
    pub asked: (i64, i64),
    /// What `Info` says.
    pub size: i64,
    /// Unfinished content.
    pub ingest: Vec<u8>,
    /// Finished content, with its labels.
    pub committed: Option<Vec<u8>>,
    pub labels: HashMap<String, String>,
    /// What the next writes begin with.
    pub write_fails: Vec<Status>,
    pub aborted: usize,
    /// Paths of the last update.
    pub updated: Vec<String>,
    pub leases: Vec<String>,
    pub expires: String,
    /// Headers of the last write.
    pub lease_header: String,
    pub namespace: String,
}

type Shared = Arc<Mutex<State>>;

/// A running server.
pub struct Fake {
    dir: tempfile::TempDir,
    state: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = tokio::net::UnixListener::bind(dir.path().join("sock")).expect("a socket");
        let state = Shared::default();
        let incoming =
            stream::unfold(listener, |listener| async { Some((listener.accept().await.map(|(s, _)| s), listener)) });
        let server = Server::builder()
            .add_service(Endpoint::<Version>::new(&state))
            .add_service(Endpoint::<Content>::new(&state))
            .add_service(Endpoint::<Leases>::new(&state))
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move { server.await.expect("served") });
        Self { dir, state, task }
    }

    pub async fn client(&self) -> Client {
        let address = Address::new(&self.dir.path().join("sock"), "default").expect("an address");
        Client::connect(&address).await.expect("connected")
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panicked")
    }
}

/// The service named `T::NAME`, with methods in [`call`].
struct Endpoint<T> {
    state: Shared,
    name: std::marker::PhantomData<fn() -> T>,
}

impl<T> Endpoint<T> {
    fn new(state: &Shared) -> Self {
        Self { state: Arc::clone(state), name: std::marker::PhantomData }
    }
}

impl<T> Clone for Endpoint<T> {
    fn clone(&self) -> Self {
        Self::new(&self.state)
    }
}

struct Version;
struct Content;
struct Leases;

impl NamedService for Endpoint<Version> {
    const NAME: &'static str = "containerd.services.version.v1.Version";
}
impl NamedService for Endpoint<Content> {
    const NAME: &'static str = "containerd.services.content.v1.Content";
}
impl NamedService for Endpoint<Leases> {
    const NAME: &'static str = "containerd.services.leases.v1.Leases";
}

impl<T> Service<http::Request<Body>> for Endpoint<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(call(Arc::clone(&self.state), request))
    }
}

/// A unary method: a function of state and request.
struct Unary<A, B>(Shared, fn(&mut State, A) -> B);

impl<A: Send + 'static, B: prost::Message + 'static> UnaryService<A> for Unary<A, B> {
    type Response = B;
    type Future = BoxFuture<'static, Result<Response<B>, Status>>;

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let answer = (self.1)(&mut self.0.lock().expect("no test panicked"), request.into_inner());
        Box::pin(async { Ok(Response::new(answer)) })
    }
}

async fn unary<A, B>(
    state: Shared,
    request: http::Request<Body>,
    method: fn(&mut State, A) -> B,
) -> http::Response<Body>
where
    A: prost::Message + Default + 'static,
    B: prost::Message + Default + 'static,
{
    Grpc::new(ProstCodec::<B, A>::default()).unary(Unary(state, method), request).await
}

async fn call(state: Shared, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    Ok(match path.rsplit('/').next().unwrap_or_default() {
        "Version" => unary(state, request, |_, (): ()| api::VersionResponse::default()).await,
        "Info" => {
            unary(state, request, |state, asked: api::InfoRequest| api::InfoResponse {
                info: Some(api::Info { digest: asked.digest, size: state.size, ..api::Info::default() }),
            })
            .await
        }
        "Update" => {
            unary(state, request, |state, asked: api::UpdateRequest| {
                state.updated = asked.update_mask.map(|mask| mask.paths).unwrap_or_default();
                api::UpdateResponse { info: asked.info }
            })
            .await
        }
        "Abort" => {
            unary(state, request, |state, _: api::AbortRequest| {
                state.aborted += 1;
                state.ingest.clear();
            })
            .await
        }
        "Create" => {
            unary(state, request, |state, asked: api::CreateRequest| {
                state.leases.push(asked.id);
                state.expires = asked.labels.get(super::super::labels::EXPIRE).cloned().unwrap_or_default();
                api::CreateResponse::default()
            })
            .await
        }
        "Delete" => {
            unary(state, request, |state, asked: api::DeleteRequest| state.leases.retain(|id| *id != asked.id)).await
        }
        "Read" => Grpc::new(ProstCodec::default()).server_streaming(Read(state), request).await,
        "Write" => Grpc::new(ProstCodec::default()).streaming(Write(state), request).await,
        other => panic!("{other} is not part of the fake"),
    })
}

struct Read(Shared);

impl ServerStreamingService<api::ReadContentRequest> for Read {
    type Response = api::ReadContentResponse;
    type ResponseStream = BoxStream<'static, Result<api::ReadContentResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<api::ReadContentRequest>) -> Self::Future {
        let mut state = self.0.lock().expect("no test panicked");
        state.asked = (request.get_ref().offset, request.get_ref().size);
        let pieces: Vec<_> =
            state.pieces.iter().map(|data| Ok(api::ReadContentResponse { offset: 0, data: data.clone() })).collect();
        Box::pin(async { Ok(Response::new(stream::iter(pieces).boxed())) })
    }
}

struct Write(Shared);

impl StreamingService<api::WriteContentRequest> for Write {
    type Response = api::WriteContentResponse;
    type ResponseStream = BoxStream<'static, Result<api::WriteContentResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<api::WriteContentRequest>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let header = |headers: &MetadataMap, name| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let failure = {
            let mut state = shared.lock().expect("no test panicked");
            state.lease_header = header(request.metadata(), "containerd-lease");
            state.namespace = header(request.metadata(), "containerd-namespace");
            state.write_fails.pop()
        };
        let answers = stream::unfold(request.into_inner(), move |mut messages| {
            let shared = Arc::clone(&shared);
            async move {
                let message = messages.message().await.ok()??;
                Some((heard(&mut shared.lock().expect("no test panicked"), message), messages))
            }
        });
        Box::pin(async { failure.map_or_else(|| Ok(Response::new(answers.boxed())), Err) })
    }
}

/// As `services/content` of containerd has it.
fn heard(state: &mut State, message: api::WriteContentRequest) -> Result<api::WriteContentResponse, Status> {
    let offset = |state: &State| i64::try_from(state.ingest.len()).expect("small");
    if message.action() == api::WriteAction::Stat {
        return Ok(api::WriteContentResponse { offset: offset(state), ..api::WriteContentResponse::default() });
    }
    if message.offset > 0 && message.offset != offset(state) {
        return Err(Status::out_of_range("write must occur at current offset"));
    }
    if message.offset == 0 {
        state.ingest.clear();
    }
    state.ingest.extend_from_slice(&message.data);
    if message.action() == api::WriteAction::Commit {
        if Digest::of(&state.ingest).to_string() != message.expected {
            return Err(Status::failed_precondition("unexpected commit digest"));
        }
        state.committed = Some(std::mem::take(&mut state.ingest));
        state.labels = message.labels;
    }
    Ok(api::WriteContentResponse { offset: offset(state), ..api::WriteContentResponse::default() })
}
