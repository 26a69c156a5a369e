//! Which load order an image has: one that is kept here, one beside it in its registry, else the prefetch artifacts of its
//! index. A mount never waits for it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Outcome, Wanted, command_of};
use crate::node::{Node, one_line};
use crate::order::{
    CREATED_ANNOTATION, Candidate, Choice, ENTRYPOINT_ANNOTATION, LABEL_ANNOTATION, LoadOrder, MAX_DOCUMENT_BYTES,
    ORDER_TYPE, choose,
};
use crate::registry::document::{Descriptor, ManifestDocument};
use crate::registry::{BlobSource, Client, Image, ImageSource};
use crate::soci::load_order::{self, MAX_PREFETCH_BYTES, SpanRange};
use crate::soci::{Discovery, Prefetch, read_blob};
use crate::units::{BlobOffset, Digest};

/// Referrers that are looked at.
const MAX_CANDIDATES: usize = 16;
/// Prefetch artifacts that are fetched at the same time: there is one for each layer, of some hundred bytes.
const PARALLEL_FETCHES: usize = 8;
/// How long a load order is looked for; later it would be of little use.
const LIMIT: Duration = Duration::from_secs(20);

/// What a look for a load order takes.
pub(in crate::node) struct Hunt {
    client: Arc<Client>,
    image: Image,
    wanted: Wanted,
    /// Whether whoever starts it named what is wanted; else the settings do.
    named: bool,
    /// Orders among the referrers; `None` when nobody has asked for these yet.
    listed: Option<Vec<Descriptor>>,
    prefetch: Vec<Prefetch>,
}

/// What was found.
pub(super) enum Found {
    /// A load order, why this one, and where its excerpt is, if that can be used.
    Order(Box<LoadOrder>, Chosen, Option<Arc<dyn BlobSource>>),
    /// Prefetch artifacts, and why these.
    Prefetch(Vec<Artifact>, Chosen),
    /// Nothing.
    Nothing,
}

/// Why something was chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Where it was found.
    pub outcome: Outcome,
    /// The artifact of the registry that it came in.
    pub digest: Option<Digest>,
    /// For people.
    pub why: String,
}

/// A prefetch artifact.
pub(super) struct Artifact {
    /// The layer's blob.
    pub layer: Digest,
    /// The zTOC that numbers its spans.
    pub ztoc: Digest,
    /// Of the document.
    pub digest: Digest,
    /// What is to be fetched.
    pub spans: Vec<SpanRange>,
}

impl Found {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Order(_, chosen, _) | Self::Prefetch(_, chosen) => chosen.outcome,
            Self::Nothing => Outcome::Nothing,
        }
    }
}

impl Hunt {
    /// For an image whose index was just looked for; `word` is that of whoever starts it.
    pub fn new(node: &Node, client: &Arc<Client>, image: &Image, discovery: &Discovery, word: Option<&str>) -> Self {
        Self {
            client: Arc::clone(client),
            image: image.clone(),
            wanted: node.orders.wanted(word),
            named: word.is_some(),
            listed: discovery.orders.clone(),
            prefetch: discovery.prefetch.clone(),
        }
    }

    /// Whether none is wanted.
    pub fn is_off(&self) -> bool {
        self.wanted == Wanted::Chosen(Choice::Off)
    }

    /// Whether looking may ask the network for what has not been asked for.
    pub fn is_costly(&self) -> bool {
        self.listed.is_none() && matches!(self.wanted, Wanted::Chosen(_))
    }

    /// The image, for people.
    pub fn image(&self) -> String {
        self.image.source.to_string()
    }

    /// Looks. What is wrong is told and passed over: a load order only saves time.
    pub(super) async fn run(&self, node: &Node) -> Found {
        let (found, outcome) = match tokio::time::timeout(LIMIT, self.look(node)).await {
            Ok(Ok(found)) => {
                let outcome = found.outcome();
                (found, outcome)
            }
            Ok(Err(error)) => {
                tracing::warn!(image = self.image(), error = one_line(&error), "the load order is ignored");
                (Found::Nothing, Outcome::Failed)
            }
            Err(_) => {
                tracing::warn!(
                    image = self.image(),
                    "no load order was had within {} s; none is followed",
                    LIMIT.as_secs()
                );
                (Found::Nothing, Outcome::Failed)
            }
        };
        node.orders.followed.count(outcome);
        found
    }

    async fn look(&self, node: &Node) -> anyhow::Result<Found> {
        let Some(manifest) = self.image.manifest.as_ref().map(|manifest| manifest.digest) else {
            return Ok(Found::Nothing);
        };
        let choice = match &self.wanted {
            Wanted::File(path) => {
                let path = path.clone();
                let order = tokio::task::spawn_blocking(move || LoadOrder::read(&path)).await??.of_image(manifest)?;
                let why = "whoever started it named this file".to_owned();
                return Ok(Found::Order(order.into(), Chosen { outcome: Outcome::File, digest: None, why }, None));
            }
            Wanted::Chosen(Choice::Off) => return Ok(Found::Nothing),
            Wanted::Chosen(choice) => choice,
        };
        let command = command_of(&self.image);
        let shelf = node.orders.shelf.clone();
        let mut kept = tokio::task::spawn_blocking(move || shelf.of_image(&manifest)).await??;
        let candidates: Vec<Candidate> = kept.iter().map(|(candidate, _)| candidate.clone()).collect();
        if let Some(at) = choose(&candidates, choice, &command) {
            let (_, order) = kept.swap_remove(at);
            let (shelf, label) = (node.orders.shelf.clone(), order.label.clone());
            // Read once more: used now, it stays.
            tokio::task::spawn_blocking(move || shelf.read(&manifest, &label)).await??;
            let why = self.why(choice, candidates.len());
            let excerpt = self.kept_excerpt(node, &order).await;
            return Ok(Found::Order(order.into(), Chosen { outcome: Outcome::Kept, digest: None, why }, excerpt));
        }
        if let Some(found) = self.beside(node, manifest, choice, &command).await? {
            return Ok(found);
        }
        self.artifacts(node).await
    }

    /// Why an order was taken of `number` in one place.
    fn why(&self, choice: &Choice, number: usize) -> String {
        let rule = match choice {
            Choice::Label(label) if self.named => format!("whoever started it wants label {label:?}"),
            Choice::Label(label) => format!("load_order.policy is \"label\", of label {label:?}"),
            Choice::Newest => "load_order.policy is \"newest\"".to_owned(),
            Choice::Entrypoint => "load_order.policy is \"entrypoint\"".to_owned(),
            Choice::Off => "load_order.policy is \"off\"".to_owned(),
        };
        format!("{rule}, {number} to choose from")
    }

    /// An order among the image's referrers.
    async fn beside(
        &self,
        node: &Node,
        manifest: Digest,
        choice: &Choice,
        command: &[String],
    ) -> anyhow::Result<Option<Found>> {
        let (client, source) = (&self.client, &self.image.source);
        let listed = match &self.listed {
            Some(listed) => listed.clone(),
            None => client.referrers(source, manifest, ORDER_TYPE).await.context("asking for load orders")?,
        };
        let mut candidates = Vec::new();
        let mut described = Vec::new();
        for descriptor @ Descriptor { digest, annotations, .. } in listed.iter().take(MAX_CANDIDATES) {
            // Registries of before 1.1 list artifacts without what they say of themselves.
            let read = match annotations.contains_key(LABEL_ANNOTATION) {
                true => None,
                false => match client.manifest(source, *digest).await {
                    Ok((_, ManifestDocument::Manifest(artifact))) => Some(artifact.annotations),
                    Ok((_, ManifestDocument::Index(_))) => continue,
                    Err(error) => {
                        // The others may be readable.
                        tracing::warn!(image = %source, %digest, %error, "a load order beside the image is passed over");
                        continue;
                    }
                },
            };
            described.push(descriptor);
            let said = read.as_ref().unwrap_or(annotations);
            let text = |key| said.get(key).map(String::as_str).unwrap_or_default();
            candidates.push(Candidate {
                label: text(LABEL_ANNOTATION).to_owned(),
                entrypoint: serde_json::from_str(text(ENTRYPOINT_ANNOTATION)).unwrap_or_default(),
                created_at_ms: text(CREATED_ANNOTATION).parse().unwrap_or(0),
            });
        }
        let Some(chosen) = choose(&candidates, choice, command).and_then(|at| described.get(at)) else {
            return Ok(None);
        };
        let at = || format!("load order {}", chosen.digest);
        let (_, artifact) = client.manifest(source, chosen.digest).await.with_context(at)?;
        let ManifestDocument::Manifest(artifact) = artifact else {
            anyhow::bail!("{}: an index of images, not an artifact", at());
        };
        let document = artifact.layers.iter().find(|blob| blob.media_type == ORDER_TYPE);
        let document = document.with_context(|| format!("{}: it has no document", at()))?;
        let (digest, size) = (document.digest, document.size);
        if size.get() > MAX_DOCUMENT_BYTES {
            anyhow::bail!("{}: it claims {} bytes; at most {MAX_DOCUMENT_BYTES} are accepted", at(), size.get());
        }
        let bytes = read_blob(digest, size, &self.image, client, &node.store).await.with_context(at)?;
        let order = LoadOrder::parse(&bytes).and_then(|order| order.of_image(manifest)).with_context(at)?;
        let excerpt = match order.excerpt.as_ref().map(|layout| (layout.digest, BlobOffset::new(layout.bytes))) {
            Some((digest, _)) if !node.orders.believes(&source.to_string()) => {
                tracing::info!(image = %source, %digest, "the load order has an excerpt, which is not used: load_order.trusted_excerpts does not name the image");
                None
            }
            Some((digest, size)) => Some(client.blob(source, digest, size).await.with_context(at)?),
            None => None,
        };
        let why = self.why(choice, candidates.len());
        Ok(Some(Found::Order(
            order.into(),
            Chosen { outcome: Outcome::Registry, digest: Some(chosen.digest), why },
            excerpt,
        )))
    }

    /// The excerpt of an order that is kept here; none when it is not there whole.
    async fn kept_excerpt(&self, node: &Node, order: &LoadOrder) -> Option<Arc<dyn BlobSource>> {
        let layout = order.excerpt.as_ref()?;
        let file = ImageSource::LayerFile(node.orders.shelf.excerpt_path(&order.image, &order.label));
        match self.client.blob(&file, layout.digest, BlobOffset::new(layout.bytes)).await {
            Ok(source) => Some(source),
            Err(error) => {
                tracing::warn!(image = self.image(), %error, "the excerpt of a load order that is kept here is not used");
                None
            }
        }
    }

    /// The prefetch artifacts of the index.
    async fn artifacts(&self, node: &Node) -> anyhow::Result<Found> {
        let each = self.prefetch.iter().map(|prefetch| self.artifact(node, *prefetch));
        // The futures borrow; collecting them first keeps the stream's type free of the iterator's closure.
        let each: Vec<_> = each.collect();
        let found: Vec<Artifact> = stream::iter(each).buffered(PARALLEL_FETCHES).try_collect().await?;
        if found.is_empty() {
            return Ok(Found::Nothing);
        }
        let why = "the image's index lists them, and there is no load order that is wanted".to_owned();
        Ok(Found::Prefetch(found, Chosen { outcome: Outcome::Artifacts, digest: None, why }))
    }

    async fn artifact(
        &self,
        node: &Node,
        Prefetch { layer, ztoc, digest, size }: Prefetch,
    ) -> anyhow::Result<Artifact> {
        let at = || format!("prefetch artifact {digest}");
        if size.get() > MAX_PREFETCH_BYTES {
            anyhow::bail!("{}: it claims {} bytes; at most {MAX_PREFETCH_BYTES} are accepted", at(), size.get());
        }
        let bytes = read_blob(digest, size, &self.image, &self.client, &node.store).await.with_context(at)?;
        Ok(Artifact { layer, ztoc, digest, spans: load_order::parse(&bytes).with_context(at)? })
    }
}
