//! A reader of flatbuffers documents that trusts nothing: every read is checked against the document's bounds.
//!
//! Only what a zTOC needs, after the flatbuffers binary format
//! (<https://flatbuffers.dev/internals/>). All integers are little-endian:
//!
//! - the document starts with the u32 offset of the root table;
//! - a table starts with an i32: its own position minus that of its vtable;
//! - a vtable holds u16s: its length in bytes, the table's length, then for each field its offset in the table, 0 for
//!   "default";
//! - a field that is a string, vector or table holds a u32 offset from its own position;
//! - a vector starts with a u32 count; a string is a vector of bytes, and read as such, since zTOC strings need not be
//!   UTF-8.
//!
//! Alignment is of no matter to byte-wise reads and is not asked for. Offsets are unsigned and lead forward, but a
//! table may be reached many times: whoever walks a document bounds his own work.

/// A read beyond the document: where, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    /// Byte position of the read, from the start of the document.
    pub at: usize,
    /// What should have been there.
    pub what: &'static str,
}

type Result<T> = std::result::Result<T, Damage>;

/// A document.
#[derive(Clone, Copy)]
pub(super) struct Doc<'a>(&'a [u8]);

impl<'a> Doc<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn len(self) -> usize {
        self.0.len()
    }

    pub fn root(self) -> Result<Table<'a>> {
        let at = self.offset(0, "root table")?;
        Table::at(self, at)
    }

    fn bytes(self, at: usize, len: usize, what: &'static str) -> Result<&'a [u8]> {
        let end = at.checked_add(len).ok_or(Damage { at, what })?;
        self.0.get(at..end).ok_or(Damage { at, what })
    }

    fn array<const N: usize>(self, at: usize, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().ok_or(Damage { at, what })
    }

    fn u32(self, at: usize, what: &'static str) -> Result<u32> {
        self.array(at, what).map(u32::from_le_bytes)
    }

    /// Follows the offset that stands at `at`.
    fn offset(self, at: usize, what: &'static str) -> Result<usize> {
        let distance = usize::try_from(self.u32(at, what)?).map_err(|_| Damage { at, what })?;
        at.checked_add(distance).filter(|&to| to < self.len()).ok_or(Damage { at, what })
    }
}

/// A table whose vtable lies within the document.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    doc: Doc<'a>,
    at: usize,
    /// The vtable's field offsets, two bytes each.
    fields: &'a [u8],
}

impl<'a> Table<'a> {
    fn at(doc: Doc<'a>, at: usize) -> Result<Self> {
        let damage = |what| Damage { at, what };
        let back = i64::from(i32::from_le_bytes(doc.array(at, "table")?));
        let vtable = i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok()).ok_or(damage("vtable"))?;
        let vtable_bytes = usize::from(u16::from_le_bytes(doc.array(vtable, "vtable")?));
        let fields = doc.bytes(vtable, vtable_bytes, "vtable")?.get(4..).ok_or(damage("vtable"))?;
        Ok(Self { doc, at, fields })
    }

    /// Where the field of this slot lies; `None` when it has its default.
    fn field(self, slot: usize) -> Option<usize> {
        let bytes = self.fields.get(2 * slot..)?.first_chunk()?;
        let offset = usize::from(u16::from_le_bytes(*bytes));
        (offset != 0).then(|| self.at.saturating_add(offset))
    }

    fn scalar<const N: usize>(self, slot: usize) -> Result<Option<[u8; N]>> {
        self.field(slot).map(|at| self.doc.array(at, "number")).transpose()
    }

    pub fn i8(self, slot: usize, default: i8) -> Result<i8> {
        Ok(self.scalar(slot)?.map_or(default, i8::from_le_bytes))
    }

    pub fn i32(self, slot: usize) -> Result<i32> {
        Ok(self.scalar(slot)?.map_or(0, i32::from_le_bytes))
    }

    pub fn u32(self, slot: usize) -> Result<u32> {
        Ok(self.scalar(slot)?.map_or(0, u32::from_le_bytes))
    }

    pub fn i64(self, slot: usize) -> Result<i64> {
        Ok(self.scalar(slot)?.map_or(0, i64::from_le_bytes))
    }

    /// A string or vector of bytes with its position in the document; empty at 0 when absent.
    pub fn bytes_at(self, slot: usize, what: &'static str) -> Result<(usize, &'a [u8])> {
        let Some(field) = self.field(slot) else { return Ok((0, &[])) };
        self.doc.offset(field, what).and_then(|at| bytes_at(self.doc, at, what))
    }

    /// A string or vector of bytes; empty when absent.
    pub fn bytes(self, slot: usize, what: &'static str) -> Result<&'a [u8]> {
        self.bytes_at(slot, what).map(|(_, bytes)| bytes)
    }

    /// A table; `None` when absent.
    pub fn table(self, slot: usize, what: &'static str) -> Result<Option<Table<'a>>> {
        self.field(slot).map(|field| Table::at(self.doc, self.doc.offset(field, what)?)).transpose()
    }

    /// A vector of offsets; empty when absent. Its elements lie within the document, so that its length is bounded.
    pub fn vector(self, slot: usize, what: &'static str) -> Result<Vector<'a>> {
        let Some(field) = self.field(slot) else { return Ok(Vector { doc: self.doc, at: 0, len: 0, what }) };
        let at = self.doc.offset(field, what)?;
        let damage = Damage { at, what };
        let len = usize::try_from(self.doc.u32(at, what)?).map_err(|_| damage)?;
        let elements = at.checked_add(4).ok_or(damage)?;
        self.doc.bytes(elements, len.checked_mul(4).ok_or(damage)?, what)?;
        Ok(Vector { doc: self.doc, at: elements, len, what })
    }
}

/// A vector of offsets to strings or tables.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a> {
    doc: Doc<'a>,
    at: usize,
    len: usize,
    what: &'static str,
}

impl<'a> Vector<'a> {
    pub fn len(self) -> usize {
        self.len
    }

    /// The table at `index`, which must lie below [`len`](Self::len) to be of this vector.
    pub fn table(self, index: usize) -> Result<Table<'a>> {
        Table::at(self.doc, self.element(index)?)
    }

    /// The string at `index`, which must lie below [`len`](Self::len) to be of this vector.
    pub fn bytes(self, index: usize) -> Result<&'a [u8]> {
        bytes_at(self.doc, self.element(index)?, self.what).map(|(_, bytes)| bytes)
    }

    fn element(self, index: usize) -> Result<usize> {
        let damage = Damage { at: self.at, what: self.what };
        let at = index.checked_mul(4).and_then(|bytes| self.at.checked_add(bytes)).ok_or(damage)?;
        self.doc.offset(at, self.what)
    }
}

fn bytes_at<'a>(doc: Doc<'a>, at: usize, what: &'static str) -> Result<(usize, &'a [u8])> {
    let damage = Damage { at, what };
    let len = usize::try_from(doc.u32(at, what)?).map_err(|_| damage)?;
    let start = at.checked_add(4).ok_or(damage)?;
    Ok((start, doc.bytes(start, len, what)?))
}
