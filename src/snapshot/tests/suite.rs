//! containerd's behaviour suite for snapshotters (core/snapshots/testsuite), case by case and by name: those that mount
//! nothing. See docs/COMPATIBILITY.md.

use std::time::SystemTime;

use super::*;

#[tokio::test]
async fn check_snapshotter_stat_active() {
    let world = World::new();
    assert!(!world.prepare("preparing", "").await.expect("prepares").is_empty());
    let info = world.snapshotter.stat("preparing").await.expect("stat");
    assert_eq!((&*info.name, info.kind, &*info.parent), ("preparing", Kind::Active, ""));
}

#[tokio::test]
async fn check_snapshotter_stat_committed() {
    let world = World::new();
    world.prepare("preparing", "").await.expect("prepares");
    world.commit("committed", "preparing").await.expect("commits");
    let info = world.snapshotter.stat("committed").await.expect("stat");
    assert_eq!((&*info.name, info.kind, &*info.parent), ("committed", Kind::Committed, ""));
    let gone = world.snapshotter.stat("preparing").await.expect_err("has another name now");
    assert_eq!(code(&gone), tonic::Code::NotFound);
}

#[tokio::test]
async fn check_snapshotter_transitivity() {
    let world = World::new();
    world.prepare("preparing", "").await.expect("prepares");
    world.commit("snapA", "preparing").await.expect("commits");
    world.prepare("next", "snapA").await.expect("prepares");
    world.commit("snapB", "next").await.expect("commits");
    let parent = |name: &'static str| {
        let snapshotter = world.snapshotter.clone();
        async move { snapshotter.stat(name).await.expect("stat").parent }
    };
    assert_eq!(parent("snapA").await, "");
    assert_eq!(parent("snapB").await, "snapA");
}

#[tokio::test]
async fn check_snapshotter_prepare_view() {
    let world = World::new();
    world.prepare("preparing", "").await.expect("prepares");
    world.commit("snapA", "preparing").await.expect("commits");
    world.prepare("newlayer", "snapA").await.expect("prepares");
    world.prepare("preplayer", "snapA").await.expect("prepares");
    world.view("viewlayer", "snapA").await.expect("views");
    for twice in [
        world.view("newlayer", "snapA").await,
        world.prepare("preplayer", "snapA").await,
        world.view("viewlayer", "snapA").await,
        world.prepare("snapA", "").await,
    ] {
        assert_eq!(code(&twice.expect_err("the key is taken")), tonic::Code::AlreadyExists);
    }
}

#[tokio::test]
async fn check_remove_intermediate_snapshot() {
    let world = World::new();
    world.prepare("base", "").await.expect("prepares");
    world.commit("committed-base", "base").await.expect("commits");
    world.prepare("intermediate", "committed-base").await.expect("prepares");
    world.commit("committed-inter", "intermediate").await.expect("commits");
    world.prepare("toplayer", "committed-inter").await.expect("prepares");
    let error = world.snapshotter.remove("committed-inter").await.expect_err("something stands on it");
    assert_eq!(code(&error), tonic::Code::FailedPrecondition);
    for name in ["toplayer", "committed-inter", "committed-base"] {
        world.snapshotter.remove(name).await.expect(name);
    }
    world.snapshotter.cleanup().await.expect("cleans");
    assert!(world.entries().is_empty(), "{:?}", world.entries());
}

/// c1, c2 on it, a1 and v1 on that, a2 and v2 on nothing.
async fn base_snapshots(world: &World) {
    world.prepare("c1-a", "").await.expect("c1-a");
    world.commit("c1", "c1-a").await.expect("c1");
    world.prepare("c2-a", "c1").await.expect("c2-a");
    world.commit("c2", "c2-a").await.expect("c2");
    world.prepare("a1", "c2").await.expect("a1");
    world.prepare("a2", "").await.expect("a2");
    world.view("v1", "c2").await.expect("v1");
    world.view("v2", "").await.expect("v2");
}

#[tokio::test]
async fn check_update() {
    let world = World::new();
    let before = SystemTime::now();
    base_snapshots(&world).await;
    let after = SystemTime::now();
    for (name, kind, parent) in [
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ] {
        let first = world.snapshotter.stat(name).await.expect(name);
        assert!(before <= first.created && first.created <= after, "{name}");
        assert_eq!(first.created, first.updated, "{name}");
        let check = |info: &Info, labels: &Labels| {
            assert_eq!((&*info.name, info.kind, &*info.parent), (name, kind, parent));
            assert_eq!((info.created, &info.labels), (first.created, labels), "{name}");
        };
        check(&first, &gc_root());

        let update = |labels: &Labels, fields: &[&str]| {
            let (snapshotter, labels) = (world.snapshotter.clone(), labels.clone());
            let fields = fields.iter().map(|field| (*field).to_owned()).collect();
            async move { snapshotter.update(name, labels, fields).await }
        };
        let (u1, all) = (SystemTime::now(), labels_of(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("root", "r")]));
        let updated = update(&all, &[]).await.expect("all");
        check(&updated, &all);
        assert!(u1 <= updated.updated && updated.updated <= SystemTime::now());

        let given = labels_of(&[("l1", "updated"), ("l4", "v4")]);
        let updated = update(&given, &["labels.l1", "labels.l2"]).await.expect("two");
        check(&updated, &labels_of(&[("l1", "updated"), ("l3", "v3"), ("root", "r")]));

        let given = labels_of(&[("l4", "v4"), ("root", "r")]);
        let updated = update(&given, &["labels"]).await.expect("labels");
        check(&updated, &given);
        assert_eq!(world.snapshotter.stat(name).await.expect(name), updated);

        let error = update(&given, &["parent"]).await.expect_err("cannot change");
        assert_eq!(code(&error), tonic::Code::InvalidArgument);
        let error = update(&Labels::new(), &["labels.l4", "kind"]).await.expect_err("cannot change");
        assert_eq!(code(&error), tonic::Code::InvalidArgument);
        check(&world.snapshotter.stat(name).await.expect(name), &given);
    }
    let error = world.snapshotter.update("none", Labels::new(), vec![]).await.expect_err("is not there");
    assert_eq!(code(&error), tonic::Code::NotFound);
}

#[tokio::test]
async fn check_remove() {
    let world = World::new();
    world.prepare("committed-a", "").await.expect("prepares");
    world.commit("committed-1", "committed-a").await.expect("commits");
    world.prepare("reuse-1", "committed-1").await.expect("prepares");
    world.snapshotter.remove("reuse-1").await.expect("removes");
    world.view("reuse-1", "committed-1").await.expect("views");
    world.snapshotter.remove("reuse-1").await.expect("removes");
    world.prepare("reuse-1", "").await.expect("prepares");
    world.snapshotter.remove("committed-1").await.expect("removes");
    world.commit("committed-1", "reuse-1").await.expect("commits");
    let error = world.snapshotter.remove("reuse-1").await.expect_err("has another name now");
    assert_eq!(code(&error), tonic::Code::NotFound);
}

#[tokio::test]
async fn check_walk() {
    let world = World::new();
    let walk = labels_of(&[("containerd.io/gc.root", "check-walk")]);
    let walk_l = |l: &str| labels_of(&[("containerd.io/gc.root", "check-walk"), ("l", l)]);
    let sn = &world.snapshotter;
    sn.prepare(None, "a-np", "", walk.clone()).await.expect("a-np");
    sn.prepare(None, "p-tmp", "", walk.clone()).await.expect("p-tmp");
    sn.commit("p", "p-tmp", "", walk.clone()).await.expect("p");
    sn.prepare(None, "a", "p", walk.clone()).await.expect("a");
    sn.view("v", "p", walk.clone()).await.expect("v");
    sn.prepare(None, "p-wl-tmp", "", walk).await.expect("p-wl-tmp");
    sn.commit("p-wl", "p-wl-tmp", "", walk_l("1")).await.expect("p-wl");
    sn.prepare(None, "a-wl", "p-wl", walk_l("2")).await.expect("a-wl");
    sn.view("v-wl", "p-wl", walk_l("3")).await.expect("v-wl");
    sn.prepare(None, "a-np-wl", "", walk_l("2")).await.expect("a-np-wl");
    for (filters, want) in [
        (&["labels.\"containerd.io/gc.root\"==check-walk"][..], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (&["kind==active,labels.\"containerd.io/gc.root\"==check-walk"], "a a-np a-np-wl a-wl"),
        (&["kind==view,labels.\"containerd.io/gc.root\"==check-walk"], "v v-wl"),
        (&["kind==committed,labels.\"containerd.io/gc.root\"==check-walk"], "p p-wl"),
        (&["name==p", "name==a-np-wl"], "a-np-wl p"),
        (&["name==a-wl,labels.l"], "a-wl"),
        (&["parent==p"], "a v"),
        (&["parent!=\"\",labels.\"containerd.io/gc.root\"==check-walk"], "a a-wl v v-wl"),
        (&["labels.l"], "a-np-wl a-wl p-wl v-wl"),
        (&["labels.l==2"], "a-np-wl a-wl"),
        (&[], "a a-np a-np-wl a-wl p p-wl v v-wl"),
    ] {
        let filters: Vec<_> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let found = sn.list(&filters).await.unwrap_or_else(|error| panic!("{filters:?}: {error}"));
        let names: Vec<_> = found.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(names.join(" "), want, "{filters:?}");
    }
    let error = sn.list(&["kind=active".to_owned()]).await.expect_err("no such operator");
    assert_eq!(code(&error), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn check_stat_in_walk() {
    let world = World::new();
    base_snapshots(&world).await;
    for walked in world.snapshotter.list(&[]).await.expect("lists") {
        assert_eq!(world.snapshotter.stat(&walked.name).await.expect("stat"), walked);
    }
}

/// Ours is closed by its last handle: an open root can be opened again at once, and again.
#[tokio::test]
async fn close_twice() {
    let world = World::new();
    world.prepare("prepare", "").await.expect("prepares");
    world.commit("n", "prepare").await.expect("commits");
    world.snapshotter.remove("n").await.expect("removes");
    let world = world.restart().restart();
    assert!(world.names().await.is_empty());
}

/// Rules of core/snapshots/storage that its own tests check, beyond the suite.
#[tokio::test]
async fn the_metastore_refuses_what_containerds_does() {
    use tonic::Code;
    let world = World::new();
    base_snapshots(&world).await;
    let sn = &world.snapshotter;
    let refused = |result: Result<_, SnapshotError>| code(&result.map(|_: Vec<Mount>| ()).expect_err("refused"));
    assert_eq!(refused(world.prepare("x", "absent").await), Code::NotFound);
    assert_eq!(refused(world.view("x", "absent").await), Code::NotFound);
    for parent in ["a1", "v1"] {
        assert_eq!(refused(world.prepare("x", parent).await), Code::InvalidArgument);
        assert_eq!(refused(world.view("x", parent).await), Code::InvalidArgument);
    }
    assert_eq!(refused(world.prepare("", "").await), Code::InvalidArgument);
    assert_eq!(refused(sn.mounts("c1").await), Code::FailedPrecondition);
    assert_eq!(refused(sn.mounts("absent").await), Code::NotFound);
    let refused = |result: Result<(), SnapshotError>| code(&result.expect_err("refused"));
    assert_eq!(refused(world.commit("y", "absent").await), Code::NotFound);
    assert_eq!(refused(world.commit("c1", "a1").await), Code::AlreadyExists);
    assert_eq!(refused(world.commit("y", "v1").await), Code::FailedPrecondition);
    assert_eq!(refused(world.commit("y", "c1").await), Code::FailedPrecondition);
    assert_eq!(refused(world.commit("", "a1").await), Code::InvalidArgument);
    assert_eq!(refused(sn.commit("y", "a1", "c1", gc_root()).await), Code::InvalidArgument);
    assert_eq!(refused(sn.commit("y", "a2", "absent", gc_root()).await), Code::NotFound);
    assert_eq!(refused(sn.remove("c1").await), Code::FailedPrecondition);
    assert_eq!(refused(sn.remove("absent").await), Code::NotFound);
    assert_eq!(refused(sn.usage("absent").await.map(drop)), Code::NotFound);
    // One without a parent may get it when it is committed (containerd 2.2), and then it counts.
    sn.commit("y", "a2", "c2", gc_root()).await.expect("rebased");
    assert_eq!(sn.stat("y").await.expect("stat").parent, "c2");
    sn.remove("a1").await.expect("removes");
    sn.remove("v1").await.expect("removes");
    assert_eq!(refused(sn.remove("c2").await), Code::FailedPrecondition);
}

#[tokio::test]
async fn commit_takes_the_labels_that_it_is_given_and_no_others() {
    let world = World::new();
    world.snapshotter.prepare(None, "a", "", labels_of(&[("old", "1"), ("both", "1")])).await.expect("prepares");
    let given = labels_of(&[("both", "2"), ("none", "")]);
    world.snapshotter.commit("c", "a", "", given).await.expect("commits");
    assert_eq!(world.snapshotter.stat("c").await.expect("stat").labels, labels_of(&[("both", "2")]));
}

#[tokio::test]
async fn odd_names_and_long_labels_come_back_as_they_went() {
    let world = World::new();
    let long = "ü".repeat(100_000);
    for name in
        ["../../etc", "/", "a\0b", "quote\"back\\slash", "line\nbreak", "ns/1/ö \u{1f980}", "'; DROP TABLE", &long]
    {
        world.prepare("key", "").await.expect("prepares");
        let labels = labels_of(&[(name, name), (SNAPSHOT_REF, name)]);
        world.snapshotter.commit(name, "key", "", labels.clone()).await.expect("commits");
        world.prepare("child", name).await.expect("prepares");
        let info = world.snapshotter.stat(name).await.expect("stat");
        assert_eq!((info.name.as_str(), &info.labels), (name, &labels));
        if name.len() < 1000 {
            // What Go's %q makes of it, for the characters here.
            let quoted: String = name.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
            for filter in [format!("parent==\"{quoted}\""), format!("labels.\"{quoted}\"==\"{quoted}\"")] {
                assert_eq!(
                    world.snapshotter.list(std::slice::from_ref(&filter)).await.expect("lists").len(),
                    1,
                    "{filter:?}"
                );
            }
        }
        world.snapshotter.remove("child").await.expect("removes");
        world.snapshotter.remove(name).await.expect("removes");
    }
    world.snapshotter.cleanup().await.expect("cleans");
    assert!(world.entries().is_empty());
    assert_eq!(entries(world.dir.path()), ["root"]);
}
