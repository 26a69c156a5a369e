//! The async half of an ingest: the blob's bytes, in order, from parallel requests that may break.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Chunk, IngestConfig};
use crate::fill::FillError;
use crate::registry::{Backoff, BackoffConfig, BlobSource, BlobStream};
use crate::units::{BlobOffset, BlobRange, u64_from_usize, usize_from_u64};

/// Fetches one blob.
#[derive(Clone)]
pub(super) struct Fetch {
    pub source: Arc<dyn BlobSource>,
    pub config: Arc<IngestConfig>,
}

/// A piece under way, on a task of its own so that it goes on while an earlier piece is handed on. Dropped, it stops.
struct PieceTask(JoinHandle<Result<Piece, FillError>>);

impl Drop for PieceTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What one request brought.
enum Piece {
    Here(Vec<Bytes>),
    /// The server sends everything, whatever is asked for.
    RangesIgnored,
}

impl Fetch {
    /// Sends the whole blob, in order.
    pub async fn run(&self, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let size = self.source.size().get();
        let piece_bytes = self.config.piece_bytes.max(1);
        if size <= piece_bytes || self.config.requests < 2 {
            return self.stream(0, chunks).await;
        }
        let mut next = 0;
        let mut delivered = 0;
        let mut running = VecDeque::new();
        loop {
            while running.len() < self.config.requests && next < size {
                let end = (next + piece_bytes).min(size);
                running.push_back(PieceTask(tokio::spawn(self.clone().piece(next, end))));
                next = end;
            }
            let Some(mut first) = running.pop_front() else { return Ok(()) };
            match (&mut first.0).await.map_err(|_| FillError::Stopping)?? {
                Piece::Here(bytes) => {
                    for bytes in bytes {
                        delivered += u64_from_usize(bytes.len());
                        if chunks.send(Chunk::Bytes(bytes)).await.is_err() {
                            return Err(FillError::Stopping);
                        }
                    }
                }
                Piece::RangesIgnored => {
                    drop(running);
                    tracing::info!(from = self.source.describe(), "the server ignores ranges: reading one stream");
                    return self.stream(delivered, chunks).await;
                }
            }
        }
    }

    /// One piece, held in memory, however many requests it takes.
    async fn piece(self, start: u64, end: u64) -> Result<Piece, FillError> {
        let mut bytes = Vec::new();
        let mut at = start;
        let mut trouble = Trouble::new(&self.config);
        loop {
            let before = at;
            let error = match self.attempt(at, end, &mut at, &mut |b| bytes.push(b)).await {
                Ok(true) => return Ok(Piece::Here(bytes)),
                Ok(false) => return Ok(Piece::RangesIgnored),
                Err(error) => error,
            };
            trouble.pause(error, at > before).await?;
        }
    }

    /// Reads until `end` or the first error. False: the answer begins at 0 though something else was asked for.
    async fn attempt(
        &self,
        start: u64,
        end: u64,
        at: &mut u64,
        take: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<bool, FillError> {
        let mut stream = self.open(start, end).await?;
        if stream.starts_at.get() != start {
            return if stream.starts_at == BlobOffset::ZERO { Ok(false) } else { Err(self.misplaced(start, &stream)) };
        }
        while *at < end {
            let mut bytes = self.next(&mut stream, *at, end).await?;
            bytes.truncate(usize_from_u64(end - *at).unwrap_or(usize::MAX));
            *at += u64_from_usize(bytes.len());
            take(bytes);
        }
        Ok(true)
    }

    /// From `at` to the end in order, one request at a time; what a server sends from before `at` is skipped.
    async fn stream(&self, mut at: u64, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let size = self.source.size().get();
        let mut trouble = Trouble::new(&self.config);
        while at < size {
            let before = at;
            match self.stream_once(&mut at, size, chunks).await {
                Ok(()) => {}
                Err(error) => trouble.pause(error, at > before).await?,
            }
        }
        Ok(())
    }

    async fn stream_once(&self, at: &mut u64, size: u64, chunks: &mpsc::Sender<Chunk>) -> Result<(), FillError> {
        let mut stream = self.open(*at, size).await?;
        let mut position = stream.starts_at.get();
        if position != *at && position != 0 {
            return Err(self.misplaced(*at, &stream));
        }
        while *at < size {
            let mut bytes = self.next(&mut stream, position, size).await?;
            position += u64_from_usize(bytes.len());
            let fresh = usize_from_u64(position.saturating_sub(*at)).unwrap_or(usize::MAX);
            let old = bytes.len().saturating_sub(fresh);
            drop(bytes.split_to(old));
            bytes.truncate(usize_from_u64(size - *at).unwrap_or(usize::MAX));
            *at += u64_from_usize(bytes.len());
            if !bytes.is_empty() && chunks.send(Chunk::Bytes(bytes)).await.is_err() {
                return Err(FillError::Stopping);
            }
        }
        Ok(())
    }

    async fn open(&self, start: u64, end: u64) -> Result<BlobStream, FillError> {
        let layer = self.source.digest();
        let Some(range) = BlobRange::new(BlobOffset::new(start), BlobOffset::new(end)) else {
            return Err(FillError::Stopping);
        };
        let opened = self.limited(self.source.open(range)).await?;
        opened.map_err(|source| FillError::Registry { layer, source: Arc::new(source) })
    }

    async fn next(&self, stream: &mut BlobStream, at: u64, end: u64) -> Result<Bytes, FillError> {
        let layer = self.source.digest();
        match self.limited(stream.bytes.next()).await? {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(source)) => Err(FillError::Registry { layer, source: Arc::new(source) }),
            None => Err(FillError::CutOff {
                layer,
                from: self.source.describe(),
                at: BlobOffset::new(at),
                expected: BlobOffset::new(end),
            }),
        }
    }

    async fn limited<T>(&self, future: impl Future<Output = T>) -> Result<T, FillError> {
        let limit = self.config.stall_limit;
        tokio::time::timeout(limit, future).await.map_err(|_| FillError::Stalled {
            layer: self.source.digest(),
            from: self.source.describe(),
            limit_ms: limit.as_millis(),
        })
    }

    fn misplaced(&self, asked: u64, stream: &BlobStream) -> FillError {
        FillError::Misplaced {
            layer: self.source.digest(),
            from: self.source.describe(),
            asked: BlobOffset::new(asked),
            got: stream.starts_at,
        }
    }
}

/// Pauses between attempts, until there was no progress for too long.
struct Trouble {
    backoff: Backoff,
    since: Option<tokio::time::Instant>,
    hold_limit: Duration,
}

impl Trouble {
    fn new(config: &IngestConfig) -> Self {
        let backoff =
            Backoff::new(BackoffConfig { first: config.first_pause, longest: config.longest_pause, retries: None });
        Self { backoff, since: None, hold_limit: config.hold_limit }
    }

    async fn pause(&mut self, error: FillError, progress: bool) -> Result<(), FillError> {
        if progress {
            self.backoff.reset();
            self.since = None;
        }
        let waited = self.since.get_or_insert_with(tokio::time::Instant::now).elapsed();
        if !error.is_transient() {
            return Err(error);
        }
        if waited >= self.hold_limit {
            return Err(FillError::Held { waited, last: Some(Arc::new(error)) });
        }
        let pause = self.backoff.next_pause(error.retry_after()).unwrap_or_default();
        tracing::warn!(%error, pause_ms = pause.as_millis(), "ingest: trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
