//! What an image in a registry is, before anything is built of it: which platforms it has, how large they are, and which
//! indexes are there already.

use anyhow::{Context, bail};

use super::clients::Clients;
use super::create::manifest;
use super::indexing::{PlatformChoice, images};
use super::protocol::{LoginOrder, RegistryAccess};
use crate::config::Config;
use crate::registry::document::{ManifestDocument, media_type, parse_manifest};
use crate::registry::{ImageSource, LayerCompression, Platform};
use crate::soci::{INDEX_DIGEST, OWN_TYPE, V1_TYPE, V2_TYPE};
use crate::units::Digest;

/// What is to be found out.
#[derive(Debug, Clone)]
pub struct SurveyOptions {
    /// The image, in a registry.
    pub image: String,
    /// Platforms of interest, where the image has them; none: all that it has.
    pub platforms: Vec<Platform>,
    /// How to talk to the registry.
    pub access: RegistryAccess,
    /// Who to be there.
    pub login: Option<LoginOrder>,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Digest of what the name means: an index or a manifest.
    pub digest: Digest,
    /// What it is.
    pub kind: SurveyKind,
}

/// What stands behind a name in a registry.
#[derive(Debug, Clone)]
pub enum SurveyKind {
    /// Something else than an image, such as a signature or a SOCI index.
    Artifact,
    /// An image that carries its SOCI index (v2) already.
    Converted,
    /// An image. Empty: it is not made for any of the platforms of interest.
    Image(Vec<SurveyedImage>),
}

/// One platform of an image.
#[derive(Debug, Clone)]
pub struct SurveyedImage {
    /// For which machine; empty when the image does not say it.
    pub platform: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Sum of its layers' blobs.
    pub layer_bytes: u64,
    /// A v1 index that the registry lists for it; of an image of zstd layers alone one of our own.
    pub index: Option<Digest>,
}

/// Looks at an image.
///
/// # Errors
/// What the registry says, and documents that cannot be read.
pub async fn survey(config: &Config, options: &SurveyOptions) -> anyhow::Result<Survey> {
    let source: ImageSource = options.image.parse()?;
    if !matches!(source, ImageSource::Registry(_)) {
        bail!("{source} is in no registry");
    }
    let client = Clients::new(config).get(&source, &options.access, options.login.clone());
    let root = client.root(&source).await.with_context(|| format!("resolving {source}"))?;
    let digest = root.document.digest;
    let is_artifact = match parse_manifest(&root.document.bytes, Some(&root.document.media_type)) {
        Ok(ManifestDocument::Manifest(manifest)) => {
            let is_config =
                matches!(manifest.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG);
            manifest.subject.is_some() || manifest.artifact_type.is_some() || !is_config
        }
        Ok(ManifestDocument::Index(index)) => {
            if index.manifests.iter().any(|entry| entry.artifact_type.as_deref() == Some(V2_TYPE)) {
                return Ok(Survey { digest, kind: SurveyKind::Converted });
            }
            // What a registry's fallback tag holds.
            !index.manifests.is_empty() && index.manifests.iter().all(|entry| entry.artifact_type.is_some())
        }
        Err(error) => return Err(error).with_context(|| source.to_string()),
    };
    if is_artifact {
        return Ok(Survey { digest, kind: SurveyKind::Artifact });
    }
    let offered = client.platforms(&root).await.with_context(|| format!("reading {source}"))?;
    let wanted = &options.platforms;
    let chosen: Vec<String> =
        offered.iter().filter(|p| wanted.is_empty() || wanted.contains(p)).map(ToString::to_string).collect();
    if chosen.is_empty() && (!wanted.is_empty() || !offered.is_empty() || !root.is_single()) {
        return Ok(Survey { digest, kind: SurveyKind::Image(Vec::new()) });
    }
    let mut found = Vec::new();
    for image in images(&client, &root, &PlatformChoice { named: chosen, all: false }).await? {
        if image.annotations.contains_key(INDEX_DIGEST) {
            return Ok(Survey { digest, kind: SurveyKind::Converted });
        }
        let document = manifest(&image)?;
        // SOCI has no index of an image whose layers are all of zstd; ours stands for it.
        let zstd = image.layers.iter().all(|layer| layer.compression() == LayerCompression::Zstd);
        let kind = if zstd { OWN_TYPE } else { V1_TYPE };
        let listed = client.referrers(&root.source, document.digest, kind).await;
        let listed = listed.with_context(|| format!("asking for the indexes of {source}"))?;
        found.push(SurveyedImage {
            // An image that does not say it serves on any machine, and is found without a name.
            platform: match offered.is_empty() {
                true => String::new(),
                false => image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
            },
            manifest: document.digest,
            layer_bytes: image.layers.iter().map(|layer| layer.size.get()).sum(),
            index: listed.first().map(|index| index.digest),
        });
    }
    Ok(Survey { digest, kind: SurveyKind::Image(found) })
}
