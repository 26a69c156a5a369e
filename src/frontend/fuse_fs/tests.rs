//! Requests as bytes, answers as bytes: what the kernel sends, and what it never would.

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::answers::{Answer, answer};
use super::*;
use crate::sys::fuse::{AttrOut, Dirent, EntryOut, GetxattrOut, StatfsOut, opcode};

const FIRST: u64 = 5 << 40;
const DIR: u64 = 36;
const FILE: u64 = 40;
const LINK: u64 = 50;
const NAMES: [(&[u8], u64, u8); 4] = [
    (b".", DIR, libc::DT_DIR),
    (b"..", DIR, libc::DT_DIR),
    (b"file", FILE, libc::DT_REG),
    (b"link", LINK, libc::DT_LNK),
];

/// A directory with a file and a link.
struct Small;

impl FileTree for Small {
    fn root(&self) -> u64 {
        DIR
    }

    fn number_limit(&self) -> u64 {
        100
    }

    fn facts(&self, inode: u64) -> Option<FileFacts> {
        let (mode, size_bytes) = match inode {
            DIR => (libc::S_IFDIR | 0o755, 60),
            FILE => (libc::S_IFREG | 0o640, 5000),
            LINK => (libc::S_IFLNK | 0o777, 4),
            _ => return None,
        };
        let data_start = (inode == FILE).then_some(DeviceOffset::new(8192));
        Some(FileFacts { mode, uid: 7, gid: 8, nlink: 1, size_bytes, device: 0, mtime: (-2, 9), data_start })
    }

    fn child(&self, dir: u64, name: &[u8]) -> Option<u64> {
        NAMES.iter().find(|(known, ..)| dir == DIR && *known == name).map(|(_, inode, _)| *inode)
    }

    fn list(&self, dir: u64, from: u64, each: &mut dyn FnMut(&FileName<'_>) -> bool) {
        for (at, (name, inode, kind)) in NAMES.iter().enumerate().skip(usize::try_from(from).expect("small")) {
            let next = at as u64 + 1;
            if dir != DIR || !each(&FileName { name, inode: *inode, kind: *kind, next }) {
                return;
            }
        }
    }

    fn target(&self, inode: u64) -> Option<&[u8]> {
        (inode == LINK).then_some(b"file")
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Option<&[u8]> {
        (inode == FILE && name == b"user.a").then_some(b"value")
    }

    fn xattr_names(&self, inode: u64, each: &mut dyn FnMut(&[u8], &[u8])) {
        if inode == FILE {
            each(b"user.", b"a");
            each(b"trusted.", b"b");
        }
    }

    fn totals(&self) -> Totals {
        Totals { block_bytes: 4096, blocks: 11, inodes: 3 }
    }
}

fn ask(opcode: u32, inode: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
    match answer(&Small, opcode, FIRST, inode, body) {
        Answer::Bytes(bytes) => Ok(bytes.to_vec()),
        Answer::Made(bytes) => Ok(bytes),
        Answer::Error(errno) => Err(errno),
    }
}

fn read_in(offset: u64, size_bytes: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size_bytes.to_ne_bytes());
    body
}

fn xattr_in(size_bytes: u32, name: &[u8]) -> Vec<u8> {
    [&size_bytes.to_ne_bytes()[..], &[0; 4], name].concat()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[test]
fn a_look_up_tells_all_and_nothing_is_remembered_too() {
    let found = ask(opcode::LOOKUP, DIR, b"file\0").expect("found");
    assert_eq!(found.len(), size_of::<EntryOut>());
    // Node, attributes' inode without the connection's own part, size, blocks of 512 in whole 4 KiB.
    assert_eq!(
        [u64_at(&found, 0), u64_at(&found, 40), u64_at(&found, 48), u64_at(&found, 56)],
        [FIRST + FILE, FILE, 5000, 16]
    );
    // Access, modification and change time.
    assert_eq!([u64_at(&found, 64), u64_at(&found, 72), u64_at(&found, 80)], [u64::MAX - 1; 3]);
    assert_eq!([u32_at(&found, 88), u32_at(&found, 92), u32_at(&found, 96)], [9; 3]);
    assert_eq!([u32_at(&found, 100), u32_at(&found, 104)], [libc::S_IFREG | 0o640, 1]);
    assert_eq!([u32_at(&found, 108), u32_at(&found, 112)], [7, 8]);
    let nothing = ask(opcode::LOOKUP, DIR, b"nothing\0").expect("an answer");
    assert!(u64_at(&nothing, 0) == 0 && u64_at(&nothing, 16) > 1_000_000);
    let attr = ask(opcode::GETATTR, FILE, &[]).expect("attributes");
    assert_eq!(attr.len(), size_of::<AttrOut>());
    assert_eq!(attr[16..], found[40..]);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    for (opcode, inode, body, want) in [
        (opcode::LOOKUP, FILE, &b"a\0"[..], Errno::NOTDIR),
        (opcode::LOOKUP, DIR, b"no end", Errno::INVAL),
        (opcode::LOOKUP, DIR, b"\0", Errno::INVAL),
        (opcode::LOOKUP, DIR, b"", Errno::INVAL),
        (opcode::LOOKUP, 99, b"a\0", Errno::STALE),
        (opcode::GETATTR, u64::MAX, b"", Errno::STALE),
        (opcode::READLINK, FILE, b"", Errno::INVAL),
        (opcode::READDIR, FILE, &read_in(0, 4096), Errno::NOTDIR),
        (opcode::READDIR, DIR, &read_in(0, 4096)[..39], Errno::INVAL),
        (opcode::READDIRPLUS, DIR, b"", Errno::INVAL),
        (opcode::GETXATTR, FILE, &xattr_in(0, b"user.a")[..7], Errno::INVAL),
        (opcode::GETXATTR, FILE, &xattr_in(9, b"user.a"), Errno::INVAL),
        (opcode::GETXATTR, FILE, &xattr_in(9, b"user.b\0"), Errno::NODATA),
        (opcode::GETXATTR, FILE, &xattr_in(4, b"user.a\0"), Errno::RANGE),
        (opcode::LISTXATTR, FILE, &xattr_in(16, b""), Errno::RANGE),
        (opcode::LISTXATTR, FILE, b"", Errno::INVAL),
        (opcode::IOCTL, FILE, b"", Errno::NOTTY),
        (opcode::OPEN, FILE, b"", Errno::NOSYS),
        (opcode::OPENDIR, DIR, b"", Errno::NOSYS),
        (opcode::FLUSH, FILE, b"", Errno::NOSYS),
        (4711, FILE, b"", Errno::NOSYS),
    ] {
        assert_eq!(ask(opcode, inode, body), Err(want), "request {opcode} about {inode}");
    }
}

#[test]
fn attributes_links_and_totals_come_in_full() {
    assert_eq!(ask(opcode::READLINK, LINK, b"").as_deref(), Ok(&b"file"[..]));
    let mut length = GetxattrOut::new_zeroed();
    length.size_bytes = 5;
    assert_eq!(ask(opcode::GETXATTR, FILE, &xattr_in(0, b"user.a\0")).as_deref(), Ok(length.as_bytes()));
    assert_eq!(ask(opcode::GETXATTR, FILE, &xattr_in(5, b"user.a\0")).as_deref(), Ok(&b"value"[..]));
    assert_eq!(ask(opcode::LISTXATTR, FILE, &xattr_in(17, b"")).as_deref(), Ok(&b"user.a\0trusted.b\0"[..]));
    length.size_bytes = 17;
    assert_eq!(ask(opcode::LISTXATTR, FILE, &xattr_in(0, b"")).as_deref(), Ok(length.as_bytes()));
    assert_eq!(ask(opcode::LISTXATTR, DIR, &xattr_in(17, b"")).as_deref(), Ok(&b""[..]));
    let totals = ask(opcode::STATFS, LINK, b"").expect("totals");
    assert_eq!(totals.len(), size_of::<StatfsOut>());
    assert_eq!([u64_at(&totals, 0), u64_at(&totals, 8), u64_at(&totals, 32)], [11, 0, u64::MAX - 3]);
}

/// Names and next offsets of a listing.
fn names(bytes: &[u8], plus: bool) -> Vec<(Vec<u8>, u64)> {
    let ahead = if plus { size_of::<EntryOut>() } else { 0 };
    let (mut at, mut out) = (0, Vec::new());
    while at < bytes.len() {
        let entry = &bytes[at + ahead..];
        let len = u32_at(entry, 16) as usize;
        let name = entry[size_of::<Dirent>()..][..len].to_vec();
        if plus {
            let dots = name.starts_with(b".");
            assert_eq!(u64_at(bytes, at) == 0, dots, "the kernel knows the dots");
            assert!(dots || u64_at(bytes, at) & 0xff_ffff_ffff == u64_at(entry, 0));
        }
        out.push((name, u64_at(entry, 8)));
        at += (ahead + size_of::<Dirent>() + len).next_multiple_of(8);
    }
    assert_eq!(at, bytes.len());
    out
}

#[test]
fn a_directory_is_listed_whole_however_small_the_pieces() {
    let whole: Vec<Vec<u8>> = NAMES.iter().map(|(name, ..)| name.to_vec()).collect();
    for plus in [false, true] {
        let opcode = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        for room in [32, 160, 200, 400, 4096, u32::MAX] {
            let (mut seen, mut from) = (Vec::new(), 0);
            loop {
                let piece = ask(opcode, DIR, &read_in(from, room)).expect("a listing");
                assert!(piece.len() <= room as usize);
                let piece = names(&piece, plus);
                let Some((_, next)) = piece.last() else { break };
                from = *next;
                seen.extend(piece.into_iter().map(|(name, _)| name));
            }
            // A room in which nothing fits is the end, as for every file system.
            let want = if plus && room < 160 { Vec::new() } else { whole.clone() };
            assert_eq!(seen, want, "plus {plus}, room {room}");
        }
    }
}

#[test]
fn a_tree_takes_its_numbers_and_no_other() {
    let entry = super::attributes::entry(&Small, FIRST, FILE).expect("an entry");
    assert_eq!((entry.node, entry.attr.inode), (FIRST + FILE, FILE));
    assert!(super::attributes::entry(&Small, FIRST, 99).is_none());
    assert!(super::attributes::entry(&Small, u64::MAX, FILE).is_none());
}
