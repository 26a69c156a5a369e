//! The part of a mount that needs the network: which image, which layers, which zTOCs. Builds nothing that must be
//! undone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use super::load_order::{Hunt, Recorded, Shown, command_of, follow};
use super::protocol::{LayerWay, LoginOrder, MountRequest, Progress, RegistryAccess};
use super::synthesis::{ChainLayer, SynthesisError, Synthesized, synthesize};
use super::why::{Because, Reason, judge};
use super::{Node, one_line};
use crate::registry::{BlobSource, Client, Image, ImageSource, LayerDescriptor, Platform};
use crate::soci::{
    Discovery, LocalPolicy, Missing, Place, Step, Store, Verdict, ZtocRef, discover, discover_here, fetch,
};
use crate::units::{BlobOffset, Digest, DigestHasher};

pub(super) use super::ingest::Ingests;

/// An image whose layers all have a zTOC on local disk, from which their devices were synthesized.
pub(super) struct Prepared {
    /// The platform manifest; the blob's digest for a bare layer file.
    pub manifest: Digest,
    /// Layers, bottom first.
    pub layers: Vec<PreparedLayer>,
    /// What their devices show, in the same order.
    pub parts: Vec<Synthesized>,
    /// How the index was looked for.
    pub trace: Vec<String>,
    /// The image, as its blobs can be asked for again.
    pub image: String,
    /// How its registry is talked to.
    pub access: RegistryAccess,
    /// What is recorded of its reads, and under which name.
    pub recorded: Recorded,
    /// Who follows its load order is told here of each layer that is shown.
    pub followed: mpsc::UnboundedSender<Shown>,
}

/// A layer that can be served.
#[derive(Clone)]
pub(super) struct PreparedLayer {
    /// Blob digest.
    pub digest: Digest,
    /// Blob size.
    pub blob_size: BlobOffset,
    /// The image's diffID.
    pub diff_id: Option<Digest>,
    /// `local`, `mapped`, `v2`, `v1`, `own`, `streamed`.
    pub origin: &'static str,
    /// The index that lists its zTOC.
    pub index: Option<Digest>,
    /// Why it is lazy, or is not.
    pub because: Because,
    /// Digest of the zTOC.
    pub ztoc_digest: Digest,
    /// The zTOC document.
    pub ztoc: PathBuf,
    /// Under which digest the layer is kept and shared.
    pub key: Digest,
    /// Where the blob is.
    pub source: Arc<dyn BlobSource>,
}

/// How long an index is looked for. It is there to save time: by then a stream would have brought most layers.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(20);

/// Origin of a zTOC that was here already.
const LOCAL: &str = "local";
/// Origin of a zTOC that was built for this mount.
const STREAMED: &str = "streamed";

impl Prepared {
    /// Whether its layers are shown before their bytes are here.
    pub(super) fn is_lazy(&self) -> bool {
        self.layers.iter().all(|layer| layer.origin != STREAMED)
    }
}

impl PreparedLayer {
    /// What is told of it later.
    pub(super) fn way(&self) -> LayerWay {
        LayerWay {
            origin: self.origin.to_owned(),
            index: self.index,
            ztoc: self.ztoc_digest,
            because: self.because.clone(),
        }
    }

    fn in_chain(&self) -> ChainLayer {
        ChainLayer {
            key: self.key,
            digest: self.digest,
            blob_size: self.blob_size,
            ztoc_digest: self.ztoc_digest,
            ztoc: self.ztoc.clone(),
        }
    }
}

/// Under which digest a layer is kept and shared on this node.
///
/// A zTOC that was built here, from bytes with the blob's own digest, is as good as the layer: the layer's digest is
/// the key. A zTOC that came with an index is only as good as whoever made that index. It says which bytes are right
/// and which files there are, so layers are shared by the pair: an index that lies about a common base layer can
/// deceive the images that name this index, never others (docs/decisions/layer-sharing.md).
#[must_use]
pub(super) fn storage_key(layer: &Digest, ztoc: &Digest, built_here: bool) -> Digest {
    if built_here {
        return *layer;
    }
    let mut hasher = DigestHasher::new();
    hasher.update(b"sociblk layer with foreign ztoc");
    hasher.update(layer.as_bytes());
    hasher.update(ztoc.as_bytes());
    hasher.finish()
}

impl Node {
    /// Resolves the image, finds or builds a zTOC for each layer.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        request: &MountRequest,
        login: Option<LoginOrder>,
        progress: &mpsc::UnboundedSender<Progress>,
    ) -> anyhow::Result<Prepared> {
        say(progress, format!("resolving {}", request.image));
        let source: ImageSource = request.image.parse()?;
        let platform = match &request.platform {
            Some(text) => text.parse()?,
            None => Platform::host(),
        };
        let client = self.clients.get(&source, &request.access, login);
        let image = self.clients.resolve(&client, &source, &platform).await?;
        if image.layers.is_empty() {
            bail!("{} has no layers; there is nothing to mount", request.image);
        }
        let manifest = image.manifest.as_ref().map_or(image.layers[0].digest, |m| m.digest);
        say(progress, "looking for a SOCI index".to_owned());
        let discovery = self.discover(&image, &client).await;
        let mut trace = discovery.trace();
        for line in &trace {
            tracing::info!(image = %request.image, "{line}");
        }
        let hunt = Hunt::new(self, &client, &image, &discovery, request.load_order.as_deref());
        let followed = follow(self, hunt);
        let (reference, command) = (request.image.clone(), command_of(&image));
        let recorded = Recorded { image: manifest, reference, command };
        let mut layers = Vec::new();
        for (layer, found) in image.layers.iter().zip(judge(&image, &discovery)) {
            layers.push(self.prepare_layer(&client, &image, layer, found, progress, &mut trace).await?);
        }
        let parts = self.synthesize_or_stream(&client, &image, &mut layers, progress, &mut trace).await?;
        let (image, access) = (request.image.clone(), request.access.clone());
        Ok(Prepared { manifest, layers, parts, trace, image, access, recorded, followed })
    }

    /// Synthesizes all layers. One whose zTOC cannot be used is streamed instead: an index is there to save time, and
    /// a bad one must not make an image unmountable. No kernel has seen anything of it by then.
    pub(super) async fn synthesize_or_stream(
        self: &Arc<Self>,
        client: &Client,
        image: &Image,
        layers: &mut [PreparedLayer],
        progress: &mpsc::UnboundedSender<Progress>,
        trace: &mut Vec<String>,
    ) -> anyhow::Result<Vec<Synthesized>> {
        loop {
            let chain: Vec<ChainLayer> = layers.iter().map(PreparedLayer::in_chain).collect();
            let paths = self.paths.clone();
            let error = match tokio::task::spawn_blocking(move || synthesize(&paths, &chain)).await? {
                Ok(parts) => return Ok(parts),
                Err(error) => error,
            };
            let unusable = error.unusable_ztoc();
            let is_bad = |layer: &PreparedLayer| Some(layer.digest) == unusable && layer.origin != STREAMED;
            if !layers.iter().any(is_bad) {
                // Trouble of this machine, or a layer that is bad itself.
                return Err(error.into());
            }
            let changed_on_disk = matches!(error, SynthesisError::Damaged { .. });
            let reason = one_line(&error.into());
            trace.push(format!("{reason}; streaming the layer instead (`sociblk create --push` makes a new index)"));
            tracing::warn!(image = %image.source, reason, "a zTOC is passed over");
            for layer in layers.iter_mut().filter(|layer| is_bad(layer)) {
                if layer.origin == LOCAL || changed_on_disk {
                    // A layer whose recorded zTOC is not here counts as one without; a foreign one is fetched anew by
                    // the next mount.
                    std::fs::remove_file(&layer.ztoc).with_context(|| layer.ztoc.display().to_string())?;
                }
                let described = image.layers.iter().find(|l| l.digest == layer.digest);
                let described = described.context("a layer of the image")?;
                let because = Because::new(Reason::ZtocUnusable, reason.clone());
                *layer = self.prepare_layer(client, image, described, Err(because), progress, trace).await?;
            }
        }
    }

    /// Finds the zTOCs and brings them here. An index that cannot be used is a reason to stream, never to fail.
    pub(super) async fn discover(&self, image: &Image, client: &Client) -> Discovery {
        let mut discovery = find(image, client, &self.store, self.local_policy).await;
        self.fetch_ztocs(&mut discovery, image, client).await;
        discovery
    }

    /// Brings the zTOCs that were found to local disk; without those that cannot be had. Whether these are all.
    pub(super) async fn fetch_ztocs(&self, discovery: &mut Discovery, image: &Image, client: &Client) -> bool {
        let missing = fetch(discovery, image, client, &self.store).await;
        let all = missing.is_empty();
        for Missing { layer, error } in missing {
            discovery.give_up(layer, error);
        }
        all
    }

    pub(super) async fn prepare_layer(
        self: &Arc<Self>,
        client: &Client,
        image: &Image,
        layer: &LayerDescriptor,
        found: Result<ZtocRef, Because>,
        progress: &mpsc::UnboundedSender<Progress>,
        trace: &mut Vec<String>,
    ) -> anyhow::Result<PreparedLayer> {
        let source = client.blob(&image.source, layer.digest, layer.size).await?;
        let (ztoc_digest, origin, index, because) = match found {
            Ok(ZtocRef { digest, origin, .. }) => {
                let because = Because::new(Reason::Indexed, "read lazily by its zTOC");
                (digest, origin.word(), origin.index(), because)
            }
            Err(because) => {
                let Because { reason, detail } = &because;
                tracing::info!(layer = %layer.digest, reason = reason.word(), detail, "layer is fetched whole");
                self.fallbacks.count(*reason);
                trace.push(format!("layer {}: no zTOC; streaming it once and building one", layer.digest.short()));
                (self.ingest(layer, &source, progress).await?, STREAMED, None, because)
            }
        };
        let built_here = matches!(origin, LOCAL | STREAMED);
        Ok(PreparedLayer {
            digest: layer.digest,
            blob_size: layer.size,
            diff_id: layer.diff_id,
            origin,
            index,
            because,
            ztoc: self.store.blob_path(&ztoc_digest),
            key: storage_key(&layer.digest, &ztoc_digest, built_here),
            ztoc_digest,
            source,
        })
    }
}

/// Looks for an image's zTOCs, for as long as a mount does.
pub(super) async fn find(image: &Image, client: &Client, store: &Store, policy: LocalPolicy) -> Discovery {
    match tokio::time::timeout(DISCOVERY_LIMIT, discover(image, client, store, policy)).await {
        Ok(discovery) => discovery,
        Err(_) => {
            let mut discovery = discover_here(image, store, policy).await;
            let detail = format!("no index: the registry did not answer within {} s", DISCOVERY_LIMIT.as_secs());
            discovery.steps.push(Step::new(Place::Registry, Verdict::Failed, detail));
            discovery
        }
    }
}

/// Tells who waits what is going on; nobody may be there to hear it.
pub(super) fn say(progress: &mpsc::UnboundedSender<Progress>, step: String) {
    let _ = progress.send(Progress { step, done_bytes: 0, total_bytes: 0 });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shared_only_as_far_as_their_ztoc_is_trusted() {
        let (layer, own, foreign) = (Digest::of(b"layer"), Digest::of(b"own"), Digest::of(b"foreign"));
        assert_eq!(storage_key(&layer, &own, true), layer);
        assert_eq!(storage_key(&layer, &foreign, false), storage_key(&layer, &foreign, false));
        assert_ne!(storage_key(&layer, &foreign, false), storage_key(&layer, &own, false));
        assert_ne!(storage_key(&layer, &foreign, false), layer);
    }
}
