//! The images service: names, and the content that they mean.

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    self as api, CreateImageRequest, GetImageRequest, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types;
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::client::MAX_MESSAGE_BYTES;
use super::labels::Labels;
use super::{Client, ContainerdError};
use crate::units::{BlobOffset, Digest};

/// What a name means: a manifest, or an index of several.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Media type of the document.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
}

/// An image record: content stays as long as it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Its name: any text, usually a reference in full.
    pub name: String,
    /// What it means.
    pub target: Target,
    /// Its labels.
    pub labels: Labels,
}

fn label(image: &str) -> String {
    format!("image {image}")
}

pub(super) fn descriptor(target: &Target) -> types::Descriptor {
    types::Descriptor {
        media_type: target.media_type.clone(),
        digest: target.digest.to_string(),
        // No document is that long.
        size: i64::try_from(target.size.get()).unwrap_or(i64::MAX),
        ..types::Descriptor::default()
    }
}

impl Client {
    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn image_of(&self, image: Option<api::Image>, name: &str) -> Result<Image, ContainerdError> {
        let what = label(name);
        let image = image.ok_or_else(|| self.odd(&what, "the answer says nothing"))?;
        let target = image.target.ok_or_else(|| self.odd(&what, "it means nothing"))?;
        let digest = target.digest.parse().map_err(|e: crate::units::DigestError| self.odd(&what, e.to_string()))?;
        let size = u64::try_from(target.size).map_err(|_| self.odd(&what, "its size is negative"))?;
        let target = Target { media_type: target.media_type, digest, size: BlobOffset::new(size) };
        Ok(Image { name: image.name, target, labels: image.labels.into_iter().collect() })
    }

    /// The image with exactly this name.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn image(&self, name: &str) -> Result<Image, ContainerdError> {
        let request = GetImageRequest { name: name.to_owned() };
        let answer = self.ask(&label(name), request, |request| async move { self.images().get(request).await }).await?;
        self.image_of(answer.image, name)
    }

    /// All images that match one of the filters (containerd's `filters` syntax); without filters all.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn list_images(&self, filters: &[&str]) -> Result<Vec<Image>, ContainerdError> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = ListImagesRequest { filters };
        let answer =
            self.ask("its images", request, |request| async move { self.images().list(request).await }).await?;
        answer.images.into_iter().map(|image| self.image_of(Some(image), "of the list")).collect()
    }

    /// Lets a name mean something. An image record that is there keeps its labels.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn put_image(&self, name: &str, target: &Target) -> Result<(), ContainerdError> {
        let image = api::Image { name: name.to_owned(), target: Some(descriptor(target)), ..api::Image::default() };
        let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match self.ask(&label(name), create, |request| async move { self.images().create(request).await }).await {
            Err(ContainerdError::Exists { .. }) => self.update(image, "target".to_owned()).await,
            made => made.map(drop),
        }
    }

    /// Gives an image a label, or a label another value. Other labels stay.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn label_image(&self, name: &str, key: &str, value: &str) -> Result<(), ContainerdError> {
        let labels = [(key.to_owned(), value.to_owned())].into();
        // The mask leaves the target as it is; without any, containerd 1.7 dies of it (services/images/helpers.go, descFromProto).
        let target = Some(types::Descriptor::default());
        let image = api::Image { name: name.to_owned(), labels, target, ..api::Image::default() };
        self.update(image, format!("labels.{key}")).await
    }

    async fn update(&self, image: api::Image, path: String) -> Result<(), ContainerdError> {
        let what = label(&image.name);
        let request = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths: vec![path] }),
            source_date_epoch: None,
        };
        self.ask(&what, request, |request| async move { self.images().update(request).await }).await.map(drop)
    }
}
