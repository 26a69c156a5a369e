//! `sociblk ztoc ls`: the zTOCs of the local store.

use clap::Args;

use crate::cli::output;
use crate::node::artifacts::Artifacts;
use crate::node::paths::Paths;
use crate::units::Digest;

/// Arguments of `ztoc ls`.
#[derive(Args, Debug)]
pub struct ZtocListArgs {
    /// Only this zTOC; an error when it is not there.
    #[arg(long, value_name = "DIGEST")]
    pub ztoc_digest: Option<Digest>,
    /// Only zTOCs in indexes of this image.
    #[arg(long, value_name = "REF")]
    pub image_ref: Option<String>,
    /// Print digests only.
    #[arg(long, short)]
    pub quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Runs `sociblk ztoc ls`.
pub fn list(paths: &Paths, args: &ZtocListArgs) -> anyhow::Result<()> {
    let rows = Artifacts::open(paths)?.ztocs(args.ztoc_digest.as_ref(), args.image_ref.as_deref())?;
    if args.json {
        return output::json(&rows);
    }
    if args.quiet {
        super::say_digests(rows.iter().map(|row| row.digest));
        return Ok(());
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| vec![row.digest.to_string(), row.size.to_string(), row.layer_digest.to_string()])
        .collect();
    output::table(&["DIGEST", "SIZE", "LAYER DIGEST"], &cells);
    Ok(())
}
