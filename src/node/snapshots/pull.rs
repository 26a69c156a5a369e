//! Images whose layers are asked for one after the other: resolved once, their index looked for once, while it lasts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::{OnceCell, mpsc};

use crate::node::Node;
use crate::node::load_order::{Hunt, Recorded, Shown, command_of, follow};
use crate::node::prepare::{Prepared, PreparedLayer};
use crate::node::protocol::RegistryAccess;
use crate::node::synthesis::Synthesized;
use crate::registry::{Client, Image, ImageRef, ImageSource, LayerDescriptor, Platform};
use crate::snapshot::{LayerWanted, Way};
use crate::soci::{Discovery, ZtocRef, discover_named};
use crate::units::Digest;

/// How long an image is remembered after one of its layers was asked for. What went wrong is not remembered.
const MEMORY: Duration = Duration::from_secs(120);

/// Which image: manifest, repository, and the index that the client named.
type Key = (Digest, ImageRef, Option<Digest>);

/// Images that are being pulled.
#[derive(Default)]
pub(in crate::node) struct Pulls {
    images: Mutex<HashMap<Key, Arc<OnceCell<Arc<Pull>>>>>,
}

/// An image that is being pulled.
pub(in crate::node) struct Pull {
    client: Arc<Client>,
    image: Image,
    access: RegistryAccess,
    /// For each layer: its zTOC, which is on local disk by now.
    found: Vec<Option<ZtocRef>>,
    trace: Vec<String>,
    /// Layers that were brought: whole, or because their zTOC was no good.
    brought: tokio::sync::Mutex<HashMap<usize, PreparedLayer>>,
    /// What was synthesized on the way to other layers.
    synthesized: Mutex<HashMap<usize, Synthesized>>,
    used: Mutex<Instant>,
    recorded: Recorded,
    /// Who follows the image's load order.
    followed: mpsc::UnboundedSender<Shown>,
}

impl Pull {
    /// Whether any layer has a zTOC.
    pub fn is_indexed(&self) -> bool {
        self.found.iter().any(Option::is_some)
    }

    /// How an index was looked for, in one line.
    pub fn reason(&self) -> String {
        self.trace.join("; ")
    }

    fn layer(&self, digest: &Digest) -> anyhow::Result<(usize, &LayerDescriptor)> {
        let found = self.image.layers.iter().enumerate().find(|(_, layer)| layer.digest == *digest);
        found.with_context(|| format!("{} has no layer {digest}; its labels are of another image", self.image.source))
    }
}

impl Node {
    /// What is known of the image of a layer.
    pub(super) async fn pull(
        self: &Arc<Self>,
        wanted: &LayerWanted,
        access: &RegistryAccess,
    ) -> anyhow::Result<Arc<Pull>> {
        let image: ImageRef = wanted.image_ref.parse()?;
        let image = image.with_digest(wanted.manifest);
        let cell = {
            let mut images = self.pulls.images.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(images.entry((wanted.manifest, image.clone(), wanted.index)).or_default())
        };
        let pull = cell.get_or_try_init(|| self.begin_pull(image.clone(), wanted, access)).await?;
        *pull.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(Arc::clone(pull))
    }

    async fn begin_pull(
        self: &Arc<Self>,
        image: ImageRef,
        wanted: &LayerWanted,
        access: &RegistryAccess,
    ) -> anyhow::Result<Arc<Pull>> {
        let source = ImageSource::Registry(image.clone());
        let client = self.clients.get(&source, access, None);
        let resolved = self.clients.resolve(&client, &source, &Platform::host()).await?;
        let discovery = self.look_for(&resolved, &client, wanted.index).await?;
        let trace = discovery.trace();
        for line in &trace {
            tracing::info!(image = wanted.image_ref, "{line}");
        }
        tokio::spawn(forget_later(Arc::downgrade(self), (wanted.manifest, image, wanted.index)));
        let followed = follow(self, Hunt::new(self, &client, &resolved, &discovery, wanted.load_order.as_deref()));
        let (reference, command) = (wanted.image_ref.clone(), command_of(&resolved));
        let recorded = Recorded { image: wanted.manifest, reference, command };
        Ok(Arc::new(Pull {
            client,
            image: resolved,
            access: access.clone(),
            found: discovery.layers,
            trace,
            brought: tokio::sync::Mutex::default(),
            synthesized: Mutex::default(),
            used: Mutex::new(Instant::now()),
            recorded,
            followed,
        }))
    }

    async fn look_for(&self, image: &Image, client: &Client, index: Option<Digest>) -> anyhow::Result<Discovery> {
        let Some(index) = index else { return Ok(self.discover(image, client).await) };
        // Whoever names an index wants it whatever image it says it is for, as with SOCI.
        let mut found = discover_named(image, client, &self.store, index).await?;
        self.fetch_ztocs(&mut found, image, client).await;
        Ok(found)
    }

    /// Everything that showing one layer of an image takes, but for the device.
    pub(super) async fn prepare_one(
        self: &Arc<Self>,
        pull: &Pull,
        digest: &Digest,
        way: Way,
    ) -> anyhow::Result<Prepared> {
        let (at, layer) = pull.layer(digest)?;
        let mut trace = Vec::new();
        // Nobody listens; what matters is logged.
        let (progress, _) = mpsc::unbounded_channel();
        let found = pull.found.get(at).copied().flatten().filter(|_| way == Way::Lazy);
        if found.is_none() {
            let reason = if way == Way::Whole { "it is small" } else { "it has no zTOC" };
            tracing::info!(layer = %digest, reason, "layer is fetched whole");
            let whole = self.prepare_layer(&pull.client, &pull.image, layer, None, &progress, &mut trace).await?;
            pull.brought.lock().await.insert(at, whole);
        }
        let done = pull.synthesized.lock().unwrap_or_else(PoisonError::into_inner).remove(&at);
        if let (Some(part), Some(found)) = (done, found) {
            let layer =
                self.prepare_layer(&pull.client, &pull.image, layer, Some(found), &progress, &mut trace).await?;
            return Ok(pull.prepared(layer, part, trace));
        }
        let (first, mut chain) = self.known_around(pull, at, &progress, &mut trace).await?;
        let parts = self.synthesize_or_stream(&pull.client, &pull.image, &mut chain, &progress, &mut trace).await?;
        let mut wanted = None;
        let mut synthesized = pull.synthesized.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, (layer, part)) in chain.into_iter().zip(parts).enumerate() {
            if first + i == at {
                wanted = Some((layer, part));
            } else if first + i > at {
                synthesized.insert(first + i, part);
            }
        }
        drop(synthesized);
        match wanted {
            Some((layer, part)) => Ok(pull.prepared(layer, part, trace)),
            None => bail!("layer {digest} was lost on the way; this is a defect of sociblk"),
        }
    }

    /// The layers around `at` whose zTOCs are here, as one chain, and the place of its first: a layer may show
    /// directories as those below it have them, and those above it will be asked for next.
    async fn known_around(
        self: &Arc<Self>,
        pull: &Pull,
        at: usize,
        progress: &mpsc::UnboundedSender<crate::node::protocol::Progress>,
        trace: &mut Vec<String>,
    ) -> anyhow::Result<(usize, Vec<PreparedLayer>)> {
        let brought = pull.brought.lock().await.clone();
        let mut known: Vec<Option<PreparedLayer>> = Vec::new();
        for (i, layer) in pull.image.layers.iter().enumerate() {
            let found = pull.found.get(i).copied().flatten();
            known.push(match (brought.get(&i), found) {
                (Some(whole), _) => Some(whole.clone()),
                (None, Some(found)) => {
                    Some(self.prepare_layer(&pull.client, &pull.image, layer, Some(found), progress, trace).await?)
                }
                (None, None) => None,
            });
        }
        let first = known[..=at].iter().rposition(Option::is_none).map_or(0, |gap| gap + 1);
        let chain = known.into_iter().skip(first).map_while(|layer| layer).collect();
        Ok((first, chain))
    }
}

impl Pull {
    fn prepared(&self, layer: PreparedLayer, part: Synthesized, trace: Vec<String>) -> Prepared {
        Prepared {
            manifest: self.image.manifest.as_ref().map_or(layer.digest, |manifest| manifest.digest),
            image: self.image.source.to_string(),
            access: self.access.clone(),
            layers: vec![layer],
            parts: vec![part],
            trace,
            recorded: self.recorded.clone(),
            followed: self.followed.clone(),
        }
    }
}

/// Forgets an image some time after its last layer was asked for.
async fn forget_later(node: Weak<Node>, key: Key) {
    loop {
        tokio::time::sleep(MEMORY).await;
        let Some(node) = node.upgrade() else { return };
        let mut images = node.pulls.images.lock().unwrap_or_else(PoisonError::into_inner);
        let used = images
            .get(&key)
            .and_then(|cell| cell.get())
            .map(|pull| *pull.used.lock().unwrap_or_else(PoisonError::into_inner));
        if used.is_none_or(|used| used.elapsed() >= MEMORY) {
            images.remove(&key);
            return;
        }
    }
}
