//! Many layers at once, through the service that containerd asks.

use std::collections::HashMap;
use std::fs;

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, PrepareSnapshotRequest};
use futures_util::future::join_all;
use rustix::process::Pid;
use sociblk::snapshot::labels::{IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST, SNAPSHOT_REF};
use sociblk::testkit::registry::TestRegistry;
use sociblk::units::Digest;
use tonic::{Code, Request};

use crate::layers::{Layer, Maker, as_image, noise};
use crate::support::{Host, utf8, wait_until};

const LAYERS: usize = 200;
/// What docs/OPERATIONS.md states of a layer that nobody reads.
const DESCRIPTORS_PER_LAYER: usize = 4;
/// And of the threads of a daemon that has nothing to do, however many layers there are.
const IDLE_THREADS: [&str; 8] = [
    "cache-flush",
    "fill-cpu-0",
    "fuse-reply-0",
    "fuse-session-0",
    "fuse-session-1",
    "sociblk",
    "sociblk-net",
    "sociblk-net",
];
/// Connections that are kept for a while: to the registry, and the test's own.
const CONNECTIONS: usize = 16;

fn body(layer: usize) -> Vec<u8> {
    noise(layer as u64, 30_000)
}

fn many(layers: &[Layer], manifest: &Digest, image: &str) -> Vec<PrepareSnapshotRequest> {
    let labels = |layer: &Layer| {
        let labels = [
            (SNAPSHOT_REF, layer.diff_id().to_string()),
            (IMAGE_REF, image.to_owned()),
            (MANIFEST_DIGEST, manifest.to_string()),
            (LAYER_DIGEST, layer.digest().to_string()),
        ];
        labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<HashMap<_, _>>()
    };
    let request = |(number, layer): (usize, &Layer)| PrepareSnapshotRequest {
        snapshotter: "sociblk".to_owned(),
        key: format!("extract-{number}"),
        parent: String::new(),
        labels: labels(layer),
    };
    layers.iter().enumerate().map(request).collect()
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "default".parse().expect("ASCII"));
    request
}

fn entries(pid: Pid, what: &str) -> usize {
    fs::read_dir(format!("/proc/{}/{what}", pid.as_raw_nonzero())).expect("the daemon lives").count()
}

/// Names of the daemon's threads; one that ends meanwhile has none.
fn threads(pid: Pid) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).expect("the daemon lives");
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
    let mut names: Vec<String> = tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect();
    names.sort();
    names
}

/// Every layer shows its own file.
fn assert_shown(host: &Host) {
    let mut seen = 0;
    for shown in fs::read_dir(host.root().join("mnt")).expect("mnt") {
        for file in fs::read_dir(shown.expect("entry").path()).expect("a layer") {
            let file = file.expect("entry");
            let number = utf8(&file.path()).rsplit_once('-').and_then(|(_, n)| n.parse().ok()).expect("file-NUMBER");
            assert!(fs::read(file.path()).expect("read") == body(number), "layer {number}");
            seen += 1;
        }
    }
    assert_eq!(seen, LAYERS);
}

#[test]
fn two_hundred_layers_at_once_cost_what_is_stated() {
    let Some(host) = Host::new("two_hundred_layers_at_once_cost_what_is_stated") else { return };
    host.config("[snapshotter]\nbackground = false\n");
    let registry = TestRegistry::start();
    let layer = |number: usize| Maker::new().file(&format!("file-{number}"), &body(number)).end();
    let layers: Vec<Layer> = (0..LAYERS).map(layer).collect();
    let manifest = registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    host.ok(&["create", &image, "--min-layer-size", "0", "--push"]);

    let socket = host.path("snapshots.sock");
    let serving = host.next_daemon_as(&["-v", "serve", "--address", utf8(&socket), "--frontend", "fuse-image"]);
    let pid = host.daemon().expect("a daemon");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let descriptors = runtime.block_on(async {
        let client = SnapshotsClient::new(containerd_client::connect(&socket).await.expect("connects"));
        let mut requests = many(&layers, &manifest, &image);
        // One before the others: what is there once, whatever the number of layers, is there.
        let first = client.clone().prepare(in_namespace(requests.remove(0))).await.expect_err("nothing to unpack");
        assert_eq!(first.code(), Code::AlreadyExists, "{first}");
        let before = entries(pid, "fd");
        let asked = requests.into_iter().map(|request| {
            let mut client = client.clone();
            async move { client.prepare(in_namespace(request)).await }
        });
        for answer in join_all(asked).await {
            let answer = answer.expect_err("nothing to unpack");
            assert_eq!(answer.code(), Code::AlreadyExists, "{answer}");
        }
        let listed = ListSnapshotsRequest { snapshotter: "sociblk".to_owned(), filters: Vec::new() };
        let mut listed = client.clone().list(in_namespace(listed)).await.expect("lists").into_inner();
        let mut count = 0;
        while let Some(part) = listed.message().await.expect("a part") {
            count += part.info.len();
        }
        assert_eq!(count, LAYERS);
        before
    });
    // Threads that did the work end when there is none for some seconds, and nothing that is done now and then takes one.
    wait_until("threads end", || threads(pid) == IDLE_THREADS);
    let most = descriptors + (LAYERS - 1) * DESCRIPTORS_PER_LAYER + CONNECTIONS;
    wait_until("no more descriptors than stated", || entries(pid, "fd") <= most);
    assert_shown(&host);

    // All of them outlive the daemon.
    host.kill_daemon();
    serving.end();
    let next = host.next_daemon();
    assert_shown(&host);
    let most = most + CONNECTIONS;
    let pid = host.daemon().expect("a daemon");
    assert!(entries(pid, "fd") <= most, "{} descriptors, {most} at most", entries(pid, "fd"));
    host.stop_daemon();
    next.end();
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
}
