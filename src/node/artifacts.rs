//! The local store for people: lists, documents, removal. Needs no daemon; what a daemon's mounts use is left alone.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::paths::Paths;
use super::state::State;
use crate::registry::{ImageRef, Platform};
use crate::soci::{ArtifactKind, IndexFilter, IndexedImage, SetBy, Store};
pub use crate::soci::{Rebuilt, Removed};
use crate::spans::ztoc::{Ztoc, ZtocInfo};
use crate::units::Digest;

mod rows;

pub use rows::{IndexRow, PrefetchDocument, PrefetchInfo, PrefetchRange, PrefetchRow, ZtocRow};
use rows::{index_row, rfc3339};

/// The store under a root directory.
pub struct Artifacts {
    store: Store,
    state_file: PathBuf,
}

impl Artifacts {
    /// Opens, or makes, the store.
    ///
    /// # Errors
    /// When it cannot be read or written, or is locked.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        let store = Store::open(paths.root()).context("opening the local index store")?;
        Ok(Self { store, state_file: paths.state_file() })
    }

    /// Indexes, newest first, of one image reference and of certain platforms where asked for.
    ///
    /// # Errors
    /// When a platform is none, or the store cannot be read.
    pub fn indexes(&self, image_ref: Option<&str>, platforms: &[String]) -> anyhow::Result<Vec<IndexRow>> {
        let platforms = platforms.iter().map(|text| text.parse()).collect::<Result<Vec<Platform>, _>>()?;
        let filter = IndexFilter { image_ref: image_ref.map(full_name), platforms };
        Ok(self.store.indexes(&filter)?.into_iter().map(index_row).collect())
    }

    /// The document of an index.
    ///
    /// # Errors
    /// When the digest is not that of an index in the store.
    pub fn index(&self, digest: &Digest) -> anyhow::Result<serde_json::Value> {
        self.require(digest, "SOCI index", ArtifactKind::is_index)?;
        let bytes = self.store.read(digest)?;
        serde_json::from_slice(&bytes).with_context(|| format!("SOCI index {digest}"))
    }

    /// Removes indexes and what only they list.
    ///
    /// # Errors
    /// When one of the digests is no index of the store; nothing is removed then.
    pub fn remove_indexes(&self, digests: &[Digest]) -> anyhow::Result<Removed> {
        Ok(self.store.remove_indexes(digests, &self.in_use()?)?)
    }

    /// Removes the indexes of an image and what only they list.
    ///
    /// # Errors
    /// When the store has none.
    pub fn remove_ref(&self, image_ref: &str) -> anyhow::Result<Removed> {
        let name = full_name(image_ref);
        let filter = IndexFilter { image_ref: Some(name.clone()), ..IndexFilter::default() };
        if self.store.indexes(&filter)?.is_empty() {
            bail!("the local store has no index of {name}; `sociblk index ls` lists what it has");
        }
        Ok(self.store.remove_ref(&name, &self.in_use()?)?)
    }

    /// Removes what nobody needs and nobody has used for so long.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn sweep(&self, unused_for: Duration) -> anyhow::Result<Removed> {
        let before = SystemTime::now().checked_sub(unused_for).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(self.store.sweep(before, &self.in_use()?)?)
    }

    /// Maps an image, by its manifest's digest, to an index of the store.
    ///
    /// # Errors
    /// When the index is not in the store.
    pub fn map_image(&self, manifest: Digest, index: &Digest) -> anyhow::Result<()> {
        let image = IndexedImage { manifest, image_ref: None, platform: None, set_by: SetBy::User };
        Ok(self.store.map_image(&image, index)?)
    }

    /// Forgets such a mapping.
    ///
    /// # Errors
    /// When there is none.
    pub fn unmap_image(&self, manifest: &Digest) -> anyhow::Result<()> {
        if !self.store.unmap_image(manifest)? {
            bail!("no index was mapped to {manifest}; `sociblk index ls --json` lists mappings as set_by \"user\"");
        }
        Ok(())
    }

    /// zTOCs: all, or one, or those of an image.
    ///
    /// # Errors
    /// When one is asked for and is not there.
    pub fn ztocs(&self, digest: Option<&Digest>, image_ref: Option<&str>) -> anyhow::Result<Vec<ZtocRow>> {
        let name = image_ref.map(full_name);
        let found = self.store.ztocs(digest, name.as_deref())?;
        if let (Some(digest), true) = (digest, found.is_empty()) {
            match &name {
                Some(name) => bail!("zTOC {digest} is not in the local store, or not in an index of {name}"),
                None => bail!("zTOC {digest} is not in the local store"),
            }
        }
        let row = |z: crate::soci::ZtocRecord| ZtocRow {
            digest: z.digest,
            size: z.size.get(),
            layer_digest: z.layer,
            span_size: z.span_size_bytes,
            built_here: z.built_here,
        };
        Ok(found.into_iter().map(row).collect())
    }

    /// What a zTOC says.
    ///
    /// # Errors
    /// When the digest is not that of a usable zTOC in the store.
    pub fn ztoc_info(&self, digest: &Digest) -> anyhow::Result<ZtocInfo> {
        let bytes = self.ztoc(digest)?;
        Ztoc::parse(&bytes).and_then(|ztoc| ztoc.info()).with_context(|| format!("zTOC {digest}"))
    }

    /// A zTOC document.
    ///
    /// # Errors
    /// When the digest is not that of a zTOC in the store.
    pub fn ztoc(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        self.require(digest, "zTOC", |kind| kind == ArtifactKind::Ztoc)?;
        Ok(self.store.read(digest)?)
    }

    /// The file of a layer that the zTOC describes.
    ///
    /// # Errors
    /// When the store does not have the layer's blob.
    pub fn layer_of(&self, ztoc: &Digest) -> anyhow::Result<PathBuf> {
        let layers = self.store.ztocs(Some(ztoc), None)?;
        let paths = layers.iter().map(|record| self.store.blob_path(&record.layer));
        if let Some(path) = paths.into_iter().find(|path| path.is_file()) {
            return Ok(path);
        }
        let layers: Vec<String> = layers.iter().map(|record| record.layer.to_string()).collect();
        bail!("the blob of layer {} is not in the local store; name its file with --layer", layers.join(" or "));
    }

    /// Load orders.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn prefetches(&self) -> anyhow::Result<Vec<PrefetchRow>> {
        let row = |record: crate::soci::PrefetchRecord| PrefetchRow {
            digest: record.digest,
            layer_digest: record.layer,
            total_spans: self
                .prefetch(&record.digest)
                .map_or(-1, |document| spans_in(&document).try_into().unwrap_or(-1)),
            created_at: rfc3339(record.created_at),
            created: record.created_at,
        };
        Ok(self.store.prefetches()?.into_iter().map(row).collect())
    }

    /// A load order.
    ///
    /// # Errors
    /// When the digest is not that of a load order in the store.
    pub fn prefetch_info(&self, digest: &Digest) -> anyhow::Result<PrefetchInfo> {
        self.require(digest, "prefetch artifact", |kind| kind == ArtifactKind::Prefetch)?;
        let document = self.prefetch(digest)?;
        let records: Vec<_> = self.store.prefetches()?.into_iter().filter(|r| r.digest == *digest).collect();
        Ok(PrefetchInfo {
            digest: *digest,
            layer_digests: records.iter().map(|record| record.layer).collect(),
            size: records.first().map_or(0, |record| record.size.get()),
            created_at: records.first().map(|record| rfc3339(record.created_at)).unwrap_or_default(),
            total_spans: spans_in(&document),
            document,
        })
    }

    /// Makes the database anew from what is in the store.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn rebuild(&self) -> anyhow::Result<Rebuilt> {
        Ok(self.store.rebuild()?)
    }

    fn prefetch(&self, digest: &Digest) -> anyhow::Result<PrefetchDocument> {
        let bytes = self.store.read(digest)?;
        serde_json::from_slice(&bytes).with_context(|| format!("prefetch artifact {digest}"))
    }

    fn require(&self, digest: &Digest, what: &str, wanted: impl Fn(ArtifactKind) -> bool) -> anyhow::Result<()> {
        match self.store.kind_of(digest)? {
            Some(kind) if wanted(kind) => Ok(()),
            Some(kind) => {
                let (name, command) = match kind {
                    ArtifactKind::Ztoc => ("zTOC", "ztoc"),
                    ArtifactKind::Prefetch => ("prefetch artifact", "prefetch"),
                    ArtifactKind::IndexV1 | ArtifactKind::IndexV2 | ArtifactKind::IndexOwn => ("SOCI index", "index"),
                };
                bail!("{digest} is a {name}, not a {what}; `sociblk {command} info {digest}` shows it");
            }
            None => bail!("{what} {digest} is not in the local store"),
        }
    }

    /// Blobs that a daemon needs to take its devices back.
    fn in_use(&self) -> anyhow::Result<HashSet<Digest>> {
        Ok(State::load(&self.state_file)?.layers.iter().map(|layer| layer.ztoc).collect())
    }
}

/// Extracts a file of a layer by a zTOC of the store; `layer` is the layer's file, if it is not in the store.
///
/// # Errors
/// When zTOC, layer or file are not there, or do not belong together.
pub fn get_file(
    paths: &Paths,
    ztoc: &Digest,
    path: &str,
    layer: Option<&Path>,
    out: &mut dyn std::io::Write,
) -> anyhow::Result<u64> {
    let artifacts = Artifacts::open(paths)?;
    let bytes = artifacts.ztoc(ztoc)?;
    let layer = match layer {
        Some(layer) => layer.to_owned(),
        None => artifacts.layer_of(ztoc)?,
    };
    super::tools::get_file_by(&bytes, &ztoc.to_string(), path, &layer, out)
}

/// The name under which an image is recorded: `python` is `docker.io/library/python:latest`.
fn full_name(text: &str) -> String {
    text.parse::<ImageRef>().map_or_else(|_| text.to_owned(), |name| name.to_string())
}

fn spans_in(document: &PrefetchDocument) -> u64 {
    document.prefetch_spans.iter().map(PrefetchRange::len).sum()
}
