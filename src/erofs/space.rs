//! Where the bytes of an image come from.

mod saved;

use super::ErofsError;
use crate::units::{DeviceOffset, DeviceRange, LayerOffset, LayerRange, Offset, u64_from_usize};

/// The block size of the aligned form.
const BLOCK: u64 = 4096;

/// Longest run of one row: files beyond it take several rows. A multiple of the block size that fits into 32 bits, so
/// that a row takes 16 bytes.
const MAX_ROW_BYTES: u64 = 1 << 31;

/// A run of layer bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    layer_start: u64,
    device_block: u32,
    len_bytes: u32,
}

const _: () = assert!(size_of::<Row>() == 16);

impl Row {
    /// Appends the rows of a file whose blocks begin at `device_block`. All its blocks must be countable in 32 bits.
    pub(super) fn push_all(rows: &mut Vec<Self>, device_block: u32, data: LayerRange) {
        let (mut device_block, mut layer_start) = (device_block, data.start().get());
        let mut left = data.len_bytes();
        while left > 0 {
            // At most 2^31, hence within 32 bits.
            let len_bytes = left.min(MAX_ROW_BYTES) as u32;
            rows.push(Self { layer_start, device_block, len_bytes });
            left -= u64::from(len_bytes);
            layer_start += u64::from(len_bytes);
            device_block = device_block.saturating_add((MAX_ROW_BYTES / BLOCK) as u32);
        }
    }

    fn device_start(&self) -> u64 {
        u64::from(self.device_block) * BLOCK
    }

    fn device_end(&self) -> u64 {
        self.device_start() + u64::from(self.len_bytes)
    }

    fn layer_end(&self) -> u64 {
        self.layer_start + u64::from(self.len_bytes)
    }
}

#[derive(Clone, Debug)]
enum Data {
    /// 4 KiB blocks: one row per file (per 2 GiB of it), sorted by both addresses at once.
    Aligned { rows: Box<[Row]> },
    /// 512-byte blocks: the tar follows the metadata.
    Tar { layer_size: LayerOffset },
}

/// The translation table of an image: 16 bytes per non-empty file, and nothing else stays in memory.
#[derive(Clone, Debug)]
pub struct Space {
    metadata_bytes: u64,
    size: DeviceOffset,
    data: Data,
}

/// A run of an image's bytes with one origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes of [`Image::metadata`](super::Image::metadata).
    Metadata {
        /// Position in the metadata.
        offset_bytes: u64,
        /// Length, never 0.
        len_bytes: u64,
    },
    /// Bytes of the layer; never empty.
    Layer(LayerRange),
    /// Bytes that are zero.
    Zeros {
        /// Length, never 0.
        len_bytes: u64,
    },
}

impl Piece {
    /// Length in bytes, never 0.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Metadata { len_bytes, .. } | Self::Zeros { len_bytes } => *len_bytes,
            Self::Layer(range) => range.len_bytes(),
        }
    }
}

impl Space {
    pub(super) fn aligned(metadata_bytes: u64, size: DeviceOffset, rows: Vec<Row>) -> Self {
        Self { metadata_bytes, size, data: Data::Aligned { rows: rows.into_boxed_slice() } }
    }

    pub(super) fn with_tar(metadata_bytes: u64, size: DeviceOffset, layer_size: LayerOffset) -> Self {
        Self { metadata_bytes, size, data: Data::Tar { layer_size } }
    }

    /// Size of the image in bytes: a multiple of 4096 in the device form, of 512 in the other.
    #[must_use]
    pub fn device_size(&self) -> DeviceOffset {
        self.size
    }

    /// Length of the metadata at the start of the image, in bytes; a multiple of 4096.
    #[must_use]
    pub fn metadata_len(&self) -> u64 {
        self.metadata_bytes
    }

    /// Bytes of memory that the table takes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let rows = match &self.data {
            Data::Aligned { rows } => size_of_val(&**rows),
            Data::Tar { .. } => 0,
        };
        u64_from_usize(size_of::<Self>() + rows)
    }

    /// Cuts `range` into pieces that cover it in order, without gap or overlap.
    ///
    /// # Errors
    /// [`ErofsError::OutOfRange`] when the range reaches beyond [`Space::device_size`].
    pub fn pieces(&self, range: DeviceRange) -> Result<Pieces<'_>, ErofsError> {
        if range.end() > self.size {
            return Err(ErofsError::OutOfRange { end: range.end(), size: self.size });
        }
        let (at, end) = (range.start().get(), range.end().get());
        let next_row = match &self.data {
            Data::Aligned { rows } => rows.partition_point(|row| row.device_end() <= at),
            Data::Tar { .. } => 0,
        };
        Ok(Pieces { space: self, at, end, next_row })
    }

    /// The parts of a layer range that the image shows, each with its place on the device, in order.
    pub fn device_ranges(&self, range: LayerRange) -> impl Iterator<Item = (LayerRange, DeviceRange)> {
        let (rows, tar) = match &self.data {
            Data::Aligned { rows } => {
                let from = rows.partition_point(|row| row.layer_end() <= range.start().get());
                (rows.get(from..).unwrap_or_default(), None)
            }
            Data::Tar { layer_size } => {
                let run = LayerRange::new(LayerOffset::ZERO, *layer_size).map(|run| (run, self.metadata_bytes));
                (&[][..], run)
            }
        };
        let rows = rows.iter().map_while(move |row| {
            let run = LayerRange::from_len(LayerOffset::new(row.layer_start), u64::from(row.len_bytes))?;
            (run.start() < range.end()).then_some((run, row.device_start()))
        });
        rows.chain(tar).filter_map(move |(run, device_start)| {
            let part = run.intersection(&range)?;
            let start = device_start + part.start().bytes_since(run.start())?;
            Some((part, DeviceRange::from_len(DeviceOffset::new(start), part.len_bytes())?))
        })
    }
}

/// The pieces of a device range; see [`Space::pieces`].
#[derive(Clone)]
pub struct Pieces<'a> {
    space: &'a Space,
    at: u64,
    end: u64,
    /// The first row that ends behind `at`.
    next_row: usize,
}

impl Pieces<'_> {
    /// What begins at `at`, as long as it goes.
    fn run(&mut self) -> Option<Piece> {
        let (at, space) = (self.at, self.space);
        if at < space.metadata_bytes {
            return Some(Piece::Metadata { offset_bytes: at, len_bytes: space.metadata_bytes - at });
        }
        let layer = |start: u64, len: u64| LayerRange::from_len(LayerOffset::new(start), len).map(Piece::Layer);
        match &space.data {
            Data::Tar { layer_size } => {
                let start = at - space.metadata_bytes;
                match layer_size.get().checked_sub(start) {
                    Some(len) if len > 0 => layer(start, len),
                    _ => Some(Piece::Zeros { len_bytes: space.size.get() - at }),
                }
            }
            Data::Aligned { rows } => match rows.get(self.next_row) {
                Some(row) if row.device_start() <= at => {
                    self.next_row += 1;
                    let skipped = at - row.device_start();
                    layer(row.layer_start + skipped, u64::from(row.len_bytes) - skipped)
                }
                Some(row) => Some(Piece::Zeros { len_bytes: row.device_start() - at }),
                None => Some(Piece::Zeros { len_bytes: space.size.get() - at }),
            },
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let left = self.end.checked_sub(self.at).filter(|&left| left > 0)?;
        let piece = match self.run()? {
            Piece::Metadata { offset_bytes, len_bytes } => {
                Piece::Metadata { offset_bytes, len_bytes: len_bytes.min(left) }
            }
            Piece::Zeros { len_bytes } => Piece::Zeros { len_bytes: len_bytes.min(left) },
            Piece::Layer(range) => Piece::Layer(LayerRange::from_len(range.start(), range.len_bytes().min(left))?),
        };
        self.at += piece.len_bytes();
        Some(piece)
    }
}
