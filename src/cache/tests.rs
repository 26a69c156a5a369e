//! Layer files on a real file system.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobOffset, BlobRange, LayerOffset, LayerRange, SLICE_BYTES, SliceId};

/// A layer of 10 spans of 64 KiB and one shorter last span, each byte telling its position.
const SPAN_BYTES: u64 = 64 * 1024;
const SPANS: u32 = 11;
const LAYER_BYTES: u64 = 10 * SPAN_BYTES + 1000;

fn tar() -> Vec<u8> {
    (0..LAYER_BYTES).map(|i| u8::try_from((i / 7 + i / 4096) % 251).expect("small")).collect()
}

fn table(span_bytes: u64) -> Arc<SpanTable> {
    let tar = tar();
    let mut spans = Vec::new();
    let mut at = 0;
    while at < LAYER_BYTES {
        let len = span_bytes.min(LAYER_BYTES - at);
        let bytes = &tar[usize::try_from(at).expect("small")..usize::try_from(at + len).expect("small")];
        spans.push(Span {
            blob: BlobRange::from_len(BlobOffset::new(at), len).expect("small"),
            layer: LayerRange::from_len(LayerOffset::new(at), len).expect("small"),
            bits: 0,
            digest: Digest::of(bytes),
            window_at: None,
        });
        at += len;
    }
    let (blob, layer) = (BlobOffset::new(LAYER_BYTES), LayerOffset::new(LAYER_BYTES));
    Arc::new(SpanTable::new(Compression::Uncompressed, blob, layer, spans).expect("a good table"))
}

fn bytes_of(table: &SpanTable, id: u32) -> Vec<u8> {
    let range = table.get(SpanId(id)).expect("in range").layer;
    let (start, end) = (range.start().get(), range.end().get());
    tar()[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")].to_vec()
}

fn blob() -> Digest {
    Digest::of(b"blob")
}

/// Nothing is flushed unless a test says so, and everything may be evicted.
fn quiet() -> CacheConfig {
    CacheConfig { flush_after: Duration::from_secs(3600), min_idle: Duration::ZERO, ..CacheConfig::default() }
}

fn fill(file: &Arc<LayerFile>, ids: std::ops::Range<u32>) {
    for id in ids {
        file.write_span(SpanId(id), &bytes_of(file.table(), id)).expect("written");
    }
}

fn present(file: &LayerFile) -> Vec<u32> {
    (0..SPANS).filter(|id| file.has(SpanId(*id))).collect()
}

fn disk_bytes(file: &LayerFile) -> u64 {
    std::fs::metadata(file.path()).expect("stat").blocks() * 512
}

/// What the kernel would do to the folder at a power cut is not in our hands here; copying it at any moment shows at
/// least every order that we ourselves chose.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
    }
}

#[test]
fn written_spans_survive_only_when_recorded() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    fill(&file, 2..5);
    assert!(file.has_all(2..5) && !file.has(SpanId(5)) && !file.has(SpanId(99)));
    assert_eq!(file.missing(0..6), [SpanId(0), SpanId(1), SpanId(5)]);
    assert_eq!((file.present_spans(), file.present_bytes()), (3, 3 * SPAN_BYTES));

    let crashed = tempfile::tempdir().expect("tempdir");
    let folder = |root: &Path| root.join("layers").join(blob().hex());
    copy_folder(&folder(root.path()), &folder(crashed.path()));
    let after = Cache::open(crashed.path(), quiet()).expect("open");
    assert_eq!(present(&after.layer(blob(), table(SPAN_BYTES)).expect("layer")), [0; 0]);
    drop(after);

    file.flush().expect("flush");
    fill(&file, 7..8);
    copy_folder(&folder(root.path()), &folder(crashed.path()));
    let after = Cache::open(crashed.path(), quiet()).expect("open");
    assert_eq!(present(&after.layer(blob(), table(SPAN_BYTES)).expect("layer")), [2, 3, 4]);
}

#[test]
fn closing_the_cache_records_everything_and_one_digest_is_one_file() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let again = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    assert!(Arc::ptr_eq(&file, &again));
    fill(&file, 0..SPANS);
    drop((file, again, cache));
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    assert!(file.is_complete());
    let mut read = vec![0; usize::try_from(LAYER_BYTES).expect("small")];
    std::fs::File::open(file.path()).and_then(|f| f.read_exact_at(&mut read, 0)).expect("read");
    assert_eq!(read, tar());
}

#[test]
fn a_damaged_record_costs_spans_and_never_invents_one() {
    let root = tempfile::tempdir().expect("tempdir");
    {
        let cache = Cache::open(root.path(), quiet()).expect("open");
        fill(&cache.layer(blob(), table(SPAN_BYTES)).expect("layer"), 3..6);
    }
    let record = root.path().join("layers").join(blob().hex()).join("present");
    let good = std::fs::read(&record).expect("read");
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 0xff;
        for bad in [flipped, good[..at].to_vec()] {
            std::fs::write(&record, &bad).expect("write");
            let cache = Cache::open(root.path(), quiet()).expect("open");
            let found = present(&cache.layer(blob(), table(SPAN_BYTES)).expect("layer"));
            assert!(found.iter().all(|id| (3..6).contains(id)), "byte {at}: {found:?}");
        }
    }
}

#[test]
fn spans_beyond_the_end_of_the_data_are_not_believed() {
    let root = tempfile::tempdir().expect("tempdir");
    let path = {
        let cache = Cache::open(root.path(), quiet()).expect("open");
        let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
        fill(&file, 0..4);
        file.path()
    };
    std::fs::File::options().write(true).open(path).and_then(|f| f.set_len(2 * SPAN_BYTES + 5)).expect("truncate");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    assert_eq!(present(&cache.layer(blob(), table(SPAN_BYTES)).expect("layer")), [0, 1]);
}

#[test]
fn another_span_size_drops_what_is_not_proven_and_keeps_what_is() {
    let root = tempfile::tempdir().expect("tempdir");
    let stop = AtomicBool::new(false);
    {
        let cache = Cache::open(root.path(), quiet()).expect("open");
        fill(&cache.layer(blob(), table(SPAN_BYTES)).expect("layer"), 0..4);
    }
    {
        let cache = Cache::open(root.path(), quiet()).expect("open");
        let file = cache.layer(blob(), table(SPAN_BYTES / 2)).expect("layer");
        assert_eq!(file.present_spans(), 0);
        let missing = file.verify_against(Digest::of(&tar()), &stop);
        assert!(matches!(missing, Err(CacheError::Incomplete { missing: 21, .. })), "{missing:?}");
        fill(&file, 0..21);
        let wrong = file.verify_against(Digest::of(b"other"), &stop);
        assert!(matches!(wrong, Err(CacheError::DiffId { .. })));
        assert!(!file.is_proven());
        file.verify_against(Digest::of(&tar()), &stop).expect("proven");
    }
    let cache = Cache::open(root.path(), quiet()).expect("open");
    assert_eq!(cache.proven(blob()), Some((Digest::of(&tar()), LayerOffset::new(LAYER_BYTES))));
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    assert!(file.is_proven() && file.is_complete());
}

#[test]
fn only_the_last_span_may_be_longer_and_its_length_counts() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let long = vec![7; usize::try_from(SPAN_BYTES).expect("small") + 1];
    for (id, bytes) in [(0, &long[..]), (0, &long[..10]), (SPANS - 1, &long[..999]), (SPANS, &long[..])] {
        assert!(file.write_span(SpanId(id), bytes).is_err(), "span {id}, {} bytes", bytes.len());
    }
    assert_eq!((file.present_spans(), file.true_len().expect("stat")), (0, None));
    let mut tail = bytes_of(file.table(), SPANS - 1);
    tail.extend_from_slice(&[0; 9240]);
    file.write_span(SpanId(SPANS - 1), &tail).expect("written");
    assert_eq!(file.true_len().expect("stat"), Some(LayerOffset::new(LAYER_BYTES + 9240)));
    fill(&file, 0..SPANS - 1);
    let whole = [&tar()[..], &[0; 9240]].concat();
    file.verify_against(Digest::of(&whole), &AtomicBool::new(false)).expect("proven with its padding");
}

#[test]
fn two_daemons_do_not_share_a_root() {
    let root = tempfile::tempdir().expect("tempdir");
    let first = Cache::open(root.path(), quiet()).expect("open");
    assert!(matches!(Cache::open(root.path(), quiet()), Err(CacheError::Locked { .. })));
    drop(first);
    Cache::open(root.path(), quiet()).expect("free again");
}

#[test]
fn unused_layers_go_first_then_the_spans_that_rested_longest_but_never_pinned_ones() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let other = cache.layer(Digest::of(b"other"), table(SPAN_BYTES)).expect("layer");
    fill(&other, 0..SPANS);
    other.flush().expect("flush");
    cache.flush();
    let unused = other.path();
    drop(other);
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    fill(&file, 0..SPANS);
    file.verify_against(Digest::of(&tar()), &AtomicBool::new(false)).expect("proven");

    cache.shrink_to(LAYER_BYTES + 2 * SPAN_BYTES).expect("shrunk");
    assert!(!unused.exists());
    assert!(file.is_complete() && file.is_proven());

    let pin = file.pin(0..2).expect("all here");
    let before = disk_bytes(&file);
    cache.shrink_to(4 * SPAN_BYTES).expect("shrunk");
    assert!(disk_bytes(&file) < before - 4 * SPAN_BYTES, "{} of {before}", disk_bytes(&file));
    assert!(file.has_all(0..2), "pinned");
    assert!(!file.is_proven(), "a layer with holes is not proven");
    assert!(file.pin(0..SPANS).is_none());
    let kept = present(&file);
    cache.shrink_to(0).expect("shrunk");
    assert_eq!(present(&file), [0, 1]);
    drop(pin);
    cache.shrink_to(0).expect("shrunk");
    assert_eq!(present(&file), [0; 0]);

    fill(&file, 4..5);
    drop((file, cache));
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    assert_eq!(present(&file), [4], "the disk knows what is gone; before: {kept:?}");
}

#[test]
fn spans_in_use_lately_stay() {
    let root = tempfile::tempdir().expect("tempdir");
    let config = CacheConfig { min_idle: Duration::from_secs(3600), ..quiet() };
    let cache = Cache::open(root.path(), config).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    fill(&file, 0..SPANS);
    assert_eq!(cache.shrink_to(0).expect("nothing to do"), 0);
    assert!(file.is_complete());
}

#[test]
fn an_ingest_leaves_a_proven_layer_or_nothing() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let folder = root.path().join("layers").join(blob().hex());
    let mut ingest = cache.ingest(blob()).expect("ingest");
    ingest.append(&tar()[..5000]).expect("append");
    assert!(matches!(cache.layer(blob(), table(SPAN_BYTES)), Err(CacheError::Busy { .. })));
    assert!(matches!(cache.ingest(blob()), Err(CacheError::Busy { .. })));
    drop(ingest);
    assert!(!folder.exists());

    let mut ingest = cache.ingest(blob()).expect("ingest");
    for piece in tar().chunks(70_000) {
        ingest.append(piece).expect("append");
    }
    assert_eq!(ingest.finish(Digest::of(&tar())).expect("finish"), LayerOffset::new(LAYER_BYTES));
    assert!(cache.proven(blob()).is_some());
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    assert!(file.is_proven() && file.is_complete());
    assert!(matches!(cache.ingest(blob()), Err(CacheError::Busy { .. })));
}

#[test]
fn a_writer_that_gives_up_takes_nothing_from_another_of_the_same_span() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let bytes = bytes_of(file.table(), 3);
    let mut given_up = file.begin_span(SpanId(3)).expect("begun");
    let mut other = file.begin_span(SpanId(3)).expect("begun");
    given_up.push(&bytes[..50_000]).expect("pushed");
    other.push(&bytes).expect("pushed");
    drop(given_up);
    other.finish().expect("finished");
    let mut read = vec![0; bytes.len()];
    std::fs::File::open(file.path()).and_then(|f| f.read_exact_at(&mut read, 3 * SPAN_BYTES)).expect("read");
    assert!(read == bytes);
    // Alone, it gives its disk space back.
    let before = disk_bytes(&file);
    let mut given_up = file.begin_span(SpanId(5)).expect("begun");
    given_up.push(&bytes_of(file.table(), 5)[..50_000]).expect("pushed");
    drop(given_up);
    assert!(disk_bytes(&file) <= before + 8192 && !file.has(SpanId(5)));
}

#[test]
fn an_eviction_leaves_alone_what_somebody_still_writes() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let bytes = bytes_of(file.table(), 3);
    let mut slow = file.begin_span(SpanId(3)).expect("begun");
    slow.push(&bytes[..50_000]).expect("pushed");
    file.write_span(SpanId(3), &bytes).expect("another writer was faster");
    cache.shrink_to(0).expect("nothing may go");
    slow.push(&bytes[50_000..]).expect("pushed");
    slow.finish().expect("finished");
    let mut read = vec![0; bytes.len()];
    std::fs::File::open(file.path()).and_then(|f| f.read_exact_at(&mut read, 3 * SPAN_BYTES)).expect("read");
    assert!(read == bytes);
}

#[test]
fn a_pinned_span_is_right_however_much_is_evicted_and_written_beside() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let tar = tar();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for offset in 0..2 {
            let (file, tar, done) = (&file, &tar, &done);
            threads.spawn(move || {
                let data = std::fs::File::open(file.path()).expect("open");
                for round in 0..400 {
                    let id = (round * 7 + offset) % SPANS;
                    let range = file.table().get(SpanId(id)).expect("in range").layer;
                    let (start, end) = (range.start().get(), range.end().get());
                    let want = &tar[usize::try_from(start).expect("small")..usize::try_from(end).expect("small")];
                    if !file.has(SpanId(id)) {
                        file.write_span(SpanId(id), want).expect("written");
                    }
                    if let Some(_pin) = file.pin(id..id + 1) {
                        let mut read = vec![0; want.len()];
                        data.read_exact_at(&mut read, start).expect("read");
                        assert!(read == want, "span {id} in round {round}");
                    }
                }
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            });
        }
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            cache.shrink_to(2 * SPAN_BYTES).expect("shrunk");
        }
    });
}

/// A small file system; unmounted when dropped.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Mounts one with this option `size=`; without the right to do so, `test` is reported as skipped.
    pub(crate) fn mount(test: &str, size: &std::ffi::CStr) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        let done = rustix::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(size));
        match done {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                skipped(test, &format!("mounting a tmpfs: {error}"));
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).expect("unmount");
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skipped(test: &str, missing: &str) {
    eprintln!("SKIPPED: {test}: {missing}");
}

#[test]
fn a_full_disk_leaves_spans_missing_and_says_so_and_room_can_be_made() {
    let Some(disk) = SmallDisk::mount("a_full_disk_leaves_spans_missing_and_says_so_and_room_can_be_made", c"size=2m")
    else {
        return;
    };
    let cache = Cache::open(disk.path(), quiet()).expect("open");
    let unused = cache.layer(Digest::of(b"unused"), table(SPAN_BYTES)).expect("layer");
    fill(&unused, 0..SPANS);
    cache.flush();
    drop(unused);
    std::fs::write(disk.path().join("ballast"), vec![1; 1100 << 10]).expect("ballast");
    let file = cache.layer(blob(), table(SPAN_BYTES)).expect("layer");
    let failed =
        (0..SPANS).find_map(|id| file.write_span(SpanId(id), &bytes_of(file.table(), id)).err().map(|e| (id, e)));
    let (id, error) = failed.expect("2 MiB cannot hold this");
    assert!(error.is_no_space(), "{error}");
    assert!(error.to_string().contains("free disk space"), "{error}");
    assert!(!file.has(SpanId(id)) && file.has_all(0..id));
    assert!(file.make_room(SPAN_BYTES).expect("evicted") > 0);
    file.write_span(SpanId(id), &bytes_of(file.table(), id)).expect("there is room now");
}

/// Spans that begin in the middle of slices.
fn odd_table() -> Arc<SpanTable> {
    table(100_000)
}

fn slice_of(slice: u32) -> Vec<u8> {
    let start = usize::try_from(u64::from(slice) * SLICE_BYTES).expect("small");
    let mut bytes = tar()[start..tar().len().min(start + usize::try_from(SLICE_BYTES).expect("small"))].to_vec();
    bytes.resize(usize::try_from(SLICE_BYTES).expect("small"), 0);
    bytes
}

fn range(start: u64, end: u64) -> LayerRange {
    LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("ordered")
}

fn holds(file: &LayerFile, range: LayerRange) -> bool {
    let ids = file.table().covering(range);
    let held = file.hold_range(range, ids.clone());
    if held {
        file.release(ids);
    }
    held
}

#[test]
fn slices_serve_reads_until_their_spans_come() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    let (first, both) = (range(SLICE_BYTES, SLICE_BYTES + 10), range(SLICE_BYTES + 10, 3 * SLICE_BYTES));
    assert!(!holds(&file, first));
    assert!(file.write_slice(SliceId(1), &slice_of(1)).expect("written"));
    assert!(holds(&file, first) && !holds(&file, both) && !holds(&file, range(0, SLICE_BYTES + 1)));
    assert!(file.write_slice(SliceId(2), &slice_of(2)).expect("written"));
    assert!(holds(&file, both));
    // A range half of a slice, half of a span.
    fill(&file, 0..1);
    assert!(holds(&file, range(0, 100_000)) && holds(&file, range(10, 3 * SLICE_BYTES)));
    assert_eq!((file.present_spans(), file.slices(), file.is_contradicted()), (1, 2, false));
    // The last slice is shorter than others.
    let last = u32::try_from(LAYER_BYTES / SLICE_BYTES).expect("small");
    assert!(file.write_slice(SliceId(last), &slice_of(last)).expect("written"));
    assert!(holds(&file, range(LAYER_BYTES - 5, LAYER_BYTES)));
    assert!(!file.write_slice(SliceId(last + 1), &slice_of(0)).expect("none such"));
    let mut read = vec![0; 1000];
    std::fs::File::open(file.path()).expect("open").read_exact_at(&mut read, 2 * SLICE_BYTES).expect("read");
    assert_eq!(read, slice_of(2)[..1000]);
    // After a restart nothing vouches for slices.
    drop((file, cache));
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    assert!(!holds(&file, both) && holds(&file, range(0, 100)));
}

#[test]
fn slices_are_evicted_with_their_spans_and_not_under_readers() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    (0..4).for_each(|slice| assert!(file.write_slice(SliceId(slice), &slice_of(slice)).expect("written")));
    let read = range(0, 50_000);
    assert!(file.hold_range(read, file.table().covering(read)));
    cache.shrink_to(0).expect("evicted");
    assert!(file.has_range(read) && !file.has_range(range(2 * SLICE_BYTES, 3 * SLICE_BYTES)));
    file.release(file.table().covering(read));
    cache.shrink_to(0).expect("evicted");
    assert!(!file.has_range(read));
    assert_eq!(file.slices(), 0);
    // But for the blocks in which spans meet.
    assert!(disk_bytes(&file) <= 3 * 4096, "{}", disk_bytes(&file));
}

#[test]
fn a_writer_that_gives_up_leaves_slices_alone() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    assert!(file.write_slice(SliceId(0), &slice_of(0)).expect("written"));
    let mut writer = file.begin_span(SpanId(0)).expect("a span");
    writer.push(&bytes_of(file.table(), 0)[..90_000]).expect("written");
    drop(writer);
    let mut read = vec![0; usize::try_from(SLICE_BYTES).expect("small")];
    std::fs::File::open(file.path()).expect("open").read_exact_at(&mut read, 0).expect("read");
    assert_eq!(read, slice_of(0));
}

#[test]
fn proven_bytes_are_never_overwritten_by_slices() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    let read = |start: u64, len: usize| {
        let mut bytes = vec![0; len];
        std::fs::File::open(file.path()).expect("open").read_exact_at(&mut bytes, start).expect("read");
        bytes
    };
    fill(&file, 0..1);
    // Slice 1 lies half in span 0, which is here: that half is compared and left alone.
    assert!(file.write_slice(SliceId(1), &slice_of(1)).expect("written"));
    assert!(holds(&file, range(0, 2 * SLICE_BYTES)));
    // Slice 3 is left to a span that is on its way.
    let writer = file.begin_span(SpanId(2)).expect("a span");
    assert!(file.is_being_written(range(3 * SLICE_BYTES, 4 * SLICE_BYTES)));
    assert!(file.write_slice(SliceId(3), &[7; 65536]).expect("left out"));
    assert!(!holds(&file, range(3 * SLICE_BYTES, 4 * SLICE_BYTES)));
    drop(writer);
    // A lie about the half that is here shows at once.
    fill(&file, 4..5);
    let mut forged = slice_of(6);
    forged[50_000] ^= 1;
    assert!(!file.write_slice(SliceId(6), &forged).expect("refused"));
    assert!(file.is_contradicted() && file.slices() == 0 && !holds(&file, range(100_000, 2 * SLICE_BYTES)));
    assert_eq!(read(400_000, 100_000), bytes_of(file.table(), 4));
    assert_eq!(read(0, 100_000), bytes_of(file.table(), 0));
}

#[test]
fn a_span_that_contradicts_a_slice_ends_the_trust_in_slices() {
    let root = tempfile::tempdir().expect("tempdir");
    let cache = Cache::open(root.path(), quiet()).expect("open");
    let file = cache.layer(blob(), odd_table()).expect("layer");
    let mut forged = slice_of(1);
    forged[40_000] ^= 1;
    assert!(file.write_slice(SliceId(1), &forged).expect("written"));
    assert!(file.write_slice(SliceId(8), &slice_of(8)).expect("written"));
    // The byte that differs lies in span 1.
    fill(&file, 0..1);
    assert!(!file.is_contradicted());
    fill(&file, 1..2);
    assert!(file.is_contradicted());
    assert!(!file.has_range(range(8 * SLICE_BYTES, 8 * SLICE_BYTES + 1)));
    assert!(!file.write_slice(SliceId(8), &slice_of(8)).expect("refused"));
    let mut read = vec![0; 100_000];
    std::fs::File::open(file.path()).expect("open").read_exact_at(&mut read, 100_000).expect("read");
    assert_eq!(read, bytes_of(file.table(), 1));
}
