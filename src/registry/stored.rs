//! Images in containerd's content store: names are image records there, documents and blobs are content.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;
use tokio::sync::Mutex;

use super::document::{Descriptor, ManifestDocument, media_type, parse_manifest};
use super::{BlobSource, BlobStream, Client, Document, ImageRef, RegistryError};
use crate::containerd::{self, Address, ContainerdError, labels};
use crate::units::{BlobOffset, BlobRange, Digest};

/// Scheme of such images in texts.
pub const CONTAINERD_SCHEME: &str = "containerd:";
/// The reference by which an image, and its manifest, keep a SOCI index (v1). The name is SOCI's.
pub const SOCI_INDEX_REFERENCE: &str = "soci-index";
/// The same of an index of our own, which SOCI must not take for its own.
pub const OWN_INDEX_REFERENCE: &str = "sociblk-index";
const INDEX_REFERENCES: [&str; 2] = [SOCI_INDEX_REFERENCE, OWN_INDEX_REFERENCE];
/// Most names that an error lists.
const MAX_LISTED: usize = 5;

/// An image in containerd's content store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct StoredImage {
    /// Which containerd, and which namespace.
    pub at: Address,
    /// Name of the image record.
    pub name: String,
    /// The document that the name meant when it was looked up: later changes of the name change nothing.
    pub digest: Option<Digest>,
}

impl StoredImage {
    /// Of `SOCKET:NAMESPACE:NAME`.
    pub(super) fn parse(text: &str, rest: &str) -> Result<Self, RegistryError> {
        let bad = |reason: String| RegistryError::Reference { text: text.to_owned(), reason };
        let expected = || bad(format!("expected {CONTAINERD_SCHEME}SOCKET:NAMESPACE:IMAGE"));
        let (socket, rest) = rest.split_once(':').ok_or_else(expected)?;
        let (namespace, name) = rest.split_once(':').ok_or_else(expected)?;
        let at = Address::new(Path::new(socket), namespace).map_err(|error| bad(error.to_string()))?;
        if name.is_empty() {
            return Err(bad("it names no image".to_owned()));
        }
        Ok(Self { at, name: name.to_owned(), digest: None })
    }

    fn missing(&self, what: String) -> RegistryError {
        let (socket, namespace, image) =
            (self.at.socket().display().to_string(), self.at.namespace().to_owned(), self.name.clone());
        RegistryError::NotPulled { what, socket, namespace, image }
    }
}

/// Connections to containerd, one for each socket and namespace.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<Address, containerd::Client>>);

impl Connections {
    async fn get(&self, address: &Address) -> Result<containerd::Client, RegistryError> {
        let mut all = self.0.lock().await;
        if let Some(client) = all.get(address) {
            return Ok(client.clone());
        }
        let client = containerd::Client::connect(address).await?;
        all.insert(address.clone(), client.clone());
        Ok(client)
    }
}

impl From<ContainerdError> for RegistryError {
    fn from(error: ContainerdError) -> Self {
        Self::Containerd(Box::new(error))
    }
}

impl Client {
    /// The connection to a containerd, made when it is needed first.
    ///
    /// # Errors
    /// [`RegistryError::Containerd`].
    pub async fn containerd(&self, address: &Address) -> Result<containerd::Client, RegistryError> {
        self.connections().get(address).await
    }

    /// What the image's name means, and its name as containerd has it: that of a reference in full when there is none as it
    /// was written.
    pub(super) async fn stored_root(&self, image: &StoredImage) -> Result<(StoredImage, Document), RegistryError> {
        let containerd = self.containerd(&image.at).await?;
        if let Some(digest) = image.digest {
            let bytes = self.stored_document(image, digest, self.config().manifest_limit_bytes).await?;
            return Ok((image.clone(), Document { digest, media_type: String::new(), bytes }));
        }
        let record = match containerd.image(&image.name).await {
            Err(error) if error.is_not_found() => {
                let full = image.name.parse::<ImageRef>().map(|name| name.to_string()).ok();
                match full.filter(|full| *full != image.name) {
                    Some(full) => match containerd.image(&full).await {
                        Err(error) if error.is_not_found() => return Err(self.no_image(&containerd, image).await),
                        found => found?,
                    },
                    None => return Err(self.no_image(&containerd, image).await),
                }
            }
            found => found?,
        };
        let digest = record.target.digest;
        let pinned = StoredImage { name: record.name, digest: Some(digest), ..image.clone() };
        let bytes = self.stored_document(&pinned, digest, self.config().manifest_limit_bytes).await?;
        Ok((pinned, Document { digest, media_type: record.target.media_type, bytes }))
    }

    /// Says where the image might be instead.
    async fn no_image(&self, containerd: &containerd::Client, image: &StoredImage) -> RegistryError {
        let mut elsewhere = Vec::new();
        for namespace in containerd.namespaces().await.unwrap_or_default() {
            let Ok(at) = Address::new(image.at.socket(), &namespace) else { continue };
            if at == image.at {
                continue;
            }
            let Ok(there) = containerd::Client::connect(&at).await else { continue };
            if there.image(&image.name).await.is_ok() {
                elsewhere.push(namespace);
            }
        }
        let hint = if elsewhere.is_empty() {
            let images = containerd.list_images(&[]).await.unwrap_or_default();
            let names: Vec<&str> = images.iter().take(MAX_LISTED).map(|image| image.name.as_str()).collect();
            match names.as_slice() {
                [] => "this namespace has no images".to_owned(),
                names if names.len() < images.len() => format!("there are {} and others", names.join(", ")),
                names => format!("there is {}", names.join(", ")),
            }
        } else {
            format!("it is in namespace {}: name that with --namespace", elsewhere.join(", "))
        };
        RegistryError::NoImage { at: image.at.to_string(), name: image.name.clone(), hint }
    }

    /// A document by its digest, checked against it.
    pub(super) async fn stored_document(
        &self,
        image: &StoredImage,
        digest: Digest,
        limit_bytes: u64,
    ) -> Result<Bytes, RegistryError> {
        match self.containerd(&image.at).await?.read_document(digest, limit_bytes).await {
            Err(error) if error.is_not_found() => Err(image.missing(digest.to_string())),
            read => Ok(read?),
        }
    }

    /// The blob with this digest. It must be there, and have this size.
    pub(super) async fn stored_blob(
        &self,
        image: &StoredImage,
        digest: Digest,
        size: BlobOffset,
    ) -> Result<StoredBlob, RegistryError> {
        let containerd = self.containerd(&image.at).await?;
        let info = match containerd.info(digest).await {
            Err(error) if error.is_not_found() => return Err(image.missing(digest.to_string())),
            found => found?,
        };
        let blob = StoredBlob { containerd, image: image.clone(), digest, size };
        if info.size != size {
            let (url, expected_bytes, actual_bytes) = (blob.describe(), size.get(), info.size.get());
            return Err(RegistryError::WrongSize { url, expected_bytes, actual_bytes });
        }
        Ok(blob)
    }

    /// The artifacts of a manifest that it, or the image's record, keeps from being collected.
    pub(super) async fn stored_referrers(
        &self,
        image: &StoredImage,
        subject: Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let containerd = self.containerd(&image.at).await?;
        let mut kept = Vec::new();
        match containerd.info(subject).await {
            Ok(info) => kept.extend(INDEX_REFERENCES.iter().flat_map(|of| labels::referenced(&info.labels, of))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        match containerd.image(&image.name).await {
            Ok(record) => kept.extend(INDEX_REFERENCES.iter().flat_map(|of| labels::referenced(&record.labels, of))),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        kept.dedup();
        let mut found = Vec::new();
        for digest in kept {
            let Ok(bytes) = containerd.read_document(digest, self.config().manifest_limit_bytes).await else {
                continue;
            };
            let Ok(ManifestDocument::Manifest(manifest)) = parse_manifest(&bytes, Some(media_type::OCI_MANIFEST))
            else {
                continue;
            };
            let kind = manifest.artifact_type.unwrap_or(manifest.config.media_type);
            if kind == artifact_type && manifest.subject.is_some_and(|s| s.digest == subject) {
                found.push(Descriptor {
                    media_type: media_type::OCI_MANIFEST.to_owned(),
                    digest,
                    size: BlobOffset::new(bytes.len() as u64),
                    platform: None,
                    annotations: manifest.annotations,
                    artifact_type: Some(kind),
                });
            }
        }
        Ok(found)
    }
}

/// A blob in containerd's content store.
pub(super) struct StoredBlob {
    containerd: containerd::Client,
    image: StoredImage,
    digest: Digest,
    size: BlobOffset,
}

impl BlobSource for StoredBlob {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn size(&self) -> BlobOffset {
        self.size
    }

    fn describe(&self) -> String {
        format!("{}: content {}", self.image.at, self.digest)
    }

    fn open(&self, range: BlobRange) -> BoxFuture<'_, Result<BlobStream, RegistryError>> {
        Box::pin(async move {
            let bytes = match self.containerd.read(self.digest, range).await {
                Err(error) if error.is_not_found() => return Err(self.image.missing(self.digest.to_string())),
                opened => opened?,
            };
            let image = self.image.clone();
            let digest = self.digest;
            // containerd looks the content up only when the stream begins.
            let bytes = bytes.map(move |piece| match piece {
                Err(error) if error.is_not_found() => Err(image.missing(digest.to_string())),
                piece => Ok(piece?),
            });
            Ok(BlobStream { starts_at: range.start(), bytes: bytes.boxed() })
        })
    }
}
