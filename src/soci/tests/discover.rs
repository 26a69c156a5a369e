use std::time::Duration;

use super::*;
use crate::registry::document::media_type;
use crate::registry::{BackoffConfig, ClientConfig, ImageRef, ImageSource, Platform};
use crate::soci::{
    CreatedIndex, INDEX_DIGEST, IndexedLayer, Kind, PrefetchEntry, Subject, V1_TYPE, V2_TYPE, ZtocEntry, compose, push,
    subject_of,
};
use crate::testkit::registry::{Fault, TestRegistry};

const ZTOCS: [&[u8]; 2] = [b"the ztoc of a", b"the ztoc of b"];
const LAYERS: [&[u8]; 3] = [b"layer a", b"layer b", b"layer c"];

struct World {
    registry: TestRegistry,
    client: Client,
    dir: tempfile::TempDir,
    store: Store,
}

fn world() -> World {
    let registry = TestRegistry::start();
    let backoff =
        BackoffConfig { first: Duration::from_millis(1), longest: Duration::from_millis(2), retries: Some(1) };
    let client = Client::new(ClientConfig { backoff, ..ClientConfig::default() });
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    World { registry, client, dir, store }
}

impl World {
    fn put_image(&self, annotations: &[(&str, String)]) {
        let layers: Vec<_> = LAYERS.iter().map(|layer| (*layer, Digest::of(b"tar"))).collect();
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
        self.registry.put_image_with("app", Some("1"), "amd64", &layers, &annotations);
    }

    fn target(&self) -> ImageRef {
        format!("{}/app:1", self.registry.host()).parse().expect("a reference")
    }

    async fn image(&self) -> Image {
        let source = ImageSource::Registry(self.target());
        self.client.resolve(&source, &Platform::new("linux", "amd64", "")).await.expect("resolved")
    }

    async fn discover(&self, image: &Image) -> Discovery {
        discover(image, &self.client, &self.store, LocalPolicy::default()).await
    }

    /// A v2 index of layers a and b, pushed; its digest.
    fn put_v2(&self) -> Digest {
        let ztocs = (0..2).map(|i| ZtocEntry {
            digest: self.registry.put_blob(ZTOCS[i]),
            size: BlobOffset::new(ZTOCS[i].len() as u64),
            layer_digest: Digest::of(LAYERS[i]),
            layer_media_type: String::new(),
            span_size_bytes: Some(1 << 22),
            disable_xattrs: false,
        });
        let prefetch =
            PrefetchEntry { digest: Digest::of(b"p"), size: BlobOffset::new(1), layer_digest: Digest::of(LAYERS[0]) };
        let index = SociIndex {
            kind: Kind::V2,
            ztocs: ztocs.collect(),
            prefetch: vec![prefetch],
            build_tool: "someone else".into(),
        };
        let bytes = index.to_bytes().expect("an index");
        self.registry.put_manifest("app", None, media_type::OCI_MANIFEST, bytes)
    }

    /// A v1 index of layers a and b, made in a store of its own and pushed; its digest.
    async fn push_v1(&self) -> Digest {
        let image = self.image().await;
        let elsewhere = Store::open(&self.dir.path().join("elsewhere")).expect("a store");
        let created = create(&elsewhere, &image, 2).expect("an index");
        push(&self.client, &self.target(), &elsewhere.source(), &created, 2, &|_| {}).await.expect("pushed");
        created.digest
    }
}

/// A v1 index of the first layers, in the store.
fn create(store: &Store, image: &Image, layers: usize) -> Result<CreatedIndex, SociError> {
    let mut parts = Vec::new();
    for (layer, ztoc) in image.layers.iter().zip(ZTOCS).take(layers) {
        let (digest, size) = (store.put(ztoc)?, BlobOffset::new(ztoc.len() as u64));
        store.record_ztoc(&layer.digest, &RecordedZtoc { digest, size, span_size_bytes: Some(1 << 22) })?;
        parts.push(IndexedLayer {
            ztoc: ZtocEntry {
                digest,
                size,
                layer_digest: layer.digest,
                layer_media_type: layer.media_type.clone(),
                span_size_bytes: Some(1 << 22),
                disable_xattrs: false,
            },
            prefetch: None,
            own: false,
        });
    }
    let kind = Kind::V1 { subject: image.manifest.as_ref().map(subject_of) };
    let created = compose(kind, parts, "test")?;
    store.put(crate::soci::CONFIG)?;
    store.put_index(V1_TYPE, &created.bytes)?;
    Ok(created)
}

fn origins(discovery: &Discovery) -> Vec<Option<Origin>> {
    discovery.layers.iter().map(|layer| layer.map(|ztoc| ztoc.origin)).collect()
}

#[tokio::test]
async fn an_image_without_an_index_has_none_and_that_is_no_error() {
    let world = world();
    for api in [true, false] {
        world.registry.referrers_api(api);
        world.put_image(&[]);
        let found = world.discover(&world.image().await).await;
        assert_eq!(origins(&found), [None; 3]);
        assert!(found.failure.is_none() && found.trace().iter().any(|t| t.contains("0 found")), "{:?}", found.trace());
    }
}

#[tokio::test]
async fn v1_by_endpoint_and_by_fallback_tag() {
    for api in [true, false] {
        let world = world();
        world.registry.referrers_api(api);
        world.put_image(&[]);
        let index = world.push_v1().await;
        let image = world.image().await;
        let found = world.discover(&image).await;
        let by_v1 = Some(Origin::V1Referrers { index });
        assert_eq!(origins(&found), [by_v1, by_v1, None], "{:?}", found.trace());
        assert_eq!(found.layers[0].and_then(|z| z.span_size_bytes), Some(1 << 22));
        assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
        let again = world.discover(&image).await;
        assert_eq!(origins(&again), [by_v1, by_v1, None], "an index speaks for its image only, every time");
        for (ztoc, want) in again.layers.iter().flatten().zip(ZTOCS) {
            assert_eq!(world.store.read(&ztoc.digest).expect("stored"), want);
        }
    }
}

#[tokio::test]
async fn nothing_is_asked_when_the_store_knows_all() {
    let world = world();
    world.put_image(&[]);
    let image = world.image().await;
    for layer in &image.layers {
        let digest = world.store.put(ZTOCS[0]).expect("stored");
        let size = BlobOffset::new(ZTOCS[0].len() as u64);
        world
            .store
            .record_ztoc(&layer.digest, &RecordedZtoc { digest, size, span_size_bytes: None })
            .expect("recorded");
    }
    world.registry.clear_requests();
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [Some(Origin::Local); 3]);
    assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
    assert!(world.registry.requests().is_empty(), "a node restarts without its registry");
}

#[tokio::test]
async fn the_annotation_wins_and_a_dangling_one_does_not_fall_back() {
    let world = world();
    let index = world.put_v2();
    world.put_image(&[(INDEX_DIGEST, index.to_string())]);
    world.push_v1().await;
    let image = world.image().await;
    let by_v2 = Some(Origin::V2Annotation { index });
    assert_eq!(origins(&world.discover(&image).await), [by_v2, by_v2, None]);

    world.registry.remove_manifest("app", &index.to_string());
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [None; 3]);
    assert!(matches!(&found.failure, Some(SociError::Registry(e)) if e.is_not_found()), "{:?}", found.failure);
    assert!(!found.trace().iter().any(|t| t.contains("referrers")), "{:?}", found.trace());

    world.put_image(&[(INDEX_DIGEST, "latest".into())]);
    let found = world.discover(&world.image().await).await;
    assert!(matches!(found.failure, Some(SociError::Index { .. })), "{:?}", found.failure);
}

#[tokio::test]
async fn a_mapping_of_the_user_comes_before_the_registry_and_what_was_built_here_is_known_as_such() {
    let world = world();
    let index = world.put_v2();
    world.put_image(&[(INDEX_DIGEST, index.to_string())]);
    let image = world.image().await;
    let manifest = image.manifest.as_ref().expect("a manifest").digest;
    // Another index of the store, of layer a and c; that of c was built here.
    let ztocs: [&[u8]; 2] = [b"another ztoc of a", b"a ztoc of c"];
    let entries = [0, 2].into_iter().zip(ztocs).map(|(i, ztoc)| ZtocEntry {
        digest: world.store.put(ztoc).expect("stored"),
        size: BlobOffset::new(ztoc.len() as u64),
        layer_digest: Digest::of(LAYERS[i]),
        layer_media_type: String::new(),
        span_size_bytes: Some(7),
        disable_xattrs: false,
    });
    let (kind, build_tool) = (Kind::V2, "me".to_owned());
    let document = SociIndex { kind, ztocs: entries.collect(), prefetch: Vec::new(), build_tool };
    let bytes = document.to_bytes().expect("an index");
    let mine = world.store.put_index(V2_TYPE, &bytes).expect("stored");
    let size = BlobOffset::new(ztocs[1].len() as u64);
    let record = RecordedZtoc { digest: Digest::of(ztocs[1]), size, span_size_bytes: Some(7) };
    world.store.record_ztoc(&Digest::of(LAYERS[2]), &record).expect("recorded");
    let by_v2 = Some(Origin::V2Annotation { index });
    assert_eq!(origins(&world.discover(&image).await), [by_v2, by_v2, Some(Origin::Local)], "nothing is mapped");

    let named = IndexedImage { manifest, image_ref: None, platform: None, set_by: SetBy::User };
    world.store.map_image(&named, &mine).expect("mapped");
    let mapped = Some(Origin::Mapped { index: mine });
    for (policy, want) in [
        (LocalPolicy { prefer_local: true, mappings: true }, [mapped, by_v2, Some(Origin::Local)]),
        (LocalPolicy { prefer_local: true, mappings: false }, [by_v2, by_v2, Some(Origin::Local)]),
        (LocalPolicy { prefer_local: false, mappings: true }, [by_v2, by_v2, Some(Origin::Local)]),
    ] {
        let found = discover(&image, &world.client, &world.store, policy).await;
        assert_eq!(origins(&found), want, "{policy:?}: {:?}", found.trace());
        assert!(found.trace().iter().any(|line| line.contains(&mine.to_string())) == policy.mappings);
    }
    assert!(fetch(&world.discover(&image).await, &image, &world.client, &world.store).await.is_empty());
    assert_eq!(
        world.store.index(&index).expect("asked"),
        world.registry.manifest("app", &index.to_string()).map(Into::into)
    );
    world.registry.fail(Fault::Status { code: 503, retry_after: None });
    let registry_first = LocalPolicy { prefer_local: false, mappings: true };
    let found = discover(&image, &world.client, &world.store, registry_first).await;
    assert_eq!(origins(&found), [by_v2, by_v2, Some(Origin::Local)], "the index is here: {:?}", found.trace());
}

#[tokio::test]
async fn what_a_registry_named_before_serves_when_it_does_not_answer() {
    let world = world();
    world.put_image(&[]);
    let index = world.push_v1().await;
    let image = world.image().await;
    let by_v1 = Some(Origin::V1Referrers { index });
    let found = world.discover(&image).await;
    assert!(!found.named.is_empty());
    assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
    world.registry.fail(Fault::Status { code: 503, retry_after: None });
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [by_v1, by_v1, None], "{:?}", found.trace());
    assert!(found.failure.is_none() && found.named.is_empty(), "{:?}", found.failure);
    assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
    world.registry.heal();
    world.registry.clear_requests();
    world.discover(&image).await;
    assert!(world.registry.requests().iter().any(|r| format!("{r:?}").contains("referrers")), "asked again each time");
}

#[tokio::test]
async fn errors_do_not_stick() {
    let world = world();
    world.put_image(&[]);
    world.push_v1().await;
    let image = world.image().await;
    world.registry.fail(Fault::Status { code: 503, retry_after: None }).on("/referrers/");
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [None; 3]);
    assert!(found.failure.as_ref().is_some_and(SociError::is_transient), "{:?}", found.failure);
    assert!(found.trace().iter().any(|t| t.contains("503")), "{:?}", found.trace());
    world.registry.heal();
    let found = world.discover(&image).await;
    assert!(found.failure.is_none() && found.layers[0].is_some(), "{:?}", found.trace());

    world.registry.fail(Fault::CutAfter(3)).on("/blobs/").times(1);
    assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
    let first = found.layers[0].expect("found");
    assert_eq!(world.store.read(&first.digest).expect("stored"), ZTOCS[0]);
}

#[tokio::test]
async fn an_index_of_another_image_or_with_absurd_sizes_is_not_used() {
    let world = world();
    world.put_image(&[]);
    let image = world.image().await;
    let digest = image.manifest.as_ref().expect("a manifest").digest;
    let ztoc = |size| ZtocEntry {
        digest: Digest::of(b"z"),
        size: BlobOffset::new(size),
        layer_digest: Digest::of(LAYERS[0]),
        layer_media_type: String::new(),
        span_size_bytes: None,
        disable_xattrs: false,
    };
    let put = |subject: Digest, size: u64| {
        let subject =
            Subject { media_type: media_type::OCI_MANIFEST.into(), digest: subject, size: BlobOffset::new(1) };
        let kind = Kind::V1 { subject: Some(subject) };
        let index = SociIndex { kind, ztocs: vec![ztoc(size)], prefetch: Vec::new(), build_tool: String::new() };
        let bytes = index.to_bytes().expect("an index");
        let index = world.registry.put_manifest("app", None, media_type::OCI_MANIFEST, &bytes);
        let list = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": media_type::OCI_MANIFEST, "digest": index.to_string(), "size": bytes.len(), "artifactType": V1_TYPE,
        }]});
        let tag = crate::registry::fallback_tag(&digest);
        world.registry.put_manifest("app", Some(&tag), media_type::OCI_INDEX, list.to_string());
    };
    world.registry.referrers_api(false);
    put(Digest::of(b"another image"), 5);
    let found = world.discover(&image).await;
    assert!(matches!(found.failure, Some(SociError::Index { .. })) && found.layers[0].is_none(), "{:?}", found.trace());
    put(digest, 1 << 29);
    let found = world.discover(&image).await;
    assert!(
        matches!(found.failure, Some(SociError::TooLarge { .. })) && found.layers[0].is_none(),
        "{:?}",
        found.trace()
    );
    assert_ne!(V1_TYPE, V2_TYPE);
}

#[tokio::test]
async fn a_bare_layer_file_has_only_the_store() {
    let world = world();
    let path = world.dir.path().join("layer.tar");
    std::fs::write(&path, b"a tar").expect("written");
    let image = world.client.resolve(&ImageSource::LayerFile(path), &Platform::host()).await.expect("resolved");
    let found = world.discover(&image).await;
    assert!(found.failure.is_none() && found.layers == [None]);
    assert!(image.manifest.is_none());
}

#[tokio::test]
async fn what_is_created_twice_is_the_same_and_empty_is_refused() {
    let world = world();
    world.put_image(&[]);
    let image = world.image().await;
    assert!(matches!(create(&world.store, &image, 0), Err(SociError::Empty)));
    let one = create(&world.store, &image, 2).expect("an index");
    let two = create(&world.store, &image, 2).expect("an index");
    assert_eq!(one, two);
    assert_eq!(SociIndex::parse(&one.bytes).expect("reads back"), one.index);
    let order: Vec<_> = one.index.ztocs.iter().map(|z| z.layer_digest).collect();
    assert_eq!(order, [image.layers[0].digest, image.layers[1].digest]);
    for _ in 0..2 {
        push(&world.client, &world.target(), &world.store.source(), &one, 1, &|_| {}).await.expect("pushed");
    }
    assert_eq!(world.registry.manifest("app", &one.digest.to_string()).expect("there"), one.bytes);
}

/// A zstd layer: what its media type is taken from.
const ZSTD_LAYER: &[u8] = b"\x28\xb5\x2f\xfd a zstd layer";

fn own_index(image: &Image, ztoc: &[u8]) -> SociIndex {
    let layer = image.layers.last().expect("layers");
    let ztoc = ZtocEntry {
        digest: Digest::of(ztoc),
        size: BlobOffset::new(ztoc.len() as u64),
        layer_digest: layer.digest,
        layer_media_type: layer.media_type.clone(),
        span_size_bytes: Some(1 << 22),
        disable_xattrs: false,
    };
    let kind = Kind::Own { subject: image.manifest.as_ref().map(subject_of) };
    SociIndex { kind, ztocs: vec![ztoc], prefetch: Vec::new(), build_tool: "me".into() }
}

impl World {
    /// An image of layer a and a zstd layer.
    async fn put_zstd(&self) -> Image {
        let layers = [(LAYERS[0], Digest::of(b"tar")), (ZSTD_LAYER, Digest::of(b"tar"))];
        self.registry.put_image("app", "1", &layers);
        self.image().await
    }

    /// Pushes our own index, made in a store of its own.
    async fn push_own(&self, image: &Image, ztoc: &[u8]) -> Digest {
        let elsewhere = Store::open(&self.dir.path().join("elsewhere")).expect("a store");
        elsewhere.put(ztoc).expect("stored");
        elsewhere.put(crate::soci::CONFIG).expect("stored");
        let created = CreatedIndex::parse(own_index(image, ztoc).to_bytes().expect("an index")).expect("an index");
        push(&self.client, &self.target(), &elsewhere.source(), &created, 2, &|_| {}).await.expect("pushed");
        created.digest
    }
}

#[tokio::test]
async fn zstd_layers_are_served_by_our_own_index_alone() {
    let world = world();
    let image = world.put_zstd().await;
    let soci = world.push_v1().await;
    let by_v1 = Some(Origin::V1Referrers { index: soci });
    // SOCI's index lists the layer, too; whoever made it, it is no zTOC for it.
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [by_v1, None], "{:?}", found.trace());
    assert_eq!(found.omitted, [None, None]);
    let own = world.push_own(&image, b"our own ztoc").await;
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [by_v1, Some(Origin::OwnReferrers { index: own })], "{:?}", found.trace());
    assert_eq!(found.named.len(), 2);
    assert!(fetch(&found, &image, &world.client, &world.store).await.is_empty());
    assert_eq!(world.store.read(&Digest::of(b"our own ztoc")).expect("here"), b"our own ztoc");
    // Both serve when the registry does not answer.
    world.registry.fail(Fault::Status { code: 503, retry_after: None });
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [by_v1, Some(Origin::OwnReferrers { index: own })], "{:?}", found.trace());
    world.registry.heal();
    // Ours serves no layer that SOCI's may serve.
    let named = discover_named(&image, &world.client, &world.store, own).await.expect("here");
    assert_eq!(origins(&named), [None, Some(Origin::Named { index: own })]);
}

#[tokio::test]
async fn our_own_index_is_asked_for_only_where_there_are_zstd_layers() {
    let world = world();
    world.put_image(&[]);
    let image = world.image().await;
    world.registry.clear_requests();
    world.discover(&image).await;
    let asked = |kind: &str| world.registry.requests().iter().filter(|r| format!("{r:?}").contains(kind)).count();
    assert_eq!(asked("sociblk"), 0);
    let image = world.put_zstd().await;
    world.registry.clear_requests();
    world.discover(&image).await;
    assert_eq!(asked("sociblk"), 1);
}

#[tokio::test]
async fn what_was_made_here_serves_zstd_layers_without_the_registry() {
    let world = world();
    let image = world.put_zstd().await;
    create(&world.store, &image, 1).expect("an index");
    world.store.put(b"mapped").expect("stored");
    let bytes = own_index(&image, b"mapped").to_bytes().expect("an index");
    let subject = image.manifest.as_ref().map(|m| m.digest).expect("a manifest");
    let set_by = SetBy::Create;
    let belongs_to = IndexedImage { manifest: subject, image_ref: None, platform: None, set_by };
    let new = crate::soci::NewIndex { bytes: &bytes, image: Some(belongs_to), location: "" };
    let index = world.store.put_index_of(&new).expect("stored");
    world.registry.clear_requests();
    let found = world.discover(&image).await;
    assert_eq!(origins(&found), [Some(Origin::Local), Some(Origin::Mapped { index })], "{:?}", found.trace());
    assert!(world.registry.requests().is_empty());
    assert!(found.steps.iter().any(|step| step.place == Place::OwnReferrers && step.verdict == Verdict::NotAsked));
}
