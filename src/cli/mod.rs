//! The command line: flags to settings, results to text or JSON. The only module that prints.

mod args;
mod commands;
mod config;
mod containerd;
mod explain;
mod output;
mod progress;
mod record;
mod registry;
mod rpull;
mod serve;
mod soci;
mod ztoc;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

pub use args::{Cli, command};

use crate::node::hold_fuse_connection;

/// Parses the process's arguments, runs the command and maps its outcome to an exit status: 0 for success, 1 for an
/// error (printed as one line with its causes), 2 for wrong usage (by clap).
#[must_use]
pub fn run() -> ExitCode {
    crate::sys::process::take_name(c"sociblk");
    if let Some(code) = hold() {
        return code;
    }
    let cli = Cli::parse();
    crate::observe::init_logs(cli.log_level(), cli.global.log_json);
    cli.global.registry.hide_secrets();
    // Passwords and tokens are in this memory: a crash must not write them to a file (docs/REGISTRIES.md).
    crate::sys::process::forbid_core_dumps();
    match commands::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(1)
        }
    }
}

/// `sociblk __hold SOCKET [NAMESPACE]`, which the daemon starts. Past everything that takes memory: this process may live
/// for months.
fn hold() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "__hold" {
        return None;
    }
    crate::sys::process::forbid_core_dumps();
    let socket = PathBuf::from(args.next()?);
    let namespace = args.next().map(PathBuf::from);
    let held = hold_fuse_connection(&socket, namespace.as_deref());
    Some(if held.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
