//! The service over a unix socket, asked by containerd's own client.

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{self as api};
use futures_util::{StreamExt, stream};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};

use super::super::service::SnapshotsService;
use super::*;

/// A server, its client, and what it serves.
struct Wire {
    client: SnapshotsClient<Channel>,
    channel: Channel,
    world: World,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn wire() -> Wire {
    let world = World::new();
    let socket = world.dir.path().join("sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("binds");
    let incoming = stream::unfold(listener, |listener| async move {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let service = SnapshotsService::new(world.snapshotter.clone());
    let server = tokio::spawn(async move {
        Server::builder().add_service(service).serve_with_incoming(incoming.boxed()).await.expect("serves");
    });
    let channel = containerd_client::connect(&socket).await.expect("connects");
    Wire { client: SnapshotsClient::new(channel.clone()), channel, world, server }
}

/// A request in a namespace.
fn in_ns<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("ASCII"));
    request
}

impl Wire {
    async fn prepare(&mut self, key: &str, parent: &str, labels: Labels) -> Result<Vec<String>, Status> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), labels.into_iter().collect());
        let asked = api::PrepareSnapshotRequest { snapshotter: "s".to_owned(), key, parent, labels };
        let answer = self.client.prepare(in_ns(asked)).await?.into_inner();
        Ok(answer.mounts.into_iter().map(|mount| format!("{} {:?}", mount.r#type, mount.options)).collect())
    }

    async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        let (name, key) = (name.to_owned(), key.to_owned());
        let asked =
            api::CommitSnapshotRequest { name, key, labels: gc_root().into_iter().collect(), ..Default::default() };
        self.client.commit(in_ns(asked)).await.map(drop)
    }

    async fn list(&mut self, filters: &[&str]) -> Result<Vec<Vec<String>>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let mut batches =
            self.client.list(in_ns(api::ListSnapshotsRequest { filters, ..Default::default() })).await?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = batches.message().await? {
            all.push(batch.info.into_iter().map(|info| info.name).collect());
        }
        Ok(all)
    }

    async fn stat(&mut self, key: &str) -> Result<api::Info, Status> {
        let asked = api::StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.client.stat(in_ns(asked)).await?.into_inner().info.expect("always there"))
    }
}

#[tokio::test]
async fn every_method_answers() {
    let mut wire = wire().await;
    assert_eq!(wire.prepare("a", "", gc_root()).await.expect("prepares"), [r#"bind ["rw", "rbind"]"#]);
    wire.commit("c", "a").await.expect("commits");
    let view = api::ViewSnapshotRequest { key: "v".to_owned(), parent: "c".to_owned(), ..Default::default() };
    let mounts = wire.client.view(in_ns(view)).await.expect("views").into_inner().mounts;
    assert_eq!(mounts[0].options, ["ro", "rbind"]);
    let again = api::MountsRequest { key: "v".to_owned(), ..Default::default() };
    assert_eq!(wire.client.mounts(in_ns(again)).await.expect("mounts").into_inner().mounts, mounts);

    let info = wire.stat("c").await.expect("stat");
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("c", "", api::Kind::Committed));
    assert_eq!(info.labels, gc_root().into_iter().collect());
    assert!(info.created_at.is_some_and(|at| at.seconds > 1_700_000_000) && info.updated_at == info.created_at);
    assert_eq!(wire.stat("v").await.expect("stat").kind(), api::Kind::View);

    let changed = api::Info { name: "c".to_owned(), labels: [("l".to_owned(), "1".to_owned())].into(), ..info.clone() };
    let mask = prost_types::FieldMask { paths: vec!["labels.l".to_owned()] };
    let asked = api::UpdateSnapshotRequest { info: Some(changed), update_mask: Some(mask), ..Default::default() };
    let updated = wire.client.update(in_ns(asked)).await.expect("updates").into_inner().info.expect("info");
    assert_eq!(updated.labels.len(), 2);
    assert!(updated.created_at == info.created_at && updated.updated_at != info.updated_at);
    assert_eq!(wire.stat("c").await.expect("stat"), updated);

    let asked = api::UsageRequest { key: "c".to_owned(), ..Default::default() };
    let usage = wire.client.usage(in_ns(asked)).await.expect("usage").into_inner();
    assert_eq!(usage.inodes, 1);
    assert_eq!(wire.list(&[]).await.expect("lists"), [["c", "v"]]);
    for key in ["v", "c"] {
        let asked = api::RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() };
        wire.client.remove(in_ns(asked)).await.expect(key);
    }
    wire.client.cleanup(in_ns(api::CleanupRequest::default())).await.expect("cleans");
    assert!(wire.world.entries().is_empty());
    assert!(wire.list(&[]).await.expect("lists").is_empty(), "no batch of nothing");
}

/// What containerd's proxy turns back into its own errors: their codes, and texts that say what it was.
#[tokio::test]
async fn errors_have_containerds_codes() {
    let mut wire = wire().await;
    wire.prepare("a", "", Labels::new()).await.expect("prepares");
    wire.prepare("b", "", Labels::new()).await.expect("prepares");
    wire.commit("c", "b").await.expect("commits");
    wire.prepare("child", "c", Labels::new()).await.expect("prepares");
    let mounts = api::MountsRequest { key: "c".to_owned(), ..Default::default() };
    let remove = |key: &str| in_ns(api::RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() });
    let usage = api::UsageRequest { key: "x".to_owned(), ..Default::default() };
    let info = api::Info { name: "c".to_owned(), ..Default::default() };
    let mask = prost_types::FieldMask { paths: vec!["kind".to_owned()] };
    let update = api::UpdateSnapshotRequest { info: Some(info), update_mask: Some(mask), ..Default::default() };
    let (client, answers) = (
        wire.client.clone(),
        [
            ("the key is taken", wire.prepare("a", "", Labels::new()).await.map(drop), Code::AlreadyExists),
            ("no such parent", wire.prepare("k", "x", Labels::new()).await.map(drop), Code::NotFound),
            ("a parent not committed", wire.prepare("k", "a", Labels::new()).await.map(drop), Code::InvalidArgument),
            ("no key", wire.prepare("", "", Labels::new()).await.map(drop), Code::InvalidArgument),
            ("a name that is taken", wire.commit("c", "a").await, Code::AlreadyExists),
            ("no such key", wire.commit("d", "x").await, Code::NotFound),
            ("not active", wire.commit("d", "c").await, Code::FailedPrecondition),
            ("no such snapshot", wire.stat("x").await.map(drop), Code::NotFound),
            ("a filter that is none", wire.list(&["a=b"]).await.map(drop), Code::InvalidArgument),
        ],
    );
    let mut more = client;
    let more = [
        ("committed", more.mounts(in_ns(mounts)).await.map(drop), Code::FailedPrecondition),
        ("a child", more.remove(remove("c")).await.map(drop), Code::FailedPrecondition),
        ("nothing to remove", more.remove(remove("x")).await.map(drop), Code::NotFound),
        ("nothing to measure", more.usage(in_ns(usage)).await.map(drop), Code::NotFound),
        ("nothing but labels", more.update(in_ns(update)).await.map(drop), Code::InvalidArgument),
    ];
    for (case, answer, code) in answers.into_iter().chain(more) {
        let status = answer.expect_err(case);
        assert_eq!(status.code(), code, "{case}: {status}");
        assert!(!status.message().is_empty(), "{case}");
    }
}

/// containerd's side of a remote snapshot: AlreadyExists, then the search by label and parent (core/metadata).
#[tokio::test]
async fn a_layer_is_found_as_containerd_looks_for_it() {
    let mut wire = wire().await;
    let mut parent = String::new();
    for layer in 0..3 {
        let status = wire.prepare("k", &parent, image_labels("registry/app:1", layer)).await.expect_err("is there");
        assert_eq!(status.code(), Code::AlreadyExists);
        let filter = format!("labels.{SNAPSHOT_REF:?}=={},parent=={parent:?}", chain_id(layer));
        assert_eq!(wire.list(&[&filter]).await.expect("lists"), [[chain_id(layer)]]);
        parent = chain_id(layer);
    }
    assert_eq!(wire.prepare("container", &parent, gc_root()).await.expect("prepares").len(), 1);
}

#[tokio::test]
async fn lists_come_in_batches() {
    let mut wire = wire().await;
    for n in 0..250 {
        wire.world.snapshotter.prepare(None, &format!("k{n:03}"), "", Labels::new()).await.expect("prepares");
    }
    let batches = wire.list(&[]).await.expect("lists");
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    assert!(batches.concat().is_sorted());
    assert_eq!(wire.list(&["name~=^k1.0$"]).await.expect("lists").concat().len(), 10);
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let wire = wire().await;
    for path in [
        "/containerd.services.snapshots.v1.Snapshots/Nothing",
        "/containerd.services.snapshots.v1.Snapshots/prepare",
        "/containerd.services.snapshots.v1.Snapshots/x/Prepare",
        "/containerd.services.content.v1.Content/Info",
    ] {
        let mut grpc = tonic::client::Grpc::new(wire.channel.clone());
        grpc.ready().await.expect("connected");
        let codec = tonic_prost::ProstCodec::<api::StatSnapshotRequest, api::StatSnapshotResponse>::default();
        let asked = Request::new(api::StatSnapshotRequest::default());
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let status = grpc.unary(asked, path.clone(), codec).await.expect_err("no such method");
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status}");
    }
}

/// `Commit` of containerd 2.2 brings a parent.
#[tokio::test]
async fn a_parent_may_come_with_the_commit() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct NewCommit {
        #[prost(string, tag = "2")]
        name: String,
        #[prost(string, tag = "3")]
        key: String,
        #[prost(string, tag = "5")]
        parent: String,
    }
    let mut wire = wire().await;
    wire.prepare("a", "", Labels::new()).await.expect("prepares");
    wire.commit("base", "a").await.expect("commits");
    wire.prepare("b", "", Labels::new()).await.expect("prepares");
    let mut grpc = tonic::client::Grpc::new(wire.channel.clone());
    grpc.ready().await.expect("connected");
    let path = "/containerd.services.snapshots.v1.Snapshots/Commit";
    let asked = NewCommit { name: "top".to_owned(), key: "b".to_owned(), parent: "base".to_owned() };
    let codec = tonic_prost::ProstCodec::<NewCommit, ()>::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(Request::new(asked), path, codec).await.expect("commits");
    assert_eq!(wire.stat("top").await.expect("stat").parent, "base");
}

/// A client that hangs up while its layer is fetched.
#[tokio::test]
async fn a_cancelled_call_leaves_nothing() {
    let mut wire = wire().await;
    wire.world.layers.close_gate();
    let call = {
        let asked = api::PrepareSnapshotRequest {
            key: "k".to_owned(),
            labels: image_labels("registry/app:1", 1).into_iter().collect(),
            ..Default::default()
        };
        let mut client = wire.client.clone();
        tokio::spawn(async move { client.prepare(in_ns(asked)).await })
    };
    while wire.world.layers.owners().await.is_empty() {
        tokio::task::yield_now().await;
    }
    call.abort();
    while !wire.world.layers.owners().await.is_empty() {
        tokio::task::yield_now().await;
    }
    wire.world.layers.gate.add_permits(1);
    let status = wire.prepare("k", "", image_labels("registry/app:1", 1)).await.expect_err("is there");
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(wire.list(&[]).await.expect("lists"), [[chain_id(1)]]);
}
