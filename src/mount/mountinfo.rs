//! `/proc/self/mountinfo`: what is mounted, without touching it (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// The mount's number.
    pub id: u32,
    /// The number of the mount that it lies on.
    pub parent: u32,
    /// `st_dev` of its files: major, minor.
    pub device: (u32, u32),
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Per-mount options.
    pub options: OsString,
    /// `erofs`, `overlay`, `fuse.sociblk` ...
    pub fs_type: OsString,
    /// What was mounted, as the mounter named it.
    pub source: OsString,
    /// Options of the file system itself.
    pub super_options: OsString,
}

/// Why the list of mounts cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MountInfoError {
    /// It cannot be read.
    #[error("cannot read /proc/self/mountinfo: {source}; is /proc mounted?")]
    Read {
        /// What the kernel said.
        #[from]
        source: io::Error,
    },
    /// The mount namespace cannot be entered to look.
    #[error("cannot look into another mount namespace: {source}")]
    Enter {
        /// What the kernel said.
        source: io::Error,
    },
    /// A line is not as documented.
    #[error("line {line} of mountinfo is malformed")]
    Line {
        /// Counted from 1.
        line: usize,
    },
}

/// All mounts that this process sees, those below others first.
///
/// # Errors
/// [`MountInfoError`].
pub fn mounts() -> Result<Vec<MountEntry>, MountInfoError> {
    parse_mountinfo(&std::fs::read("/proc/thread-self/mountinfo")?)
}

/// All mounts of another mount namespace, seen by a thread that enters it for the purpose. Waits for no file system.
///
/// # Errors
/// [`MountInfoError`]; entering needs CAP_SYS_ADMIN.
pub fn mounts_in(namespace: BorrowedFd<'_>) -> Result<Vec<MountEntry>, MountInfoError> {
    let look = || {
        crate::sys::namespace::enter(namespace).map_err(|source| MountInfoError::Enter { source })?;
        mounts()
    };
    std::thread::scope(|scope| {
        let looker = std::thread::Builder::new().name("mountinfo".into()).spawn_scoped(scope, look);
        let looker = looker.map_err(|source| MountInfoError::Enter { source })?;
        looker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The mounts on `path` and beneath, in the order in which they were made: unmount in reverse. `path` must be free of
/// symbolic links.
///
/// # Errors
/// [`MountInfoError`].
pub fn mounts_under(path: &Path) -> Result<Vec<MountEntry>, MountInfoError> {
    let mut all = mounts()?;
    all.retain(|entry| entry.mount_point.starts_with(path));
    Ok(all)
}

/// Whether something is mounted exactly on `path`, which must be free of symbolic links. Touches nothing there: a dead
/// or waiting file system does not block the caller.
///
/// # Errors
/// [`MountInfoError`].
pub fn is_mountpoint(path: &Path) -> Result<bool, MountInfoError> {
    Ok(mounts()?.iter().any(|entry| entry.mount_point == path))
}

/// Reads the text of a mountinfo file.
///
/// # Errors
/// [`MountInfoError::Line`] for the first line that is not as documented.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountEntry>, MountInfoError> {
    text.split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| parse_line(line).ok_or(MountInfoError::Line { line: index + 1 }))
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(device.get(..colon)?)?, number(device.get(colon + 1..)?)?);
    let root = unescape(fields.next()?).into();
    let mount_point = unescape(fields.next()?).into();
    let options = unescape(fields.next()?);
    // Optional fields follow, up to a lone dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    // Since Linux 2.6.27 always there, but a file system may print nothing.
    let super_options = unescape(fields.next().unwrap_or_default());
    Some(MountEntry { id, parent, device, root, mount_point, options, fs_type, source, super_options })
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Undoes the kernel's `mangle`: space, tab, newline, `\` and `#` are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    /// What the kernel's `seq_path` and `mangle` do, the slow way.
    fn escape(plain: &[u8]) -> Vec<u8> {
        let mut text = String::new();
        let mut out = Vec::new();
        for byte in plain {
            if b" \t\n\\#".contains(byte) {
                text.clear();
                write!(text, "\\{byte:03o}").expect("writing to a string");
                out.extend_from_slice(text.as_bytes());
            } else {
                out.push(*byte);
            }
        }
        out
    }

    fn field() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(b' '), Just(b'\\'), Just(b'\n'), 1..=255_u8], 1..40)
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_reads_back(
            mount_point in field(), source in field(), optional in 0..3_usize, id: u32, major: u32,
        ) {
            let mut line = format!("{id} 1 {major}:7 / ").into_bytes();
            line.extend(escape(&mount_point));
            line.extend_from_slice(b" ro,relatime");
            for peer in 0..optional {
                line.extend_from_slice(format!(" shared:{peer}").as_bytes());
            }
            line.extend_from_slice(b" - erofs ");
            line.extend(escape(&source));
            line.extend_from_slice(b" ro,acl\n");
            let entries = parse_mountinfo(&line).expect("a line as the kernel writes it");
            prop_assert_eq!(entries.len(), 1);
            prop_assert_eq!(entries[0].id, id);
            prop_assert_eq!(entries[0].device, (major, 7));
            prop_assert_eq!(entries[0].mount_point.as_os_str().as_bytes(), &mount_point[..]);
            prop_assert_eq!(entries[0].source.as_bytes(), &source[..]);
            prop_assert_eq!(entries[0].fs_type.as_bytes(), b"erofs");
        }

        #[test]
        fn no_bytes_make_it_panic(text: Vec<u8>) {
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            if let Ok(entries) = parse_mountinfo(&text) {
                prop_assert_eq!(entries.len(), lines);
            }
        }
    }

    #[test]
    fn malformed_lines_are_named_by_number() {
        let good = "22 27 0:21 / /proc rw shared:5 - proc proc rw\n";
        for bad in ["22", "22 27 0:21 / /proc rw shared:5", "x 27 0:21 / /p rw - a b c", "1 2 021 / /p rw - a b c"] {
            let text = format!("{good}{bad}\n");
            let Err(MountInfoError::Line { line }) = parse_mountinfo(text.as_bytes()) else {
                panic!("{bad:?} must not parse")
            };
            assert_eq!(line, 2, "{bad:?}");
        }
    }

    #[test]
    fn this_machine_has_a_root_and_a_proc() {
        let all = mounts().expect("mountinfo");
        assert!(is_mountpoint(Path::new("/proc")).expect("mountinfo"));
        assert!(all.iter().any(|entry| entry.mount_point == Path::new("/")));
        assert!(!is_mountpoint(Path::new("/proc/self")).expect("mountinfo"));
        let under = mounts_under(Path::new("/proc")).expect("mountinfo");
        assert!(under.iter().any(|entry| entry.fs_type == "proc"));
        assert!(under.iter().all(|entry| entry.mount_point.starts_with("/proc")));
    }
}
