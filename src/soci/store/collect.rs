//! Removing: an index and what only it needs, and what nothing refers to.
//!
//! Rows go first, in one transaction, then entries of the layout, then blobs: a crash in between leaves blobs that the
//! next [`Store::sweep`] takes. What mounts use is named by the caller and stays.

use std::collections::{BTreeSet, HashSet};
use std::time::SystemTime;

use rusqlite::Connection;
use serde_json::Value;

use super::entry::{Entry, digest_of};
use super::layout::Locked;
use super::records::{missing, to_ms};
use super::{ArtifactKind, IndexFilter, Removed, SetBy, Store, rows, steps::step};
use crate::registry::document::{ManifestDocument, parse_manifest};
use crate::soci::{CONFIG, OWN_TYPE, SociError, V1_TYPE, V2_TYPE};
use crate::units::Digest;

/// What a transaction took out of the database.
#[derive(Default)]
struct Forgotten {
    indexes: Vec<Digest>,
    blobs: Vec<Digest>,
    /// Layers whose zTOCs are among the blobs.
    layers: BTreeSet<Digest>,
}

impl Store {
    /// Removes indexes, and the zTOCs and load orders that no other index lists. `in_use` are blobs that mounts need.
    ///
    /// # Errors
    /// [`SociError::NotInStore`] when one of the digests is no index of the store (nothing is removed then),
    /// [`SociError::Store`], [`SociError::Locked`].
    pub fn remove_indexes(&self, indexes: &[Digest], in_use: &HashSet<Digest>) -> Result<Removed, SociError> {
        let lock = self.inner.layout.lock()?;
        for index in indexes {
            if !self.query(|db| rows::kind(db, index))?.is_some_and(ArtifactKind::is_index) {
                return Err(missing("SOCI index", *index));
            }
        }
        self.remove(&lock, indexes, in_use)
    }

    /// Removes the indexes of the image that the user named so. An index that belongs to other images, too, stays for
    /// them.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::Locked`].
    pub fn remove_ref(&self, image_ref: &str, in_use: &HashSet<Digest>) -> Result<Removed, SociError> {
        let lock = self.inner.layout.lock()?;
        let filter = IndexFilter { image_ref: Some(image_ref.to_owned()), ..IndexFilter::default() };
        let of_image: BTreeSet<Digest> =
            self.query(|db| rows::indexes(db, &filter))?.into_iter().map(|record| record.digest).collect();
        let all = self.query(|db| rows::indexes(db, &IndexFilter::default()))?;
        let manifests: BTreeSet<Digest> = (all.iter())
            .filter_map(|record| record.image.as_ref())
            .filter(|image| image.image_ref.as_deref() == Some(image_ref))
            .map(|image| image.manifest)
            .collect();
        // What the same image is called by digest alone is no other image.
        let of_others = |index: &Digest| {
            (all.iter().filter(|record| record.digest == *index)).filter_map(|record| record.image.as_ref()).any(
                |image| match &image.image_ref {
                    Some(other) => other != image_ref,
                    None => !manifests.contains(&image.manifest),
                },
            )
        };
        let (stay, go): (Vec<Digest>, Vec<Digest>) = of_image.into_iter().partition(of_others);
        self.change(&lock, |db| stay.iter().try_for_each(|index| rows::unset_ref(db, index, image_ref)))?;
        let about_ref = |entry: &Value| {
            let image = Entry::from_json(entry).and_then(|entry| entry.image);
            image.is_some_and(|image| image.image_ref.as_deref() == Some(image_ref))
        };
        self.inner.layout.retain(&lock, |entry| !about_ref(entry))?;
        self.remove(&lock, &go, in_use)
    }

    /// Removes what nobody needs and nobody has used since `before`: indexes that only a registry named, zTOCs and load
    /// orders that no index lists, other blobs that nothing in the layout refers to.
    ///
    /// # Errors
    /// [`SociError::Store`], [`SociError::StoreDocument`], [`SociError::Locked`].
    pub fn sweep(&self, before: SystemTime, in_use: &HashSet<Digest>) -> Result<Removed, SociError> {
        let lock = self.inner.layout.lock()?;
        let layout = &self.inner.layout;
        let is_old = |digest: &Digest| layout.blob_state(digest).is_none_or(|(_, used)| used < before);
        let all = self.query(|db| rows::indexes(db, &IndexFilter::default()))?;
        let wanted: HashSet<Digest> = (all.iter())
            .filter(|record| record.image.as_ref().is_some_and(|image| image.set_by != SetBy::Registry))
            .map(|record| record.digest)
            .collect();
        let cached: BTreeSet<Digest> = all.iter().map(|record| record.digest).collect();
        let mut go = Vec::new();
        for index in cached.into_iter().filter(|index| !wanted.contains(index)) {
            let parts = self.query(|db| rows::parts_of(db, &index))?;
            if is_old(&index) && parts.iter().all(|part| is_old(part) && !in_use.contains(part)) {
                go.push(index);
            }
        }
        let mut removed = self.remove(&lock, &go, in_use)?;
        let now_ms = to_ms(SystemTime::now());
        let orphans = self.change(&lock, |db| {
            let mut orphans = Forgotten::default();
            for (digest, kind, leased_until_ms) in rows::artifacts(db)? {
                let kept = kind.is_index() || in_use.contains(&digest) || leased_until_ms > now_ms || !is_old(&digest);
                if !kept && !rows::is_listed(db, &digest)? {
                    orphans.forget(db, digest)?;
                }
            }
            Ok(orphans)
        })?;
        self.erase(&lock, orphans, &mut removed)?;
        let known: HashSet<Digest> = self.query(rows::artifacts)?.into_iter().map(|(digest, ..)| digest).collect();
        // What a crash left half removed.
        layout.retain(&lock, |entry| {
            Entry::from_json(entry).is_none_or(|entry| {
                known.contains(&entry.digest) || !matches!(entry.artifact_type.as_str(), V1_TYPE | V2_TYPE | OWN_TYPE)
            })
        })?;
        let layers = layout.layers()?;
        let reachable = self.reachable()?;
        let mut left = Forgotten { layers: layers.into_iter().collect(), ..Forgotten::default() };
        left.blobs = layout.blobs()?;
        left.blobs.retain(|blob| {
            !known.contains(blob)
                && !in_use.contains(blob)
                && !reachable.contains(blob)
                && *blob != Digest::of(CONFIG)
                && is_old(blob)
        });
        let gone: HashSet<Digest> = left.blobs.iter().copied().collect();
        let mut touched = BTreeSet::new();
        for layer in left.layers {
            if layout.ztocs_of(&layer)?.iter().any(|ztoc| gone.contains(&ztoc.digest)) {
                touched.insert(layer);
            }
        }
        left.layers = touched;
        self.erase(&lock, left, &mut removed)?;
        Ok(removed)
    }

    fn remove(&self, lock: &Locked, indexes: &[Digest], in_use: &HashSet<Digest>) -> Result<Removed, SociError> {
        let now_ms = to_ms(SystemTime::now());
        let indexes: BTreeSet<Digest> = indexes.iter().copied().collect();
        let forgotten = self.change(lock, |db| {
            let mut forgotten = Forgotten { indexes: indexes.iter().copied().collect(), ..Forgotten::default() };
            let mut parts = BTreeSet::new();
            for index in &indexes {
                parts.extend(rows::parts_of(db, index)?);
                rows::forget(db, index)?;
            }
            for part in parts.difference(&indexes).filter(|part| !in_use.contains(part)) {
                let kind = rows::kind(db, part)?;
                let is_part = kind.is_some_and(|kind| !kind.is_index());
                if is_part && !rows::is_listed(db, part)? && rows::leased_until(db, part)? <= now_ms {
                    forgotten.forget(db, *part)?;
                }
            }
            Ok(forgotten)
        })?;
        step("remove: rows")?;
        let mut removed = Removed::default();
        self.erase(lock, forgotten, &mut removed)?;
        Ok(removed)
    }

    /// Takes out of the layout what is out of the database.
    fn erase(&self, lock: &Locked, forgotten: Forgotten, removed: &mut Removed) -> Result<(), SociError> {
        let layout = &self.inner.layout;
        let indexes: HashSet<Digest> = forgotten.indexes.iter().copied().collect();
        if !indexes.is_empty() {
            layout.retain(lock, |entry| !digest_of(entry).is_some_and(|digest| indexes.contains(&digest)))?;
            step("remove: listed")?;
        }
        let blobs: HashSet<Digest> = forgotten.blobs.iter().copied().collect();
        for layer in &forgotten.layers {
            let mut ztocs = layout.ztocs_of(layer)?;
            ztocs.retain(|ztoc| !blobs.contains(&ztoc.digest));
            layout.set_ztocs_of(lock, layer, &ztocs)?;
            step("remove: layer file")?;
        }
        for digest in forgotten.indexes.iter().chain(&forgotten.blobs) {
            removed.freed_bytes += layout.remove_blob(digest)?;
            step("remove: blob")?;
        }
        removed.indexes.extend(forgotten.indexes);
        removed.blobs.extend(forgotten.blobs);
        Ok(())
    }

    /// Blobs that `index.json` refers to, directly or through manifests. Other programs may keep images in the layout.
    fn reachable(&self) -> Result<HashSet<Digest>, SociError> {
        let layout = &self.inner.layout;
        let mut open: Vec<Digest> = layout.descriptors()?.iter().filter_map(digest_of).collect();
        let mut reached = HashSet::new();
        while let Some(digest) = open.pop() {
            if !reached.insert(digest) {
                continue;
            }
            let small = layout.blob_state(&digest).is_some_and(|(size, _)| size <= super::MAX_INDEX_BYTES);
            let Some(bytes) = small.then(|| std::fs::read(layout.blob_path(&digest)).ok()).flatten() else { continue };
            match parse_manifest(&bytes, None) {
                Ok(ManifestDocument::Manifest(manifest)) => {
                    open.push(manifest.config.digest);
                    open.extend(manifest.layers.iter().map(|layer| layer.digest));
                }
                Ok(ManifestDocument::Index(index)) => open.extend(index.manifests.iter().map(|m| m.digest)),
                Err(_) => {}
            }
        }
        Ok(reached)
    }
}

impl Forgotten {
    fn forget(&mut self, db: &Connection, blob: Digest) -> rusqlite::Result<()> {
        self.layers.extend(rows::layers_of(db, &blob)?);
        rows::forget(db, &blob)?;
        self.blobs.push(blob);
        Ok(())
    }
}
