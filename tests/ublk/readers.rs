//! Ways to read a block device and compare it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::image::{BROKEN, Image};

const ALIGN: usize = 4096;

pub fn buffered(path: &Path) -> File {
    File::open(path).expect("open the device")
}

pub fn direct(path: &Path) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("open the device for direct I/O")
}

/// Reads `range` with one call into aligned memory.
pub fn read(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let len = (range.end - range.start) as usize;
    let mut memory = vec![0xaa_u8; len + ALIGN];
    let skip = memory.as_ptr().align_offset(ALIGN);
    file.read_exact_at(&mut memory[skip..skip + len], range.start)?;
    Ok(memory[skip..skip + len].to_vec())
}

/// Device positions that a reader may not get. A buffered one fails by folio, up to a readahead window around.
fn unreadable(image: &Image, file: &File) -> Range<u64> {
    let broken = image.device_range_around(&BROKEN);
    let flags = rustix::fs::fcntl_getfl(file).expect("flags");
    let margin = if flags.contains(rustix::fs::OFlags::DIRECT) { 0 } else { 1 << 20 };
    broken.start.saturating_sub(margin)..broken.end + margin
}

/// Reads all but the broken part in steps of `step` bytes and compares.
pub fn compare_all(image: &Image, file: &File, step: u64) {
    let broken = unreadable(image, file);
    let mut at = 0;
    while at < image.size() {
        let end = (at + step).min(image.size());
        if end <= broken.start || broken.end <= at {
            let got = read(file, at..end).unwrap_or_else(|error| panic!("read {at}..{end}: {error}"));
            assert!(got == image.expected(at..end), "wrong bytes in {at}..{end}");
        }
        at = end;
    }
}

/// Compares `count` random ranges, 512-byte aligned.
pub fn compare_random(image: &Image, file: &File, seed: u64, count: u32) {
    let broken = unreadable(image, file);
    let mut n = seed | 1;
    for _ in 0..count {
        n ^= n << 13;
        n ^= n >> 7;
        n ^= n << 17;
        let start = n % (image.size() / 512) * 512;
        let end = (start + 512 * (1 + (n >> 32) % 512)).min(image.size());
        if start < broken.end && broken.start < end {
            continue;
        }
        let got = read(file, start..end).unwrap_or_else(|error| panic!("read {start}..{end}: {error}"));
        assert!(got == image.expected(start..end), "wrong bytes in {start}..{end}");
    }
}
