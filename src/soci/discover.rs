//! Which layers of an image have a zTOC, and where it is.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::index::MAX_ZTOC_BYTES;
use super::{INDEX_DIGEST, IndexedImage, Kind, NewIndex, RecordedZtoc, SetBy, SociError, SociIndex, Store, V1_TYPE};
use crate::registry::document::Descriptor;
use crate::registry::{Backoff, Client, Image, ImageSource, LayerDescriptor};
use crate::units::{BlobOffset, BlobRange, Digest};

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
    /// What was looked at and why it served or not, for people, in order.
    pub trace: Vec<String>,
    /// The error that kept an index from being used. The image can still be mounted, only not lazily from the start.
    pub failure: Option<SociError>,
    /// The index that a registry named, to be stored by [`fetch`].
    pub named: Option<NamedIndex>,
}

/// zTOCs fetched at the same time.
const PARALLEL_FETCHES: usize = 4;
/// Referrers that are tried, in the registry's order.
const MAX_CANDIDATES: usize = 4;

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
    /// The index that the image is mapped to.
    mapped: Option<(Digest, SociIndex)>,
}

/// Finds the zTOCs of an image's layers, and fetches none: see [`fetch`]. The network is asked only for layers that the
/// store does not know, unless the registry shall come first.
pub async fn discover(image: &Image, client: &Client, store: &Store, policy: LocalPolicy) -> Discovery {
    let mut found = if policy.prefer_local {
        let found = discover_here(image, store, policy).await;
        if found.layers.iter().all(Option::is_some) {
            return found;
        }
        found
    } else {
        Discovery { layers: vec![None; image.layers.len()], trace: Vec::new(), failure: None, named: None }
    };
    match remote(image, client, store, &mut found).await {
        Ok(None) => {}
        Ok(Some((index, origin))) => take_entries(&mut found, image, &index, |_, _| origin),
        Err(error) => {
            found.trace.push(format!("no index: {error}"));
            found.failure = Some(error);
        }
    }
    if !policy.prefer_local {
        let here = here(image, store, policy, &mut found.trace).await;
        take_local(&mut found, image, &here);
    }
    found
}

/// What the local store alone knows.
pub async fn discover_here(image: &Image, store: &Store, policy: LocalPolicy) -> Discovery {
    let layers = vec![None; image.layers.len()];
    let mut found = Discovery { layers, trace: Vec::new(), failure: None, named: None };
    let here = here(image, store, policy, &mut found.trace).await;
    take_local(&mut found, image, &here);
    found
}

async fn here(image: &Image, store: &Store, policy: LocalPolicy, trace: &mut Vec<String>) -> Here {
    let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let manifest = image.manifest.as_ref().map(|manifest| manifest.digest).filter(|_| policy.mappings);
    let asked = store.blocking(move |store| {
        let built = layers.iter().map(|layer| store.ztocs_built(layer)).collect::<Result<Vec<_>, _>>()?;
        let mapped = manifest.map(|manifest| mapped(store, &manifest)).transpose()?.flatten();
        Ok(Here { built, mapped })
    });
    asked.await.unwrap_or_else(|error| {
        trace.push(format!("local store: {error}"));
        Here::default()
    })
}

/// The index that the image is mapped to by the user, or by what was made here.
fn mapped(store: &Store, manifest: &Digest) -> Result<Option<(Digest, SociIndex)>, SociError> {
    let records = store.indexes_of(manifest)?;
    let set_here = |by: SetBy| by != SetBy::Registry;
    let Some(record) = records.iter().find(|r| r.image.as_ref().is_some_and(|i| set_here(i.set_by))) else {
        return Ok(None);
    };
    let Some(bytes) = store.index(&record.digest)? else { return Ok(None) };
    Ok(Some((record.digest, SociIndex::parse(&bytes)?)))
}

fn take_local(found: &mut Discovery, image: &Image, here: &Here) {
    let built_here = |layer: usize, ztoc: &Digest| {
        here.built.get(layer).is_some_and(|built| built.iter().any(|record| record.digest == *ztoc))
    };
    if let Some((index, document)) = &here.mapped {
        found.trace.push(format!("local store: mapped to index {index}"));
        take_entries(found, image, document, |layer, ztoc| {
            // What was built here is as good as the layer, whoever lists it.
            if built_here(layer, ztoc) { Origin::Local } else { Origin::Mapped { index: *index } }
        });
    }
    for (slot, built) in found.layers.iter_mut().zip(&here.built) {
        if let (None, Some(record)) = (&slot, built.first()) {
            let RecordedZtoc { digest, size, span_size_bytes } = *record;
            *slot = Some(ZtocRef { digest, size, span_size_bytes, origin: Origin::Local });
        }
    }
    let is_local = |ztoc: &&ZtocRef| matches!(ztoc.origin, Origin::Local | Origin::Mapped { .. });
    let known = found.layers.iter().flatten().filter(is_local).count();
    found.trace.push(format!("local store: {known} of {} layers", image.layers.len()));
}

/// Takes from an index what is not known yet.
fn take_entries(found: &mut Discovery, image: &Image, index: &SociIndex, origin: impl Fn(usize, &Digest) -> Origin) {
    let mut used = 0;
    let slots = found.layers.iter_mut().zip(&image.layers).enumerate();
    for (i, (slot, layer)) in slots.filter(|(_, (slot, _))| slot.is_none()) {
        match entry(index, layer) {
            Ok(None) => {}
            Ok(Some((digest, size, span_size_bytes))) => {
                *slot = Some(ZtocRef { digest, size, span_size_bytes, origin: origin(i, &digest) });
                used += 1;
            }
            Err(error) => {
                found.trace.push(error.to_string());
                found.failure = Some(error);
            }
        }
    }
    found.trace.push(format!("the index serves {used} more layers"));
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

/// The index of the image, by annotation or by referrers.
async fn remote(
    image: &Image,
    client: &Client,
    store: &Store,
    found: &mut Discovery,
) -> Result<Option<(SociIndex, Origin)>, SociError> {
    let Some(manifest) = &image.manifest else {
        found.trace.push("a bare layer file has no index".to_owned());
        return Ok(None);
    };
    if let Some(text) = image.annotations.get(INDEX_DIGEST) {
        // SOCI's rule: an image that names its index has no other, even when that one cannot be had.
        found.trace.push(format!("v2 annotation: index {text}"));
        let digest: Digest = text.parse().map_err(|e| SociError::Index { reason: format!("{INDEX_DIGEST}: {e}") })?;
        let index = read_index(image, client, store, digest, found).await?;
        return Ok(Some((index, Origin::V2Annotation { index: digest })));
    }
    found.trace.push("v2 annotation: none".to_owned());
    let candidates: Vec<Digest> = match client.referrers(&image.source, manifest.digest, V1_TYPE).await {
        Ok(referrers) => referrers.into_iter().map(|Descriptor { digest, .. }| digest).collect(),
        Err(error) if error.is_transient() => {
            let named = named_before(store, manifest.digest).await;
            if named.is_empty() {
                return Err(error.into());
            }
            found.trace.push(format!("v1 referrers: {error}; what the registry named before is used"));
            named
        }
        Err(error) => return Err(error.into()),
    };
    found.trace.push(format!("v1 referrers: {} found", candidates.len()));
    let mut last_error = None;
    for digest in candidates.into_iter().take(MAX_CANDIDATES) {
        let read = read_index(image, client, store, digest, found).await;
        match read.and_then(|index| belongs(index, manifest.digest)) {
            Ok(index) => {
                found.trace.push(format!("v1 referrers: index {digest}"));
                return Ok(Some((index, Origin::V1Referrers { index: digest })));
            }
            Err(error) => {
                found.named = None;
                found.trace.push(format!("v1 referrers: index {digest}: {error}"));
                last_error = Some(error);
            }
        }
    }
    last_error.map_or(Ok(None), Err)
}

/// The v1 indexes that a registry named for the image at an earlier time.
async fn named_before(store: &Store, manifest: Digest) -> Vec<Digest> {
    let known = store.blocking(move |store| store.indexes_of(&manifest)).await.unwrap_or_default();
    let named = known.iter().filter(|record| {
        record.kind.artifact_type() == V1_TYPE && record.image.as_ref().is_some_and(|i| i.set_by == SetBy::Registry)
    });
    named.map(|record| record.digest).collect()
}

/// Reads an index: the store's, if it has it, else the registry's.
async fn read_index(
    image: &Image,
    client: &Client,
    store: &Store,
    digest: Digest,
    found: &mut Discovery,
) -> Result<SociIndex, SociError> {
    match store.blocking(move |store| store.index(&digest)).await {
        Ok(Some(bytes)) => return SociIndex::parse(&bytes),
        Ok(None) => {}
        Err(error) => found.trace.push(format!("local store: {error}")),
    }
    let (document, _) = client.manifest(&image.source, digest).await?;
    let index = SociIndex::parse(&document.bytes)?;
    if let Some(manifest) = &image.manifest {
        let (image_ref, location) = match &image.source {
            ImageSource::Registry(name) => (Some(name.to_string()), name.to_string()),
            other => (None, other.to_string()),
        };
        let (platform, set_by) = (image.platform.clone(), SetBy::Registry);
        let image = IndexedImage { manifest: manifest.digest, image_ref, platform, set_by };
        found.named = Some(NamedIndex { bytes: document.bytes, image, location });
    }
    Ok(index)
}

fn belongs(index: SociIndex, manifest: Digest) -> Result<SociIndex, SociError> {
    match &index.kind {
        Kind::V1 { subject: Some(subject) } if subject.digest != manifest => {
            Err(SociError::Index { reason: format!("it belongs to {}, not to {manifest}", subject.digest) })
        }
        _ => Ok(index),
    }
}

/// Fetches the zTOCs that a discovery found and the store does not have, checked by their digests, and stores the index
/// that named them.
///
/// They are not recorded for their layers: an index speaks for the images that name it, and for no other image that
/// happens to share a layer. Only what was built from the layer's own bytes is recorded ([`Store::record_ztoc`]).
///
/// # Errors
/// The first error; what was fetched until then stays in the store. That the index cannot be stored is only logged.
pub async fn fetch(discovery: &Discovery, image: &Image, client: &Client, store: &Store) -> Result<(), SociError> {
    let remote = discovery.layers.iter().flatten().filter(|ztoc| ztoc.origin != Origin::Local);
    let jobs = remote.map(|ztoc| fetch_one(*ztoc, image, client, store));
    // The futures borrow; collecting them first keeps the stream's type free of the iterator's closure.
    let jobs: Vec<_> = jobs.collect();
    let ztocs = stream::iter(jobs).buffer_unordered(PARALLEL_FETCHES).try_collect::<Vec<()>>();
    let (fetched, ()) = tokio::join!(ztocs, keep(discovery.named.clone(), store));
    fetched.map(drop)
}

/// Stores an index that a registry named: so that it can be listed, and for when the registry does not answer.
async fn keep(named: Option<NamedIndex>, store: &Store) {
    let Some(NamedIndex { bytes, image, location }) = named else { return };
    let put =
        move |store: &Store| store.put_index_of(&NewIndex { bytes: &bytes, image: Some(image), location: &location });
    if let Err(error) = store.blocking(put).await {
        tracing::warn!("a SOCI index could not be kept: {error}");
    }
}

async fn fetch_one(ztoc: ZtocRef, image: &Image, client: &Client, store: &Store) -> Result<(), SociError> {
    let source = client.blob(&image.source, ztoc.digest, ztoc.size).await?;
    let whole = BlobRange::new(BlobOffset::ZERO, ztoc.size);
    let mut backoff = Backoff::new(client.config().backoff);
    loop {
        match store.fetch(source.as_ref()).await {
            Ok(()) => return Ok(()),
            Err(SociError::Registry(error)) if error.is_transient() => match backoff.next_pause(error.retry_after()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error.into()),
            },
            // What came was not the zTOC: another host may have it.
            Err(SociError::Corrupt { .. }) if whole.is_some_and(|whole| source.reject(whole)) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "tests/discover.rs"]
mod tests;
