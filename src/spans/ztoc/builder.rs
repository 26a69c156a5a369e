//! A writer of flatbuffers whose bytes are those of Go's `flatbuffers.Builder`.
//!
//! A flatbuffers document may be laid out in many ways. To be byte for byte what SOCI writes, this builder aligns,
//! elides zeros and shares vtables exactly as the Go library does. The Rust library differs in one point: it shares
//! vtables only among tables of equal length, Go also among tables that differ in padding.
//!
//! Documents are built from the end to the front. The bytes are kept reversed, so that "prepend" is `Vec::push`, and
//! turned round at the end. A position is counted from the end of the document, as flatbuffers builders do.

/// Distance from the end of the document to the start of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position(u32);

/// The largest document; signed 32-bit offsets must reach across it.
const MAX_BYTES: usize = i32::MAX as usize;

pub(super) struct Builder {
    /// The document back to front.
    reversed: Vec<u8>,
    min_align: usize,
    /// Positions of the fields of the table being built; 0: not set.
    fields: Vec<u32>,
    /// Position where the table being built ends.
    table_end: u32,
    /// vtables written so far: position and field offsets.
    vtables: Vec<(u32, Vec<u16>)>,
    /// Bytes that are left out of `reversed`: how many bytes stand before them in it, and how many they are.
    hole: Option<(usize, usize)>,
}

/// A document with a hole in it.
pub(super) struct Holed {
    /// What stands before the hole.
    pub head: Vec<u8>,
    /// What stands behind it; empty when there is no hole.
    pub tail: Vec<u8>,
}

impl Builder {
    pub fn new() -> Self {
        Self { reversed: Vec::new(), min_align: 1, fields: Vec::new(), table_end: 0, vtables: Vec::new(), hole: None }
    }

    /// Where the next byte goes. A document that grows too long is refused by [`finish`](Self::finish); until then
    /// its positions mean nothing.
    fn position(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    /// Length so far, the hole included.
    fn len(&self) -> usize {
        self.reversed.len().saturating_add(self.hole.map_or(0, |(_, bytes)| bytes))
    }

    /// Pads so that a value of `size` bytes is aligned once `additional` more bytes stand before it.
    fn align(&mut self, size: usize, additional: usize) {
        self.min_align = self.min_align.max(size);
        let behind = self.len().saturating_add(additional) % size;
        let padding = if behind == 0 { 0 } else { size - behind };
        self.reversed.resize(self.reversed.len() + padding, 0);
    }

    fn place(&mut self, bytes: &[u8]) {
        self.reversed.extend(bytes.iter().rev());
    }

    fn prepend<const N: usize>(&mut self, little_endian: [u8; N]) {
        self.align(N, 0);
        self.place(&little_endian);
    }

    fn prepend_offset(&mut self, to: Position) {
        self.align(4, 0);
        let distance = self.position().wrapping_sub(to.0).wrapping_add(4);
        self.place(&distance.to_le_bytes());
    }

    /// The count in front of a vector's elements.
    fn end_vector(&mut self, len: usize) -> Position {
        self.place(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        Position(self.position())
    }

    /// A string: bytes with a NUL behind.
    pub fn string(&mut self, text: &[u8]) -> Position {
        self.align(4, text.len() + 1);
        self.place(&[0]);
        self.place(text);
        self.end_vector(text.len())
    }

    /// A vector of bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Position {
        self.align(4, bytes.len());
        self.place(bytes);
        self.end_vector(bytes.len())
    }

    /// A vector of `open_bytes` bytes that are left out, with `first` before them. There can be one in a document.
    pub fn bytes_with_hole(&mut self, first: &[u8], open_bytes: usize) -> Position {
        let len = first.len().saturating_add(open_bytes);
        self.align(4, len);
        self.hole = Some((self.reversed.len(), open_bytes));
        self.place(first);
        self.end_vector(len)
    }

    /// A vector of offsets.
    pub fn vector(&mut self, elements: &[Position]) -> Position {
        self.align(4, 4 * elements.len());
        for &element in elements.iter().rev() {
            self.prepend_offset(element);
        }
        self.end_vector(elements.len())
    }

    /// Begins a table of `slots` fields. Tables, strings and vectors cannot be nested: make the inner ones first.
    pub fn start_table(&mut self, slots: usize) {
        self.fields.clear();
        self.fields.resize(slots, 0);
        self.table_end = self.position();
    }

    fn set(&mut self, slot: usize) {
        let position = self.position();
        if let Some(field) = self.fields.get_mut(slot) {
            *field = position;
        }
    }

    pub fn add_i8(&mut self, slot: usize, value: i8, default: i8) {
        if value != default {
            self.prepend(value.to_le_bytes());
            self.set(slot);
        }
    }

    pub fn add_i32(&mut self, slot: usize, value: i32) {
        if value != 0 {
            self.prepend(value.to_le_bytes());
            self.set(slot);
        }
    }

    pub fn add_u32(&mut self, slot: usize, value: u32) {
        if value != 0 {
            self.prepend(value.to_le_bytes());
            self.set(slot);
        }
    }

    pub fn add_i64(&mut self, slot: usize, value: i64) {
        if value != 0 {
            self.prepend(value.to_le_bytes());
            self.set(slot);
        }
    }

    pub fn add_offset(&mut self, slot: usize, to: Position) {
        self.prepend_offset(to);
        self.set(slot);
    }

    /// Ends the table: writes its vtable, or refers to an equal one written before.
    pub fn end_table(&mut self) -> Position {
        self.prepend(0_i32.to_le_bytes());
        let table = self.position();
        let used = self.fields.iter().rposition(|&field| field != 0).map_or(0, |last| last + 1);
        let offsets = self.fields.iter().take(used);
        let offsets: Vec<u16> = offsets.map(|&field| if field == 0 { 0 } else { table_offset(table, field) }).collect();

        let shared = self.vtables.iter().rev().find(|(_, written)| *written == offsets).map(|&(at, _)| at);
        let vtable = shared.unwrap_or_else(|| {
            for offset in offsets.iter().rev() {
                self.prepend(offset.to_le_bytes());
            }
            self.prepend(table_offset(table, self.table_end).to_le_bytes());
            let vtable_bytes = u16::try_from(2 * (offsets.len() + 2)).unwrap_or(u16::MAX);
            self.prepend(vtable_bytes.to_le_bytes());
            let at = self.position();
            self.vtables.push((at, offsets));
            at
        });

        let to_vtable = vtable.wrapping_sub(table).to_be_bytes();
        // The hole lies before the table, seen from the end, unless the table was made before it.
        let hole_bytes = self.hole.filter(|(at, _)| *at < usize::try_from(table).unwrap_or(usize::MAX));
        let end = usize::try_from(table).unwrap_or(usize::MAX).saturating_sub(hole_bytes.map_or(0, |(_, bytes)| bytes));
        let end = self.reversed.len().min(end);
        if let Some(start) = end.checked_sub(4).and_then(|at| self.reversed.get_mut(at..end)) {
            start.copy_from_slice(&to_vtable);
        }
        Position(table)
    }

    /// The document, or `None` when it is too long for flatbuffers (2 GiB).
    pub fn finish(mut self, root: Position) -> Option<Holed> {
        self.align(self.min_align, 4);
        self.prepend_offset(root);
        if self.len() > MAX_BYTES {
            return None;
        }
        let at = self.hole.map_or(0, |(at, _)| at);
        let mut head = self.reversed.split_off(at);
        head.reverse();
        self.reversed.reverse();
        Some(Holed { head, tail: self.reversed })
    }
}

/// A field's offset from the start of its table. Tables of the zTOC schema are shorter than 200 bytes.
fn table_offset(table: u32, field: u32) -> u16 {
    u16::try_from(table.wrapping_sub(field)).unwrap_or(u16::MAX)
}
