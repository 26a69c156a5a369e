//! The kernel reads far ahead in layers that are all here, and by its default in others: there it would fetch spans that
//! nobody wants (docs/decisions/read-ahead.md).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use super::frontends::Device;
use super::served::{Served, ServedLayer};
use crate::frontend::fuse::FuseKind;
use crate::sys::bdi::{Bdi, erofs_numbers};

/// Beyond this, sequential readers and page faults gain nothing any more.
const FAR_BYTES: u32 = 1 << 20;
/// What the kernel begins with for an EROFS that is mounted from a file (Linux `include/linux/pagemap.h`, `VM_READAHEAD_PAGES`).
const FILE_BYTES: u32 = 128 << 10;
/// And for a ublk device of ours: twice what we say is the best length of a request (Linux `block/blk-settings.c`).
const UBLK_BYTES: u32 = 512 << 10;

/// Tells which EROFS is mounted from which file, by what is there before and after: nothing else does. To be made before the
/// mounts.
pub(super) struct Census {
    before: BTreeSet<u64>,
}

impl Census {
    pub(super) fn begin() -> Self {
        Self { before: erofs_numbers() }
    }

    /// The numbers of `count` file systems that were mounted one after the other since. `None`: others were mounted meanwhile,
    /// or none of these from a file.
    pub(super) fn end(self, count: usize) -> Option<Vec<u64>> {
        let fresh: Vec<u64> = erofs_numbers().difference(&self.before).copied().collect();
        (fresh.len() == count).then_some(fresh)
    }
}

/// Sets what has changed since the last time.
pub(super) fn follow(served: &mut Served) {
    served.layers.values_mut().for_each(follow_one);
}

/// Sets it for one layer, unless nothing has changed.
pub(super) fn follow_one(layer: &mut ServedLayer) {
    let far = layer.layer.fill().file().is_complete();
    if Some(far) == layer.reads_far {
        return;
    }
    // Once: what cannot be set now cannot be set later either.
    layer.reads_far = Some(far);
    let Some((bdi, default_bytes)) = bdi(layer) else { return };
    if let Err(error) = bdi.set_read_ahead(if far { FAR_BYTES } else { default_bytes }) {
        tracing::debug!(%error, ?bdi, layer = %layer.record.name, "readahead stays as it is");
    }
}

/// Where it is set, and what the kernel began with.
fn bdi(layer: &ServedLayer) -> Option<(Bdi, u32)> {
    match &layer.device {
        Device::Ublk(device) => {
            let number = std::fs::metadata(&device.block_path).ok()?.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            Some((Bdi::Device { major, minor }, UBLK_BYTES))
        }
        Device::Fuse { kind: FuseKind::Images, .. } => {
            let number = layer.record.erofs_bdi?;
            Some((Bdi::ErofsFile { number }, FILE_BYTES))
        }
        // All of its files belong to one FUSE connection, which has its own.
        Device::Fuse { kind: FuseKind::Files, .. } => None,
    }
}
