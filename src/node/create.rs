//! SOCI index of an image: zTOCs of its layers, built while they stream by, and a v1 index of them.

use crate::config::Config;
use crate::units::Digest;
use super::paths::Paths;
use super::protocol::Progress;

/// What to build.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Image as the user named it; local paths are absolute.
    pub image: String,
    /// Push the index beside the image.
    pub push: bool,
    /// Span size in bytes.
    pub span_size_bytes: u64,
    /// Layers with smaller blobs get no zTOC.
    pub min_layer_bytes: u64,
    /// `OS/ARCH[/VARIANT]`, or this machine's.
    pub platform: Option<String>,
    /// Hosts to speak plain HTTP to.
    pub insecure: Vec<String>,
}

/// What became of a layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct CreatedLayer {
    /// Blob digest.
    pub digest: Digest,
    /// Its zTOC.
    pub ztoc: Option<Digest>,
    /// Why there is none.
    pub reason: String,
}

/// What was built.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Created {
    /// The index manifest's digest.
    pub index: Digest,
    /// Layers, bottom first.
    pub layers: Vec<CreatedLayer>,
    /// Whether it was pushed.
    pub pushed: bool,
}

/// x
pub fn run(_paths: &Paths, _config: &Config, _options: &CreateOptions, _progress: &mut dyn FnMut(Progress)) -> anyhow::Result<Created> {
    anyhow::bail!("x")
}
