//! `sociblk create`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::cli::args::{GlobalArgs, SPAN_SIZES};
use crate::cli::commands::paths;
use crate::cli::containerd::ContainerdArgs;
use crate::cli::output;
use crate::cli::progress::shown;
use crate::config::Config;
use crate::node::create::{self, CreateOptions, CreatedImage, Empty};
use crate::node::indexing::{CreatedLayer, IndexOptions, PlatformChoice};

/// Arguments of `create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Registry reference, `oci:LAYOUT_DIR[:TAG]`, `oci-archive:TAR_FILE[:TAG]`, or `containerd:IMAGE`.
    pub image: String,
    /// Push the index beside the image in its registry (referrers API, else the fallback tag).
    #[arg(long)]
    pub push: bool,
    /// How to build.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where containerd is. Last: its heading would hold for what follows.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// Which images of a multi-platform index.
#[derive(Args, Debug)]
pub struct PlatformArgs {
    /// Which image of a multi-platform index; may be repeated. Default: this machine's, or the only one that there is.
    #[arg(long, short, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// All platforms that the image has.
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
}

impl PlatformArgs {
    /// What they choose.
    pub fn choice(&self) -> PlatformChoice {
        PlatformChoice { named: self.platform.clone(), all: self.all_platforms }
    }
}

/// What can be left out of an index where a layer does not need it.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimization {
    /// Extended attributes.
    Xattr,
}

/// How indexes are built.
#[derive(Args, Debug)]
pub struct BuildArgs {
    /// Uncompressed bytes between two checkpoints.
    #[arg(long, default_value_t = 4 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(SPAN_SIZES))]
    pub span_size: u64,
    /// Leave layers smaller than this without a zTOC.
    #[arg(long, default_value_t = 10 << 20, value_name = "BYTES")]
    pub min_layer_size: u64,
    /// Build zTOCs anew that the local store has.
    #[arg(long, short)]
    pub force: bool,
    /// Note in the index which layers have no extended attributes.
    #[arg(long, value_enum, value_name = "NAME")]
    pub optimizations: Vec<Optimization>,
    /// Path of a file whose spans are fetched first; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub prefetch_file: Vec<String>,
    /// JSON file with a list of such paths.
    #[arg(long, value_name = "FILE")]
    pub prefetch_files_json: Option<PathBuf>,
    /// Fetch first what the image's command needs to be loaded: the program, its interpreter, its libraries.
    #[arg(long)]
    pub prefetch_program: bool,
}

impl BuildArgs {
    /// What they ask for.
    pub fn options(&self, platforms: &PlatformArgs) -> anyhow::Result<IndexOptions> {
        let mut prefetch_files = self.prefetch_file.clone();
        if let Some(file) = &self.prefetch_files_json {
            prefetch_files.extend(read_list(file)?);
        }
        prefetch_files.iter_mut().for_each(|path| *path = path.trim().to_owned());
        prefetch_files.retain(|path| !path.is_empty());
        Ok(IndexOptions {
            span_size_bytes: self.span_size,
            min_layer_bytes: self.min_layer_size,
            force: self.force,
            optimize_xattrs: self.optimizations.contains(&Optimization::Xattr),
            prefetch_files,
            prefetch_program: self.prefetch_program,
            platforms: platforms.choice(),
        })
    }
}

/// Longest list of paths.
const MAX_LIST_BYTES: u64 = 64 << 20;

fn read_list(file: &Path) -> anyhow::Result<Vec<String>> {
    let what = || format!("reading the list of files to prefetch from {}", file.display());
    if std::fs::metadata(file).with_context(what)?.len() > MAX_LIST_BYTES {
        bail!("{}: longer than 64 MiB", file.display());
    }
    let text = std::fs::read(file).with_context(what)?;
    serde_json::from_slice(&text).with_context(|| format!("{}: not a JSON list of strings", file.display()))
}

/// Runs the command.
pub fn run(global: &GlobalArgs, args: &CreateArgs) -> anyhow::Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let options = CreateOptions {
        image: args.containerd.image(&args.image)?,
        push: args.push,
        index: args.build.options(&args.platforms)?,
        access: global.registry.access()?,
        login: global.registry.login()?,
    };
    let paths = paths(global)?;
    let created = shown(|progress| create::run(&paths, &config, &options, progress))
        .inspect_err(|error| say_of_none(error, args.json))?;
    if args.json {
        return output::json(&created);
    }
    say_layers(&created.images);
    for image in &created.images {
        let pushed = if created.pushed { " (pushed)" } else { "" };
        if let Some(index) = image.index {
            output::line(&format!("index {index} of {}{pushed}", image.platform));
        }
        say_own(image, pushed);
    }
    Ok(())
}

/// Zstd layers have an index of our own.
pub fn say_own(image: &CreatedImage, pushed: &str) {
    if let Some(index) = image.own_index {
        output::line(&format!("index {index} of {}, our own, of its zstd layers{pushed}", image.platform));
    }
}

/// Layers are told of also when none of them could be indexed.
pub fn say_of_none(error: &anyhow::Error, json: bool) {
    if let (Some(Empty { images }), false) = (error.downcast_ref::<Empty>(), json) {
        say_layers(images);
    }
}

/// What became of each layer, in SOCI's words. Layers of several platforms are told once.
pub fn say_layers(images: &[CreatedImage]) {
    let mut told = std::collections::HashSet::new();
    for layer in images.iter().flat_map(|image| &image.layers).filter(|layer| told.insert(layer.digest)) {
        output::line(&layer_line(layer));
    }
    for prefetch in images.iter().flat_map(|image| &image.prefetch) {
        output::line(&format!("layer {} -> prefetch artifact {}", prefetch.layer, prefetch.digest));
    }
    for image in images {
        for path in &image.missing_files {
            tracing::warn!(platform = image.platform, "{path}: no indexed layer has such a file; it is not prefetched");
        }
    }
}

fn layer_line(layer: &CreatedLayer) -> String {
    match &layer.ztoc {
        Some(ztoc) => {
            let known = if layer.reused { " (already exists)" } else { "" };
            format!("layer {} -> ztoc {ztoc}{known}", layer.digest)
        }
        None => format!("ztoc skipped - layer {} ({}) {}", layer.digest, layer.media_type, layer.reason),
    }
}
