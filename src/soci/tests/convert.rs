use std::path::PathBuf;

use super::*;
use crate::registry::document::media_type::DOCKER_LIST;
use crate::soci::{IndexedLayer, Kind, PrefetchEntry, Subject, V1_TYPE, ZtocEntry, compose, load_order};
use crate::units::BlobOffset;

const SOCI: &str = "AWS SOCI CLI v0.2";

/// Compares with a file that holds what SOCI writes, each document on a line of its own.
fn golden(name: &str, documents: &[&[u8]]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text: String = documents.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned() + "\n").collect();
    let want =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; it would be:\n{text}", path.display()));
    assert_eq!(text, want, "{name}");
}

fn layer(name: &str, prefetch: bool) -> IndexedLayer {
    let layer_digest = Digest::of(name.as_bytes());
    IndexedLayer {
        ztoc: ZtocEntry {
            digest: Digest::of(format!("ztoc of {name}").as_bytes()),
            size: BlobOffset::new(1000),
            layer_digest,
            layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            span_size_bytes: Some(4 << 20),
            disable_xattrs: prefetch,
        },
        prefetch: prefetch.then(|| PrefetchEntry {
            digest: Digest::of(format!("load order of {name}").as_bytes()),
            size: BlobOffset::new(70),
            layer_digest,
        }),
        own: false,
    }
}

fn v2(name: &str) -> CreatedIndex {
    compose(Kind::V2, vec![layer(name, false)], SOCI).expect("an index")
}

fn document(value: &Value) -> Document {
    let bytes = Bytes::from(value.to_string());
    let media_type = value["mediaType"].as_str().unwrap_or_default().to_owned();
    Document { digest: Digest::of(&bytes), media_type, bytes }
}

/// An image manifest; `docker`: of Docker's media types.
fn image(name: &str, docker: bool) -> Document {
    let (manifest, config, layer) = if docker {
        (DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip")
    } else {
        (OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip")
    };
    let config_digest = Digest::of(format!("config of {name}").as_bytes()).to_string();
    document(&json!({
        "schemaVersion": 2, "mediaType": manifest,
        "config": {"mediaType": config, "size": 600, "digest": config_digest},
        "layers": [{"mediaType": layer, "size": 5000, "digest": Digest::of(name.as_bytes()).to_string()}],
    }))
}

fn entry(document: &Document, platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').expect("a platform");
    json!({
        "mediaType": document.media_type, "size": document.bytes.len(), "digest": document.digest.to_string(),
        "platform": {"architecture": architecture, "os": os},
    })
}

fn attestation(of: &Document) -> Value {
    json!({
        "mediaType": OCI_MANIFEST, "digest": Digest::of(b"attestation").to_string(), "size": 566,
        "annotations": {"vnd.docker.reference.digest": of.digest.to_string(), "vnd.docker.reference.type": "attestation-manifest"},
        "platform": {"architecture": "unknown", "os": "unknown"},
    })
}

fn index(kind: &str, entries: &[Value]) -> Document {
    document(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}))
}

fn part(manifest: &Document, platform: &str, index: CreatedIndex) -> IndexedImageManifest {
    IndexedImageManifest { manifest: manifest.clone(), platform: platform.parse().expect("a platform"), index }
}

fn convert_all(root: &Document, images: &[IndexedImageManifest], docker: &[&Document]) -> Converted {
    let only = images.first().map(|image| image.platform.clone());
    let docker = docker.iter().map(|d| (d.digest, d.bytes.clone())).collect();
    convert(Entries::of(root, only.as_ref()).expect("entries"), images, &docker).expect("converted")
}

/// The converted image as a source: its index, and the document of its first new manifest.
fn again(converted: &Converted, number: usize) -> (Document, Document) {
    let document = |bytes: &Bytes, media_type: &str| Document {
        digest: Digest::of(bytes),
        media_type: media_type.to_owned(),
        bytes: bytes.clone(),
    };
    (document(&converted.bytes, OCI_INDEX), document(&converted.manifests[number].bytes, OCI_MANIFEST))
}

#[test]
fn indexes_of_both_versions_have_the_shape_of_soci() {
    let subject =
        Subject { media_type: OCI_MANIFEST.to_owned(), digest: Digest::of(b"manifest"), size: BlobOffset::new(500) };
    let layers = || vec![layer("a", true), layer("b", false)];
    let v1 = compose(Kind::V1 { subject: Some(subject) }, layers(), SOCI).expect("an index");
    let v2 = compose(Kind::V2, layers(), SOCI).expect("an index");
    golden("index-v1.json", &[&v1.bytes]);
    golden("index-v2.json", &[&v2.bytes]);
    let spans = [crate::soci::toc::FileSpans { name: 0, first: 2, last: 5 }];
    golden("prefetch.json", &[&load_order::document(&load_order::merged(spans)).expect("a document")]);
    assert!(String::from_utf8_lossy(&v1.bytes).contains(V1_TYPE));
}

#[test]
fn a_single_image_becomes_an_index_of_it_and_its_soci_index() {
    for (name, docker) in [("convert-single.json", false), ("convert-single-docker.json", true)] {
        let image = image("a", docker);
        let converted = convert_all(&image, &[part(&image, "linux/amd64", v2("a"))], &[]);
        golden(name, &[&converted.bytes, &converted.manifests[0].bytes]);
        assert!(converted.kept.is_empty());
    }
}

#[test]
fn of_several_platforms_those_are_indexed_that_were_chosen() {
    let (amd, arm) = (image("a", true), image("b", true));
    let list = index(DOCKER_LIST, &[entry(&amd, "linux/amd64"), entry(&arm, "linux/arm64")]);
    let parts = [part(&amd, "linux/amd64", v2("a"))];
    let converted = convert_all(&list, &parts, &[&arm]);
    golden("convert-multi.json", &[&converted.bytes, &converted.manifests[0].bytes, &converted.manifests[1].bytes]);
    // Without the other platform's manifest, as in a partial layout: it is left alone.
    let partial = convert_all(&list, &parts, &[]);
    assert_eq!(partial.kept, [arm.digest]);
    assert!(String::from_utf8_lossy(&partial.bytes).contains(&entry(&arm, "linux/arm64")["digest"].to_string()));
}

#[test]
fn converting_again_changes_nothing_and_harms_nobody() {
    let (amd, arm) = (image("a", false), image("b", false));
    let custom = json!({
        "mediaType": "application/vnd.example.thing", "digest": Digest::of(b"thing").to_string(), "size": 7,
        "artifactType": "application/vnd.example.kind", "x-unknown": [1, {"z": 1, "a": 2}],
    });
    let list =
        index(OCI_INDEX, &[entry(&amd, "linux/amd64"), entry(&arm, "linux/arm64"), attestation(&amd), custom.clone()]);
    let first = convert_all(&list, &[part(&amd, "linux/amd64", v2("a"))], &[]);
    golden("convert-with-artifacts.json", &[&first.bytes, &first.manifests[0].bytes]);
    let text = String::from_utf8_lossy(&first.bytes).into_owned();
    assert!(!text.contains(&amd.digest.to_string()), "the attestation follows its image: {text}");
    assert!(first.kept.contains(&arm.digest) && first.kept.contains(&Digest::of(b"attestation")));

    // The same once more.
    let (root, amd_again) = again(&first, 0);
    let second = convert_all(&root, &[part(&amd_again, "linux/amd64", v2("a"))], &[]);
    assert_eq!(second.bytes, first.bytes);

    // Through a tool that loses artifact types.
    let kind = format!(",\"artifactType\":\"{V2_TYPE}\"");
    let bytes = Bytes::from(String::from_utf8_lossy(&root.bytes).replace(&kind, ""));
    let lossy = Document { digest: Digest::of(&bytes), bytes, ..root.clone() };
    assert_ne!(lossy.digest, root.digest);
    let restored = convert_all(&lossy, &[part(&amd_again, "linux/amd64", v2("a"))], &[]);
    assert_eq!(restored.bytes, first.bytes);

    // Now the other platform: what the first conversion made stays as it is.
    let both = convert_all(&root, &[part(&arm, "linux/arm64", v2("b"))], &[]);
    let value: Value = serde_json::from_slice(&both.bytes).expect("an index");
    let before: Value = serde_json::from_slice(&first.bytes).expect("an index");
    let entries = value["manifests"].as_array().expect("a list");
    assert_eq!(entries.len(), 6);
    for number in [0, 2, 3, 4] {
        assert_eq!(entries[number], before["manifests"][number], "entry {number}");
    }
    assert_eq!(entries[3], custom);
    golden("convert-again-other-platform.json", &[&both.bytes]);

    // Another span size gives another index in the old one's place.
    let mut other = layer("a", false);
    other.ztoc.span_size_bytes = Some(1 << 20);
    let other = compose(Kind::V2, vec![other], SOCI).expect("an index");
    let replaced = convert_all(&root, &[part(&amd_again, "linux/amd64", other.clone())], &[]);
    let value: Value = serde_json::from_slice(&replaced.bytes).expect("an index");
    let entries = value["manifests"].as_array().expect("a list");
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[4]["digest"], other.digest.to_string());
    assert_eq!(entries[4]["annotations"][IMAGE_MANIFEST_DIGEST], entries[0]["digest"]);
}

#[test]
fn an_image_that_the_index_does_not_list_is_refused() {
    let list = index(OCI_INDEX, &[entry(&image("a", false), "linux/amd64")]);
    let stranger = part(&image("b", false), "linux/amd64", v2("b"));
    let error = convert(Entries::of(&list, None).expect("entries"), &[stranger], &HashMap::new());
    assert!(matches!(error, Err(SociError::Index { .. })));
}

#[test]
fn members_come_in_the_order_of_go_and_strange_ones_stay() {
    let value = json!({
        "annotations": {"b": "<&>", "a": ""}, "layers": null, "z": 1, "config": {"size": 1, "annotations": {}, "digest": "d", "mediaType": ""},
        "mediaType": "", "schemaVersion": 2,
    });
    let text = String::from_utf8(go_json::write(&value, MANIFEST).expect("JSON")).expect("text");
    assert_eq!(
        text,
        r#"{"schemaVersion":2,"config":{"mediaType":"","digest":"d","size":1},"layers":null,"annotations":{"a":"","b":"\u003c\u0026\u003e"},"z":1}"#
    );
}
