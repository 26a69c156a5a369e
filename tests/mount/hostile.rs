//! Indexes that lie. What the zTOC's own form gives away is found before a mount: the layer is streamed instead, and the
//! report says why. What only its bytes give away (wrong digests) ends in EIO, never in wrong bytes.

use serde_json::json;
use sociblk::spans::ztoc::{Ztoc, ZtocParts, write};
use sociblk::spans::{Checkpoint, EntryKind, TocEntry};
use sociblk::testkit::registry::TestRegistry;
use sociblk::units::{BlobOffset, Digest, LayerOffset, LayerRange, SpanId};

use crate::layers::{Layer, Maker, assert_same, extract, noise};
use crate::support::{Host, utf8};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const V1: &str = "application/vnd.amazon.soci.index.v1+json";

fn inflate(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(blob), &mut tar).expect("gzip");
    tar
}

/// Puts `REPOSITORY:1` with one gzip layer and a v1 index that names this zTOC for it.
pub fn put_indexed(registry: &TestRegistry, repository: &str, blob: &[u8], ztoc: &[u8]) {
    put_indexed_as(registry, repository, blob, ztoc, ztoc.len() as u64);
}

fn put_indexed_as(registry: &TestRegistry, repository: &str, blob: &[u8], ztoc: &[u8], size: u64) {
    let diff_id = Digest::of(&inflate(blob));
    let subject = registry.put_image(repository, "1", &[(blob, diff_id)]);
    let subject_bytes = registry.manifest(repository, &subject.to_string()).expect("just put").len();
    let index = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": V1, "digest": registry.put_blob(b"{}").to_string(), "size": 2},
        "layers": [{
            "mediaType": "application/octet-stream", "digest": registry.put_blob(ztoc).to_string(), "size": size,
            "annotations": {
                "com.amazon.soci.image-layer-digest": Digest::of(blob).to_string(),
                "com.amazon.soci.image-layer-mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "com.amazon.soci.span-size": "4194304",
            },
        }],
        "subject": {"mediaType": MANIFEST, "digest": subject.to_string(), "size": subject_bytes},
        "annotations": {"com.amazon.soci.build-tool-identifier": "test"},
    });
    registry.put_manifest(repository, None, MANIFEST, index.to_string());
}

/// A zTOC taken apart, to be put together wrongly.
struct Parts {
    blob_size: u64,
    layer_size: u64,
    entries: Vec<TocEntry<'static>>,
    checkpoints: Vec<Checkpoint>,
    digests: Vec<Digest>,
}

impl Parts {
    fn of(ztoc: &[u8]) -> Self {
        let parsed = Ztoc::parse(ztoc).expect("a good zTOC");
        let spans = parsed.spans().len() as u32;
        Self {
            blob_size: parsed.blob_size().get(),
            layer_size: parsed.layer_size().get(),
            entries: parsed.entries().map(|e| e.expect("entry").into_owned()).collect(),
            checkpoints: (0..spans).map(|i| parsed.checkpoint(SpanId(i)).expect("checkpoint")).collect(),
            digests: parsed.spans().iter().map(|(_, span)| span.digest).collect(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let parts = ZtocParts {
            build_tool: "test",
            compressed_size: BlobOffset::new(self.blob_size),
            uncompressed_size: LayerOffset::new(self.layer_size),
            entries: &self.entries,
            compression: sociblk::spans::Compression::Gzip,
            span_size: 1 << 20,
            span_digests: &self.digests,
        };
        write(&parts, &self.checkpoints).expect("written")
    }

    fn named(&mut self, name: &str) -> &mut TocEntry<'static> {
        self.entries.iter_mut().find(|e| &*e.name == name.as_bytes()).expect("entry")
    }
}

pub fn small_layer() -> Layer {
    Maker::new()
        .dir("dir", 0o755, 0)
        .file("dir/first", &noise(11, 1_500_000))
        .file("dir/second", &noise(12, 2_000_000))
        .hard_link("dir/link", "dir/first")
        .file("last", b"the end")
        .end()
}

/// The layer's zTOC with small spans.
pub fn ztoc_of(host: &Host, layer: &Layer) -> Vec<u8> {
    let (file, to) = (host.path("layer.gz"), host.path("layer.ztoc"));
    std::fs::write(&file, &layer.blob).expect("layer");
    host.ok(&["ztoc", "build", utf8(&file), "--output", utf8(&to), "--span-size", "1048576"]);
    std::fs::read(&to).expect("zTOC")
}

fn range(start: u64, end: u64) -> LayerRange {
    LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("range")
}

#[test]
fn an_index_that_cannot_be_right_is_passed_over_and_the_reason_told() {
    let Some(host) = Host::new("hostile_ztocs") else { return };
    let layer = small_layer();
    let good = ztoc_of(&host, &layer);
    let want = extract(std::slice::from_ref(&layer));
    type Spoil = fn(&mut Parts);
    let spoilt: [(&str, Spoil); 9] = [
        ("offsets beyond the layer", |p| {
            let end = p.layer_size;
            p.named("dir/second").data = range(end + (1 << 30), end + (1 << 30) + 2_000_000);
        }),
        ("a file that ends beyond the layer", |p| {
            let start = p.named("last").data.start().get();
            p.named("last").data = range(start, start + (1 << 40));
        }),
        ("overlapping files", |p| {
            let first = p.named("dir/first").data;
            p.named("dir/second").data = range(first.start().get() + 512, first.end().get() + 512);
        }),
        ("a hard link to itself", |p| p.named("dir/link").linkname = b"dir/link".to_vec().into()),
        ("a hard link to nothing", |p| p.named("dir/link").linkname = b"nowhere".to_vec().into()),
        ("a cycle of hard links", |p| {
            p.named("dir/link").linkname = b"last".to_vec().into();
            let last = p.named("last");
            last.kind = EntryKind::Hardlink;
            last.linkname = b"dir/link".to_vec().into();
            last.data = range(last.data.start().get(), last.data.start().get());
        }),
        ("another blob size", |p| p.blob_size += 4096),
        ("a checkpoint beyond the blob", |p| {
            let last = p.checkpoints.len() - 1;
            p.checkpoints[last].blob = BlobOffset::new(1 << 50);
        }),
        ("checkpoints out of order", |p| p.checkpoints.swap(1, 2)),
    ];
    let mut documents: Vec<(String, Vec<u8>)> = Vec::new();
    for (what, spoil) in spoilt {
        let mut parts = Parts::of(&good);
        spoil(&mut parts);
        documents.push((what.to_owned(), parts.write()));
    }
    for cut in [0, 7, good.len() / 2, good.len() - 5000] {
        documents.push((format!("cut off at {cut}"), good[..cut].to_vec()));
    }
    documents.push(("rubbish".to_owned(), noise(99, 5000)));
    for (what, ztoc) in documents {
        let registry = TestRegistry::start();
        put_indexed(&registry, "app", &layer.blob, &ztoc);
        let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a");
        let origin = report["layers"][0]["index"].as_str().expect("index").to_owned();
        let told = report["discovery"].to_string();
        assert_same(&dir, &want);
        assert!(origin == "streamed", "{what}: {origin}: {told}");
        assert!(told.contains("cannot be used") || told.contains("no index: "), "{what}: {told}");
        assert!(told.contains(&layer.digest().short()), "{what} does not name the layer: {told}");
        host.umount(&dir);
        host.assert_clean();
        // What was streamed must not hide the next document.
        forget(&host);
    }
}

#[test]
fn a_name_that_leaves_the_root_stays_within() {
    let Some(host) = Host::new("leaving_name") else { return };
    let layer = small_layer();
    let mut parts = Parts::of(&ztoc_of(&host, &layer));
    parts.named("last").name = b"../../etc/passwd".to_vec().into();
    let registry = TestRegistry::start();
    put_indexed(&registry, "app", &layer.blob, &parts.write());
    let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a/b/c");
    assert_eq!(report["layers"][0]["index"], "v1", "{report:#}");
    assert_eq!(std::fs::read(dir.join("etc/passwd")).expect("within"), b"the end");
    assert!(!host.path("a/etc").exists());
}

/// Starts from an empty root.
fn forget(host: &Host) {
    host.stop_daemon();
    std::fs::remove_dir_all(host.root()).expect("root removed");
}

#[test]
fn an_index_that_lies_about_sizes_is_passed_over() {
    let Some(host) = Host::new("lying_sizes") else { return };
    let layer = small_layer();
    let good = ztoc_of(&host, &layer);
    for size in [0, 1, good.len() as u64 - 1, good.len() as u64 + 1, 1 << 40, i64::MAX as u64] {
        let registry = TestRegistry::start();
        put_indexed_as(&registry, "app", &layer.blob, &good, size);
        let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a");
        assert_eq!(report["layers"][0]["index"], "streamed", "{size}: {report:#}");
        assert!(report["discovery"].as_array().is_some_and(|t| t.len() >= 3), "{size}: {report:#}");
        host.umount(&dir);
        forget(&host);
    }
}

#[test]
fn wrong_span_digests_are_eio_and_never_wrong_bytes() {
    let Some(host) = Host::new("wrong_digests") else { return };
    let layer = small_layer();
    let mut parts = Parts::of(&ztoc_of(&host, &layer));
    // The first span holds the file `dir/first` from its beginning; the last one is right.
    parts.digests[0] = Digest::of(b"something else");
    let registry = TestRegistry::start();
    put_indexed(&registry, "app", &layer.blob, &parts.write());
    let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a");
    assert_eq!(report["layers"][0]["index"], "v1", "{report:#}");
    let error = std::fs::read(dir.join("dir/first")).expect_err("unproven bytes");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(std::fs::read(dir.join("last")).expect("a good span"), b"the end");
    let listing = host.ls();
    let told = listing["layers"][0]["last_error"].as_str().expect("an error").to_owned();
    assert!(told.contains("span 0") && told.contains("digest"), "{told}");
    assert!(listing["layers"][0]["failed_reads"].as_u64().is_some_and(|n| n > 0), "{listing:#}");
    let text = host.ok(&["stats"]).stdout;
    assert!(text.contains("span 0"), "{text}");
}

#[test]
fn a_damaged_local_ztoc_is_made_anew() {
    let Some(host) = Host::new("damaged_local") else { return };
    let layer = small_layer();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &[(&layer.blob, layer.diff_id())]);
    let image = format!("{}/app:1", registry.host());
    let (dir, _) = host.mount(&image, "a");
    host.umount(&dir);
    let blobs = host.root().join("content/blobs/sha256");
    let mut damaged = 0;
    for entry in std::fs::read_dir(blobs).expect("blobs") {
        let path = entry.expect("entry").path();
        let mut bytes = std::fs::read(&path).expect("blob");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&path, bytes).expect("blob");
        damaged += 1;
    }
    assert_eq!(damaged, 1);
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(report["layers"][0]["index"], "streamed", "{report:#}");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    let told = report["discovery"].to_string();
    assert!(told.contains("cannot be used"), "{told}");
}
