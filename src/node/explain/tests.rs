//! What is found by which name, without a daemon.

use std::collections::BTreeMap;

use super::container::image_of;
use super::*;
use crate::containerd::Container;
use crate::node::protocol::{LayerStatus, LeftLayer, MountAccount, MountReport, MountedLayer, Reason};
use crate::snapshot::Labels;

fn digest(n: u32) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn way(reason: Reason) -> LayerWay {
    let origin = if reason == Reason::Indexed { "v1" } else { "streamed" };
    LayerWay {
        origin: origin.to_owned(),
        index: Some(digest(99)),
        ztoc: digest(98),
        because: Because::new(reason, "because"),
    }
}

fn served(layer: Digest) -> LayerAccount {
    let status = LayerStatus {
        digest: layer,
        device: "/dev/ublkb0".into(),
        frontend: "ublk".to_owned(),
        used_by: 1,
        blob_bytes: 10,
        layer_bytes: 20,
        present_bytes: 5,
        fetched_bytes: 5,
        requests: 1,
        retries: 0,
        spans: 4,
        present_spans: 1,
        slices: 0,
        contradicted: false,
        background_spans: 0,
        waits: 0,
        waited_ms: 0,
        proven: false,
        waiting_readers: 0,
        oldest_wait_ms: 0,
        failed_reads: 0,
        last_error: None,
        load_order: None,
    };
    LayerAccount { status, ztoc: digest(98), slowest: Vec::new(), waiting: Vec::new() }
}

fn held(place: usize, owner: &str, shown: u32, reason: Reason) -> HeldLayer {
    HeldLayer {
        owner: owner.to_owned(),
        layer: format!("l{shown}"),
        digest: digest(shown),
        image: "localhost:5000/app:1".to_owned(),
        manifest: format!("localhost:5000/app@{}", digest(50)),
        place,
        way: Some(way(reason)),
    }
}

/// An image of three layers for containerd, of which the second is left to it and the third is not shown now; and a mount.
fn account() -> Account {
    let report = MountReport {
        image: "localhost:5000/other:2".to_owned(),
        manifest: digest(60),
        dir: "/mnt/other".into(),
        frontend: "ublk".to_owned(),
        frontend_reason: String::new(),
        writable: false,
        layers: vec![MountedLayer {
            digest: digest(1),
            blob_bytes: 10,
            index: "v1".to_owned(),
            way: Some(way(Reason::Indexed)),
        }],
        discovery: Vec::new(),
        elapsed_ms: 1,
        mounted_at_ms: 1,
    };
    let left = LeftLayer {
        chain_id: "sha256:second".to_owned(),
        digest: Some(digest(2)),
        image: Some("localhost:5000/app:1".to_owned()),
        because: Because::new(Reason::NoIndex, "none anywhere"),
        at_ms: 1,
    };
    Account {
        mounts: vec![MountAccount { report, layers: vec!["l1".to_owned()] }],
        layers: BTreeMap::from([("l1".to_owned(), served(digest(1)))]),
        held: vec![
            held(2, "sha256:third/b-0", 3, Reason::Small),
            held(0, "sha256:first/a-0", 1, Reason::Indexed),
            held(0, "sha256:first/a-1", 1, Reason::Indexed),
        ],
        left: vec![left],
    }
}

fn told(explained: &Explained) -> Vec<(Option<Digest>, State, Option<&'static str>)> {
    let reason = |layer: &ExplainedLayer| layer.because.as_ref().map(|because| because.reason.word());
    explained.layers.iter().map(|layer| (layer.digest, layer.state, reason(layer))).collect()
}

#[test]
fn images_and_mounts_are_found_by_all_their_names() {
    let account = account();
    for name in ["localhost:5000/app:1", &format!("localhost:5000/app@{}", digest(50)), &digest(50).to_string()] {
        let found = here(&account, name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((found.kind, found.image), ("image", Some(account.held[0].manifest.clone())));
    }
    let found = here(&account, "localhost:5000/app:1").expect("found");
    let want = [
        (Some(digest(1)), State::Lazy, Some("indexed")),
        (Some(digest(3)), State::Away, Some("small")),
        (Some(digest(2)), State::Containerd, Some("no-index")),
    ];
    assert_eq!(told(&found), want);
    assert_eq!(found.layers[0].index, Some(digest(99)));
    for (name, kind) in
        [("/mnt/other", "mount"), ("localhost:5000/other:2", "image"), (&*digest(60).to_string(), "image")]
    {
        let found = here(&account, name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((found.kind, told(&found)), (kind, vec![want[0]]));
    }
    for name in ["", "/mnt", "app", "localhost:5000/app", "reader"] {
        assert!(here(&account, name).is_none(), "{name}");
    }
}

#[test]
fn a_snapshot_is_matched_by_its_chain_and_its_layer() {
    let account = account();
    let snapshot = |name: &str, layer: Option<u32>| Snapshot {
        name: name.to_owned(),
        parent: String::new(),
        committed: true,
        labels: layer.map(|n| (labels::LAYER_DIGEST.to_owned(), digest(n).to_string())).into_iter().collect::<Labels>(),
    };
    let told = |snapshot| {
        let layer = of_snapshot(&account, &snapshot);
        (layer.state, layer.because.map(|because| because.reason), layer.digest)
    };
    let lazy = (State::Lazy, Some(Reason::Indexed), Some(digest(1)));
    assert_eq!(told(snapshot("sha256:first", Some(1))), lazy);
    assert_eq!(told(snapshot("sha256:first", None)), lazy);
    assert_eq!(told(snapshot("sha256:first", Some(7))), (State::Containerd, None, Some(digest(7))));
    let left = (State::Containerd, Some(Reason::NoIndex), Some(digest(2)));
    assert_eq!(told(snapshot("sha256:second", None)), left);
    assert_eq!(told(snapshot("sha256:unknown", None)), (State::Containerd, None, None));
}

#[test]
fn a_container_is_recorded_by_the_image_that_holds_its_layers() {
    let mut account = account();
    let other = HeldLayer {
        image: "localhost:5000/other:1".to_owned(),
        manifest: format!("localhost:5000/other@{}", digest(51)),
        ..held(0, "sha256:first/a-2", 1, Reason::Indexed)
    };
    account.held.insert(0, other);
    let snapshot = |name: &str| Snapshot {
        name: name.to_owned(),
        parent: String::new(),
        committed: true,
        labels: Labels::default(),
    };
    let container = |image: &str| Container {
        id: "c".to_owned(),
        image: image.to_owned(),
        snapshotter: "sociblk".to_owned(),
        snapshot_key: "c".to_owned(),
    };
    let app = "localhost:5000/app:1";
    let first = ["sha256:first"];
    let all = ["sha256:first", "sha256:second", "sha256:third"];
    for (image, chain, want) in [
        (app, &first[..], Some(app)),
        ("localhost:5000/other:1", &all[..], Some("localhost:5000/other:1")),
        // Of an image that holds nothing itself: whoever holds the topmost layer.
        ("localhost:5000/third:1", &all[..], Some(app)),
        ("", &first[..], Some("localhost:5000/other:1")),
        (app, &["sha256:second"][..], None),
        (app, &[][..], None),
    ] {
        let layers: Vec<Snapshot> = chain.iter().map(|name| snapshot(name)).collect();
        let found = image_of(&account, &container(image), &layers).map(|held| held.image.as_str());
        assert_eq!(found, want, "{image} {chain:?}");
    }
}
