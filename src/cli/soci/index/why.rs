//! `sociblk index why`.

use clap::Args;

use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::containerd::ContainerdArgs;
use crate::cli::output;
use crate::cli::progress::shown;
use crate::config::Config;
use crate::node::why::{self, LayerWhy, Verdict, Why, WhyOptions};

/// Which image.
#[derive(Args, Debug)]
pub struct ImageArgs {
    /// Registry reference, `oci:LAYOUT_DIR[:TAG]`, `oci-archive:TAR_FILE[:TAG]`, `containerd:IMAGE`, or `layer:FILE`.
    #[arg(value_name = "REF")]
    pub image: String,
    /// Which image of a multi-platform index; default: this machine's.
    #[arg(long, short, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where containerd is.
    #[command(flatten)]
    pub containerd: ContainerdArgs,
}

impl ImageArgs {
    /// What they ask for.
    pub fn options(&self, global: &GlobalArgs) -> anyhow::Result<WhyOptions> {
        Ok(WhyOptions {
            image: self.containerd.image(&self.image)?,
            platform: self.platform.clone(),
            access: global.registry.access()?,
            login: global.registry.login()?,
        })
    }
}

/// Runs the command.
pub fn run(global: &GlobalArgs, args: &ImageArgs) -> anyhow::Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let options = args.options(global)?;
    let paths = paths(global)?;
    let told = shown(|progress| why::run(&paths, &config, &options, progress))?;
    if args.json {
        return output::json(&told);
    }
    say(&told);
    Ok(())
}

fn say(told: &Why) {
    let manifest = told.manifest.map(|manifest| format!(", manifest {manifest}")).unwrap_or_default();
    output::line(&format!("{} ({}{manifest})", told.image, told.platform));
    if let Some(why) = &told.unmountable {
        output::line(&format!("cannot be mounted: {why}"));
    }
    for step in &told.steps {
        output::line(&format!("  {:<10}{step}", word(step.verdict)));
    }
    for layer in &told.layers {
        output::line(&format!("layer {} {} {}", layer.digest, output::size(layer.size), layer.media_type));
        output::line(&format!("  {}", layer_line(layer)));
    }
    let lazy = told.layers.iter().filter(|layer| layer.lazy).count();
    output::line(&format!("{lazy} of {} layers are read lazily", told.layers.len()));
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Used => "used",
        Verdict::Unused => "unused",
        Verdict::Nothing => "nothing",
        Verdict::NotAsked => "not asked",
        Verdict::Failed => "failed",
    }
}

fn layer_line(layer: &LayerWhy) -> String {
    let Some(ztoc) = layer.ztoc.filter(|_| layer.lazy) else { return format!("streamed: {}", layer.detail) };
    let from = match layer.index {
        Some(index) => format!("{} index {index}", layer.origin.unwrap_or_default()),
        None => "the local store, where it was built".to_owned(),
    };
    let span = layer.span_size.map(|bytes| format!(", spans of {}", output::size(bytes))).unwrap_or_default();
    let size = output::size(layer.ztoc_size.unwrap_or_default());
    let own = if layer.own_kind { format!("; {}", layer.detail) } else { String::new() };
    format!("lazily by zTOC {ztoc} ({size}{span}) from {from}{own}")
}
