//! Load orders: recorded on one mount, followed by the next cold one: in order, in few requests, never in a reader's way.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sociblk::testkit::registry::TestRegistry;

use crate::layers::{Layer, Maker, as_image, noise};
use crate::support::{Host, utf8, wait_until};

/// Files of one layer, about two of them in a span.
const FILES: usize = 40;
const FILE_BYTES: usize = 150_000;
/// What the workload reads, in order.
const WORKLOAD: [&str; 7] = ["base/30", "top/3", "base/5", "base/6", "base/7", "base/8", "top/20"];

fn layer(name: &str, seed: u64) -> Layer {
    let start = Maker::new().dir(name, 0o755, 0);
    let file = |n: usize| noise(seed + n as u64, FILE_BYTES);
    (0..FILES).fold(start, |maker, n| maker.file(&format!("{name}/{n}"), &file(n))).end()
}

struct Scene {
    registry: TestRegistry,
    layers: Vec<Layer>,
    image: String,
}

impl Scene {
    /// An image with an index beside it.
    fn new(maker: &Host, create: &[&str], referrers_api: bool) -> Self {
        let (registry, layers) = (TestRegistry::start(), vec![layer("base", 1000), layer("top", 2000)]);
        registry.referrers_api(referrers_api);
        registry.put_image("app", "1", &as_image(&layers));
        let image = format!("{}/app:1", registry.host());
        let mut args = vec!["create", &image, "--push", "--span-size", "262144", "--min-layer-size", "0"];
        args.extend(create);
        maker.ok(&args);
        registry.clear_requests();
        Self { registry, layers, image }
    }

    /// Ranges of layers that were asked for, in order: layer, first and last byte.
    fn ranges(&self) -> Vec<(usize, u64, u64)> {
        let asked = self.registry.requests();
        let ranges = asked.iter().filter(|request| request.method == "GET").filter_map(|request| {
            let layer = self.layers.iter().position(|l| request.path.contains(&l.digest().to_string()))?;
            let (first, last) = request.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
            Some((layer, first.parse().ok()?, last.parse().ok()?))
        });
        ranges.collect()
    }
}

fn work(dir: &Path) {
    for name in WORKLOAD {
        assert_eq!(fs::read(dir.join(name)).expect(name).len(), FILE_BYTES, "{name}");
    }
}

/// Records the workload on a new mount and leaves the document in a file.
fn recorded(host: &Host, scene: &Scene) -> (Value, Value) {
    let (dir, _) = host.mount(&scene.image, "recorded");
    work(&dir);
    let file = host.path("order.json");
    let report = host.ok(&["record", "save", utf8(&dir), "--name", "web", "-o", utf8(&file), "--json"]).json();
    // Slices on the border of two spans, of which one was not read, are completed.
    assert!(!host.log().contains("the excerpt lacks them"), "{}", host.log());
    host.umount(&dir);
    let document = serde_json::from_slice(&fs::read(file).expect("the document")).expect("JSON");
    (report, document)
}

/// Waits until what `report` names was fetched; neighbours share a byte that comes once.
fn followed(host: &Host, report: &Value) {
    let number = |value: &Value| value.as_u64().expect("a number");
    let least = number(&report["bytes"]) - number(&report["spans"]);
    wait_until("the load order is followed", || {
        number(&host.ok(&["stats", "--json"]).json()["totals"]["fetched_bytes"]) >= least
    });
}

#[test]
fn a_start_follows_what_another_one_recorded() {
    for referrers_api in [true, false] {
        let Some(first) = Host::new("a_start_follows") else { return };
        let Some(second) = Host::new("a_start_follows") else { return };
        let scene = Scene::new(&first, &[], referrers_api);
        let (report, document) = recorded(&first, &scene);
        assert_eq!((&report["label"], &report["layers"]), (&json!("web"), &json!(2)), "{report:#}");
        let reads = document["reads"].as_array().expect("reads");
        let (base, top) = (&document["layers"][0], &document["layers"][1]);
        assert_eq!(base["layer"], scene.layers[0].digest().to_string(), "{document:#}");
        assert_eq!(top["layer"], scene.layers[1].digest().to_string());
        assert_eq!(reads[0][0], 0, "the base layer was read first: {document:#}");
        let without = scene.ranges().len();

        let pushed = first.ok(&["prefetch", "push", &scene.image, "--name", "web", "--json"]).json();
        assert_eq!(pushed["label"], "web");
        // One request at a time: so they come in the order in which they are sent.
        second.config("[fill]\nmax_requests = 1\n");
        scene.registry.clear_requests();
        let (dir, _) = second.mount(&scene.image, "a");
        followed(&second, &report);
        let ranges = scene.ranges();
        assert!(ranges.len() < without, "{} requests without a load order, with it {ranges:?}", without);
        assert_eq!(ranges[0].0, 0, "what was read first comes first: {ranges:?}");
        let per_file = FILE_BYTES as u64;
        let (at, end) = (30 * per_file, 31 * per_file);
        assert!(ranges[0].1 < end && ranges[0].2 > at, "with file base/30: {ranges:?}");
        // Nothing comes twice.
        for (i, (layer, first, _)) in ranges.iter().enumerate() {
            let again = ranges[..i].iter().find(|(l, f, last)| l == layer && f <= first && first < last);
            assert_eq!(again, None, "{ranges:?}");
        }
        // What the workload reads is here, or on its way.
        work(&dir);
        assert_eq!(scene.ranges(), ranges, "a reader asks for nothing that the order names");
        assert!(second.log().contains("following a load order"), "{}", second.log());
        second.umount(&dir);
        second.assert_clean();
    }
}

#[test]
fn what_an_order_leaves_out_comes_when_the_image_has_had_time_to_start() {
    let Some(first) = Host::new("what_an_order_leaves_out") else { return };
    let Some(second) = Host::new("what_an_order_leaves_out") else { return };
    let scene = Scene::new(&first, &[], true);
    let (report, _) = recorded(&first, &scene);
    first.ok(&["prefetch", "push", &scene.image, "--name", "web"]);
    second.config("[load_order]\nsettle_s = 1\n");
    let (dir, _) = second.mount_with(&scene.image, "a", &["--background"]);
    followed(&second, &report);
    wait_until("all is here", || of_layers(&second, "present_spans") == of_layers(&second, "spans"));
    second.umount(&dir);
    second.assert_clean();
}

/// What the layers that are shown say of `key`, one after the other.
fn of_layers(host: &Host, key: &str) -> Vec<Value> {
    let layers = host.ls()["layers"].as_array().expect("layers").clone();
    layers.into_iter().map(|mut layer| layer[key].take()).collect()
}

fn slices(host: &Host) -> u64 {
    of_layers(host, "slices").iter().map(|slices| slices.as_u64().expect("a number")).sum()
}

/// Waits until all slices that an excerpt lends are here.
fn borrowed(host: &Host) {
    wait_until("an excerpt is borrowed from", || {
        let orders = of_layers(host, "load_order").into_iter().filter(|order| !order.is_null());
        let lent: u64 = orders.map(|order| order["slices"].as_u64().expect("a number")).sum();
        lent > 0 && slices(host) == lent
    });
}

/// The workload reads from slices alone; what it does not read comes with spans, and is compared with them.
fn works_from_slices(host: &Host, scene: &Scene, dir: &Path) {
    work(dir);
    assert!(scene.ranges().is_empty(), "no span was needed: {:?}", scene.ranges());
    for name in ["base/29", "base/31", "top/3", "top/4", "top/19"] {
        let (layer, number) = name.split_once('/').expect("a name");
        let (layer, seed) = if layer == "base" { (0, 1000) } else { (1, 2000) };
        let want = noise(seed + number.parse::<u64>().expect("a number"), FILE_BYTES);
        assert!(fs::read(dir.join(name)).expect(name) == want, "{name} of layer {layer} has other bytes");
    }
    assert!(!scene.ranges().is_empty(), "neighbours come with their spans");
    assert_eq!(of_layers(host, "contradicted"), [false, false]);
}

#[test]
fn a_start_borrows_from_an_excerpt_where_the_operator_trusts_it() {
    let Some(first) = Host::new("a_start_borrows") else { return };
    let Some(second) = Host::new("a_start_borrows") else { return };
    let Some(third) = Host::new("a_start_borrows") else { return };
    let scene = Scene::new(&first, &[], true);
    let (report, document) = recorded(&first, &scene);
    assert_eq!(report["excerpt_bytes"], document["excerpt"]["bytes"], "{report:#}");
    let pushed = first.ok(&["prefetch", "push", &scene.image, "--name", "web", "--json"]).json();
    assert_eq!(pushed["excerpt_bytes"], report["excerpt_bytes"]);

    second.config(&format!("[load_order]\ntrusted_excerpts = [\"{}/\"]\n", scene.registry.host()));
    scene.registry.clear_requests();
    let (dir, _) = second.mount(&scene.image, "a");
    borrowed(&second);
    works_from_slices(&second, &scene, &dir);
    let told = second.ok(&["explain", utf8(&dir)]).stdout;
    assert!(told.contains("slices of its excerpt"), "{told}");
    second.umount(&dir);
    second.assert_clean();

    // By default nobody is believed: the order is followed by spans.
    scene.registry.clear_requests();
    let (dir, _) = third.mount(&scene.image, "a");
    followed(&third, &report);
    assert!(third.log().contains("trusted_excerpts does not name the image"), "{}", third.log());
    work(&dir);
    assert_eq!(slices(&third), 0);
    third.umount(&dir);
}

#[test]
fn an_excerpt_that_was_recorded_here_serves_the_next_cold_start() {
    let Some(host) = Host::new("an_excerpt_that_was_recorded_here") else { return };
    let scene = Scene::new(&host, &[], true);
    recorded(&host, &scene);
    host.stop_daemon();
    fs::remove_dir_all(host.root().join("layers")).expect("layers");
    scene.registry.clear_requests();
    let (dir, _) = host.mount(&scene.image, "b");
    borrowed(&host);
    works_from_slices(&host, &scene, &dir);
    host.umount(&dir);
    // With the order its excerpt goes.
    let kept = || fs::read_dir(host.root().join("orders")).expect("orders").count();
    assert_eq!(kept(), 2);
    let rows = host.ok(&["prefetch", "ls", "--orders", "--json"]).json();
    host.ok(&["prefetch", "rm", rows[0]["image"].as_str().expect("a digest"), "web"]);
    assert_eq!(kept(), 0);
}

#[test]
fn a_foreign_artifact_among_load_orders_changes_no_choice() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let Some(maker) = Host::new("a_foreign_artifact") else { return };
    let scene = Scene::new(&maker, &[], false);
    let (_, document) = recorded(&maker, &scene);
    let (dir, _) = maker.mount_with(&scene.image, "job", &["--load-order", "off"]);
    fs::read(dir.join("top/35")).expect("a file");
    maker.ok(&["record", "save", utf8(&dir), "--name", "job"]);
    maker.umount(&dir);
    let tag = document["image"].as_str().expect("a digest").replace(':', "-");
    let listed = || -> Vec<Value> {
        let list = scene.registry.manifest("app", &tag).expect("the list of referrers");
        let list: Value = serde_json::from_slice(&list).expect("JSON");
        list["manifests"].as_array().expect("entries").clone()
    };
    let pushed = ["web", "job"].map(|label| {
        let before = listed();
        maker.ok(&["prefetch", "push", &scene.image, "--name", label]);
        let entry = listed().into_iter().find(|entry| !before.contains(entry)).expect("one more");
        (label, entry)
    });
    // It claims to be a load order, and is an index; it stands before the others.
    let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
    let foreign = json!({
        "mediaType": INDEX, "size": body.len(), "digest": scene.registry.put_manifest("app", None, INDEX, &body),
        "artifactType": pushed[0].1["artifactType"],
    });
    let others: Vec<Value> =
        listed().into_iter().filter(|entry| pushed.iter().all(|(_, ours)| ours != entry)).collect();
    for annotated in [true, false] {
        let ours = pushed.iter().map(|(_, entry)| {
            let mut entry = entry.clone();
            // Registries of before 1.1 list artifacts without what they say of themselves.
            if !annotated {
                entry.as_object_mut().expect("an entry").remove("annotations").expect("a label");
            }
            entry
        });
        let entries: Vec<Value> = [foreign.clone()].into_iter().chain(ours).chain(others.clone()).collect();
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        scene.registry.put_manifest("app", Some(&tag), INDEX, list);
        for (label, entry) in &pushed {
            let fresh = Host::new("a_foreign_artifact").expect("what the first one had");
            let (dir, _) = fresh.mount_with(&scene.image, "a", &["--load-order", label]);
            let follows = || -> Vec<Value> {
                let layers = fresh.ls()["layers"].as_array().expect("layers").clone();
                layers.into_iter().map(|layer| layer["load_order"].clone()).filter(|order| !order.is_null()).collect()
            };
            wait_until("a load order is followed", || !follows().is_empty());
            for order in follows() {
                assert_eq!(
                    (&order["label"], &order["digest"]),
                    (&json!(label), &entry["digest"]),
                    "{annotated}: {order:#}"
                );
            }
            fresh.umount(&dir);
        }
    }
}

#[test]
fn prefetch_artifacts_of_an_index_are_followed() {
    let Some(maker) = Host::new("prefetch_artifacts") else { return };
    let Some(host) = Host::new("prefetch_artifacts") else { return };
    let scene = Scene::new(&maker, &["--prefetch-file", "/base/12", "--prefetch-file", "/base/13"], true);
    let (dir, _) = host.mount(&scene.image, "a");
    wait_until("they are followed", || host.log().contains("from=\"artifacts\""));
    followed(&host, &json!({"bytes": 2 * FILE_BYTES, "spans": 2}));
    let ranges = scene.ranges();
    assert_eq!(ranges.len(), 1, "neighbours come together: {ranges:?}");
    for name in ["base/12", "base/13"] {
        assert_eq!(fs::read(dir.join(name)).expect(name).len(), FILE_BYTES);
    }
    assert_eq!(scene.ranges(), ranges);
    host.umount(&dir);
    // Made of a recorded order they serve as well, and SOCI reads them.
    let (_, document) = recorded(&maker, &scene);
    let built = maker.ok(&["prefetch", "build", &scene.image, "--name", "web", "--json"]).json();
    assert_eq!(built["prefetch"].as_array().map(Vec::len), Some(2), "{built:#}");
    let spans: u64 = document["reads"].as_array().expect("reads").iter().filter_map(|read| read[2].as_u64()).sum();
    let artifacts = maker.ok(&["prefetch", "ls", "--json"]).json();
    let total = |digest: &Value| {
        let row = artifacts.as_array().expect("rows").iter().find(|row| row["Digest"] == *digest);
        row.and_then(|row| row["TotalSpans"].as_u64()).expect("a row")
    };
    let named =
        built["prefetch"].as_array().expect("artifacts").iter().map(|built| total(&built["digest"])).sum::<u64>();
    assert_eq!(named, spans);
    maker.ok(&["push", &scene.image, "--existing-index", "allow"]);
}

#[test]
fn a_document_that_cannot_be_used_is_ignored_with_a_word() {
    let Some(host) = Host::new("a_bad_document") else { return };
    let scene = Scene::new(&host, &[], true);
    let (_, good) = recorded(&host, &scene);
    let file = host.path("bad.json");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        change(&mut document);
        serde_json::to_vec(&document).expect("JSON")
    };
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (document, words) in [
        (with(&|d| d["layers"][0]["ztoc"] = json!(zeros)), "record it again"),
        (with(&|d| d["layers"][0]["spans"] = json!(4_000_000_000_u32)), "the order claims 4000000000 spans"),
        (with(&|d| d["image"] = json!(zeros)), "the load order is of image"),
        (with(&|d| d["reads"] = json!([[0, 4_000_000_000_u32, 1, 0]])), "the load order is ignored"),
        (b"\0\x01".to_vec(), "the load order is ignored"),
        (vec![b' '; 5 << 20], "at most"),
    ] {
        fs::write(&file, document).expect("written");
        let fresh = Host::new("a_bad_document").expect("what the first one had");
        let (dir, _) = fresh.mount_with(&scene.image, "a", &["--load-order", utf8(&file)]);
        wait_until(words, || fresh.log().contains(words));
        work(&dir);
        fresh.umount(&dir);
    }
    // None, on demand.
    let fresh = Host::new("a_bad_document").expect("what the first one had");
    host.ok(&["prefetch", "push", &scene.image, "--name", "web"]);
    scene.registry.clear_requests();
    let (dir, _) = fresh.mount_with(&scene.image, "a", &["--load-order", "off"]);
    work(&dir);
    assert!(!fresh.log().contains("following a load order"), "{}", fresh.log());
    fresh.umount(&dir);
}

#[test]
fn recordings_begin_end_and_are_kept_by_themselves() {
    let Some(host) = Host::new("recordings") else { return };
    host.config("[load_order]\nrecord = true\n");
    let scene = Scene::new(&host, &[], true);
    host.fails(&["record", "start", &scene.image], &["no sociblk daemon"]);
    let (dir, _) = host.mount(&scene.image, "a");
    host.fails(&["record", "save", utf8(&dir)], &["nothing was read"]);
    host.fails(&["record", "save", "other:1"], &["no mount and no image"]);
    host.fails(&["record", "start", utf8(&dir), "--name", "../x"], &["cannot name"]);
    work(&dir);
    host.ok(&["record", "start", &scene.image, "--name", "late"]);
    fs::read(dir.join("base/20")).expect("a file");
    let late = host.ok(&["record", "stop", utf8(&dir), "--json"]).json();
    assert_eq!(late["label"], "late");
    assert!(late["spans"].as_u64().is_some_and(|spans| (1..=4).contains(&spans)), "{late:#}");
    let read = format!("{}/base/25", utf8(&dir));
    let ran = host.ok(&[
        "record",
        "run",
        utf8(&dir),
        "--name",
        "ran",
        "--json",
        "--",
        "sh",
        "-c",
        &format!("cat {read} >&2"),
    ]);
    assert_eq!(ran.json()["label"], "ran");
    host.umount(&dir);
    let orders = || host.ok(&["prefetch", "ls", "--orders", "--json"]).json();
    let of_label = |label: &str| orders().as_array().expect("rows").iter().find(|row| row["label"] == label).cloned();
    for label in ["late", "ran", "last"] {
        assert!(of_label(label).is_some(), "{label}: {:#}", orders());
    }
    host.ok(&["prefetch", "rm", late["image"].as_str().expect("a digest"), "late"]);
    assert_eq!(of_label("late"), None);
    // A warm start that reads from local files gives a whole order, too.
    let (dir, _) = host.mount_with(&scene.image, "b", &["--load-order", "off"]);
    work(&dir);
    let warm = host.ok(&["record", "save", utf8(&dir), "--name", "warm", "--json"]).json();
    assert!(warm["spans"].as_u64().is_some_and(|spans| spans >= 7), "{warm:#}");
    host.umount(&dir);
    host.assert_clean();
}
