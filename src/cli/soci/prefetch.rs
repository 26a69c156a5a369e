//! `sociblk prefetch`: load orders that were recorded, and SOCI's prefetch artifacts of the local store.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use clap::{Args, Subcommand};

use super::ago;
use super::create::PlatformArgs;
use crate::cli::args::GlobalArgs;
use crate::cli::commands::{absolute_image, paths};
use crate::cli::output;
use crate::config::Config;
use crate::node::artifacts::{Artifacts, PrefetchInfo, PrefetchRow};
use crate::node::prefetch::{self, OrderChoice, OrderRow};
use crate::units::Digest;

/// Commands on load orders.
#[derive(Subcommand, Debug)]
pub enum PrefetchCommand {
    /// Make a SOCI index with prefetch artifacts of a recorded load order.
    Build(BuildArgs),
    /// Push a recorded load order beside its image, with its excerpt.
    Push {
        /// Which.
        #[command(flatten)]
        order: BuildArgs,
        /// Leave out the excerpt.
        #[arg(long)]
        no_excerpt: bool,
    },
    /// List the prefetch artifacts of the local store and the load orders that are kept.
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON: the prefetch artifacts, as SOCI does.
        #[arg(long)]
        json: bool,
        /// Only load orders; as JSON with all that is known of them.
        #[arg(long)]
        orders: bool,
    },
    /// Show a prefetch artifact or a load order.
    Info {
        /// Digest of a prefetch artifact in the local store, or the file of a load order.
        #[arg(value_name = "DIGEST|FILE")]
        what: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove a load order that is kept.
    Rm {
        /// Digest of the image's manifest.
        image: Digest,
        /// Its label.
        label: String,
    },
}

/// Which load order.
#[derive(Args, Debug)]
pub struct BuildArgs {
    /// The image, as for `create`.
    pub image: String,
    /// Label of the load order; default: the one recorded last. With --from the label that it gets.
    #[arg(long, short, visible_alias = "label")]
    pub name: Option<String>,
    /// A file, as `record -o` writes it, instead of what is kept.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs one of the prefetch commands.
pub fn run(global: &GlobalArgs, command: &PrefetchCommand) -> anyhow::Result<()> {
    let paths = paths(global)?;
    let config = || Config::load(global.config.as_deref());
    match command {
        PrefetchCommand::Build(args) => {
            let built = prefetch::build(&paths, &config()?, &choice(global, args)?)?;
            if args.json {
                return output::json(&built);
            }
            output::line(&format!("load order {:?} is kept in {}", built.label, built.order.display()));
            for artifact in &built.prefetch {
                output::line(&format!("layer {} -> prefetch {}", artifact.layer, artifact.digest));
            }
            match built.index {
                Some(index) => output::line(&format!("soci index {index}; `sociblk push` puts it beside the image")),
                None => output::line("no v1 index of the image was made here, so there are no prefetch artifacts"),
            }
            Ok(())
        }
        PrefetchCommand::Push { order: args, no_excerpt } => {
            let wanted = OrderChoice { excerpt: !no_excerpt, ..choice(global, args)? };
            let pushed = prefetch::push(&paths, &config()?, &wanted)?;
            if pushed.left_out && !no_excerpt {
                output::note("the load order is pushed without its excerpt, which is not kept here");
            }
            if args.json {
                return output::json(&pushed);
            }
            let excerpt = pushed
                .excerpt_bytes
                .map_or_else(String::new, |bytes| format!(", with an excerpt of {}", output::size(bytes)));
            output::line(&format!(
                "pushed load order {:?} of {} as {}{excerpt}",
                pushed.label, pushed.image, pushed.artifact
            ));
            Ok(())
        }
        PrefetchCommand::Ls { json, orders } => {
            if *orders && *json {
                return output::json(&prefetch::orders(&paths, &config()?)?);
            }
            let artifacts = if *orders { Vec::new() } else { Artifacts::open(&paths)?.prefetches()? };
            if *json {
                return output::json(&artifacts);
            }
            list(&artifacts, &prefetch::orders(&paths, &config()?)?, *orders);
            Ok(())
        }
        PrefetchCommand::Info { what, json } => match what.parse::<Digest>() {
            Ok(digest) => {
                let info = Artifacts::open(&paths)?.prefetch_info(&digest)?;
                if *json {
                    return output::json(&info);
                }
                text(&info).iter().for_each(|line| output::line(line));
                Ok(())
            }
            Err(_) => order_info(Path::new(what), *json),
        },
        PrefetchCommand::Rm { image, label } => prefetch::remove_order(&paths, &config()?, image, label),
    }
}

fn choice(global: &GlobalArgs, args: &BuildArgs) -> anyhow::Result<OrderChoice> {
    Ok(OrderChoice {
        image: absolute_image(&args.image)?,
        label: args.name.clone(),
        file: args.from.clone(),
        excerpt: false,
        platform: args.platforms.choice(),
        access: global.registry.access()?,
        login: global.registry.login()?,
    })
}

fn list(artifacts: &[PrefetchRow], orders: &[OrderRow], only_orders: bool) {
    let now = SystemTime::now();
    if !only_orders {
        let spans = |n: i64| if n < 0 { "N/A".to_owned() } else { n.to_string() };
        let cell = |row: &PrefetchRow| {
            let (digest, layer) = (row.digest.to_string(), row.layer_digest.to_string());
            vec![digest, layer, spans(row.total_spans), ago(row.created, now)]
        };
        let cells: Vec<_> = artifacts.iter().map(cell).collect();
        output::table(&["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"], &cells);
    }
    if only_orders || !orders.is_empty() {
        let cell = |row: &OrderRow| {
            let created = SystemTime::UNIX_EPOCH + Duration::from_millis(row.created_at_ms);
            let image = if row.reference.is_empty() { row.image.to_string() } else { row.reference.clone() };
            let state = row.error.clone().map_or_else(|| ago(created, now), |error| format!("unusable: {error}"));
            let (layers, spans) = (row.layers.to_string(), row.spans.to_string());
            vec![row.label.clone(), image, layers, spans, output::size(row.bytes), state]
        };
        let cells: Vec<_> = orders.iter().map(cell).collect();
        output::table(&["LOAD ORDER", "IMAGE", "LAYERS", "SPANS", "SIZE", "RECORDED"], &cells);
    }
}

fn order_info(path: &Path, json: bool) -> anyhow::Result<()> {
    if !path.exists() {
        bail!("{}: neither a digest nor a file", path.display());
    }
    let (row, document) = prefetch::read_order(path)?;
    if json {
        return output::json(&document);
    }
    for (name, value) in [
        ("Label:", row.label),
        ("Image:", row.reference),
        ("Manifest:", row.image.to_string()),
        ("Layers:", row.layers.to_string()),
        ("Spans:", row.spans.to_string()),
        ("Blob bytes:", output::size(row.bytes)),
    ] {
        output::line(&format!("{name:<13}{value}"));
    }
    Ok(())
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
