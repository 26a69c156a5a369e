//! The gRPC service `containerd.services.snapshots.v1.Snapshots`.
//!
//! The messages are those of containerd's own client crate, which has no server side: this maps each method to a
//! handler, as generated code would.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::snapshots as api;
use containerd_client::types::Mount as ApiMount;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use prost_types::Timestamp;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tracing::Instrument as _;

use super::info::{Info, Kind, Labels};
use super::mounts::Mount;
use super::{Layers, SnapshotError, Snapshotter};

/// Numbers of requests: log lines of one belong together.
static REQUESTS: AtomicU64 = AtomicU64::new(1);
/// Snapshots in one message of a listing.
const LIST_BATCH: usize = 100;

/// The service.
pub struct SnapshotsService<L>(Snapshotter<L>);

impl<L> Clone for SnapshotsService<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L> SnapshotsService<L> {
    /// Serves `snapshotter`.
    #[must_use]
    pub fn new(snapshotter: Snapshotter<L>) -> Self {
        Self(snapshotter)
    }
}

impl<L> NamedService for SnapshotsService<L> {
    const NAME: &'static str = "containerd.services.snapshots.v1.Snapshots";
}

/// A method with one answer.
struct Unary<F>(Arc<F>);

impl<F, R, In, Out> UnaryService<In> for Unary<F>
where
    F: Fn(Request<In>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Out, SnapshotError>> + Send + 'static,
    In: Send + 'static,
    Out: Send + 'static,
{
    type Response = Out;
    type Future = BoxFuture<'static, Result<Response<Out>, Status>>;

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let answer = (self.0)(request);
        async move { answer.await.map(Response::new).map_err(|error| status(&error)) }.boxed()
    }
}

/// The method with many answers.
struct List<L>(Snapshotter<L>);

impl<L: Layers> ServerStreamingService<api::ListSnapshotsRequest> for List<L> {
    type Response = api::ListSnapshotsResponse;
    type ResponseStream = BoxStream<'static, Result<Self::Response, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<api::ListSnapshotsRequest>) -> Self::Future {
        let snapshotter = self.0.clone();
        async move {
            let found = snapshotter.list(&request.into_inner().filters).await.map_err(|error| status(&error))?;
            let found: Vec<api::Info> = found.into_iter().map(info_message).collect();
            let batches: Vec<_> = found.chunks(LIST_BATCH).map(<[_]>::to_vec).collect();
            let batches = batches.into_iter().map(|info| Ok(api::ListSnapshotsResponse { info }));
            Ok(Response::new(stream::iter(batches).boxed()))
        }
        .boxed()
    }
}

impl<L: Layers> tonic::codegen::Service<http::Request<Body>> for SnapshotsService<L> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.0.clone();
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let namespace = request.headers().get("containerd-namespace").and_then(|value| value.to_str().ok());
        let span = tracing::info_span!("snapshots", request = number, method, namespace);
        async move {
            let path =
                request.uri().path().rsplit_once('/').map(|(service, method)| (service.to_owned(), method.to_owned()));
            let answer = match path {
                Some((service, method)) if service.strip_prefix('/') == Some(Self::NAME) => {
                    dispatch(this, &method, request).await
                }
                _ => None,
            };
            Ok(answer.unwrap_or_else(|| Status::unimplemented("no such method").into_http()))
        }
        .instrument(span)
        .boxed()
    }
}

async fn unary<In, Out, F, R>(request: http::Request<Body>, handler: F) -> http::Response<Body>
where
    In: prost::Message + Default + Send + 'static,
    Out: prost::Message + Default + Send + 'static,
    F: Fn(Request<In>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Out, SnapshotError>> + Send + 'static,
{
    Grpc::new(ProstCodec::<Out, In>::default()).unary(Unary(Arc::new(handler)), request).await
}

/// Runs a method; `None` for one that does not exist.
async fn dispatch<L: Layers>(
    this: Snapshotter<L>,
    method: &str,
    request: http::Request<Body>,
) -> Option<http::Response<Body>> {
    Some(match method {
        "Prepare" => {
            let handler = move |request: Request<api::PrepareSnapshotRequest>| {
                let (this, namespace) = (this.clone(), namespace(request.metadata()));
                let asked = request.into_inner();
                async move {
                    let labels = labels(asked.labels);
                    let mounts = this.prepare(namespace.as_deref(), &asked.key, &asked.parent, labels).await?;
                    Ok(api::PrepareSnapshotResponse { mounts: mounts.into_iter().map(mount_message).collect() })
                }
            };
            unary(request, handler).await
        }
        "View" => {
            let handler = move |request: Request<api::ViewSnapshotRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move {
                    let mounts = this.view(&asked.key, &asked.parent, labels(asked.labels)).await?;
                    Ok(api::ViewSnapshotResponse { mounts: mounts.into_iter().map(mount_message).collect() })
                }
            };
            unary(request, handler).await
        }
        "Mounts" => {
            let handler = move |request: Request<api::MountsRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move {
                    let mounts = this.mounts(&asked.key).await?;
                    Ok(api::MountsResponse { mounts: mounts.into_iter().map(mount_message).collect() })
                }
            };
            unary(request, handler).await
        }
        "Commit" => {
            let handler = move |request: Request<CommitRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move { this.commit(&asked.name, &asked.key, &asked.parent, labels(asked.labels)).await }
            };
            unary(request, handler).await
        }
        "Remove" => {
            let handler = move |request: Request<api::RemoveSnapshotRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move { this.remove(&asked.key).await }
            };
            unary(request, handler).await
        }
        "Stat" => {
            let handler = move |request: Request<api::StatSnapshotRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move { Ok(api::StatSnapshotResponse { info: Some(info_message(this.stat(&asked.key).await?)) }) }
            };
            unary(request, handler).await
        }
        "Update" => {
            let handler = move |request: Request<api::UpdateSnapshotRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move {
                    let wanted = asked.info.unwrap_or_default();
                    let fields = asked.update_mask.map(|mask| mask.paths).unwrap_or_default();
                    let info = this.update(&wanted.name, labels(wanted.labels), fields).await?;
                    Ok(api::UpdateSnapshotResponse { info: Some(info_message(info)) })
                }
            };
            unary(request, handler).await
        }
        "Usage" => {
            let handler = move |request: Request<api::UsageRequest>| {
                let (this, asked) = (this.clone(), request.into_inner());
                async move {
                    let usage = this.usage(&asked.key).await?;
                    let (size, inodes) = (clamped(usage.bytes), clamped(usage.inodes));
                    Ok(api::UsageResponse { size, inodes })
                }
            };
            unary(request, handler).await
        }
        "Cleanup" => {
            let handler = move |_: Request<api::CleanupRequest>| {
                let this = this.clone();
                async move { this.cleanup().await }
            };
            unary(request, handler).await
        }
        "List" => {
            let codec = ProstCodec::<api::ListSnapshotsResponse, api::ListSnapshotsRequest>::default();
            Grpc::new(codec).server_streaming(List(this), request).await
        }
        _ => return None,
    })
}

/// `CommitSnapshotRequest` of containerd 2.2, which may bring the parent only now: later than the client crate's.
#[derive(Clone, PartialEq, prost::Message)]
struct CommitRequest {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "5")]
    parent: String,
}

/// containerd's namespace of a request (pkg/namespaces of containerd).
fn namespace(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("containerd-namespace")?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

fn labels(map: HashMap<String, String>) -> Labels {
    map.into_iter().collect()
}

fn mount_message(mount: Mount) -> ApiMount {
    ApiMount { r#type: mount.kind.to_owned(), source: mount.source, target: String::new(), options: mount.options }
}

fn info_message(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(timestamp(info.created)),
        updated_at: Some(timestamp(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos }
}

fn clamped(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The codes that containerd's own services answer with (errdefs of containerd).
pub(super) fn status(error: &SnapshotError) -> Status {
    let code = match error {
        SnapshotError::NotFound { .. } | SnapshotError::NoParent { .. } => Code::NotFound,
        SnapshotError::Exists { .. } => Code::AlreadyExists,
        SnapshotError::NoName
        | SnapshotError::ParentNotCommitted { .. }
        | SnapshotError::CannotUpdate { .. }
        | SnapshotError::Label(_)
        | SnapshotError::Filter(_) => Code::InvalidArgument,
        SnapshotError::NotActive { .. } | SnapshotError::NotMountable { .. } | SnapshotError::HasChildren { .. } => {
            Code::FailedPrecondition
        }
        SnapshotError::Unavailable { .. } => Code::Unavailable,
        SnapshotError::Io { .. }
        | SnapshotError::NotMapped { .. }
        | SnapshotError::Database { .. }
        | SnapshotError::ForeignDatabase { .. }
        | SnapshotError::Internal { .. } => Code::Unknown,
    };
    Status::new(code, error.to_string())
}
