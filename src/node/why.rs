//! `index why`: which index a mount of an image would use, and why not another, layer by layer. Runs what a mount runs,
//! up to the point where the mount would begin to store and to fetch layers.

use anyhow::Context;
use tokio::sync::mpsc;

use super::clients::Clients;
use super::paths::Paths;
use super::prepare::find;
use super::protocol::{LoginOrder, Progress, RegistryAccess};
use super::synthesis;
use crate::config::Config;
use crate::registry::{Client, Image, ImageSource, LayerCompression, LayerDescriptor, Platform};
use crate::soci::{self, Discovery, LocalPolicy, Omitted, SociError, Store, ZtocRef};
pub use crate::soci::{Place, Step, Verdict};
use crate::spans::Compression;
use crate::spans::ztoc::Ztoc;
use crate::units::Digest;

/// Layers below SOCI's default for `--min-layer-size` are told apart: most builders leave them out.
const SOCI_MIN_LAYER_BYTES: u64 = 10 << 20;

/// Which image.
#[derive(Debug, Clone)]
pub struct WhyOptions {
    /// Image as the user named it; local paths are absolute.
    pub image: String,
    /// `OS/ARCH[/VARIANT]`; `None`: this machine's.
    pub platform: Option<String>,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// Why a layer is read lazily, or not.
///
/// The words are the same in the log, in the metric `sociblk_layer_fallbacks_total`, in `index why` and in `explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", from = "String")]
pub enum Reason {
    /// Its zTOC serves.
    Indexed,
    /// No index was found at all.
    NoIndex,
    /// The index does not list it.
    NotInIndex,
    /// The index does not list it, as its builder left small layers out.
    Small,
    /// It is compressed with zstd, SOCI has no zTOCs for that, and no index of our own was found.
    Compression,
    /// The zTOC that the index claims is out of proportion.
    ZtocTooLarge,
    /// The zTOC cannot be had.
    ZtocMissing,
    /// The zTOC is damaged, hostile, or of another blob.
    ZtocUnusable,
    /// The index cannot be had, or is none.
    IndexFailed,
    /// It is smaller than the setting `snapshotter.min_layer_size`.
    BelowMinimum,
    /// containerd did not say which layer it is.
    NoLabels,
    /// Showing it failed, whatever its index.
    Failed,
}

impl Reason {
    /// All of them, but for [`Reason::Indexed`].
    pub const FALLBACKS: [Self; 11] = [
        Self::NoIndex,
        Self::NotInIndex,
        Self::Small,
        Self::Compression,
        Self::ZtocTooLarge,
        Self::ZtocMissing,
        Self::ZtocUnusable,
        Self::IndexFailed,
        Self::BelowMinimum,
        Self::NoLabels,
        Self::Failed,
    ];

    /// The word for it in logs, metrics and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Indexed => "indexed",
            Self::NoIndex => "no-index",
            Self::NotInIndex => "not-in-index",
            Self::Small => "small",
            Self::Compression => "compression",
            Self::ZtocTooLarge => "ztoc-too-large",
            Self::ZtocMissing => "ztoc-missing",
            Self::ZtocUnusable => "ztoc-unusable",
            Self::IndexFailed => "index-failed",
            Self::BelowMinimum => crate::snapshot::words::BELOW_MINIMUM,
            Self::NoLabels => crate::snapshot::words::NO_LABELS,
            Self::Failed => crate::snapshot::words::FAILED,
        }
    }

    /// The reason with this word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::FALLBACKS.into_iter().chain([Self::Indexed]).find(|reason| reason.word() == word)
    }
}

/// A word of a later version must not make what was written down unreadable.
impl From<String> for Reason {
    fn from(word: String) -> Self {
        Self::of_word(&word).unwrap_or(Self::Failed)
    }
}

/// Why a layer is read lazily or not, and the same in words.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Because {
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub detail: String,
}

impl Because {
    /// A reason and its words.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// What a mount makes of a layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerWhy {
    /// Blob digest.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// Whether its zTOC is of our own kind, and nothing that SOCI knows: of zstd layers.
    pub own_kind: bool,
    /// Whether it is read lazily; else it is streamed whole before the mount.
    pub lazy: bool,
    /// The zTOC, also one that cannot be used.
    pub ztoc: Option<Digest>,
    /// Size of the zTOC in bytes.
    pub ztoc_size: Option<u64>,
    /// Span size in bytes.
    pub span_size: Option<u64>,
    /// `local`, `mapped`, `v2`, `v1`: who named the zTOC.
    pub origin: Option<&'static str>,
    /// The index that lists it.
    pub index: Option<Digest>,
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub detail: String,
}

/// What a mount would find.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Why {
    /// The image.
    pub image: String,
    /// Digest of the platform manifest.
    pub manifest: Option<Digest>,
    /// For which machine.
    pub platform: String,
    /// Why the image cannot be mounted at all.
    pub unmountable: Option<String>,
    /// The places where an index was looked for, in order.
    pub steps: Vec<Step>,
    /// Layers, bottom first.
    pub layers: Vec<LayerWhy>,
}

/// Looks.
///
/// # Errors
/// When the image cannot be resolved, or the local store cannot be opened.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &WhyOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<Why> {
    super::create::with_progress(progress, |sender| why(paths, config, options, sender))
}

/// An image, and whom to ask about it.
pub(super) struct Target {
    pub source: ImageSource,
    pub client: std::sync::Arc<Client>,
    pub store: Store,
    pub image: Image,
    pub policy: LocalPolicy,
}

/// Resolves an image as a mount does.
pub(super) async fn target(paths: &Paths, config: &Config, options: &WhyOptions) -> anyhow::Result<Target> {
    let source: ImageSource = options.image.parse()?;
    let platform = match &options.platform {
        Some(text) => text.parse()?,
        None => Platform::host(),
    };
    let store = Store::open(paths.root()).context("opening the local index store")?;
    let clients = Clients::new(config);
    let client = clients.get(&source, &options.access, options.login.clone());
    let image = clients.resolve(&client, &source, &platform).await?;
    let policy = LocalPolicy { prefer_local: config.index.prefer_local, mappings: config.index.local_mappings };
    Ok(Target { source, client, store, image, policy })
}

async fn why(
    paths: &Paths,
    config: &Config,
    options: &WhyOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<Why> {
    let Target { source, client, store, image, policy } = target(paths, config, options).await?;
    let mut found = find(&image, &client, &store, policy).await;
    let named = found.layers.clone();
    // One at a time: a zTOC may be long, and only what it says is of interest.
    let mut looked = Vec::new();
    for (i, (layer, ztoc)) in image.layers.iter().zip(&named).enumerate() {
        let (done_bytes, total_bytes) = (i as u64, named.len() as u64);
        super::prepare::say(&progress, format!("reading zTOC {} of {total_bytes}", done_bytes + 1));
        looked.push(match ztoc {
            Some(ztoc) => Some(look(ztoc, layer, &image, &client, &store).await),
            None => None,
        });
    }
    for (layer, look) in looked.iter().enumerate() {
        if let Some(Look::Missing(error)) = look {
            found.give_up(layer, error.to_string());
        }
    }
    let parts = image.layers.iter().zip(&named).zip(&looked).enumerate();
    let layers = parts.map(|(i, ((layer, named), look))| tell(i, layer, named.as_ref(), look.as_ref(), &found));
    let layers = layers.collect();
    let unmountable = image.layers.is_empty().then(|| "it has no layers".to_owned());
    Ok(Why {
        image: source.to_string(),
        manifest: image.manifest.as_ref().map(|manifest| manifest.digest),
        platform: image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
        unmountable,
        steps: found.steps,
        layers,
    })
}

/// What a zTOC turned out to be.
enum Look {
    Good { span_size: u64, spans: usize, compression: Compression },
    Missing(SociError),
    Unusable(String),
}

async fn look(ztoc: &ZtocRef, layer: &LayerDescriptor, image: &Image, client: &Client, store: &Store) -> Look {
    let bytes = match soci::read_ztoc(ztoc, image, client, store).await {
        Ok(bytes) => bytes,
        Err(error) => return Look::Missing(error),
    };
    let (digest, size) = (layer.digest, layer.size);
    let read = tokio::task::spawn_blocking(move || {
        let told = |ztoc: &Ztoc<'_>| (ztoc.span_size(), ztoc.spans().len(), ztoc.spans().compression());
        synthesis::read(&bytes, digest, size).map(|(ztoc, _)| told(&ztoc)).map_err(|error| error.to_string())
    });
    match read.await {
        Ok(Ok((span_size, spans, compression))) => Look::Good { span_size, spans, compression },
        Ok(Err(error)) => Look::Unusable(error),
        Err(error) => Look::Unusable(error.to_string()),
    }
}

fn tell(
    i: usize,
    layer: &LayerDescriptor,
    named: Option<&ZtocRef>,
    look: Option<&Look>,
    found: &Discovery,
) -> LayerWhy {
    let (reason, detail) = match look {
        Some(Look::Good { spans, compression: Compression::Zstd, .. }) => (Reason::Indexed, of_zstd(*spans)),
        Some(Look::Good { .. }) => (Reason::Indexed, "read lazily by its zTOC".to_owned()),
        Some(Look::Unusable(error)) => (Reason::ZtocUnusable, error.clone()),
        Some(Look::Missing(_)) | None => unlisted(i, layer, found),
    };
    LayerWhy {
        digest: layer.digest,
        size: layer.size.get(),
        media_type: layer.media_type.clone(),
        own_kind: matches!(look, Some(Look::Good { compression: Compression::Zstd, .. })),
        lazy: reason == Reason::Indexed,
        ztoc: named.map(|ztoc| ztoc.digest),
        ztoc_size: named.map(|ztoc| ztoc.size.get()),
        span_size: match look {
            Some(Look::Good { span_size, .. }) => Some(*span_size),
            _ => named.and_then(|ztoc| ztoc.span_size_bytes),
        },
        origin: named.map(|ztoc| ztoc.origin.word()),
        index: named.and_then(|ztoc| ztoc.origin.index()),
        reason,
        detail,
    }
}

/// How a zstd layer is read.
fn of_zstd(spans: usize) -> String {
    let how = match spans {
        1 => "its only zstd frame is one span: the first read fetches the whole layer".to_owned(),
        spans => format!("its zstd frames make {spans} spans"),
    };
    format!("read lazily by its zTOC, which is of our own kind and not SOCI's, as it is compressed with zstd; {how}")
}

/// For each layer of an image: the zTOC that serves it, or why there is none.
pub(super) fn judge(image: &Image, found: &Discovery) -> Vec<Result<ZtocRef, Because>> {
    let layers = image.layers.iter().enumerate();
    let judged = layers.map(|(i, layer)| {
        found.layers.get(i).copied().flatten().ok_or_else(|| {
            let (reason, detail) = unlisted(i, layer, found);
            Because { reason, detail }
        })
    });
    judged.collect()
}

/// Why a layer has no zTOC.
fn unlisted(i: usize, layer: &LayerDescriptor, found: &Discovery) -> (Reason, String) {
    match found.omitted.get(i).and_then(Option::as_ref) {
        Some(Omitted::Missing { ztoc, error }) => {
            (Reason::ZtocMissing, format!("its zTOC {ztoc} cannot be had: {error}"))
        }
        _ if layer.compression() == LayerCompression::Zstd => {
            let failed = found.failure.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            let detail = format!(
                "it is compressed with zstd, for which SOCI has no zTOCs, and no index of our own was found{failed}; \
                 `sociblk create` makes one"
            );
            (Reason::Compression, detail)
        }
        Some(Omitted::TooLarge { ztoc, size, limit_bytes, index }) => {
            let detail = format!(
                "index {index} claims a zTOC {ztoc} of {size} bytes; at most {limit_bytes} are accepted for this layer"
            );
            (Reason::ZtocTooLarge, detail)
        }
        Some(Omitted::NotListed { index, smallest_listed }) => {
            let bytes = layer.size.get();
            let below_listed = smallest_listed.is_some_and(|listed| layer.size < listed);
            if below_listed && bytes < SOCI_MIN_LAYER_BYTES {
                let detail = format!(
                    "index {index} does not list it: its {bytes} bytes are less than any layer has that is listed, so its \
                     builder left small layers out (--min-layer-size)"
                );
                return (Reason::Small, detail);
            }
            (Reason::NotInIndex, format!("index {index} does not list it"))
        }
        None => match (&found.failure, found.trouble()) {
            (Some(error), _) => (Reason::IndexFailed, format!("no index can be used: {error}")),
            (None, Some(trouble)) => (Reason::IndexFailed, trouble.to_owned()),
            (None, None) => (Reason::NoIndex, "no index was found; `sociblk create` makes one".to_owned()),
        },
    }
}
