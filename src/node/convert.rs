//! `convert`: an image with its SOCI indexes inside (v2), from anywhere to anywhere.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::clients::Clients;
use super::create::{CreatedImage, Empty, compose, manifest, save, with_progress};
use super::indexing::{IndexOptions, Indexed, Indexer, images};
use super::paths::Paths;
use super::protocol::{LoginOrder, Progress, RegistryAccess};
use super::transfer::{Destination, transfer};
use crate::config::Config;
use crate::registry::document::{ManifestDocument, media_type};
use crate::registry::{Client, Document, ImageSource, LayoutName, Platform, Root};
use crate::soci::convert::{
    Converted, Entries, IndexedImageManifest, convert as rewrite, digest_of, is_docker_manifest,
};
use crate::soci::{self, CreatedIndex, IndexedImage, Kind, SetBy, Store, Subject};
use crate::units::{BlobOffset, Digest};

/// Most indexes within indexes.
const MAX_DEPTH: usize = 4;

/// What to convert.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The image: a reference, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or `containerd:SOCKET:NAMESPACE:IMAGE`.
    pub source: String,
    /// Where to put the converted one; likewise.
    pub target: String,
    /// Source and target are paths of layouts, and nothing is kept in the local store.
    pub standalone: Option<LayoutFormat>,
    /// How to build.
    pub index: IndexOptions,
    /// Uploads at the same time.
    pub uploads: usize,
    /// How to talk to registries.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// How a layout is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutFormat {
    /// A tar file.
    Archive,
    /// A directory.
    Dir,
}

/// What was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ConvertedImage {
    /// Digest of the converted image, an OCI index.
    pub digest: Digest,
    /// Where it is.
    pub target: String,
    /// For each platform that was to be indexed.
    pub images: Vec<CreatedImage>,
}

/// A store that is removed with all that is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Files in the temporary directory; nobody is left to hear of an error.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Converts.
///
/// # Errors
/// When the image cannot be had, no layer can be indexed, or the destination refuses.
pub fn run(
    paths: &Paths,
    config: &Config,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<ConvertedImage> {
    with_progress(progress, |sender| convert(paths, config, options, sender))
}

/// What the user's words mean.
fn ends(options: &ConvertOptions) -> anyhow::Result<(ImageSource, ImageSource)> {
    let name = LayoutName::Only;
    if let Some(format) = options.standalone {
        let from = PathBuf::from(&options.source);
        let found = std::fs::metadata(&from).with_context(|| format!("failed to access input {}", from.display()))?;
        let source = match found.is_dir() {
            true => ImageSource::Layout { dir: from, name: name.clone() },
            false => ImageSource::Archive { file: from, name: name.clone() },
        };
        let to = PathBuf::from(&options.target);
        let target = match format {
            LayoutFormat::Archive => ImageSource::Archive { file: to, name },
            LayoutFormat::Dir => ImageSource::Layout { dir: to, name },
        };
        return Ok((source, target));
    }
    let target: ImageSource = options.target.parse()?;
    // As it was written: a reference that was read has a tag in any case.
    let name = match &target {
        ImageSource::Containerd(image) => &image.name,
        _ => &options.target,
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let is_reference = matches!(target, ImageSource::Registry(_) | ImageSource::Containerd(_));
    if is_reference && (!tagged || name.contains('@')) {
        bail!("{name}: the destination image must be a tagged ref of the form \"registry/repository:tag\"");
    }
    Ok((options.source.parse()?, target))
}

/// As [`run`], within a runtime that is there, for callers that handle signals themselves. Dropped, it tidies up.
///
/// # Errors
/// As [`run`].
pub async fn convert(
    paths: &Paths,
    config: &Config,
    options: &ConvertOptions,
    progress: mpsc::UnboundedSender<Progress>,
) -> anyhow::Result<ConvertedImage> {
    let (source, target) = ends(options)?;
    let scratch = options
        .standalone
        .map(|_| Scratch(std::env::temp_dir().join(format!("sociblk-convert-{}", std::process::id()))));
    let store_root = scratch.as_ref().map_or_else(|| paths.root().to_owned(), |scratch| scratch.0.clone());
    let store = Store::open(&store_root).context("opening the local index store")?;
    let clients = Clients::new(config);
    let client = clients.get(&source, &options.access, options.login.clone());
    let target_client = clients.get(&target, &options.access, options.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let mut destination = Destination::open(&target_client, &target, &source).await?;
    destination.hold(&root).await?;
    let missing = match (&root.source, destination.has(&root.source)) {
        (_, true) => Missing::Stay,
        (ImageSource::Registry(_), false) => Missing::Fail,
        (_, false) => Missing::Go,
    };
    let images = images(&client, &root, &options.index.platforms).await?;
    let entries = entries(&client, &root, missing).await?;

    let mut indexer = Indexer::new(&client, &store, &options.index, progress.clone());
    let (mut created, mut indexed, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for image in &images {
        let document = manifest(image)?;
        let Indexed { parts, layers, prefetch, missing_files } = indexer.index(image).await?;
        let (of_soci, of_our_own) = soci::split(parts);
        let index = compose(Kind::V2, of_soci)?;
        let platform = image.platform.clone().context("an image without a platform")?;
        created.push(CreatedImage {
            platform: platform.to_string(),
            manifest: document.digest,
            index: index.as_ref().map(|index| index.digest),
            own_index: None,
            layers,
            prefetch,
            missing_files,
        });
        own.push((document, platform.clone(), of_our_own));
        indexed.extend(index.map(|index| IndexedImageManifest { manifest: document.clone(), platform, index }));
    }
    if indexed.is_empty() && own.iter().all(|(.., parts)| parts.is_empty()) {
        return Err(Empty { images: created }.into());
    }

    let docker = docker_manifests(&client, &root, &entries, &indexed, missing).await?;
    let converted = rewrite(entries, &indexed, &docker)?;
    store.blocking(|store| store.put(soci::CONFIG)).await?;
    let made: Vec<&CreatedIndex> = indexed.iter().map(|image| &image.index).collect();
    transfer(&client, &root, &store, &converted, &made, &mut destination, options.uploads, &progress).await?;
    // Ours name the manifests that conversion made.
    for ((document, platform, parts), told) in own.into_iter().zip(&mut created) {
        let Some(index) = compose(Kind::Own { subject: Some(subject_in(&converted, document)) }, parts)? else {
            continue;
        };
        destination.attach(&client, &store, &index, options.uploads).await?;
        told.own_index = Some(index.digest);
        if options.standalone.is_none() {
            remember_own(&store, &index, platform, &target.to_string()).await?;
        }
    }
    destination.finish(&converted).await?;
    if options.standalone.is_none() {
        remember(&store, &converted, &indexed, &target.to_string()).await?;
    }
    Ok(ConvertedImage { digest: converted.digest, target: target.to_string(), images: created })
}

/// What an index of the converted image's manifest says it belongs to.
fn subject_in(converted: &Converted, document: &Document) -> Subject {
    let new = converted.renamed.get(&document.digest);
    match new.and_then(|digest| converted.manifests.iter().find(|manifest| manifest.digest == *digest)) {
        Some(new) => Subject {
            media_type: media_type::OCI_MANIFEST.to_owned(),
            digest: new.digest,
            size: BlobOffset::new(new.bytes.len() as u64),
        },
        None => soci::subject_of(document),
    }
}

/// Remembers an index of our own as that of the manifest that it names.
async fn remember_own(store: &Store, index: &CreatedIndex, platform: Platform, target: &str) -> anyhow::Result<()> {
    let Some(subject) = index.index.kind.subject() else { return Ok(()) };
    let belongs_to = IndexedImage {
        manifest: subject.digest,
        image_ref: Some(target.to_owned()),
        platform: Some(platform),
        set_by: SetBy::Create,
    };
    let bytes = index.bytes.clone();
    store.blocking(move |store| save(store, &bytes, belongs_to)).await?;
    Ok(())
}

/// Remembers the indexes as those of the new image manifests.
async fn remember(
    store: &Store,
    converted: &Converted,
    indexed: &[IndexedImageManifest],
    target: &str,
) -> anyhow::Result<()> {
    for image in indexed {
        let named = |bytes: &Bytes| {
            let annotations = serde_json::from_slice::<serde_json::Value>(bytes).ok();
            annotations.and_then(|a| a.pointer("/annotations")?.get(soci::INDEX_DIGEST)?.as_str()?.parse().ok())
        };
        let new = converted.manifests.iter().find(|new| named(&new.bytes) == Some(image.index.digest));
        let Some(manifest) = new.map(|new| new.digest) else { continue };
        let belongs_to = IndexedImage {
            manifest,
            image_ref: Some(target.to_owned()),
            platform: Some(image.platform.clone()),
            set_by: SetBy::Create,
        };
        let bytes = image.index.bytes.clone();
        store.blocking(move |store| save(store, &bytes, belongs_to)).await?;
    }
    Ok(())
}

/// What becomes of entries of the image's index whose documents are not where the image is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// A registry has to have them.
    Fail,
    /// A layout is a whole without them, and so is what is copied out of containerd.
    Go,
    /// In containerd an image may lack platforms that were not pulled, and does so as well after conversion.
    Stay,
}

/// What the image's index lists, without indexes within indexes.
async fn entries(client: &Client, root: &Root, missing: Missing) -> anyhow::Result<Entries> {
    let only = if root.is_single() { client.platforms(root).await?.into_iter().next() } else { None };
    let mut entries = Entries::of(&root.document, only.as_ref())?;
    for _ in 0..MAX_DEPTH {
        let (mut flat, mut nested) = (Vec::new(), false);
        for entry in entries.entries {
            let digest = digest_of(&entry).context("the image index lists something without a digest")?;
            let kind = entry.get("mediaType").and_then(|kind| kind.as_str()).unwrap_or_default();
            let is_index = kind.ends_with("image.index.v1+json") || kind.ends_with("manifest.list.v2+json");
            let is_artifact = entry.get("artifactType").and_then(|kind| kind.as_str()).is_some_and(|k| !k.is_empty());
            if missing != Missing::Go && (!is_index || is_artifact) {
                flat.push(entry);
                continue;
            }
            match client.manifest(&root.source, digest).await {
                Ok((document, ManifestDocument::Index(_))) if !is_artifact => {
                    flat.extend(Entries::of(&document, None)?.entries);
                    nested = true;
                }
                Ok(_) => flat.push(entry),
                Err(error) if missing == Missing::Go && error.is_not_found() => {}
                Err(error) if missing == Missing::Stay && error.is_not_found() => flat.push(entry),
                Err(error) => return Err(error.into()),
            }
        }
        entries.entries = flat;
        if !nested {
            return Ok(entries);
        }
    }
    bail!("{}: indexes are nested deeper than {MAX_DEPTH}", root.source)
}

/// Manifests of Docker's media types that get no index.
async fn docker_manifests(
    client: &Client,
    root: &Root,
    entries: &Entries,
    indexed: &[IndexedImageManifest],
    missing: Missing,
) -> anyhow::Result<HashMap<Digest, Bytes>> {
    let mut found = HashMap::new();
    for entry in entries.entries.iter().filter(|entry| is_docker_manifest(entry)) {
        let Some(digest) = digest_of(entry) else { continue };
        if indexed.iter().any(|image| image.manifest.digest == digest) {
            continue;
        }
        match client.manifest(&root.source, digest).await {
            Ok((document, _)) => drop(found.insert(digest, document.bytes)),
            Err(error) if missing == Missing::Stay && error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
