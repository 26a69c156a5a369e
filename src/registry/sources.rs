//! One blob in several places: mounts of different registries share their layers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;

use super::{BlobSource, BlobStream, RegistryError};
use crate::units::{BlobOffset, BlobRange, Digest};

/// Most places of one blob; the oldest go.
const MAX_PLACES: usize = 8;

/// A blob that may be had from any of several places. The one that served last is asked first.
pub struct Sources {
    digest: Digest,
    size: BlobOffset,
    places: Mutex<Vec<Place>>,
}

/// Places stand in the order to ask them.
#[derive(Clone)]
struct Place {
    source: Arc<dyn BlobSource>,
    /// Its bytes were wrong.
    rejected: bool,
}

impl Sources {
    /// One place.
    #[must_use]
    pub fn new(source: Arc<dyn BlobSource>) -> Arc<Self> {
        let (digest, size) = (source.digest(), source.size());
        Arc::new(Self { digest, size, places: Mutex::new(vec![Place { source, rejected: false }]) })
    }

    /// One more place, asked when those before it fail. Of the same repository the newest counts: it has the newer
    /// credentials.
    pub fn add(&self, source: Arc<dyn BlobSource>) {
        if source.digest() != self.digest || source.size() != self.size {
            return;
        }
        let name = source.describe();
        let mut places = self.places();
        match places.iter_mut().find(|place| place.source.describe() == name) {
            Some(place) => place.source = source,
            None => {
                if places.len() >= MAX_PLACES {
                    places.pop();
                }
                places.push(Place { source, rejected: false });
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open_any(&self, range: BlobRange) -> Result<BlobStream, RegistryError> {
        let places = self.places().clone();
        let mut failed: Option<RegistryError> = None;
        for (i, place) in places.iter().enumerate() {
            let error = match place.source.open(range).await {
                Ok(stream) => {
                    if i > 0 {
                        self.ask_first(&place.source);
                    }
                    return Ok(stream);
                }
                Err(error) => error,
            };
            if places.len() > 1 {
                tracing::info!(from = place.source.describe(), %error, "a source of a shared layer is passed over");
            }
            // What may still come right is worth more than what cannot.
            if failed.as_ref().is_none_or(|before| error.is_transient() && !before.is_transient()) {
                failed = Some(error);
            }
        }
        Err(failed.unwrap_or_else(|| RegistryError::NotFound { url: self.digest.to_string() }))
    }

    fn ask_first(&self, source: &Arc<dyn BlobSource>) {
        let mut places = self.places();
        if let Some(at) = places.iter().position(|place| Arc::ptr_eq(&place.source, source)) {
            places[..=at].rotate_right(1);
        }
    }
}

impl BlobSource for Sources {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> BlobOffset {
        self.size
    }

    fn describe(&self) -> String {
        self.places().first().map_or_else(|| self.digest.to_string(), |place| place.source.describe())
    }

    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        Box::pin(self.open_any(range))
    }

    fn reject(&self, range: BlobRange) -> bool {
        let Some(first) = self.places().first().map(|place| Arc::clone(&place.source)) else { return false };
        if first.reject(range) {
            return true;
        }
        let mut places = self.places();
        match places.first_mut() {
            Some(place) if Arc::ptr_eq(&place.source, &first) && !place.rejected => place.rejected = true,
            _ => return false,
        }
        places.rotate_left(1);
        places.iter().any(|place| !place.rejected)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    /// A blob of 4 bytes, or an error.
    struct Fake(&'static str, Option<&'static [u8; 4]>);

    impl BlobSource for Fake {
        fn digest(&self) -> Digest {
            Digest::of(b"good")
        }

        fn size(&self) -> BlobOffset {
            BlobOffset::new(4)
        }

        fn describe(&self) -> String {
            self.0.to_owned()
        }

        fn open(&self, _: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
            let answer = match self.1 {
                None => Err(RegistryError::NotFound { url: self.0.to_owned() }),
                Some(bytes) => {
                    let bytes = futures_util::stream::once(async { Ok(bytes::Bytes::from_static(bytes)) }).boxed();
                    Ok(BlobStream { starts_at: BlobOffset::ZERO, bytes })
                }
            };
            Box::pin(async { answer })
        }
    }

    async fn read(sources: &Sources) -> Result<Vec<u8>, RegistryError> {
        let whole = BlobRange::new(BlobOffset::ZERO, sources.size()).expect("ordered");
        let mut stream = sources.open(whole).await?;
        Ok(stream.bytes.next().await.expect("a piece")?.to_vec())
    }

    #[tokio::test]
    async fn the_next_place_serves_when_one_fails_and_is_asked_first_from_then_on() {
        let sources = Sources::new(Arc::new(Fake("first", None)));
        assert!(read(&sources).await.expect_err("missing").is_not_found());
        sources.add(Arc::new(Fake("second", Some(b"good"))));
        assert_eq!(read(&sources).await.expect("bytes"), b"good");
        assert_eq!(sources.describe(), "second");
        // The newest of a name counts.
        sources.add(Arc::new(Fake("second", None)));
        sources.add(Arc::new(Fake("first", Some(b"good"))));
        assert_eq!(read(&sources).await.expect("bytes"), b"good");
        assert_eq!((sources.describe(), sources.places().len()), ("first".to_owned(), 2));
    }

    #[tokio::test]
    async fn a_place_with_wrong_bytes_gives_way_once() {
        let sources = Sources::new(Arc::new(Fake("liar", Some(b"evil"))));
        let whole = BlobRange::new(BlobOffset::ZERO, sources.size()).expect("ordered");
        sources.add(Arc::new(Fake("honest", Some(b"good"))));
        assert_eq!(read(&sources).await.expect("bytes"), b"evil");
        assert!(sources.reject(whole));
        assert_eq!(read(&sources).await.expect("bytes"), b"good");
        assert!(!sources.reject(whole), "nobody is left who was not caught");
        assert!(!sources.reject(whole));
    }
}
