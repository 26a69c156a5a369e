//! Which files reads were about, by the layer's zTOC on local disk.

use anyhow::Context;

use crate::node::paths::Paths;
use crate::node::protocol::LayerAccount;
use crate::soci::Store;
use crate::spans::ztoc::Ztoc;

/// Names the files of the reads that are told.
///
/// # Errors
/// When the zTOC is not here or cannot be read; the reads have no names then.
pub(super) fn name_files(paths: &Paths, layer: &mut LayerAccount) -> anyhow::Result<()> {
    if layer.slowest.is_empty() && layer.waiting.is_empty() {
        return Ok(());
    }
    let path = Store::open(paths.root())?.blob_path(&layer.ztoc);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let ztoc = Ztoc::parse(&bytes)?;
    let slowest = layer.slowest.iter_mut().map(|read| (read.layer_offset, read.len_bytes, &mut read.file));
    let waiting = layer.waiting.iter_mut().map(|read| (read.layer_offset, read.len_bytes, &mut read.file));
    let mut reads: Vec<_> = slowest.chain(waiting).collect();
    for entry in ztoc.entries() {
        let entry = entry?;
        let (start, end) = (entry.data.start().get(), entry.data.end().get());
        for (at, len, name) in &mut reads {
            // The first file that a read touches.
            if name.is_none() && start < end && start < *at + *len && *at < end {
                **name = Some(String::from_utf8_lossy(&entry.name).trim_start_matches("./").to_owned());
            }
        }
    }
    Ok(())
}
