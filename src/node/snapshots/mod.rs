//! What containerd's snapshots are made of: layers that the node shows for their owners, one by one.
//!
//! A layer that is asked for belongs to an image; what is known of that image is kept while its layers are asked for
//! ([`pull`]). A shown layer is held for its owner ([`holds`]) in the same way as a mount holds its layers: the same
//! layer is one device, however many owners and mounts it has.

mod holds;
mod mapped;
mod pull;

use std::path::PathBuf;
use std::sync::Arc;

pub use holds::HoldRecord;
pub(super) use holds::Holds;
use holds::Wanted;
pub(super) use pull::Pulls;

use super::protocol::RegistryAccess;
use super::{Node, one_line};
use crate::snapshot::{LayerWanted, Layers, Left, ShowError, Shown, Usage, Way};
use crate::units::IdMap;

/// Layers of containerd's images, shown by a node.
pub struct ImageLayers {
    node: Arc<Node>,
    /// What to do with images that have no index.
    without_index: WithoutIndex,
    /// How registries are talked to.
    access: RegistryAccess,
    /// Complete and prove layers in the background.
    background: bool,
    /// containerd's socket, where its content store may have indexes.
    containerd: Option<PathBuf>,
}

/// What becomes of images that have no index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WithoutIndex {
    /// containerd pulls and unpacks them as ever.
    Defer,
    /// Their layers are streamed, which leaves an index behind for the next time.
    Stream,
}

impl ImageLayers {
    /// Shows layers by `node`.
    #[must_use]
    pub fn new(node: Arc<Node>, without_index: WithoutIndex, access: RegistryAccess, background: bool) -> Self {
        Self { node, without_index, access, background, containerd: None }
    }

    /// The same, with indexes of the content store of the containerd at this socket; an empty path: of none.
    #[must_use]
    pub fn with_containerd(self, socket: &str) -> Self {
        Self { containerd: (!socket.is_empty()).then(|| PathBuf::from(socket)), ..self }
    }

    async fn show_anew(&self, owner: &str, wanted: &LayerWanted, way: Way) -> Result<Shown, ShowError> {
        let failed = |error: anyhow::Error| ShowError::Failed { reason: one_line(&error) };
        let pull = self.node.pull(wanted, &self.access, self.containerd.as_deref()).await.map_err(failed)?;
        if !pull.is_indexed() && self.without_index == WithoutIndex::Defer {
            return Err(ShowError::NoIndex { word: pull.word(&wanted.layer), reason: pull.reason() });
        }
        let prepared = self.node.prepare_one(&pull, &wanted.layer, way).await.map_err(failed)?;
        let indexed = pull.is_indexed();
        let lazy = prepared.is_lazy();
        let wanted = Wanted { indexed, image: wanted.image_ref.clone(), place: pull.place(&wanted.layer) };
        let dir = self.node.hold(owner, prepared, wanted, self.background).await.map_err(failed)?;
        Ok(Shown { dir, lazy, indexed })
    }
}

impl Layers for ImageLayers {
    async fn show(&self, owner: &str, wanted: &LayerWanted, way: Way) -> Result<Shown, ShowError> {
        if let Some(shown) = self.node.held(owner).await {
            return Ok(shown);
        }
        self.show_anew(owner, wanted, way).await
    }

    async fn shown_at(&self, owner: &str) -> Option<PathBuf> {
        self.node.held(owner).await.map(|shown| shown.dir)
    }

    async fn root_owner(&self, owner: &str) -> Option<(u32, u32)> {
        self.node.held_root_owner(owner).await
    }

    async fn release(&self, owner: &str) {
        self.node.let_go(owner).await;
    }

    async fn owners(&self) -> Vec<String> {
        self.node.owners().await
    }

    async fn map(&self, name: &str, map: &IdMap, dirs: &[PathBuf]) -> Result<Vec<PathBuf>, ShowError> {
        let mapped = self.node.map_owners(name, map, dirs).await;
        mapped.map_err(|error| ShowError::Failed { reason: one_line(&error) })
    }

    async fn unmap(&self, name: &str) {
        self.node.unmap_owners(name).await;
    }

    async fn mapped(&self) -> Vec<String> {
        self.node.mapped_names()
    }

    async fn usage(&self, owner: &str) -> Usage {
        self.node.held_usage(owner).await
    }

    fn left(&self, left: Left<'_>) {
        self.node.fallbacks.leave(left);
        let node = Arc::clone(&self.node);
        // Whoever asks after the next daemon began wants to know it, too.
        tokio::spawn(async move {
            let served = node.served.lock().await;
            if let Err(error) = node.save(&served) {
                tracing::warn!(error = one_line(&error), "cannot write down the state");
            }
        });
    }
}
