//! Whether a file is still the one whose digest was computed, told by what the system says of it and without reading it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use crate::units::Digest;

/// What the system said of a file before its digest was found right. Who changes a file's bytes changes its time of change
/// (inode(7)), but for three cases: writing to the disk below it; within the few milliseconds of one tick of the kernel's clock
/// (none but we write to these files, and we never change one); and bytes that the disk refused when they were to be written
/// back, which a daemon that goes on does not see either. Holds for one boot: after a crash a file may have its size and
/// times, and not its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seal {
    /// First half of the sha256 of the boot's identifier (random(4)).
    boot: u64,
    device: u64,
    inode: u64,
    len_bytes: u64,
    modified: [i64; 2],
    changed: [i64; 2],
}

impl Seal {
    /// Bytes of the saved form.
    pub const BYTES: usize = 64;

    /// Of a file as it is now; `None` when the system does not say.
    pub fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        Some(Self {
            boot: boot()?,
            device: metadata.dev(),
            inode: metadata.ino(),
            len_bytes: metadata.len(),
            modified: [metadata.mtime(), metadata.mtime_nsec()],
            changed: [metadata.ctime(), metadata.ctime_nsec()],
        })
    }

    /// Whether the file is the one that was sealed, unchanged.
    pub fn fits(&self, file: &File) -> bool {
        Self::of(file) == Some(*self)
    }

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [modified_s, modified_ns] = self.modified.map(i64::cast_unsigned);
        let [changed_s, changed_ns] = self.changed.map(i64::cast_unsigned);
        let numbers =
            [self.boot, self.device, self.inode, self.len_bytes, modified_s, modified_ns, changed_s, changed_ns];
        let mut bytes = [0; Self::BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (numbers, _) = bytes.as_chunks::<8>();
        let number = |at: usize| numbers.get(at).map_or(0, |number| u64::from_le_bytes(*number));
        let time = |at: usize| [number(at).cast_signed(), number(at + 1).cast_signed()];
        Self {
            boot: number(0),
            device: number(1),
            inode: number(2),
            len_bytes: number(3),
            modified: time(4),
            changed: time(6),
        }
    }
}

/// Read once: a takeover asks for it several times a layer.
fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let [a, b, c, d, e, f, g, h, ..] = *Digest::of(&id).as_bytes();
        Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_seal_fits_the_very_file_and_no_changed_one() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("a");
        std::fs::write(&path, b"what it was").expect("written");
        let open = || File::options().read(true).write(true).open(&path).expect("opens");
        let seal = Seal::of(&open()).expect("sealed");
        assert!(seal.fits(&open()));
        assert_eq!(Seal::from_bytes(&seal.to_bytes()), seal);

        // Another file with the same bytes; another length; another time.
        std::fs::copy(&path, dir.path().join("b")).expect("copied");
        assert!(!seal.fits(&File::open(dir.path().join("b")).expect("opens")));
        open().write_all_at(b"longer than it was", 0).expect("written");
        assert!(!seal.fits(&open()));
        std::fs::write(&path, b"what it was").expect("written");
        let seal = Seal::of(&open()).expect("sealed");
        open().set_modified(SystemTime::now() - Duration::from_secs(60)).expect("a time");
        assert!(!seal.fits(&open()));

        // Another boot.
        let seal = Seal::of(&open()).expect("sealed");
        assert!(!Seal { boot: seal.boot ^ 1, ..seal }.fits(&open()));
    }
}
