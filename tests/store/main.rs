//! The commands on the local store, run as a user runs them, against golden outputs.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sociblk::registry::Platform;
use sociblk::soci::{
    IndexedImage, Kind, NewIndex, PrefetchEntry, RecordedZtoc, SetBy, SociIndex, Store, Subject, V1_TYPE, ZtocEntry,
};
use sociblk::units::{BlobOffset, Digest};

const PREFETCH: &[u8] =
    br#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":3},{"start_span":7,"end_span":7,"priority":2}]}"#;

fn corpus(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

struct World {
    dir: tempfile::TempDir,
    index: Digest,
    ztoc: Digest,
    layer: Digest,
    image: Digest,
}

/// A store with the index of an image of one layer, which is in the store as well.
fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let (layer_bytes, ztoc_bytes) = (corpus("edge-pax.tar.gz"), corpus("edge-pax.tar.gz.ztoc"));
    let (layer, ztoc) = (store.put(&layer_bytes).expect("stored"), store.put(&ztoc_bytes).expect("stored"));
    let size = BlobOffset::new(ztoc_bytes.len() as u64);
    let prefetch = store.put(PREFETCH).expect("stored");
    store.record_ztoc(&layer, &RecordedZtoc { digest: ztoc, size, span_size_bytes: Some(4 << 20) }).expect("recorded");
    let image = Digest::of(b"image");
    let subject = Subject {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: image,
        size: BlobOffset::new(5),
    };
    let entry = ZtocEntry {
        digest: ztoc,
        size,
        layer_digest: layer,
        layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        span_size_bytes: Some(4 << 20),
        disable_xattrs: false,
    };
    let prefetch =
        PrefetchEntry { digest: prefetch, size: BlobOffset::new(PREFETCH.len() as u64), layer_digest: layer };
    let index = SociIndex {
        kind: Kind::V1 { subject: Some(subject) },
        ztocs: vec![entry],
        prefetch: vec![prefetch],
        build_tool: "AWS SOCI CLI v0.2".into(),
    };
    let named = IndexedImage {
        manifest: image,
        image_ref: Some("docker.io/library/app:1".into()),
        platform: Some(Platform::new("linux", "amd64", "")),
        set_by: SetBy::Create,
    };
    let bytes = index.to_bytes().expect("an index");
    let index = store.put_index_of(&NewIndex { bytes: &bytes, image: Some(named), location: "" }).expect("stored");
    World { dir, index, ztoc, layer, image }
}

impl World {
    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sociblk"))
            .arg("--root")
            .arg(self.dir.path())
            .args(args)
            .output()
            .expect("sociblk runs")
    }

    fn text(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(args)).unwrap_or_else(|e| panic!("{args:?}: {e}"))
    }

    fn error(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(out.stdout.is_empty(), "{args:?}");
        String::from_utf8(out.stderr).expect("text")
    }

    fn size_of(&self, digest: &Digest) -> u64 {
        let path = self.dir.path().join("content/blobs/sha256").join(digest.hex());
        std::fs::metadata(path).expect("a blob").len()
    }
}

/// Columns are padded to their widest cell, and the age changes: one space each, and no age.
fn squeezed(table: &str) -> Vec<String> {
    let squeeze = |line: &str| {
        let words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        words.into_iter().filter(|word| !word.ends_with(" ago")).collect::<Vec<_>>().join("|")
    };
    table.lines().map(squeeze).collect()
}

#[test]
fn indexes_are_listed_shown_and_removed() {
    let world = world();
    let (index, size) = (world.index, world.size_of(&world.index));
    let head = "DIGEST|SIZE|IMAGE REF|PLATFORM|MEDIA TYPE|MANIFEST VERSION|CREATED";
    let row =
        format!("{index}|{size}|docker.io/library/app:1|linux/amd64|application/vnd.oci.image.manifest.v1+json|v1");
    for args in [
        &["index", "ls"][..],
        &["index", "list", "--ref", "app:1"],
        &["index", "ls", "-p", "linux/arm64", "--platform", "linux/amd64"],
    ] {
        let text = world.text(args);
        assert_eq!(squeezed(&text), [head.to_owned(), row.clone()], "{args:?}");
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("s ago")), "{text}");
    }
    for args in [&["index", "ls", "--ref", "app:2"][..], &["index", "ls", "-p", "linux/arm64"]] {
        assert_eq!(squeezed(&world.text(args)), [head], "{args:?}");
    }
    assert_eq!(world.text(&["index", "ls", "-q"]), format!("{index}\n"));
    let mut json = world.json(&["index", "ls", "--json"]);
    let created = json[0].as_object_mut().expect("a row").remove("created_at").expect("a time");
    assert!(created.as_str().is_some_and(|at| at.ends_with('Z') && at.starts_with("20")), "{created}");
    let want = json!([{"digest": index, "size": size, "image_ref": "docker.io/library/app:1", "image_digest": world.image,
        "platform": "linux/amd64", "media_type": "application/vnd.oci.image.manifest.v1+json",
        "manifest_version": "v1", "set_by": "create", "location": ""}]);
    assert_eq!(json, want);
    let document = world.json(&["index", "info", &index.to_string()]);
    assert_eq!(document["config"]["mediaType"], V1_TYPE);
    let ztoc = world.ztoc.to_string();
    let error = world.error(&["index", "info", &ztoc]);
    assert!(error.contains("is a zTOC, not a SOCI index") && error.contains("sociblk ztoc info"), "{error}");
    let absent = Digest::of(b"absent").to_string();
    assert!(world.error(&["index", "info", &absent]).contains("is not in the local store"));
    assert!(world.error(&["index", "rm", &index.to_string(), &absent]).contains(&absent));
    assert!(world.error(&["index", "rm", "--ref", "app:2"]).contains("docker.io/library/app:2"));
    assert_eq!(world.text(&["index", "ls", "-q"]), format!("{index}\n"), "nothing was removed");
    let ztoc_size = world.size_of(&world.ztoc);
    let removed = world.json(&["index", "rm", "--ref", "app:1", "--json"]);
    assert_eq!(removed["indexes"], json!([index]));
    assert_eq!(removed["blobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(removed["freed_bytes"], size + ztoc_size + PREFETCH.len() as u64);
    assert_eq!(world.json(&["index", "ls", "--json"]), json!([]));
    assert_eq!(world.json(&["ztoc", "ls", "--json"]), json!([]));
    let swept = world.json(&["index", "gc", "--unused-for", "0s", "--json"]);
    assert_eq!(swept["blobs"], json!([world.layer]), "nothing refers to the layer");
}

#[test]
fn ztocs_are_listed_shown_and_used() {
    let world = world();
    let (ztoc, layer, size) = (world.ztoc.to_string(), world.layer.to_string(), world.size_of(&world.ztoc));
    let row = format!("{ztoc}|{size}|{layer}");
    for args in [&["ztoc", "ls"][..], &["ztoc", "list", "--image-ref", "app:1", "--ztoc-digest", &ztoc]] {
        assert_eq!(squeezed(&world.text(args)), ["DIGEST|SIZE|LAYER DIGEST", &row], "{args:?}");
    }
    assert_eq!(world.text(&["ztoc", "ls", "-q"]), format!("{ztoc}\n"));
    let want = json!([{"digest": ztoc, "size": size, "layer_digest": layer, "span_size": 4 << 20, "built_here": true}]);
    assert_eq!(world.json(&["ztoc", "ls", "--json"]), want);
    let absent = Digest::of(b"absent").to_string();
    for args in
        [&["ztoc", "ls", "--ztoc-digest", &absent][..], &["ztoc", "ls", "--image-ref", "app:2", "--ztoc-digest", &ztoc]]
    {
        assert!(world.error(args).contains("not in"), "{args:?}");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/edge-pax.tar.gz.ztoc");
    let file = file.to_str().expect("text");
    let info = world.json(&["ztoc", "info", &ztoc]);
    assert_eq!(info, world.json(&["ztoc", "info", file, "--json"]), "the same by digest and by file");
    let regular = info["files"].as_array().expect("files").iter().find(|f| f["type"] == "reg" && f["size"] != 0);
    let path = regular.and_then(|f| f["filename"].as_str()).expect("a file").to_owned();
    let by_digest = world.run(&["ztoc", "get-file", &ztoc, &path]);
    let blob = world.dir.path().join("content/blobs/sha256").join(world.layer.hex());
    let blob = blob.to_str().expect("text").to_owned();
    let by_file = world.run(&["ztoc", "get-file", file, &path, "--layer", &blob]);
    assert!(by_digest.status.success() && !by_digest.stdout.is_empty());
    assert_eq!(by_digest.stdout, by_file.stdout);
    assert!(world.error(&["ztoc", "get-file", file, &path]).contains("--layer"));
    std::fs::remove_file(&blob).expect("removed");
    assert!(world.error(&["ztoc", "get-file", &ztoc, &path]).contains("--layer"));
    let index = world.index.to_string();
    assert!(world.error(&["ztoc", "info", &index]).contains("sociblk index info"));
}

#[test]
fn load_orders_are_listed_and_shown() {
    let world = world();
    let (digest, layer) = (Digest::of(PREFETCH), world.layer);
    let text = world.text(&["prefetch", "ls"]);
    assert_eq!(squeezed(&text), ["DIGEST|LAYER DIGEST|SPANS|CREATED".to_owned(), format!("{digest}|{layer}|5")]);
    let json = world.json(&["prefetch", "ls", "--json"]);
    assert_eq!(json[0]["Digest"], json!(digest));
    assert_eq!(json[0]["LayerDigest"], json!(layer));
    assert_eq!(json[0]["TotalSpans"], 5);
    assert!(json[0]["CreatedAt"].is_string());
    let text = world.text(&["prefetch", "info", &digest.to_string()]);
    let created = text.lines().find(|line| line.starts_with("Created:")).expect("a line").to_owned();
    let want = format!(
        "Digest:        {digest}\nVersion:       1.0\nSpan Ranges:   2\nLayer Digest:  {layer}\nSize:          {} bytes\n\
         {created}\n\nPrefetch Spans:\n  [0] StartSpan: 0, EndSpan: 3 (covers 4 spans)\n  \
         [1] StartSpan: 7, EndSpan: 7 (covers 1 spans)\n      Priority: 2\n\nTotal spans to prefetch: 5\n",
        PREFETCH.len()
    );
    assert_eq!(text, want);
    let json = world.json(&["prefetch", "info", &digest.to_string(), "--json"]);
    assert_eq!(json["document"], serde_json::from_slice::<Value>(PREFETCH).expect("JSON"));
    assert!(world.error(&["prefetch", "info", &world.ztoc.to_string()]).contains("not a prefetch artifact"));
}

#[test]
fn mappings_and_rebuilding() {
    let world = world();
    let (image, index) = (Digest::of(b"another image").to_string(), world.index.to_string());
    world.text(&["index", "map", &image, &index]);
    let listed = world.json(&["index", "ls", "--json"]);
    let users = listed.as_array().expect("rows").iter().filter(|row| row["set_by"] == "user").count();
    assert_eq!((users, listed.as_array().map(Vec::len)), (1, Some(2)));
    let want = json!({"indexes": 1, "ztocs": 1, "prefetches": 1, "dropped": 0});
    assert_eq!(world.json(&["rebuild-db", "--json"]), want);
    assert_eq!(world.json(&["index", "ls", "--json"]).as_array().map(Vec::len), Some(2));
    world.text(&["index", "unmap", &image]);
    assert!(world.error(&["index", "unmap", &image]).contains("no index was mapped"));
    for digest in [world.index, world.ztoc] {
        std::fs::remove_file(world.dir.path().join("content/blobs/sha256").join(digest.hex())).expect("removed");
    }
    let text = world.text(&["rebuild-db"]);
    assert_eq!(text, "0 indexes, 0 zTOCs, 0 prefetch artifacts; 2 entries dropped whose content is gone\n");
    assert_eq!(world.json(&["ztoc", "ls", "--json"]), json!([]));
}

#[test]
fn a_damaged_database_gives_one_warning_and_the_answer() {
    let world = world();
    std::fs::write(world.dir.path().join("store.db"), b"what is this? it goes on for a while").expect("written");
    let out = world.run(&["index", "ls", "-q"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{}\n", world.index));
    let warning = String::from_utf8(out.stderr).expect("text");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("store.db is damaged") && warning.contains("store.db.damaged"), "{warning}");
    assert_eq!(world.text(&["index", "ls", "-q"]), format!("{}\n", world.index), "once");
}
