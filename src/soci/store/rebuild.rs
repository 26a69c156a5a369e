//! The database made of the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::time::SystemTime;

use rusqlite::Connection;
use serde_json::Value;

use super::entry::{Entry, digest_of};
use super::layout::{Layout, Locked};
use super::records::{ArtifactKind, IndexedImage, Rebuilt, SetBy, to_ms};
use super::rows::{self, NewArtifact};
use super::{MAX_INDEX_BYTES, Store, steps::step};
use crate::registry::document::media_type;
use crate::soci::{SociError, SociIndex, ZTOC_TYPE};
use crate::units::{BlobOffset, Digest};

/// SOCI's own limit: shorter files are no documents.
const MIN_INDEX_BYTES: u64 = 10;

/// What the files say.
pub(super) struct Found {
    indexes: BTreeMap<Digest, FoundIndex>,
    ztocs: Vec<(Digest, super::RecordedZtoc, SystemTime)>,
}

struct FoundIndex {
    size: u64,
    location: String,
    created_at_ms: i64,
    images: Vec<IndexedImage>,
    index: SociIndex,
}

impl Store {
    /// Makes the whole database anew from the files, and drops entries of the layout whose blobs are gone.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::StoreDocument`] when `index.json` is damaged, [`SociError::Locked`].
    pub fn rebuild(&self) -> Result<Rebuilt, SociError> {
        let lock = self.inner.layout.lock()?;
        let layout = &self.inner.layout;
        let found = scan(layout)?;
        self.change(&lock, |db| {
            rows::clear(db)?;
            fill(db, &found)
        })?;
        step("rebuild: rows")?;
        let dropped = drop_dangling(layout, &lock)?;
        let artifacts = self.query(rows::artifacts)?;
        let present = artifacts.iter().filter(|(digest, ..)| layout.blob_state(digest).is_some());
        let mut rebuilt = Rebuilt { dropped, ..Rebuilt::default() };
        for (_, kind, _) in present {
            match kind {
                ArtifactKind::Ztoc => rebuilt.ztocs += 1,
                ArtifactKind::Prefetch => rebuilt.prefetches += 1,
                ArtifactKind::IndexV1 | ArtifactKind::IndexV2 | ArtifactKind::IndexOwn => rebuilt.indexes += 1,
            }
        }
        Ok(rebuilt)
    }
}

/// Writes what was found into an empty database.
pub(super) fn fill(db: &Connection, found: &Found) -> rusqlite::Result<()> {
    for (digest, index) in &found.indexes {
        let artifact = NewArtifact {
            digest: *digest,
            kind: rows::kind_of(&index.index),
            size: index.size,
            media_type: media_type::OCI_MANIFEST,
            location: &index.location,
            created_at_ms: index.created_at_ms,
        };
        rows::add_index(db, &artifact, &index.index)?;
        for image in &index.images {
            rows::set_image(db, digest, image)?;
        }
    }
    for (layer, ztoc, created_at) in &found.ztocs {
        let artifact = NewArtifact {
            digest: ztoc.digest,
            kind: ArtifactKind::Ztoc,
            size: ztoc.size.get(),
            media_type: ZTOC_TYPE,
            location: "",
            created_at_ms: to_ms(*created_at),
        };
        rows::add_artifact(db, &artifact)?;
        rows::record_ztoc(db, layer, ztoc)?;
    }
    Ok(())
}

/// Reads the files.
pub(super) fn scan(layout: &Layout) -> Result<Found, SociError> {
    let mut indexes = BTreeMap::new();
    for entry in layout.descriptors()?.iter().filter_map(Entry::from_json) {
        let Some(found) = find_index(layout, entry.digest, &mut indexes) else { continue };
        found.location.clone_from(&entry.location);
        found.created_at_ms = entry.created_at_ms;
        match entry.image {
            Some(image) => found.images.push(image),
            // Entries that name no image are of earlier versions, which wrote them for indexes that were made here.
            None => found.images.extend(subject(&found.index, SetBy::Create)),
        }
    }
    for digest in layout.blobs()? {
        let listed = indexes.contains_key(&digest);
        let Some(found) = find_index(layout, digest, &mut indexes).filter(|_| !listed) else { continue };
        // Nobody says that it was made here.
        found.images.extend(subject(&found.index, SetBy::Registry));
    }
    let mut ztocs = Vec::new();
    for layer in layout.layers()? {
        for ztoc in layout.ztocs_of(&layer)? {
            let state = layout.blob_state(&ztoc.digest).filter(|(size, _)| *size == ztoc.size.get());
            ztocs.extend(state.map(|(_, modified)| (layer, ztoc, modified)));
        }
    }
    Ok(Found { indexes, ztocs })
}

/// The image of a v1 index, or of one of ours, by the index itself.
pub(super) fn subject(index: &SociIndex, set_by: SetBy) -> Option<IndexedImage> {
    let manifest = index.kind.subject()?.digest;
    Some(IndexedImage { manifest, image_ref: None, platform: None, set_by })
}

/// The index with this digest, read from its blob the first time; `None` when the blob is absent, damaged or no index.
fn find_index<'a>(
    layout: &Layout,
    digest: Digest,
    indexes: &'a mut BTreeMap<Digest, FoundIndex>,
) -> Option<&'a mut FoundIndex> {
    use std::collections::btree_map::Entry as Place;
    match indexes.entry(digest) {
        Place::Occupied(place) => Some(place.into_mut()),
        Place::Vacant(place) => {
            let (size, modified) = layout.blob_state(&digest)?;
            let index = read_index(layout, &digest, size)?;
            let created_at_ms = to_ms(modified);
            let location = String::new();
            Some(place.insert(FoundIndex { size, location, created_at_ms, images: Vec::new(), index }))
        }
    }
}

fn read_index(layout: &Layout, digest: &Digest, size: u64) -> Option<SociIndex> {
    if !(MIN_INDEX_BYTES..=MAX_INDEX_BYTES).contains(&size) {
        return None;
    }
    let mut file = File::open(layout.blob_path(digest)).ok()?;
    // A zTOC, of which there are many and large ones, is not read further than this.
    let mut bytes = vec![0];
    file.read_exact(&mut bytes).ok().filter(|()| bytes == b"{")?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).ok()?;
    if Digest::of(&bytes) != *digest {
        tracing::warn!(%digest, "a blob of the local store is damaged and left out");
        return None;
    }
    SociIndex::parse(&bytes).ok()
}

/// Drops what `index.json` and the layer files say of blobs that are gone; gives how many.
fn drop_dangling(layout: &Layout, lock: &Locked) -> Result<usize, SociError> {
    let gone = |entry: &Value| digest_of(entry).is_some_and(|digest| layout.blob_state(&digest).is_none());
    let mut dropped = layout.retain(lock, |entry| !gone(entry))?;
    for layer in layout.layers()? {
        let all = layout.ztocs_of(&layer)?;
        let here: Vec<_> = all.iter().filter(|z| layout.contains(&z.digest, z.size)).copied().collect();
        if here.len() != all.len() || all.is_empty() {
            layout.set_ztocs_of(lock, &layer, &here)?;
            dropped += all.len() - here.len();
        }
    }
    Ok(dropped)
}

/// The parts of an index that are not in the store.
pub(super) fn missing_parts(layout: &Layout, index: &SociIndex) -> BTreeSet<Digest> {
    let ztocs = index.ztocs.iter().map(|z| (z.digest, z.size));
    let parts = ztocs.chain(index.prefetch.iter().map(|p| (p.digest, p.size)));
    parts.filter(|(digest, size): &(Digest, BlobOffset)| !layout.contains(digest, *size)).map(|(d, _)| d).collect()
}
