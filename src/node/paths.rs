//! Where the node keeps things under its root.

use std::path::{Path, PathBuf};

use crate::frontend::fuse::FuseKind;
use crate::units::Digest;

/// All paths under one root directory.
///
/// ```text
/// ROOT/content/            OCI layout: zTOCs and index documents         (soci)
/// ROOT/store.db            database of what is in it                      (soci)
/// ROOT/layers/<hex>/       layer files and their present records         (cache)
/// ROOT/meta/<name>.<metadata>.{erofs,space}   synthesized images: EROFS metadata and translation table
/// ROOT/mnt/<name>/         where layers are mounted
/// ROOT/mnt/ids-<snapshot>-<map>-<number>/   and once more, with other owners, for containers with a user namespace
/// ROOT/run/control.sock    the daemon's socket, mode 0600
/// ROOT/run/daemon.lock     held by the daemon while it lives
/// ROOT/run/images/         the FUSE mount of the fuse-image frontend
/// ROOT/run/holder.sock     socket of the process that keeps its connection, mode 0600
/// ROOT/run/files/          the FUSE mount of the fuse-fs frontend
/// ROOT/run/files-holder.sock   socket of the process that keeps its connection, mode 0600
/// ROOT/node.json           mounts and devices, for recovery
/// ROOT/snapshots.db        containerd's snapshots                         (snapshot)
/// ROOT/snapshots/<id>/     their directories, or links to where layers are mounted
/// ROOT/orders/             load orders that were recorded here            (order)
/// ROOT/builder.db          the index builder's queue; ROOT/builder.lock is held by it while it lives
/// ROOT/daemon.log          what a daemon that was started on demand has to say
/// ```
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Paths under `root`, which must be absolute.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("run/control.sock")
    }

    /// Locked by the daemon for as long as it lives.
    #[must_use]
    pub fn daemon_lock(&self) -> PathBuf {
        self.root.join("run/daemon.lock")
    }

    /// Directory of sockets and FUSE mounts.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Where the FUSE mount of a frontend lies.
    #[must_use]
    pub fn fuse_dir(&self, kind: FuseKind) -> PathBuf {
        self.root.join(match kind {
            FuseKind::Images => "run/images",
            FuseKind::Files => "run/files",
        })
    }

    /// The socket of the process that keeps the FUSE connection of a frontend.
    #[must_use]
    pub fn holder_socket(&self, kind: FuseKind) -> PathBuf {
        self.root.join(match kind {
            FuseKind::Images => "run/holder.sock",
            FuseKind::Files => "run/files-holder.sock",
        })
    }

    /// The log of a daemon that was started on demand.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The recovery state.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// Directory of recorded load orders.
    #[must_use]
    pub fn orders_dir(&self) -> PathBuf {
        self.root.join("orders")
    }

    /// The queue of the index builder.
    #[must_use]
    pub fn builder_database(&self) -> PathBuf {
        self.root.join("builder.db")
    }

    /// Locked by the index builder for as long as it lives.
    #[must_use]
    pub fn builder_lock(&self) -> PathBuf {
        self.root.join("builder.lock")
    }

    /// Directory of metadata files.
    #[must_use]
    pub fn meta_dir(&self) -> PathBuf {
        self.root.join("meta")
    }

    /// Directory under which layers are mounted.
    #[must_use]
    pub fn mnt_dir(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// Name of a layer in one metadata variant, usable as a file name: the digest's hex digits, then `-` and eight hex
    /// digits of the variant where it is not the plain one.
    #[must_use]
    pub fn layer_name(digest: &Digest, variant: Option<Digest>) -> String {
        match variant {
            None => digest.hex(),
            Some(variant) => format!("{}-{}", digest.hex(), &variant.hex()[..8]),
        }
    }
}
