//! `sociblk convert`.

use clap::{Args, ValueEnum};

use super::create::{BuildArgs, PlatformArgs, say_layers, say_of_none, say_own};
use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::containerd::ContainerdArgs;
use crate::cli::output;
use crate::cli::progress::shown;
use crate::config::Config;
use crate::node::convert::{self, ConvertOptions, LayoutFormat};

/// How `--standalone` writes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatArg {
    /// A tar file.
    OciArchive,
    /// A directory.
    OciDir,
}

/// Arguments of `convert`.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// Registry reference, `oci:LAYOUT_DIR[:TAG]`, `oci-archive:TAR_FILE[:TAG]`, or `containerd:IMAGE`.
    pub source: String,
    /// Where the converted image goes: likewise, a reference with its tag.
    pub destination: String,
    /// How to build.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformArgs,
    /// Source and destination are paths of OCI layouts (a directory or a tar file); nothing is kept in the local store.
    #[arg(long)]
    pub standalone: bool,
    /// How --standalone writes.
    #[arg(long, value_enum, default_value_t = FormatArg::OciArchive, value_name = "FORMAT")]
    pub format: FormatArg,
    /// Blobs that are uploaded at the same time.
    #[arg(long, default_value_t = 3, value_name = "NUMBER")]
    pub max_concurrent_uploads: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where containerd is.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// Runs the command.
pub fn run(global: &GlobalArgs, args: &ConvertArgs) -> anyhow::Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let (source, target) = match args.standalone {
        true => (args.source.clone(), args.destination.clone()),
        false => (args.containerd.image(&args.source)?, args.containerd.image(&args.destination)?),
    };
    let options = ConvertOptions {
        source,
        target,
        standalone: args.standalone.then_some(match args.format {
            FormatArg::OciArchive => LayoutFormat::Archive,
            FormatArg::OciDir => LayoutFormat::Dir,
        }),
        index: args.build.options(&args.platforms)?,
        uploads: args.max_concurrent_uploads,
        access: global.registry.access()?,
        login: global.registry.login()?,
    };
    let paths = paths(global)?;
    let converted = shown(|progress| convert::run(&paths, &config, &options, progress))
        .inspect_err(|error| say_of_none(error, args.json))?;
    if args.json {
        return output::json(&converted);
    }
    say_layers(&converted.images);
    for image in &converted.images {
        match image.index {
            Some(index) => output::line(&format!("index {index} of {}", image.platform)),
            None if image.own_index.is_some() => {}
            None => output::line(&format!("no index of {}: all layers were skipped", image.platform)),
        }
        say_own(image, "");
    }
    output::line(&format!("image {} -> {}", converted.digest, converted.target));
    Ok(())
}
