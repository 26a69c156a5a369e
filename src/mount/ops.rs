//! The operations, done one after the other, and undone in reverse when one fails.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::attach::{attach, copy_of, resolve_target};
use super::erofs::{self, OpenImage, Way};
use super::overlay::{self, Overlay};
use super::{MountError, MountPath, mapped};
use crate::units::IdMap;

/// The writable part of an overlay. Both directories lie on the same writable file system.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpperDirs {
    /// Where changes go.
    pub upper: MountPath,
    /// Scratch space of overlayfs: an empty directory.
    pub work: MountPath,
}

/// One thing to do. Paths should be absolute: a helper process has its own working directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum MountOp {
    /// Makes a directory and those above it; none may be missing afterwards, all may exist before.
    MakeDir {
        /// The directory.
        path: MountPath,
        /// Permission bits of what is made, such as `0o700`.
        mode: u32,
    },
    /// Removes an empty directory; one that is not there is as good. Not undone.
    RemoveDir {
        /// The directory.
        path: MountPath,
    },
    /// Mounts an EROFS image read-only.
    Erofs {
        /// A block device, or a file: mounted directly where the kernel can (Linux 6.12 and later), else through a loop
        /// device that frees itself. Opened before the first operation, in the caller's mount namespace.
        image: MountPath,
        /// An existing directory on which nothing is mounted.
        target: MountPath,
        /// So many bytes at its beginning are metadata: the kernel reads them in the background. 0: as they are needed.
        metadata_bytes: u64,
        /// SELinux label of all files (mount(8), `context=`); what the policy says of EROFS when absent.
        context: Option<String>,
    },
    /// Shows a directory of another mount on its own, read-only.
    Bind {
        /// The directory. Opened before the first operation, in the caller's mount namespace.
        source: MountPath,
        /// An existing directory on which nothing is mounted.
        target: MountPath,
    },
    /// Looks a name up before the first operation, in the caller's mount namespace, so that the kernel has it in its cache.
    /// Whether it is there does not matter.
    LookUp {
        /// The name.
        path: MountPath,
    },
    /// Mounts an overlay.
    Overlay {
        /// Read-only directories, topmost first; at least one, at most 500.
        lowers: Vec<MountPath>,
        /// An existing empty directory. Needed for a single lower without upper, else unused.
        empty_lower: Option<MountPath>,
        /// Makes the overlay writable.
        upper: Option<UpperDirs>,
        /// An existing directory on which nothing is mounted.
        target: MountPath,
        /// Mounts read-only although there is an upper; implied without one.
        read_only: bool,
    },
    /// Shows a directory once more, read-only, with its files' owners mapped. What is mounted below it is not shown.
    MapOwners {
        /// The directory; its file system must allow it (EROFS since Linux 5.19). Symbolic links are followed.
        source: MountPath,
        /// An existing directory on which nothing is mounted.
        target: MountPath,
        /// Whom a file belongs to that belongs to whom in the container.
        map: IdMap,
    },
    /// Unmounts what is mounted last on `target`. Not undone.
    Unmount {
        /// The mount point.
        target: MountPath,
        /// Takes it out of sight now and frees it when its last user is gone, where a plain unmount would be refused.
        lazy: bool,
    },
}

/// How to undo one step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub(super) enum Undo {
    Unmount { target: MountPath },
    RemoveDir { path: MountPath },
}

impl Undo {
    /// Undoes as far as it goes: what is not there (any more) needs no undoing.
    fn run(&self) {
        match self {
            Self::Unmount { target } => {
                if unmount(target.as_os_str(), UnmountFlags::NOFOLLOW) == Err(Errno::BUSY) {
                    let _ = unmount(target.as_os_str(), UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
                }
            }
            Self::RemoveDir { path } => {
                let _ = std::fs::remove_dir(path);
            }
        }
    }
}

/// What was done, so that it can be undone; and whom to tell before it is done.
pub(super) struct Journal<'a> {
    undo: Vec<Undo>,
    announce: &'a mut dyn FnMut(&Undo) -> io::Result<()>,
}

impl<'a> Journal<'a> {
    pub(super) fn new(announce: &'a mut dyn FnMut(&Undo) -> io::Result<()>) -> Self {
        Self { undo: Vec::new(), announce }
    }

    /// Called right before a step takes effect.
    pub(super) fn will(&mut self, undo: Undo) -> Result<(), MountError> {
        (self.announce)(&undo).map_err(|error| MountError::Helper {
            reason: format!("the process that asked for the mount is gone: {error}"),
        })?;
        self.undo.push(undo);
        Ok(())
    }

    /// The step announced last had no effect after all.
    pub(super) fn did_not(&mut self) {
        self.undo.pop();
    }

    fn roll_back(self) {
        run_undo(&self.undo);
    }
}

/// Undoes a list of steps, the last first.
pub(super) fn run_undo(steps: &[Undo]) {
    for step in steps.iter().rev() {
        step.run();
    }
}

/// Does all of `ops` in order, in this process and mount namespace, or none of them. May wait for I/O on the images.
///
/// # Errors
/// The first failure, after what was done before has been undone in reverse (except unmounts and removals).
pub fn execute(ops: &[MountOp]) -> Result<(), MountError> {
    Prepared::open(ops)?.execute(&mut |_| Ok(()))
}

/// What an operation needs of the caller's mount namespace.
enum Source {
    Nothing,
    Image(OpenImage),
    /// A mount that no path leads to yet.
    Mount(OwnedFd),
}

/// Operations whose sources are open.
pub(super) struct Prepared<'a> {
    ops: Vec<(&'a MountOp, Source)>,
}

impl<'a> Prepared<'a> {
    pub(super) fn open(ops: &'a [MountOp]) -> Result<Self, MountError> {
        let open = |op: &'a MountOp| match op {
            MountOp::Erofs { image, .. } => Ok((op, Source::Image(OpenImage::open(image)?))),
            MountOp::Bind { source, .. } => Ok((op, Source::Mount(copy_of(source)?))),
            MountOp::LookUp { path } => {
                let _ = std::fs::symlink_metadata(path);
                Ok((op, Source::Nothing))
            }
            _ => Ok((op, Source::Nothing)),
        };
        Ok(Self { ops: ops.iter().map(open).collect::<Result<_, MountError>>()? })
    }

    pub(super) fn execute(self, announce: &mut dyn FnMut(&Undo) -> io::Result<()>) -> Result<(), MountError> {
        let mut journal = Journal::new(announce);
        for (op, source) in &self.ops {
            if let Err(error) = step(op, source, &mut journal) {
                journal.roll_back();
                return Err(error);
            }
        }
        Ok(())
    }
}

fn step(op: &MountOp, source: &Source, journal: &mut Journal<'_>) -> Result<(), MountError> {
    match op {
        MountOp::MakeDir { path, mode } => make_dirs(path, *mode, journal),
        MountOp::RemoveDir { path } => match std::fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MountError::system("remove", path.clone(), error))
            }
            _ => Ok(()),
        },
        MountOp::Erofs { image: path, target, metadata_bytes, context } => {
            let resolved = resolve_target(target)?;
            let Source::Image(image) = source else { return Err(MountError::SourceMissing { path: path.clone() }) };
            let mount = erofs::prepare(image, context.as_deref(), Way::Best)?;
            image.read_ahead(*metadata_bytes);
            journal.will(Undo::Unmount { target: resolved.clone().into() })?;
            attach(mount.as_fd(), &resolved).inspect_err(|_| journal.did_not())
        }
        MountOp::LookUp { .. } => Ok(()),
        MountOp::Bind { source: path, target } => {
            let resolved = resolve_target(target)?;
            let Source::Mount(mount) = source else { return Err(MountError::SourceMissing { path: path.clone() }) };
            journal.will(Undo::Unmount { target: resolved.clone().into() })?;
            attach(mount.as_fd(), &resolved).inspect_err(|_| journal.did_not())
        }
        MountOp::Overlay { lowers, empty_lower, upper, target, read_only } => {
            let resolved = resolve_target(target)?;
            let overlay = Overlay {
                lowers,
                empty_lower: empty_lower.as_ref(),
                upper: upper.as_ref(),
                target,
                read_only: *read_only || upper.is_none(),
            };
            overlay::mount(&overlay, &resolved, journal)
        }
        MountOp::MapOwners { source, target, map } => {
            let resolved = resolve_target(target)?;
            let mount = mapped::prepare(source, map)?;
            journal.will(Undo::Unmount { target: resolved.clone().into() })?;
            attach(mount.as_fd(), &resolved).inspect_err(|_| journal.did_not())
        }
        MountOp::Unmount { target, lazy } => {
            let flags = if *lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
            unmount(target.as_os_str(), flags | UnmountFlags::NOFOLLOW).map_err(|errno| match errno {
                Errno::BUSY => MountError::InUse { target: target.clone() },
                Errno::INVAL | Errno::NOENT => MountError::NotMounted { target: target.clone() },
                _ => MountError::system("unmount", target.clone(), errno),
            })
        }
    }
}

/// Makes the missing directories, outermost first, each with its own undo.
fn make_dirs(path: &Path, mode: u32, journal: &mut Journal<'_>) -> Result<(), MountError> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && std::fs::symlink_metadata(dir).is_err())
        .collect();
    for dir in missing.into_iter().rev() {
        journal.will(Undo::RemoveDir { path: dir.into() })?;
        match std::fs::DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => journal.did_not(),
            Err(error) => {
                journal.did_not();
                return Err(MountError::system("create", dir, error));
            }
        }
    }
    if std::fs::metadata(path).is_ok_and(|facts| facts.is_dir()) {
        Ok(())
    } else {
        Err(MountError::TargetNotDirectory { target: path.into() })
    }
}
