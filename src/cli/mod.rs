//! The command line: flags to settings, results to text or JSON. The only module that prints.

mod args;
mod commands;
mod containerd;
mod output;
mod progress;
mod registry;
mod rpull;
mod serve;
mod soci;
mod ztoc;

use std::process::ExitCode;

use clap::Parser;

pub use args::{Cli, command};

/// Parses the process's arguments, runs the command and maps its outcome to an exit status: 0 for success, 1 for an
/// error (printed as one line with its causes), 2 for wrong usage (by clap).
#[must_use]
pub fn run() -> ExitCode {
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
