//! The frontends of this daemon: which one serves a mount, and why.

mod holder;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::layer::Layer;
use super::paths::Paths;
use super::protocol::FrontendChoice;
use crate::frontend::fuse_image::holder::{Holder, HolderError, HolderProgram};
use crate::frontend::fuse_image::{FuseConfig, FuseError, FuseImages, FuseSession};
use crate::frontend::ublk::{DataMode, UblkConfig, UblkDevice, UblkError, UblkFrontend};
use crate::units::DigestHasher;

/// The kernel tells of the last close of an image a moment after its unmount.
const FUSE_RELEASE_WAIT: Duration = Duration::from_millis(20);

/// Why a layer cannot be shown to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// ublk was asked for and does not work.
    #[error("the ublk frontend does not work here: {0}")]
    Ublk(#[from] UblkError),
    /// fuse-image was asked for and does not work.
    #[error("the fuse-image frontend does not work here: {0}")]
    Fuse(#[from] FuseError),
    /// Nobody kept the FUSE connection of the last daemon.
    #[error("nobody kept the FUSE connection of the last daemon; was its holder killed, or the machine restarted?")]
    NotKept,
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
    Fuse(Arc<FuseImages>),
}

/// What shows one layer.
#[derive(Clone, Debug)]
pub enum Device {
    /// A block device.
    Ublk(UblkDevice),
    /// A file in the FUSE mount.
    Fuse {
        /// Its name there.
        name: String,
        /// Its path, in the daemon's mount namespace.
        path: PathBuf,
        /// Its inode number there.
        inode: u64,
    },
}

impl Device {
    /// What EROFS is mounted from.
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
            Self::Fuse { .. } => "fuse-image".to_owned(),
        }
    }
}

impl Frontend {
    /// `ublk` or `fuse-image`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ublk(_) => "ublk",
            Self::Fuse(_) => "fuse-image",
        }
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
            Self::Fuse(images) => {
                let image = images.add(&name, layer)?;
                Device::Fuse { name, path: image.path, inode: image.inode }
            }
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
            (Self::Fuse(images), Device::Fuse { name, .. }) => match images.remove(name) {
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
    holder_program: HolderProgram,
    /// The mount namespace that the daemon came from: a holder lives there.
    host_namespace: OwnedFd,
    up: Mutex<Up>,
}

#[derive(Default)]
struct Up {
    ublk: Option<Arc<UblkFrontend>>,
    fuse: Option<Arc<FuseImages>>,
    /// Keeps the connection of `fuse`.
    holder: Option<Holder>,
    /// Why `auto` passed ublk over; asked once, since a probe of a broken driver costs seconds.
    no_ublk: Option<String>,
}

impl Frontends {
    /// None is up yet. `exe` is this program.
    #[must_use]
    pub fn new(paths: Paths, ublk_config: UblkConfig, exe: PathBuf, host_namespace: OwnedFd) -> Self {
        let holder_program = HolderProgram { exe, args: vec!["__hold".into()], socket: paths.holder_socket() };
        Self { paths, ublk_config, holder_program, host_namespace, up: Mutex::new(Up::default()) }
    }

    /// The frontend that `choice` means, started if need be, and the reason for it. Blocks.
    ///
    /// # Errors
    /// [`FrontendError`] when it does not work, or none does.
    pub fn get(&self, choice: FrontendChoice) -> Result<(Frontend, String), FrontendError> {
        let mut up = self.up();
        match choice {
            FrontendChoice::Ublk => Ok((Frontend::Ublk(self.ublk(&mut up)?), "asked for".to_owned())),
            FrontendChoice::FuseImage => Ok((Frontend::Fuse(self.fuse(&mut up)?), "asked for".to_owned())),
            FrontendChoice::Auto => {
                if let Some(why) = up.no_ublk.clone() {
                    return Ok((Frontend::Fuse(self.fuse(&mut up)?), why));
                }
                match self.ublk(&mut up) {
                    Ok(ublk) => Ok((Frontend::Ublk(ublk), "ublk works on this host".to_owned())),
                    Err(ublk) => {
                        let why = format!("no ublk: {ublk}");
                        tracing::info!(frontend = "fuse-image", reason = %why, "frontend chosen");
                        let fuse = self.fuse(&mut up).map_err(|fuse| FrontendError::None { ublk, fuse })?;
                        up.no_ublk = Some(why.clone());
                        Ok((Frontend::Fuse(fuse), why))
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

    fn fuse(&self, up: &mut Up) -> Result<Arc<FuseImages>, FuseError> {
        if let Some(fuse) = &up.fuse {
            return Ok(Arc::clone(fuse));
        }
        // Whoever still reads through an earlier connection, which nobody will ever serve, gets an error instead of
        // waiting for good.
        self.end_left_holder();
        let fuse = FuseImages::mount(&self.paths.fuse_dir(), &fuse_config())?;
        tracing::info!(frontend = "fuse-image", dir = %fuse.dir().display(), "frontend started");
        up.holder = self.start_holder(&fuse);
        up.fuse = Some(Arc::clone(&fuse));
        Ok(fuse)
    }

    /// What the next daemon must know of the FUSE connection.
    pub fn fuse_session(&self) -> Option<FuseSession> {
        self.up().fuse.as_ref().map(|fuse| fuse.session())
    }

    /// Ends the frontends. ublk devices that are still there stay, quiesced, for the next daemon; with `keep_fuse` so do
    /// images.
    pub fn stop(&self, keep_fuse: bool) {
        let mut up = self.up();
        if let Some(ublk) = up.ublk.take() {
            let left = ublk.detach_all();
            if !left.is_empty() {
                tracing::warn!(devices = ?left, "devices not quiesced yet; the kernel finishes after this process");
            }
        }
        let (fuse, holder) = (up.fuse.take(), up.holder.take());
        if let Some(fuse) = fuse {
            if keep_fuse {
                return fuse.leave();
            }
            if let Err(error) = fuse.abort() {
                tracing::warn!(%error, "ending the FUSE session");
            }
        }
        if let Some(holder) = holder {
            holder::end(holder);
        }
    }

    fn up(&self) -> MutexGuard<'_, Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fuse_config() -> FuseConfig {
    // The node asks again by itself, for all layers of a mount side by side.
    FuseConfig { release_wait: FUSE_RELEASE_WAIT, ..FuseConfig::default() }
}
