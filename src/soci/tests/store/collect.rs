use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;

/// One step; indexes and zTOCs are small numbers.
#[derive(Clone, Debug)]
enum Op {
    /// An index of an image: made here, or named by a registry.
    Put { image: u8, ztocs: BTreeSet<u8>, made_here: bool },
    /// A zTOC is built of its layer.
    Record { ztoc: u8 },
    /// A blob that nobody refers to.
    Stray { ztoc: u8 },
    /// The `nth` index is removed.
    Remove { nth: usize },
    /// What nobody needs is removed.
    Sweep,
}

/// This zTOC is used by a mount.
const MOUNTED: u8 = 4;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let ztocs = || prop::collection::btree_set(0..5_u8, 1..4);
    let op = prop_oneof![
        4 => (0..3_u8, ztocs(), any::<bool>()).prop_map(|(image, ztocs, made_here)| Op::Put { image, ztocs, made_here }),
        1 => (0..5_u8).prop_map(|ztoc| Op::Record { ztoc }),
        1 => (0..5_u8).prop_map(|ztoc| Op::Stray { ztoc }),
        3 => (0..8_usize).prop_map(|nth| Op::Remove { nth }),
        1 => Just(Op::Sweep),
    ];
    prop::collection::vec(op, 1..16)
}

/// What must be where, worked out the slow way.
#[derive(Default)]
struct Model {
    /// zTOCs of each index, and whether it was made here.
    indexes: BTreeMap<Digest, (BTreeSet<u8>, bool)>,
    blobs: BTreeSet<u8>,
    recorded: BTreeSet<u8>,
    leased: BTreeSet<u8>,
}

impl Model {
    fn listed(&self, ztoc: u8) -> bool {
        self.indexes.values().any(|(ztocs, _)| ztocs.contains(&ztoc))
    }

    fn drop_unneeded(&mut self, candidates: &BTreeSet<u8>) {
        for ztoc in candidates {
            if !self.listed(*ztoc) && !self.leased.contains(ztoc) && *ztoc != MOUNTED {
                self.blobs.remove(ztoc);
                self.recorded.remove(ztoc);
            }
        }
    }

    fn remove(&mut self, index: &Digest) {
        let (ztocs, _) = self.indexes.remove(index).expect("an index of the model");
        self.drop_unneeded(&ztocs);
    }

    fn sweep(&mut self) {
        let cached = |(ztocs, made_here): &(BTreeSet<u8>, bool)| !made_here && !ztocs.contains(&MOUNTED);
        let go: Vec<Digest> = self.indexes.iter().filter(|(_, index)| cached(index)).map(|(d, _)| *d).collect();
        go.iter().for_each(|index| self.remove(index));
        let all = self.blobs.clone();
        self.drop_unneeded(&all);
    }
}

fn bytes_of(ztoc: u8) -> Vec<u8> {
    vec![ztoc; 100 + usize::from(ztoc)]
}

/// Manifest and index digests, zTOCs with their layers.
type Listing = (BTreeSet<(Digest, Option<Digest>)>, BTreeSet<(Digest, Digest, bool)>);

fn listing(store: &Store) -> Listing {
    let indexes = store.indexes(&IndexFilter::default()).expect("listed");
    let indexes = indexes.iter().map(|r| (r.digest, r.image.as_ref().map(|i| i.manifest))).collect();
    let ztocs = store.ztocs(None, None).expect("listed");
    (indexes, ztocs.iter().map(|z| (z.digest, z.layer, z.built_here)).collect())
}

fn run(ops: &[Op]) {
    let (dir, store) = open();
    let mut model = Model::default();
    let in_use = HashSet::from([Digest::of(&bytes_of(MOUNTED))]);
    for op in ops {
        match op {
            Op::Put { image, ztocs, made_here } => {
                let documents: Vec<Vec<u8>> = ztocs.iter().map(|z| bytes_of(*z)).collect();
                let parts: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
                let bytes = index_of(&store, &[*image], &parts);
                let location = if *made_here { "" } else { "registry.example/app" };
                let digest = store.put_index_of(&NewIndex { bytes: &bytes, image: None, location }).expect("stored");
                let known = model.indexes.entry(digest).or_insert((ztocs.clone(), *made_here));
                known.1 |= made_here;
                model.blobs.extend(ztocs);
                model.leased.retain(|ztoc| !ztocs.contains(ztoc));
            }
            Op::Record { ztoc } => {
                let bytes = bytes_of(*ztoc);
                let (digest, size) = (store.put(&bytes).expect("stored"), BlobOffset::new(bytes.len() as u64));
                let record = RecordedZtoc { digest, size, span_size_bytes: Some(7) };
                store.record_ztoc(&layer_of(&bytes), &record).expect("recorded");
                model.blobs.insert(*ztoc);
                model.recorded.insert(*ztoc);
                model.leased.insert(*ztoc);
            }
            Op::Stray { ztoc } => {
                store.put(&bytes_of(*ztoc)).expect("stored");
                model.blobs.insert(*ztoc);
            }
            Op::Remove { nth } => {
                let Some(index) = model.indexes.keys().nth(*nth).copied() else { continue };
                model.remove(&index);
                store.remove_indexes(&[index], &in_use).expect("removed");
            }
            Op::Sweep => {
                model.sweep();
                store.sweep(SystemTime::now() + Duration::from_secs(60), &in_use).expect("swept");
            }
        }
        let there: BTreeSet<Digest> = store.inner.layout.blobs().expect("listed").into_iter().collect();
        let blobs = model.blobs.iter().map(|z| Digest::of(&bytes_of(*z)));
        let expected: BTreeSet<Digest> = blobs.chain(model.indexes.keys().copied()).collect();
        assert_eq!(there, expected, "after {op:?}");
        let (indexes, ztocs) = listing(&store);
        assert_eq!(indexes.iter().map(|(d, _)| *d).collect::<BTreeSet<_>>(), model.indexes.keys().copied().collect());
        let shown = model.blobs.iter().filter(|z| model.listed(**z) || model.recorded.contains(z));
        let shown: BTreeSet<Digest> = shown.map(|z| Digest::of(&bytes_of(*z))).collect();
        assert_eq!(ztocs.iter().map(|(d, ..)| *d).collect::<BTreeSet<_>>(), shown, "after {op:?}");
    }
    let before = listing(&store);
    let rebuilt = store.rebuild().expect("rebuilt");
    assert_eq!((listing(&store), rebuilt.dropped), (before.clone(), 0), "the files say all");
    fs::remove_file(dir.path().join("store.db")).expect("removed");
    assert_eq!(listing(&store), before, "a database that vanishes under an open store is made anew");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_removed_is_what_nobody_needs(ops in ops()) {
        run(&ops);
    }
}

#[test]
fn removing_names_what_it_does_not_find_and_frees_what_it_says() {
    let (_dir, store) = open();
    let index = store.put_index(V1_TYPE, &index_of(&store, b"image", &[b"one", b"two"])).expect("stored");
    let other = store.put_index(V1_TYPE, &index_of(&store, b"other", &[b"two"])).expect("stored");
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let none = HashSet::new();
    for wrong in [Digest::of(b"nothing"), one] {
        let error = store.remove_indexes(&[index, wrong], &none).expect_err("no index");
        assert!(matches!(error, SociError::NotInStore { digest, .. } if digest == wrong), "{error}");
    }
    let size = store.read(&index).expect("still there").len() as u64;
    let removed = store.remove_indexes(&[index, index], &none).expect("removed");
    assert_eq!(removed, Removed { indexes: vec![index], blobs: vec![one], freed_bytes: size + 3 });
    assert_eq!(store.kind_of(&two).expect("asked"), Some(ArtifactKind::Ztoc), "another index lists it");
    store.remove_indexes(&[other], &HashSet::from([two])).expect("removed");
    assert!(store.contains(&two, BlobOffset::new(3)), "a mount uses it");
}

#[test]
fn an_index_of_two_images_stays_for_the_other() {
    let (dir, store) = open();
    let bytes = index_of(&store, b"image", &[b"ztoc"]);
    let image = |manifest: &[u8], name: &str| IndexedImage {
        manifest: Digest::of(manifest),
        image_ref: Some(name.to_owned()),
        platform: Some(crate::registry::Platform::new("linux", "arm", "v6")),
        set_by: SetBy::Create,
    };
    let put = |image: IndexedImage| {
        store.put_index_of(&NewIndex { bytes: &bytes, image: Some(image), location: "" }).expect("stored")
    };
    let digest = put(image(b"1", "r.example/a:1"));
    assert_eq!(put(image(b"2", "r.example/b:1")), digest);
    let named = |name: &str| {
        let filter = IndexFilter { image_ref: Some(name.to_owned()), ..IndexFilter::default() };
        store.indexes(&filter).expect("listed").len()
    };
    assert_eq!((named("r.example/a:1"), named("r.example/b:1"), named("r.example/c:1")), (1, 1, 0));
    assert_eq!(store.ztocs(None, Some("r.example/b:1")).expect("listed").len(), 1);
    assert!(store.remove_ref("r.example/a:1", &HashSet::new()).expect("removed").indexes.is_empty());
    assert_eq!((named("r.example/a:1"), named("r.example/b:1")), (0, 1));
    store.rebuild().expect("rebuilt");
    assert_eq!((named("r.example/a:1"), named("r.example/b:1")), (0, 1));
    let platform = store.indexes(&IndexFilter::default()).expect("listed")[0].image.clone().and_then(|i| i.platform);
    assert_eq!(platform.map(|p| p.to_string()).as_deref(), Some("linux/arm/v6"));
    assert_eq!(store.remove_ref("r.example/b:1", &HashSet::new()).expect("removed").indexes, [digest]);
    assert!(listed(dir.path()).is_empty());
}

#[test]
fn images_of_others_in_the_layout_are_not_swept() {
    let (dir, store) = open();
    let layer = store.put(b"a layer").expect("stored");
    let config = store.put(b"{\"os\":\"linux\"}").expect("stored");
    let descriptor = |media_type: &str, digest: Digest, size: usize| json!({"mediaType": media_type, "digest": digest, "size": size});
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, config, 14), "layers": [descriptor("x", layer, 7)]});
    let manifest = store.put(manifest.to_string().as_bytes()).expect("stored");
    let stray = store.put(b"nobody's").expect("stored");
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(media_type::OCI_MANIFEST, manifest, 1)]});
    fs::write(dir.path().join("content/index.json"), index.to_string()).expect("written");
    let young = store.sweep(SystemTime::now() - Duration::from_secs(60), &HashSet::new()).expect("swept");
    assert_eq!(young, Removed::default(), "what is young may be on its way into an index");
    let removed = store.sweep(SystemTime::now() + Duration::from_secs(60), &HashSet::new()).expect("swept");
    assert_eq!(removed.blobs, [stray]);
    assert_eq!(listed(dir.path()).len(), 1);
}

#[test]
fn a_ztoc_to_be_used_again_survives_the_removal_of_its_index() {
    let (_dir, store) = open();
    let layer = layer_of(b"ztoc");
    let index = index_of(&store, b"image", &[b"ztoc"]);
    let (digest, size) = (Digest::of(b"ztoc"), BlobOffset::new(4));
    let record = RecordedZtoc { digest, size, span_size_bytes: Some(1 << 22) };
    store.record_ztoc(&layer, &record).expect("recorded");
    let first = store.put_index(V1_TYPE, &index).expect("stored");
    assert_eq!(store.reuse_ztoc(&layer, 1 << 20).expect("asked"), None, "another span size");
    assert_eq!(store.reuse_ztoc(&layer, 1 << 22).expect("asked"), Some(record));
    assert!(store.remove_indexes(&[first], &HashSet::new()).expect("removed").blobs.is_empty());
    let second = store.put_index(V1_TYPE, &index).expect("the zTOC is still there");
    assert_eq!(store.remove_indexes(&[second], &HashSet::new()).expect("removed").blobs, [digest]);
    assert_eq!(store.ztoc_for(&layer).expect("asked"), None);
}

#[test]
fn mappings_of_the_user_come_first_and_outlive_the_database() {
    let (_dir, store) = open();
    let manifest = Digest::of(b"image");
    let old = store.put_index(V1_TYPE, &index_of(&store, b"image", &[b"one"])).expect("stored");
    let new = store.put_index(V1_TYPE, &index_of(&store, b"image", &[b"one", b"two"])).expect("stored");
    let order = || -> Vec<Digest> { store.indexes_of(&manifest).expect("asked").iter().map(|r| r.digest).collect() };
    assert_eq!(order(), [new, old], "the last one first");
    let image = IndexedImage { manifest, image_ref: None, platform: None, set_by: SetBy::User };
    store.map_image(&image, &old).expect("mapped");
    assert_eq!(order().first(), Some(&old));
    store.rebuild().expect("rebuilt");
    assert_eq!(order().first(), Some(&old));
    store.map_image(&image, &new).expect("mapped");
    assert_eq!(order().first(), Some(&new));
    assert!(store.unmap_image(&manifest).expect("unmapped") && !store.unmap_image(&manifest).expect("none"));
    let error = store.map_image(&image, &Digest::of(b"one")).expect_err("a zTOC");
    assert!(matches!(error, SociError::NotInStore { .. }), "{error}");
}
