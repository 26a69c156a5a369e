//! overlayfs over many layers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use super::attach::{FSCONFIG_VALUE_BYTES, FsContext, attach};
use super::ops::{Journal, Undo, UpperDirs};
use super::{MountError, MountPath};

/// Most lower layers of one overlay (Linux `fs/overlayfs/params.h`: OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// The options string of mount(2) is one page, with its end mark.
const MOUNT_DATA_BYTES: usize = 4095;

/// An image must not steer overlayfs by extended attributes of its own (redirects, data elsewhere); no index on lowers
/// that are read-only for ever.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// What one overlay consists of.
pub(super) struct Overlay<'a> {
    /// Topmost first.
    pub(super) lowers: &'a [MountPath],
    pub(super) empty_lower: Option<&'a MountPath>,
    pub(super) upper: Option<&'a UpperDirs>,
    pub(super) target: &'a MountPath,
    pub(super) read_only: bool,
}

/// A directory, held open, and the text by which overlayfs is told of it.
struct Named {
    _open: OwnedFd,
    name: CString,
    path: MountPath,
}

impl Named {
    /// Opens a directory. Its plain path is used where every kernel reads it the same way, since it shows in the list
    /// of mounts; else, and always when `short`, a path through the descriptor: it has no `:`, `,` or `\` and 17 bytes.
    fn open(path: &MountPath, short: bool) -> Result<Self, MountError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(path.as_os_str(), flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => MountError::SourceMissing { path: path.clone() },
            Errno::NOTDIR => MountError::TargetNotDirectory { target: path.clone() },
            _ => MountError::system("open", path.clone(), errno),
        })?;
        let bytes = path.as_os_str().as_bytes();
        let plain = !short
            && path.is_absolute()
            && bytes.len() <= FSCONFIG_VALUE_BYTES
            && !bytes.iter().any(|byte| b":,\\".contains(byte));
        let name = match CString::new(bytes) {
            Ok(name) if plain => name,
            _ => CString::new(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap_or_default(),
        };
        Ok(Self { _open: open, name, path: path.clone() })
    }
}

/// Whether this kernel takes layers one by one (Linux 6.8 and later): then their number is not limited by a page.
pub(super) fn takes_single_lowers() -> Result<bool, Errno> {
    // Kernels before 6.5 collect any option at all and refuse later.
    if FsContext::open(c"overlay")?.set(c"sociblk_probe", c"1").is_ok() {
        return Ok(false);
    }
    let context = FsContext::open(c"overlay")?;
    Ok(context.set(c"lowerdir+", c"/").is_ok() || !context.messages().contains("Unknown parameter"))
}

/// How the kernel is told of the layers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stacking {
    /// One by one (Linux 6.8 and later).
    Single,
    /// All in one string of options.
    OneString,
}

/// Mounts in the best way. `resolved` is the target as `resolve_target` returned it.
pub(super) fn mount(overlay: &Overlay<'_>, resolved: &Path, journal: &mut Journal<'_>) -> Result<(), MountError> {
    let stacking = match takes_single_lowers() {
        Ok(true) => Stacking::Single,
        Ok(false) => Stacking::OneString,
        Err(Errno::NODEV) => return Err(MountError::NoOverlay),
        Err(errno) => return Err(MountError::system("mount an overlay on", overlay.target.clone(), errno)),
    };
    mount_by(stacking, overlay, resolved, journal)
}

/// Mounts in a given way.
pub(super) fn mount_by(
    stacking: Stacking,
    overlay: &Overlay<'_>,
    resolved: &Path,
    journal: &mut Journal<'_>,
) -> Result<(), MountError> {
    let lowers = all_lowers(overlay)?;
    if lowers.len() > MAX_LOWERS {
        return Err(MountError::TooManyLowers { count: lowers.len(), limit: MAX_LOWERS, remedy: String::new() });
    }
    let name = |path| Named::open(path, stacking == Stacking::OneString);
    let lowers = lowers.into_iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let upper = match overlay.upper {
        Some(dirs) => Some((name(&dirs.upper)?, name(&dirs.work)?)),
        None => None,
    };
    let will = Undo::Unmount { target: resolved.into() };
    match stacking {
        Stacking::Single => {
            let mounted = configure(overlay, &lowers, upper.as_ref())?;
            journal.will(will)?;
            attach(mounted.as_fd(), resolved).inspect_err(|_| journal.did_not())
        }
        Stacking::OneString => {
            let data = options_string(&lowers, upper.as_ref())?;
            journal.will(will)?;
            let flags = if overlay.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
            rustix::mount::mount("sociblk", resolved, "overlay", flags, data.as_c_str()).map_err(|errno| {
                journal.did_not();
                MountError::system("mount an overlay on", overlay.target.clone(), errno)
            })
        }
    }
}

/// The layers, and below a lone one without upper the empty directory: overlayfs wants two, and a bind mount would show
/// the whiteouts of the layer as devices.
fn all_lowers<'a>(overlay: &Overlay<'a>) -> Result<Vec<&'a MountPath>, MountError> {
    let mut lowers: Vec<_> = overlay.lowers.iter().collect();
    match (lowers.len(), overlay.upper) {
        (0, _) => return Err(MountError::NoLowers { target: overlay.target.clone() }),
        (1, None) => {
            let Some(empty) = overlay.empty_lower else {
                return Err(MountError::EmptyLowerNeeded { target: overlay.target.clone() });
            };
            let mut entries = std::fs::read_dir(empty).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => MountError::SourceMissing { path: empty.clone() },
                _ => MountError::system("list", empty.clone(), error),
            })?;
            if entries.next().is_some() {
                return Err(MountError::EmptyLowerFilled { path: empty.clone() });
            }
            lowers.push(empty);
        }
        _ => {}
    }
    Ok(lowers)
}

/// The way of Linux 6.8 and later.
fn configure(overlay: &Overlay<'_>, lowers: &[Named], upper: Option<&(Named, Named)>) -> Result<OwnedFd, MountError> {
    let open = |errno| MountError::system("mount an overlay on", overlay.target.clone(), errno);
    let context = FsContext::open(c"overlay").map_err(open)?;
    let refused =
        |path: &MountPath, errno: Errno| MountError::system_with("stack", path.clone(), errno, context.messages());
    context.set(c"source", c"sociblk").map_err(open)?;
    for lower in lowers {
        context.set(c"lowerdir+", lower.name.as_c_str()).map_err(|errno| refused(&lower.path, errno))?;
    }
    if let Some((upper, work)) = upper {
        context.set(c"upperdir", upper.name.as_c_str()).map_err(|errno| refused(&upper.path, errno))?;
        context.set(c"workdir", work.name.as_c_str()).map_err(|errno| refused(&work.path, errno))?;
    }
    for (key, value) in OPTIONS {
        let key = CString::new(key).unwrap_or_default();
        match context.set(&key, value) {
            // A kernel built without the feature does not know its option, and needs none.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(refused(overlay.target, errno)),
        }
    }
    // What the kernel said about an option that it does not know is not the reason of a later failure.
    let _ = context.messages();
    let attributes = if overlay.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    context.create().and_then(|()| context.mount(attributes)).map_err(|errno| {
        MountError::system_with("mount an overlay on", overlay.target.clone(), errno, context.messages())
    })
}

/// The way of kernels before 6.8: everything in one string of one page, with names that are short for that reason.
fn options_string(lowers: &[Named], upper: Option<&(Named, Named)>) -> Result<CString, MountError> {
    let mut data = b"lowerdir=".to_vec();
    for (index, lower) in lowers.iter().enumerate() {
        if index > 0 {
            data.push(b':');
        }
        data.extend_from_slice(lower.name.as_bytes());
    }
    if let Some((upper, work)) = upper {
        for (key, dir) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
            data.extend_from_slice(key);
            data.extend_from_slice(dir.name.as_bytes());
        }
    }
    for (key, value) in OPTIONS {
        data.extend_from_slice(format!(",{key}={value}").as_bytes());
    }
    let too_long = || MountError::TooManyLowers {
        count: lowers.len(),
        limit: MOUNT_DATA_BYTES / "/proc/self/fd/100:".len(),
        remedy: ": use Linux 6.8 or later, which stacks 500".to_owned(),
    };
    if data.len() > MOUNT_DATA_BYTES {
        return Err(too_long());
    }
    CString::new(data).map_err(|_| too_long())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &str, short: bool) -> Named {
        Named::open(&path.into(), short).expect("a directory")
    }

    #[test]
    fn the_options_string_has_short_names_and_a_limit() {
        let lowers: Vec<_> = (0..200).map(|_| named("/proc", true)).collect();
        let upper = (named("/proc", true), named("/sys", true));
        let data = options_string(&lowers, Some(&upper)).expect("200 layers fit one page");
        let text = data.to_str().expect("ascii");
        assert_eq!(text.matches(':').count(), 199);
        assert!(text.starts_with("lowerdir=/proc/self/fd/"), "{text}");
        assert!(text.contains(",upperdir=/proc/self/fd/") && text.ends_with(",index=off"), "{text}");

        let many: Vec<_> = (0..300).map(|_| named("/proc", true)).collect();
        let error = options_string(&many, None).expect_err("300 layers do not");
        assert!(error.to_string().contains("6.8"), "{error}");
    }

    #[test]
    fn plain_names_are_kept_and_odd_ones_go_through_their_descriptor() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(named("/proc", false).name.as_bytes(), b"/proc");
        for odd in ["a:b", "a,b", "a\\b", &"n".repeat(250)] {
            let path = dir.path().join(odd);
            std::fs::create_dir(&path).expect("mkdir");
            let name = Named::open(&path.into(), false).expect("open").name;
            assert!(name.as_bytes().starts_with(b"/proc/self/fd/"), "{name:?}");
        }
    }
}
