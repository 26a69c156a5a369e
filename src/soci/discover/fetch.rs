//! The zTOCs that a discovery found, brought here.

use futures_util::stream::{self, StreamExt};

use super::{Discovery, NamedIndex, Origin, ZtocRef};
use crate::registry::{Backoff, BlobSource, Client, Image, RegistryError};
use crate::soci::{NewIndex, SociError, Store};
use crate::units::{BlobOffset, BlobRange, Digest, u64_from_usize};

/// zTOCs fetched at the same time.
const PARALLEL_FETCHES: usize = 4;

/// A zTOC that cannot be had.
#[derive(Debug)]
pub struct Missing {
    /// Its layer's place in the image, from the lowest.
    pub layer: usize,
    /// Why, for people.
    pub error: String,
}

/// Fetches the zTOCs that a discovery found and the store does not have, checked by their digests, and stores the index
/// that named them. Returns those that cannot be had, for [`Discovery::give_up`]. Once the registry's trouble has lasted for
/// as long as one of them is tried, no further ones are: whoever mounts would wait as long for each.
///
/// They are not recorded for their layers: an index speaks for the images that name it, and for no other image that
/// happens to share a layer. Only what was built from the layer's own bytes is recorded ([`Store::record_ztoc`]).
///
/// That the index cannot be stored is only logged.
pub async fn fetch(discovery: &Discovery, image: &Image, client: &Client, store: &Store) -> Vec<Missing> {
    let layers = discovery.layers.iter().enumerate();
    let wanted = layers.filter_map(|(i, ztoc)| ztoc.filter(|ztoc| ztoc.origin != Origin::Local).map(|ztoc| (i, ztoc)));
    let wanted: Vec<(usize, ZtocRef)> = wanted.collect();
    tokio::join!(fetch_all(wanted, image, client, store), keep(&discovery.named, store)).0
}

async fn fetch_all(mut wanted: Vec<(usize, ZtocRef)>, image: &Image, client: &Client, store: &Store) -> Vec<Missing> {
    let jobs = wanted.iter().map(|(layer, ztoc)| {
        let (layer, ztoc) = (*layer, *ztoc);
        async move { (layer, fetch_one(ztoc, image, client, store).await) }
    });
    // The futures borrow; collecting them first keeps the stream's type free of the iterator's closure.
    let jobs: Vec<_> = jobs.collect();
    let mut fetched = stream::iter(jobs).buffer_unordered(PARALLEL_FETCHES);
    let mut missing = Vec::new();
    while let Some((layer, result)) = fetched.next().await {
        wanted.retain(|(other, _)| *other != layer);
        let Err(error) = result else { continue };
        let lasting = error.is_transient();
        missing.push(Missing { layer, error: error.to_string() });
        if lasting {
            missing.extend(wanted.drain(..).map(|(layer, _)| Missing { layer, error: error.to_string() }));
            break;
        }
    }
    missing
}

/// Stores the indexes that a registry named: so that they can be listed, and for when the registry does not answer.
async fn keep(named: &[NamedIndex], store: &Store) {
    for NamedIndex { bytes, image, location } in named.iter().cloned() {
        let put = move |store: &Store| {
            store.put_index_of(&NewIndex { bytes: &bytes, image: Some(image), location: &location })
        };
        if let Err(error) = store.blocking(put).await {
            tracing::warn!("a SOCI index could not be kept: {error}");
        }
    }
}

async fn fetch_one(ztoc: ZtocRef, image: &Image, client: &Client, store: &Store) -> Result<(), SociError> {
    let source = client.artifact(&image.source, ztoc.digest, ztoc.size).await?;
    with_patience(client, source.as_ref(), || store.fetch(source.as_ref())).await
}

/// The bytes of a zTOC that a discovery found, checked by their digest: the store's, if it has them, else the registry's.
/// Stores nothing.
///
/// # Errors
/// What the registry says, or that the bytes are others; after further attempts where that may help.
pub async fn read_ztoc(ztoc: &ZtocRef, image: &Image, client: &Client, store: &Store) -> Result<Vec<u8>, SociError> {
    read_blob(ztoc.digest, ztoc.size, image, client, store).await
}

/// The bytes of a blob beside an image, checked by its digest: the store's, if it has them, else the registry's. Stores
/// nothing. Whoever asks has looked at the size.
///
/// # Errors
/// As [`read_ztoc`].
pub async fn read_blob(
    digest: Digest,
    size: BlobOffset,
    image: &Image,
    client: &Client,
    store: &Store,
) -> Result<Vec<u8>, SociError> {
    if store.contains(&digest, size) {
        return store.blocking(move |store| store.read(&digest)).await;
    }
    let source = client.artifact(&image.source, digest, size).await?;
    with_patience(client, source.as_ref(), || read_once(source.as_ref())).await
}

async fn read_once(source: &dyn BlobSource) -> Result<Vec<u8>, SociError> {
    let (expected, size) = (source.digest(), source.size());
    let Some(range) = BlobRange::new(BlobOffset::ZERO, size) else { return Ok(Vec::new()) };
    let mut stream = source.open(range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
        if u64_from_usize(bytes.len()) > size.get() {
            break;
        }
    }
    let (got_bytes, expected_bytes) = (u64_from_usize(bytes.len()), size.get());
    if got_bytes != expected_bytes {
        return Err(RegistryError::Truncated { url: source.describe(), got_bytes, expected_bytes }.into());
    }
    let actual = Digest::of(&bytes);
    if actual != expected {
        return Err(SociError::Corrupt { what: source.describe(), expected, actual });
    }
    Ok(bytes)
}

/// Tries again after trouble that may pass, and with another host when what came is not the blob.
async fn with_patience<T, F: Future<Output = Result<T, SociError>>>(
    client: &Client,
    source: &dyn BlobSource,
    attempt: impl Fn() -> F,
) -> Result<T, SociError> {
    let whole = BlobRange::new(BlobOffset::ZERO, source.size());
    let mut backoff = Backoff::new(client.config().backoff);
    loop {
        match attempt().await {
            Err(SociError::Registry(error)) if error.is_transient() => match backoff.next_pause(error.retry_after()) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error.into()),
            },
            // What came was not the zTOC: another host may have it.
            Err(SociError::Corrupt { .. }) if whole.is_some_and(|whole| source.reject(whole)) => {}
            done => return done,
        }
    }
}
