//! Excerpts of load orders: made of what a recorded start has read, and lent to the layers of the next one.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context;
use tempfile::NamedTempFile;

use crate::fill::{Excerpt, FillLayer, LayerSpec, excerpt_table};
use crate::node::Node;
use crate::order::{ExcerptLayout, FRAME_SLICES};
use crate::registry::BlobSource;
use crate::units::{Digest, DigestHasher, SLICE_BYTES, SliceId, u64_from_usize, usize_from_u64};

/// How hard zstd tries: made once, fetched often; higher levels take several times longer for a few percent.
const LEVEL: i32 = 12;

/// Threads that compress: readers of a large node should not notice.
const MAX_THREADS: usize = 4;

/// Longest excerpt. One that would be longer is not made: a start that needs so much is not helped by it much.
const MAX_BYTES: u64 = 1 << 30;

/// How long whoever saves a recording waits for what is missing of the slices that were read.
const COMPLETE_WITHIN: Duration = Duration::from_secs(30);

/// What an excerpt is made of.
pub(super) struct Material {
    /// The layers of the load order, as far as they are still shown.
    pub layers: Vec<Option<Arc<FillLayer>>>,
    /// Slices of these, in the order in which they were read.
    pub slices: Vec<(usize, SliceId)>,
}

impl Material {
    /// Fetches what is missing of the slices: a slice on the border of two spans has a part that nobody read, and spans
    /// that were read may have been evicted. What does not come within [`COMPLETE_WITHIN`] the excerpt will lack.
    pub async fn complete(&self) {
        let mut coming = Vec::new();
        for (layer, slice) in &self.slices {
            let Some(fill) = self.layers.get(*layer).and_then(Option::as_ref) else { continue };
            let Some(range) = fill.file().range_of(*slice) else { continue };
            if fill.file().has_all(fill.file().table().covering(range)) {
                continue;
            }
            let (done, came) = tokio::sync::oneshot::channel();
            fill.complete(range, Box::new(move |result| drop(done.send(result))));
            coming.push(came);
        }
        let all = async {
            for came in coming {
                if let Ok(Err(error)) = came.await {
                    tracing::warn!(%error, "a slice that was read cannot be completed");
                }
            }
        };
        if tokio::time::timeout(COMPLETE_WITHIN, all).await.is_err() {
            tracing::warn!("slices that were read take long to complete; the excerpt is made without them");
        }
    }
}

/// Writes an excerpt into a file in `dir`, or says why none is made. Slices that are not here any more are left out.
///
/// # Errors
/// When the layers cannot be read, or the file not be written.
pub(super) fn make(material: &Material, dir: &Path) -> anyhow::Result<Result<(ExcerptLayout, NamedTempFile), String>> {
    let all: u64 = material.layers.iter().flatten().map(|fill| fill.file().table().layer_size().get()).sum();
    let read = u64_from_usize(material.slices.len()) * SLICE_BYTES;
    if read > all / 2 {
        return Ok(Err(format!("{} of {} MiB of its layers were read: spans are as good", read >> 20, all >> 20)));
    }
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let file = tempfile::Builder::new().prefix(".excerpt-").tempfile_in(dir);
    let mut file = file.with_context(|| dir.display().to_string())?;
    let (mut frames, mut slices, mut hasher, mut bytes) = (Vec::new(), Vec::new(), DigestHasher::new(), 0_u64);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
    let mut left = material.slices.iter();
    loop {
        let mut batch = Vec::new();
        while batch.len() < threads {
            let frame = next_frame(material, &mut left, &mut slices)?;
            if frame.is_empty() {
                break;
            }
            batch.push(frame);
        }
        if batch.is_empty() {
            break;
        }
        for frame in compress(&batch)? {
            bytes += u64_from_usize(frame.len());
            if bytes > MAX_BYTES {
                return Ok(Err(format!("it would have more than {} MiB", MAX_BYTES >> 20)));
            }
            hasher.update(&frame);
            frames.push((u64_from_usize(frame.len()), Digest::of(&frame)));
            file.write_all(&frame)?;
        }
    }
    if frames.is_empty() {
        return Ok(Err("nothing of what was read is here and proven by its spans".to_owned()));
    }
    file.as_file().sync_all()?;
    let left_out = material.slices.len() - slices.len();
    if left_out > 0 {
        tracing::warn!(
            left_out,
            "slices that were read are not here any more, or not proven by their spans yet: the excerpt lacks them"
        );
    }
    let digest = hasher.finish();
    let layout = ExcerptLayout {
        digest,
        bytes,
        slice_bytes: SLICE_BYTES,
        frame_slices: FRAME_SLICES,
        frames,
        slices: joined(&slices),
    };
    Ok(Ok((layout, file)))
}

/// The bytes of the next frame; which slices they are is added to `taken`.
fn next_frame(
    material: &Material,
    left: &mut std::slice::Iter<'_, (usize, SliceId)>,
    taken: &mut Vec<(u32, u32)>,
) -> anyhow::Result<Vec<u8>> {
    let slice_bytes = usize_from_u64(SLICE_BYTES).unwrap_or(0);
    let full = slice_bytes * FRAME_SLICES as usize;
    let (mut frame, mut slice) = (Vec::with_capacity(full), vec![0; slice_bytes]);
    while frame.len() < full {
        let Some((layer, id)) = left.next() else { break };
        let Some(fill) = material.layers.get(*layer).and_then(Option::as_ref) else { continue };
        if fill.file().read_slice(*id, &mut slice)? {
            frame.extend_from_slice(&slice);
            taken.push((u32::try_from(*layer).unwrap_or(u32::MAX), id.0));
        }
    }
    Ok(frame)
}

/// One zstd frame of each, made at the same time.
fn compress(batch: &[Vec<u8>]) -> anyhow::Result<Vec<Vec<u8>>> {
    std::thread::scope(|scope| {
        let running = batch.iter().map(|frame| {
            let work = move || zstd::bulk::compress(frame, LEVEL);
            // Where no thread can be had, this one has more to do.
            std::thread::Builder::new().name("excerpt".to_owned()).spawn_scoped(scope, work).map_err(|_| frame)
        });
        let running: Vec<_> = running.collect();
        let done = running.into_iter().map(|thread| match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(frame)) => frame.context("compressing"),
            Ok(Err(_)) => anyhow::bail!("a thread that compresses has panicked"),
            Err(frame) => zstd::bulk::compress(frame, LEVEL).context("compressing"),
        });
        done.collect()
    })
}

/// Slices that follow each other, as `(layer, first, count)`.
fn joined(slices: &[(u32, u32)]) -> Vec<(u32, u32, u32)> {
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for (layer, slice) in slices {
        match runs.last_mut() {
            Some((of, first, count)) if of == layer && *first + *count == *slice => *count += 1,
            _ => runs.push((*layer, *slice, 1)),
        }
    }
    runs
}

/// Excerpts that layers borrow from.
#[derive(Default)]
pub(in crate::node) struct Lent(Mutex<Vec<(Digest, Weak<Excerpt>)>>);

impl Lent {
    /// Bytes fetched, requests and failures of the excerpts of layers that are shown.
    pub fn totals(&self) -> (u64, u64, u64) {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = lent.iter().filter_map(|(_, excerpt)| excerpt.upgrade()).map(|excerpt| excerpt.fill().status());
        all.fold((0, 0, 0), |(fetched, requests, failures), status| {
            (fetched + status.fetched_bytes, requests + status.requests, failures + status.failures)
        })
    }
}

impl Node {
    /// An excerpt for layers to borrow from. Several images may have the same.
    ///
    /// # Errors
    /// When its description makes no table, or there is no place for it.
    pub(super) fn excerpt(&self, layout: &ExcerptLayout, source: &Arc<dyn BlobSource>) -> anyhow::Result<Arc<Excerpt>> {
        let slices = u32::try_from(layout.slice_count()).context("as many slices as there are")?;
        let table = Arc::new(excerpt_table(&layout.frames, layout.frame_slices, slices)?);
        let key = key_of(layout);
        let mut lent = self.orders.lent.0.lock().unwrap_or_else(PoisonError::into_inner);
        lent.retain(|(_, excerpt)| excerpt.strong_count() > 0);
        let known = lent.iter().find(|(known, _)| *known == key).and_then(|(_, excerpt)| excerpt.upgrade());
        if let Some(known) = known.filter(|known| !known.is_broken()) {
            return Ok(known);
        }
        let file = tokio::task::block_in_place(|| self.cache.layer(key, Arc::clone(&table)))?;
        let excerpt = self.filler.add_excerpt(LayerSpec {
            digest: layout.digest,
            table,
            // Frames need no windows.
            windows: File::open("/dev/null").context("/dev/null")?,
            source: Arc::clone(source),
            file,
            diff_id: None,
        });
        lent.push((key, Arc::downgrade(&excerpt)));
        Ok(excerpt)
    }
}

/// Under which digest the bytes of an excerpt are kept: never that of a layer, and another one for each way to cut it.
fn key_of(layout: &ExcerptLayout) -> Digest {
    let mut hasher = DigestHasher::new();
    hasher.update(b"sociblk excerpt");
    hasher.update(layout.digest.as_bytes());
    hasher.update(&layout.frame_slices.to_le_bytes());
    hasher.update(&layout.slice_count().to_le_bytes());
    for (bytes, digest) in &layout.frames {
        hasher.update(&bytes.to_le_bytes());
        hasher.update(digest.as_bytes());
    }
    hasher.finish()
}

/// What one layer of an order borrows: its slices, and where they are in the excerpt.
pub(super) fn places(layout: &ExcerptLayout, layer: u32) -> impl Iterator<Item = (SliceId, SliceId)> + '_ {
    let mut place = 0_u32;
    layout.slices.iter().flat_map(move |(of, first, count)| {
        let begin = place;
        place = place.saturating_add(*count);
        let count = if *of == layer { *count } else { 0 };
        (0..count).map(move |at| (SliceId(first + at), SliceId(begin + at)))
    })
}

/// The frames that have slices of these layers, in order.
pub(super) fn frames_of(layout: &ExcerptLayout, layers: &HashSet<u32>) -> Vec<u32> {
    let mut frames = Vec::new();
    let mut place = 0_u32;
    for (of, _, count) in &layout.slices {
        let end = place.saturating_add(*count);
        if layers.contains(of) {
            frames.extend(place / layout.frame_slices..end.div_ceil(layout.frame_slices));
        }
        place = end;
    }
    frames.dedup();
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> ExcerptLayout {
        let frame = |text: &[u8]| (10, Digest::of(text));
        ExcerptLayout {
            digest: Digest::of(b"excerpt"),
            bytes: 30,
            slice_bytes: SLICE_BYTES,
            frame_slices: 4,
            frames: vec![frame(b"1"), frame(b"2"), frame(b"3")],
            slices: joined(&[(0, 7), (0, 8), (1, 9), (0, 0), (0, 1), (1, 3), (1, 4), (1, 5), (1, 6), (0, 2)]),
        }
    }

    #[test]
    fn layers_find_their_slices() {
        let layout = layout();
        assert_eq!(layout.slices, [(0, 7, 2), (1, 9, 1), (0, 0, 2), (1, 3, 4), (0, 2, 1)]);
        let of = |layer| places(&layout, layer).map(|(slice, place)| (slice.0, place.0)).collect::<Vec<_>>();
        assert_eq!(of(0), [(7, 0), (8, 1), (0, 3), (1, 4), (2, 9)]);
        assert_eq!(of(1), [(9, 2), (3, 5), (4, 6), (5, 7), (6, 8)]);
        assert_eq!(of(2), []);
        assert_eq!(frames_of(&layout, &HashSet::from([0, 1])), [0, 1, 2]);
        assert!(frames_of(&layout, &HashSet::from([2])).is_empty());
        let one = ExcerptLayout { slices: vec![(0, 0, 4), (1, 0, 6)], ..layout };
        assert_eq!(frames_of(&one, &HashSet::from([1])), [1, 2]);
    }

    #[test]
    fn other_cuts_of_the_same_bytes_are_kept_apart() {
        let (one, other) = (layout(), ExcerptLayout { frame_slices: 5, ..layout() });
        assert_eq!(key_of(&one), key_of(&layout()));
        assert_ne!(key_of(&one), key_of(&other));
        assert_ne!(key_of(&one), one.digest);
    }
}
