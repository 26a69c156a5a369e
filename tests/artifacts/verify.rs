//! `index why` and `index verify`, end to end.

use sociblk::config::Config;
use sociblk::node::push::ExistingIndex;
use sociblk::node::verify::{self, Outcome, Verified, VerifyOptions};
use sociblk::node::why::{self, Place, Reason, Verdict, Why, WhyOptions};
use sociblk::soci::{IndexFilter, SociIndex};
use sociblk::testkit::registry::Fault;
use sociblk::units::{BlobOffset, Digest};

use crate::support::{OCI_MANIFEST, World, access, borrowed, words};

/// On a node that has nothing of the image.
fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn options(world: &World, image: &str) -> WhyOptions {
    WhyOptions { image: world.image(image), platform: Some("linux/amd64".into()), access: access(), login: None }
}

fn paths(dir: &tempfile::TempDir) -> sociblk::node::paths::Paths {
    sociblk::node::paths::Paths::new(dir.path().join("root"))
}

fn why_of(world: &World, image: &str) -> Why {
    let dir = elsewhere();
    let told = why::run(&paths(&dir), &Config::default(), &options(world, image), &mut |_| {}).expect("told");
    nothing_stored(&dir);
    told
}

fn verify_of(world: &World, image: &str, index: Option<Digest>) -> anyhow::Result<Verified> {
    let dir = elsewhere();
    let options = VerifyOptions { image: options(world, image), index, parallel: None };
    let done = verify::run(&paths(&dir), &Config::default(), &options, &mut |_| {});
    nothing_stored(&dir);
    done
}

fn nothing_stored(dir: &tempfile::TempDir) {
    let store = sociblk::soci::Store::open(paths(dir).root()).expect("a store");
    assert!(store.indexes(&IndexFilter::default()).expect("readable").is_empty());
    assert!(store.ztocs(None, None).expect("readable").is_empty());
    let blobs = store.content_dir().join("blobs/sha256");
    assert!(std::fs::read_dir(blobs).map_or(0, Iterator::count) == 0, "nothing is stored");
}

/// `app:1` with an index that leaves out layers below `min_layer_bytes`, pushed; its digest.
fn indexed(world: &World, min_layer_bytes: u64) -> Digest {
    let mut options = world.create_options("app:1");
    options.index.min_layer_bytes = min_layer_bytes;
    let created = world.create(&options).expect("created");
    world.push("app:1", ExistingIndex::Allow).expect("pushed");
    created.images[0].index.expect("an index")
}

fn step(told: &Why, place: Place) -> (Verdict, Option<Digest>, String) {
    let step = told.steps.iter().rev().find(|step| step.place == place);
    step.map(|step| (step.verdict, step.index, step.detail.clone())).expect("a step")
}

#[test]
fn why_names_the_index_and_where_it_was_found() {
    for api in [true, false] {
        let world = World::new();
        world.registry.referrers_api(api);
        let told = why_of(&world, "app:1");
        assert!(told.layers.iter().all(|layer| layer.reason == Reason::NoIndex && !layer.lazy));
        assert_eq!(step(&told, Place::V1Referrers).0, Verdict::Nothing);
        let index = indexed(&world, 100_000);
        let told = why_of(&world, "app:1");
        let reasons: Vec<Reason> = told.layers.iter().map(|layer| layer.reason).collect();
        assert_eq!(reasons, [Reason::Indexed, Reason::Indexed, Reason::Small]);
        assert_eq!(told.layers[0].index, Some(index));
        assert_eq!((told.layers[0].origin, told.layers[0].span_size), (Some("v1"), Some(200_000)));
        assert_eq!(
            step(&told, Place::V1Referrers),
            (Verdict::Used, Some(index), "serves 2 layers that nothing before serves".into())
        );
        let how = if api { "referrers API" } else { "fallback tag" };
        assert!(told.steps.iter().any(|step| step.detail.contains(how)), "{:?}", told.steps);
        assert!(told.layers[2].detail.contains("min-layer-size"), "{}", told.layers[2].detail);

        // Where it was built, the registry is not asked for an index.
        let told = why::run(&world.paths(), &Config::default(), &options(&world, "app:1"), &mut |_| {}).expect("told");
        assert_eq!(told.layers[0].origin, Some("local"));
        assert_eq!(step(&told, Place::LocalMapping).1, Some(index));
    }
}

#[test]
fn why_names_annotations_and_what_is_missing() {
    let world = World::new();
    world.convert(&world.image("app:1"), &world.image("v2:1"), |_| {}).expect("converted");
    let told = why_of(&world, "v2:1");
    assert!(told.layers.iter().all(|layer| layer.lazy && layer.origin == Some("v2")), "{told:?}");
    assert_eq!(step(&told, Place::V1Referrers).0, Verdict::NotAsked);
    let (index, first) = (told.layers[0].index.expect("one"), told.layers[0].ztoc.expect("one"));

    let ztoc = world.registry.blob(&first).expect("there");
    world.registry.remove_blob(&first);
    let told = why_of(&world, "v2:1");
    let reasons: Vec<Reason> = told.layers.iter().map(|layer| layer.reason).collect();
    assert_eq!(reasons, [Reason::ZtocMissing, Reason::Indexed, Reason::Indexed]);
    let unchecked = verify_of(&world, "v2:1", None).expect("looked at");
    assert_eq!(unchecked.outcome, Outcome::Unchecked, "{unchecked:?}");
    world.registry.put_blob(&ztoc);

    world.registry.remove_manifest("v2", &index.to_string());
    let told = why_of(&world, "v2:1");
    assert!(told.layers.iter().all(|layer| layer.reason == Reason::IndexFailed), "{told:?}");
    assert_eq!(step(&told, Place::V2Annotation).0, Verdict::Failed);
    assert_eq!(verify_of(&world, "v2:1", None).expect("looked at").outcome, Outcome::Unchecked);
}

#[test]
fn a_true_index_is_proven_and_each_layer_is_read_once() {
    let world = World::new();
    let index = indexed(&world, 100_000);
    let before = world.layer_reads();
    let verified = verify_of(&world, "app:1", None).expect("verified");
    assert_eq!(verified.outcome, Outcome::Proven, "{verified:?}");
    let outcomes: Vec<Outcome> = verified.layers.iter().map(|layer| layer.outcome).collect();
    assert_eq!(outcomes, [Outcome::Proven, Outcome::Proven, Outcome::NotIndexed]);
    assert!(world.layer_reads() - before <= 1.0);
    assert!(verified.layers[0].entries == 2 && verified.layers[0].spans > 1);
    let named = verify_of(&world, "app:1", Some(index)).expect("verified");
    assert_eq!((named.outcome, named.layers[0].origin), (Outcome::Proven, Some("named")));
    let error = words(&verify_of(&world, "app:1", Some(Digest::of(b"none"))).expect_err("no such index"));
    assert!(error.contains("not found"), "{error}");
}

#[test]
fn a_lie_in_the_registry_is_wrong_and_named() {
    // The index names for layer 0 what was built of layer 1.
    let world = World::new();
    let index = indexed(&world, 0);
    let mut document =
        SociIndex::parse(&world.registry.manifest("app", &index.to_string()).expect("there")).expect("an index");
    (document.ztocs[0].digest, document.ztocs[0].size) = (document.ztocs[1].digest, document.ztocs[1].size);
    let bytes = document.to_bytes().expect("an index");
    let lie = world.registry.put_manifest("app", None, OCI_MANIFEST, bytes);
    let verified = verify_of(&world, "app:1", Some(lie)).expect("verified");
    assert_eq!(verified.outcome, Outcome::Wrong);
    assert_eq!(verified.layers[1].outcome, Outcome::Proven);
    let lines: Vec<String> = verified.layers[0].findings.iter().map(ToString::to_string).collect();
    assert!(lines[0].starts_with("zTOC: blob size: expected"), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("\"bin/b\": entry: expected one")), "{lines:?}");

    // What is no zTOC at all.
    let junk = world.registry.put_blob(b"junk");
    (document.ztocs[0].digest, document.ztocs[0].size) = (junk, BlobOffset::new(4));
    let lie = world.registry.put_manifest("app", None, OCI_MANIFEST, document.to_bytes().expect("an index"));
    let verified = verify_of(&world, "app:1", Some(lie)).expect("verified");
    assert_eq!(verified.layers[0].findings[0].field, "document");

    // Changed bytes on the way, of the layer and of the zTOC.
    world.registry.fail(Fault::ChangedBytes).on(&Digest::of(&world.layers[0].0).to_string());
    let verified = verify_of(&world, "app:1", Some(index)).expect("verified");
    assert!(verified.layers[0].findings.iter().any(|finding| finding.field == "digest"), "{verified:?}");
    world.registry.heal();
    let ztoc = verified.layers[0].ztoc.expect("one");
    world.registry.fail(Fault::ChangedBytes).on(&ztoc.to_string());
    let verified = verify_of(&world, "app:1", Some(index)).expect("verified");
    assert_eq!(verified.outcome, Outcome::Wrong, "{verified:?}");
}

#[test]
fn a_wrong_diff_id_is_found() {
    let world = World::new();
    let mut layers = world.layers.clone();
    indexed(&world, 0);
    // The same layers in an image whose config says something else of the second; the node's own zTOCs serve.
    layers[1].1 = Digest::of(b"something else");
    world.registry.put_image("app", "2", &borrowed(&layers));
    let options = VerifyOptions { image: options(&world, "app:2"), index: None, parallel: Some(1) };
    let verified = verify::run(&world.paths(), &Config::default(), &options, &mut |_| {}).expect("verified");
    let outcomes: Vec<Outcome> = verified.layers.iter().map(|layer| layer.outcome).collect();
    assert_eq!(outcomes, [Outcome::Proven, Outcome::Wrong, Outcome::Proven]);
    assert_eq!(verified.layers[1].findings.len(), 1);
    assert_eq!(verified.layers[1].findings[0].field, "diffID");
}

#[test]
fn the_exit_status_says_what_came_of_it() {
    let world = World::new();
    let status = |image: &str| {
        let dir = elsewhere();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sociblk"));
        // A directory without hosts.toml: the machine's own must not matter here.
        command.arg("--root").arg(dir.path().join("root")).arg("--hosts-dir").arg(dir.path()).arg("--plain-http");
        command.args(["index", "verify", "--json", "--platform", "linux/amd64"]).arg(world.image(image));
        let output = command.output().expect("run");
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&told).into_owned())
    };
    let (code, told) = status("app:1");
    assert!(code == Some(3) && told.contains("no index was found"), "{code:?} {told}");
    let (code, told) = status("app:none");
    assert!(code == Some(3) && told.contains("not found"), "{code:?} {told}");
    indexed(&world, 0);
    let (code, told) = status("app:1");
    assert!(code == Some(0) && told.contains("\"outcome\": \"proven\""), "{code:?} {told}");
    world.registry.fail(Fault::ChangedBytes).on(&Digest::of(&world.layers[0].0).to_string());
    let (code, told) = status("app:1");
    assert!(code == Some(1) && told.contains("\"outcome\": \"wrong\""), "{code:?} {told}");
}
