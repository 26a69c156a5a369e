//! Offsets and half-open ranges, one type per number space.

use std::fmt;

/// An offset in one number space. Arithmetic is checked: what comes from outside may be hostile.
pub trait Offset: Copy + Ord + fmt::Debug + fmt::Display {
    /// Wraps a byte position of this space.
    fn new(bytes: u64) -> Self;
    /// The byte position.
    fn get(self) -> u64;

    /// `self + bytes`, or `None` on overflow.
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.get().checked_add(bytes).map(Self::new)
    }

    /// Bytes from `earlier` to `self`, or `None` when `earlier` lies behind.
    fn bytes_since(self, earlier: Self) -> Option<u64> {
        self.get().checked_sub(earlier.get())
    }
}

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The start of the space.
            pub const ZERO: Self = Self(0);

            /// Wraps a byte position of this space.
            #[must_use]
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The byte position.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl Offset for $name {
            fn new(bytes: u64) -> Self {
                Self(bytes)
            }
            fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

offset!(
    /// A position in the layer blob as the registry serves it (compressed bytes).
    BlobOffset
);
offset!(
    /// A position in the layer's uncompressed tar.
    LayerOffset
);
offset!(
    /// A position on the synthesized EROFS image that a frontend serves.
    DeviceOffset
);

/// The number of a span within its layer, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SpanId(pub u32);

impl SpanId {
    /// As an index into per-span tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Bytes of a slice. Kernel readahead asks for 128 KiB; half of that wastes little where a program reads here and there.
pub const SLICE_BYTES: u64 = 64 << 10;

/// The number of a slice: a layer's tar is cut into slices of [`SLICE_BYTES`], counted from 0, whatever its zTOC says. Spans
/// are what can be proven; slices are what excerpts are made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SliceId(pub u32);

impl SliceId {
    /// The slices that hold a byte of `range`, as a half-open range of their numbers.
    #[must_use]
    pub fn covering(range: LayerRange) -> std::ops::Range<u32> {
        let number = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        if range.is_empty() {
            return 0..0;
        }
        number(range.start().get() / SLICE_BYTES)..number(range.end().get().div_ceil(SLICE_BYTES))
    }

    /// Its bytes; the last slice of a layer has fewer.
    #[must_use]
    pub fn range(self) -> LayerRange {
        let start = u64::from(self.0) * SLICE_BYTES;
        LayerRange { start: LayerOffset::new(start), end: LayerOffset::new(start + SLICE_BYTES) }
    }
}

/// A half-open byte range `[start, end)` of one number space; never inverted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ByteRange<O> {
    start: O,
    end: O,
}

/// A range of the compressed blob.
pub type BlobRange = ByteRange<BlobOffset>;
/// A range of the uncompressed tar.
pub type LayerRange = ByteRange<LayerOffset>;
/// A range of the synthesized image.
pub type DeviceRange = ByteRange<DeviceOffset>;

impl<O: Offset> ByteRange<O> {
    /// `[start, end)`, or `None` when `end < start`.
    #[must_use]
    pub fn new(start: O, end: O) -> Option<Self> {
        (start <= end).then_some(Self { start, end })
    }

    /// `len_bytes` from `start` on, or `None` when the end would overflow.
    #[must_use]
    pub fn from_len(start: O, len_bytes: u64) -> Option<Self> {
        Some(Self { start, end: start.checked_add(len_bytes)? })
    }

    /// First byte.
    #[must_use]
    pub fn start(&self) -> O {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(&self) -> O {
        self.end
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.end.get() - self.start.get()
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether `offset` lies within.
    #[must_use]
    pub fn contains(&self, offset: O) -> bool {
        self.start <= offset && offset < self.end
    }

    /// The bytes that both ranges hold, or `None` when they share none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}

impl<O: Offset> fmt::Display for ByteRange<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> LayerRange {
        LayerRange::new(LayerOffset::new(start), LayerOffset::new(end)).expect("ordered")
    }

    #[test]
    fn ranges_are_never_inverted_and_never_overflow() {
        assert!(BlobRange::new(BlobOffset::new(2), BlobOffset::new(1)).is_none());
        assert!(BlobRange::from_len(BlobOffset::new(u64::MAX), 1).is_none());
        assert_eq!(BlobRange::from_len(BlobOffset::new(5), 3).map(|r| r.len_bytes()), Some(3));
        assert!(BlobRange::from_len(BlobOffset::new(5), 0).is_some_and(|r| r.is_empty()));
    }

    #[test]
    fn slices_cover_what_they_touch() {
        for (start, end, want) in
            [(0, 0, 0..0), (0, 1, 0..1), (SLICE_BYTES - 1, SLICE_BYTES + 1, 0..2), (SLICE_BYTES, 3 * SLICE_BYTES, 1..3)]
        {
            assert_eq!(SliceId::covering(range(start, end)), want, "{start} {end}");
        }
        assert_eq!(SliceId(2).range(), range(2 * SLICE_BYTES, 3 * SLICE_BYTES));
    }

    #[test]
    fn intersection_is_symmetric_and_excludes_touching_ranges() {
        for (a, b, want) in [
            (range(0, 10), range(5, 15), Some(range(5, 10))),
            (range(0, 10), range(10, 20), None),
            (range(0, 10), range(2, 3), Some(range(2, 3))),
            (range(0, 0), range(0, 5), None),
        ] {
            assert_eq!(a.intersection(&b), want);
            assert_eq!(b.intersection(&a), want);
        }
    }
}
