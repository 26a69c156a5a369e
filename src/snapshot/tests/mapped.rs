//! Containers with a user namespace of their own: SOCI's TestRunWithIdMap and containerd's TestOverlayRemappedBind and
//! TestOverlayRemappedActive, by real mounts.

use std::os::unix::fs::{MetadataExt, chown};

use super::stage::{mount_all, with_mounts};
use super::*;
use crate::snapshot::labels::{GROUP_MAP, USER_MAP};

fn mapped(users: &str, groups: &str) -> Labels {
    [(USER_MAP, users), (GROUP_MAP, groups)].into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn owner_of(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).expect("there");
    (meta.uid(), meta.gid())
}

/// An image of two layers with files of root, of users of the container, and of one whom it does not have.
async fn image(world: &World) -> String {
    let lower = world.layer(0, "").await.expect("shown");
    let upper = world.layer(1, &lower).await.expect("shown");
    let dirs: Vec<PathBuf> = world.layers.state().shown.values().cloned().collect();
    assert_eq!(dirs.len(), 2);
    for (number, dir) in dirs.iter().enumerate() {
        for (name, user, group) in [("root", 0, 0), ("app", 33, 44), ("beyond", 70_000, 0)] {
            let path = dir.join(format!("{name}-{number}"));
            std::fs::write(&path, name).expect("write");
            chown(&path, Some(user), Some(group)).expect("chown");
        }
    }
    upper
}

#[test]
fn run_with_id_map() {
    with_mounts("run_with_id_map", |world| async move {
        let top = image(&world).await;
        let labels = mapped("0:100000:65536", "0:200000:40,40:300000:65000");
        let prepare = || world.snapshotter.prepare(Some(NAMESPACE), "container", &top, labels.clone());
        let mounts = prepare().await.expect("prepares");
        // Any client can mount it: nothing is left to map.
        assert!(!mounts[0].options.iter().any(|option| option.contains("idmap") || option.contains("gidmap=")));
        let mounted = mount_all(&mounts, &world.dir.path().join("mnt"));
        assert_eq!(owner_of(mounted.path()), (100_000, 200_000));
        for number in 0..2 {
            let owner = |name: &str| owner_of(&mounted.path().join(format!("{name}-{number}")));
            // 65534 is who the kernel shows for nobody (user_namespaces(7), overflowuid).
            let beyond = (65_534, 200_000);
            assert_eq!(
                [owner("root"), owner("app"), owner("beyond")],
                [(100_000, 200_000), (100_033, 300_004), beyond]
            );
        }
        // What is copied up to be changed belongs to the same.
        std::fs::write(mounted.path().join("app-0"), "changed").expect("write");
        assert_eq!(owner_of(&mounted.path().join("app-0")), (100_033, 300_004));
        // Asked again, nothing is mounted anew; the layers themselves are as ever.
        assert_eq!(world.snapshotter.mounts("container").await.expect("mounts"), mounts);
        let plain = mount_all(&world.prepare("plain", &top).await.expect("prepares"), &world.dir.path().join("plain"));
        assert_eq!(owner_of(&plain.path().join("app-0")), (33, 44));
        drop((mounted, plain));

        let view = world.snapshotter.view("view", &top, labels.clone()).await.expect("views");
        let view = mount_all(&view, &world.dir.path().join("view"));
        assert_eq!(owner_of(&view.path().join("root-1")), (100_000, 200_000));
        assert_eq!(world.layers.mapped().await.len(), 2);
        drop(view);
        for key in ["container", "view", "plain"] {
            world.snapshotter.remove(key).await.expect("removes");
        }
        world.snapshotter.cleanup().await.expect("cleans up");
        assert_eq!(world.layers.mapped().await, Vec::<String>::new());
        prepare().await.expect("prepares again");
    });
}

#[test]
fn a_single_lower_and_none() {
    with_mounts("a_single_lower_and_none", |world| async move {
        let only = world.layer(0, "").await.expect("shown");
        let labels = mapped("0:5000:100", "0:6000:100");
        let view = world.snapshotter.view("view", &only, labels.clone()).await.expect("views");
        assert_eq!(view[0].kind, "bind");
        assert_eq!(owner_of(mount_all(&view, &world.dir.path().join("view")).path()), (5000, 6000));
        let scratch = world.snapshotter.prepare(None, "scratch", "", labels).await.expect("prepares");
        assert_eq!((scratch[0].kind, owner_of(Path::new(&scratch[0].source))), ("bind", (5000, 6000)));
        assert_eq!(world.layers.mapped().await.len(), 1);
    });
}

/// A client that was not told of it changes all owners by itself, and hands the labels on.
#[test]
fn what_the_client_has_mapped_is_not_mapped_again() {
    with_mounts("what_the_client_has_mapped_is_not_mapped_again", |world| async move {
        let top = image(&world).await;
        let mounts = world.prepare("remap", &top).await.expect("prepares");
        let mounted = mount_all(&mounts, &world.dir.path().join("mnt"));
        for name in ["", "root-0", "root-1"] {
            chown(mounted.path().join(name), Some(5000), Some(6000)).expect("chown");
        }
        drop(mounted);
        world.commit("remapped", "remap").await.expect("commits");
        let labels = mapped("0:5000:100", "0:6000:100");
        let mounts = world.snapshotter.prepare(None, "container", "remapped", labels).await.expect("prepares");
        let mounted = mount_all(&mounts, &world.dir.path().join("mnt"));
        assert_eq!(owner_of(mounted.path()), (5000, 6000));
        assert_eq!(owner_of(&mounted.path().join("root-1")), (5000, 6000));
        assert_eq!(world.layers.mapped().await, Vec::<String>::new());
    });
}

#[tokio::test]
async fn mappings_without_sense_are_refused() {
    let world = World::new();
    let top = world.layer(0, "").await.expect("shown");
    for (users, groups, word) in [
        ("0:1", "0:1:1", USER_MAP),
        ("0:1:1", "x", GROUP_MAP),
        ("1:1:1", "0:0:1", "nobody on the host stands for root"),
    ] {
        let refused = world.snapshotter.prepare(None, "container", &top, mapped(users, groups)).await;
        let error = refused.expect_err(users);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(super::super::service::status(&error).code(), tonic::Code::InvalidArgument);
        assert!(matches!(world.snapshotter.stat("container").await, Err(SnapshotError::NotFound { .. })));
    }
}

#[test]
fn mapped_layers_of_a_snapshot_that_is_no_more_go() {
    with_mounts("mapped_layers_of_a_snapshot_that_is_no_more_go", |world| async move {
        let top = image(&world).await;
        let labels = mapped("0:5000:100", "0:6000:100");
        world.snapshotter.prepare(None, "container", &top, labels.clone()).await.expect("prepares");
        let dir = world.dir.path().join("layers");
        let map = labels::id_map(&labels).expect("good").expect("one");
        world.layers.map("999", &map, &[dir]).await.expect("mapped");
        let world = world.restart();
        world.snapshotter.reconcile().await.expect("reconciles");
        let left = world.layers.mapped().await;
        assert!(left.len() == 1 && left[0] != "999", "{left:?}");
    });
}
