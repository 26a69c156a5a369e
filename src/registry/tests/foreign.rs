//! The client against a registry of other make: Debian's `docker-registry` (distribution 2.8), which has no referrers
//! endpoint.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;

use super::document::media_type;
use super::*;
use crate::soci;

/// The server; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It can only fail when the process is gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts a server with its data under `dir`; `None`, said loudly, when there is none on this machine.
fn start(test: &str, dir: &Path) -> Option<(Server, String)> {
    // Between this and the server's own bind another process may take the port; the server then ends at once, the
    // client is refused, and the test fails rather than passing by chance.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let host = free.local_addr().expect("bound").to_string();
    drop(free);
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {host}\n",
        dir.join("data").display()
    );
    std::fs::write(&config, text).expect("written");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Some((Server(child), host)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            #[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
            {
                eprintln!("SKIPPED: {test}: docker-registry is not installed");
            }
            None
        }
        Err(error) => panic!("docker-registry: {error}"),
    }
}

#[tokio::test]
async fn debians_registry_takes_and_gives_images_and_indexes() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some((_server, host)) = start("debians_registry_takes_and_gives_images_and_indexes", dir.path()) else {
        return;
    };
    // The first request waits for the server to listen.
    let backoff =
        BackoffConfig { first: Duration::from_millis(20), longest: Duration::from_millis(200), retries: Some(100) };
    let client = Client::new(ClientConfig { backoff, ..ClientConfig::default() });
    let target: ImageRef = format!("{host}/team/app:1").parse().expect("a reference");

    let layer: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let layer_digest = Digest::of(&layer);
    client.push_blob(&target, layer_digest, &Upload::Bytes(layer.clone().into())).await.expect("the layer");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"tar").to_string()]},
    });
    let config = Bytes::from(config.to_string());
    client.push_blob(&target, Digest::of(&config), &Upload::Bytes(config.clone())).await.expect("the config");
    let manifest = Bytes::from(
        json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": {
                "mediaType": media_type::OCI_CONFIG, "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer_digest.to_string(), "size": layer.len(),
            }],
        })
        .to_string(),
    );
    let pushed =
        client.push_manifest(&target, Some("1"), media_type::OCI_MANIFEST, &manifest).await.expect("the image");

    let source = ImageSource::Registry(target.clone());
    let image = client.resolve(&source, &Platform::new("linux", "amd64", "")).await.expect("resolved");
    assert_eq!(image.manifest.as_ref().map(|m| (m.digest, m.bytes.clone())), Some((pushed.digest, manifest)));
    let blob = client.blob(&source, layer_digest, image.layers[0].size).await.expect("a blob");
    let range = BlobRange::new(BlobOffset::new(1001), BlobOffset::new(700_000)).expect("ordered");
    let mut stream = blob.open(range).await.expect("opened");
    assert_eq!(stream.starts_at, range.start());
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece.expect("a piece"));
    }
    assert!(bytes == layer[1001..700_000]);

    let store = soci::Store::open(&dir.path().join("here")).expect("a store");
    assert!(soci::discover(&image, &client, &store, soci::LocalPolicy::default()).await.layers == [None]);
    let elsewhere = soci::Store::open(&dir.path().join("elsewhere")).expect("a store");
    let digest = elsewhere.put(b"a ztoc").expect("stored");
    let ztoc = soci::ZtocEntry {
        digest,
        size: BlobOffset::new(6),
        layer_digest,
        layer_media_type: image.layers[0].media_type.clone(),
        span_size_bytes: Some(1 << 22),
        disable_xattrs: false,
    };
    let kind = soci::Kind::V1 { subject: image.manifest.as_ref().map(soci::subject_of) };
    let created =
        soci::compose(kind, vec![soci::IndexedLayer { ztoc, prefetch: None, own: false }], "test").expect("an index");
    for _ in 0..2 {
        soci::push(&client, &target, &elsewhere.source(), &created, 1, &|_| {}).await.expect("pushed");
    }
    let found = soci::discover(&image, &client, &store, soci::LocalPolicy::default()).await;
    assert!(soci::fetch(&found, &image, &client, &store).await.is_empty());
    let ztoc = found.layers[0].expect("a zTOC");
    assert_eq!(ztoc.origin, soci::Origin::V1Referrers { index: created.digest });
    assert_eq!(store.read(&ztoc.digest).expect("stored"), b"a ztoc");
}
