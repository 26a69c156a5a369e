//! Images whose layers are asked for one after the other: resolved once, their index looked for once, while it lasts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::{OnceCell, mpsc};

use crate::containerd::Address;
use crate::node::Node;
use crate::node::load_order::{Hunt, Recorded, Shown, command_of, follow};
use crate::node::prepare::{Prepared, PreparedLayer};
use crate::node::protocol::RegistryAccess;
use crate::node::synthesis::Synthesized;
use crate::node::why::{Because, Reason, judge};
use crate::registry::{Client, Image, ImageRef, ImageSource, LayerDescriptor, Platform, StoredImage};
use crate::snapshot::{LayerWanted, Way};
use crate::soci::{Discovery, SociError, ZtocRef, discover, discover_here, discover_named};
use crate::units::Digest;

/// How long containerd is asked for an index that it keeps: it is on this machine, and waits for us meanwhile.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(5);
/// Why a small layer is fetched whole.
const BELOW_MINIMUM: &str = "it is smaller than snapshotter.min_layer_size";

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
    /// For each layer: its zTOC, which is on local disk by now, or why there is none.
    found: Vec<Result<ZtocRef, Because>>,
    trace: Vec<String>,
    /// Whether the client named the index.
    named: bool,
    /// Layers that were prepared: by their zTOC, or whole.
    prepared: Mutex<HashMap<usize, PreparedLayer>>,
    /// What was synthesized on the way to other layers.
    synthesized: Mutex<HashMap<usize, Synthesized>>,
    used: Mutex<Instant>,
    recorded: Recorded,
    /// Who follows the image's load order.
    followed: mpsc::UnboundedSender<Shown>,
}

impl Pull {
    /// Whether the image has an index. One that the client named counts even when it lists none of the layers.
    pub fn is_indexed(&self) -> bool {
        self.named || self.found.iter().any(Result::is_ok)
    }

    /// How an index was looked for, in one line.
    pub fn reason(&self) -> String {
        self.trace.join("; ")
    }

    /// Why a layer has no zTOC, in one word.
    pub fn word(&self, digest: &Digest) -> &'static str {
        let found = self.found.get(self.place(digest)).and_then(|found| found.as_ref().err());
        found.map_or(Reason::NoIndex, |because| because.reason).word()
    }

    /// Which layer it is, counted from the bottom.
    pub fn place(&self, digest: &Digest) -> usize {
        self.layer(digest).map_or(0, |(at, _)| at)
    }

    fn kept(&self, at: usize) -> Option<PreparedLayer> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(&at).cloned()
    }

    fn keep(&self, at: usize, layer: &PreparedLayer) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(at, layer.clone());
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
        containerd: Option<&Path>,
    ) -> anyhow::Result<Arc<Pull>> {
        let image: ImageRef = wanted.image_ref.parse()?;
        let image = image.with_digest(wanted.manifest);
        let cell = {
            let mut images = self.pulls.images.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(images.entry((wanted.manifest, image.clone(), wanted.index)).or_default())
        };
        let pull = cell.get_or_try_init(|| self.begin_pull(image.clone(), wanted, access, containerd)).await?;
        *pull.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(Arc::clone(pull))
    }

    async fn begin_pull(
        self: &Arc<Self>,
        image: ImageRef,
        wanted: &LayerWanted,
        access: &RegistryAccess,
        containerd: Option<&Path>,
    ) -> anyhow::Result<Arc<Pull>> {
        let source = ImageSource::Registry(image.clone());
        let client = self.clients.get(&source, access, None);
        let resolved = self.clients.resolve(&client, &source, &Platform::host()).await?;
        let discovery = self.look_for(&resolved, &client, wanted, containerd).await?;
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
            found: judge(&resolved, &discovery),
            image: resolved,
            named: wanted.index.is_some(),
            access: access.clone(),
            trace,
            prepared: Mutex::default(),
            synthesized: Mutex::default(),
            used: Mutex::new(Instant::now()),
            recorded,
            followed,
        }))
    }

    async fn look_for(
        &self,
        image: &Image,
        client: &Client,
        wanted: &LayerWanted,
        containerd: Option<&Path>,
    ) -> anyhow::Result<Discovery> {
        let stored = containerd.and_then(|socket| stored_image(image, wanted, socket));
        if let Some(stored) = &stored {
            let asked = tokio::time::timeout(CONTAINERD_LIMIT, self.look_in(stored, client, wanted.index)).await;
            if let Some(found) = asked.ok().flatten() {
                return Ok(found);
            }
        }
        let Some(index) = wanted.index else { return Ok(self.discover(image, client).await) };
        match discover_named(image, client, &self.store, index).await {
            Ok(mut found) => {
                self.fetch_ztocs(&mut found, image, client).await;
                Ok(found)
            }
            // As with SOCI: whoever names an index wants no other, and one of another image serves no layer of this.
            Err(error @ SociError::Index { .. }) => {
                let mut found = discover_here(image, &self.store, self.local_policy).await;
                found.failure = Some(error);
                Ok(found)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The index that containerd keeps with an image, and its zTOCs; `None` when it serves no layer.
    async fn look_in(&self, stored: &Image, client: &Client, index: Option<Digest>) -> Option<Discovery> {
        let mut found = match index {
            Some(index) => discover_named(stored, client, &self.store, index).await.ok()?,
            None => discover(stored, client, &self.store, self.local_policy).await,
        };
        // A registry may have what containerd was not given.
        let here = self.fetch_ztocs(&mut found, stored, client).await;
        let serves = found.layers.iter().flatten().any(|ztoc| ztoc.origin.index().is_some());
        let all = found.layers.iter().all(Option::is_some);
        (here && (serves || all)).then_some(found)
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
        let found = match way {
            Way::Lazy => pull.found(at),
            Way::Whole => Err(Because::new(Reason::BelowMinimum, BELOW_MINIMUM)),
        };
        let done = pull.synthesized.lock().unwrap_or_else(PoisonError::into_inner).remove(&at);
        if let (Some(part), Some(layer), Way::Lazy) = (done, pull.kept(at), way) {
            return Ok(pull.prepared(layer, part, trace));
        }
        if let Err(because) = found {
            let whole =
                self.prepare_layer(&pull.client, &pull.image, layer, Err(because), &progress, &mut trace).await?;
            pull.keep(at, &whole);
        }
        let (first, mut chain) = self.known_around(pull, at, &progress, &mut trace).await?;
        let parts = self.synthesize_or_stream(&pull.client, &pull.image, &mut chain, &progress, &mut trace).await?;
        let mut wanted = None;
        let mut synthesized = pull.synthesized.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, (layer, part)) in chain.into_iter().zip(parts).enumerate() {
            // A zTOC may have turned out to be no good.
            pull.keep(first + i, &layer);
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
        let mut known: Vec<Option<PreparedLayer>> = Vec::new();
        for (i, layer) in pull.image.layers.iter().enumerate() {
            known.push(match (pull.kept(i), pull.found(i)) {
                (Some(kept), _) => Some(kept),
                (None, Ok(found)) => {
                    let layer =
                        self.prepare_layer(&pull.client, &pull.image, layer, Ok(found), progress, trace).await?;
                    pull.keep(i, &layer);
                    Some(layer)
                }
                (None, Err(_)) => None,
            });
        }
        let first = known[..=at].iter().rposition(Option::is_none).map_or(0, |gap| gap + 1);
        let chain = known.into_iter().skip(first).map_while(|layer| layer).collect();
        Ok((first, chain))
    }
}

impl Pull {
    /// The zTOC of a layer, or why it has none.
    fn found(&self, at: usize) -> Result<ZtocRef, Because> {
        let none = || Err(Because::new(Reason::NoIndex, "no index lists it"));
        self.found.get(at).cloned().unwrap_or_else(none)
    }

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

/// The same image as containerd's content store has it: its manifest is there before its layers are asked for.
fn stored_image(image: &Image, wanted: &LayerWanted, socket: &Path) -> Option<Image> {
    let at = Address::new(socket, &wanted.namespace).ok()?;
    let stored = StoredImage { at, name: wanted.image_ref.clone(), digest: Some(wanted.manifest) };
    Some(Image { source: ImageSource::Containerd(stored), ..image.clone() })
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
