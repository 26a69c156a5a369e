//! The same layers over fuse-image and fuse-fs, side by side: every fact that a process can learn of a file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek, statvfs};
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::corpus::corpus;
use crate::hostile::{put_indexed, ztoc_of};
use crate::layers::{Layer, Maker, as_image, noise, three_layers};
use crate::support::{Host, Reading, utf8, wait_until};

/// What is known of one path.
#[derive(Clone, PartialEq, Debug)]
struct Facts {
    stat: [u64; 8],
    times: [i64; 6],
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Option<PathBuf>,
    content: Option<sociblk::units::Digest>,
    /// Where the first hole begins.
    hole: Option<u64>,
    /// The type that the directory tells.
    listed_as: [bool; 6],
    /// Paths of the same inode, told by the first of them.
    inode: String,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = llistxattr(path, &mut names[..]).expect("llistxattr");
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len = lgetxattr(path, name, &mut value[..]).expect("lgetxattr");
        value.truncate(len);
        if len > 1 {
            assert_eq!(lgetxattr(path, name, &mut vec![0_u8; len - 1][..]), Err(rustix::io::Errno::RANGE));
        }
        value
    };
    assert_eq!(lgetxattr(path, "user.not-there", &mut [0_u8; 8][..]), Err(rustix::io::Errno::NODATA));
    names.map(|name| (name.to_vec(), value(name))).collect()
}

fn look(root: &Path) -> BTreeMap<String, Facts> {
    let (mut all, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    look_at(root, "/", [false; 6], &mut all, &mut inodes);
    all
}

fn look_at(
    path: &Path,
    name: &str,
    listed_as: [bool; 6],
    all: &mut BTreeMap<String, Facts>,
    inodes: &mut BTreeMap<(u64, u64), String>,
) {
    let m = fs::symlink_metadata(path).expect("lstat");
    let content = m.is_file().then(|| sociblk::units::Digest::of(&fs::read(path).expect("read")));
    let hole = m.is_file().then(|| {
        let file = fs::File::open(path).expect("open");
        seek(&file, SeekFrom::Hole(0)).unwrap_or(0)
    });
    let facts = Facts {
        stat: [m.mode().into(), m.uid().into(), m.gid().into(), m.nlink(), m.size(), m.rdev(), m.blocks(), m.blksize()],
        times: [m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec(), m.ctime(), m.ctime_nsec()],
        xattrs: xattrs(path),
        target: m.is_symlink().then(|| fs::read_link(path).expect("readlink")),
        content,
        hole,
        listed_as,
        inode: inodes.entry((m.dev(), m.ino())).or_insert_with(|| name.to_owned()).clone(),
    };
    all.insert(name.to_owned(), facts);
    if m.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).expect("list").map(|e| e.expect("entry")).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            assert_ne!(entry.ino(), 0, "readdir(3) hides it");
            let t = entry.file_type().expect("type");
            let kind = [t.is_file(), t.is_dir(), t.is_symlink(), t.is_char_device(), t.is_block_device(), t.is_fifo()];
            let name = format!("{}/{}", name.trim_end_matches('/'), entry.file_name().display());
            look_at(&entry.path(), &name, kind, all, inodes);
        }
    }
}

fn assert_alike(one: &Path, other: &Path) {
    let (one, other) = (look(one), look(other));
    for name in one.keys().chain(other.keys()) {
        assert_eq!(one.get(name), other.get(name), "{name}");
    }
}

/// Where the layers themselves are mounted, by their frontends.
fn own_mounts(host: &Host, frontend: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(host.root().join("mnt")).expect("mnt").map(|e| e.expect("entry").path());
    let mut own: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == frontend)).collect();
    own.sort();
    own
}

/// Mounts over both, one daemon for both; compares the layers and what is merged of them.
pub fn compare(host: &Host, image: &str) {
    let (files, report) = host.mount(image, "files");
    assert_eq!(report["frontend"], "fuse-fs");
    let images = host.dir("images");
    host.ok(&["mount", image, utf8(&images), "--frontend", "fuse-image"]);
    assert_alike(&files, &images);
    let (by_file, by_image) = (own_mounts(host, "fuse-fs"), own_mounts(host, "fuse-image"));
    assert!(!by_file.is_empty() && by_file.len() == by_image.len());
    for (by_file, by_image) in by_file.iter().zip(&by_image) {
        assert_alike(by_file, by_image);
        let (one, other) = (statvfs(by_file).expect("statvfs"), statvfs(by_image).expect("statvfs"));
        let facts = |s: &rustix::fs::StatVfs| {
            [s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax]
        };
        assert_eq!(facts(&one), facts(&other));
    }
    host.umount(&files);
    host.umount(&images);
    host.assert_clean();
}

#[test]
fn every_layer_looks_the_same() {
    let Some(host) = Host::new("every_layer_looks_the_same") else { return };
    for layer in corpus() {
        compare(&host, &format!("layer:{}", layer.display()));
    }
}

#[test]
fn merged_layers_look_the_same() {
    let Some(host) = Host::new("merged_layers_look_the_same") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    compare(&host, &format!("{}/app:1", registry.host()));
}

/// A directory of [`NAMES`] empty files, and forty `file-N` of [`readable`] bytes.
pub fn names_beside_files() -> Layer {
    let mut maker = Maker::new().dir("many", 0o755, 0);
    for number in 0..NAMES {
        maker = maker.file(&format!("many/{number:05}-{}", "x".repeat(number % 200)), b"");
    }
    for number in 0..40 {
        maker = maker.file(&format!("file-{number}"), &readable(number));
    }
    maker.end()
}

/// How many names [`names_beside_files`] has in its directory.
const NAMES: usize = 3000;

/// What `file-NUMBER` of it holds.
pub fn readable(number: u64) -> Vec<u8> {
    noise(number, 300_000)
}

/// Lists the names and looks at each file.
pub fn all_names_come(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir.join("many")).expect("list").map(|e| e.expect("entry")).collect();
    assert_eq!(names.len(), NAMES);
    assert!(names.iter().all(|entry| entry.metadata().expect("stat").len() == 0));
}

/// Readers of `file-0`, `file-1`, ... wait until the registry is well again, and then have their bytes.
pub fn all_are_answered(registry: &TestRegistry, waiting: Vec<Reading>) {
    assert!(waiting.iter().all(Reading::is_waiting));
    registry.heal();
    for (number, reading) in waiting.into_iter().enumerate() {
        assert!(reading.end().expect("read") == readable(number as u64));
    }
}

#[test]
fn names_and_attributes_need_nobody_who_waits_for_bytes() {
    let Some(host) = Host::new("names_and_attributes") else { return };
    let (registry, layer) = (TestRegistry::start(), names_beside_files());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    // More readers than there are threads.
    let waiting: Vec<Reading> = (0..40).map(|number| Reading::of(dir.join(format!("file-{number}")))).collect();
    wait_until("readers wait", || host.waiting_readers() >= 20);
    all_names_come(&dir);
    assert!(fs::symlink_metadata(dir.join("many/no-such-name")).is_err());
    all_are_answered(&registry, waiting);
    host.umount(&dir);
    host.assert_clean();
}

#[test]
fn it_is_never_chosen_unasked() {
    let Some(host) = Host::new("never_chosen") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    let (image, dir) = (format!("{}/app:1", registry.host()), host.dir("a"));
    host.mount(&image, "files");
    let report = host.ok(&["mount", &image, utf8(&dir), "--json"]).json();
    assert_ne!(report["frontend"], "fuse-fs");
}
