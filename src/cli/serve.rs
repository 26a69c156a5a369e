//! `sociblk serve`: containerd's snapshotter.

use clap::Args;

use super::args::{FrontendArg, GlobalArgs};
use super::commands::{frontend, paths, require_root};
use super::config::for_daemon;
use crate::node::daemon::{self, DaemonOptions};
use crate::node::serve::{Address, ServeOptions};

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Where containerd finds the service: a path, unix://PATH, or fd:// for the socket that systemd hands over.
    /// Default: snapshotter.address of the settings, /run/sociblk/snapshotter.sock.
    #[arg(long, value_name = "ADDRESS", env = "SOCIBLK_ADDRESS")]
    pub address: Option<Address>,
    /// Kernel path for all layers.
    #[arg(long, value_enum, default_value_t = FrontendArg::Auto)]
    pub frontend: FrontendArg,
    /// How much is logged: error, warn, info, debug, trace, or a filter of the `tracing` syntax.
    #[arg(long, value_name = "LEVEL", env = "SOCIBLK_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Runs `sociblk serve`.
pub fn run(global: &GlobalArgs, args: &ServeArgs) -> anyhow::Result<()> {
    require_root("the snapshotter")?;
    let config = for_daemon(global)?;
    let (settings, credentials) = (config.snapshotter.clone(), config.credentials.clone());
    let address = match &args.address {
        Some(address) => address.clone(),
        None => settings.address.parse().map_err(anyhow::Error::msg)?,
    };
    let serve = Some(ServeOptions { address, settings, credentials, access: global.registry.access()? });
    daemon::run(&paths(global)?, config, DaemonOptions { frontend: frontend(args.frontend), idle_exit: None, serve })
}
