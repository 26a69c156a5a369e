use std::path::Path;

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::registry::{BackoffConfig, ClientConfig, LayerCompression};
use crate::testkit::registry::TestRegistry;
use crate::units::BlobRange;

fn client() -> Client {
    let backoff = BackoffConfig { retries: Some(0), ..BackoffConfig::default() };
    Client::new(ClientConfig { backoff, ..ClientConfig::default() })
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

async fn resolve(registry: &TestRegistry, name: &str, platform: &str) -> Result<Image, RegistryError> {
    let source = format!("{}/{name}", registry.host()).parse().expect("a reference");
    client().resolve(&source, &platform.parse().expect("a platform")).await
}

fn entry(registry: &TestRegistry, digest: Digest, platform: Option<&str>) -> Value {
    let bytes = registry.manifest("app", &digest.to_string()).expect("a manifest");
    let is_index = matches!(parse_manifest(&bytes, None), Ok(ManifestDocument::Index(_)));
    let kind = if is_index { media_type::OCI_INDEX } else { media_type::OCI_MANIFEST };
    let mut entry = json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()});
    if let Some((os, architecture)) = platform.and_then(|p| p.split_once('/')) {
        let (architecture, variant) = architecture.split_once('/').unwrap_or((architecture, ""));
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
    }
    entry
}

fn image(registry: &TestRegistry, architecture: &str, layer: &[u8]) -> Digest {
    registry.put_image_with("app", None, architecture, &[(layer, Digest::of(b"tar"))], &serde_json::Map::new())
}

fn put_index(registry: &TestRegistry, tag: &str, manifests: &[Value]) -> Digest {
    let document = json!({"schemaVersion": 2, "manifests": manifests});
    registry.put_manifest("app", Some(tag), media_type::OCI_INDEX, document.to_string())
}

#[tokio::test]
async fn an_image_with_its_layers() {
    let registry = TestRegistry::start();
    let diff_ids = [Digest::of(b"a tar"), Digest::of(b"b tar")];
    let digest = registry.put_image("team/app", "1", &[(b"blob a", diff_ids[0]), (b"blob b!", diff_ids[1])]);
    let image = resolve(&registry, "team/app:1", "linux/amd64").await.expect("resolved");
    let manifest = image.manifest.as_ref().expect("a manifest");
    assert_eq!((manifest.digest, manifest.media_type.as_str()), (digest, media_type::OCI_MANIFEST));
    assert_eq!(Digest::of(&manifest.bytes), digest, "the bytes are kept");
    let layers: Vec<_> = image.layers.iter().map(|l| (l.digest, l.size.get(), l.diff_id, l.compression())).collect();
    assert_eq!(
        layers,
        [
            (Digest::of(b"blob a"), 6, Some(diff_ids[0]), LayerCompression::Gzip),
            (Digest::of(b"blob b!"), 7, Some(diff_ids[1]), LayerCompression::Gzip)
        ]
    );
    let by_digest = resolve(&registry, &format!("team/app@{digest}"), "linux/amd64").await.expect("by digest");
    assert_eq!(by_digest.layers, image.layers);
}

#[tokio::test]
async fn indexes_are_searched_for_the_platform() {
    let registry = TestRegistry::start();
    let [amd, arm6, arm7, plain] =
        [("amd64", "a"), ("arm", "6"), ("arm", "7"), ("riscv64", "r")].map(|(a, l)| image(&registry, a, l.as_bytes()));
    let nested = put_index(&registry, "inner", &[entry(&registry, amd, Some("linux/amd64"))]);
    put_index(
        &registry,
        "multi",
        &[
            entry(&registry, image(&registry, "unknown", b"attestation"), Some("unknown/unknown")),
            entry(&registry, arm6, Some("linux/arm/v6")),
            entry(&registry, arm7, Some("linux/arm/v7")),
            entry(&registry, plain, None),
            entry(&registry, nested, None),
        ],
    );
    for (platform, want) in [
        ("linux/amd64", amd),
        ("linux/arm/v7", arm7),
        ("linux/arm/v6", arm6),
        ("linux/arm/v8", arm7),
        ("linux/riscv64", plain),
    ] {
        let image = resolve(&registry, "app:multi", platform).await.unwrap_or_else(|e| panic!("{platform}: {e}"));
        assert_eq!(image.manifest.map(|m| m.digest), Some(want), "{platform}");
    }
    let error = resolve(&registry, "app:multi", "linux/arm/v5").await.expect_err("too old");
    let text = error.to_string();
    assert!(matches!(error, RegistryError::NoPlatform { .. }), "{text}");
    for part in ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "--platform"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    assert!(!text.contains("unknown"), "{text}");
}

#[tokio::test]
async fn indexes_cannot_nest_without_end() {
    let registry = TestRegistry::start();
    let mut digest = image(&registry, "amd64", b"a");
    for depth in 0..6 {
        digest = put_index(&registry, &format!("depth-{depth}"), &[entry(&registry, digest, None)]);
    }
    resolve(&registry, "app:depth-2", "linux/amd64").await.expect("three deep");
    let error = resolve(&registry, "app:depth-5", "linux/amd64").await.expect_err("six deep");
    assert!(matches!(error, RegistryError::Document { .. }), "{error}");
    put_index(&registry, "empty", &[]);
    assert!(matches!(resolve(&registry, "app:empty", "linux/amd64").await, Err(RegistryError::NoPlatform { .. })));
}

#[tokio::test]
async fn a_single_image_of_another_platform_says_how_to_ask_for_it() {
    let registry = TestRegistry::start();
    registry.put_image_with("app", Some("arm"), "arm64", &[], &serde_json::Map::new());
    let error = resolve(&registry, "app:arm", "linux/amd64").await.expect_err("another machine").to_string();
    assert!(error.contains("linux/arm64") && error.contains("--platform"), "{error}");
    resolve(&registry, "app:arm", "linux/arm64").await.expect("asked for");
}

#[tokio::test]
async fn manifests_and_configs_must_agree() {
    let registry = TestRegistry::start();
    let layer = json!({"mediaType": "x", "digest": Digest::of(b"l").to_string(), "size": 1});
    for (name, config_type, config, layers, want) in [
        (
            "count",
            media_type::OCI_CONFIG,
            r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#,
            vec![layer.clone()],
            "diff_ids",
        ),
        ("chart", "application/vnd.cncf.helm.config.v1+json", "{}", vec![], "no container image"),
        ("json", media_type::OCI_CONFIG, "not json", vec![], "config sha256:"),
        ("rootfs", media_type::DOCKER_CONFIG, "{}", vec![], "rootfs"),
    ] {
        let digest = registry.put_blob(config).to_string();
        let manifest = json!({
            "schemaVersion": 2, "layers": layers,
            "config": {"mediaType": config_type, "digest": digest, "size": config.len()},
        });
        registry.put_manifest("app", Some(name), media_type::OCI_MANIFEST, manifest.to_string());
        let error = resolve(&registry, &format!("app:{name}"), "linux/amd64").await.expect_err(name).to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
    let manifest = json!({
        "schemaVersion": 2, "layers": [],
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b"c").to_string(), "size": 1_u64 << 40},
    });
    registry.put_manifest("app", Some("huge"), media_type::OCI_MANIFEST, manifest.to_string());
    assert!(matches!(resolve(&registry, "app:huge", "linux/amd64").await, Err(RegistryError::TooLong { .. })));
}

/// Writes the image of a registry as a layout, under the given names.
fn write_layout(dir: &Path, registry: &TestRegistry, images: &[(&str, Digest)]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("directories");
    let mut manifests = Vec::new();
    for (tag, digest) in images {
        let bytes = registry.manifest("app", &digest.to_string()).expect("a manifest");
        std::fs::write(blobs.join(digest.hex()), &bytes).expect("written");
        let document: Value = serde_json::from_slice(&bytes).expect("JSON");
        let layers = document["layers"].as_array().expect("layers").iter();
        for blob in layers.chain([&document["config"]]) {
            let digest: Digest = blob["digest"].as_str().expect("a digest").parse().expect("a digest");
            std::fs::write(blobs.join(digest.hex()), registry.blob(&digest).expect("a blob")).expect("written");
        }
        let mut entry = entry(registry, *digest, None);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    std::fs::write(dir.join("index.json"), index.to_string()).expect("written");
}

#[tokio::test]
async fn layouts() {
    let registry = TestRegistry::start();
    let (a, b) = (image(&registry, "amd64", b"layer a"), image(&registry, "amd64", b"layer b"));
    let dir = tempfile::tempdir().expect("a directory");
    let oci = |suffix: &str| format!("oci:{}{suffix}", dir.path().display()).parse::<ImageSource>().expect("a source");
    let digest_of = |image: Image| image.manifest.expect("a manifest").digest;
    write_layout(dir.path(), &registry, &[("a", a)]);
    assert_eq!(digest_of(client().resolve(&oci(""), &amd64()).await.expect("the only one")), a);
    write_layout(dir.path(), &registry, &[("a", a), ("b", b)]);
    assert_eq!(digest_of(client().resolve(&oci(":b"), &amd64()).await.expect("by tag")), b);
    assert_eq!(digest_of(client().resolve(&oci(&format!("@{a}")), &amd64()).await.expect("by digest")), a);
    for (suffix, want) in [("", ":a, :b"), (":c", "tagged c")] {
        let error = client().resolve(&oci(suffix), &amd64()).await.expect_err(suffix).to_string();
        assert!(error.contains(want) && error.contains("index.json"), "{error}");
    }

    let image = client().resolve(&oci(":a"), &amd64()).await.expect("resolved");
    let layer = &image.layers[0];
    let blob = client().blob(&image.source, layer.digest, layer.size).await.expect("opened");
    let range = BlobRange::from_len(BlobOffset::new(2), 3).expect("in range");
    let mut stream = blob.open(range).await.expect("opened");
    assert_eq!(stream.starts_at.get(), 2);
    assert_eq!(stream.bytes.next().await.expect("bytes").expect("read"), &b"yer"[..]);

    let path = dir.path().join("blobs/sha256").join(layer.digest.hex());
    std::fs::write(&path, b"short").expect("written");
    let error = client().blob(&image.source, layer.digest, layer.size).await.err().expect("cut short");
    assert!(matches!(error, RegistryError::FileChanged { .. }), "{error}");
    std::fs::write(dir.path().join("blobs/sha256").join(a.hex()), b"{}").expect("written");
    let error = client().resolve(&oci(":a"), &amd64()).await.expect_err("changed");
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
    std::fs::remove_file(dir.path().join("index.json")).expect("removed");
    assert!(client().resolve(&oci(""), &amd64()).await.expect_err("no layout").is_not_found());
}

#[tokio::test]
async fn a_layer_file_is_an_image_of_one_layer() {
    let dir = tempfile::tempdir().expect("a directory");
    for (bytes, want) in [
        (&b"\x1f\x8b\x08 rest"[..], LayerCompression::Gzip),
        (&b"\x28\xb5\x2f\xfd rest"[..], LayerCompression::Zstd),
        (&b"usr/\0"[..], LayerCompression::None),
    ] {
        let path = dir.path().join("layer");
        std::fs::write(&path, bytes).expect("written");
        let source: ImageSource = format!("layer:{}", path.display()).parse().expect("a source");
        let image = client().resolve(&source, &amd64()).await.expect("resolved");
        let layer = &image.layers[0];
        assert_eq!((layer.digest, layer.size.get()), (Digest::of(bytes), bytes.len() as u64));
        assert_eq!((layer.compression(), layer.diff_id, image.manifest), (want, None, None));
        client().blob(&image.source, layer.digest, layer.size).await.expect("opened");
        assert!(client().manifest(&image.source, Digest::of(b"")).await.is_err(), "no manifests in a file");
    }
    let missing: ImageSource = format!("layer:{}/none", dir.path().display()).parse().expect("a source");
    assert!(client().resolve(&missing, &amd64()).await.expect_err("missing").is_not_found());
}

#[tokio::test]
async fn artifacts_in_a_layout_are_referrers_and_never_the_image() {
    let registry = TestRegistry::start();
    let subject = image(&registry, "amd64", b"layer");
    let dir = tempfile::tempdir().expect("a directory");
    write_layout(dir.path(), &registry, &[("a", subject)]);
    let kind = "application/vnd.example.kind";
    let artifact = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
        "config": {"mediaType": kind, "digest": Digest::of(b"{}").to_string(), "size": 2},
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject.to_string(), "size": 1},
    })
    .to_string();
    let digest = Digest::of(artifact.as_bytes());
    std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &artifact).expect("written");
    let path = dir.path().join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    let entry = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": artifact.len()});
    index["manifests"].as_array_mut().expect("a list").insert(0, entry);
    std::fs::write(&path, index.to_string()).expect("written");

    let source: ImageSource = format!("oci:{}", dir.path().display()).parse().expect("a source");
    let found = client().resolve(&source, &amd64()).await.expect("the image");
    assert_eq!(found.manifest.map(|m| m.digest), Some(subject));
    let listed = client().referrers(&source, subject, kind).await.expect("listed");
    assert_eq!(listed.iter().map(|d| d.digest).collect::<Vec<_>>(), [digest]);
    assert_eq!(client().referrers(&source, subject, "application/other").await.expect("none"), []);
}
