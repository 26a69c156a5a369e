//! `convert` between registries, layouts and archives.

use serde_json::Value;
use sociblk::node::convert::LayoutFormat;
use sociblk::registry::{Client, ClientConfig, ImageSource, Platform};
use sociblk::soci::{self, LocalPolicy, Origin, Store, V2_TYPE};
use sociblk::units::Digest;

use crate::support::{OCI_INDEX, World, words};

/// Whether a host that knows nothing finds a zTOC of every layer through the annotation.
fn all_layers_by_annotation(source: &str, architecture: &str) -> bool {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("a store");
    let source: ImageSource = source.parse().expect("a source");
    let client = Client::new(ClientConfig::default());
    runtime.block_on(async {
        let image = client.resolve(&source, &Platform::new("linux", architecture, "")).await.expect("resolved");
        let found = soci::discover(&image, &client, &store, LocalPolicy::default()).await;
        assert!(soci::fetch(&found, &image, &client, &store).await.is_empty());
        found.layers.iter().flatten().filter(|z| matches!(z.origin, Origin::V2Annotation { .. })).count()
            == image.layers.len()
    })
}

fn kinds(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().expect("a list");
    entries.iter().map(|entry| entry["artifactType"].as_str().unwrap_or("image").to_owned()).collect()
}

#[test]
fn a_single_image_between_repositories() {
    let world = World::new();
    world.registry.strict("app");
    let (from, to) = (world.image("app:1"), world.image("other:soci"));
    let converted = world.convert(&from, &to, |_| {}).expect("converted");
    let index = world.json("other", "soci");
    assert_eq!(Digest::of(&world.registry.manifest("other", "soci").expect("there")), converted.digest);
    assert_eq!(kinds(&index), ["image", V2_TYPE]);
    assert!(all_layers_by_annotation(&to, "amd64"));
    // Layers moved within the registry: only what is new was uploaded.
    let uploads = world.registry.requests().iter().filter(|r| r.method == "PUT" && r.path.contains("/blobs/")).count();
    assert_eq!(uploads, 4, "three zTOCs and a config");
    let puts: Vec<String> =
        world.registry.requests().into_iter().filter(|r| r.method == "PUT").map(|r| r.path).collect();
    assert_eq!(puts.last().map(String::as_str), Some("/v2/other/manifests/soci"), "what shows it comes last");

    // Converted again, in place and elsewhere: the same, whatever the store knows.
    for target in ["other:soci", "third:x"] {
        std::fs::remove_dir_all(world.paths().root()).expect("forgotten");
        let again = world.convert(&to, &world.image(target), |_| {}).expect("converted");
        assert_eq!(again.digest, converted.digest);
    }
}

#[test]
fn platforms_attestations_and_a_second_registry() {
    let world = World::new();
    let (amd, arm) = world.put_multi();
    let far = sociblk::testkit::registry::TestRegistry::start();
    far.strict("nothing");
    let to = format!("{}/multi:soci", far.host());
    let first = world.convert(&world.image("multi:1"), &to, |_| {}).expect("converted");
    assert_eq!(first.images.len(), 1);
    assert!(all_layers_by_annotation(&to, "amd64") && !all_layers_by_annotation(&to, "arm64"));
    let index: Value = serde_json::from_slice(&far.manifest("multi", "soci").expect("there")).expect("JSON");
    assert_eq!(kinds(&index), ["image", "image", "image", V2_TYPE]);
    assert_eq!(index["manifests"][1]["digest"], arm.to_string(), "the other platform is as it was");
    assert_eq!(index["manifests"][2]["annotations"]["vnd.docker.reference.digest"], index["manifests"][0]["digest"]);
    assert_ne!(index["manifests"][0]["digest"], amd.to_string());

    let all = |options: &mut sociblk::node::convert::ConvertOptions| {
        options.index.platforms.named.clear();
        options.index.platforms.all = true;
    };
    let both = world.convert(&to, &to, all).expect("converted again");
    assert_eq!(both.images.len(), 2);
    assert!(all_layers_by_annotation(&to, "amd64") && all_layers_by_annotation(&to, "arm64"));
    let once = world.convert(&world.image("multi:1"), &format!("{}/multi:once", far.host()), all).expect("converted");
    assert_eq!(once.digest, both.digest, "in one go or one after the other");
}

#[test]
fn layouts_and_archives_in_any_combination() {
    let world = World::new();
    world.put_multi();
    let path = |name: &str| world.dir.path().join(name).display().to_string();
    let (dir, tar) = (format!("oci:{}:v1", path("layout")), format!("oci-archive:{}:v1", path("a.tar")));
    let first = world.convert(&world.image("multi:1"), &dir, |_| {}).expect("to a directory");
    let second = world.convert(&dir, &tar, |_| {}).expect("to an archive");
    let third = world.convert(&tar, &world.image("back:1"), |_| {}).expect("to a registry");
    assert_eq!([second.digest, third.digest], [first.digest; 2]);
    for source in [&dir, &tar, &world.image("back:1")] {
        assert!(all_layers_by_annotation(source, "amd64"), "{source}");
    }
    // A second image beside the first one.
    let beside = format!("oci:{}:v2", path("layout"));
    world.convert(&world.image("app:1"), &beside, |_| {}).expect("beside");
    assert!(all_layers_by_annotation(&dir, "amd64") && all_layers_by_annotation(&beside, "amd64"));
    // `create` reads them as well.
    let mut options = world.create_options("x");
    for image in [&dir, &tar] {
        options.image.clone_from(image);
        assert!(world.create(&options).expect("created").images[0].index.is_some());
    }
}

#[test]
fn standalone_takes_paths_and_leaves_no_store() {
    let world = World::new();
    let path = |name: &str| world.dir.path().join(name).display().to_string();
    world.convert(&world.image("app:1"), &format!("oci:{}", path("in")), |_| {}).expect("a layout");
    std::fs::remove_dir_all(world.paths().root()).expect("forgotten");
    let tar = world.standalone(&path("in"), &path("out.tar"), LayoutFormat::Archive).expect("to a tar");
    let dir = world.standalone(&path("out.tar"), &path("out"), LayoutFormat::Dir).expect("to a directory");
    assert_eq!(tar.digest, dir.digest);
    assert!(!world.paths().root().exists());
    let index: Value =
        serde_json::from_slice(&std::fs::read(world.dir.path().join("out/index.json")).expect("there")).expect("JSON");
    let entries = index["manifests"].as_array().expect("a list");
    assert_eq!((entries.len(), &entries[0]["mediaType"]), (1, &Value::from(OCI_INDEX)));
    let error = words(&world.standalone(&path("none"), &path("x"), LayoutFormat::Dir).expect_err("no input"));
    assert!(error.contains("failed to access input"), "{error}");
}

#[test]
fn an_index_in_an_index_is_laid_flat_and_what_a_layout_lacks_is_left_out() {
    let world = World::new();
    world.put_multi();
    let inner = world.registry.manifest("multi", "1").expect("there");
    let outer = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": Digest::of(&inner).to_string(), "size": inner.len()}]});
    world.registry.put_manifest("multi", Some("nested"), OCI_INDEX, outer.to_string());
    let nested = world.convert(&world.image("multi:nested"), &world.image("multi:a"), |_| {}).expect("converted");
    let flat = world.convert(&world.image("multi:1"), &world.image("multi:b"), |_| {}).expect("converted");
    assert_eq!(nested.digest, flat.digest);

    let layout = world.dir.path().join("partial");
    let source = format!("oci:{}", layout.display());
    world.convert(&world.image("multi:1"), &source, |_| {}).expect("a layout");
    let index = world.json("multi", "a");
    let arm = index["manifests"][1]["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
    std::fs::remove_file(layout.join("blobs/sha256").join(arm)).expect("lost");
    let target = world.image("multi:c");
    world.convert(&source, &target, |_| {}).expect("converted");
    assert_eq!(kinds(&world.json("multi", "c")), ["image", "image", V2_TYPE]);
    assert!(all_layers_by_annotation(&target, "amd64"));
}
