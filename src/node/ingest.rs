//! Layers without a zTOC: streamed once at full speed into the cache, and a zTOC built on the way.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::Node;
use super::protocol::Progress;
use crate::fill::ingest;
use crate::registry::{BlobSource, LayerDescriptor};
use crate::soci::RecordedZtoc;
use crate::units::{BlobOffset, Digest, u64_from_usize};

/// Layers that are being streamed now, each by one task, however many mounts wait for it.
#[derive(Default)]
pub(super) struct Ingests {
    running: std::sync::Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

impl Ingests {
    /// Waits until nobody else streams `layer`.
    async fn turn(&self, layer: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(running.entry(layer).or_default())
        };
        lock.lock_owned().await
    }
}

impl Node {
    /// Streams a layer into the cache, unless another mount just did, and returns its zTOC's digest.
    pub(super) async fn ingest(
        self: &Arc<Self>,
        layer: &LayerDescriptor,
        source: &Arc<dyn BlobSource>,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> anyhow::Result<Digest> {
        let _turn = self.ingests.turn(layer.digest).await;
        let digest = layer.digest;
        if let Some(done) = self.store.blocking(move |store| store.ztoc_for(&digest)).await? {
            return Ok(done.digest);
        }
        let config = self.ingest_config.clone();
        let span_size_bytes = config.span_size_bytes;
        let (progress, total_bytes) = (progress.clone(), layer.size.get());
        let step = format!("streaming layer {}", layer.digest.short());
        let report = Box::new(move |at: BlobOffset| {
            // Nobody may be there to hear it.
            let _ = progress.send(Progress { step: step.clone(), done_bytes: at.get(), total_bytes });
        });
        let taken = ingest(Some(&self.cache), Arc::clone(source), layer.diff_id, config, report).await?;
        let store = self.store.clone();
        let layer = layer.digest;
        tokio::task::spawn_blocking(move || {
            let ztoc = taken.ztoc.into_bytes()?;
            let digest = store.put(&ztoc)?;
            let size = BlobOffset::new(u64_from_usize(ztoc.len()));
            store.record_ztoc(&layer, &RecordedZtoc { digest, size, span_size_bytes: Some(span_size_bytes) })?;
            anyhow::Ok(digest)
        })
        .await?
    }
}
