//! The table of contents of a zTOC.

use std::borrow::Cow;

use super::flat::{Table, Vector};
use super::{EntryFault, Ztoc, ZtocError};
use crate::spans::entry::{printable, sort_records};
use crate::spans::{EntryKind, ModTime, TocEntry};
use crate::units::{LayerOffset, LayerRange};

/// How many times the document's size its entries may claim. Writers may share equal strings and tables; without a
/// bound, a small document whose entries all refer to one large string would claim gigabytes.
const CLAIM_FACTOR: usize = 8;

/// In a tar, data begin at a multiple of this. The synthesized image with 512-byte blocks rests on it.
const TAR_BLOCK_BYTES: u64 = 512;

/// The least that an entry or a PAX record takes up in memory.
const CLAIM_PER_ITEM_BYTES: usize = 16;

/// Iterator over the entries of a zTOC, in the order of the document; ends after the first error.
pub struct Entries<'a> {
    metadata: Vector<'a>,
    next: usize,
    layer_size: LayerOffset,
    document_bytes: usize,
    claimed_bytes: usize,
}

impl<'a> Entries<'a> {
    pub(super) fn new(ztoc: &Ztoc<'a>) -> Self {
        Self {
            metadata: ztoc.metadata,
            next: 0,
            layer_size: ztoc.layer_size(),
            document_bytes: ztoc.doc.len(),
            claimed_bytes: 0,
        }
    }

    fn read(&mut self, index: usize) -> Result<TocEntry<'a>, ZtocError> {
        let table = self.metadata.table(index)?;
        let name = table.bytes(0, "entry name")?;
        let at = |source: EntryFault| ZtocError::Entry { index, name: printable(name), source };
        let (kind, data) = placement(table, self.layer_size).map_err(|fault| fault.of(at))?;
        let number = |slot, field| {
            let value = table.i64(slot)?;
            u32::try_from(value).map_err(|_| at(EntryFault::Number { field, value }))
        };
        let bytes = |slot, what| table.bytes(slot, what).map(Cow::Borrowed);

        let mut entry = TocEntry {
            name: Cow::Borrowed(name),
            kind,
            data,
            linkname: bytes(4, "link name")?,
            mode: number(5, "mode")?,
            uid: table.u32(6)?,
            gid: table.u32(7)?,
            uname: bytes(8, "owner name")?,
            gname: bytes(9, "group name")?,
            mtime: ModTime::from_text(table.bytes(10, "modification time")?).map_err(|e| at(e.into()))?,
            devmajor: number(11, "device major number")?,
            devminor: number(12, "device minor number")?,
            pax: Vec::new(),
        };
        self.claim(name.len() + entry.linkname.len() + entry.uname.len() + entry.gname.len())?;

        let records = table.vector(13, "PAX records")?;
        self.claim(records.len().saturating_mul(CLAIM_PER_ITEM_BYTES))?;
        entry.pax.reserve_exact(records.len());
        for i in 0..records.len() {
            let record = records.table(i)?;
            let (key, value) = (record.bytes(0, "PAX key")?, record.bytes(1, "PAX value")?);
            self.claim(key.len() + value.len())?;
            entry.pax.push((Cow::Borrowed(key), Cow::Borrowed(value)));
        }
        sort_records(&mut entry.pax);
        Ok(entry)
    }

    fn claim(&mut self, bytes: usize) -> Result<(), ZtocError> {
        let limit_bytes = self.document_bytes.saturating_mul(CLAIM_FACTOR);
        self.claimed_bytes = self.claimed_bytes.saturating_add(bytes).saturating_add(CLAIM_PER_ITEM_BYTES);
        if self.claimed_bytes <= limit_bytes {
            return Ok(());
        }
        Err(ZtocError::Inflated { document_bytes: self.document_bytes, limit_bytes })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<TocEntry<'a>, ZtocError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next;
        if index >= self.metadata.len() {
            return None;
        }
        let entry = self.read(index);
        self.next = if entry.is_ok() { index + 1 } else { usize::MAX };
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.metadata.len().saturating_sub(self.next)))
    }
}

/// Checks that every entry lies within the layer and that no two files share data.
pub(super) fn check_placement(ztoc: &Ztoc<'_>) -> Result<(), ZtocError> {
    let layer_size = ztoc.layer_size();
    let mut files = Vec::new();
    for index in 0..ztoc.metadata.len() {
        let table = ztoc.metadata.table(index)?;
        let (kind, data) = match placement(table, layer_size) {
            Ok(placement) => placement,
            Err(fault) => {
                let name = printable(table.bytes(0, "entry name")?);
                return Err(fault.of(|source| ZtocError::Entry { index, name, source }));
            }
        };
        if kind == EntryKind::Reg && !data.is_empty() {
            files.push((data, index));
        }
    }
    if !files.is_sorted_by_key(|(data, _)| data.start()) {
        files.sort_unstable_by_key(|(data, index)| (data.start(), *index));
    }
    for pair in files.windows(2) {
        let [(data, index), (next_data, next_index)] = pair else { continue };
        if let Some(shared) = data.intersection(next_data) {
            let name = |index| Ok::<_, ZtocError>(printable(ztoc.metadata.table(index)?.bytes(0, "entry name")?));
            return Err(ZtocError::Overlap { first: name(*index)?, second: name(*next_index)?, shared });
        }
    }
    Ok(())
}

/// Damage, or a fault that still lacks the entry's name.
enum PlacementError {
    Damage(super::flat::Damage),
    Fault(EntryFault),
}

impl PlacementError {
    fn of(self, entry: impl FnOnce(EntryFault) -> ZtocError) -> ZtocError {
        match self {
            Self::Damage(damage) => damage.into(),
            Self::Fault(fault) => entry(fault),
        }
    }
}

impl From<super::flat::Damage> for PlacementError {
    fn from(damage: super::flat::Damage) -> Self {
        Self::Damage(damage)
    }
}

/// What an entry is, and where its data lie. Only regular files have data: archive/tar ignores the size of others.
fn placement(table: Table<'_>, layer_size: LayerOffset) -> Result<(EntryKind, LayerRange), PlacementError> {
    let fault = PlacementError::Fault;
    let word = table.bytes(1, "entry type")?;
    let kind = EntryKind::from_word(word).ok_or_else(|| fault(EntryFault::Kind { found: printable(word) }))?;
    let unsigned = |slot, field| {
        let value = table.i64(slot)?;
        u64::try_from(value).map_err(|_| fault(EntryFault::Number { field, value }))
    };
    let offset = unsigned(2, "data offset")?;
    let claimed_bytes = unsigned(3, "size")?;
    let size_bytes = if kind == EntryKind::Reg { claimed_bytes } else { 0 };
    let data = LayerRange::from_len(LayerOffset::new(offset), size_bytes).filter(|data| data.end() <= layer_size);
    let data = data.ok_or_else(|| fault(EntryFault::BeyondLayer { offset, size_bytes, layer_size }))?;
    if !data.is_empty() && !offset.is_multiple_of(TAR_BLOCK_BYTES) {
        return Err(fault(EntryFault::Unaligned { offset }));
    }
    Ok((kind, data))
}
