//! The part of a load order that describes its excerpt: which slices of which layers it has, and in which frames.

use serde::{Deserialize, Serialize};

use super::{LoadOrder, OrderError};
use crate::units::{Digest, SLICE_BYTES};

/// Media type of an excerpt: zstd frames one after the other, each with the same number of slices.
pub const EXCERPT_TYPE: &str = "application/vnd.sociblk.excerpt.v1+zstd";

/// Slices of a frame: 1 MiB compresses well, and is soon here.
pub const FRAME_SLICES: u32 = 16;

/// Most slices that are accepted in one frame: a frame is in memory as a whole.
const MAX_FRAME_SLICES: u32 = 64;

/// Most slices that are accepted, 64 GiB of layers: there is memory for each.
const MAX_SLICES: u64 = 1 << 20;

/// An excerpt, as its load order describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExcerptLayout {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// Length of a slice in layer bytes. The last slice of a layer is filled up with zeros.
    pub slice_bytes: u64,
    /// Slices of a frame; the last frame has what is left.
    pub frame_slices: u32,
    /// The frames: length in bytes, and digest.
    pub frames: Vec<(u64, Digest)>,
    /// The slices, in their order in the excerpt: which of the load order's layers, first slice, how many.
    pub slices: Vec<(u32, u32, u32)>,
}

impl ExcerptLayout {
    /// How many slices it has.
    #[must_use]
    pub fn slice_count(&self) -> u64 {
        self.slices.iter().map(|(_, _, count)| u64::from(*count)).sum()
    }

    /// Requires what everybody relies on.
    pub(super) fn check(&self, order: &LoadOrder) -> Result<(), OrderError> {
        let bad = |reason: String| Err(OrderError::Document { reason });
        if self.slice_bytes != SLICE_BYTES {
            return bad(format!("slices of its excerpt have {} bytes; {SLICE_BYTES} are known here", self.slice_bytes));
        }
        if !(1..=MAX_FRAME_SLICES).contains(&self.frame_slices) {
            return bad(format!(
                "frames of its excerpt have {} slices; 1 to {MAX_FRAME_SLICES} may be",
                self.frame_slices
            ));
        }
        let bytes = self.frames.iter().try_fold(0_u64, |sum, (bytes, _)| sum.checked_add(*bytes));
        if bytes != Some(self.bytes) || self.frames.iter().any(|(bytes, _)| *bytes == 0) {
            return bad(format!("the frames of its excerpt do not have {} bytes together", self.bytes));
        }
        let longest = u64::from(self.frame_slices) * SLICE_BYTES * 2;
        if let Some((bytes, _)) = self.frames.iter().find(|(bytes, _)| *bytes > longest) {
            return bad(format!(
                "a frame of its excerpt has {bytes} bytes; {longest} are more than what it holds needs"
            ));
        }
        let wrong = |(layer, first, count): &(u32, u32, u32)| {
            *count == 0 || first.checked_add(*count).is_none() || *layer as usize >= order.layers.len()
        };
        if let Some((layer, first, count)) = self.slices.iter().find(|run| wrong(run)) {
            return bad(format!("its excerpt claims {count} slices from {first} on of layer {layer}"));
        }
        let slices = self.slice_count();
        if slices > MAX_SLICES || slices.div_ceil(u64::from(self.frame_slices)) != self.frames.len() as u64 {
            return bad(format!("its excerpt has {slices} slices in {} frames", self.frames.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::tests::example;
    use super::*;

    pub fn layout() -> ExcerptLayout {
        ExcerptLayout {
            digest: Digest::of(b"excerpt"),
            bytes: 30,
            slice_bytes: SLICE_BYTES,
            frame_slices: 2,
            frames: vec![(10, Digest::of(b"1")), (20, Digest::of(b"2"))],
            slices: vec![(1, 4, 2), (0, 0, 1)],
        }
    }

    #[test]
    fn excerpts_are_read_as_they_were_written() {
        let order = LoadOrder { excerpt: Some(layout()), ..example() };
        let bytes = order.to_bytes().expect("a document");
        assert_eq!(LoadOrder::parse(&bytes).expect("a load order"), order);
        assert_eq!(layout().slice_count(), 3);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let frame = |bytes| (bytes, Digest::of(b"f"));
        let good = layout();
        for (bad, words) in [
            (ExcerptLayout { slice_bytes: 4096, ..good.clone() }, "4096 bytes"),
            (ExcerptLayout { frame_slices: 0, ..good.clone() }, "0 slices"),
            (ExcerptLayout { frame_slices: 1 << 20, ..good.clone() }, "1048576 slices"),
            (ExcerptLayout { bytes: 31, ..good.clone() }, "31 bytes together"),
            (ExcerptLayout { frames: vec![frame(u64::MAX), frame(31)], ..good.clone() }, "30 bytes together"),
            (ExcerptLayout { frames: vec![frame(30), frame(0)], ..good.clone() }, "30 bytes together"),
            (ExcerptLayout { frames: vec![frame(30)], ..good.clone() }, "3 slices in 1 frames"),
            (ExcerptLayout { bytes: 1 << 20, frames: vec![frame(1 << 19); 2], ..good.clone() }, "has 524288 bytes"),
            (ExcerptLayout { slices: vec![(2, 0, 3)], ..good.clone() }, "of layer 2"),
            (ExcerptLayout { slices: vec![(0, 0, 3), (0, 5, 0)], ..good.clone() }, "0 slices from 5"),
            (ExcerptLayout { slices: vec![(0, u32::MAX, 1)], ..good.clone() }, "from 4294967295"),
            (ExcerptLayout { slices: vec![(0, 0, u32::MAX - 1), (0, 0, 9)], ..good.clone() }, "slices in 2 frames"),
        ] {
            let order = LoadOrder { excerpt: Some(bad), ..example() };
            let error = order.to_bytes().expect_err(words).to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
