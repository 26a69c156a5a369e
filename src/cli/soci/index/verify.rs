//! `sociblk index verify`.

use std::process::ExitCode;

use clap::Args;

use super::why::ImageArgs;
use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::output;
use crate::cli::progress::shown;
use crate::config::Config;
use crate::node::verify::{self, Outcome, Verified, VerifiedLayer, VerifyOptions};
use crate::node::why::Verdict;
use crate::units::Digest;

/// Exit status when something is wrong.
const WRONG: u8 = 1;
/// Exit status when it could not be checked.
const UNCHECKED: u8 = 3;

/// Arguments of `index verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The index to prove; default: what a mount would use.
    #[arg(long, value_name = "DIGEST")]
    pub index_digest: Option<Digest>,
    /// Layers to work on at the same time; default: one for each CPU.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parallel: Option<u16>,
    /// The image. Last: a heading in it would hold for what follows.
    #[command(flatten)]
    pub image: ImageArgs,
}

/// Runs the command and says with which status to exit.
pub fn run(global: &GlobalArgs, args: &VerifyArgs) -> ExitCode {
    let done = verified(global, args).and_then(|verified| {
        if args.image.json {
            output::json(&verified)?;
        } else {
            say(&verified);
        }
        Ok(verified.outcome)
    });
    match done {
        Ok(Outcome::Proven) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(WRONG),
        Ok(Outcome::Unchecked | Outcome::NotIndexed) => ExitCode::from(UNCHECKED),
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(UNCHECKED)
        }
    }
}

fn verified(global: &GlobalArgs, args: &VerifyArgs) -> anyhow::Result<Verified> {
    let config = Config::load(global.config.as_deref())?;
    let options = VerifyOptions {
        image: args.image.options(global)?,
        index: args.index_digest,
        parallel: args.parallel.map(usize::from),
    };
    let paths = paths(global)?;
    shown(|progress| verify::run(&paths, &config, &options, progress))
}

fn say(verified: &Verified) {
    for step in verified.steps.iter().filter(|step| step.verdict != Verdict::NotAsked) {
        output::line(&format!("{step}"));
    }
    for layer in &verified.layers {
        output::line(&format!("layer {}: {}", layer.digest, layer_line(layer)));
        for finding in &layer.findings {
            output::line(&format!("  {finding}"));
        }
        let more = layer.findings_total.saturating_sub(layer.findings.len() as u64);
        if more > 0 {
            output::line(&format!("  and {more} more"));
        }
    }
    output::line(match verified.outcome {
        Outcome::Proven => "the index is proven",
        Outcome::Wrong => "the index is wrong",
        Outcome::Unchecked | Outcome::NotIndexed => "the index could not be checked",
    });
}

fn layer_line(layer: &VerifiedLayer) -> String {
    match layer.outcome {
        Outcome::Proven => {
            let (spans, entries) = (layer.spans, layer.entries);
            format!("proven: {spans} spans, {entries} entries, {}", output::size(layer.layer_bytes))
        }
        Outcome::Wrong => format!("wrong: {} findings", layer.findings_total),
        Outcome::Unchecked => format!("not checked: {}", layer.reason),
        Outcome::NotIndexed => format!("no zTOC: {}", layer.reason),
    }
}
