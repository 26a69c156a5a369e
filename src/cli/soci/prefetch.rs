//! `sociblk prefetch`: recorded load orders of the local store.

use std::time::SystemTime;

use clap::Subcommand;

use super::ago;
use crate::cli::output;
use crate::node::artifacts::{Artifacts, PrefetchInfo};
use crate::node::paths::Paths;
use crate::units::Digest;

/// Commands on load orders.
#[derive(Subcommand, Debug)]
pub enum PrefetchCommand {
    /// List the load orders of the local store.
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a load order.
    Info {
        /// Digest of the prefetch artifact.
        digest: Digest,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs one of the prefetch commands.
pub fn run(paths: &Paths, command: &PrefetchCommand) -> anyhow::Result<()> {
    let artifacts = Artifacts::open(paths)?;
    match command {
        PrefetchCommand::Ls { json } => {
            let rows = artifacts.prefetches()?;
            if *json {
                return output::json(&rows);
            }
            let now = SystemTime::now();
            let spans = |n: i64| if n < 0 { "N/A".to_owned() } else { n.to_string() };
            let cell = |row: &crate::node::artifacts::PrefetchRow| {
                let (digest, layer) = (row.digest.to_string(), row.layer_digest.to_string());
                vec![digest, layer, spans(row.total_spans), ago(row.created, now)]
            };
            let cells: Vec<_> = rows.iter().map(cell).collect();
            output::table(&["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"], &cells);
            Ok(())
        }
        PrefetchCommand::Info { digest, json } => {
            let info = artifacts.prefetch_info(digest)?;
            if *json {
                return output::json(&info);
            }
            text(&info).iter().for_each(|line| output::line(line));
            Ok(())
        }
    }
}

/// SOCI's lines.
fn text(info: &PrefetchInfo) -> Vec<String> {
    let mut lines = vec![
        format!("Digest:        {}", info.digest),
        format!("Version:       {}", info.document.version),
        format!("Span Ranges:   {}", info.document.prefetch_spans.len()),
    ];
    lines.extend(info.layer_digests.iter().map(|layer| format!("Layer Digest:  {layer}")));
    lines.push(format!("Size:          {} bytes", info.size));
    lines.push(format!("Created:       {}", info.created_at));
    lines.push(String::new());
    lines.push("Prefetch Spans:".to_owned());
    for (i, range) in info.document.prefetch_spans.iter().enumerate() {
        let (start, end) = (range.start_span, range.end_span);
        lines.push(format!("  [{i}] StartSpan: {start}, EndSpan: {end} (covers {} spans)", range.len()));
        if range.priority != 0 {
            lines.push(format!("      Priority: {}", range.priority));
        }
    }
    lines.push(String::new());
    lines.push(format!("Total spans to prefetch: {}", info.total_spans));
    lines
}
