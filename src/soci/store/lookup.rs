//! What the store knows: zTOCs of layers, indexes of images, lists for people.

use std::time::SystemTime;

use super::entry::Entry;
use super::records::{missing, to_ms};
use super::{
    ArtifactKind, IndexFilter, IndexRecord, IndexedImage, LEASE, PrefetchRecord, RecordedZtoc, SetBy, Store,
    ZtocRecord, rows, steps::step,
};
use crate::soci::{SociError, SociIndex};
use crate::units::Digest;

impl Store {
    /// The zTOC that was built here of a layer's own bytes, if its blob is here: the one that was recorded last.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn ztoc_for(&self, layer: &Digest) -> Result<Option<RecordedZtoc>, SociError> {
        Ok(self.ztocs_built(layer)?.first().copied())
    }

    /// All zTOCs that were built here of a layer's own bytes and whose blobs are here, the last record first.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn ztocs_built(&self, layer: &Digest) -> Result<Vec<RecordedZtoc>, SociError> {
        let mut known = self.query(|db| rows::ztocs_of(db, layer))?;
        known.retain(|ztoc| self.contains(&ztoc.digest, ztoc.size));
        known.iter().for_each(|ztoc| self.inner.layout.touch(&ztoc.digest));
        Ok(known)
    }

    /// The zTOC that was built here of a layer with this span size, to be used again in a new index. For an hour it is
    /// kept even when every index that lists it is removed.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn reuse_ztoc(&self, layer: &Digest, span_size_bytes: u64) -> Result<Option<RecordedZtoc>, SociError> {
        let lock = self.inner.layout.lock()?;
        let known = self.query(|db| rows::ztocs_of(db, layer))?;
        let fits = |z: &RecordedZtoc| z.span_size_bytes == Some(span_size_bytes) && self.contains(&z.digest, z.size);
        let Some(found) = known.into_iter().find(fits) else { return Ok(None) };
        self.inner.layout.touch(&found.digest);
        let until_ms = to_ms(SystemTime::now() + LEASE);
        self.change(&lock, |db| rows::lease(db, &found.digest, until_ms))?;
        Ok(Some(found))
    }

    /// What the artifact with this digest is; `None` when it is not in the store.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn kind_of(&self, artifact: &Digest) -> Result<Option<ArtifactKind>, SociError> {
        let kind = self.query(|db| rows::kind(db, artifact))?;
        Ok(kind.filter(|_| self.inner.layout.blob_state(artifact).is_some()))
    }

    /// The index with this digest, as it was stored; `None` when it is not in the store.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::Corrupt`], [`SociError::Database`], [`SociError::Locked`].
    pub fn index(&self, digest: &Digest) -> Result<Option<Vec<u8>>, SociError> {
        match self.kind_of(digest)? {
            Some(kind) if kind.is_index() => self.read(digest).map(Some),
            _ => Ok(None),
        }
    }

    /// The indexes of an image, best first: what the user mapped, what was made here, what a registry named; the latest
    /// first among equals.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn indexes_of(&self, manifest: &Digest) -> Result<Vec<IndexRecord>, SociError> {
        let mut found = self.query(|db| rows::indexes_of(db, manifest))?;
        found.retain(|record| self.contains(&record.digest, record.size));
        Ok(found)
    }

    /// Indexes with their images, newest first. An index of several images comes several times; one that is known for an
    /// image under a reference does not come without it as well.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn indexes(&self, filter: &IndexFilter) -> Result<Vec<IndexRecord>, SociError> {
        let all = self.query(|db| rows::indexes(db, filter))?;
        let mut listed: Vec<IndexRecord> = Vec::new();
        for record in all.into_iter().filter(|record| self.contains(&record.digest, record.size)) {
            let image = record.image.as_ref().map(|image| (image.manifest, image.image_ref.as_ref()));
            let same = |old: &IndexRecord, named: bool| {
                let old_image = old.image.as_ref().map(|image| (image.manifest, image.image_ref.as_ref()));
                old.digest == record.digest
                    && old_image.map(|(manifest, _)| manifest) == image.map(|(manifest, _)| manifest)
                    && (named || old_image == image)
            };
            let has_ref = image.is_some_and(|(_, image_ref)| image_ref.is_some());
            if has_ref {
                listed.retain(|old| !(same(old, true) && old.image.as_ref().is_some_and(|i| i.image_ref.is_none())));
            }
            if !listed.iter().any(|old| same(old, !has_ref)) {
                listed.push(record);
            }
        }
        Ok(listed)
    }

    /// zTOCs that are here, by layer: all, or that of one digest, or those of an image.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn ztocs(&self, ztoc: Option<&Digest>, image_ref: Option<&str>) -> Result<Vec<ZtocRecord>, SociError> {
        let mut found = self.query(|db| rows::ztocs(db, ztoc, image_ref))?;
        found.retain(|record| self.contains(&record.digest, record.size));
        Ok(found)
    }

    /// Load orders that are here, by layer.
    ///
    /// # Errors
    /// [`SociError::Database`], [`SociError::Locked`].
    pub fn prefetches(&self) -> Result<Vec<PrefetchRecord>, SociError> {
        let mut found = self.query(rows::prefetches)?;
        found.retain(|record| self.contains(&record.digest, record.size));
        Ok(found)
    }

    /// Maps an image to an index of the store, in the place of what the user mapped it to before. Such a mapping counts
    /// before what `create` made and what registries say.
    ///
    /// # Errors
    /// [`SociError::NotInStore`] for an index that is not in the store, [`SociError::Store`], [`SociError::Locked`].
    pub fn map_image(&self, image: &IndexedImage, index: &Digest) -> Result<(), SociError> {
        let layout = &self.inner.layout;
        let lock = layout.lock()?;
        let bytes = self.index(index)?.ok_or_else(|| missing("SOCI index", *index))?;
        let kind = rows::kind_of(&SociIndex::parse(&bytes)?);
        let image = IndexedImage { set_by: SetBy::User, ..image.clone() };
        self.unmap_locked(&lock, &image.manifest)?;
        layout.list(
            &lock,
            &Entry {
                digest: *index,
                size: crate::units::u64_from_usize(bytes.len()),
                artifact_type: kind.artifact_type().to_owned(),
                location: String::new(),
                created_at_ms: to_ms(SystemTime::now()),
                image: Some(image.clone()),
            },
        )?;
        step("map: listed")?;
        self.change(&lock, |db| rows::set_image(db, index, &image))
    }

    /// Forgets what the user mapped an image to; gives whether there was something.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::Locked`].
    pub fn unmap_image(&self, manifest: &Digest) -> Result<bool, SociError> {
        let lock = self.inner.layout.lock()?;
        self.unmap_locked(&lock, manifest)
    }

    fn unmap_locked(&self, lock: &super::layout::Locked, manifest: &Digest) -> Result<bool, SociError> {
        let removed = self.change(lock, |db| rows::unset_image(db, manifest, SetBy::User))?;
        step("unmap: rows")?;
        let mapped =
            |entry: &Entry| entry.image.as_ref().is_some_and(|i| i.manifest == *manifest && i.set_by == SetBy::User);
        let dropped = self.inner.layout.retain(lock, |entry| !Entry::from_json(entry).is_some_and(|e| mapped(&e)))?;
        Ok(removed + dropped > 0)
    }
}
