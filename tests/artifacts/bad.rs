//! What is wrong is named, and leaves nothing behind.

use std::time::{Duration, Instant};

use sociblk::node::push::ExistingIndex;
use sociblk::testkit::registry::Fault;
use sociblk::units::Digest;

use crate::support::{OCI_INDEX, OCI_MANIFEST, World, words};

/// Nothing of a layer or an index is in the store.
fn nothing_stored(world: &World) -> bool {
    let store = world.store();
    store.indexes(&sociblk::soci::IndexFilter::default()).expect("readable").is_empty()
        && world.layers.iter().all(|(blob, _)| store.ztoc_for(&Digest::of(blob)).expect("readable").is_none())
        && std::fs::read_dir(store.scratch_dir()).expect("readable").next().is_none()
}

#[test]
fn a_layer_that_lies_leaves_nothing() {
    for fault in [Fault::ChangedBytes, Fault::Html, Fault::ContentEncoding, Fault::IgnoreRange] {
        let world = World::new();
        let lying = matches!(fault, Fault::IgnoreRange);
        let second = Digest::of(&world.layers[1].0);
        if lying {
            // Well-formed, and another layer than the manifest names.
            let mut other = crate::support::layer(77, &[("lib/c", 2_000_000)]).0;
            other.resize(world.layers[1].0.len(), 0);
            world.registry.put_blob_as(second, other);
        }
        world.registry.fail(fault.clone()).on(&second.to_string());
        let mut options = world.create_options("app:1");
        options.push = true;
        let error = words(&world.create(&options).expect_err("a lie"));
        assert!(error.contains(&second.hex()[..12]) || error.contains("127.0.0.1"), "{fault:?}: {error}");
        let known = world.store().ztoc_for(&second).expect("readable");
        assert!(known.is_none(), "{fault:?}");
        assert!(world.store().indexes(&sociblk::soci::IndexFilter::default()).expect("readable").is_empty());
        assert_eq!(world.registry.manifest_names("app").len(), 2, "{fault:?}: nothing was pushed");
    }
}

#[test]
fn documents_that_cannot_be_are_refused_at_once() {
    let world = World::new();
    world.registry.put_manifest("huge", Some("1"), OCI_MANIFEST, vec![b' '; 100 << 20]);
    world.registry.put_manifest("empty", Some("1"), OCI_INDEX, r#"{"schemaVersion":2,"manifests":[]}"#);
    world.registry.put_manifest("none", Some("1"), OCI_MANIFEST, "{}");
    for (image, want) in [
        ("huge:1", "longer than the limit of 4194304 bytes"),
        ("empty:1", "no image for"),
        ("none:1", "schemaVersion"),
        ("app:other", "not found"),
    ] {
        let began = Instant::now();
        let error = words(&world.create(&world.create_options(image)).expect_err(image));
        assert!(error.contains(want), "{image}: {error}");
        let error = words(&world.convert(&world.image(image), &world.image("to:1"), |_| {}).expect_err(image));
        assert!(error.contains(want), "{image}: {error}");
        assert!(began.elapsed() < Duration::from_secs(60), "{image}");
    }
    assert!(nothing_stored(&world) && world.registry.manifest_names("to").is_empty());
}

#[test]
fn destinations_are_tags() {
    let world = World::new();
    for target in ["to", &format!("to@{}", world.manifest), &format!("to:1@{}", world.manifest)] {
        let error = words(&world.convert(&world.image("app:1"), &world.image(target), |_| {}).expect_err(target));
        assert!(error.contains("must be a tagged ref"), "{error}");
    }
    let file = world.dir.path().join("full");
    std::fs::create_dir(&file).expect("a directory");
    std::fs::write(file.join("x"), "something else").expect("written");
    let target = format!("oci:{}", file.display());
    let error = words(&world.convert(&world.image("app:1"), &target, |_| {}).expect_err("no layout"));
    assert!(error.contains("holds something else"), "{error}");
}

#[test]
fn a_registry_that_takes_no_artifacts_is_named_with_the_way_out() {
    for (code, error) in
        [(400, "MANIFEST_INVALID"), (404, "UNSUPPORTED"), (405, "UNSUPPORTED"), (415, "MANIFEST_INVALID")]
    {
        let world = World::new();
        world.create(&world.create_options("app:1")).expect("created");
        world.registry.fail(Fault::Refuse { code, error }).method("PUT").on("/manifests/");
        let error = words(&world.push("app:1", ExistingIndex::Allow).expect_err("refused"));
        assert!(error.contains("does not take this kind of artifact") && error.contains("convert"), "{code}: {error}");
        assert_eq!(world.registry.manifest_names("app").len(), 2);
    }
    // It takes the artifact, but neither lists referrers nor lets itself be given the fallback tag.
    let world = World::new();
    world.registry.referrers_api(false);
    world.create(&world.create_options("app:1")).expect("created");
    let refusal = Fault::Refuse { code: 400, error: "TAG_INVALID" };
    world.registry.fail(refusal).method("PUT").on("/manifests/sha256-");
    let error = words(&world.push("app:1", ExistingIndex::Allow).expect_err("refused"));
    assert!(error.contains("TAG_INVALID"), "{error}");
}

#[test]
fn nothing_to_push_is_said() {
    let world = World::new();
    let error = words(&world.push("app:1", ExistingIndex::Warn).expect_err("nothing"));
    assert!(error.contains("could not find any soci index manifest v1 to push for platform linux/amd64"), "{error}");
}

#[test]
fn a_push_that_is_cut_off_shows_nothing() {
    for cut in [0, 1, 1_000, 30_000] {
        let world = World::new();
        world.registry.referrers_api(false);
        world.registry.strict("app");
        world.create(&world.create_options("app:1")).expect("created");
        world.registry.fail(Fault::DropUploadAfter(cut)).method("PUT").on("/blobs/uploads/").after(1);
        world.push("app:1", ExistingIndex::Allow).expect_err("cut off");
        assert_eq!(world.registry.manifest_names("app").len(), 2, "cut at {cut}");
        world.registry.heal();
        world.registry.fail(Fault::DropUploadAfter(cut)).method("PUT").on("/manifests/sha256-");
        world.push("app:1", ExistingIndex::Allow).expect_err("cut off before the tag");
        world.registry.heal();
        world.push("app:1", ExistingIndex::Allow).expect("at last");

        // A conversion shows nothing either: the tag comes last.
        let (from, to) = (world.image("app:1"), world.image("to:1"));
        world.registry.fail(Fault::DropUploadAfter(cut)).method("PUT").on("/v2/to/manifests/1");
        world.convert(&from, &to, |_| {}).expect_err("cut off");
        assert!(world.registry.manifest("to", "1").is_none(), "cut at {cut}");
        world.registry.heal();
        world.convert(&from, &to, |_| {}).expect("at last");
    }
}

#[test]
fn a_conversion_that_fails_leaves_no_file() {
    let world = World::new();
    world.registry.fail(Fault::ChangedBytes).on(&Digest::of(&world.layers[1].0).to_string()).after(1);
    let path = |name: &str| world.dir.path().join(name);
    for (target, path) in [
        (format!("oci:{}", path("dir").display()), path("dir")),
        (format!("oci-archive:{}", path("a.tar").display()), path("a.tar")),
    ] {
        let error = words(&world.convert(&world.image("app:1"), &target, |_| {}).expect_err("a lie"));
        assert!(error.contains("sha256:"), "{error}");
        assert!(!path.exists(), "{}", path.display());
    }
    let left: Vec<_> = std::fs::read_dir(world.dir.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name != "root")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
