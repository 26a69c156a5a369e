//! The index that an image's registry, or layout, names.

use super::{Discovery, NamedIndex, Origin};
use crate::order::ORDER_TYPE;
use crate::registry::document::Descriptor;
use crate::registry::{Client, Image, ImageSource, ReferrersBy};
use crate::soci::report::{Place, Step, Verdict};
use crate::soci::{INDEX_DIGEST, IndexedImage, OWN_TYPE, SetBy, SociError, SociIndex, Store, V1_TYPE};
use crate::units::Digest;

/// Referrers that are tried, in the registry's order.
const MAX_CANDIDATES: usize = 4;

/// An index, its digest, where it was found, and as what.
pub(super) type Found = (SociIndex, Digest, Place, Origin);

/// Our own index of the image's zstd layers, by referrers.
pub(super) async fn own(
    image: &Image,
    client: &Client,
    store: &Store,
    found: &mut Discovery,
) -> Result<Option<Found>, SociError> {
    let Some(manifest) = &image.manifest else { return Ok(None) };
    by_referrers(image, client, store, manifest.digest, Place::OwnReferrers, found).await
}

/// SOCI's index of the image, by annotation or by referrers.
pub(super) async fn remote(
    image: &Image,
    client: &Client,
    store: &Store,
    found: &mut Discovery,
) -> Result<Option<Found>, SociError> {
    let Some(manifest) = &image.manifest else {
        found.steps.push(Step::new(Place::Registry, Verdict::NotAsked, "a bare layer file has no index"));
        return Ok(None);
    };
    if let Some(text) = image.annotations.get(INDEX_DIGEST) {
        // SOCI's rule: an image that names its index has no other, even when that one cannot be had.
        let why = "the image names its index by annotation, and then has no other";
        found.steps.push(Step::new(Place::V1Referrers, Verdict::NotAsked, why));
        let named: Result<Digest, _> = text.parse();
        let read = match named {
            Ok(digest) => read_index(image, client, store, digest, found).await,
            Err(ref e) => Err(SociError::Index { reason: format!("{INDEX_DIGEST}: {e}") }),
        };
        return match (named, read) {
            (Ok(index), Ok(document)) => {
                Ok(Some((document, index, Place::V2Annotation, Origin::V2Annotation { index })))
            }
            (_, read) => {
                found.steps.push(Step::new(Place::V2Annotation, Verdict::Failed, format!("names index {text}")));
                read.map(|_| None)
            }
        };
    }
    found.steps.push(Step::new(Place::V2Annotation, Verdict::Nothing, "the manifest names no index"));
    by_referrers(image, client, store, manifest.digest, Place::V1Referrers, found).await
}

/// The first index that can be used among the referrers of the kind that `place` stands for.
async fn by_referrers(
    image: &Image,
    client: &Client,
    store: &Store,
    manifest: Digest,
    place: Place,
    found: &mut Discovery,
) -> Result<Option<Found>, SociError> {
    let candidates = candidates(image, client, store, manifest, place, found).await?;
    let mut last_error = None;
    for (i, digest) in candidates.iter().copied().enumerate() {
        if i == MAX_CANDIDATES {
            let why = format!("only the first {MAX_CANDIDATES} are tried");
            found.steps.push(Step::of(place, digest, Verdict::NotAsked, why));
            break;
        }
        let named = found.named.len();
        let read = read_index(image, client, store, digest, found).await;
        match read.and_then(|index| belongs(index, manifest)) {
            Ok(index) => {
                let why = "the first one that can be used counts";
                let others = candidates.iter().skip(i + 1);
                found.steps.extend(others.map(|o| Step::of(place, *o, Verdict::NotAsked, why)));
                let origin = match place {
                    Place::OwnReferrers => Origin::OwnReferrers { index: digest },
                    _ => Origin::V1Referrers { index: digest },
                };
                return Ok(Some((index, digest, place, origin)));
            }
            Err(error) => {
                found.named.truncate(named);
                found.steps.push(Step::of(place, digest, Verdict::Failed, error.to_string()));
                last_error = Some(error);
            }
        }
    }
    last_error.map_or(Ok(None), Err)
}

/// The indexes that may be used, in order.
async fn candidates(
    image: &Image,
    client: &Client,
    store: &Store,
    manifest: Digest,
    place: Place,
    found: &mut Discovery,
) -> Result<Vec<Digest>, SociError> {
    let artifact_type = if place == Place::OwnReferrers { OWN_TYPE } else { V1_TYPE };
    // Load orders stand in the same list: nobody has to ask for it again.
    let types: &[&str] = if found.orders.is_some() { &[artifact_type] } else { &[artifact_type, ORDER_TYPE] };
    let (candidates, by) = match client.find_referrers(&image.source, manifest, types).await {
        Ok((by, listed)) => {
            let is_order = |found: &Descriptor| found.artifact_type.as_deref() == Some(ORDER_TYPE);
            let (orders, referrers): (Vec<Descriptor>, Vec<Descriptor>) = listed.into_iter().partition(is_order);
            found.orders.get_or_insert(orders);
            let by = match by {
                ReferrersBy::Endpoint => "by the referrers API",
                ReferrersBy::Tag => "by the fallback tag (the registry has no referrers API)",
                ReferrersBy::Layout => "in the layout",
                ReferrersBy::Labels => "by its label in containerd's content store",
            };
            (referrers.into_iter().map(|Descriptor { digest, .. }| digest).collect(), by.to_owned())
        }
        Err(error) if error.is_transient() => {
            let named = named_before(store, manifest, artifact_type).await;
            if named.is_empty() {
                return Err(error.into());
            }
            (named, format!("that the registry named before, since it does not answer: {error}"))
        }
        Err(error) => return Err(error.into()),
    };
    let verdict = if candidates.is_empty() { Verdict::Nothing } else { Verdict::Used };
    found.steps.push(Step::new(place, verdict, format!("{} found {by}", candidates.len())));
    Ok(candidates)
}

/// The indexes of this type that a registry named for the image at an earlier time.
async fn named_before(store: &Store, manifest: Digest, artifact_type: &str) -> Vec<Digest> {
    let known = store.blocking(move |store| store.indexes_of(&manifest)).await.unwrap_or_default();
    let named = known.iter().filter(|record| {
        record.kind.artifact_type() == artifact_type
            && record.image.as_ref().is_some_and(|i| i.set_by == SetBy::Registry)
    });
    named.map(|record| record.digest).collect()
}

/// Reads an index: the store's, if it has it, else the registry's.
pub(super) async fn read_index(
    image: &Image,
    client: &Client,
    store: &Store,
    digest: Digest,
    found: &mut Discovery,
) -> Result<SociIndex, SociError> {
    match store.blocking(move |store| store.index(&digest)).await {
        Ok(Some(bytes)) => return SociIndex::parse(&bytes),
        Ok(None) => {}
        Err(error) => found.steps.push(Step::new(Place::LocalStore, Verdict::Failed, error.to_string())),
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
        found.named.push(NamedIndex { bytes: document.bytes, image, location });
    }
    Ok(index)
}

pub(super) fn belongs(index: SociIndex, manifest: Digest) -> Result<SociIndex, SociError> {
    match index.kind.subject() {
        Some(subject) if subject.digest != manifest => {
            Err(SociError::Index { reason: format!("it belongs to {}, not to {manifest}", subject.digest) })
        }
        _ => Ok(index),
    }
}
