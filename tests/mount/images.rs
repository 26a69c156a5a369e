//! Images of several layers: streamed, by a v1 index, by a v2 annotation; lazily, and as a plain unpack shows them.

use serde_json::{Map, Value};
use sociblk::testkit::registry::{Fault, TestRegistry};
use sociblk::units::Digest;

use crate::layers::{Layer, Maker, as_image, assert_same, extract, three_layers};
use crate::support::{Host, utf8, wait_until};

fn origins(report: &Value) -> Vec<String> {
    let layers = report["layers"].as_array().expect("layers");
    layers.iter().map(|l| l["index"].as_str().expect("index").to_owned()).collect()
}

fn trace(report: &Value) -> String {
    report["discovery"].to_string()
}

/// Blob bytes that GETs asked for: of a layer with a range its length, else the whole.
fn layer_bytes_asked(registry: &TestRegistry, layers: &[Layer]) -> u64 {
    let mut sum = 0;
    for request in registry.requests().iter().filter(|r| r.method == "GET") {
        let Some(layer) = layers.iter().find(|l| request.path.contains(&l.digest().to_string())) else { continue };
        let whole = layer.blob.len() as u64;
        sum += match request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")) {
            Some(range) => {
                let (first, last) = range.split_once('-').expect("range");
                let last = last.parse().unwrap_or(whole - 1);
                last - first.parse::<u64>().expect("first") + 1
            }
            None => whole,
        };
    }
    sum
}

#[test]
fn without_an_index_it_streams_once_and_then_needs_no_layer_byte() {
    let Some(host) = Host::new("without_an_index") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(origins(&report), ["streamed"; 3], "{report:#}");
    assert_same(&dir, &extract(&layers));
    let listing = host.ls();
    for layer in listing["layers"].as_array().expect("layers") {
        assert_eq!(layer["proven"], true, "{layer}");
        assert_eq!(layer["waiting_readers"], 0);
    }
    host.umount(&dir);
    host.assert_clean();
    registry.clear_requests();
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(origins(&report), ["local"; 3], "{report:#}");
    assert_same(&dir, &extract(&layers));
    assert_eq!(layer_bytes_asked(&registry, &layers), 0);
    // A new daemon knows as much.
    host.stop_daemon();
    let (dir, _) = host.mount(&image, "a");
    assert_same(&dir, &extract(&layers));
    assert_eq!(layer_bytes_asked(&registry, &layers), 0);
}

#[test]
fn a_pushed_index_is_found_by_another_node_and_only_what_is_read_is_fetched() {
    for referrers_api in [true, false] {
        let Some(maker) = Host::new("a_pushed_index") else { return };
        let Some(host) = Host::new("a_pushed_index") else { return };
        let (registry, layers) = (TestRegistry::start(), three_layers());
        registry.referrers_api(referrers_api);
        registry.put_image("app", "1", &as_image(&layers));
        let image = format!("{}/app:1", registry.host());
        let created =
            maker.ok(&["create", &image, "--push", "--json", "--span-size", "262144", "--min-layer-size", "0"]).json();
        assert_eq!(created["pushed"], true);
        registry.clear_requests();
        let (dir, report) = host.mount(&image, "a");
        assert_eq!(origins(&report), ["v1"; 3], "{report:#}");
        std::fs::read(dir.join("srv/top")).expect("a small file");
        std::fs::read(dir.join("opt/becomes-dir/x")).expect("a small file");
        let whole: u64 = layers.iter().map(|l| l.blob.len() as u64).sum();
        let asked = layer_bytes_asked(&registry, &layers);
        assert!(asked * 4 < whole, "{asked} of {whole} bytes for two small files");
        assert_same(&dir, &extract(&layers));
        let stats = host.ok(&["stats", "--json"]).json();
        assert!(stats["totals"]["fetched_bytes"].as_u64().is_some_and(|n| n > whole / 2), "{stats:#}");
        host.umount(&dir);
        host.assert_clean();
    }
}

#[test]
fn a_ztoc_that_cannot_be_had_costs_its_own_layer_only() {
    let Some(maker) = Host::new("one_ztoc_missing") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    maker.ok(&["create", &image, "--push", "--span-size", "262144", "--min-layer-size", "0"]);
    let why = maker.ok(&["index", "why", &image, "--json"]).json();
    let ztoc: Digest = why["layers"][1]["ztoc"].as_str().and_then(|text| text.parse().ok()).expect("a zTOC");
    let bytes = registry.blob(&ztoc).expect("pushed");
    let not_its_bytes = vec![0; bytes.len()];
    for broken in [None, Some(not_its_bytes)] {
        registry.remove_blob(&ztoc);
        if let Some(bytes) = &broken {
            registry.put_blob_as(ztoc, bytes);
        }
        let Some(host) = Host::new("one_ztoc_missing") else { return };
        let (dir, report) = host.mount(&image, "a");
        assert_eq!(origins(&report), ["v1", "streamed", "v1"], "{report:#}");
        assert!(trace(&report).contains(&format!("zTOC {ztoc} cannot be had")), "{report:#}");
        let explained = host.ok(&["explain", utf8(&dir)]).stdout;
        assert!(explained.contains("cannot be had"), "{explained}");
        assert_same(&dir, &extract(&layers));
        host.umount(&dir);
        host.assert_clean();
    }
    // Nor does trouble that lasts for longer than it is tried.
    registry.remove_blob(&ztoc);
    registry.put_blob(&bytes);
    registry.fail(Fault::Status { code: 503, retry_after: None }).on(&ztoc.to_string());
    let Some(host) = Host::new("one_ztoc_missing") else { return };
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(origins(&report), ["v1", "streamed", "v1"], "{report:#}");
    assert_same(&dir, &extract(&layers));
}

/// The lowest layer of gzip, the middle one of many zstd frames, the top one of a single frame.
fn with_zstd() -> Vec<Layer> {
    let frames = [None, Some(100_000), Some(usize::MAX)];
    let layers = three_layers().into_iter().zip(frames);
    layers.map(|(layer, bytes)| bytes.map_or_else(|| layer.clone(), |bytes| layer.clone().into_zstd(bytes))).collect()
}

#[test]
fn zstd_layers_without_an_index_stream_once() {
    let Some(host) = Host::new("zstd_without_an_index") else { return };
    let (registry, layers) = (TestRegistry::start(), with_zstd());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(origins(&report), ["streamed"; 3], "{report:#}");
    assert_same(&dir, &extract(&layers));
    assert!(host.ls()["layers"].as_array().expect("layers").iter().all(|layer| layer["proven"] == true));
    host.umount(&dir);
    host.stop_daemon();
    registry.clear_requests();
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(origins(&report), ["local"; 3], "{report:#}");
    assert_same(&dir, &extract(&layers));
    assert_eq!(layer_bytes_asked(&registry, &layers), 0);
}

#[test]
fn zstd_layers_are_lazy_by_an_index_of_our_own() {
    for referrers_api in [true, false] {
        let Some(maker) = Host::new("zstd_by_our_own_index") else { return };
        let Some(host) = Host::new("zstd_by_our_own_index") else { return };
        let (registry, layers) = (TestRegistry::start(), with_zstd());
        registry.referrers_api(referrers_api);
        registry.put_image("app", "1", &as_image(&layers));
        let image = format!("{}/app:1", registry.host());
        maker.ok(&["create", &image, "--span-size", "262144", "--min-layer-size", "0"]);
        maker.ok(&["push", &image]);
        let why = host.ok(&["index", "why", &image]).stdout;
        assert!(
            why.contains("3 of 3 layers are read lazily") && why.contains("of our own kind and not SOCI's"),
            "{why}"
        );
        registry.clear_requests();
        let (dir, report) = host.mount(&image, "a");
        assert_eq!(origins(&report), ["v1", "own", "own"], "{report:#}");
        assert_eq!(layer_bytes_asked(&registry, &layers), 0, "nothing was read yet");
        std::fs::read(dir.join("opt/becomes-dir/x")).expect("a small file of the middle layer");
        let asked = layer_bytes_asked(&registry, &layers[1..2]);
        assert!(asked > 0 && asked * 4 < layers[1].blob.len() as u64, "{asked} bytes for a small file");
        assert_same(&dir, &extract(&layers));
        // Another daemon goes on with what is here.
        host.umount(&dir);
        host.stop_daemon();
        let (second, _) = host.mount_with(&image, "b", &["--background"]);
        assert_same(&second, &extract(&layers));
        wait_until("all layers are proven", || {
            host.ls()["layers"].as_array().is_some_and(|all| all.iter().all(|layer| layer["proven"] == true))
        });
        host.umount(&second);
    }
}

#[test]
fn a_v2_annotation_names_the_index() {
    let Some(maker) = Host::new("a_v2_annotation") else { return };
    let Some(host) = Host::new("a_v2_annotation") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let created = maker.ok(&["create", &image, "--push", "--json", "--min-layer-size", "0"]).json();
    let index = created["images"][0]["index"].as_str().expect("index").to_owned();
    // A v2 index is the same document without a subject.
    let v1 = registry.manifest("app", &index).expect("pushed");
    let mut v2: Value = serde_json::from_slice(&v1).expect("json");
    v2.as_object_mut().expect("object").remove("subject");
    v2["artifactType"] = "application/vnd.amazon.soci.index.v2+json".into();
    v2["config"]["mediaType"] = "application/vnd.amazon.soci.index.v2+json".into();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let v2 = registry.put_manifest("app", None, media_type, v2.to_string());
    let mut annotations = Map::new();
    annotations.insert("com.amazon.soci.index-digest".to_owned(), v2.to_string().into());
    registry.put_image_with("app", Some("2"), "amd64", &as_image(&layers), &annotations);
    let (dir, report) = host.mount(&format!("{}/app:2", registry.host()), "a");
    assert_eq!(origins(&report), ["v2"; 3], "{report:#}");
    assert_same(&dir, &extract(&layers));
}

#[test]
fn two_mounts_share_devices_and_an_upper_keeps_changes() {
    let Some(host) = Host::new("two_mounts") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (first, _) = host.mount(&image, "a");
    let upper = host.path("changes");
    let (second, report) = host.mount_with(&image, "b", &["--upper", utf8(&upper)]);
    assert_eq!(report["writable"], true);
    let listing = host.ls();
    assert_eq!(listing["layers"].as_array().map(Vec::len), Some(3), "{listing:#}");
    assert!(listing["layers"].as_array().is_some_and(|l| l.iter().all(|l| l["used_by"] == 2)), "{listing:#}");

    assert!(std::fs::write(first.join("srv/top"), "x").is_err(), "read-only");
    std::fs::write(second.join("srv/top"), "changed").expect("write");
    std::fs::remove_file(second.join("opt/gone")).expect("delete");
    std::fs::rename(second.join("opt/becomes-dir/x"), second.join("etc/x")).expect("rename");
    std::fs::write(second.join("new"), "new").expect("create");
    assert_eq!(std::fs::read(first.join("srv/top")).expect("read"), b"top");
    host.umount(&second);
    host.umount(&first);
    host.assert_clean();
    let (again, _) = host.mount_with(&image, "b", &["--upper", utf8(&upper)]);
    assert_eq!(std::fs::read(again.join("srv/top")).expect("read"), b"changed");
    assert!(!again.join("opt/gone").exists());
    assert!(!again.join("opt/becomes-dir/x").exists());
    assert_eq!(std::fs::read(again.join("etc/x")).expect("read"), b"x");
    assert_eq!(std::fs::read(again.join("new")).expect("read"), b"new");
    // An upper of a living mount cannot serve a second one.
    let third = host.dir("c");
    let args = ["mount", &image, utf8(&third), "--frontend", crate::FRONTEND, "--upper", utf8(&upper)];
    host.fails(&args, &["changes"]);
}

#[test]
fn background_completes_and_proves() {
    let Some(maker) = Host::new("background") else { return };
    let Some(host) = Host::new("background") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    maker.ok(&["create", &image, "--push", "--min-layer-size", "0"]);
    let (dir, report) = host.mount_with(&image, "a", &["--background"]);
    assert!(trace(&report).contains("v1 referrers"), "{report:#}");
    crate::support::wait_until("every layer is proven", || {
        let listing = host.ls();
        listing["layers"].as_array().is_some_and(|l| l.len() == 3 && l.iter().all(|l| l["proven"] == true))
    });
    registry.clear_requests();
    assert_same(&dir, &extract(&layers));
    assert_eq!(layer_bytes_asked(&registry, &layers), 0);
}

#[test]
fn deep_images_and_layers_that_come_twice() {
    let Some(host) = Host::new("deep") else { return };
    let registry = TestRegistry::start();
    let mut layers: Vec<Layer> = (0..70)
        .map(|n| {
            let maker = Maker::new().file(&format!("dir/own-{n}"), format!("{n}").as_bytes()).file("dir/last", &[n]);
            if n > 10 { maker.whiteout(&format!("dir/own-{}", n - 10)).end() } else { maker.end() }
        })
        .collect();
    let again = |layer: &Layer| Layer { tar: layer.tar.clone(), blob: layer.blob.clone() };
    layers.push(again(&layers[3]));
    layers.push(again(&layers[40]));
    layers.push(again(&layers[3]));
    registry.put_image("deep", "1", &as_image(&layers));
    let (dir, report) = host.mount(&format!("{}/deep:1", registry.host()), "a");
    assert_eq!(report["layers"].as_array().map(Vec::len), Some(73));
    assert_same(&dir, &extract(&layers));
    host.umount(&dir);
    host.assert_clean();
}

#[test]
fn a_mount_that_was_left_lazily_can_be_made_again_at_once() {
    let Some(host) = Host::new("again") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (dir, _) = host.mount(&image, "a");
    let file = std::fs::File::open(dir.join("big")).expect("open");
    host.ok(&["umount", "--lazy", utf8(&dir)]);
    let (dir, _) = host.mount(&image, "a");
    assert_same(&dir, &extract(&layers));
    drop(file);
    assert_same(&dir, &extract(&layers));
    host.umount(&dir);
    crate::support::wait_until("all devices go", || host.ls()["layers"].as_array().is_some_and(Vec::is_empty));
    host.assert_clean();
}
