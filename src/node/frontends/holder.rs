//! The holder of the FUSE connection: started, mended, asked for what it keeps, ended.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{FrontendError, Frontends, fuse_config};
use crate::frontend::fuse_image::holder::Holder;
use crate::frontend::fuse_image::{FuseImages, FuseSession};

impl Frontends {
    pub(super) fn start_holder(&self, fuse: &FuseImages) -> Option<Holder> {
        let namespace = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.host_namespace.as_raw_fd()));
        match Holder::start(&self.holder_program, Some(&namespace), fuse.connection()) {
            Ok(holder) => {
                tracing::debug!(pid = holder.process(), "the FUSE connection is kept");
                Some(holder)
            }
            Err(error) => {
                tracing::warn!(%error, "mounts over fuse-image will not outlive this daemon");
                None
            }
        }
    }

    /// Takes over the FUSE connection of the last daemon. It is not served before [`FuseImages::start`]. Blocks.
    ///
    /// # Errors
    /// [`FrontendError`]; the connection has ended then, and its readers get errors.
    pub fn adopt_fuse(&self, session: &FuseSession) -> Result<Arc<FuseImages>, FrontendError> {
        let mut up = self.up();
        let holder = Holder::connect(&self.holder_program.socket)?.ok_or(FrontendError::NotKept)?;
        let adopted = holder
            .take()
            .map_err(FrontendError::from)
            .and_then(|connection| Ok(FuseImages::adopt(connection, &self.paths.fuse_dir(), &fuse_config(), session)?));
        match adopted {
            Ok(fuse) => {
                up.holder = Some(holder);
                up.fuse = Some(Arc::clone(&fuse));
                Ok(fuse)
            }
            Err(error) => {
                end(holder);
                Err(error)
            }
        }
    }

    /// Ends a holder that an earlier daemon left, and the connection that it keeps.
    pub fn end_left_holder(&self) {
        match Holder::connect(&self.holder_program.socket) {
            // One that was killed leaves its socket.
            Ok(None) => drop(std::fs::remove_file(&self.holder_program.socket)),
            Ok(Some(holder)) => end(holder),
            Err(error) => tracing::warn!(%error, "a process of an earlier daemon stays"),
        }
    }

    /// Starts another holder in place of one that was killed.
    pub fn mend_holder(&self) {
        let mut up = self.up();
        if let Some(fuse) = &up.fuse
            && up.holder.as_ref().is_some_and(|holder| !holder.is_alive())
        {
            tracing::warn!("the holder of the FUSE connection has ended; starting another one");
            let fuse = Arc::clone(fuse);
            if let Some(dead) = up.holder.take() {
                end(dead);
            }
            up.holder = self.start_holder(&fuse);
        }
    }

    /// Whether somebody keeps the FUSE connection after the end of this process.
    pub fn keeps_fuse(&self) -> bool {
        self.mend_holder();
        self.up().holder.is_some()
    }
}

/// Ends a holder; one that does not go is logged.
pub(super) fn end(holder: Holder) {
    if let Err(error) = holder.end() {
        tracing::warn!(%error, "a process that kept the FUSE connection stays");
    }
}
