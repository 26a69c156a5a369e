//! What a daemon finds when it starts: strays, layers that are gone, a database that it cannot read.

use super::*;

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    let mounts = world.prepare("container", &base).await.expect("prepares");
    let all = world.snapshotter.list(&[]).await.expect("lists");
    let world = world.restart();
    world.snapshotter.reconcile().await.expect("reconciles");
    world.snapshotter.restore().await.expect("restores");
    assert_eq!(world.snapshotter.list(&[]).await.expect("lists"), all);
    assert_eq!(world.snapshotter.mounts("container").await.expect("mounts"), mounts);
    assert_eq!(world.layers.state().asked.len(), 1);
    assert!(world.layers.state().released.is_empty());
}

#[tokio::test]
async fn layers_come_back_after_a_reboot() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    let top = world.layer(2, &base).await.expect("shown");
    world.prepare("container", &top).await.expect("prepares");
    world.layers.lose_all();
    let world = world.restart();
    world.snapshotter.reconcile().await.expect("reconciles");
    assert!(world.layers.owners().await.is_empty(), "reconciling asks no registry");
    // The registry is away: nothing is given up, and the error says which layer it is.
    world.layers.state().behave = Behave::Fail;
    world.snapshotter.restore().await.expect("is no reason not to start");
    let error = world.snapshotter.mounts("container").await.expect_err("cannot be read");
    assert_eq!(code(&error), tonic::Code::Unavailable);
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(world.snapshotter.stat(&top).await.expect("still known").parent, base);
    // It is back.
    world.layers.state().behave = Behave::Lazy;
    world.snapshotter.restore().await.expect("restores");
    assert_eq!(world.layers.owners().await.len(), 2);
    let asked = world.layers.state().asked.len();
    world.snapshotter.mounts("container").await.expect("mounts");
    assert_eq!(world.layers.state().asked.len(), asked);
}

/// The link to a layer follows it, and is never missing: somebody may mount just now.
#[tokio::test]
async fn links_follow_layers_that_are_shown_elsewhere() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    let elsewhere = world.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("mkdir");
    for dir in world.layers.state().shown.values_mut() {
        dir.clone_from(&elsewhere);
    }
    world.prepare("container", &base).await.expect("prepares");
    let link = world.root().join("snapshots/1/fs");
    assert_eq!(std::fs::read_link(&link).expect("a link"), elsewhere);
    // Lost with the file system below, it is made again.
    std::fs::remove_dir_all(world.root().join("snapshots/1")).expect("rm");
    world.snapshotter.mounts("container").await.expect("mounts");
    assert_eq!(std::fs::read_link(&link).expect("a link"), elsewhere);
    assert_eq!(world.entries(), ["1", "2"]);
}

#[tokio::test]
async fn strays_are_removed() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    world.prepare("container", &base).await.expect("prepares");
    let snapshots = world.root().join("snapshots");
    let target = world.dir.path().join("precious");
    std::fs::create_dir(&target).expect("mkdir");
    std::fs::write(target.join("file"), "x").expect("write");
    for stray in ["77", "tmp-new-3", "tmp-rm-9", "name"] {
        std::fs::create_dir_all(snapshots.join(stray).join("fs/deep")).expect("mkdir");
        std::os::unix::fs::symlink(&target, snapshots.join(stray).join("link")).expect("symlink");
    }
    std::fs::write(snapshots.join("file"), "").expect("write");
    std::os::unix::fs::symlink(&target, snapshots.join("link")).expect("symlink");
    let wanted = world.layers.state().asked[0].1.clone();
    world.layers.show("stray/1", &wanted, Way::Lazy).await.expect("shown");
    let world = world.restart();
    world.snapshotter.reconcile().await.expect("reconciles");
    assert_eq!(world.entries(), ["1", "2"]);
    assert!(target.join("file").exists(), "links are not followed");
    assert_eq!(world.layers.state().released, ["stray/1"]);
    world.snapshotter.mounts("container").await.expect("mounts");
}

/// A directory of a snapshot that never came to be (power was lost, the disk was full) is in nobody's way.
#[tokio::test]
async fn directories_in_the_way_are_replaced() {
    let world = World::new();
    for id in 1..=3 {
        std::fs::create_dir_all(world.root().join(format!("snapshots/{id}/fs/old"))).expect("mkdir");
        std::fs::create_dir_all(world.root().join(format!("snapshots/tmp-new-{id}/fs"))).expect("mkdir");
        std::fs::create_dir_all(world.root().join(format!("snapshots/tmp-rm-{id}/fs"))).expect("mkdir");
    }
    let base = world.layer(1, "").await.expect("shown");
    world.prepare("a", &base).await.expect("prepares");
    world.view("v", &base).await.expect("views");
    assert!(entries(&world.root().join("snapshots/2/fs")).is_empty());
    assert_eq!(entries(&world.root().join("snapshots/1")), ["fs"]);
    assert_eq!(world.entries(), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_commit_whose_files_are_gone_is_refused() {
    let world = World::new();
    world.prepare("a", "").await.expect("prepares");
    std::fs::remove_dir_all(world.root().join("snapshots/1")).expect("rm");
    let error = world.commit("c", "a").await.expect_err("an empty layer would be a lie");
    assert!(error.to_string().contains("snapshots/1/fs"), "{error}");
    assert_eq!(world.names().await, ["a"]);
}

#[tokio::test]
async fn usage_counts_what_lies_on_disk() {
    let world = World::new();
    world.prepare("a", "").await.expect("prepares");
    let fs = world.root().join("snapshots/1/fs");
    std::fs::create_dir(fs.join("dir")).expect("mkdir");
    std::fs::write(fs.join("dir/file"), vec![1; 100_000]).expect("write");
    std::fs::hard_link(fs.join("dir/file"), fs.join("again")).expect("link");
    std::os::unix::fs::symlink("dir/file", fs.join("link")).expect("symlink");
    let usage = world.snapshotter.usage("a").await.expect("usage");
    assert_eq!(usage.inodes, 4, "the root, a directory, a file with two names, a link");
    assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
    world.commit("c", "a").await.expect("commits");
    std::fs::write(fs.join("late"), vec![1; 100_000]).expect("write");
    assert_eq!(world.snapshotter.usage("c").await.expect("usage"), usage, "what it took when it was committed");
}

/// A database that cannot be read, of whatever kind: the daemon starts, and touches nothing of what was there.
#[tokio::test]
async fn a_database_that_cannot_be_read_is_set_aside() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 5] = [
        ("no database", |path| std::fs::write(path, "SQLite format 4\0, or what").expect("write")),
        ("overwritten in the middle", |path| {
            let mut bytes = std::fs::read(path).expect("read");
            let at = bytes.len() / 4;
            bytes[at..].fill(0xa5);
            std::fs::write(path, bytes).expect("write");
        }),
        ("another version", |path| sql(path, "PRAGMA user_version = 99")),
        ("another program", |path| sql(path, "PRAGMA application_id = 1")),
        ("a parent is missing", |path| {
            sql(path, "PRAGMA foreign_keys = OFF; DELETE FROM snapshots WHERE kind = 'committed'");
        }),
    ];
    for (case, spoil) in spoils {
        let world = World::new();
        let base = world.layer(1, "").await.expect("shown");
        world.prepare("container", &base).await.expect("prepares");
        std::fs::write(world.root().join("snapshots/2/fs/data"), "precious").expect("write");
        let World { snapshotter, layers, dir } = world;
        let root = dir.path().join("root");
        drop(snapshotter);
        // All of it into one file.
        sql(&root.join("snapshots.db"), "PRAGMA journal_mode = DELETE");
        spoil(&root.join("snapshots.db"));
        let snapshotter = Snapshotter::open(&root, Arc::clone(&layers), Options::default())
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        let world = World { snapshotter, layers, dir };
        world.snapshotter.reconcile().await.expect("reconciles");
        world.snapshotter.cleanup().await.expect("cleans");
        assert!(world.names().await.is_empty(), "{case}");
        assert!(world.layers.state().released.is_empty(), "{case}: containers still run on it");
        let aside = |prefix: &str| {
            let name = entries(&root).into_iter().find(|name| name.starts_with(prefix));
            root.join(name.unwrap_or_else(|| panic!("{case}: {prefix}: {:?}", entries(&root))))
        };
        assert!(aside("snapshots.db.set-aside-").is_file());
        let data = std::fs::read_to_string(aside("snapshots.set-aside-").join("2/fs/data"));
        assert_eq!(data.expect("kept"), "precious", "{case}");
        // It works, and goes on working after the next start.
        let base = world.layer(1, "").await.expect("shown");
        let world = world.restart();
        world.snapshotter.reconcile().await.expect("reconciles");
        assert_eq!(world.names().await, [base]);
        // Once somebody removes what was set aside, its layers go.
        std::fs::remove_dir_all(aside("snapshots.set-aside-")).expect("rm");
        world.snapshotter.reconcile().await.expect("reconciles");
        assert_eq!(world.layers.owners().await.len(), 1, "{case}");
        assert_eq!(world.layers.state().released.len(), 1, "{case}");
    }
}

fn sql(path: &Path, text: &str) {
    let connection = rusqlite::Connection::open(path).expect("opens");
    connection.execute_batch(text).expect(text);
}

#[test]
fn a_root_that_overlayfs_cannot_take_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for bad in ["a:b", "a,b", "a\\b"] {
        let layers = Arc::new(Fake::new(dir.path().join("layers")));
        let error = Snapshotter::open(&dir.path().join(bad), layers, Options::default()).err().expect(bad);
        assert!(error.to_string().contains("overlayfs cannot take"), "{error}");
    }
}

/// A full disk: errors that say so, nothing half-made, and all is well once there is space.
#[test]
fn a_full_disk_costs_nothing_but_the_request() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    if !rustix::process::geteuid().is_root() {
        skipped("a_full_disk_costs_nothing_but_the_request", "root");
        return;
    }
    crate::sys::namespace::detach_own().expect("a mount namespace of our own");
    let dir = tempfile::tempdir().expect("temporary directory");
    mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), c"size=4m").expect("tmpfs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let layers = Arc::new(Fake::new(dir.path().join("layers")));
        let snapshotter =
            Snapshotter::open(&dir.path().join("root"), Arc::clone(&layers), Options::default()).expect("opens");
        snapshotter.prepare(None, "before", "", gc_root()).await.expect("prepares");
        std::fs::create_dir_all(layers.files(1)).expect("mkdir");
        let filler = dir.path().join("filler");
        std::fs::write(&filler, vec![0; 8 << 20]).expect_err("larger than the disk");
        let labels = image_labels("registry/app:1", 1);
        let mut refused = 0;
        for n in 0..200 {
            let made = snapshotter.prepare(None, &format!("k{n}"), "", labels_of(&[("l", &"x".repeat(50_000))])).await;
            refused += u32::from(made.is_err());
        }
        assert!(refused > 0, "the disk is not full");
        let error = snapshotter.prepare(Some("ns"), "layer", "", labels.clone()).await.expect_err("no space");
        assert_eq!(code(&error), tonic::Code::Unknown, "{error}");
        snapshotter.stat("before").await.expect("reading goes on");
        snapshotter.mounts("before").await.expect("reading goes on");
        std::fs::remove_file(&filler).expect("rm");
        snapshotter.cleanup().await.expect("cleans");
        assert!(layers.owners().await.is_empty());
        let names = snapshotter.list(&[]).await.expect("lists");
        assert_eq!(entries(&dir.path().join("root/snapshots")).len(), names.len());
        let error = snapshotter.prepare(Some("ns"), "layer", "", labels).await.expect_err("is there");
        assert_eq!(code(&error), tonic::Code::AlreadyExists, "{error}");
    });
    drop(runtime);
    unmount(dir.path(), UnmountFlags::DETACH).expect("unmounts");
}
