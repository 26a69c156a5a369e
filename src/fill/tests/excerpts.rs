//! Layers that borrow slices from an excerpt.

use super::*;
use crate::units::{SLICE_BYTES, SliceId};

const FRAME_SLICES: u32 = 4;
/// Slices of the sample, in the order of a start: here and there, over the bounds of spans.
const READ: [u32; 10] = [9, 10, 0, 1, 20, 3, 21, 22, 14, 5];

fn slice(tar: &[u8], slice: u32) -> Vec<u8> {
    let index = |n| usize_from_u64(n).expect("small");
    let start = index(u64::from(slice) * SLICE_BYTES);
    let mut bytes = tar[start..tar.len().min(start + index(SLICE_BYTES))].to_vec();
    bytes.resize(index(SLICE_BYTES), 0);
    bytes
}

/// The blob of an excerpt of `tar`, and its frames.
fn excerpt_of(tar: &[u8]) -> (Bytes, Vec<(u64, Digest)>) {
    let slices: Vec<Vec<u8>> = READ.iter().map(|number| slice(tar, *number)).collect();
    let frames: Vec<Vec<u8>> = slices
        .chunks(FRAME_SLICES as usize)
        .map(|frame| ::zstd::encode_all(&*frame.concat(), 3).expect("memory"))
        .collect();
    let described = frames.iter().map(|frame| (u64_from_usize(frame.len()), Digest::of(frame))).collect();
    (frames.concat().into(), described)
}

/// A layer of the sample that borrows from an excerpt; what both were asked for.
fn stage(tar: &[u8], layer_faults: &[Fault], faults: &[Fault]) -> (Bench, Arc<Scripted>, Arc<Scripted>, Arc<Excerpt>) {
    // On a machine under load a moment without bytes means nothing.
    stage_with(tar, layer_faults, faults, FillConfig { excerpt_patience: Duration::from_secs(600), ..fast() })
}

fn stage_with(
    tar: &[u8],
    layer_faults: &[Fault],
    faults: &[Fault],
    config: FillConfig,
) -> (Bench, Arc<Scripted>, Arc<Scripted>, Arc<Excerpt>) {
    let sample = many_spans();
    let source = Scripted::new(sample.blob.clone(), layer_faults);
    let bench = Bench::new(sample, source.clone(), config);
    let (blob, frames) = excerpt_of(tar);
    let slices = u32::try_from(READ.len()).expect("small");
    let table = Arc::new(excerpt_table(&frames, FRAME_SLICES, slices).expect("a good table"));
    let digest = Digest::of(&blob);
    let excerpt_source = Scripted::new(blob, faults);
    let excerpt = bench.filler.add_excerpt(LayerSpec {
        digest,
        table: table.clone(),
        windows: std::fs::File::open("/dev/null").expect("there"),
        source: excerpt_source.clone(),
        file: bench._cache.layer(digest, table).expect("a file"),
        diff_id: None,
    });
    let places = READ.iter().zip(0_u32..).map(|(slice, place)| (SliceId(*slice), SliceId(place)));
    bench.layer().borrow(&excerpt, places);
    (bench, source, excerpt_source, excerpt)
}

/// Reads as frontends do: who is told that bytes came asks again.
fn read(bench: &Bench, (start, end): (u64, u64)) {
    let range = LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("ordered");
    while !bench.layer().hold(range) {
        bench.ask(start, end).recv_timeout(Duration::from_secs(60)).expect("a waiter is always told").expect("present");
    }
    bench.layer().release(range);
    bench.read(many_spans(), start, end).expect("it is there");
}

fn range_of(slice: u32) -> (u64, u64) {
    (u64::from(slice) * SLICE_BYTES, u64::from(slice + 1) * SLICE_BYTES)
}

#[test]
fn what_an_excerpt_has_is_read_without_spans() {
    let sample = many_spans();
    assert!(sample.table.layer_size().get() > 23 * SLICE_BYTES, "the sample has these slices");
    let (bench, source, excerpt_source, excerpt) = stage(&sample.tar, &[], &[Fault::Busy, Fault::CutAfter(100)]);
    for number in READ {
        let (start, end) = range_of(number);
        read(&bench, (start + 100, end - 100));
    }
    read(&bench, (range_of(9).0 + 5, range_of(10).1));
    read(&bench, (range_of(20).0, range_of(22).1));
    assert_eq!(source.requested_bytes(), 0, "no span was needed");
    assert!(!excerpt.is_broken());
    assert!(excerpt_source.requested_bytes() > 0);
    // All of them come, read or not; here a reader found each of them there.
    bench.wait_until("copied", || bench.file.slices() == u32::try_from(READ.len()).expect("small"));
    // What it does not have comes with its span, and together with what it has, too.
    read(&bench, (range_of(12).0, range_of(12).1));
    read(&bench, (range_of(1).0, range_of(3).1));
    assert!(source.requested_bytes() > 0);
    assert!(!bench.file.is_contradicted());
}

#[test]
fn slices_come_without_readers() {
    let sample = many_spans();
    let (bench, source, _, excerpt) = stage(&sample.tar, &[], &[]);
    bench.wait_until("copied", || bench.file.slices() == u32::try_from(READ.len()).expect("small"));
    assert_eq!(source.requested_bytes(), 0);
    bench.wait_until("given back", || excerpt.fill().file().present_spans() == 0);
    let touched = bench.layer().slices_since(0);
    assert!(touched.is_empty(), "what is fetched ahead is not read: {touched:?}");
    read(&bench, (range_of(20).0, range_of(20).1));
    let touched: Vec<u32> = bench.layer().slices_since(0).iter().map(|touch| touch.what.0).collect();
    assert_eq!(touched, [20]);
}

#[test]
fn an_excerpt_that_is_no_good_leaves_readers_to_spans() {
    for faults in [[Fault::NotFound; 8], [Fault::Corrupt; 8]] {
        // Given up once and for all: readers are not sent from one to the other.
        let (bench, source, _, excerpt) = stage(&many_spans().tar, &[], &faults);
        for number in READ {
            read(&bench, range_of(number));
        }
        assert!(source.requested_bytes() > 0, "{faults:?}");
        assert!(excerpt.is_broken(), "{faults:?}");
    }
}

#[test]
fn an_excerpt_that_never_comes_is_given_up_for_spans() {
    let config = FillConfig { excerpt_patience: Duration::from_millis(20), ..fast() };
    let (bench, source, _, excerpt) = stage_with(&many_spans().tar, &[], &[Fault::Never; 8], config);
    // Several wait for it at once.
    let waits: Vec<_> =
        [20, 9, 0].map(|number| bench.ask(range_of(number).0, range_of(number).1)).into_iter().collect();
    for heard in waits {
        heard.recv_timeout(Duration::from_secs(60)).expect("a waiter is always told").expect("to ask again");
    }
    assert!(excerpt.is_broken());
    read(&bench, range_of(20));
    assert!(source.requested_bytes() > 0);
}

#[test]
fn a_layer_borrows_from_several_excerpts() {
    let tar = &many_spans().tar;
    let (bench, source, _, first) = stage(tar, &[], &[]);
    // Of another image: what the first one does not have.
    let frame = ::zstd::encode_all(&*slice(tar, 17), 3).expect("memory");
    let table = excerpt_table(&[(u64_from_usize(frame.len()), Digest::of(&frame))], 1, 1).expect("a good table");
    let (table, digest) = (Arc::new(table), Digest::of(&frame));
    let second = bench.filler.add_excerpt(LayerSpec {
        digest,
        table: table.clone(),
        windows: std::fs::File::open("/dev/null").expect("there"),
        source: Scripted::new(frame.into(), &[]),
        file: bench._cache.layer(digest, table).expect("a file"),
        diff_id: None,
    });
    bench.layer().borrow(&second, [(SliceId(17), SliceId(0))].into_iter());
    for number in [17, 9, 22] {
        read(&bench, range_of(number));
    }
    assert_eq!(source.requested_bytes(), 0);
    assert!(!first.is_broken() && !second.is_broken());
}

#[test]
fn an_excerpt_that_lies_is_found_out_by_spans() {
    let sample = many_spans();
    let mut forged = sample.tar.clone();
    let at = usize_from_u64(range_of(20).0 + 7).expect("small");
    forged[at] ^= 0x40;
    let (bench, ..) = stage(&forged, &[], &[]);
    bench.wait_until("copied", || bench.file.slices() == u32::try_from(READ.len()).expect("small"));
    // A neighbour of the slice, which only its span has.
    read(&bench, (range_of(19).0, range_of(19).1));
    bench.wait_until("found out", || bench.file.is_contradicted());
    // From now on all comes from spans, and is right.
    for number in READ {
        read(&bench, range_of(number));
    }
    assert_eq!(bench.file.slices(), 0);
}

#[test]
fn taking_down_fails_those_who_wait_for_an_excerpt() {
    let (mut bench, _, _, excerpt) = stage(&many_spans().tar, &[], &[Fault::Never; 8]);
    let heard = bench.ask(range_of(20).0, range_of(20).1);
    drop(excerpt);
    bench.layer = None;
    let told = heard.recv_timeout(Duration::from_secs(60)).expect("a waiter is always told");
    assert!(matches!(told, Err(FillError::Stopping)), "{told:?}");
}
