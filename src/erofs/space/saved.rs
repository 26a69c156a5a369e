//! A translation table as a file's content: what a daemon leaves for the one that takes over its devices.
//!
//! ```text
//! 0   8      "sbspace1"
//! 8   8      length of the metadata in bytes
//! 16  8      size of the device in bytes
//! 24  8      size of the layer in bytes
//! 32  8      number of rows n; all ones: the tar follows the metadata
//! 40  16 n   rows: start in the layer (8), block of the device (4), length in bytes (4)
//!     32     sha256 of all before
//! ```
//! All numbers little-endian. An image of another writer version is described as well as one of this: that is the point.

use super::{BLOCK, Data, MAX_ROW_BYTES, Row, Space};
use crate::erofs::ErofsError;
use crate::units::{DeviceOffset, Digest, LayerOffset};

const MAGIC: [u8; 8] = *b"sbspace1";
const HEADER_BYTES: usize = 40;
const ROW_BYTES: usize = 16;
const CHECK_BYTES: usize = 32;
const TAR: u64 = u64::MAX;

impl Space {
    /// The table as bytes, for a layer of `layer_size`.
    #[must_use]
    pub fn to_bytes(&self, layer_size: LayerOffset) -> Vec<u8> {
        let (rows, count): (&[Row], u64) = match &self.data {
            Data::Aligned { rows } => (rows, rows.len() as u64),
            Data::Tar { .. } => (&[], TAR),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + rows.len() * ROW_BYTES + CHECK_BYTES);
        bytes.extend(MAGIC);
        for number in [self.metadata_bytes, self.size.get(), layer_size.get(), count] {
            bytes.extend(number.to_le_bytes());
        }
        for row in rows {
            bytes.extend(row.layer_start.to_le_bytes());
            bytes.extend(row.device_block.to_le_bytes());
            bytes.extend(row.len_bytes.to_le_bytes());
        }
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, for a layer of `layer_size`.
    ///
    /// # Errors
    /// [`ErofsError::SavedSpace`] when the bytes are damaged, or rows overlap or leave the device or the layer.
    pub fn from_bytes(bytes: &[u8], layer_size: LayerOffset) -> Result<Self, ErofsError> {
        let bad = |reason| ErofsError::SavedSpace { reason };
        let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(bad("too short"))?;
        if Digest::of(body).as_bytes() != check {
            return Err(bad("its checksum does not fit"));
        }
        let (header, rows) = body.split_first_chunk::<HEADER_BYTES>().ok_or(bad("too short"))?;
        let number = |at: usize| {
            header.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or(bad("too short"))
        };
        if header[..8] != MAGIC {
            return Err(bad("it is of another version"));
        }
        let (metadata_bytes, size, layer, count) = (number(8)?, number(16)?, number(24)?, number(32)?);
        if layer != layer_size.get() {
            return Err(bad("it speaks of a layer of another size"));
        }
        let size = DeviceOffset::new(size);
        if count == TAR {
            let fits = metadata_bytes.checked_add(layer).is_some_and(|end| end <= size.get());
            return if fits { Ok(Self::with_tar(metadata_bytes, size, layer_size)) } else { Err(bad("sizes")) };
        }
        let (rows, rest) = rows.as_chunks::<ROW_BYTES>();
        if !rest.is_empty() || rows.len() as u64 != count {
            return Err(bad("the number of its rows"));
        }
        let rows: Vec<Row> = rows.iter().map(row).collect();
        let (mut device_end, mut layer_end) = (metadata_bytes, 0);
        for row in &rows {
            let sound = (1..=MAX_ROW_BYTES).contains(&u64::from(row.len_bytes))
                && row.device_start() >= device_end
                && row.layer_start >= layer_end
                && row.layer_start.checked_add(u64::from(row.len_bytes)).is_some_and(|end| end <= layer)
                && row.device_end() <= size.get();
            if !sound {
                return Err(bad("a row overlaps another or leaves device or layer"));
            }
            (device_end, layer_end) = (row.device_end(), row.layer_end());
        }
        if !metadata_bytes.is_multiple_of(BLOCK) || metadata_bytes > size.get() {
            return Err(bad("sizes"));
        }
        Ok(Self::aligned(metadata_bytes, size, rows))
    }
}

fn row(bytes: &[u8; ROW_BYTES]) -> Row {
    let [a, b, c, d, e, f, g, h, block @ .., l0, l1, l2, l3] = *bytes;
    Row {
        layer_start: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        device_block: u32::from_le_bytes(block),
        len_bytes: u32::from_le_bytes([l0, l1, l2, l3]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::LayerRange;

    const LAYER: LayerOffset = LayerOffset::new(10_000_000_000);

    fn table() -> Space {
        let mut rows = Vec::new();
        for (block, start, len) in [(2, 512, 5000), (4, 6144, 1), (5, 10_240, 5 << 30)] {
            let data = LayerRange::from_len(LayerOffset::new(start), len).expect("range");
            Row::push_all(&mut rows, block, data);
        }
        Space::aligned(8192, DeviceOffset::new(6 << 30), rows)
    }

    #[test]
    fn what_was_saved_comes_back() {
        for space in [table(), Space::with_tar(4096, DeviceOffset::new(20_000_000_000), LAYER)] {
            let bytes = space.to_bytes(LAYER);
            let back = Space::from_bytes(&bytes, LAYER).expect("reads");
            assert_eq!(back.to_bytes(LAYER), bytes);
            let whole = crate::units::DeviceRange::new(DeviceOffset::ZERO, space.device_size()).expect("range");
            assert!(space.pieces(whole).expect("in range").eq(back.pieces(whole).expect("in range")));
        }
    }

    #[test]
    fn damage_at_any_byte_and_any_cut_is_an_error() {
        let bytes = table().to_bytes(LAYER);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Space::from_bytes(&damaged, LAYER).is_err(), "byte {at}");
            assert!(Space::from_bytes(&bytes[..at], LAYER).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn rows_that_lie_are_refused_even_with_a_right_checksum() {
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = table().to_bytes(LAYER);
            bytes.truncate(bytes.len() - CHECK_BYTES);
            change(&mut bytes);
            let check = Digest::of(&bytes);
            bytes.extend(check.as_bytes());
            Space::from_bytes(&bytes, LAYER)
        };
        assert!(sealed(&|_| {}).is_ok());
        let put = |at: usize, number: u32| {
            move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes())
        };
        // The first row begins at 40: block inside the metadata; length 0; the second row under the first; the first
        // far behind the end of the layer; another number of rows; another magic.
        for (at, number) in [(48, 1), (52, 0), (64, 3), (44, u32::MAX), (32, 4), (0, 0)] {
            assert!(sealed(&put(at, number)).is_err(), "{number} at {at}");
        }
        assert!(Space::from_bytes(&table().to_bytes(LAYER), LayerOffset::new(5)).is_err());
    }
}
