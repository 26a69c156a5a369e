//! `sociblk serve`: containerd's snapshotter.

use clap::Args;

use super::args::{FrontendArg, GlobalArgs};
use super::commands::{frontend, paths, require_root};
use super::config::for_daemon;
use crate::config::Frontend;
use crate::node::daemon::{self, DaemonOptions};
use crate::node::protocol::FrontendChoice;
use crate::node::serve::{Address, ServeOptions};

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Where containerd finds the service: a path, unix://PATH, or fd:// for the socket that systemd hands over.
    /// Default: snapshotter.address of the settings, /run/sociblk/snapshotter.sock.
    #[arg(long, value_name = "ADDRESS", env = "SOCIBLK_ADDRESS")]
    pub address: Option<Address>,
    /// Kernel path for all layers. Default: snapshotter.frontend of the settings, auto.
    #[arg(long, value_enum)]
    pub frontend: Option<FrontendArg>,
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
    let frontend = args.frontend.map_or_else(|| configured(settings.frontend), frontend);
    let serve = Some(ServeOptions { address, settings, credentials, access: global.registry.access()? });
    daemon::run(&paths(global)?, config, DaemonOptions { frontend, idle_exit: None, serve })
}

fn configured(frontend: Frontend) -> FrontendChoice {
    match frontend {
        Frontend::Auto => FrontendChoice::Auto,
        Frontend::Ublk => FrontendChoice::Ublk,
        Frontend::FuseImage => FrontendChoice::FuseImage,
        Frontend::FuseFs => FrontendChoice::FuseFs,
    }
}
