//! `sociblk push`.

use clap::{Args, ValueEnum};

use super::create::PlatformArgs;
use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::containerd::ContainerdArgs;
use crate::cli::output;
use crate::config::Config;
use crate::node::push::{self, ExistingIndex, PushEvent, PushOptions, PushStep};

/// What about an index that the registry has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingArg {
    /// Say so, and push.
    Warn,
    /// Do not push.
    Skip,
    /// Push, without looking.
    Allow,
}

/// Arguments of `push`.
#[derive(Args, Debug)]
pub struct PushArgs {
    /// Registry reference, or `containerd:IMAGE`: the index then comes from containerd, and the name says where it goes.
    pub image: String,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformArgs,
    /// What to do when the registry has an index of the image.
    #[arg(long, value_enum, default_value_t = ExistingArg::Warn, value_name = "WHAT")]
    pub existing_index: ExistingArg,
    /// Blobs that are uploaded at the same time.
    #[arg(long, default_value_t = 3, value_name = "NUMBER")]
    pub max_concurrent_uploads: usize,
    /// Print only the digests of pushed indexes.
    #[arg(long, short)]
    pub quiet: bool,
    /// Where containerd is.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

/// Runs the command.
pub fn run(global: &GlobalArgs, args: &PushArgs) -> anyhow::Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let options = PushOptions {
        image: args.containerd.image(&args.image)?,
        platforms: args.platforms.choice(),
        existing: match args.existing_index {
            ExistingArg::Warn => ExistingIndex::Warn,
            ExistingArg::Skip => ExistingIndex::Skip,
            ExistingArg::Allow => ExistingIndex::Allow,
        },
        uploads: args.max_concurrent_uploads,
        access: global.registry.access()?,
        login: global.registry.login()?,
    };
    let quiet = args.quiet;
    push::run(&paths(global)?, &config, &options, &|event| {
        if let Some(line) = line(&event, quiet) {
            output::line(&line);
        }
    })
}

/// SOCI's words, without its slips.
fn line(event: &PushEvent, quiet: bool) -> Option<String> {
    Some(match event {
        PushEvent::Pushing(digest) if quiet => digest.to_string(),
        PushEvent::V2Left => {
            "[WARN] skipping SOCI index manifest v2: it is part of its image; push the whole image instead".to_owned()
        }
        PushEvent::Found { indexes, skipped } => {
            let found = match indexes.as_slice() {
                [one] => format!("soci index found in remote repository with digest: {one}"),
                _ => "multiple soci indices found in remote repository".to_owned(),
            };
            match skipped {
                None => format!("[WARN] {found}: pushing index anyway"),
                Some(_) if quiet => return None,
                Some(manifest) => format!("{found}: skipping pushing artifacts for image manifest: {manifest}"),
            }
        }
        _ if quiet => return None,
        PushEvent::Checking => "checking if a soci index already exists in remote repository...".to_owned(),
        PushEvent::Pushing(digest) => format!("pushing soci index with digest: {digest}"),
        PushEvent::Step(PushStep::Begins(digest)) => format!("pushing artifact with digest: {digest}"),
        PushEvent::Step(PushStep::Done(digest)) => format!("successfully pushed artifact with digest: {digest}"),
        PushEvent::Step(PushStep::Present(digest)) => format!("skipped artifact with digest: {digest}"),
    })
}
