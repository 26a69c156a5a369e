//! The frontends of this daemon: which one serves a mount, and why.

mod holder;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::layer::Layer;
use super::paths::Paths;
use super::protocol::FrontendChoice;
use crate::frontend::fuse::holder::{Holder, HolderError};
use crate::frontend::fuse::{Content, FuseConfig, FuseError, FuseKind, FuseServer, FuseSession};
use crate::frontend::ublk::{DataMode, UblkConfig, UblkDevice, UblkError, UblkFrontend};
use crate::frontend::{Backend, fuse_fs, fuse_image};
use crate::mount::MountOp;
use crate::units::DigestHasher;

/// The kernel tells of the last close of an image a moment after its unmount.
const FUSE_RELEASE_WAIT: Duration = Duration::from_millis(20);

/// Why a layer cannot be shown to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// ublk was asked for and does not work.
    #[error("the ublk frontend does not work here: {0}")]
    Ublk(#[from] UblkError),
    /// fuse-image or fuse-fs was asked for and does not work.
    #[error("FUSE frontends do not work here: {0}")]
    Fuse(#[from] FuseError),
    /// What a layer's files are like cannot be read.
    #[error("the metadata of the layer cannot be used: {0}")]
    Metadata(std::io::Error),
    /// Nobody kept the FUSE connection of the last daemon.
    #[error("nobody kept the FUSE connection of the last daemon; was its holder killed, or the machine restarted?")]
    NotKept,
    /// It cannot be kept.
    #[error("FUSE connections over io_uring (the setting fuse.io_uring) end with their daemon")]
    OverIoUring,
    /// Whoever kept it does not give it away.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// Neither works.
    #[error("no frontend works here. ublk: {ublk}. fuse-image: {fuse}. `sociblk doctor` says what is missing")]
    None {
        /// Why not ublk.
        ublk: UblkError,
        /// Why not fuse-image.
        fuse: FuseError,
    },
}

/// A frontend that is up.
#[derive(Clone)]
pub enum Frontend {
    /// Block devices.
    Ublk(Arc<UblkFrontend>),
    /// Image files.
    Fuse(Arc<FuseServer>),
    /// Every file by itself.
    Files(Arc<FuseServer>),
}

/// What shows one layer.
#[derive(Clone, Debug)]
pub enum Device {
    /// A block device.
    Ublk(UblkDevice),
    /// A file, or a tree of files, in a FUSE mount.
    Fuse {
        /// Which.
        kind: FuseKind,
        /// Its name there.
        name: String,
        /// Its path, in the daemon's mount namespace.
        path: PathBuf,
        /// The first of its inode numbers there.
        inode: u64,
    },
}

impl Device {
    /// What EROFS is mounted from, or the root directory of the files.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Ublk(device) => device.block_path.clone(),
            Self::Fuse { path, .. } => path.clone(),
        }
    }

    /// For people: `ublk (auto-buf-reg)`, `fuse-image`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Ublk(device) => {
                let mode = match device.mode {
                    DataMode::Copy => "copy",
                    DataMode::UserCopy => "user-copy",
                    DataMode::AutoBufReg => "auto-buf-reg",
                };
                format!("ublk ({mode})")
            }
            Self::Fuse { kind, .. } => fuse_name(*kind).to_owned(),
        }
    }

    /// What puts the layer's root directory on `target`; the first `metadata_bytes` of the device are not content. `context`: SELinux label of its files; of fuse-fs, whose
    /// layers are directories of one mount, they keep what the policy says of FUSE.
    #[must_use]
    pub fn mount_op(&self, target: PathBuf, metadata_bytes: u64, context: Option<String>) -> MountOp {
        let (from, target) = (self.path().into(), target.into());
        match self {
            Self::Fuse { kind: FuseKind::Files, .. } => MountOp::Bind { source: from, target },
            _ => MountOp::Erofs { image: from, target, metadata_bytes, context },
        }
    }
}

impl Device {
    /// What must be done before a device that was in use is looked at again. The kernel keeps names below a directory that
    /// it was told to forget while somebody used it, and can be told to forget them only by its name; so it needs that.
    #[must_use]
    pub fn recall_op(&self) -> Option<MountOp> {
        matches!(self, Self::Fuse { kind: FuseKind::Files, .. }).then(|| MountOp::LookUp { path: self.path().into() })
    }
}

/// The name of a FUSE frontend.
#[must_use]
pub fn fuse_name(kind: FuseKind) -> &'static str {
    match kind {
        FuseKind::Images => "fuse-image",
        FuseKind::Files => "fuse-fs",
    }
}

/// A layer as the frontend of `kind` serves it.
///
/// # Errors
/// [`FrontendError::Metadata`].
pub fn fuse_content(kind: FuseKind, layer: Arc<Layer>) -> Result<Content, FrontendError> {
    Ok(match kind {
        FuseKind::Images => fuse_image::image(layer),
        FuseKind::Files => fuse_fs::files(layer.files().map_err(FrontendError::Metadata)?, layer as Arc<dyn Backend>),
    })
}

impl Frontend {
    /// The frontend of a FUSE server.
    #[must_use]
    pub fn of(kind: FuseKind, server: Arc<FuseServer>) -> Self {
        match kind {
            FuseKind::Images => Self::Fuse(server),
            FuseKind::Files => Self::Files(server),
        }
    }

    fn fuse(&self) -> Option<(FuseKind, &Arc<FuseServer>)> {
        match self {
            Self::Ublk(_) => None,
            Self::Fuse(server) => Some((FuseKind::Images, server)),
            Self::Files(server) => Some((FuseKind::Files, server)),
        }
    }

    /// `ublk`, `fuse-image` or `fuse-fs`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.fuse().map_or("ublk", |(kind, _)| fuse_name(kind))
    }

    /// Shows `layer`, on a device marked with `tag` where the frontend has marks. Blocks for the kernel, not for the
    /// network.
    ///
    /// # Errors
    /// [`FrontendError`]; nothing is left then.
    pub fn add(&self, layer: Arc<Layer>, tag: u64) -> Result<Device, FrontendError> {
        let name = layer.name().to_owned();
        Ok(match self {
            Self::Ublk(ublk) => Device::Ublk(ublk.add(layer, tag)?),
            Self::Fuse(server) => shown(FuseKind::Images, server, name, layer)?,
            Self::Files(server) => shown(FuseKind::Files, server, name, layer)?,
        })
    }

    /// Takes a device away that nobody has mounted. False: somebody still has; it goes on being served.
    ///
    /// # Errors
    /// [`FrontendError`] for anything but a busy device.
    pub fn remove(&self, device: &Device) -> Result<bool, FrontendError> {
        match (self, device) {
            (Self::Ublk(ublk), Device::Ublk(device)) => match ublk.remove(device.id) {
                Ok(()) => Ok(true),
                Err(UblkError::Busy { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
            (Self::Fuse(server) | Self::Files(server), Device::Fuse { name, .. }) => match server.remove(name) {
                Ok(()) => Ok(true),
                Err(FuseError::Busy { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            },
            // A device is always given back to the frontend that made it.
            _ => Ok(true),
        }
    }

    /// Takes a device away from whoever still uses it: their reads fail from now on. The only other choice at the end of
    /// a daemon that nobody will follow is that they hang for ever.
    ///
    /// # Errors
    /// [`FrontendError`] when the kernel refuses.
    pub fn remove_in_use(&self, device: &Device) -> Result<(), FrontendError> {
        match (self, device) {
            (Self::Ublk(ublk), Device::Ublk(device)) => Ok(ublk.remove_in_use(device.id)?),
            // The end of the FUSE session does the same for all its files.
            _ => Ok(()),
        }
    }
}

fn shown(kind: FuseKind, server: &FuseServer, name: String, layer: Arc<Layer>) -> Result<Device, FrontendError> {
    let node = server.add(&name, fuse_content(kind, layer)?)?;
    Ok(Device::Fuse { kind, name, path: node.path, inode: node.inode })
}

/// The mark that the ublk device of a root's layer carries, so that a later daemon of that root, and no other, takes it
/// over.
#[must_use]
pub fn device_tag(root: &Path, layer_name: &str) -> u64 {
    let mut hasher = DigestHasher::new();
    hasher.update(root.as_os_str().as_encoded_bytes());
    hasher.update(b"\0");
    hasher.update(layer_name.as_bytes());
    let digest = hasher.finish();
    let mut tag = [0; 8];
    tag.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(tag)
}

/// The frontends that are up, started when first needed.
pub struct Frontends {
    paths: Paths,
    ublk_config: UblkConfig,
    /// fuse-fs asks the kernel for its requests over io_uring.
    fuse_over_io_uring: bool,
    /// The mount namespace that the daemon came from: a holder lives there.
    host_namespace: OwnedFd,
    up: Mutex<Up>,
}

#[derive(Default)]
struct Up {
    ublk: Option<Arc<UblkFrontend>>,
    images: Option<Served>,
    files: Option<Served>,
    /// Why `auto` passed ublk over; asked once, since a probe of a broken driver costs seconds.
    no_ublk: Option<String>,
}

/// A FUSE connection and who keeps it.
struct Served {
    server: Arc<FuseServer>,
    holder: Option<Holder>,
}

impl Up {
    fn fuse(&mut self, kind: FuseKind) -> &mut Option<Served> {
        match kind {
            FuseKind::Images => &mut self.images,
            FuseKind::Files => &mut self.files,
        }
    }
}

impl Frontends {
    /// None is up yet.
    #[must_use]
    pub fn new(paths: Paths, ublk_config: UblkConfig, fuse_over_io_uring: bool, host_namespace: OwnedFd) -> Self {
        Self { paths, ublk_config, fuse_over_io_uring, host_namespace, up: Mutex::new(Up::default()) }
    }

    /// The frontend that `choice` means, started if need be, and the reason for it. Blocks.
    ///
    /// # Errors
    /// [`FrontendError`] when it does not work, or none does.
    pub fn get(&self, choice: FrontendChoice) -> Result<(Frontend, String), FrontendError> {
        let mut up = self.up();
        match choice {
            FrontendChoice::Ublk => Ok((Frontend::Ublk(self.ublk(&mut up)?), "asked for".to_owned())),
            FrontendChoice::FuseImage => Ok((self.fuse(&mut up, FuseKind::Images)?, "asked for".to_owned())),
            FrontendChoice::FuseFs => Ok((self.fuse(&mut up, FuseKind::Files)?, "asked for".to_owned())),
            FrontendChoice::Auto => {
                if let Some(why) = up.no_ublk.clone() {
                    return Ok((self.fuse(&mut up, FuseKind::Images)?, why));
                }
                let features = up.ublk.as_ref().map_or_else(UblkFrontend::probe, |ublk| Ok(ublk.features()));
                let ublk = features.and_then(|features| match features.survives_kills() {
                    true => self.ublk(&mut up),
                    false => Err(UblkError::CannotBeKilled),
                });
                match ublk {
                    Ok(ublk) => Ok((Frontend::Ublk(ublk), "ublk works on this host".to_owned())),
                    Err(ublk) => {
                        let why = format!("no ublk: {ublk}");
                        tracing::info!(frontend = "fuse-image", reason = %why, "frontend chosen");
                        let fuse =
                            self.fuse(&mut up, FuseKind::Images).map_err(|fuse| FrontendError::None { ublk, fuse })?;
                        up.no_ublk = Some(why.clone());
                        Ok((fuse, why))
                    }
                }
            }
        }
    }

    fn ublk(&self, up: &mut Up) -> Result<Arc<UblkFrontend>, UblkError> {
        if let Some(ublk) = &up.ublk {
            return Ok(Arc::clone(ublk));
        }
        let ublk = UblkFrontend::start(self.ublk_config.clone())?;
        tracing::info!(frontend = "ublk", features = ?ublk.features(), "frontend started");
        up.ublk = Some(Arc::clone(&ublk));
        Ok(ublk)
    }

    fn fuse(&self, up: &mut Up, kind: FuseKind) -> Result<Frontend, FuseError> {
        if let Some(served) = up.fuse(kind) {
            return Ok(Frontend::of(kind, Arc::clone(&served.server)));
        }
        // Whoever still reads through an earlier connection, which nobody will ever serve, gets an error instead of
        // waiting for good.
        self.end_left_holder(kind);
        let server = FuseServer::mount(&self.paths.fuse_dir(kind), &self.fuse_config(kind))?;
        tracing::info!(frontend = fuse_name(kind), dir = %server.dir().display(), "frontend started");
        let holder = if server.is_over_io_uring() {
            tracing::warn!(
                "mounts over {} will not outlive this daemon: no other can take over its io_uring",
                fuse_name(kind)
            );
            None
        } else {
            self.start_holder(kind, &server)
        };
        *up.fuse(kind) = Some(Served { server: Arc::clone(&server), holder });
        Ok(Frontend::of(kind, server))
    }

    /// What the next daemon must know of a FUSE connection.
    pub fn fuse_session(&self, kind: FuseKind) -> Option<FuseSession> {
        self.up().fuse(kind).as_ref().map(|served| served.server.session())
    }

    /// Ends the frontends. ublk devices that are still there stay, quiesced, for the next daemon; so does what FUSE
    /// frontends of the kinds in `keep` serve.
    pub fn stop(&self, keep: &[FuseKind]) {
        let mut up = self.up();
        if let Some(ublk) = up.ublk.take() {
            let left = ublk.detach_all();
            if !left.is_empty() {
                tracing::warn!(devices = ?left, "devices not quiesced yet; the kernel finishes after this process");
            }
        }
        for kind in FuseKind::ALL {
            let Some(Served { server, holder }) = up.fuse(kind).take() else { continue };
            if keep.contains(&kind) {
                server.leave();
                continue;
            }
            if let Err(error) = server.abort() {
                tracing::warn!(%error, frontend = fuse_name(kind), "ending the FUSE session");
            }
            if let Some(holder) = holder {
                holder::end(holder);
            }
        }
    }

    fn fuse_config(&self, kind: FuseKind) -> FuseConfig {
        let config = match kind {
            FuseKind::Images => FuseConfig::default(),
            FuseKind::Files => FuseConfig { io_uring: self.fuse_over_io_uring, ..FuseConfig::files() },
        };
        // The node asks again by itself, for all layers of a mount side by side.
        FuseConfig { release_wait: FUSE_RELEASE_WAIT, ..config }
    }

    fn up(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
