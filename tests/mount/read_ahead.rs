//! How far the kernel reads ahead: by its default where bytes are missing, far where all are here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sociblk::testkit::registry::TestRegistry;

use crate::layers::{as_image, assert_same, extract, three_layers};
use crate::support::{Host, skipped, wait_until};

/// The kernel's settings for the layers that are mounted; fewer where somebody else mounted in the same moment, which another
/// test may do.
fn settings(host: &Host) -> Vec<PathBuf> {
    let state: Value = serde_json::from_slice(&fs::read(host.root().join("node.json")).expect("state")).expect("JSON");
    let numbers = state["layers"].as_array().expect("layers").iter().filter_map(|layer| layer["erofs_bdi"].as_u64());
    numbers.map(|number| format!("/sys/class/bdi/erofs-{number}/read_ahead_kb").into()).collect()
}

fn all_are(settings: &[PathBuf], kib: &str) -> bool {
    settings.iter().all(|path| fs::read_to_string(path).is_ok_and(|set| set.trim() == kib))
}

/// Mounts until the kernel's settings are known.
fn mount(host: &Host, image: &str) -> (PathBuf, Vec<PathBuf>) {
    for _ in 0..20 {
        let (dir, _) = host.mount(image, "a");
        let settings = settings(host);
        if !settings.is_empty() {
            return (dir, settings);
        }
        host.umount(&dir);
    }
    panic!("in twenty tries others mounted in the same moment, or nobody looks");
}

#[test]
fn the_kernel_reads_far_ahead_where_nothing_is_missing() {
    let test = "the_kernel_reads_far_ahead";
    let (Some(maker), Some(host)) = (Host::new(test), Host::new(test)) else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    maker.ok(&["create", &image, "--push", "--span-size", "262144", "--min-layer-size", "0"]);
    let (dir, _) = host.mount(&image, "a");
    let mut devices = fs::read_dir("/sys/class/bdi").expect("/sys").flatten();
    if !devices.any(|device| device.file_name().to_string_lossy().starts_with("erofs-")) {
        return skipped(test, "EROFS from files (Linux 6.12)");
    }
    host.umount(&dir);
    let (dir, known) = mount(&host, &image);
    assert_eq!(known.len(), layers.len());
    assert!(all_are(&known, "128"), "nothing was read yet: {known:?}");
    assert_same(&dir, &extract(&layers));
    wait_until("readahead that is far", || all_are(&known, "1024"));
    // The next daemon knows them, too, and which layers are complete.
    host.kill_daemon();
    known.iter().for_each(|path| fs::write(path, "128").expect("a setting"));
    let daemon = host.next_daemon();
    wait_until("readahead that is far again", || all_are(&known, "1024"));
    host.umount(&dir);
    assert!(!known.iter().any(|path| Path::exists(path)), "gone with their mounts: {known:?}");
    // Complete from the start.
    let (dir, known) = mount(&host, &image);
    assert!(all_are(&known, "1024"), "{known:?}");
    host.umount(&dir);
    host.assert_clean();
    host.stop_daemon();
    assert!(daemon.end().success);
}
