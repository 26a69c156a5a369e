//! The content service: what is there, and its bytes.

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{self as api, InfoRequest, ReadContentRequest, UpdateRequest};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::client::MAX_MESSAGE_BYTES;
use super::labels::Labels;
use super::{Client, ContainerdError};
use crate::units::{BlobOffset, BlobRange, Digest, Offset, u64_from_usize};

/// Content that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// Its labels.
    pub labels: Labels,
}

/// Bytes of content on their way, in order. Ends early only with an error item.
pub type ByteStream = BoxStream<'static, Result<Bytes, ContainerdError>>;

pub(super) fn name(digest: Digest) -> String {
    format!("content {digest}")
}

impl Client {
    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What is known of content.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`] when this namespace has none with this digest; other [`ContainerdError`]s.
    pub async fn info(&self, digest: Digest) -> Result<Info, ContainerdError> {
        let request = InfoRequest { digest: digest.to_string() };
        let answer =
            self.ask(&name(digest), request, |request| async move { self.content().info(request).await }).await?;
        self.checked(digest, answer.info)
    }

    fn checked(&self, digest: Digest, info: Option<api::Info>) -> Result<Info, ContainerdError> {
        let info = info.ok_or_else(|| self.odd(&name(digest), "the answer says nothing"))?;
        let size = u64::try_from(info.size).map_err(|_| self.odd(&name(digest), "its size is negative"))?;
        Ok(Info { digest, size: BlobOffset::new(size), labels: info.labels.into_iter().collect() })
    }

    /// Bytes of content. Not checked against the digest: whoever reads all of it does that.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`]; in the stream: [`ContainerdError::Answer`] for fewer or more bytes than the range has.
    pub async fn read(&self, digest: Digest, range: BlobRange) -> Result<ByteStream, ContainerdError> {
        let what = name(digest);
        let Some(left) = range.end().bytes_since(range.start()).filter(|bytes| *bytes > 0) else {
            // To containerd a size of 0 means all.
            return Ok(stream::empty().boxed());
        };
        let bad = |_| self.odd(&what, "a range beyond 2^63");
        let (offset, size) = (range.start().get().try_into().map_err(bad)?, left.try_into().map_err(bad)?);
        let request = ReadContentRequest { digest: digest.to_string(), offset, size };
        let pieces = self.ask(&what, request, |request| async move { self.content().read(request).await }).await?;
        let state = Some((self.clone(), pieces, left));
        let bytes = stream::unfold(state, move |state| {
            let what = what.clone();
            async move {
                let (client, mut pieces, left) = state?;
                loop {
                    let piece = match client.in_time(&what, pieces.message()).await {
                        Ok(Some(piece)) => Bytes::from(piece.data),
                        Ok(None) if left == 0 => return None,
                        Ok(None) => return Some((Err(client.odd(&what, format!("{left} bytes are missing"))), None)),
                        Err(error) => return Some((Err(error), None)),
                    };
                    if piece.is_empty() {
                        continue;
                    }
                    let Some(left) = left.checked_sub(u64_from_usize(piece.len())) else {
                        return Some((Err(client.odd(&what, "more bytes than were asked for")), None));
                    };
                    return Some((Ok(piece), Some((client, pieces, left))));
                }
            }
        });
        Ok(bytes.boxed())
    }

    /// All of a small document, checked against its digest.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], [`ContainerdError::TooLong`], [`ContainerdError::WrongDigest`], others.
    pub async fn read_document(&self, digest: Digest, limit_bytes: u64) -> Result<Bytes, ContainerdError> {
        let at = || self.address().clone();
        let size = self.info(digest).await?.size;
        if size.get() > limit_bytes {
            return Err(ContainerdError::TooLong { at: at(), digest, size_bytes: size.get(), limit_bytes });
        }
        let mut all = Vec::new();
        if let Some(range) = BlobRange::new(BlobOffset::ZERO, size) {
            let mut pieces = self.read(digest, range).await?;
            while let Some(piece) = pieces.next().await {
                all.extend_from_slice(&piece?);
            }
        }
        let actual = Digest::of(&all);
        if actual != digest {
            return Err(ContainerdError::WrongDigest { at: at(), expected: digest, actual });
        }
        Ok(all.into())
    }

    /// Adds labels to content, or gives them other values. Other labels stay.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`], others.
    pub async fn label(&self, digest: Digest, labels: &Labels) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = api::Info {
            digest: digest.to_string(),
            labels: labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            ..api::Info::default()
        };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        self.ask(&name(digest), request, |request| async move { self.content().update(request).await }).await.map(drop)
    }
}
