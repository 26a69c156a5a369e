//! The test layers, each through every way to show it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};

use crate::support::{Host, utf8};

/// Every layer that the project ships, and those of the larger corpus beside the project where that exists.
pub fn corpus() -> Vec<PathBuf> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in [base.join("tests/corpus"), base.join("../shared/corpus/layers")] {
        let paths = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|e| e == "gz" || e == "tar")) {
            out.entry(path.file_name().expect("a name").to_owned()).or_insert(path);
        }
    }
    assert!(out.len() >= 10, "the corpus has {} layers", out.len());
    out.into_values().collect()
}

fn beside(layer: &Path, suffix: &str) -> PathBuf {
    let mut name = layer.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn check_tree(mount: &Path, layer: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/check_tree.py");
    let out = Command::new("python3").arg(script).arg(mount).arg(beside(layer, ".tree.json")).output();
    let out = out.expect("python3");
    assert!(out.status.success(), "{}: {}", layer.display(), String::from_utf8_lossy(&out.stdout));
}

#[test]
fn ztoc_build_writes_what_soci_writes() {
    let Some(host) = Host::new("ztoc_build") else { return };
    for layer in corpus() {
        let made = host.path("made.ztoc");
        let args = ["ztoc", "build", utf8(&layer), "--output", utf8(&made), "--build-tool", "AWS SOCI CLI v0.2"];
        host.ok(&args);
        let same = fs::read(&made).expect("made") == fs::read(beside(&layer, ".ztoc")).expect("SOCI's");
        assert!(same, "{} has another zTOC", layer.display());
        let info = host.ok(&["ztoc", "info", utf8(&made), "--json"]).json();
        assert_eq!(info["version"], "0.9", "{}", layer.display());
        assert_eq!(info["num_files"].as_u64(), info["files"].as_array().map(|f| f.len() as u64));
    }
}

#[test]
fn every_file_comes_out_by_get_file() {
    let Some(host) = Host::new("get_file") else { return };
    let layer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/mixed-zlib6.tar.gz");
    let tree: serde_json::Value =
        serde_json::from_slice(&fs::read(beside(&layer, ".tree.json")).expect("tree")).expect("json");
    let entries = tree["entries"].as_object().expect("entries");
    let mut seen = 0;
    for (path, entry) in entries.iter().filter(|(_, e)| e["type"] == "file").take(25) {
        let to = host.path("out");
        let ztoc = beside(&layer, ".ztoc");
        host.ok(&["ztoc", "get-file", utf8(&ztoc), path, "--layer", utf8(&layer), "--output", utf8(&to)]);
        let digest = sociblk::units::Digest::of(&fs::read(&to).expect("out")).hex();
        assert_eq!(Some(digest.as_str()), entry["sha256"].as_str(), "{path}");
        seen += 1;
    }
    assert!(seen > 3);
    let ztoc = beside(&layer, ".ztoc");
    host.fails(
        &["ztoc", "get-file", utf8(&ztoc), "no/such", "--layer", utf8(&layer)],
        &["no/such", "not in this layer"],
    );
    let other = layer.with_file_name("edge-pax.tar.gz");
    let path = entries.iter().find(|(_, e)| e["type"] == "file" && e["size"] != 0).expect("a file").0;
    let to = host.path("wrong");
    host.fails(&["ztoc", "get-file", utf8(&ztoc), path, "--layer", utf8(&other), "--output", utf8(&to)], &["layer"]);
    assert!(!to.exists(), "half a file is left");
}

#[test]
fn every_layer_as_an_image_file_in_both_block_sizes() {
    let Some(host) = Host::new("image_files") else { return };
    for layer in corpus() {
        for block_size in ["4096", "512"] {
            let image = host.path("image.erofs");
            let ztoc = beside(&layer, ".ztoc");
            let args =
                ["image", utf8(&layer), "--ztoc", utf8(&ztoc), "--block-size", block_size, "--output", utf8(&image)];
            host.ok(&args);
            let dir = host.dir("loop");
            let out = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&image).arg(&dir).output();
            let out = out.expect("mount");
            assert!(out.status.success(), "{}: {}", layer.display(), String::from_utf8_lossy(&out.stderr));
            let checked = std::panic::catch_unwind(|| check_tree(&dir, &layer));
            unmount(&dir, UnmountFlags::DETACH).expect("unmount");
            checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
}

#[test]
fn every_layer_mounted_lazily() {
    let Some(host) = Host::new("lazy_layers") else { return };
    for layer in corpus() {
        let image = format!("layer:{}", layer.display());
        let (dir, report) = host.mount(&image, "a");
        // The overlay hides whiteouts: the layer's own mount has them.
        let listing = host.ls();
        assert_eq!(listing["layers"].as_array().map(Vec::len), Some(1));
        let own = fs::read_dir(host.root().join("mnt")).expect("mnt").map(|e| e.expect("entry").path());
        let own: Vec<PathBuf> = own.filter(|p| !p.ends_with("empty")).collect();
        assert_eq!(own.len(), 1, "{own:?}");
        check_tree(&own[0], &layer);
        assert_eq!(report["layers"][0]["index"], "streamed");
        host.umount(&dir);
        host.assert_clean();
    }
}

#[test]
fn every_layer_lazily_from_a_registry_with_socis_own_ztoc() {
    use sociblk::testkit::registry::TestRegistry;
    let Some(host) = Host::new("lazy_corpus") else { return };
    for layer in corpus().into_iter().filter(|l| l.extension().is_some_and(|e| e == "gz")) {
        let registry = TestRegistry::start();
        let blob = fs::read(&layer).expect("layer");
        let ztoc = fs::read(beside(&layer, ".ztoc")).expect("zTOC");
        crate::hostile::put_indexed(&registry, "app", &blob, &ztoc);
        let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a");
        assert_eq!(report["layers"][0]["index"], "v1", "{}: {report:#}", layer.display());
        let own = fs::read_dir(host.root().join("mnt")).expect("mnt").map(|e| e.expect("entry").path());
        let own: Vec<PathBuf> = own.filter(|p| !p.ends_with("empty")).collect();
        check_tree(&own[0], &layer);
        host.umount(&dir);
        host.assert_clean();
    }
}
