//! Wrong use: each ends in one line that names the thing and the remedy, and leaves nothing.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Map;
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::hostile::small_layer;
use crate::layers::{as_image, assert_same, extract, three_layers};
use crate::support::{Host, Running, utf8, wait_until};

fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&[small_layer()]));
    registry
}

fn mount_args<'a>(image: &'a str, dir: &'a Path) -> Vec<&'a str> {
    vec!["mount", image, utf8(dir), "--frontend", crate::FRONTEND]
}

#[test]
fn mount_points_that_do_not_serve() {
    let Some(host) = Host::new("mount_points") else { return };
    let registry = registry();
    let image = format!("{}/app:1", registry.host());
    host.fails(&mount_args(&image, &host.path("absent")), &["absent", "No such file"]);
    fs::write(host.path("file"), "").expect("file");
    host.fails(&mount_args(&image, &host.path("file")), &["file", "not a directory"]);
    let busy = host.dir("busy");
    mount("tmpfs", &busy, "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    registry.clear_requests();
    host.fails(&mount_args(&image, &busy), &["busy", "already a mount point"]);
    assert!(registry.requests().is_empty(), "the network is asked for a mount that cannot be");
    unmount(&busy, UnmountFlags::empty()).expect("unmount");
    host.assert_clean();
    let (dir, _) = host.mount(&image, "a");
    let told = host.fails(&mount_args(&image, &dir), &["already shows", "sociblk umount"]);
    assert!(told.contains(utf8(&dir)), "{told}");
    host.umount(&dir);
    host.assert_clean();
}

#[test]
fn images_that_cannot_be_had() {
    let Some(host) = Host::new("images") else { return };
    let registry = registry();
    let dir = host.dir("a");
    let at = registry.host().to_owned();
    host.fails(&mount_args(&format!("{at}/app:none"), &dir), &["app:none", "not found"]);
    host.fails(&mount_args(&format!("{at}/nothing:1"), &dir), &["nothing:1"]);
    host.fails(&mount_args("not a reference", &dir), &["not a reference"]);
    host.fails(&mount_args("layer:/no/such/file", &dir), &["/no/such/file"]);
    host.fails(&mount_args("oci:/no/such/dir", &dir), &["/no/such/dir"]);
    let digest = format!("sha256:{}", "0".repeat(64));
    host.fails(&mount_args(&format!("{at}/app@{digest}"), &dir), &[&digest]);
    host.fails(&mount_args("127.0.0.1:1/app:1", &dir), &["127.0.0.1:1"]);
    // An index of two platforms, neither asked for.
    let layers = [small_layer()];
    let manifests = ["arm64", "s390x"].map(|architecture| {
        let digest = registry.put_image_with("multi", None, architecture, &as_image(&layers), &Map::new());
        let size = registry.manifest("multi", &digest.to_string()).expect("manifest").len();
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": size,
            "platform": {"os": "linux", "architecture": architecture},
        })
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    registry.put_manifest("multi", Some("1"), media_type, index.to_string());
    let image = format!("{at}/multi:1");
    let mut args = mount_args(&image, &dir);
    args.extend(["--platform", "linux/riscv64"]);
    host.fails(&args, &["riscv64", "linux/arm64", "linux/s390x"]);
    *args.last_mut().expect("args") = "linux/arm64";
    host.ok(&args);
    host.umount(&dir);
    *args.last_mut().expect("args") = "rubbish";
    host.fails(&args, &["rubbish"]);
    host.assert_clean();
}

#[test]
fn credentials_that_are_wanting_are_named() {
    let Some(host) = Host::new("credentials") else { return };
    let registry = registry();
    registry.require_basic("user", "secret");
    let (image, dir) = (format!("{}/app:1", registry.host()), host.dir("a"));
    host.fails(&mount_args(&image, &dir), &["app:1", "refused"]);
    // base64 of user:secret
    let login = serde_json::json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs::write(host.path("home").join("config.json"), login.to_string()).expect("login");
    host.ok(&mount_args(&image, &dir));
    assert_eq!(fs::read(dir.join("last")).expect("read"), b"the end");
}

#[test]
fn what_is_not_ours_is_not_unmounted() {
    let Some(host) = Host::new("not_ours") else { return };
    let registry = registry();
    let image = format!("{}/app:1", registry.host());
    let other = host.dir("other");
    mount("tmpfs", &other, "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    host.fails(&["umount", utf8(&other)], &["daemon"]);
    let (dir, _) = host.mount(&image, "a");
    host.fails(&["umount", utf8(&other)], &["other", "sociblk ls"]);
    // Somebody unmounts ours by hand and mounts something else there.
    unmount(&dir, UnmountFlags::empty()).expect("unmount");
    mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), None).expect("tmpfs");
    fs::write(dir.join("theirs"), "theirs").expect("write");
    host.umount(&dir);
    assert_eq!(fs::read(dir.join("theirs")).expect("still there"), b"theirs");
    unmount(&dir, UnmountFlags::empty()).expect("unmount");
    unmount(&other, UnmountFlags::empty()).expect("unmount");
    host.assert_clean();
    // A path through a symbolic link means the same mount.
    let (dir, _) = host.mount(&image, "a");
    std::os::unix::fs::symlink(&dir, host.path("link")).expect("symlink");
    host.umount(&host.path("link"));
    host.assert_clean();
}

#[test]
fn a_busy_mount_says_so_and_goes_lazily() {
    let Some(host) = Host::new("busy_mount") else { return };
    let registry = registry();
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let mut file = fs::File::open(dir.join("dir/first")).expect("open");
    host.fails(&["umount", utf8(&dir)], &["in use", "fuser"]);
    assert_eq!(host.ls()["mounts"].as_array().map(Vec::len), Some(1));
    host.ok(&["umount", "--lazy", utf8(&dir)]);
    assert!(host.mounts().is_empty());
    // The device lives for as long as somebody reads, and no longer.
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("still served");
    assert_eq!(bytes.len(), 1_500_000);
    assert_eq!(host.ls()["layers"].as_array().map(Vec::len), Some(1));
    drop(file);
    wait_until("the device goes", || host.ls()["layers"].as_array().is_some_and(Vec::is_empty));
    host.assert_clean();
}

#[test]
fn stop_undoes_busy_mounts_too() {
    let Some(host) = Host::new("stop_busy") else { return };
    let registry = registry();
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let file = fs::File::open(dir.join("last")).expect("open");
    host.stop_daemon();
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    assert!(host.daemon().is_none());
    drop(file);
    assert_eq!(host.leftovers(), "\"none\"");
    host.fails(&["daemon", "stop"], &["no sociblk daemon runs"]);
    assert_eq!(host.run(&["daemon", "status"]).code, Some(1));
    // At once there may be a new one.
    host.mount(&format!("{}/app:1", registry.host()), "a");
}

#[test]
fn one_daemon_for_a_root_however_many_start_at_once() {
    let Some(host) = Host::new("one_daemon") else { return };
    let registry = registry();
    let image = format!("{}/app:1", registry.host());
    let dirs: Vec<_> = (0..5).map(|n| host.dir(&format!("m{n}"))).collect();
    let running: Vec<Running> = dirs.iter().map(|dir| host.start(&mount_args(&image, dir))).collect();
    for command in running {
        let answer = command.end();
        assert!(answer.success, "{}\n{}", answer.stderr, host.log());
    }
    let listing = host.ls();
    assert_eq!(listing["mounts"].as_array().map(Vec::len), Some(5));
    assert_eq!(listing["layers"].as_array().map(Vec::len), Some(1));
    assert_eq!(listing["layers"][0]["used_by"], 5);
    let second = host.run(&["daemon", "run"]);
    assert!(second.code == Some(1) && second.stderr.contains("another sociblk daemon"), "{}", second.stderr);
    for dir in dirs {
        host.umount(&dir);
    }
    host.assert_clean();
}

#[test]
fn settings_that_cannot_be() {
    let Some(host) = Host::new("settings") else { return };
    let registry = registry();
    let dir = host.dir("a");
    let image = format!("{}/app:1", registry.host());
    for (toml, word) in [
        ("[fill]\nhold_limit = 3\n", "hold_limit"),
        ("[cache]\nmax_bytes = \"20 apples\"\n", "20 apples"),
        ("[fill]\nmax_requests = 0\n", "fill.max_requests"),
        ("nonsense", "config.toml"),
    ] {
        host.config(toml);
        host.fails(&mount_args(&image, &dir), &[word, "config.toml"]);
        host.fails(&["create", &image], &[word]);
    }
    fs::remove_file(host.path("config.toml")).expect("remove");
    host.fails(&mount_args(&image, &dir), &["config.toml", "No such file"]);
    host.config("");
    host.ok(&mount_args(&image, &dir));
}

#[test]
fn without_root_it_says_so() {
    let Some(host) = Host::new("no_root") else { return };
    let registry = registry();
    let dir = host.dir("a");
    let image = format!("{}/app:1", registry.host());
    let nobody = 65534;
    let run = |args: &[&str]| host.command(args).uid(nobody).gid(nobody).output();
    // The binary may lie where nobody can reach it.
    match run(&["--version"]) {
        Ok(out) if out.status.success() => {}
        _ => return crate::support::skipped("without_root_it_says_so", "a binary that other users may run"),
    }
    let out = run(&mount_args(&image, &dir)).expect("run");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && told.contains("needs root"), "{told}");
}

#[test]
fn create_and_files_name_what_is_wrong() {
    let Some(host) = Host::new("create_errors") else { return };
    let registry = registry();
    host.fails(&["create", &format!("{}/app:none", registry.host())], &["app:none"]);
    host.fails(&["create", "oci:/no/such/dir"], &["/no/such/dir"]);
    let layer = small_layer();
    let file = host.path("l.gz");
    fs::write(&file, &layer.blob[..layer.blob.len() / 2]).expect("write");
    let to = host.path("out");
    host.fails(&["ztoc", "build", utf8(&file), "--output", utf8(&to)], &["l.gz"]);
    assert!(!to.exists());
    host.fails(&["image", utf8(&file), "--output", utf8(&to)], &["l.gz"]);
    assert!(!to.exists());
    host.fails(&["ztoc", "info", utf8(&file)], &["l.gz"]);
    host.fails(&["ztoc", "build", "/no/such", "--output", utf8(&to)], &["/no/such"]);
    fs::write(&file, &layer.blob).expect("write");
    host.fails(&["ztoc", "build", utf8(&file), "--output", "/no/such/dir/out"], &["/no/such/dir/out"]);
    for wrong in [&["ztoc", "build", "x", "--output", "y", "--span-size", "0"][..], &["mount"], &["image", "x"]] {
        assert_eq!(host.run(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn paths_with_odd_characters_serve_and_those_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let Some(mut host) = Host::new("odd_paths") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    host.set_root(host.path("a root, with: odd\\ characters"));
    let upper = host.path("up, per: \\x");
    let (dir, _) = host.mount_with(&image, "a mount:, point\n\\", &["--upper", utf8(&upper)]);
    assert_same(&dir, &extract(&layers));
    fs::write(dir.join("new"), "new").expect("write");
    host.umount(&dir);
    assert_eq!(fs::read(upper.join("new")).expect("kept"), b"new");
    host.assert_clean();
    let odd = host.path("x").join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir_all(&odd).expect("directory");
    let out = host.command(&["mount", &image]).arg(&odd).output().expect("run");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && told.contains("not valid UTF-8"), "{told}");
}

#[test]
fn uppers_that_do_not_serve() {
    let Some(host) = Host::new("uppers") else { return };
    let registry = registry();
    let image = format!("{}/app:1", registry.host());
    let dir = host.dir("a");
    fs::write(host.path("file"), "").expect("file");
    for (upper, word) in
        [(host.path("file"), "file"), (host.path("file/below"), "file"), ("/proc/upper".into(), "/proc")]
    {
        let mut args = mount_args(&image, &dir);
        args.extend(["--upper", utf8(&upper)]);
        host.fails(&args, &[word]);
        host.assert_clean();
    }
    // What was made for a mount that failed is gone.
    assert!(!host.path("file.work").exists());
}

#[test]
fn a_frontend_that_is_not_there_is_named() {
    let Some(host) = Host::new("no_ublk") else { return };
    if Path::new("/dev/ublk-control").exists() {
        return crate::support::skipped("a_frontend_that_is_not_there_is_named", "a kernel without ublk");
    }
    let registry = registry();
    let (image, dir) = (format!("{}/app:1", registry.host()), host.dir("a"));
    host.fails(&["mount", &image, utf8(&dir), "--frontend", "ublk"], &["ublk"]);
    host.assert_clean();
    let report = host.ok(&["mount", &image, utf8(&dir), "--json"]).json();
    assert_eq!(report["frontend"], "fuse-image");
    assert!(report["frontend_reason"].as_str().is_some_and(|r| r.contains("ublk")), "{report:#}");
}

#[test]
fn a_registry_that_never_answers_ends_in_an_error_and_a_silent_referrers_api_in_a_stream() {
    let Some(host) = Host::new("silent") else { return };
    host.config("[registry]\nidle_timeout_s = 1\n");
    let registry = registry();
    let (image, dir) = (format!("{}/app:1", registry.host()), host.dir("a"));
    registry.fail(Fault::Stall).on("/manifests/");
    host.fails(&mount_args(&image, &dir), &["app:1"]);
    registry.heal();
    registry.fail(Fault::Stall).on("/referrers/");
    let (_, report) = host.mount(&image, "a");
    assert_eq!(report["layers"][0]["index"], "streamed", "{report:#}");
    for fault in [Fault::Html, Fault::RedirectLoop] {
        registry.heal();
        registry.fail(fault.clone()).on("/manifests/");
        let told = host.fails(&mount_args(&image, &host.dir("b")), &["app:1"]);
        assert!(told.len() < 600, "{fault:?}: {told}");
    }
}
