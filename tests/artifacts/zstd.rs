//! zstd layers: in an index of our own, and nowhere in SOCI's.

use sociblk::config::Config;
use sociblk::node::artifacts::{Artifacts, get_file};
use sociblk::node::convert::LayoutFormat;
use sociblk::node::push::{ExistingIndex, PushEvent};
use sociblk::node::verify::{Outcome, VerifyOptions};
use sociblk::node::why::{Reason, WhyOptions};
use sociblk::node::{verify, why};
use sociblk::registry::fallback_tag;
use sociblk::soci::{OWN_TYPE, OWN_ZTOC_TYPE, SociIndex, V1_TYPE, V2_TYPE};
use sociblk::units::Digest;

use crate::support::{OCI_INDEX, World, access, borrowed, layer};

type Layers = Vec<(Vec<u8>, Digest)>;

/// As zstd:chunked has it: frames of so many bytes, and skippable frames behind them.
fn zstd(seed: u64, files: &[(&str, usize)], frame_bytes: usize) -> (Vec<u8>, Digest) {
    use std::io::Read as _;
    let (gzip, diff_id) = layer(seed, files);
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&*gzip).read_to_end(&mut tar).expect("gzip");
    let frames = tar.chunks(frame_bytes).flat_map(|part| ::zstd::encode_all(part, 1).expect("memory"));
    let blob = frames.chain(*b"\x50\x2a\x4d\x18\x03\x00\x00\x00end").collect();
    (blob, diff_id)
}

/// gzip, zstd of many frames, zstd of one.
fn mixed() -> Layers {
    vec![
        layer(1, &[("bin/a", 700_000), ("bin/b", 300_000)]),
        zstd(2, &[("lib/c", 1_500_000), ("lib/d", 10)], 100_000),
        zstd(3, &[("etc/d", 400_000)], usize::MAX),
    ]
}

fn why_of(world: &World, image: &str) -> why::Why {
    let options = WhyOptions { image: world.image(image), platform: None, access: access(), login: None };
    why::run(&world.paths(), &Config::default(), &options, &mut |_| {}).expect("told")
}

fn verified(world: &World, image: &str) -> verify::Verified {
    let image = WhyOptions { image: world.image(image), platform: None, access: access(), login: None };
    let options = VerifyOptions { image, index: None, parallel: None };
    verify::run(&world.paths(), &Config::default(), &options, &mut |_| {}).expect("ran")
}

/// Layers that an index in the registry lists.
fn listed(world: &World, repository: &str, index: Digest) -> Vec<Digest> {
    let bytes = world.registry.manifest(repository, &index.to_string()).expect("pushed");
    SociIndex::parse(&bytes).expect("an index").ztocs.iter().map(|ztoc| ztoc.layer_digest).collect()
}

#[test]
fn zstd_layers_get_an_index_of_our_own_beside_socis() {
    for api in [true, false] {
        let world = World::new();
        world.registry.referrers_api(api);
        let layers = mixed();
        let manifest = world.registry.put_image("mixed", "1", &borrowed(&layers));
        let digests: Vec<Digest> = layers.iter().map(|(blob, _)| Digest::of(blob)).collect();
        let before = why_of(&world, "mixed:1");
        assert!(before.unmountable.is_none());
        assert_eq!(before.layers[1].reason, Reason::Compression);
        assert!(before.layers[1].detail.contains("no index of our own was found"), "{}", before.layers[1].detail);

        let created = world.create(&world.create_options("mixed:1")).expect("created");
        let (soci, own) = (created.images[0].index.expect("SOCI's"), created.images[0].own_index.expect("ours"));
        assert!(created.images[0].layers.iter().all(|layer| layer.ztoc.is_some()));
        let told = world.push("mixed:1", ExistingIndex::Warn).expect("pushed");
        assert!(told.contains(&PushEvent::Pushing(soci)) && told.contains(&PushEvent::Pushing(own)));
        assert_eq!(listed(&world, "mixed", soci), digests[..1]);
        assert_eq!(listed(&world, "mixed", own), digests[1..]);
        let (of_soci, of_ours) = (world.json("mixed", &soci.to_string()), world.json("mixed", &own.to_string()));
        assert_eq!(of_soci["config"]["mediaType"], V1_TYPE);
        assert_eq!(of_ours["config"]["mediaType"], OWN_TYPE);
        assert_eq!(of_ours["layers"][0]["mediaType"], OWN_ZTOC_TYPE);
        assert_eq!(of_ours["subject"]["digest"], manifest.to_string());
        assert!(!of_soci.to_string().contains("zstd"));
        if !api {
            let list = world.json("mixed", &fallback_tag(&manifest));
            let types: Vec<&str> = list["manifests"]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(|m| m["artifactType"].as_str())
                .collect();
            assert_eq!(types, [V1_TYPE, OWN_TYPE]);
        }
        let told = world.push("mixed:1", ExistingIndex::Skip).expect("nothing to do");
        assert!(!told.iter().any(|event| matches!(event, PushEvent::Pushing(_))), "{told:?}");

        // Another node finds both.
        let other = World { dir: tempfile::tempdir().expect("a directory"), ..world };
        let found = why_of(&other, "mixed:1");
        let origins: Vec<_> = found.layers.iter().map(|layer| (layer.origin, layer.index, layer.own_kind)).collect();
        assert_eq!(
            origins,
            [(Some("v1"), Some(soci), false), (Some("own"), Some(own), true), (Some("own"), Some(own), true)]
        );
        assert!(found.layers.iter().all(|layer| layer.lazy && layer.reason == Reason::Indexed));
        assert!(found.layers[1].detail.contains("not SOCI's") && found.layers[1].detail.contains(" spans"));
        assert!(found.layers[2].detail.contains("its only zstd frame is one span"), "{}", found.layers[2].detail);
        let proven = verified(&other, "mixed:1");
        assert_eq!(proven.outcome, Outcome::Proven, "{:?}", proven.layers);
        assert!(proven.layers[1].spans > 3 && proven.layers[2].spans == 1);
    }
}

#[test]
fn what_the_store_has_of_zstd_layers_is_listed_read_kept_and_rebuilt() {
    let world = World::new();
    let layers = mixed();
    world.registry.put_image("mixed", "1", &borrowed(&layers));
    let created = world.create(&world.create_options("mixed:1")).expect("created");
    let own = created.images[0].own_index.expect("ours");
    let again = world.create(&world.create_options("mixed:1")).expect("created");
    assert_eq!(again.images[0].own_index, Some(own));
    assert!(again.images[0].layers.iter().all(|layer| layer.reused));

    let artifacts = Artifacts::open(&world.paths()).expect("a store");
    let rows = artifacts.indexes(None, &[]).expect("listed");
    let mut versions: Vec<&str> = rows.iter().map(|row| row.manifest_version).collect();
    versions.sort_unstable();
    assert_eq!(versions, ["own", "v1"]);
    assert_eq!(artifacts.index(&own).expect("there")["config"]["mediaType"], OWN_TYPE);
    let ztoc = created.images[0].layers[1].ztoc.expect("built");
    let info = serde_json::to_value(artifacts.ztoc_info(&ztoc).expect("read")).expect("JSON");
    assert_eq!((&info["compression"], &info["num_files"]), (&"zstd".into(), &2.into()));
    let file = world.dir.path().join("layer");
    std::fs::write(&file, &layers[1].0).expect("written");
    let mut out = Vec::new();
    assert_eq!(get_file(&world.paths(), &ztoc, "lib/c", Some(&file), &mut out).expect("extracted"), 1_500_000);
    assert_eq!(out.len(), 1_500_000);

    artifacts.sweep(std::time::Duration::ZERO).expect("swept");
    assert!(artifacts.index(&own).is_ok() && artifacts.ztoc(&ztoc).is_ok(), "what was made here stays");
    let rebuilt = artifacts.rebuild().expect("rebuilt");
    assert_eq!((rebuilt.indexes, rebuilt.ztocs), (2, 3));
    assert_eq!(artifacts.indexes(None, &[]).expect("listed").len(), 2);
    artifacts.remove_indexes(&[own]).expect("removed");
    assert!(artifacts.ztoc(&ztoc).is_err() && artifacts.index(&own).is_err());
}

#[test]
fn an_image_of_zstd_layers_alone_has_no_index_of_socis() {
    let world = World::new();
    let layers = mixed().split_off(1);
    let manifest = world.registry.put_image("zstd", "1", &borrowed(&layers));
    let mut options = world.create_options("zstd:1");
    options.push = true;
    let created = world.create(&options).expect("created");
    assert_eq!(created.images[0].index, None);
    let own = created.images[0].own_index.expect("ours");
    assert_eq!(world.json("zstd", &own.to_string())["subject"]["digest"], manifest.to_string());

    let converted = world.convert(&world.image("zstd:1"), &world.image("zstd:2"), |_| {}).expect("converted");
    assert_eq!(
        (converted.images[0].index, converted.images[0].own_index),
        (None, Some(own)),
        "the manifest is the same"
    );
    let index = world.json("zstd", "2");
    assert_eq!(index["mediaType"], OCI_INDEX);
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_converted_image_has_socis_index_inside_and_ours_beside() {
    let world = World::new();
    world.registry.put_image("mixed", "1", &borrowed(&mixed()));
    let converted = world.convert(&world.image("mixed:1"), &world.image("there:1"), |_| {}).expect("converted");
    let own = converted.images[0].own_index.expect("ours");
    let index = world.json("there", "1");
    let entries = index["manifests"].as_array().expect("entries");
    let types: Vec<&str> = entries.iter().filter_map(|entry| entry["artifactType"].as_str()).collect();
    assert_eq!(types, [V2_TYPE], "nothing of ours inside");
    let of_ours = world.json("there", &own.to_string());
    assert_eq!(of_ours["subject"]["digest"], entries[0]["digest"], "it names the manifest that conversion made");
    let again = world.convert(&world.image("there:1"), &world.image("there:2"), |_| {}).expect("converted again");
    assert_eq!((again.digest, again.images[0].own_index), (converted.digest, Some(own)));

    let other = World { dir: tempfile::tempdir().expect("a directory"), ..world };
    let found = why_of(&other, "there:1");
    let origins: Vec<_> = found.layers.iter().map(|layer| layer.origin).collect();
    assert_eq!(origins, [Some("v2"), Some("own"), Some("own")], "{:?}", found.steps);

    // Into layouts and archives, and out of them.
    let at = |name: &str| other.dir.path().join(name).display().to_string();
    for target in [format!("oci:{}:1", at("layout")), format!("oci-archive:{}:1", at("image.tar"))] {
        let converted = other.convert(&other.image("mixed:1"), &target, |_| {}).expect("converted");
        assert_eq!(converted.images[0].own_index, Some(own));
        let fresh = World { dir: tempfile::tempdir().expect("a directory"), ..World::new() };
        let options = WhyOptions { image: target.clone(), platform: None, access: access(), login: None };
        let found = why::run(&fresh.paths(), &Config::default(), &options, &mut |_| {}).expect("told");
        let origins: Vec<_> = found.layers.iter().map(|layer| layer.origin).collect();
        assert_eq!(origins, [Some("v2"), Some("own"), Some("own")], "{target}: {:?}", found.steps);
    }
    let made = other.standalone(&at("layout"), &at("alone.tar"), LayoutFormat::Archive).expect("converted");
    assert_eq!((made.digest, made.images[0].own_index), (converted.digest, Some(own)));
}

#[test]
fn layers_that_are_not_what_their_media_type_says_are_left_out() {
    let world = World::new();
    let layers = mixed();
    world.registry.put_image("mixed", "1", &borrowed(&layers));
    let text = String::from_utf8(world.registry.manifest("mixed", "1").expect("there").to_vec()).expect("text");
    for (tag, changed) in [("2", text.replace("tar+zstd", "tar+gzip")), ("3", text.replace("tar+gzip", "tar+zstd"))] {
        world.registry.put_manifest("mixed", Some(tag), crate::support::OCI_MANIFEST, changed);
    }
    // Also when the store has a zTOC of the layer already.
    for _ in 0..2 {
        let two = world.create(&world.create_options("mixed:2")).expect("created");
        assert_eq!(two.images[0].own_index, None);
        assert!(two.images[0].layers[1].reason.contains("compressed otherwise than its media type says: zstd"));
        assert_eq!(listed_in_store(&world, two.images[0].index), [Digest::of(&layers[0].0)]);
        let three = world.create(&world.create_options("mixed:3")).expect("created");
        assert_eq!(three.images[0].index, None);
        assert!(three.images[0].layers[0].reason.contains("compressed otherwise than its media type says: gzip"));
        world.create(&world.create_options("mixed:1")).expect("created");
    }
}

fn listed_in_store(world: &World, index: Option<Digest>) -> Vec<Digest> {
    let bytes = world.store().read(&index.expect("an index")).expect("stored");
    SociIndex::parse(&bytes).expect("an index").ztocs.iter().map(|ztoc| ztoc.layer_digest).collect()
}
