//! What the test layers do not have, seen through the kernel: directories of many blocks, links as long as Linux
//! allows, attributes that are shared, many or large, access control lists, deep paths.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sociblk::erofs::BlockSize;
use sociblk::spans::{EntryKind, ModTime, TocEntry};
use sociblk::tree::{NodeView, Tree, TreeOptions};
use sociblk::units::{LayerOffset, LayerRange};

use crate::support::{Mount, Scratch, missing, skipped, write_tree};

const LAYER_BYTES: usize = 64 << 10;

/// An entry with attributes that no default has.
pub fn entry(name: impl Into<Vec<u8>>, kind: EntryKind) -> TocEntry<'static> {
    TocEntry {
        name: Cow::Owned(name.into()),
        kind,
        data: LayerRange::new(LayerOffset::ZERO, LayerOffset::ZERO).expect("ordered"),
        linkname: Cow::Borrowed(b""),
        mode: 0o6751,
        uid: 70_000,
        gid: u32::MAX - 1,
        uname: Cow::Borrowed(b""),
        gname: Cow::Borrowed(b""),
        mtime: ModTime { secs: -3, nanos: 7 },
        devmajor: 4095,
        devminor: (1 << 20) - 1,
        pax: vec![],
    }
}

fn symlink(name: String, target_bytes: usize) -> TocEntry<'static> {
    TocEntry { linkname: Cow::Owned(vec![b't'; target_bytes]), ..entry(name, EntryKind::Symlink) }
}

fn with_xattr(mut entry: TocEntry<'static>, name: &str, value: Vec<u8>) -> TocEntry<'static> {
    entry.pax.push((Cow::Owned(format!("SCHILY.xattr.{name}").into_bytes()), Cow::Owned(value)));
    entry
}

pub fn hard_tree(tar: &[u8]) -> Tree {
    let options = TreeOptions::new(LayerOffset::new(tar.len() as u64));
    Tree::build(hard_entries().into_iter().map(Ok::<_, Infallible>), options).expect("a tree")
}

/// The layer whose bytes the files of [`hard_tree`] have.
pub fn hard_layer() -> Vec<u8> {
    (0..LAYER_BYTES - 77).map(|i| (i * 31 % 251) as u8).collect()
}

fn hard_entries() -> Vec<TocEntry<'static>> {
    let mut out = vec![];
    // A directory of many blocks, names that sort before `.` among them, a hole in no place.
    out.extend((0..20_000).map(|i| entry(format!("many/{i}"), EntryKind::Fifo)));
    out.extend(["!", "+plus", "-", "...", ".hidden", "~"].map(|n| entry(format!("many/{n}"), EntryKind::Char)));
    // Directories whose last block ends near a block's end, with inodes of all sizes around.
    for count in 1..60 {
        out.extend((0..count).map(|i| entry(format!("sizes/{count}/{i}-{}", "x".repeat(60)), EntryKind::Block)));
    }
    for target in [1, 59, 60, 447, 448, 449, 511, 512, 513, 1023, 1024, 2000, 4031, 4032, 4033, 4094, 4095] {
        out.push(symlink(format!("links/{target}"), target));
        out.push(with_xattr(symlink(format!("links/x{target}"), target), "trusted.on-link", vec![7; 33]));
    }
    // Revision 2 with one bit; the kernel refuses to read others.
    let capability = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
    for i in 0..300 {
        let file = entry(format!("xattrs/shared/{i}"), EntryKind::Reg);
        out.push(with_xattr(
            with_xattr(file, "security.capability", capability.clone()),
            "user.own",
            i.to_string().into(),
        ));
    }
    let mut many = entry("xattrs/many", EntryKind::Dir);
    for i in 0..500 {
        many = with_xattr(many, &format!("user.number-{i}"), vec![b'v'; i]);
    }
    out.push(many);
    out.push(with_xattr(entry("xattrs/large", EntryKind::Reg), "user.large", vec![b'l'; 65_535]));
    let acl =
        [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 5]
            .into_iter()
            .chain([0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255]);
    let acl: Vec<u8> = acl.collect();
    let dir = with_xattr(entry("xattrs/acl", EntryKind::Dir), "system.posix_acl_access", acl.clone());
    out.push(with_xattr(dir, "system.posix_acl_default", acl));
    out.push(entry("deep/".repeat(600), EntryKind::Dir));
    // Files behind each other as in a tar, one of them to the layer's very end.
    let mut at = 512;
    for (i, size) in [1_usize, 511, 512, 513, 4095, 4096, 4097, 20_000].into_iter().enumerate() {
        let mut file = entry(format!("files/{i}"), EntryKind::Reg);
        file.data = LayerRange::from_len(LayerOffset::new(at as u64), size as u64).expect("range");
        out.push(file);
        at = (at + size).next_multiple_of(512) + 512;
    }
    let mut last = entry("files/last", EntryKind::Reg);
    last.data = LayerRange::new(LayerOffset::new(at as u64), LayerOffset::new(LAYER_BYTES as u64 - 77)).expect("range");
    out.push(last);
    out
}

fn lists(path: &Path) -> Vec<String> {
    let mut names = vec![0_u8; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("llistxattr");
    let names = names[..len].split(|&b| b == 0).filter(|n| !n.is_empty());
    let mut names: Vec<String> = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    names.sort();
    names
}

fn check(path: &Path, node: &NodeView<'_>, tar: &[u8]) {
    let shown = path.display();
    let stat = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{shown}: {e}"));
    assert_eq!(stat.mode() & 0o7777, u32::from(node.mode()), "{shown}");
    assert_eq!((stat.uid(), stat.gid(), stat.nlink()), (node.uid(), node.gid(), u64::from(node.nlink())), "{shown}");
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (node.mtime().secs, i64::from(node.mtime().nanos)), "{shown}");
    if let Some((major, minor)) = node.device() {
        assert_eq!((rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev())), (major, minor), "{shown}");
    }
    if let Some(target) = node.target() {
        assert_eq!(fs::read_link(path).expect("readlink").as_os_str().as_bytes(), target, "{shown}");
    }
    if let Some(data) = node.data() {
        let want = &tar[data.start().get() as usize..data.end().get() as usize];
        assert!(fs::read(path).expect("read") == want, "{shown}");
    }
    let want: Vec<String> = node.xattrs().map(|x| String::from_utf8_lossy(&x.name).into_owned()).collect();
    assert_eq!(lists(path), want, "{shown}");
    for xattr in node.xattrs() {
        let mut value = vec![0; 1 << 16];
        let name = CString::new(&*xattr.name).expect("no zero byte");
        let len =
            rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap_or_else(|e| panic!("{shown}: {name:?}: {e}"));
        assert_eq!(&value[..len], &*xattr.value, "{shown}: {name:?}");
    }
    let mut none = [0; 8];
    let absent = rustix::fs::lgetxattr(path, c"trusted.absent", &mut none[..]);
    assert_eq!(absent, Err(rustix::io::Errno::NODATA), "{shown}");
    if node.data().is_none() && node.target().is_none() && node.device().is_none() && stat.is_dir() {
        let names = fs::read_dir(path).expect("readdir").map(|e| e.expect("entry").file_name());
        let names: Vec<_> = names.map(|n| n.as_bytes().to_vec()).collect();
        let want: Vec<_> = node.children().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(names, want, "{shown}: the kernel lists in the order of the image");
    }
}

#[test]
fn hard_cases_come_through_the_kernel_as_they_were() {
    let name = "hard_cases_come_through_the_kernel_as_they_were";
    if let Some(what) = missing("erofs") {
        return skipped(name, &what);
    }
    let tar = hard_layer();
    let tree = hard_tree(&tar);
    let scratch = Scratch::new();
    for form in [BlockSize::B4096, BlockSize::B512] {
        let image = scratch.path("image");
        write_tree(&tree, &tar, form, &image);
        let mount = Mount::erofs(&image, &scratch.dir("mnt"));
        for (path, node) in tree.walk() {
            let inside = std::ffi::OsStr::from_bytes(&path[1..]);
            check(&mount.dir().join(inside), &node, &tar);
        }
    }
}
