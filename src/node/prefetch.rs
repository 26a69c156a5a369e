//! `sociblk prefetch`: load orders that are kept here, for people; made into SOCI's prefetch artifacts; pushed beside their
//! image. Needs no daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Serialize;

use super::clients::Clients;
use super::create::save;
use super::indexing::{PlatformChoice, images};
use super::load_order;
use super::paths::Paths;
use super::protocol::{LoginOrder, RegistryAccess};
use crate::config::Config;
use crate::order::{
    CREATED_ANNOTATION, ENTRYPOINT_ANNOTATION, EXCERPT_TYPE, LABEL_ANNOTATION, LoadOrder, ORDER_TYPE, OrderLayer,
    Shelf, check_label,
};
use crate::registry::{Client, Image, ImageRef, ImageSource};
use crate::soci::load_order::{SpanRange, document, merged_ranges};
use crate::soci::{
    self, ArtifactKind, Attachment, CreatedIndex, IndexedImage, IndexedLayer, PrefetchEntry, SetBy, Store, subject_of,
};
use crate::units::{BlobOffset, Digest};

/// A load order that is kept, in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OrderRow {
    /// Its label.
    pub label: String,
    /// The image, as it was named.
    pub reference: String,
    /// The image's manifest.
    pub image: Digest,
    /// Layers that it names.
    pub layers: usize,
    /// Spans that it names.
    pub spans: u64,
    /// Their blob bytes.
    pub bytes: u64,
    /// When it was recorded, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// The file.
    pub path: PathBuf,
    /// Why it cannot be used, if so.
    pub error: Option<String>,
}

/// Which load order is meant.
#[derive(Debug, Clone)]
pub struct OrderChoice {
    /// The image.
    pub image: String,
    /// The label; absent: the one recorded last.
    pub label: Option<String>,
    /// A file instead of what is kept.
    pub file: Option<PathBuf>,
    /// Push its excerpt, too.
    pub excerpt: bool,
    /// For which machine.
    pub platform: PlatformChoice,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// What `build` made.
#[derive(Debug, Clone, Serialize)]
pub struct BuiltPrefetch {
    /// The image's manifest.
    pub image: Digest,
    /// Label of the load order.
    pub label: String,
    /// The load order, kept under that label.
    pub order: PathBuf,
    /// The SOCI index that has the prefetch artifacts; absent where the image has no index here.
    pub index: Option<Digest>,
    /// Prefetch artifacts: layer, document, spans.
    pub prefetch: Vec<BuiltArtifact>,
}

/// One prefetch artifact.
#[derive(Debug, Clone, Serialize)]
pub struct BuiltArtifact {
    /// The layer.
    pub layer: Digest,
    /// The document.
    pub digest: Digest,
    /// Its ranges of spans.
    pub spans: Vec<SpanRange>,
}

/// What `push` has pushed.
#[derive(Debug, Clone, Serialize)]
pub struct PushedOrder {
    /// The image's manifest.
    pub image: Digest,
    /// Label of the load order.
    pub label: String,
    /// The artifact beside the image.
    pub artifact: Digest,
    /// Size of its excerpt, if it has one.
    pub excerpt_bytes: Option<u64>,
    /// The order has an excerpt that was not pushed: it was not wanted, or is not kept here.
    #[serde(skip)]
    pub left_out: bool,
}

/// All load orders that are kept, the one used last first.
///
/// # Errors
/// When the directory cannot be read.
pub fn orders(paths: &Paths, config: &Config) -> anyhow::Result<Vec<OrderRow>> {
    let shelf = load_order::shelf(paths, &config.load_order);
    let row = |kept: crate::order::Kept| {
        let path = shelf.path(&kept.image, &kept.label);
        match LoadOrder::read(&path) {
            Ok(order) => OrderRow { path, ..row(&order) },
            Err(error) => OrderRow {
                label: kept.label,
                reference: String::new(),
                image: kept.image,
                layers: 0,
                spans: 0,
                bytes: 0,
                created_at_ms: 0,
                path,
                error: Some(error.to_string()),
            },
        }
    };
    Ok(shelf.list()?.into_iter().map(row).collect())
}

/// What a load order in a file says.
///
/// # Errors
/// When it is none.
pub fn read_order(path: &Path) -> anyhow::Result<(OrderRow, serde_json::Value)> {
    let order = LoadOrder::read(path).with_context(|| path.display().to_string())?;
    let document = serde_json::from_slice(&order.to_bytes()?)?;
    Ok((OrderRow { path: path.to_owned(), ..row(&order) }, document))
}

/// Removes a load order that is kept.
///
/// # Errors
/// When there is none.
pub fn remove_order(paths: &Paths, config: &Config, image: &Digest, label: &str) -> anyhow::Result<()> {
    if !load_order::shelf(paths, &config.load_order).remove(image, label)? {
        bail!("no load order {label:?} of {image} is kept here; `sociblk prefetch ls` lists those that are");
    }
    Ok(())
}

fn row(order: &LoadOrder) -> OrderRow {
    OrderRow {
        label: order.label.clone(),
        reference: order.reference.clone().unwrap_or_default(),
        image: order.image,
        layers: order.layers.len(),
        spans: order.spans(),
        bytes: order.bytes,
        created_at_ms: order.created_at_ms,
        path: PathBuf::new(),
        error: None,
    }
}

/// Makes a SOCI index with prefetch artifacts of a load order, which is kept under its label.
///
/// # Errors
/// When there is no such order, or it is of another image or of other zTOCs than the index.
pub fn build(paths: &Paths, config: &Config, choice: &OrderChoice) -> anyhow::Result<BuiltPrefetch> {
    super::create::with_progress(&mut |_| {}, |_| async {
        let (_, image, order) = find(paths, config, choice).await?;
        let shelf = load_order::shelf(paths, &config.load_order);
        let path = shelf.put(&order, None).context("keeping the load order")?;
        let store = Store::open(paths.root()).context("opening the local index store")?;
        let (index, prefetch) = match with_prefetch(&store, &image, &order)? {
            Some((index, prefetch)) => (Some(index), prefetch),
            None => (None, Vec::new()),
        };
        Ok(BuiltPrefetch { image: order.image, label: order.label, order: path, index, prefetch })
    })
}

/// Pushes a load order beside its image.
///
/// # Errors
/// When there is no such order, or the registry refuses it.
pub fn push(paths: &Paths, config: &Config, choice: &OrderChoice) -> anyhow::Result<PushedOrder> {
    super::create::with_progress(&mut |_| {}, |_| async {
        let (client, image, mut order) = find(paths, config, choice).await?;
        let ImageSource::Registry(target) = &image.source else {
            bail!("a load order is pushed beside its image in a registry; {} is none", image.source);
        };
        let manifest = super::create::manifest(&image)?;
        let target: ImageRef = target.with_digest(manifest.digest);
        let subject = subject_of(manifest);
        let file = match choice.excerpt {
            true => excerpt_of(&load_order::shelf(paths, &config.load_order), &order),
            false => None,
        };
        let excerpt = order.excerpt.clone().filter(|_| file.is_some());
        let left_out = order.excerpt.is_some() && excerpt.is_none();
        order.excerpt.clone_from(&excerpt);
        let attachment = Attachment {
            subject: &subject,
            artifact_type: ORDER_TYPE,
            annotations: BTreeMap::from([
                (LABEL_ANNOTATION, order.label.clone()),
                (CREATED_ANNOTATION, order.created_at_ms.to_string()),
                (ENTRYPOINT_ANNOTATION, serde_json::to_string(&order.entrypoint)?),
            ]),
            document: order.to_bytes()?.into(),
            blob: excerpt
                .as_ref()
                .zip(file.as_deref())
                .map(|(excerpt, file)| (EXCERPT_TYPE, file, excerpt.digest, excerpt.bytes)),
        };
        let artifact = soci::attach(&client, &target, &attachment).await.context("pushing the load order")?;
        let excerpt_bytes = excerpt.map(|excerpt| excerpt.bytes);
        Ok(PushedOrder { image: order.image, label: order.label, artifact, excerpt_bytes, left_out })
    })
}

/// The file with the excerpt of an order, if it is kept here: under whatever label, since a file may have given it another.
fn excerpt_of(shelf: &Shelf, order: &LoadOrder) -> Option<PathBuf> {
    let kept = shelf.of_image(&order.image).ok()?;
    let same = kept.into_iter().find(|(_, kept)| kept.excerpt.is_some() && kept.excerpt == order.excerpt);
    let path = shelf.excerpt_path(&order.image, &same?.1.label);
    path.is_file().then_some(path)
}

/// The image, and the load order that is meant.
async fn find(
    paths: &Paths,
    config: &Config,
    choice: &OrderChoice,
) -> anyhow::Result<(std::sync::Arc<Client>, Image, LoadOrder)> {
    let source: ImageSource = choice.image.parse()?;
    choice.label.as_deref().map(check_label).transpose()?;
    let client = Clients::new(config).get(&source, &choice.access, choice.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let shelf = load_order::shelf(paths, &config.load_order);
    let mut last_error = None;
    for image in images(&client, &root, &choice.platform).await? {
        let manifest = super::create::manifest(&image)?.digest;
        match order_of(&shelf, manifest, choice) {
            Ok(order) => return Ok((client, image, order)),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.with_context(|| format!("{source} has no image for this platform"))?)
}

fn order_of(shelf: &Shelf, manifest: Digest, choice: &OrderChoice) -> anyhow::Result<LoadOrder> {
    let order = match &choice.file {
        Some(file) => LoadOrder::read(file)?.of_image(manifest)?,
        None => {
            let kept = shelf.of_image(&manifest)?.into_iter().map(|(_, order)| order);
            let fits = |order: &LoadOrder| choice.label.as_ref().is_none_or(|label| *label == order.label);
            kept.filter(fits).max_by_key(|order| order.created_at_ms).with_context(|| {
                let image = &choice.image;
                format!("no such load order of {image} is kept here; record one with `sociblk record`, or name a file with --from")
            })?
        }
    };
    Ok(match (&choice.file, &choice.label) {
        (Some(_), Some(label)) => LoadOrder { label: label.clone(), ..order },
        _ => order,
    })
}

/// The image's last v1 index that was made here, with prefetch artifacts in the place of those that it had.
fn with_prefetch(
    store: &Store,
    image: &Image,
    order: &LoadOrder,
) -> anyhow::Result<Option<(Digest, Vec<BuiltArtifact>)>> {
    let known = store.indexes_of(&order.image)?;
    let made_here = known.iter().filter(|index| index.kind == ArtifactKind::IndexV1 && index.location.is_empty());
    let Some(last) = made_here.max_by_key(|index| index.created_at) else { return Ok(None) };
    let CreatedIndex { index, .. } = CreatedIndex::parse(store.read(&last.digest)?)?;
    let mut built = Vec::new();
    let mut parts = Vec::new();
    for ztoc in index.ztocs {
        let of_layer = |layer: &OrderLayer| layer.layer == ztoc.layer_digest;
        let found = order.layers.iter().enumerate().find(|(_, layer)| of_layer(layer));
        let prefetch = match found {
            None => None,
            Some((_, layer)) if layer.ztoc != ztoc.digest => bail!(
                "the load order was recorded with zTOC {} of layer {}, and index {} has {}; record it again",
                layer.ztoc,
                layer.layer,
                last.digest,
                ztoc.digest
            ),
            Some((at, layer)) => {
                let reads = order.reads.iter().filter(|read| read.layer as usize == at);
                // As `parse` has it a read has a span, and its last one is a number.
                let ranges =
                    reads.map(|read| SpanRange { start_span: read.first, end_span: read.first + read.count - 1 });
                let spans = merged_ranges(ranges.collect());
                let bytes = document(&spans)?;
                let digest = store.put(&bytes)?;
                built.push(BuiltArtifact { layer: layer.layer, digest, spans });
                let size = BlobOffset::new(bytes.len() as u64);
                Some(PrefetchEntry { digest, size, layer_digest: layer.layer })
            }
        };
        parts.push(IndexedLayer { ztoc, prefetch, own: false });
    }
    let made = soci::compose(index.kind, parts, &index.build_tool)?;
    let belongs_to = IndexedImage {
        manifest: order.image,
        image_ref: order.reference.clone(),
        platform: image.platform.clone(),
        set_by: SetBy::Create,
    };
    Ok(Some((save(store, &made.bytes, belongs_to)?, built)))
}
