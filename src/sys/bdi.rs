//! What file systems read from, as the kernel sees it (a "backing device", Linux `Documentation/ABI/testing/sysfs-class-bdi`),
//! and how far it reads ahead there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

const CLASS: &str = "/sys/class/bdi";

/// How an EROFS that is mounted from a file calls its backing device; what follows is a number.
const EROFS_PREFIX: &str = "erofs-";

/// A backing device. One that is gone is found out by the error of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bdi {
    /// That of a block device, or of a file system that calls its own after its device number, as FUSE does.
    Device {
        /// Major number; 0: no block device.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// That of an EROFS that is mounted from a file. The kernel numbers them as they come, and never gives a number twice
    /// (Linux `fs/super.c`, `super_setup_bdi`).
    ErofsFile {
        /// The number.
        number: u64,
    },
}

impl Bdi {
    /// Has files of it that are opened from now on read ahead by up to `len_bytes` (rounded down to KiB).
    ///
    /// # Errors
    /// It is gone, or /sys cannot be written to.
    pub fn set_read_ahead(self, len_bytes: u32) -> io::Result<()> {
        let name = match self {
            Self::Device { major, minor } => format!("{major}:{minor}"),
            Self::ErofsFile { number } => format!("{EROFS_PREFIX}{number}"),
        };
        fs::write(format!("{CLASS}/{name}/read_ahead_kb"), (len_bytes / 1024).to_string())
    }
}

/// Numbers of all [`Bdi::ErofsFile`] there are, in the order of their mounts. None where the kernel cannot mount EROFS from
/// files, or /sys cannot be read.
#[must_use]
pub fn erofs_numbers() -> BTreeSet<u64> {
    numbers_in(Path::new(CLASS))
}

fn numbers_in(class: &Path) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(class) else { return BTreeSet::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_prefix(EROFS_PREFIX)?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_from_names_alone_and_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["erofs-12", "erofs-3", "erofs-x", "erofs-", "0:45", "259:0", "fuse-7"] {
            fs::create_dir(dir.path().join(name)).expect("directory");
        }
        assert_eq!(numbers_in(dir.path()).into_iter().collect::<Vec<_>>(), [3, 12]);
        assert!(numbers_in(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn what_is_gone_is_an_error() {
        for gone in [Bdi::ErofsFile { number: u64::MAX }, Bdi::Device { major: 4095, minor: 1_048_575 }] {
            let error = gone.set_read_ahead(1 << 20).expect_err("not there");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{gone:?}");
        }
    }
}
