//! containerd's behaviour suite for snapshotters (core/snapshots/testsuite), case by case and by name: those that mount.
//! The kernel mounts, as root, in a namespace of the test's thread.

use std::os::unix::fs::MetadataExt;

use super::stage::{Change, apply, dir, file, mount_all, tree, with_mounts};
use super::*;

/// Makes a snapshot of each set of changes on the one before, and compares a view of each with the same changes in one
/// plain directory.
async fn check_snapshots(world: &World, round: usize, layers: &[Vec<Change>]) {
    let work = world.dir.path().join(format!("work-{round}"));
    let flat = work.join("flat");
    std::fs::create_dir_all(&flat).expect("mkdir");
    let mut parent = String::new();
    for (n, changes) in layers.iter().enumerate() {
        let (key, name) = (format!("{round}-{n}-prepare"), format!("{round}-{n}"));
        let mounts = world.prepare(&key, &parent).await.expect("prepares");
        let mounted = mount_all(&mounts, &work.join(&key));
        apply(mounted.path(), changes);
        drop(mounted);
        world.commit(&name, &key).await.expect("commits");
        apply(&flat, changes);
        let mounts = world.view("view", &name).await.expect("views");
        let mounted = mount_all(&mounts, &work.join(&name));
        assert_eq!(tree(mounted.path()), tree(&flat), "layer {n}");
        drop(mounted);
        world.snapshotter.remove("view").await.expect("removes");
        parent = name;
    }
}

fn check(test: &str, layers: Vec<Vec<Change>>) {
    with_mounts(test, |world| async move { check_snapshots(&world, 0, &layers).await });
}

#[test]
fn check_snapshotter_basic() {
    with_mounts("check_snapshotter_basic", |world| async move {
        let work = world.dir.path().join("work");
        let initial = [file("foo", "foo\n", 0o777), dir("a", 0o755), dir("a/b", 0o755), dir("a/b/c", 0o755)];
        let diff = [file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), Change::Remove("a/b")];
        let flat = work.join("flat");
        std::fs::create_dir_all(&flat).expect("mkdir");

        let mounted = mount_all(&world.prepare("preparing", "").await.expect("prepares"), &work.join("preparing"));
        apply(mounted.path(), &initial);
        drop(mounted);
        world.commit("committed", "preparing").await.expect("commits");
        let first = world.snapshotter.stat("committed").await.expect("stat");
        assert_eq!((&*first.parent, first.kind), ("", Kind::Committed));
        world.snapshotter.stat("preparing").await.expect_err("has another name now");

        let mounted = mount_all(&world.prepare("next", "committed").await.expect("prepares"), &work.join("next"));
        apply(&flat, &initial);
        assert_eq!(tree(mounted.path()), tree(&flat));
        apply(mounted.path(), &diff);
        drop(mounted);
        let next = world.snapshotter.stat("next").await.expect("stat");
        assert_eq!((&*next.parent, next.kind), ("committed", Kind::Active));
        world.commit("committed-next", "next").await.expect("commits");
        let second = world.snapshotter.stat("committed-next").await.expect("stat");
        assert_eq!((&*second.parent, second.kind), ("committed", Kind::Committed));
        assert_eq!(world.snapshotter.list(&[]).await.expect("lists"), [first, second]);

        let mounts = world.view("nextnext", "committed-next").await.expect("views");
        let mounted = mount_all(&mounts, &work.join("nextnext"));
        apply(&flat, &diff);
        assert_eq!(tree(mounted.path()), tree(&flat));
        drop(mounted);
        world.snapshotter.remove("nextnext").await.expect("removes");
        let error = world.snapshotter.remove("committed").await.expect_err("has a child");
        assert!(error.to_string().contains("remove"), "{error}");
        world.snapshotter.remove("committed-next").await.expect("removes");
        world.snapshotter.remove("committed").await.expect("removes");
        world.snapshotter.cleanup().await.expect("cleans");
        assert!(world.entries().is_empty());
    });
}

#[test]
fn check_deleted_files_in_child_snapshot() {
    let first = vec![file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)];
    check("check_deleted_files_in_child_snapshot", vec![first, vec![Change::Remove("foobar")], vec![]]);
}

#[test]
fn check_file_from_lower_layer() {
    let first =
        vec![dir("dir1", 0o700), file("dir1/f1", "Hello", 0o644), dir("dir2", 0o700), file("dir2/f2", "...", 0o644)];
    let second = vec![
        dir("dir3", 0o700),
        file("dir3/f1", "Hello", 0o644),
        Change::Remove("dir1"),
        Change::Link("dir2/f2", "dir3/f2"),
        Change::Remove("dir2/f2"),
    ];
    check("check_file_from_lower_layer", vec![first, second]);
}

#[test]
fn check_layer_file_update() {
    let first = vec![
        dir("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o644),
    ];
    let second = vec![
        file("etc/hosts", "mydomain 10.0.0.2", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        dir("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
    ];
    let layers = [first, second];
    with_mounts("check_layer_file_update", |world| async move {
        for round in 0..5 {
            check_snapshots(&world, round, &layers).await;
        }
    });
}

#[test]
fn check_remove_directory_in_lower_layer() {
    let first = vec![dir("lib", 0o700), file("lib/hidden", "", 0o644)];
    let second = vec![Change::Remove("lib"), dir("lib", 0o700), file("lib/not-hidden", "", 0o644)];
    check("check_remove_directory_in_lower_layer", vec![first, second, vec![file("lib/newfile", "", 0o644)]]);
}

#[test]
fn check_chown() {
    let paths = ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"];
    let mut first: Vec<_> = paths[..3].iter().map(|path| dir(*path, 0o700)).collect();
    first.push(file(paths[3], "hello", 0o644));
    check("check_chown", vec![first, paths.map(|path| Change::Chown(path, 1)).to_vec()]);
}

/// Without renaming a directory of a lower layer: overlayfs answers EXDEV, and containerd's case leaves it out for it.
#[test]
fn check_rename() {
    let first = vec![
        dir("dir1", 0o700),
        dir("somefiles", 0o700),
        file("somefiles/f1", "was here first!", 0o644),
        file("somefiles/f2", "nothing interesting", 0o644),
    ];
    let second = vec![
        file("somefiles/f1-overwrite", "new content 1", 0o644),
        Change::Rename("somefiles/f1-overwrite", "somefiles/f1"),
        Change::Rename("somefiles/f2", "somefiles/f3"),
    ];
    check("check_rename", vec![first, second]);
}

#[test]
fn check_directory_permission_on_commit() {
    use Change::{Chown, Remove};
    let mut first: Vec<_> = (1..=5).map(|n| dir(format!("dir{n}"), 0o700)).collect();
    first.extend([file("dir4/f1", "...", 0o644), file("dir5/f1", "...", 0o644)]);
    first.extend(["dir1", "dir2", "dir3", "dir5", "dir5/f1"].map(|path| Chown(path, 1)));
    let second = vec![Chown("dir2", 0), Remove("dir3"), Chown("dir4", 1), Chown("dir4/f1", 1)];
    let third = vec![dir("dir3", 0o700), Chown("dir3", 1), Remove("dir5"), dir("dir5", 0o700), Chown("dir5", 1)];
    check("check_directory_permission_on_commit", vec![first, second, third]);
}

#[test]
fn check_snapshotter_view_readonly() {
    with_mounts("check_snapshotter_view_readonly", |world| async move {
        world.prepare("preparing", "").await.expect("prepares");
        world.commit("committed", "preparing").await.expect("commits");
        world.prepare("preparing", "committed").await.expect("prepares");
        world.commit("second", "preparing").await.expect("commits");
        // Bind mounts of nothing and of one layer, and an overlay without an upper layer.
        for (n, parent) in ["", "committed", "second"].iter().enumerate() {
            let mounts = world.view("view", parent).await.expect("views");
            let mounted = mount_all(&mounts, &world.dir.path().join(format!("view-{n}")));
            let error = std::fs::write(mounted.path().join("testfile"), "testcontent").expect_err("read-only");
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "view of {parent:?}");
            drop(mounted);
            world.snapshotter.remove("view").await.expect("removes");
        }
    });
}

#[test]
fn check_root_permission() {
    with_mounts("check_root_permission", |world| async move {
        let mounts = world.prepare("preparing", "").await.expect("prepares");
        let mounted = mount_all(&mounts, &world.dir.path().join("mnt"));
        let mode = std::fs::metadata(mounted.path()).expect("stat").mode();
        assert_eq!(mode & 0o777, 0o755);
    });
}

#[test]
fn check_128_layers_mount() {
    let mut layers = vec![vec![
        file("bottom", "way at the bottom\n", 0o777),
        file("overwriteme", "FIRST!\n", 0o777),
        dir("addhere", 0o755),
        dir("onlyme", 0o755),
        file("onlyme/bottom", "bye!\n", 0o777),
    ]];
    layers.extend((1..=127).map(|n| {
        vec![
            file("overwriteme", format!("{n} WAS HERE!\n"), 0o777),
            file(format!("addhere/file-{n}"), "same\n", 0o755),
            Change::Remove("onlyme"),
            dir("onlyme", 0o755),
            file(format!("onlyme/file-{n}"), "only me!\n", 0o777),
        ]
    }));
    check("check_128_layers_mount", layers);
}

/// The same depth of layers that the node shows: what containerd is told fits in the page that mount(2) takes, and a
/// layer that an image has twice is no error.
#[test]
fn shown_layers_mount_in_any_number() {
    with_mounts("shown_layers_mount_in_any_number", |world| async move {
        let mut parent = String::new();
        for layer in 0..200 {
            // Number 150 again, on top of itself among others.
            let digest = if layer == 180 { 150 } else { layer };
            let files = world.layers.files(digest);
            std::fs::create_dir_all(&files).expect("mkdir");
            std::fs::write(files.join(format!("f{digest}")), "x").expect("write");
            std::fs::write(files.join("top"), format!("{digest}")).expect("write");
            let mut labels = image_labels("registry/app:1", layer);
            labels.insert(LAYER_DIGEST.to_owned(), layer_digest(digest).to_string());
            let error = world.snapshotter.prepare(Some(NAMESPACE), &format!("k{layer}"), &parent, labels).await;
            assert_eq!(code(&error.expect_err("is there now")), tonic::Code::AlreadyExists);
            parent = chain_id(layer);
        }
        let mounts = world.prepare("container", &parent).await.expect("prepares");
        assert!(mounts[0].options.iter().any(|option| option == "index=off"), "{mounts:?}");
        let mounted = mount_all(&mounts, &world.dir.path().join("mnt"));
        assert_eq!(std::fs::read_to_string(mounted.path().join("top")).expect("read"), "199");
        assert_eq!(entries(mounted.path()).len(), 200);
        std::fs::write(mounted.path().join("new"), "y").expect("writable");
    });
}

/// What an image's root directory belongs to, the container's does.
#[test]
fn the_root_of_a_container_belongs_to_whom_the_images_does() {
    with_mounts("the_root_of_a_container_belongs_to_whom_the_images_does", |world| async move {
        std::fs::create_dir_all(world.layers.files(1)).expect("mkdir");
        std::os::unix::fs::chown(world.layers.files(1), Some(7), Some(8)).expect("chown");
        let base = world.layer(1, "").await.expect("shown");
        let fs = |mounts: &[Mount]| {
            let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
            let meta = std::fs::metadata(upper.expect("an upper directory")).expect("stat");
            (meta.uid(), meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(fs(&world.prepare("a", &base).await.expect("prepares")), (7, 8, 0o755));
        world.commit("c", "a").await.expect("commits");
        assert_eq!(fs(&world.prepare("b", "c").await.expect("prepares")), (7, 8, 0o755));
        // A layer that lists no root directory leaves it to those below.
        let top = world.layer(2, "c").await.expect("shown");
        world.layers.state().roots = false;
        assert_eq!(fs(&world.prepare("d", &top).await.expect("prepares")), (7, 8, 0o755));
    });
}
