//! Preparing image layers: what is shown, what is left to containerd, and many at once.

use std::task::Poll;

use super::super::labels::{HAS_INDEX, INDEX_DIGEST, LAYER_SIZE, REMOTE, REMOTE_NAMESPACE};
use super::*;

/// What became of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Committed, and shown before its bytes are here.
    Lazy,
    /// Committed, all bytes here.
    Local,
    /// containerd unpacks it: the image has no index.
    Deferred,
    /// containerd unpacks it: something failed.
    Failed,
}

/// What SOCI's snapshotter does with a layer (dossier of its Prepare), row by row.
#[tokio::test]
async fn the_decision_table_of_prepare() {
    let without = |label| (label, None);
    let with = |label, value| (label, Some(value));
    let index = Digest::of(b"index").to_string();
    for (case, behave, change, fate) in [
        ("lazy", Behave::Lazy, None, Fate::Lazy),
        ("an explicit index", Behave::Lazy, Some(with(INDEX_DIGEST, index.as_str())), Fate::Lazy),
        ("whole", Behave::Whole, None, Fate::Local),
        ("below the smallest size", Behave::Lazy, Some(with(LAYER_SIZE, "999")), Fate::Local),
        ("as large as the smallest size", Behave::Lazy, Some(with(LAYER_SIZE, "1000")), Fate::Lazy),
        ("no index", Behave::NoIndex, None, Fate::Deferred),
        ("a failure", Behave::Fail, None, Fate::Failed),
        ("no image reference", Behave::Lazy, Some(without(IMAGE_REF)), Fate::Failed),
        ("no manifest digest", Behave::Lazy, Some(without(MANIFEST_DIGEST)), Fate::Failed),
        ("no layer digest", Behave::Lazy, Some(without(LAYER_DIGEST)), Fate::Failed),
        ("a size that is none", Behave::Lazy, Some(with(LAYER_SIZE, "many")), Fate::Failed),
    ] {
        for indexed in [true, false] {
            let world = World::with(Options { min_layer_bytes: 1000 });
            {
                let mut state = world.layers.state();
                (state.behave, state.indexed) = (behave, indexed);
            }
            let mut labels = image_labels("registry/app:1", 1);
            match change {
                Some((label, Some(value))) => drop(labels.insert(label.to_owned(), value.to_owned())),
                Some((label, None)) => drop(labels.remove(label)),
                None => {}
            }
            let result = world.snapshotter.prepare(Some("ns"), "extract", "", labels.clone()).await;
            let counters = world.snapshotter.counters();
            let counted = (counters.lazy(), counters.local(), counters.deferred(), counters.show_failures());
            world.snapshotter.cleanup().await.expect("cleans");
            if matches!(fate, Fate::Deferred | Fate::Failed) {
                let mounts = result.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(mounts[0].kind, "bind", "{case}");
                let info = world.snapshotter.stat("extract").await.expect("to unpack into");
                assert_eq!((info.kind, info.labels), (Kind::Active, labels), "{case}");
                assert_eq!(counted, (0, 0, 1, u64::from(fate == Fate::Failed)), "{case}");
                assert!(world.layers.owners().await.is_empty(), "{case}");
                continue;
            }
            match result {
                Err(SnapshotError::Exists { name }) => assert_eq!(name, chain_id(1), "{case}"),
                other => panic!("{case}: {other:?}"),
            }
            assert_eq!(counted, (u64::from(fate == Fate::Lazy), u64::from(fate == Fate::Local), 0, 0), "{case}");
            labels.insert(REMOTE_NAMESPACE.to_owned(), "ns".to_owned());
            if fate == Fate::Lazy {
                labels.insert(REMOTE.to_owned(), "remote snapshot".to_owned());
            }
            if indexed {
                labels.insert(HAS_INDEX.to_owned(), "true".to_owned());
            }
            let info = world.snapshotter.stat(&chain_id(1)).await.expect("committed");
            assert_eq!((info.kind, info.labels), (Kind::Committed, labels), "{case}");
            assert_eq!(world.names().await, [chain_id(1)], "{case}: the key is free");
            let usage = world.snapshotter.usage(&chain_id(1)).await.expect("usage");
            assert_eq!(usage, Usage { inodes: 7, bytes: 4096 }, "{case}");
            let (_, wanted, _) = world.layers.state().asked[0].clone();
            assert_eq!((wanted.namespace.as_str(), wanted.layer), ("ns", layer_digest(1)), "{case}");
            assert_eq!(wanted.index.is_some(), case == "an explicit index");
        }
    }
}

/// containerd 1.6 does not say in which namespace it asks.
#[tokio::test]
async fn a_namespace_is_not_needed() {
    let world = World::new();
    let labels = image_labels("registry/app:1", 1);
    let error = world.snapshotter.prepare(None, "k", "", labels).await.expect_err("is there");
    assert_eq!(code(&error), tonic::Code::AlreadyExists);
    assert!(!world.snapshotter.stat(&chain_id(1)).await.expect("stat").labels.contains_key(REMOTE_NAMESPACE));
    world.layers.lose_all();
    world.prepare("container", &chain_id(1)).await.expect("is brought back");
}

/// The rest of the table: what is refused, and what is no layer.
#[tokio::test]
async fn what_is_no_layer_of_an_image_is_shown_by_nobody() {
    let world = World::new();
    let labels = image_labels("registry/app:1", 1);
    let error = world.snapshotter.prepare(Some("ns"), "k", "absent", labels.clone()).await.expect_err("no parent");
    assert_eq!(code(&error), tonic::Code::NotFound);
    world.prepare("k", "").await.expect("a container's");
    let error = world.snapshotter.prepare(Some("ns"), "k", "", labels.clone()).await.expect_err("the key is taken");
    assert!(matches!(&error, SnapshotError::Exists { name } if name == "k"), "{error}");
    let error = world.snapshotter.prepare(Some("ns"), "x", "k", labels.clone()).await.expect_err("not committed");
    assert_eq!(code(&error), tonic::Code::InvalidArgument);
    world.snapshotter.view("v", "", labels).await.expect("views are never layers");
    assert!(world.layers.state().asked.is_empty());
    assert_eq!(world.names().await, ["k", "v"]);
}

#[tokio::test]
async fn containers_stand_on_the_layers_of_their_image() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    let top = world.layer(2, &base).await.expect("shown");
    let fs = |id: u32| world.root().join(format!("snapshots/{id}/fs")).display().to_string();
    let option = |mounts: &[Mount], name: &str| {
        let found = mounts[0].options.iter().find_map(|option| option.strip_prefix(name));
        found.unwrap_or_default().to_owned()
    };
    let mounts = world.prepare("container", &top).await.expect("prepares");
    assert_eq!((mounts.len(), mounts[0].kind, &*mounts[0].source), (1, "overlay", "overlay"));
    assert_eq!(option(&mounts, "lowerdir="), format!("{}:{}", fs(2), fs(1)));
    assert_eq!(option(&mounts, "upperdir="), fs(3));
    assert_eq!(option(&mounts, "workdir="), fs(3).replace("/fs", "/work"));
    assert_eq!(world.snapshotter.mounts("container").await.expect("again"), mounts);
    let view = world.view("view", &top).await.expect("views");
    assert_eq!(option(&view, "lowerdir="), format!("{}:{}", fs(2), fs(1)));
    assert_eq!(option(&view, "upperdir="), "");
    let bind = |source, mode: &str| vec![Mount { kind: "bind", source, options: vec![mode.into(), "rbind".into()] }];
    assert_eq!(world.view("one", &base).await.expect("views"), bind(fs(1), "ro"));
    assert_eq!(world.prepare("none", "").await.expect("prepares"), bind(fs(6), "rw"));
    assert_eq!(world.view("empty", "").await.expect("views"), bind(fs(7), "ro"));
    for (id, layer) in [(1, 1), (2, 2)] {
        assert_eq!(std::fs::read_link(fs(id)).expect("a link"), world.layers.files(layer));
    }
}

#[tokio::test]
async fn a_layer_that_is_there_is_used_again() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    // Another namespace of the same containerd: same chain, same parent.
    assert_eq!(world.layer(1, "").await.expect("there"), base);
    assert_eq!(world.layers.state().asked.len(), 1);
    // The same chain on a parent that containerd unpacked in another namespace is another snapshot.
    world.prepare("unpack", "").await.expect("prepares");
    world.commit("ns/1/base", "unpack").await.expect("commits");
    let top = world.layer(2, &base).await.expect("shown");
    let other = world.layer(2, "ns/1/base").await.expect("shown");
    assert_ne!(top, other);
    assert_eq!(world.layer(2, "ns/1/base").await.expect("there"), other);
    assert_eq!(world.layers.state().asked.len(), 3);
    // One that containerd unpacked itself counts as much.
    world.layers.state().behave = Behave::NoIndex;
    world.layer(3, &top).await.expect_err("left to containerd").expect("mounts");
    let labels = image_labels("registry/app:1", 3);
    world.snapshotter.commit("ns/9/three", "extract-3-3", &top, labels).await.expect("commits");
    assert_eq!(world.layer(3, &top).await.expect("there"), "ns/9/three");
}

/// SOCI's snapshotter remembers a failure until it restarts.
#[tokio::test]
async fn failures_do_not_stick() {
    let world = World::new();
    world.layers.state().behave = Behave::Fail;
    world.layer(1, "").await.expect_err("fails").expect("is left to containerd");
    world.layers.state().behave = Behave::Lazy;
    world.layer(1, "").await.expect("is shown now");
}

/// containerd replaces a snapshot's labels at will; what a layer is brought back by is not among them.
#[tokio::test]
async fn labels_that_are_replaced_do_not_lose_the_layer() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    world.snapshotter.update(&base, gc_root(), vec![]).await.expect("updates");
    world.layers.lose_all();
    world.prepare("container", &base).await.expect("is brought back");
    assert_eq!(world.layers.state().asked.last().expect("asked").1.layer, layer_digest(1));
    // Without its reference, containerd would not find it either: the layer is made anew, under another name.
    let again = world.layer(1, "").await.expect("shown");
    assert_ne!(again, base);
}

#[tokio::test]
async fn a_lost_layer_comes_back_from_the_image_that_asks_for_it() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    world.layers.lose_all();
    world.layers.state().gone.insert("registry/app:1".to_owned());
    let error = world.prepare("container", &base).await.expect_err("its image is gone");
    assert_eq!(code(&error), tonic::Code::Unavailable);
    assert!(error.to_string().contains(&base) && error.to_string().contains("404"), "{error}");
    assert_eq!(world.names().await, std::slice::from_ref(&base), "no container that cannot start");
    // Asked for by the image that is gone, it is left to containerd.
    world.layer(1, "").await.expect_err("fails").expect("is left to containerd");
    // By another image that has it, it comes back, and stays.
    let labels = image_labels("mirror/app:1", 1);
    let result = world.snapshotter.prepare(Some(NAMESPACE), "pull", "", labels).await;
    assert_eq!(code(&result.expect_err("is there")), tonic::Code::AlreadyExists);
    world.layers.lose_all();
    world.prepare("container", &base).await.expect("is brought back");
    assert_eq!(world.layers.state().asked.last().expect("asked").1.image_ref, "mirror/app:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_layers_are_prepared_at_once() {
    let world = Arc::new(World::new());
    let all = (0..200).map(|layer| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.layer(layer, "").await.map_err(|error| format!("{error:?}")) })
    });
    for (layer, done) in futures_util::future::join_all(all).await.into_iter().enumerate() {
        assert_eq!(done.expect("no panic").expect("shown"), chain_id(layer));
    }
    assert_eq!(world.names().await.len(), 200);
    let containers = (0..64).map(|n| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.prepare(&format!("c{n}"), &chain_id(n)).await.map(drop) })
    });
    for done in futures_util::future::join_all(containers).await {
        done.expect("no panic").expect("prepares");
    }
    // Lost all at once, and asked for by many at once: each is brought back once.
    world.layers.lose_all();
    let asked = world.layers.state().asked.len();
    let again = (0..64).map(|n| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.snapshotter.mounts(&format!("c{}", n % 8)).await.map(drop) })
    });
    for done in futures_util::future::join_all(again).await {
        done.expect("no panic").expect("mounts");
    }
    assert_eq!(world.layers.state().asked.len(), asked + 8);
    assert_eq!(world.entries().len(), 264);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_for_many_is_shown_once() {
    let world = Arc::new(World::new());
    world.layers.close_gate();
    let all: Vec<_> = (0..50)
        .map(|n| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let labels = image_labels("registry/app:1", 1);
                let namespace = format!("ns{}", n % 3);
                world.snapshotter.prepare(Some(&namespace), &format!("k{n}"), "", labels).await
            })
        })
        .collect();
    world.layers.gate.add_permits(1);
    for done in futures_util::future::join_all(all).await {
        let error = done.expect("no panic").expect_err("is there");
        assert_eq!(code(&error), tonic::Code::AlreadyExists);
    }
    assert_eq!(world.layers.state().asked.len(), 1);
    assert_eq!(world.names().await, [chain_id(1)]);
}

/// A client hangs up in the middle: what began ends, nothing stays, and the next one succeeds.
#[tokio::test]
async fn a_request_that_is_dropped_leaves_nothing() {
    let world = World::new();
    world.layers.close_gate();
    let begun = {
        let mut request = Box::pin(world.layer(1, ""));
        while world.layers.owners().await.is_empty() {
            assert!(futures_util::poll!(&mut request).is_pending());
            tokio::task::yield_now().await;
        }
        world.layers.owners().await
    };
    world.snapshotter.cleanup().await.expect("cleans");
    assert_eq!(world.layers.state().released, begun);
    assert!(world.layers.owners().await.is_empty() && world.names().await.is_empty() && world.entries().is_empty());
    world.layers.gate.add_permits(1);
    world.layer(1, "").await.expect("is shown now");
}

/// The same at every point where a request waits: either the layer is stored and shown, or neither.
#[tokio::test]
async fn a_request_that_is_dropped_anywhere_leaves_nothing_half_made() {
    for steps in 1.. {
        let world = World::new();
        let mut request = Box::pin(world.layer(1, ""));
        let mut left = steps;
        let ended = std::future::poll_fn(|context| {
            left -= 1;
            match request.as_mut().poll(context) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending if left == 0 => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            }
        });
        let ended = ended.await;
        drop(request);
        // What was handed to another thread may still be at it; the next request for this chain waits for it.
        let name = world.layer(1, "").await.expect("is shown, or was");
        world.snapshotter.cleanup().await.expect("cleans");
        assert_eq!(world.names().await, [name]);
        assert_eq!((world.layers.owners().await.len(), world.entries().len()), (1, 1), "after {steps} steps");
        if ended {
            assert!(steps >= 3, "it waits for the database twice, at least");
            return;
        }
    }
}

#[tokio::test]
async fn removal_and_preparation_in_turn_do_not_touch_each_other() {
    let world = World::new();
    for _ in 0..20 {
        let base = world.layer(1, "").await.expect("shown");
        world.prepare("container", &base).await.expect("prepares");
        let error = world.snapshotter.remove(&base).await.expect_err("in use");
        assert_eq!(code(&error), tonic::Code::FailedPrecondition);
        world.snapshotter.remove("container").await.expect("removes");
        world.snapshotter.remove(&base).await.expect("removes");
    }
    let base = world.layer(1, "").await.expect("shown");
    world.snapshotter.cleanup().await.expect("cleans");
    let counts = {
        let state = world.layers.state();
        (state.shown.len(), state.released.len())
    };
    assert_eq!(counts, (1, 20));
    assert_eq!(world.entries().len(), 1);
    world.prepare("container", &base).await.expect("prepares");
}

/// A layer removed while it is being brought back is not shown for nobody afterwards.
#[tokio::test]
async fn a_layer_removed_while_it_comes_back_goes() {
    let world = World::new();
    let base = world.layer(1, "").await.expect("shown");
    world.layers.lose_all();
    world.layers.close_gate();
    let mut restore = Box::pin(world.snapshotter.restore());
    while world.layers.owners().await.is_empty() {
        assert!(futures_util::poll!(&mut restore).is_pending());
        tokio::task::yield_now().await;
    }
    world.snapshotter.remove(&base).await.expect("removes");
    world.layers.gate.add_permits(1);
    restore.await.expect("no error");
    world.snapshotter.cleanup().await.expect("cleans");
    assert!(world.layers.owners().await.is_empty() && world.entries().is_empty());
}

/// containerd collects garbage whenever it likes: what is being prepared at that moment is none.
#[tokio::test(flavor = "multi_thread")]
async fn cleaning_takes_nothing_that_is_being_made() {
    let world = Arc::new(World::new());
    let makers = (0..4).map(|maker| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            for n in 0..20 {
                let layer = maker * 100 + n;
                let name = world.layer(layer, "").await.expect("shown");
                let mounts = world.prepare(&format!("c{layer}"), &name).await.expect("prepares");
                let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
                assert!(Path::new(upper.expect("an upper directory")).is_dir());
            }
        })
    });
    let makers = tokio::spawn(futures_util::future::join_all(makers));
    while !makers.is_finished() {
        world.snapshotter.cleanup().await.expect("cleans");
    }
    for done in makers.await.expect("no panic") {
        done.expect("no panic");
    }
    world.snapshotter.cleanup().await.expect("cleans");
    assert_eq!((world.entries().len(), world.layers.owners().await.len()), (160, 80));
    assert!(world.layers.state().released.is_empty());
}
