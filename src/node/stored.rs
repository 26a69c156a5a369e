//! containerd's content store as a destination. What is written belongs to a lease until the end, so that it is not collected
//! before something refers to it: the image's record does, by labels and from document to document.
//!
//! | what | refers to | by the label `containerd.io/gc.ref.content.…` |
//! |---|---|---|
//! | image index | its manifests | `m.N` |
//! | image manifest | config, layers | `config`, `l.N` |
//! | SOCI index | config, zTOCs and load orders | `config`, `ztoc.N` |
//! | image manifest, image record | the v1 index | `soci-index` |
//! | image manifest, image record | our own index, of zstd layers | `sociblk-index` |
//!
//! As SOCI has them, but for the label of the manifest: a record loses its labels when its image is pulled again, and has room
//! for the index of one platform.

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use crate::containerd::labels::{self, Labels};
use crate::containerd::{BoxError, ContainerdError, LEASE_LIFE, Lease, NewContent, Target};
use crate::registry::document::{ManifestDocument, media_type, parse_manifest};
use crate::registry::{
    Client, ImageRef, ImageSource, OWN_INDEX_REFERENCE, RegistryError, SOCI_INDEX_REFERENCE, StoredImage,
};
use crate::soci::{self, CreatedIndex, Kind, OWN_TYPE, Store, V1_TYPE, V2_TYPE};
use crate::units::{BlobOffset, Digest};

/// Somebody who writes into containerd's content store. Dropped, it leaves to the collector what nothing refers to.
pub(super) struct StoreWriter {
    lease: Lease,
    image: StoredImage,
}

impl StoreWriter {
    /// Begins to write what is to belong to `image`.
    pub(super) async fn open(client: &Client, image: &StoredImage) -> anyhow::Result<Self> {
        let lease = client.containerd(&image.at).await?.lease(LEASE_LIFE).await?;
        Ok(Self { lease, image: image.clone() })
    }

    /// Whether an image is in this store.
    pub(super) fn has(&self, source: &ImageSource) -> bool {
        matches!(source, ImageSource::Containerd(image) if image.at == self.image.at)
    }

    /// Keeps what is there, and all that it refers to, until the end.
    pub(super) async fn hold(&self, digest: Digest) -> anyhow::Result<()> {
        self.lease.hold(digest).await.with_context(|| format!("{}: keeping the image", self.image.name))
    }

    /// Copies a blob. One that its source does not have is left out when it could only come from this very store.
    pub(super) async fn copy(
        &self,
        client: &Client,
        from: &ImageSource,
        digest: Digest,
        size: BlobOffset,
    ) -> anyhow::Result<()> {
        let open = |at: BlobOffset| async move {
            let source = client.blob(from, digest, size).await?;
            Ok(client.whole(&source, at).map_err(BoxError::from).boxed())
        };
        let new = NewContent { digest, size, labels: &Labels::new() };
        match self.lease.client().write(new, open).await {
            Err(ContainerdError::Source { source, .. }) if self.has(from) && is_missing(&source) => {
                tracing::info!(%digest, "content that was not pulled is left out");
            }
            written => drop(written?),
        }
        Ok(())
    }

    /// Writes the blobs that a SOCI index lists, from the local store.
    pub(super) async fn parts(&self, client: &Client, store: &Store, index: &CreatedIndex) -> anyhow::Result<()> {
        self.lease.client().write_bytes(&Bytes::from_static(soci::CONFIG), &Labels::new()).await?;
        for (digest, size) in index.parts() {
            self.copy(client, &store.source(), digest, size).await?;
        }
        Ok(())
    }

    /// Writes an index, manifest or SOCI index, which then keeps what it lists.
    pub(super) async fn document(&self, bytes: &Bytes, kind: &str) -> anyhow::Result<()> {
        let document = parse_manifest(bytes, Some(kind)).with_context(|| Digest::of(bytes).to_string())?;
        self.lease.client().write_bytes(bytes, &references(&document)).await?;
        Ok(())
    }

    /// Lets a manifest keep its v1 index, or the one of our own.
    pub(super) async fn attach(&self, manifest: Digest, index: &CreatedIndex) -> anyhow::Result<()> {
        let label = labels::references([(reference_of(index), index.digest)]);
        Ok(self.lease.client().label(manifest, &label).await?)
    }

    /// Lets the image's record keep a v1 index, as `soci create` does, or one of our own.
    pub(super) async fn attach_to_record(&self, root: Digest, index: &CreatedIndex) -> anyhow::Result<()> {
        let name = &self.image.name;
        let containerd = self.lease.client();
        match containerd.image(name).await {
            Ok(record) if record.target.digest == root => {}
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => bail!("{name} was removed or changed while its index was made; make it again"),
        }
        let label = labels::reference(reference_of(index));
        Ok(containerd.label_image(name, &label, &index.digest.to_string()).await?)
    }

    /// Lets the image's name mean this index of images.
    pub(super) async fn name_image(&self, bytes: &Bytes) -> anyhow::Result<()> {
        let containerd = self.lease.client();
        // As it is looked up: a record of just this name, else the name in full.
        let name = match containerd.image(&self.image.name).await {
            Ok(record) => record.name,
            Err(error) if error.is_not_found() => {
                self.image.name.parse::<ImageRef>().map_or_else(|_| self.image.name.clone(), |name| name.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        let target = Target {
            media_type: media_type::OCI_INDEX.to_owned(),
            digest: Digest::of(bytes),
            size: BlobOffset::new(bytes.len() as u64),
        };
        Ok(containerd.put_image(&name, &target).await?)
    }

    /// Ends the lease: from now on only what is referred to stays.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        Ok(self.lease.release().await?)
    }
}

/// SOCI must not take ours for one of its own.
fn reference_of(index: &CreatedIndex) -> &'static str {
    match index.index.kind {
        Kind::Own { .. } => OWN_INDEX_REFERENCE,
        Kind::V1 { .. } | Kind::V2 => SOCI_INDEX_REFERENCE,
    }
}

fn is_missing(source: &BoxError) -> bool {
    source.downcast_ref::<RegistryError>().is_some_and(RegistryError::is_not_found)
}

/// Labels of a document, as SOCI and containerd have them.
pub(super) fn references(document: &ManifestDocument) -> Labels {
    let listed: Vec<(String, Digest)> = match document {
        ManifestDocument::Index(index) => {
            index.manifests.iter().enumerate().map(|(n, entry)| (format!("m.{n}"), entry.digest)).collect()
        }
        ManifestDocument::Manifest(manifest) => {
            let part =
                if matches!(manifest.config.media_type.as_str(), V1_TYPE | V2_TYPE | OWN_TYPE) { "ztoc" } else { "l" };
            let layers = manifest.layers.iter().enumerate().map(|(n, layer)| (format!("{part}.{n}"), layer.digest));
            layers.chain([("config".to_owned(), manifest.config.digest)]).collect()
        }
    };
    labels::references(listed)
}
