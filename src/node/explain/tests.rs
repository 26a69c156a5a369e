//! What is found by which name, without a daemon.

use std::collections::BTreeMap;

use super::container::{image_of, notes};
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

/// Container `c` of `image`, which means `means`, on a chain of snapshots.
fn stack(image: &str, means: Option<Digest>, chain: &[&str]) -> Stack {
    let snapshot = |name: &&str| Snapshot {
        name: (*name).to_owned(),
        parent: String::new(),
        committed: true,
        labels: Labels::default(),
    };
    let container = Container {
        id: "c".to_owned(),
        image: image.to_owned(),
        snapshotter: "sociblk".to_owned(),
        snapshot_key: "c".to_owned(),
    };
    Stack { container, means, layers: chain.iter().map(snapshot).collect(), ours: true }
}

#[test]
fn a_recording_of_a_container_tells_what_it_lacks() {
    let mut account = account();
    let other = HeldLayer {
        image: "localhost:5000/other:1".to_owned(),
        manifest: format!("localhost:5000/other@{}", digest(51)),
        ..held(0, "sha256:base/a-2", 4, Reason::Indexed)
    };
    account.held.push(other);
    account.layers.insert("l4".to_owned(), served(digest(4)));
    let told = |image: &str, means: Option<Digest>, chain: &[&str]| {
        let stack = stack(image, means, chain);
        let recorded = image_of(&account, &stack).expect("something is shown");
        notes(&account, &stack, recorded)
    };
    let app = "localhost:5000/app:1";
    let none: [String; 0] = [];
    assert_eq!(told(app, None, &["sha256:first"]), none);
    assert_eq!(
        told("localhost:5000/app:again", Some(digest(50)), &["sha256:first"]),
        none,
        "another name of the image"
    );
    assert_eq!(
        told(app, None, &["sha256:base", "sha256:first", "sha256:second", "sha256:unknown", "sha256:third"]),
        ["of the 5 layers of container c the recording lacks: 2 containerd has unpacked, where sociblk does not see \
             what is read; 1 belong to the recording of localhost:5000/other:1; 1 sociblk does not show at the moment; \
             `sociblk explain c` lists them"]
    );
    let another = told("localhost:5000/third:1", Some(digest(52)), &["sha256:first", "sha256:second"]);
    assert_eq!(
        another,
        [
            "container c is of image localhost:5000/third:1; its layers are shown for localhost:5000/app:1: the load order \
             is that one's, of all its containers, and a start of another image does not follow it",
            "of the 2 layers of container c the recording lacks: 1 containerd has unpacked, where sociblk does not see \
             what is read; `sociblk explain c` lists them"
        ]
    );
    assert!(told("", None, &["sha256:first"])[0].starts_with("container c is of no image that containerd names; "));
}

#[test]
fn without_containerd_a_bare_name_is_told_what_was_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = Paths::new(dir.path().join("root"));
    let socket = dir.path().join("containerd.sock");
    for (target, hint) in [
        (
            "other",
            "called other or docker.io/library/other:latest (name an image in full: localhost:5000/other:2), and",
        ),
        ("python", "called python or docker.io/library/python:latest (`sociblk ls` shows what there is; name an image"),
        ("No_Image", "called No_Image (`sociblk ls` shows"),
    ] {
        let containerd = Address::new(&socket, "default").expect("an address");
        let options = ExplainOptions { target: target.to_owned(), containerd };
        let Err(error) = waited_for(find(&account(), &paths, &options)) else { panic!("{target} is found") };
        let text = one_line(&error);
        let start = format!("sociblk shows no image and no mount {hint}");
        assert!(text.starts_with(&start), "{text}");
        for words in ["containerd, which might have a container of that name", "--containerd-address", "is it running?"]
        {
            assert!(text.contains(words), "{text}");
        }
    }
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
        let stack = stack(image, None, chain);
        let found = image_of(&account, &stack).map(|held| held.image.as_str());
        assert_eq!(found, want, "{image} {chain:?}");
    }
    // The same image by another name, and the image by its manifest.
    let again = stack("localhost:5000/app:again", Some(digest(50)), &first);
    assert_eq!(image_of(&account, &again).map(|held| held.image.as_str()), Some(app));
    let by_manifest = stack(&format!("localhost:5000/app@{}", digest(50)), None, &first);
    assert_eq!(image_of(&account, &by_manifest).map(|held| held.image.as_str()), Some(app));
}
