//! Which layers of an image have a zTOC, and where it is.

mod fetch;
mod remote;

use bytes::Bytes;

pub use fetch::{Missing, fetch, read_blob, read_ztoc};

use self::remote::{belongs, own, read_index, remote};
use super::index::MAX_ZTOC_BYTES;
use super::report::{Omitted, Place, Step, Verdict};
use super::{IndexedImage, Kind, OWN_TYPE, PrefetchEntry, RecordedZtoc, SetBy, SociError, SociIndex, Store};
use crate::registry::document::Descriptor;
use crate::registry::{Client, Image, LayerCompression, LayerDescriptor};
use crate::units::{BlobOffset, Digest};

/// What the local store has a say in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalPolicy {
    /// What is in the store is taken before the registry is asked, which then need not be asked at all; else the registry
    /// is asked first, and the store serves what it leaves out.
    pub prefer_local: bool,
    /// Whether the store's mappings of images to indexes are used.
    pub mappings: bool,
}

impl Default for LocalPolicy {
    fn default() -> Self {
        Self { prefer_local: true, mappings: true }
    }
}

/// Who named a zTOC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The local store: it was built here, of the layer's own bytes.
    Local,
    /// An index of the local store that the image is mapped to.
    Mapped {
        /// The index.
        index: Digest,
    },
    /// The index that the image manifest's annotation names.
    V2Annotation {
        /// The index.
        index: Digest,
    },
    /// An index among the referrers of the image manifest.
    V1Referrers {
        /// The index.
        index: Digest,
    },
    /// An index of our own, of zstd layers, among the referrers of the image manifest.
    OwnReferrers {
        /// The index.
        index: Digest,
    },
    /// An index that the user named.
    Named {
        /// The index.
        index: Digest,
    },
}

impl Origin {
    /// The word for it in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Mapped { .. } => "mapped",
            Self::V2Annotation { .. } => "v2",
            Self::V1Referrers { .. } => "v1",
            Self::OwnReferrers { .. } => "own",
            Self::Named { .. } => "named",
        }
    }

    /// The index that lists the zTOC; `None` for one that was built here.
    #[must_use]
    pub fn index(self) -> Option<Digest> {
        match self {
            Self::Local => None,
            Self::Mapped { index }
            | Self::V2Annotation { index }
            | Self::V1Referrers { index }
            | Self::OwnReferrers { index }
            | Self::Named { index } => Some(index),
        }
    }
}

/// A zTOC of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZtocRef {
    /// Digest of the zTOC.
    pub digest: Digest,
    /// Size of the zTOC.
    pub size: BlobOffset,
    /// Span size that it was built with, in bytes; `None` if unknown.
    pub span_size_bytes: Option<u64>,
    /// Who named it.
    pub origin: Origin,
}

/// An index that a registry named and that the store does not have yet.
#[derive(Clone, Debug)]
pub struct NamedIndex {
    bytes: Bytes,
    image: IndexedImage,
    location: String,
}

/// What was found. The next discovery asks again: what a registry named before serves only when it does not answer.
#[derive(Debug)]
pub struct Discovery {
    /// For each layer of the image, lowest first: its zTOC, or `None` when there is none.
    pub layers: Vec<Option<ZtocRef>>,
    /// For each layer without a zTOC: why the last index that was read does not serve it; `None` when none was read.
    pub omitted: Vec<Option<Omitted>>,
    /// What was looked at and why it served or not, in order.
    pub steps: Vec<Step>,
    /// The error that kept an index from being used. The image can still be mounted, only not lazily from the start.
    pub failure: Option<SociError>,
    /// The indexes that a registry named, to be stored by [`fetch`].
    pub named: Vec<NamedIndex>,
    /// The image's load orders among its referrers; `None` when these were not asked for.
    pub orders: Option<Vec<Descriptor>>,
    /// The prefetch artifacts of the indexes that serve layers.
    pub prefetch: Vec<Prefetch>,
}

/// A prefetch artifact of an index, for a layer that this index serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefetch {
    /// The layer.
    pub layer: Digest,
    /// The zTOC that numbers its spans.
    pub ztoc: Digest,
    /// The document.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
}

impl Discovery {
    fn of(image: &Image) -> Self {
        let layers = image.layers.len();
        Self {
            layers: vec![None; layers],
            omitted: vec![None; layers],
            steps: Vec::new(),
            failure: None,
            named: Vec::new(),
            orders: None,
            prefetch: Vec::new(),
        }
    }

    /// What was looked at, for people.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        let asked = self.steps.iter().filter(|step| step.verdict != Verdict::NotAsked);
        asked.map(ToString::to_string).collect()
    }

    /// What kept the registry from answering.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        let failed = |step: &&Step| step.place == Place::Registry && step.verdict == Verdict::Failed;
        self.steps.iter().rev().find(failed).map(|step| step.detail.as_str())
    }

    /// Does without a layer's zTOC, which cannot be had for that reason. The others of its index serve all the same.
    pub fn give_up(&mut self, layer: usize, error: String) {
        let Some(ZtocRef { digest: ztoc, .. }) = self.layers.get_mut(layer).and_then(Option::take) else { return };
        self.steps.push(Step::new(Place::Registry, Verdict::Failed, format!("zTOC {ztoc} cannot be had: {error}")));
        if let Some(omitted) = self.omitted.get_mut(layer) {
            *omitted = Some(Omitted::Missing { ztoc, error });
        }
    }
}

/// Most bytes that a zTOC may have for a layer of this size. A layer of zeros shrinks to a thousandth, and each of its
/// spans still costs 32 KiB of history, so the bound is generous; it is there against absurd claims.
fn ztoc_limit_bytes(layer: BlobOffset) -> u64 {
    layer.get().saturating_mul(64).saturating_add(64 << 20).min(MAX_ZTOC_BYTES)
}

/// What the store knows of an image.
#[derive(Default)]
struct Here {
    /// For each layer: the zTOCs that were built here, the last one first.
    built: Vec<Vec<RecordedZtoc>>,
    /// The indexes that the image is mapped to: SOCI's, and ours.
    mapped: Vec<(Digest, SociIndex)>,
}

/// Finds the zTOCs of an image's layers, and fetches none: see [`fetch`]. The network is asked only for layers that the
/// store does not know, unless the registry shall come first.
pub async fn discover(image: &Image, client: &Client, store: &Store, policy: LocalPolicy) -> Discovery {
    let mut found = if policy.prefer_local {
        let mut found = discover_here(image, store, policy).await;
        if found.layers.iter().all(Option::is_some) {
            let why = "the local store serves every layer";
            let places = [Place::V2Annotation, Place::V1Referrers, Place::OwnReferrers];
            let asked = places.iter().filter(|place| **place != Place::OwnReferrers || has_zstd(image));
            found.steps.extend(asked.map(|place| Step::new(*place, Verdict::NotAsked, why)));
            return found;
        }
        found
    } else {
        Discovery::of(image)
    };
    let unserved = |found: &Discovery, zstd: bool| {
        let layers = image.layers.iter().zip(&found.layers);
        layers.filter(|(layer, _)| is_zstd(layer) == zstd).any(|(_, ztoc)| ztoc.is_none())
    };
    if unserved(&found, false) || image.layers.is_empty() {
        let soci = remote(image, client, store, &mut found).await;
        take_remote(&mut found, image, soci);
    }
    if unserved(&found, true) {
        let ours = own(image, client, store, &mut found).await;
        take_remote(&mut found, image, ours);
    }
    if !policy.prefer_local {
        take_local(&mut found, image, store, policy).await;
    }
    found
}

/// Whether only an index of our own serves the layer.
fn is_zstd(layer: &LayerDescriptor) -> bool {
    layer.compression() == LayerCompression::Zstd
}

fn has_zstd(image: &Image) -> bool {
    image.layers.iter().any(is_zstd)
}

/// Takes what the registry named.
fn take_remote(found: &mut Discovery, image: &Image, named: Result<Option<remote::Found>, SociError>) {
    match named {
        Ok(None) => {}
        Ok(Some((index, digest, place, origin))) => {
            take_entries(found, image, &index, (digest, place), |_, _| origin);
        }
        Err(error) => {
            found.steps.push(Step::new(Place::Registry, Verdict::Failed, format!("no index: {error}")));
            found.failure = Some(error);
        }
    }
}

/// What the index with this digest says, whatever else there is: the store's copy, else the source's.
///
/// # Errors
/// When it cannot be had, is no index, or is a v1 index of another image.
pub async fn discover_named(
    image: &Image,
    client: &Client,
    store: &Store,
    index: Digest,
) -> Result<Discovery, SociError> {
    let mut found = Discovery::of(image);
    let mut document = read_index(image, client, store, index, &mut found).await?;
    if let Some(manifest) = &image.manifest {
        document = belongs(document, manifest.digest)?;
    }
    take_entries(&mut found, image, &document, (index, Place::Named), |_, _| Origin::Named { index });
    Ok(found)
}

/// What the local store alone knows.
pub async fn discover_here(image: &Image, store: &Store, policy: LocalPolicy) -> Discovery {
    let mut found = Discovery::of(image);
    take_local(&mut found, image, store, policy).await;
    found
}

async fn here(image: &Image, store: &Store, policy: LocalPolicy, steps: &mut Vec<Step>) -> Here {
    let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let manifest = image.manifest.as_ref().map(|manifest| manifest.digest).filter(|_| policy.mappings);
    let asked = store.blocking(move |store| {
        let built = layers.iter().map(|layer| store.ztocs_built(layer)).collect::<Result<Vec<_>, _>>()?;
        let mapped = manifest.map(|manifest| mapped(store, &manifest)).transpose()?.unwrap_or_default();
        Ok(Here { built, mapped })
    });
    asked.await.unwrap_or_else(|error| {
        steps.push(Step::new(Place::LocalStore, Verdict::Failed, error.to_string()));
        Here::default()
    })
}

/// The index that the image is mapped to by the user, or by what was made here: one of SOCI's, and one of ours.
fn mapped(store: &Store, manifest: &Digest) -> Result<Vec<(Digest, SociIndex)>, SociError> {
    let mut records = store.indexes_of(manifest)?;
    records.retain(|record| record.image.as_ref().is_some_and(|image| image.set_by != SetBy::Registry));
    let mut mapped = Vec::new();
    for ours in [false, true] {
        let Some(record) = records.iter().find(|r| (r.kind.artifact_type() == OWN_TYPE) == ours) else { continue };
        if let Some(bytes) = store.index(&record.digest)? {
            mapped.push((record.digest, SociIndex::parse(&bytes)?));
        }
    }
    Ok(mapped)
}

async fn take_local(found: &mut Discovery, image: &Image, store: &Store, policy: LocalPolicy) {
    let here = here(image, store, policy, &mut found.steps).await;
    let built_here = |layer: usize, ztoc: &Digest| {
        here.built.get(layer).is_some_and(|built| built.iter().any(|record| record.digest == *ztoc))
    };
    for (index, document) in &here.mapped {
        take_entries(found, image, document, (*index, Place::LocalMapping), |layer, ztoc| {
            // What was built here is as good as the layer, whoever lists it.
            if built_here(layer, ztoc) { Origin::Local } else { Origin::Mapped { index: *index } }
        });
    }
    match (here.mapped.is_empty(), policy.mappings) {
        (false, _) => {}
        (true, true) => {
            found.steps.push(Step::new(Place::LocalMapping, Verdict::Nothing, "the image is mapped to no index"));
        }
        (true, false) => {
            let why = "switched off (index.local_mappings)";
            found.steps.push(Step::new(Place::LocalMapping, Verdict::NotAsked, why));
        }
    }
    let mut used = 0_usize;
    for (slot, built) in found.layers.iter_mut().zip(&here.built) {
        if let (None, Some(record)) = (&slot, built.first()) {
            let RecordedZtoc { digest, size, span_size_bytes } = *record;
            *slot = Some(ZtocRef { digest, size, span_size_bytes, origin: Origin::Local });
            used += 1;
        }
    }
    let is_local = |ztoc: &&ZtocRef| matches!(ztoc.origin, Origin::Local | Origin::Mapped { .. });
    let known = found.layers.iter().flatten().filter(is_local).count();
    let built = here.built.iter().filter(|built| !built.is_empty()).count();
    let verdict = match (used, built) {
        (1.., _) => Verdict::Used,
        (0, 1..) => Verdict::Unused,
        (0, 0) => Verdict::Nothing,
    };
    let detail = match verdict {
        Verdict::Unused => format!("{built} layers were built here, which others serve already"),
        _ => format!("{known} of {} layers", image.layers.len()),
    };
    found.steps.push(Step::new(Place::LocalStore, verdict, detail));
}

/// Takes from an index what is not known yet.
fn take_entries(
    found: &mut Discovery,
    image: &Image,
    index: &SociIndex,
    (digest, place): (Digest, Place),
    origin: impl Fn(usize, &Digest) -> Origin,
) {
    // SOCI's indexes serve what SOCI knows, ours serve the rest: whatever they claim.
    let ours = matches!(index.kind, Kind::Own { .. });
    let listed = image.layers.iter().filter(|layer| index.ztoc_for(&layer.digest).is_some());
    let smallest_listed = listed.map(|layer| layer.size).min();
    let mut used = 0;
    let slots = found.layers.iter_mut().zip(&mut found.omitted).zip(&image.layers).enumerate();
    for (i, ((slot, omitted), layer)) in
        slots.filter(|(_, ((slot, _), layer))| slot.is_none() && is_zstd(layer) == ours)
    {
        match entry(index, layer) {
            Ok(None) => *omitted = Some(Omitted::NotListed { index: digest, smallest_listed }),
            Ok(Some((digest, size, span_size_bytes))) => {
                *slot = Some(ZtocRef { digest, size, span_size_bytes, origin: origin(i, &digest) });
                let of_layer = index.prefetch.iter().find(|entry| entry.layer_digest == layer.digest);
                found.prefetch.extend(of_layer.map(|entry| {
                    let PrefetchEntry { digest: document, size, layer_digest } = *entry;
                    Prefetch { layer: layer_digest, ztoc: digest, digest: document, size }
                }));
                used += 1;
            }
            Err(error) => {
                if let SociError::TooLarge { ztoc, size_bytes, limit_bytes, .. } = &error {
                    let (ztoc, size, limit_bytes) = (*ztoc, BlobOffset::new(*size_bytes), *limit_bytes);
                    *omitted = Some(Omitted::TooLarge { index: digest, ztoc, size, limit_bytes });
                }
                found.steps.push(Step::of(place, digest, Verdict::Failed, error.to_string()));
                found.failure = Some(error);
            }
        }
    }
    let verdict = if used > 0 { Verdict::Used } else { Verdict::Unused };
    found.steps.push(Step::of(place, digest, verdict, format!("serves {used} layers that nothing before serves")));
}

/// Digest, size and span size of a layer's zTOC.
type Listed = (Digest, BlobOffset, Option<u64>);

fn entry(index: &SociIndex, layer: &LayerDescriptor) -> Result<Option<Listed>, SociError> {
    let Some(ztoc) = index.ztoc_for(&layer.digest) else { return Ok(None) };
    let limit_bytes = ztoc_limit_bytes(layer.size);
    if ztoc.size.get() > limit_bytes {
        let size_bytes = ztoc.size.get();
        return Err(SociError::TooLarge { ztoc: ztoc.digest, layer: layer.digest, size_bytes, limit_bytes });
    }
    Ok(Some((ztoc.digest, ztoc.size, ztoc.span_size_bytes)))
}

#[cfg(test)]
#[path = "tests/discover.rs"]
mod tests;
