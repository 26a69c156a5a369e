//! `sociblk rpull`: an image into containerd, layer by layer through the snapshotter.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::GlobalArgs;
use super::output;
use super::progress::shown;
use crate::config::Config;
use crate::node::protocol::{DEFAULT_NAMESPACE, DEFAULT_SOCKET};
use crate::node::rpull::{self, How, RpullOptions};
use crate::units::Digest;

/// Arguments of `rpull`.
#[derive(Args, Debug)]
pub struct RpullArgs {
    /// Image reference.
    pub image: String,
    /// containerd's socket.
    #[arg(long, env = "CONTAINERD_ADDRESS", value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    pub containerd_address: PathBuf,
    /// containerd's namespace.
    #[arg(long, short = 'n', env = "CONTAINERD_NAMESPACE", default_value = DEFAULT_NAMESPACE, value_name = "NAME")]
    pub namespace: String,
    /// The snapshotter, by its name in containerd's proxy_plugins.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "sociblk", value_name = "NAME")]
    pub snapshotter: String,
    /// Use this SOCI index, whichever would be found.
    #[arg(long, value_name = "DIGEST")]
    pub index_digest: Option<Digest>,
    /// Which image of a multi-platform index; default: this machine's.
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs `sociblk rpull`.
pub fn run(global: &GlobalArgs, args: &RpullArgs) -> anyhow::Result<()> {
    let mut config = Config::load(global.config.as_deref())?;
    global.registry.settle(&mut config.registry)?;
    let socket = args.containerd_address.to_str().and_then(|text| text.strip_prefix("unix://")).map(Path::new);
    let options = RpullOptions {
        image: args.image.clone(),
        containerd: rpull::address(socket.unwrap_or(&args.containerd_address), &args.namespace)?,
        snapshotter: args.snapshotter.clone(),
        index: args.index_digest,
        platform: args.platform.clone(),
        access: global.registry.access()?,
        login: global.registry.login()?,
    };
    let pulled = shown(|progress| rpull::run(&config, &options, progress))?;
    if args.json {
        return output::json(&pulled);
    }
    for layer in &pulled.layers {
        let how = match layer.how {
            How::Present => "was there",
            How::Snapshotter => "by the snapshotter",
            How::Unpacked => "unpacked by containerd",
        };
        output::line(&format!("layer {} {how} in {} ms", layer.digest.short(), layer.elapsed_ms));
    }
    output::line(&format!("{} pulled in {} ms", pulled.image, pulled.elapsed_ms));
    Ok(())
}
