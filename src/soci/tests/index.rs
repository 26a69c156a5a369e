use super::*;

fn ztoc(n: u8) -> ZtocEntry {
    ZtocEntry {
        digest: Digest::of(&[n]),
        size: BlobOffset::new(100 + u64::from(n)),
        layer_digest: Digest::of(&[n, n]),
        layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        span_size_bytes: Some(4 << 20),
        disable_xattrs: false,
    }
}

fn index(kind: Kind) -> SociIndex {
    SociIndex { kind, ztocs: vec![ztoc(1)], prefetch: Vec::new(), build_tool: "AWS SOCI CLI v0.2".into() }
}

fn subject() -> Subject {
    let digest = Digest::of(b"manifest");
    Subject { media_type: media_type::OCI_MANIFEST.into(), digest, size: BlobOffset::new(8) }
}

#[test]
fn a_v1_index_has_the_bytes_that_go_writes() {
    let bytes = index(Kind::V1 { subject: Some(subject()) }).to_bytes().expect("an index");
    let want = concat!(
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
        r#""config":{"mediaType":"application/vnd.amazon.soci.index.v1+json","#,
        r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"#,
        r#""layers":[{"mediaType":"application/octet-stream","#,
        r#""digest":"sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a","size":101,"#,
        r#""annotations":{"com.amazon.soci.image-layer-digest":"#,
        r#""sha256:9dcf97a184f32623d11a73124ceb99a5709b083721e878a16d78f596718ba7b2","#,
        r#""com.amazon.soci.image-layer-mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","#,
        r#""com.amazon.soci.span-size":"4194304"}}],"#,
        r#""subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
        r#""digest":"sha256:18b96f5a1ba72f14eb30c3b0b4f2c1d13e1f7a1fb2d8c23a8ccb7c1a2f0ec8b1","size":8},"#,
        r#""annotations":{"com.amazon.soci.build-tool-identifier":"AWS SOCI CLI v0.2"}}"#
    );
    let subject_digest = "sha256:18b96f5a1ba72f14eb30c3b0b4f2c1d13e1f7a1fb2d8c23a8ccb7c1a2f0ec8b1";
    let want = want.replace(subject_digest, &Digest::of(b"manifest").to_string());
    assert_eq!(String::from_utf8(bytes).expect("UTF-8"), want);
}

#[test]
fn a_v2_index_has_no_subject_and_depends_on_nothing_but_its_entries() {
    let mut index = index(Kind::V2);
    index.ztocs[0].disable_xattrs = true;
    let layer_digest = index.ztocs[0].layer_digest;
    index.prefetch.push(PrefetchEntry { digest: Digest::of(b"p"), size: BlobOffset::new(9), layer_digest });
    let text = String::from_utf8(index.to_bytes().expect("an index")).expect("UTF-8");
    assert!(!text.contains("subject"), "{text}");
    let order =
        ["com.amazon.soci.disable-xattrs", "image-layer-digest", "image-layer-mediaType", "span-size", PREFETCH_TYPE];
    let places: Vec<_> = order.iter().map(|key| text.find(key).expect(key)).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(SociIndex::parse(text.as_bytes()).expect("reads back"), index);
}

#[test]
fn html_characters_are_escaped_as_go_does() {
    let mut index = index(Kind::V2);
    index.build_tool = "a<b>&c\u{2028}\"\\\u{1f600}é".into();
    let bytes = index.to_bytes().expect("an index");
    let text = String::from_utf8(bytes.clone()).expect("UTF-8");
    assert!(text.contains(r#""a\u003cb\u003e\u0026c\u2028\"\\😀é""#), "{text}");
    assert_eq!(SociIndex::parse(&bytes).expect("reads back").build_tool, index.build_tool);
}

#[test]
fn foreign_indexes_are_checked() {
    let good =
        String::from_utf8(index(Kind::V1 { subject: Some(subject()) }).to_bytes().expect("an index")).expect("UTF-8");
    let layer = ztoc(1).layer_digest.to_string();
    for (name, from, to) in [
        ("another artifact", V1_TYPE, "application/vnd.oci.image.config.v1+json"),
        ("a zTOC of no layer", "com.amazon.soci.image-layer-digest", "x"),
        ("a layer that is no digest", layer.as_str(), "latest"),
        ("an absurd size", r#""size":101"#, r#""size":1073741825"#),
        ("an empty zTOC", r#""size":101"#, r#""size":0"#),
        ("a negative size", r#""size":101"#, r#""size":-1"#),
        ("not a manifest", r#""config""#, r#""konfig""#),
    ] {
        assert!(good.contains(from), "{name}: nothing to replace");
        let text = good.replace(from, to);
        assert!(matches!(SociIndex::parse(text.as_bytes()), Err(SociError::Index { .. })), "{name} must be refused");
    }
    let lost = good.replace(r#""subject""#, r#""subjekt""#);
    let lost = SociIndex::parse(lost.as_bytes()).expect("an index that lost its subject still serves");
    assert_eq!(lost.kind, Kind::V1 { subject: None });
    let odd = good.replace("4194304", "large");
    assert_eq!(
        SociIndex::parse(odd.as_bytes()).expect("an odd span size is just unknown").ztocs[0].span_size_bytes,
        None
    );
}

#[test]
fn a_layer_may_be_listed_twice_but_not_with_two_ztocs() {
    let mut twice = index(Kind::V2);
    twice.ztocs.push(ztoc(1));
    let read = SociIndex::parse(&twice.to_bytes().expect("an index")).expect("the same zTOC twice");
    assert_eq!(read.ztocs, [ztoc(1)]);
    twice.ztocs[1].digest = Digest::of(b"other");
    assert!(SociIndex::parse(&twice.to_bytes().expect("an index")).is_err());
    assert!(matches!(SociIndex { ztocs: Vec::new(), ..twice }.to_bytes(), Err(SociError::Empty)));
}

#[test]
fn our_own_index_is_told_apart_by_every_type_in_it() {
    let own = index(Kind::Own { subject: Some(subject()) });
    let bytes = own.to_bytes().expect("an index");
    let text = String::from_utf8(bytes.clone()).expect("UTF-8");
    assert!(!text.contains(V1_TYPE) && !text.contains(V2_TYPE) && !text.contains(ZTOC_TYPE), "{text}");
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(parsed["config"]["mediaType"], OWN_TYPE);
    assert_eq!(parsed["layers"][0]["mediaType"], OWN_ZTOC_TYPE);
    assert_eq!(parsed["subject"]["digest"], subject().digest.to_string());
    assert_eq!(SociIndex::parse(&bytes).expect("our own"), own);
    // zTOCs of one kind in an index of the other are not seen.
    for (from, to) in [(ZTOC_TYPE, OWN_ZTOC_TYPE), (OWN_ZTOC_TYPE, ZTOC_TYPE)] {
        let kind = if from == ZTOC_TYPE { Kind::V2 } else { Kind::Own { subject: None } };
        let text = String::from_utf8(index(kind).to_bytes().expect("an index")).expect("UTF-8").replace(from, to);
        assert!(SociIndex::parse(text.as_bytes()).expect("an index").ztocs.is_empty());
    }
}
