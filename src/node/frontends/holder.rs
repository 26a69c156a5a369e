//! The holder of the FUSE connection: started, mended, asked for what it keeps, ended.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, TryLockError};

use super::{FrontendError, Frontends, Served, fuse_name};
use crate::frontend::fuse::holder::{Holder, HolderProgram};
use crate::frontend::fuse::{FuseKind, FuseServer, FuseSession};
use crate::sys::process::OWN_PROGRAM;

impl Frontends {
    pub(super) fn start_holder(&self, kind: FuseKind, server: &FuseServer) -> Option<Holder> {
        let namespace = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.host_namespace.as_raw_fd()));
        let socket = self.paths.holder_socket(kind);
        let program = HolderProgram { exe: OWN_PROGRAM.into(), args: vec!["__hold".into()], socket };
        match Holder::start(&program, Some(&namespace), server.connection()) {
            Ok(holder) => {
                tracing::debug!(frontend = fuse_name(kind), pid = holder.process(), "the FUSE connection is kept");
                Some(holder)
            }
            Err(error) => {
                tracing::warn!(%error, "mounts over {} will not outlive this daemon", fuse_name(kind));
                None
            }
        }
    }

    /// Takes over a FUSE connection of the last daemon. It is not served before [`FuseServer::start`]. Blocks.
    ///
    /// # Errors
    /// [`FrontendError`]; the connection has ended then, and its readers get errors.
    pub fn adopt_fuse(&self, kind: FuseKind, session: &FuseSession) -> Result<Arc<FuseServer>, FrontendError> {
        if session.is_over_io_uring() {
            return Err(FrontendError::OverIoUring);
        }
        let mut up = self.up();
        let holder = Holder::connect(&self.paths.holder_socket(kind))?.ok_or(FrontendError::NotKept)?;
        let adopted = holder.take().map_err(FrontendError::from).and_then(|connection| {
            Ok(FuseServer::adopt(connection, &self.paths.fuse_dir(kind), &self.fuse_config(kind), session)?)
        });
        match adopted {
            Ok(server) => {
                *up.fuse(kind) = Some(Served { server: Arc::clone(&server), holder: Some(holder) });
                Ok(server)
            }
            Err(error) => {
                end(holder);
                Err(error)
            }
        }
    }

    /// Ends a holder that an earlier daemon left, and the connection that it keeps.
    pub fn end_left_holder(&self, kind: FuseKind) {
        let socket = self.paths.holder_socket(kind);
        match Holder::connect(&socket) {
            // One that was killed leaves its socket.
            Ok(None) => drop(std::fs::remove_file(&socket)),
            Ok(Some(holder)) => end(holder),
            Err(error) => tracing::warn!(%error, "a process of an earlier daemon stays"),
        }
    }

    /// Whether a holder was killed. Does not block: while a frontend starts, nothing is said of holders.
    pub fn has_dead_holder(&self) -> bool {
        let mut up = match self.up.try_lock() {
            Ok(up) => up,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        FuseKind::ALL.into_iter().any(|kind| up.fuse(kind).as_ref().is_some_and(Served::has_dead_holder))
    }

    /// Starts others in place of holders that were killed. Blocks.
    pub fn mend_holders(&self) {
        let mut up = self.up();
        for kind in FuseKind::ALL {
            if let Some(served) = up.fuse(kind)
                && served.has_dead_holder()
            {
                tracing::warn!(
                    frontend = fuse_name(kind),
                    "the holder of the FUSE connection has ended; starting another"
                );
                if let Some(dead) = served.holder.take() {
                    end(dead);
                }
                served.holder = self.start_holder(kind, &served.server);
            }
        }
    }

    /// The frontends whose FUSE connections somebody keeps after the end of this process.
    pub fn kept_fuse(&self) -> Vec<FuseKind> {
        self.mend_holders();
        let mut up = self.up();
        let kept = |kind: &FuseKind| up.fuse(*kind).as_ref().is_some_and(|served| served.holder.is_some());
        FuseKind::ALL.into_iter().filter(kept).collect()
    }
}

impl Served {
    fn has_dead_holder(&self) -> bool {
        self.holder.as_ref().is_some_and(|holder| !holder.is_alive())
    }
}

/// Ends a holder; one that does not go is logged.
pub(super) fn end(holder: Holder) {
    if let Err(error) = holder.end() {
        tracing::warn!(%error, "a process that kept the FUSE connection stays");
    }
}
