use super::*;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn descriptor(size: i64) -> String {
    format!(r#"{{"mediaType":"x","digest":"{D}","size":{size}}}"#)
}

fn manifest(rest: &str) -> String {
    format!(r#"{{"schemaVersion":2,"config":{}{rest}}}"#, descriptor(2))
}

#[test]
fn manifests_of_both_families_are_read() {
    let text = manifest(&format!(
        r#","mediaType":"{}","layers":[{}],"annotations":{{"a":"b"}},"unknown":[1]"#,
        media_type::DOCKER_MANIFEST,
        descriptor(7)
    ));
    let Ok(ManifestDocument::Manifest(read)) = parse_manifest(text.as_bytes(), None) else { panic!("a manifest") };
    assert_eq!((read.layers.len(), read.layers[0].size.get(), read.annotations["a"].as_str()), (1, 7, "b"));
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"{D}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}},"artifactType":""}}]}}"#
    );
    let Ok(ManifestDocument::Index(read)) = parse_manifest(text.as_bytes(), None) else { panic!("an index") };
    let entry = &read.manifests[0];
    assert_eq!(entry.platform.as_ref().map(ToString::to_string).as_deref(), Some("linux/arm64"));
    assert_eq!(entry.artifact_type, None);
}

#[test]
fn the_content_type_decides_where_the_document_is_silent() {
    let null = r#"{"schemaVersion":2,"manifests":null}"#;
    assert!(matches!(
        parse_manifest(null.as_bytes(), Some(media_type::OCI_INDEX)),
        Ok(ManifestDocument::Index(Index { manifests })) if manifests.is_empty()
    ));
    assert!(parse_manifest(null.as_bytes(), Some("application/json")).is_err());
    let layers_null = manifest(r#","layers":null"#);
    assert!(matches!(
        parse_manifest(layers_null.as_bytes(), Some("application/octet-stream")),
        Ok(ManifestDocument::Manifest(m)) if m.layers.is_empty()
    ));
}

#[test]
fn what_could_be_read_in_two_ways_or_not_at_all_is_refused() {
    let layers = |d: &str| manifest(&format!(r#","layers":[{d}]"#));
    for (name, text, content_type) in [
        ("not JSON", "<html>".to_owned(), None),
        ("empty", String::new(), None),
        ("empty object", "{}".to_owned(), None),
        ("an array", "[]".to_owned(), None),
        ("schema 1", r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None),
        ("schema 3", r#"{"schemaVersion":3}"#.to_owned(), None),
        ("both kinds", manifest(r#","manifests":[]"#), None),
        ("contradiction", manifest(&format!(r#","mediaType":"{}""#, media_type::OCI_INDEX)), None),
        ("contradicted by the server", manifest(r#","layers":[]"#), Some(media_type::DOCKER_LIST)),
        ("another type", manifest(r#","mediaType":"application/json""#), None),
        ("twice the same member", manifest(r#","layers":[],"layers":[]"#), None),
        ("negative size", layers(&descriptor(-1)), None),
        ("size beyond 63 bits", layers(&descriptor(0).replace(":0}", ":9223372036854775808}")), None),
        ("sha512", layers(&descriptor(1).replace("sha256", "sha512")), None),
        ("path as digest", layers(r#"{"digest":"sha256:../../etc/passwd","size":1}"#), None),
        ("deep", format!(r#"{{"schemaVersion":2,"x":{}"#, "[".repeat(100_000)), None),
    ] {
        assert!(parse_manifest(text.as_bytes(), content_type).is_err(), "{name} must be refused");
    }
}

#[test]
fn configs() {
    let text = format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{D}"]}}}}"#);
    let config = parse_config(text.as_bytes()).expect("a config");
    assert_eq!((config.diff_ids.len(), config.platform), (1, Some(Platform::new("linux", "amd64", ""))));
    let bare = parse_config(br#"{"os":"","rootfs":{"diff_ids":null}}"#).expect("a bare config");
    assert_eq!((bare.diff_ids.len(), bare.platform), (0, None));
    for bad in ["{}", r#"{"rootfs":{"type":"other"}}"#, r#"{"rootfs":{"diff_ids":["md5:aa"]}}"#, "null"] {
        assert!(parse_config(bad.as_bytes()).is_err(), "{bad}");
    }
}
