//! Logs: where they go and how much is said. Libraries here emit `tracing` events and never print.

pub mod page;
pub mod scrape;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Sends log events to stderr. `SOCIBLK_LOG` (the `tracing` filter syntax) overrides `default_filter`.
/// A second call in one process changes nothing.
pub fn init_logs(default_filter: &str, json: bool) {
    let filter = EnvFilter::try_from_env("SOCIBLK_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(false)
        // Colours are for people; a log file is not.
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a subscriber is set already, which is what the second caller wants.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
