//! Which layers of an image have a zTOC, and where it is.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::index::MAX_ZTOC_BYTES;
use super::{INDEX_DIGEST, Kind, RecordedZtoc, SociError, SociIndex, Store, V1_TYPE};
use crate::registry::document::Descriptor;
use crate::registry::{Backoff, Client, Image, LayerDescriptor};
use crate::units::{BlobOffset, BlobRange, Digest};

/// Who named a zTOC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The local store.
    Local,
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

/// What was found. Nothing of it is remembered: the next discovery asks again.
#[derive(Debug)]
pub struct Discovery {
    /// For each layer of the image, lowest first: its zTOC, or `None` when there is none.
    pub layers: Vec<Option<ZtocRef>>,
    /// What was looked at and why it served or not, for people, in order.
    pub trace: Vec<String>,
    /// The error that kept an index from being used. The image can still be mounted, only not lazily from the start.
    pub failure: Option<SociError>,
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

/// Finds the zTOCs of an image's layers. Asks the network only for layers that the store does not know, and fetches no
/// zTOC: see [`fetch`].
pub async fn discover(image: &Image, client: &Client, store: &Store) -> Discovery {
    let mut found = Discovery { layers: Vec::new(), trace: Vec::new(), failure: None };
    for layer in &image.layers {
        let recorded = store.ztoc_for(&layer.digest).unwrap_or_else(|error| {
            found.trace.push(format!("local store: {error}"));
            None
        });
        found.layers.push(recorded.map(local));
    }
    let known = found.layers.iter().flatten().count();
    found.trace.push(format!("local store: {known} of {} layers", image.layers.len()));
    if known == image.layers.len() {
        return found;
    }
    match remote(image, client, &mut found.trace).await {
        Ok(None) => {}
        Ok(Some((index, origin))) => {
            let mut used = 0;
            for (slot, layer) in found.layers.iter_mut().zip(&image.layers).filter(|(slot, _)| slot.is_none()) {
                match entry(&index, layer, origin) {
                    Ok(None) => {}
                    Ok(entry) => {
                        *slot = entry;
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
        Err(error) => {
            found.trace.push(format!("no index: {error}"));
            found.failure = Some(error);
        }
    }
    found
}

fn local(record: RecordedZtoc) -> ZtocRef {
    let RecordedZtoc { digest, size, span_size_bytes } = record;
    ZtocRef { digest, size, span_size_bytes, origin: Origin::Local }
}

fn entry(index: &SociIndex, layer: &LayerDescriptor, origin: Origin) -> Result<Option<ZtocRef>, SociError> {
    let Some(ztoc) = index.ztoc_for(&layer.digest) else { return Ok(None) };
    let limit_bytes = ztoc_limit_bytes(layer.size);
    if ztoc.size.get() > limit_bytes {
        let size_bytes = ztoc.size.get();
        return Err(SociError::TooLarge { ztoc: ztoc.digest, layer: layer.digest, size_bytes, limit_bytes });
    }
    let (digest, size, span_size_bytes) = (ztoc.digest, ztoc.size, ztoc.span_size_bytes);
    Ok(Some(ZtocRef { digest, size, span_size_bytes, origin }))
}

/// The index of the image, by annotation or by referrers.
async fn remote(
    image: &Image,
    client: &Client,
    trace: &mut Vec<String>,
) -> Result<Option<(SociIndex, Origin)>, SociError> {
    let Some(manifest) = &image.manifest else {
        trace.push("a bare layer file has no index".to_owned());
        return Ok(None);
    };
    if let Some(text) = image.annotations.get(INDEX_DIGEST) {
        // SOCI's rule: an image that names its index has no other, even when that one cannot be had.
        trace.push(format!("v2 annotation: index {text}"));
        let digest: Digest = text.parse().map_err(|e| SociError::Index { reason: format!("{INDEX_DIGEST}: {e}") })?;
        let index = read_index(image, client, digest).await?;
        return Ok(Some((index, Origin::V2Annotation { index: digest })));
    }
    trace.push("v2 annotation: none".to_owned());
    let candidates = client.referrers(&image.source, manifest.digest, V1_TYPE).await?;
    trace.push(format!("v1 referrers: {} found", candidates.len()));
    let mut last_error = None;
    for Descriptor { digest, .. } in candidates.into_iter().take(MAX_CANDIDATES) {
        match read_index(image, client, digest).await.and_then(|index| belongs(index, manifest.digest)) {
            Ok(index) => {
                trace.push(format!("v1 referrers: index {digest}"));
                return Ok(Some((index, Origin::V1Referrers { index: digest })));
            }
            Err(error) => {
                trace.push(format!("v1 referrers: index {digest}: {error}"));
                last_error = Some(error);
            }
        }
    }
    last_error.map_or(Ok(None), Err)
}

async fn read_index(image: &Image, client: &Client, digest: Digest) -> Result<SociIndex, SociError> {
    let (document, _) = client.manifest(&image.source, digest).await?;
    SociIndex::parse(&document.bytes)
}

fn belongs(index: SociIndex, manifest: Digest) -> Result<SociIndex, SociError> {
    match &index.kind {
        Kind::V1 { subject: Some(subject) } if subject.digest != manifest => {
            Err(SociError::Index { reason: format!("it belongs to {}, not to {manifest}", subject.digest) })
        }
        _ => Ok(index),
    }
}

/// Fetches the zTOCs that a discovery found and the store does not have, checked by their digests.
///
/// They are not recorded for their layers: an index speaks for the images that name it, and for no other image that
/// happens to share a layer. Only what was built from the layer's own bytes is recorded ([`Store::record_ztoc`]).
///
/// # Errors
/// The first error; what was fetched until then stays in the store.
pub async fn fetch(discovery: &Discovery, image: &Image, client: &Client, store: &Store) -> Result<(), SociError> {
    let remote = discovery.layers.iter().flatten().filter(|ztoc| ztoc.origin != Origin::Local);
    let jobs = remote.map(|ztoc| fetch_one(*ztoc, image, client, store));
    // The futures borrow; collecting them first keeps the stream's type free of the iterator's closure.
    let jobs: Vec<_> = jobs.collect();
    stream::iter(jobs).buffer_unordered(PARALLEL_FETCHES).try_collect::<Vec<()>>().await.map(drop)
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
