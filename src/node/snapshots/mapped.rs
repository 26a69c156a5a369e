//! Layers once more, with the owners of their files mapped: `ROOT/mnt/ids-NAME-MAP-NUMBER`, each a mount of its own that
//! shares everything with the layer's. They are no users of the layer: they go before it does, and an overlay that was made of
//! them keeps it in use by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;

use crate::mount::{MountEntry, MountOp};
use crate::node::Node;
use crate::units::{Digest, IdMap};

const PREFIX: &str = "ids-";

impl Node {
    /// Shows `dirs` with their owners mapped, and says where; what is there already, and not of another layer, stays.
    pub(super) async fn map_owners(
        self: &Arc<Self>,
        name: &str,
        map: &IdMap,
        dirs: &[PathBuf],
    ) -> anyhow::Result<Vec<PathBuf>> {
        let (node, name, map, dirs) = (Arc::clone(self), name.to_owned(), map.clone(), dirs.to_vec());
        // It runs to its end even when whoever asked is gone: then unmapping finds all of it.
        tokio::spawn(async move {
            // Meanwhile no layer comes or goes, and nobody maps the same.
            let served = node.served.lock().await;
            if served.closed {
                bail!("the daemon is stopping");
            }
            let digest = Digest::of(format!("{} {}", map.users, map.groups).as_bytes()).hex();
            let mark = digest.get(..8).unwrap_or_default();
            let mounts = {
                let node = Arc::clone(&node);
                tokio::task::spawn_blocking(move || node.helper.mounts()).await??
            };
            // The kernel names mount points without symbolic links, which the root directory may lie behind.
            let (mnt, real) = (node.paths.mnt_dir(), std::fs::canonicalize(node.paths.mnt_dir())?);
            let on = |path: &Path| {
                let path = real.join(path.strip_prefix(&mnt).ok()?);
                mounts.iter().rev().find(|mount| mount.mount_point == path)
            };
            let (mut targets, mut ops) = (Vec::new(), Vec::new());
            for (number, dir) in dirs.into_iter().enumerate() {
                let target = node.paths.mnt_dir().join(format!("{PREFIX}{name}-{mark}-{number}"));
                // A layer's directory is a link to its mount; a directory of our own is what it is.
                let source = std::fs::read_link(&dir).unwrap_or(dir);
                match (on(&target), on(&source)) {
                    (Some(there), source) if is_of(there, source) => {}
                    (there, _) => {
                        if there.is_some() {
                            ops.push(MountOp::Unmount { target: target.clone().into(), lazy: true });
                        }
                        ops.push(MountOp::MakeDir { path: target.clone().into(), mode: 0o700 });
                        let (source, target) = (source.into(), target.clone().into());
                        ops.push(MountOp::MapOwners { source, target, map: map.clone() });
                    }
                }
                targets.push(target);
            }
            if !ops.is_empty() {
                node.run_ops(ops).await?;
            }
            Ok(targets)
        })
        .await?
    }

    /// Ends what is mapped for `name`.
    pub(super) async fn unmap_owners(self: &Arc<Self>, name: &str) {
        let prefix = format!("{PREFIX}{name}-");
        let (node, targets) = (Arc::clone(self), self.mapped_dirs(&prefix));
        if targets.is_empty() {
            return;
        }
        let done = tokio::spawn(async move {
            let _served = node.served.lock().await;
            for target in targets {
                node.unmount_layer(&target).await;
            }
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "ending mapped layers");
        }
    }

    /// Ends all that is mapped. The caller has the layers.
    pub(in crate::node) async fn unmap_all_owners(self: &Arc<Self>) {
        for target in self.mapped_dirs(PREFIX) {
            self.unmount_layer(&target).await;
        }
    }

    /// For whom something is mapped.
    pub(super) fn mapped_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self
            .mapped_dirs(PREFIX)
            .iter()
            .filter_map(|dir| Some(dir.file_name()?.to_str()?.strip_prefix(PREFIX)?.split_once('-')?.0.to_owned()))
            .collect();
        names.into_iter().collect()
    }

    fn mapped_dirs(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.paths.mnt_dir()).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)));
        ours.map(|entry| entry.path()).collect()
    }
}

/// Whether a mapped mount is of what is mounted on the layer's directory now. A directory of our own is no mount, and stays
/// the same for all its life.
fn is_of(mapped: &MountEntry, source: Option<&MountEntry>) -> bool {
    source.is_none_or(|source| source.device == mapped.device)
}
