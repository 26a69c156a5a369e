//! `index verify`: proves an image's index against the image. Streams each layer once, stores nothing.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::paths::Paths;
use super::prepare::find;
use super::progress::Shown;
use super::protocol::Progress;
use super::why::{Target, WhyOptions, target};
use crate::config::Config;
use crate::fill::{self, IngestConfig, Interrupted, Pieces};
use crate::registry::{BlobSource, Client, Image, LayerDescriptor};
use crate::soci::verify::{Checked, Expected, Findings, Verifier};
pub use crate::soci::verify::{Finding, Part};
use crate::soci::{Discovery, Omitted, SociError, Step, Store, ZtocRef, discover_named, read_ztoc};
use crate::spans::ztoc::Ztoc;
use crate::units::{BlobOffset, BlobRange, Digest, u64_from_usize};

/// Parallel requests for each layer, and their length: they hide the round trip without holding much.
const LAYER_REQUESTS: usize = 2;
const PIECE_BYTES: u64 = 2 << 20;

/// What to prove.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The image.
    pub image: WhyOptions,
    /// The index; `None`: what a mount would use.
    pub index: Option<Digest>,
    /// Layers that are worked on at the same time; `None`: one for each CPU.
    pub parallel: Option<usize>,
}

/// What came of a layer, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All that the zTOC says is so.
    Proven,
    /// Something is wrong.
    Wrong,
    /// It could not be checked.
    Unchecked,
    /// The layer has no zTOC: there is nothing to prove.
    NotIndexed,
}

/// A layer that was checked.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VerifiedLayer {
    /// Blob digest.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// The zTOC.
    pub ztoc: Option<Digest>,
    /// `local`, `mapped`, `v2`, `v1`, `named`: who named the zTOC.
    pub origin: Option<&'static str>,
    /// The index that lists it.
    pub index: Option<Digest>,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it could not be checked, or has no zTOC; empty otherwise.
    pub reason: String,
    /// What is wrong, the first of it.
    pub findings: Vec<Finding>,
    /// How much is wrong in all.
    pub findings_total: u64,
    /// What was checked: spans.
    pub spans: u64,
    /// What was checked: entries of the table of contents.
    pub entries: u64,
    /// Length of the tar in bytes.
    pub layer_bytes: u64,
    /// How long it took, fetching included, in ms.
    pub elapsed_ms: u64,
}

/// What came of an image.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Verified {
    /// The image.
    pub image: String,
    /// Digest of the platform manifest.
    pub manifest: Option<Digest>,
    /// For which machine.
    pub platform: String,
    /// `Proven` when at least one layer has a zTOC and all zTOCs are proven.
    pub outcome: Outcome,
    /// How the index was looked for.
    pub steps: Vec<Step>,
    /// Layers, bottom first.
    pub layers: Vec<VerifiedLayer>,
}

/// Fetches the image and proves its index.
///
/// # Errors
/// When image or index cannot be had.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Verified> {
    super::create::with_progress(progress, |sender| verify(paths, config, options, sender))
}

async fn verify(
    paths: &Paths,
    config: &Config,
    options: &VerifyOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<Verified> {
    let Target { source, client, store, image, policy } = target(paths, config, &options.image).await?;
    let found = match options.index {
        Some(index) => discover_named(&image, &client, &store, index).await?,
        None => find(&image, &client, &store, policy).await,
    };
    let layers = layers(&image, &client, &store, &found, options.parallel, progress).await;
    let any = |outcome| layers.iter().any(|layer| layer.outcome == outcome);
    let outcome = if any(Outcome::Wrong) {
        Outcome::Wrong
    } else if any(Outcome::Unchecked) || !any(Outcome::Proven) || found.failure.is_some() {
        Outcome::Unchecked
    } else {
        Outcome::Proven
    };
    Ok(Verified {
        image: source.to_string(),
        manifest: image.manifest.as_ref().map(|manifest| manifest.digest),
        platform: image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
        outcome,
        steps: found.steps,
        layers,
    })
}

async fn layers(
    image: &Image,
    client: &Client,
    store: &Store,
    found: &Discovery,
    parallel: Option<usize>,
    progress: mpsc::UnboundedSender<Progress>,
) -> Vec<VerifiedLayer> {
    let mut work: Vec<(usize, &LayerDescriptor, ZtocRef)> = Vec::new();
    let mut told: Vec<VerifiedLayer> = Vec::new();
    for (i, layer) in image.layers.iter().enumerate() {
        let ztoc = found.layers.get(i).copied().flatten();
        told.push(untouched(layer, ztoc.as_ref(), found, i));
        // The same layer may come twice; its zTOC is the same then.
        if let Some(ztoc) = ztoc.filter(|_| !work.iter().any(|(_, known, _)| known.digest == layer.digest)) {
            work.push((i, layer, ztoc));
        }
    }
    let total_bytes = work.iter().map(|(_, layer, _)| layer.size.get()).sum();
    let shown = Shown::new("verifying", total_bytes, progress);
    // The largest first: a large one that begins last would keep the other CPUs waiting.
    work.sort_by_key(|(i, layer, _)| (std::cmp::Reverse(layer.size), *i));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let told_of: Vec<_> = work
        .into_iter()
        .map(|(i, layer, ztoc)| {
            let (shown, blank) = (Arc::clone(&shown), told.get(i).cloned());
            async move {
                let began = Instant::now();
                let result = prove(image, layer, &ztoc, client, store, shown).await;
                blank.map(|blank| finished(blank, result, began))
            }
        })
        .collect();
    let parallel = parallel.unwrap_or(cpus).max(1);
    let done: Vec<_> = stream::iter(told_of).buffer_unordered(parallel).collect().await;
    for layer in done.into_iter().flatten() {
        for slot in told.iter_mut().filter(|slot| slot.digest == layer.digest) {
            slot.clone_from(&layer);
        }
    }
    told
}

/// A layer before it is looked at.
fn untouched(layer: &LayerDescriptor, ztoc: Option<&ZtocRef>, found: &Discovery, i: usize) -> VerifiedLayer {
    let (outcome, reason) = match (ztoc, found.omitted.get(i).and_then(Option::as_ref)) {
        (Some(_), _) => (Outcome::Unchecked, String::new()),
        (None, Some(Omitted::TooLarge { ztoc, size, limit_bytes, .. })) => {
            let reason = format!("its zTOC {ztoc} claims {size} bytes; at most {limit_bytes} are accepted");
            (Outcome::Unchecked, reason)
        }
        (None, Some(Omitted::Missing { ztoc, error })) => {
            (Outcome::Unchecked, format!("its zTOC {ztoc} cannot be had: {error}"))
        }
        (None, Some(Omitted::NotListed { index, .. })) => (Outcome::NotIndexed, format!("not listed by index {index}")),
        (None, None) => (Outcome::NotIndexed, "no index was found; `sociblk index why` tells more".to_owned()),
    };
    VerifiedLayer {
        digest: layer.digest,
        size: layer.size.get(),
        ztoc: ztoc.map(|ztoc| ztoc.digest),
        origin: ztoc.map(|ztoc| ztoc.origin.word()),
        index: ztoc.and_then(|ztoc| ztoc.origin.index()),
        outcome,
        reason,
        findings: Vec::new(),
        findings_total: 0,
        spans: 0,
        entries: 0,
        layer_bytes: 0,
        elapsed_ms: 0,
    }
}

/// What one layer's pass gave.
struct Pass {
    findings: Findings,
    unchecked: Option<String>,
    spans: u64,
    entries: u64,
    layer_bytes: u64,
}

fn finished(mut told: VerifiedLayer, result: anyhow::Result<Pass>, began: Instant) -> VerifiedLayer {
    told.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(pass) => {
            told.outcome = match (&pass.unchecked, pass.findings.is_empty()) {
                (_, false) => Outcome::Wrong,
                (Some(_), true) => Outcome::Unchecked,
                (None, true) => Outcome::Proven,
            };
            told.reason = pass.unchecked.unwrap_or_default();
            told.findings_total = pass.findings.total;
            told.findings = pass.findings.told;
            (told.spans, told.entries, told.layer_bytes) = (pass.spans, pass.entries, pass.layer_bytes);
        }
        Err(error) => told.reason = super::one_line(&error),
    }
    told
}

/// A zTOC that is wrong before its layer was looked at.
fn wrong_document(field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Pass {
    let mut findings = Findings::default();
    findings.add(Part::Ztoc, field, expected, found);
    Pass { findings, unchecked: None, spans: 0, entries: 0, layer_bytes: 0 }
}

async fn prove(
    image: &Image,
    layer: &LayerDescriptor,
    ztoc: &ZtocRef,
    client: &Client,
    store: &Store,
    shown: Arc<Shown>,
) -> anyhow::Result<Pass> {
    let bytes = match read_ztoc(ztoc, image, client, store).await {
        Ok(bytes) => Arc::new(bytes),
        Err(SociError::Corrupt { expected, actual, .. }) => return Ok(wrong_document("digest", expected, actual)),
        Err(error) => return Err(error.into()),
    };
    let source = client.blob(&image.source, layer.digest, layer.size).await?;
    let expected = Expected { digest: layer.digest, blob_size: layer.size, diff_id: layer.diff_id };
    let whole = BlobRange::new(BlobOffset::ZERO, layer.size);
    loop {
        let (pass, is_blob) = pass(&bytes, expected, Arc::clone(&source), Arc::clone(&shown)).await?;
        // These were not the blob's bytes: another host may have them.
        if is_blob || !whole.is_some_and(|whole| source.reject(whole)) {
            return Ok(pass);
        }
    }
}

/// Streams the layer once. Says also whether what came was the blob.
async fn pass(
    ztoc: &Arc<Vec<u8>>,
    expected: Expected,
    source: Arc<dyn BlobSource>,
    shown: Arc<Shown>,
) -> anyhow::Result<(Pass, bool)> {
    let config = IngestConfig { requests: LAYER_REQUESTS, piece_bytes: PIECE_BYTES, ..IngestConfig::default() };
    let ztoc = Arc::clone(ztoc);
    let work = move |pieces| check(&ztoc, expected, pieces, &shown);
    match fill::stream(source, config, work).await? {
        (_, Err(Stop::Ztoc(error))) => Ok((wrong_document("document", "a zTOC", error), true)),
        (Err(error), _) => Err(error.into()),
        (Ok(()), Err(Stop::Blob(error))) => Err(error.into()),
        (Ok(()), Ok(done)) => Ok(done),
    }
}

/// Why a pass ended early.
enum Stop {
    Ztoc(String),
    Blob(Interrupted),
}

/// The blocking half.
fn check(bytes: &[u8], expected: Expected, mut pieces: Pieces, shown: &Shown) -> Result<(Pass, bool), Stop> {
    let ztoc = Ztoc::parse(bytes).map_err(|error| Stop::Ztoc(super::one_line(&error.into())))?;
    let mut verifier = Verifier::new(&ztoc, expected);
    let mut done_bytes = 0;
    while let Some(piece) = pieces.receive().map_err(Stop::Blob)? {
        verifier.push(&piece);
        done_bytes += u64_from_usize(piece.len());
        shown.at(expected.digest, done_bytes);
    }
    let Checked { findings, unchecked, blob_digest, layer_size, .. } = verifier.finish();
    let (spans, entries) = (u64_from_usize(ztoc.spans().len()), u64_from_usize(ztoc.entry_count()));
    let pass = Pass { findings, unchecked, spans, entries, layer_bytes: layer_size.get() };
    Ok((pass, blob_digest == expected.digest))
}
