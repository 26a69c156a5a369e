//! The content service: writing. One writer for each piece of content at a time; what an earlier one left is gone on with.

use bytes::Bytes;
use containerd_client::services::v1::{AbortRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::client::Patience;
use super::content::name;
use super::labels::Labels;
use super::{BoxError, Client, ContainerdError};
use crate::units::{BlobOffset, Digest, Offset, u64_from_usize};

/// Bytes in one message; containerd takes 16 MiB.
const PIECE_BYTES: usize = 1 << 20;

/// Content that is to be there.
#[derive(Clone, Copy, Debug)]
pub struct NewContent<'a> {
    /// Its digest, which containerd checks.
    pub digest: Digest,
    /// Its size.
    pub size: BlobOffset,
    /// Labels to have; content that is there gets them, too.
    pub labels: &'a Labels,
}

/// How content came to be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It was there.
    Present,
    /// It was written.
    New,
}

/// Why an attempt ended.
enum Failed {
    Containerd(ContainerdError),
    /// What was there of an earlier attempt is not the beginning of this content.
    Leftover,
}

impl From<ContainerdError> for Failed {
    fn from(error: ContainerdError) -> Self {
        Self::Containerd(error)
    }
}

/// A conversation about one piece of content: each message is answered before the next.
struct Conversation<'a> {
    client: &'a Client,
    what: String,
    send: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Conversation<'_> {
    /// Begins with a first message. The status of the answer tells what is there already.
    async fn begin(
        client: &Client,
        first: WriteContentRequest,
        what: String,
    ) -> Result<(Conversation<'_>, WriteContentResponse), ContainerdError> {
        let (send, receive) = mpsc::channel(1);
        // The receiver is right here.
        drop(send.try_send(first));
        let messages = stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) });
        let answers = client.answer(&what, client.content().write(client.request(messages))).await?;
        let mut conversation = Conversation { client, what, send, answers };
        let answer = conversation.hear().await?;
        Ok((conversation, answer))
    }

    async fn say(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse, ContainerdError> {
        // When nobody takes it any more, what is heard next says why.
        drop(self.send.send(message).await);
        self.hear().await
    }

    async fn hear(&mut self) -> Result<WriteContentResponse, ContainerdError> {
        let heard = self.client.in_time(&self.what, self.answers.message()).await?;
        heard.ok_or_else(|| self.client.odd(&self.what, "the conversation ended early"))
    }
}

impl Client {
    /// Sees to it that content is there. `open` gives its bytes from an offset on, and is asked only when they are needed.
    /// When this fails, what was written so far is thrown away, except when containerd is away.
    ///
    /// # Errors
    /// [`ContainerdError::Source`] with what `open` or its stream says; [`ContainerdError::Refused`] for bytes that are not the
    /// content; other [`ContainerdError`]s.
    pub async fn write<F, Fut>(&self, new: NewContent<'_>, open: F) -> Result<Written, ContainerdError>
    where
        F: Fn(BlobOffset) -> Fut,
        Fut: Future<Output = Result<BoxStream<'static, Result<Bytes, BoxError>>, BoxError>>,
    {
        let (mut patience, mut anew) = (Patience::new(), true);
        loop {
            let error = match self.attempt(new, &open).await {
                Ok(written) => return Ok(written),
                Err(Failed::Leftover) if anew => {
                    anew = false;
                    self.abort(new.digest).await;
                    continue;
                }
                Err(Failed::Leftover) => self.odd(&name(new.digest), "its bytes are not those of its digest"),
                Err(Failed::Containerd(ContainerdError::Exists { .. })) => {
                    self.label(new.digest, new.labels).await?;
                    return Ok(Written::Present);
                }
                Err(Failed::Containerd(error)) => error,
            };
            if !error.is_transient() {
                self.abort(new.digest).await;
                return Err(error);
            }
            patience.with(error).await?;
        }
    }

    /// As [`Client::write`], of bytes in memory; the digest is theirs.
    ///
    /// # Errors
    /// [`ContainerdError`].
    pub async fn write_bytes(&self, bytes: &Bytes, labels: &Labels) -> Result<Written, ContainerdError> {
        let size = BlobOffset::new(u64_from_usize(bytes.len()));
        self.write(NewContent { digest: Digest::of(bytes), size, labels }, |from| {
            let from = usize::try_from(from.get()).unwrap_or(bytes.len()).min(bytes.len());
            let rest = bytes.slice(from..);
            async move { Ok(stream::iter([Ok(rest)]).boxed()) }
        })
        .await
    }

    async fn attempt<F, Fut>(&self, new: NewContent<'_>, open: &F) -> Result<Written, Failed>
    where
        F: Fn(BlobOffset) -> Fut,
        Fut: Future<Output = Result<BoxStream<'static, Result<Bytes, BoxError>>, BoxError>>,
    {
        let what = name(new.digest);
        let (reference, expected) = (reference(new.digest), new.digest.to_string());
        let total = i64::try_from(new.size.get()).map_err(|_| self.odd(&what, "its size is beyond 2^63"))?;
        // With the expected digest containerd says at once that it has the content, and adds it to the lease.
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference,
            total,
            expected: expected.clone(),
            ..WriteContentRequest::default()
        };
        let (mut conversation, answer) = Conversation::begin(self, first, what.clone()).await?;
        let there = u64::try_from(answer.offset).map_err(|_| self.odd(&what, "its offset is negative"))?;
        let begin = if there > new.size.get() { BlobOffset::ZERO } else { BlobOffset::new(there) };
        let mut at = begin;
        if at < new.size {
            let failed = |source| ContainerdError::Source { at: self.address().clone(), digest: new.digest, source };
            let mut bytes = open(at).await.map_err(failed)?;
            while let Some(piece) = bytes.next().await {
                let mut piece = piece.map_err(failed)?;
                while !piece.is_empty() {
                    let data = piece.split_to(piece.len().min(PIECE_BYTES));
                    let next = at.checked_add(u64_from_usize(data.len())).filter(|next| *next <= new.size);
                    let next = next.ok_or_else(|| failed(format!("it is longer than {} bytes", new.size).into()))?;
                    let message = WriteContentRequest {
                        action: WriteAction::Write.into(),
                        offset: offset(at),
                        data: data.into(),
                        ..WriteContentRequest::default()
                    };
                    let answer = conversation.say(message).await?;
                    if answer.offset != offset(next) {
                        return Err(self.odd(&what, "the bytes did not get where they belong").into());
                    }
                    at = next;
                }
            }
            if at != new.size {
                return Err(failed(format!("it ended after {at} of {} bytes", new.size).into()).into());
            }
        }
        let labels = new.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            total,
            expected,
            offset: offset(at),
            labels,
            ..WriteContentRequest::default()
        };
        match conversation.say(commit).await {
            Ok(_) => Ok(Written::New),
            // "unexpected commit digest", "unexpected commit size"
            Err(ContainerdError::Refused { .. }) if begin > BlobOffset::ZERO => Err(Failed::Leftover),
            Err(error) => Err(error.into()),
        }
    }

    /// Throws away what was written of content that is not complete.
    async fn abort(&self, digest: Digest) {
        let request = AbortRequest { r#ref: reference(digest) };
        match self.ask(&name(digest), request, |request| async move { self.content().abort(request).await }).await {
            Ok(()) | Err(ContainerdError::NotFound { .. }) => {}
            // containerd throws it away itself after a day, or with the lease.
            Err(error) => tracing::info!(%error, "what was written of a blob stays for now"),
        }
    }
}

/// Name of the unfinished content: the same for everybody who writes it, so that they wait for each other.
fn reference(digest: Digest) -> String {
    format!("sociblk-{digest}")
}

/// Offsets were held against a size that fits.
fn offset(at: BlobOffset) -> i64 {
    i64::try_from(at.get()).unwrap_or(i64::MAX)
}
