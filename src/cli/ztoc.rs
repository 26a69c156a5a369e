//! `sociblk ztoc` and `sociblk image`: work on layer files, and on zTOCs of the local store.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};

use super::args::{ImageArgs, ZtocCommand};
use super::progress::Shown;
use super::{output, soci};
use crate::node::artifacts::{self, Artifacts};
use crate::node::paths::Paths;
use crate::node::tools;
use crate::node::tools::BlockSize;
use crate::units::Digest;

/// Runs one of the zTOC commands.
pub fn run(paths: &Paths, command: ZtocCommand) -> anyhow::Result<()> {
    match command {
        ZtocCommand::Build { layer, output: to, span_size, build_tool } => {
            let total = std::fs::metadata(&layer).with_context(|| layer.display().to_string())?.len();
            let mut shown = Shown::new();
            let built =
                tools::build_ztoc(&layer, &to, span_size, build_tool, &mut |done| shown.at("indexing", done, total));
            shown.finish();
            let built = built?;
            output::line(&format!(
                "{}: {} spans, {} entries, {} of tar",
                to.display(),
                built.span_count,
                built.entry_count,
                output::size(built.layer_size.get())
            ));
            Ok(())
        }
        ZtocCommand::Ls(args) => soci::ztoc::list(paths, &args),
        ZtocCommand::Info { ztoc, json } => match digest_in(&ztoc)? {
            Some(digest) => output::json(&Artifacts::open(paths)?.ztoc_info(&digest)?),
            None => info(&ztoc, json),
        },
        ZtocCommand::GetFile { ztoc, path, layer, output: to } => {
            let digest = digest_in(&ztoc)?;
            let get = |out: &mut dyn Write| match (&digest, &layer) {
                (Some(digest), layer) => artifacts::get_file(paths, digest, &path, layer.as_deref(), out),
                (None, Some(layer)) => tools::get_file(&ztoc, &path, layer, out),
                (None, None) => bail!("name the layer blob of {} with --layer", ztoc.display()),
            };
            let Some(to) = to else { return get(&mut std::io::stdout().lock()).map(drop) };
            let mut out = File::create(&to).with_context(|| to.display().to_string())?;
            let got = get(&mut out).and_then(|_| Ok(out.flush()?));
            if got.is_err() {
                // Half a file is worse than none.
                let _ = std::fs::remove_file(&to);
            }
            got
        }
    }
}

/// The digest, if the argument is one and no file of that name exists.
fn digest_in(argument: &Path) -> anyhow::Result<Option<Digest>> {
    match argument.to_str().filter(|text| text.starts_with("sha256:")) {
        Some(text) if !argument.exists() => Ok(Some(text.parse()?)),
        _ => Ok(None),
    }
}

fn info(file: &Path, json: bool) -> anyhow::Result<()> {
    let info = tools::ztoc_info(file)?;
    if json {
        return output::json(&info);
    }
    output::table(
        &["VERSION", "BUILD TOOL", "SIZE", "SPAN SIZE", "SPANS", "FILES", "MULTI-SPAN FILES"],
        &[vec![
            info.version.clone(),
            info.build_tool.clone(),
            output::size(info.size),
            output::size(info.span_size),
            info.num_spans.to_string(),
            info.num_files.to_string(),
            info.num_multi_span_files.to_string(),
        ]],
    );
    Ok(())
}

/// Runs `sociblk image`.
pub fn image(args: &ImageArgs) -> anyhow::Result<()> {
    let block_size = if args.block_size == "512" { BlockSize::B512 } else { BlockSize::B4096 };
    let mut shown = Shown::new();
    let sizes = tools::write_image(&args.layer, args.ztoc.as_deref(), block_size, &args.output, &mut |done, total| {
        shown.at("writing the image", done, total);
    });
    shown.finish();
    let sizes = sizes?;
    output::line(&format!(
        "{}: {} inodes, {} of metadata, {} in all",
        args.output.display(),
        sizes.inodes,
        output::size(sizes.metadata_bytes),
        output::size(sizes.image_bytes)
    ));
    Ok(())
}
