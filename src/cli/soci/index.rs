//! `sociblk index`: the indexes of the local store.

pub mod verify;
pub mod why;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::{ago, say_removed};
use crate::cli::args::GlobalArgs;
use crate::cli::commands::paths;
use crate::cli::output;
use crate::node::artifacts::{Artifacts, IndexRow};
use crate::units::Digest;

/// Commands on indexes.
#[derive(Subcommand, Debug)]
pub enum IndexCommand {
    /// List the indexes of the local store, newest first.
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Print the document of an index.
    Info {
        /// Digest of the index.
        digest: Digest,
        /// Print JSON (it always does).
        #[arg(long)]
        json: bool,
    },
    /// Remove indexes, and the zTOCs and load orders that no other index lists. What is mounted stays.
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    /// Remove what nobody needs: zTOCs without an index, indexes that came with a mount, leftovers of crashes.
    Gc {
        /// Leave alone what was used within this time: a number and s, m, h or d.
        #[arg(long, default_value = "7d", value_name = "TIME", value_parser = parse_time)]
        unused_for: Duration,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let an image use an index of the local store, before what was created here and what its registry says.
    Map {
        /// Digest of the image's platform manifest.
        image: Digest,
        /// Digest of the index.
        index: Digest,
    },
    /// Forget what `map` said.
    Unmap {
        /// Digest of the image's platform manifest.
        image: Digest,
    },
    /// Say which index a mount of an image would use and from where, and why not another, layer by layer.
    Why(why::ImageArgs),
    /// Fetch an image and prove its index against it: every span, checkpoint and entry. Exit status 0: proven, 1: wrong,
    /// 3: could not be checked.
    Verify(verify::VerifyArgs),
}

/// Arguments of `index ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only indexes of this image.
    #[arg(long = "ref", value_name = "REF")]
    pub image_ref: Option<String>,
    /// Print digests only.
    #[arg(long, short)]
    pub quiet: bool,
    /// Only indexes of images for this machine; may be repeated.
    #[arg(long, short, value_name = "OS/ARCH")]
    pub platform: Vec<String>,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Arguments of `index rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Digests of the indexes.
    #[arg(value_name = "DIGEST", required_unless_present = "image_ref", conflicts_with = "image_ref")]
    pub digests: Vec<Digest>,
    /// All indexes of this image.
    #[arg(long = "ref", value_name = "REF")]
    pub image_ref: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some("d") => 24 * 3600,
        _ => return Err("a number and a unit are expected: 90s, 30m, 12h, 7d".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is no number"))?;
    number.checked_mul(unit_s).map(Duration::from_secs).ok_or_else(|| format!("{text} is too long"))
}

/// Runs one of the index commands and says with which status to exit.
pub fn run(global: &GlobalArgs, command: IndexCommand) -> anyhow::Result<ExitCode> {
    match command {
        IndexCommand::Why(args) => why::run(global, &args)?,
        IndexCommand::Verify(args) => return Ok(verify::run(global, &args)),
        command => local(&Artifacts::open(&paths(global)?)?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Those that are about the local store alone.
fn local(artifacts: &Artifacts, command: IndexCommand) -> anyhow::Result<()> {
    match command {
        IndexCommand::Ls(args) => {
            let rows = artifacts.indexes(args.image_ref.as_deref(), &args.platform)?;
            if args.json {
                return output::json(&rows);
            }
            if args.quiet {
                super::say_digests(rows.iter().map(|row| row.digest));
                return Ok(());
            }
            let (head, cells) = table(&rows, SystemTime::now());
            output::table(&head, &cells);
            Ok(())
        }
        IndexCommand::Info { digest, json: _ } => output::json(&artifacts.index(&digest)?),
        IndexCommand::Rm(args) => {
            let removed = match &args.image_ref {
                Some(image_ref) => artifacts.remove_ref(image_ref)?,
                None => artifacts.remove_indexes(&args.digests)?,
            };
            say_removed(&removed, args.json)
        }
        IndexCommand::Gc { unused_for, json } => say_removed(&artifacts.sweep(unused_for)?, json),
        IndexCommand::Map { image, index } => artifacts.map_image(image, &index),
        IndexCommand::Unmap { image } => artifacts.unmap_image(&image),
        IndexCommand::Why(_) | IndexCommand::Verify(_) => Ok(()),
    }
}

/// SOCI's columns.
fn table(rows: &[IndexRow], now: SystemTime) -> ([&'static str; 7], Vec<Vec<String>>) {
    let head = ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"];
    let cells = rows.iter().map(|row| {
        vec![
            row.digest.to_string(),
            row.size.to_string(),
            row.image_ref.clone(),
            row.platform.clone(),
            row.media_type.clone(),
            row.manifest_version.to_owned(),
            ago(row.created, now),
        ]
    });
    (head, cells.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, want_s) in [("0s", 0), ("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604_800)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(want_s)), "{text}");
        }
        for text in ["", "7", "d", "7w", "-1d", "1.5h", "7 d", "99999999999999999999s", "999999999999999999d"] {
            parse_time(text).expect_err(text);
        }
    }
}
