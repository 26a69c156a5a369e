//! `create` and `push`.

use sociblk::node::push::{ExistingIndex, PushEvent};
use sociblk::registry::fallback_tag;
use sociblk::soci::{SociIndex, V1_TYPE};
use sociblk::testkit::registry::Fault;
use sociblk::units::Digest;

use crate::support::{World, layer, words};

#[test]
fn an_index_is_made_pushed_and_found_with_and_without_the_referrers_endpoint() {
    for api in [true, false] {
        let world = World::new();
        world.registry.strict("app");
        world.registry.referrers_api(api);
        let created = world.create(&world.create_options("app:1")).expect("created");
        let index = created.images[0].index.expect("an index");
        assert_eq!(created.images[0].layers.iter().filter(|layer| layer.ztoc.is_some()).count(), 3);
        assert_eq!(world.registry.manifest_names("app").len(), 2, "nothing was pushed");

        let told = world.push("app:1", ExistingIndex::Warn).expect("pushed");
        assert!(told.contains(&PushEvent::Checking) && told.contains(&PushEvent::Pushing(index)));
        assert!(!told.iter().any(|event| matches!(event, PushEvent::Found { .. })));
        let document = world.json("app", &index.to_string());
        assert_eq!(document["subject"]["digest"], world.manifest.to_string());
        assert_eq!(document["config"]["mediaType"], V1_TYPE);
        assert_eq!(world.registry.manifest("app", &fallback_tag(&world.manifest)).is_some(), !api);
        if !api {
            let list = world.json("app", &fallback_tag(&world.manifest));
            assert_eq!(list["manifests"][0]["digest"], index.to_string());
        }

        // The order: blobs, the manifest, the tag.
        let puts: Vec<String> =
            world.registry.requests().into_iter().filter(|r| r.method == "PUT").map(|r| r.path).collect();
        let first_manifest = puts.iter().position(|path| path.contains("/manifests/")).expect("one");
        assert!(puts[first_manifest..].iter().all(|path| path.contains("/manifests/")), "{puts:?}");

        let told = world.push("app:1", ExistingIndex::Skip).expect("nothing to do");
        assert!(told.contains(&PushEvent::Found { indexes: vec![index], skipped: Some(world.manifest) }));
        assert!(!told.contains(&PushEvent::Pushing(index)));
        let told = world.push("app:1", ExistingIndex::Warn).expect("again");
        assert!(told.contains(&PushEvent::Found { indexes: vec![index], skipped: None }));
        let told = world.push("app:1", ExistingIndex::Allow).expect("again");
        assert!(!told.contains(&PushEvent::Checking));
    }
}

#[test]
fn each_layer_is_read_once_and_not_at_all_when_its_ztoc_is_known() {
    let world = World::new();
    // The tag is asked for once; whatever it means later is of no interest.
    world.registry.fail(Fault::Status { code: 404, retry_after: None }).on("/manifests/1").after(1).times(9);
    let mut options = world.create_options("app:1");
    let first = world.create(&options).expect("created");
    assert_eq!(world.layer_reads(), 1.0);
    world.registry.heal();
    let again = world.create(&options).expect("created");
    assert_eq!((world.layer_reads(), again.images[0].index), (1.0, first.images[0].index));
    assert!(again.images[0].layers.iter().all(|layer| layer.reused));
    options.index.force = true;
    let forced = world.create(&options).expect("created");
    assert_eq!((world.layer_reads(), forced.images[0].index), (2.0, first.images[0].index));
    // Another span size is another zTOC.
    options.index.force = false;
    options.index.span_size_bytes = 1 << 20;
    let other = world.create(&options).expect("created");
    assert_eq!(world.layer_reads(), 3.0);
    assert_ne!(other.images[0].index, first.images[0].index);
    let left = std::fs::read_dir(world.store().scratch_dir()).expect("readable").count();
    assert_eq!(left, 0, "nothing temporary stays");
}

#[test]
fn platforms_are_chosen_and_share_layers() {
    let world = World::new();
    let (amd, arm) = world.put_multi();
    let mut options = world.create_options("multi:1");
    options.index.platforms.named.clear();
    options.index.platforms.all = true;
    let created = world.create(&options).expect("created");
    let manifests: Vec<Digest> = created.images.iter().map(|image| image.manifest).collect();
    assert_eq!(manifests, [amd, arm]);
    assert_eq!(world.layer_reads(), 1.0, "the shared layer was read once");
    options.index.platforms.all = false;
    options.index.platforms.named = vec!["linux/arm64".to_owned()];
    let created = world.create(&options).expect("created");
    assert_eq!(created.images[0].manifest, arm);
    options.index.platforms.named = vec!["linux/s390x".to_owned()];
    let error = words(&world.create(&options).expect_err("no such platform"));
    assert!(error.contains("no image for linux/s390x") && error.contains("linux/amd64, linux/arm64"), "{error}");
}

#[test]
fn load_orders_and_layers_without_xattrs_are_noted() {
    let world = World::new();
    let mut options = world.create_options("app:1");
    options.index.optimize_xattrs = true;
    options.index.prefetch_files = ["/bin/b", "lib/c", "bin/./a", "no/such"].map(str::to_owned).into();
    for _ in 0..2 {
        // The second time from zTOCs that the store has.
        let created = world.create(&options).expect("created");
        let image = &created.images[0];
        assert_eq!(image.missing_files, ["no/such"]);
        let index = world.store().read(&image.index.expect("an index")).expect("stored");
        let index = SociIndex::parse(&index).expect("an index");
        assert!(index.ztocs.iter().all(|ztoc| ztoc.disable_xattrs));
        // `bin/b` counts in the topmost layer that has it.
        let layers: Vec<Digest> = index.prefetch.iter().map(|entry| entry.layer_digest).collect();
        assert_eq!(layers, world.layers.iter().map(|(blob, _)| Digest::of(blob)).collect::<Vec<_>>());
        let spans = &image.prefetch[0].spans;
        assert_eq!((spans.len(), spans[0].start_span), (1, 0), "the file bin/a of the lowest layer");
        let text = String::from_utf8(world.store().read(&index.prefetch[1].digest).expect("stored")).expect("text");
        assert!(text.starts_with(r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":"#), "{text}");
    }
}

#[test]
fn layers_that_cannot_be_indexed_are_left_out_with_a_word() {
    let world = World::new();
    let small = layer(9, &[("x", 10)]);
    let large = layer(8, &[("y", 600_000)]);
    world.registry.put_image("mixed", "1", &[(&small.0, small.1), (&large.0, large.1)]);
    let mut options = world.create_options("mixed:1");
    options.index.min_layer_bytes = 10_000;
    let created = world.create(&options).expect("created");
    let [first, second] = created.images[0].layers.as_slice() else { panic!("two layers") };
    assert_eq!(first.reason, format!("size {} is less than min-layer-size 10000", small.0.len()));
    assert!(second.ztoc.is_some());

    // All of them: no index, nothing stored, an error with the reasons.
    options.index.min_layer_bytes = 1 << 30;
    let error = words(&world.create(&options).expect_err("nothing to index"));
    assert!(error.contains("no ztocs created, all layers either skipped or produced errors"), "{error}");
    assert!(error.contains("less than min-layer-size"), "{error}");

    // What a zTOC cannot describe: other compressions, sparse files.
    let mut sparse = tar::Header::new_gnu();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_path("holes").expect("short");
    sparse.set_size(0);
    sparse.set_cksum();
    let sparse_tar = [sparse.as_bytes().as_slice(), &[0; 1024]].concat();
    for (blob, want) in [
        (b"\xfd7zXZ\0 and so on".to_vec(), "cannot be indexed: unsupported compression xz"),
        (sparse_tar.clone(), "is a GNU sparse file"),
    ] {
        world.registry.put_image("mixed", "2", &[(&blob, Digest::of(&blob)), (&large.0, large.1)]);
        let created = world.create(&world.create_options("mixed:2")).expect("created");
        let [first, second] = created.images[0].layers.as_slice() else { panic!("two layers") };
        assert!(first.reason.contains(want), "{}", first.reason);
        assert!(second.ztoc.is_some(), "the other layer is indexed all the same");
    }
}

#[test]
fn pax_global_headers_do_not_end_an_index() {
    let world = World::new();
    let record = b"18 comment=abcdef\n";
    let mut global = tar::Header::new_ustar();
    global.set_entry_type(tar::EntryType::XGlobalHeader);
    global.set_path("pax_global_header").expect("short");
    global.set_size(record.len() as u64);
    global.set_cksum();
    let mut tar = [global.as_bytes().as_slice(), record].concat();
    tar.resize(1024, 0);
    let mut file = tar::Header::new_ustar();
    file.set_path("file").expect("short");
    file.set_size(0);
    file.set_cksum();
    tar.extend_from_slice(file.as_bytes());
    tar.resize(tar.len() + 1024, 0);
    world.registry.put_image("git", "1", &[(&tar, Digest::of(&tar))]);
    let created = world.create(&world.create_options("git:1")).expect("created");
    let ztoc = world.store().read(&created.images[0].layers[0].ztoc.expect("built")).expect("stored");
    let entries: Vec<_> = sociblk::spans::ztoc::Ztoc::parse(&ztoc)
        .expect("sound")
        .entries()
        .map(|e| e.expect("sound").name.to_vec())
        .collect();
    assert_eq!(entries, [b"file".to_vec()]);
}
