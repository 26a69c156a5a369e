//! A reader of EROFS images that shares no code with the writer: offsets by hand, from the kernel's description, and
//! a check for everything that the kernel relies on. Panics on whatever is not right.

use std::collections::BTreeMap;

use xxhash_rust::xxh32::xxh32;

/// What `stat`, `readlink` and `getxattr` would say of one inode.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    pub nid: u64,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub nlink: u32,
    pub size: u64,
    /// `i_u`: first block or device number.
    pub u: u32,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub struct Reader<'a> {
    bytes: &'a [u8],
    block: usize,
    xattr_at: usize,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(b[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"))
}

/// CRC-32C, bit by bit, as the kernel computes it: seeded, not complemented at the end.
fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    crc
}

impl<'a> Reader<'a> {
    /// Checks the superblock; gives the reader, the root's number, the inode count and the block count.
    pub fn open(bytes: &'a [u8]) -> (Self, u64, u64, u32) {
        assert!(bytes[..1024].iter().all(|&b| b == 0), "the boot block is not empty");
        let sb = &bytes[1024..1152];
        assert_eq!(u32_at(sb, 0), 0xE0F5_E1E2);
        let block = 1 << sb[12];
        // The kernel seeds with the state after the magic and a zero checksum field; any block size.
        let end = if block > 1024 { block } else { 1024 + block };
        assert_eq!(u32_at(sb, 4), crc32c(0x5045_B54A, &bytes[1032..end]), "checksum");
        assert_eq!((u32_at(sb, 8), u32_at(sb, 80)), (7, 0), "features");
        assert_eq!((sb[13], sb[90], u32_at(sb, 40), sb[104]), (0, 0, 0, 0));
        let reader = Self { bytes, block, xattr_at: u32_at(sb, 44) as usize * block };
        (reader, u64::from(u16_at(sb, 14)), u64_at(sb, 16), u32_at(sb, 36))
    }

    fn contents(&self, at: usize, header: usize, size: usize, layout: u16, start: u32) -> Vec<u8> {
        let full = if layout == 2 { size / self.block * self.block } else { size };
        let start = start as usize * self.block;
        let mut out = if full > 0 { self.bytes[start..start + full].to_vec() } else { vec![] };
        if full < size {
            let tail = at + header;
            assert!(tail % self.block + (size - full) <= self.block, "inline tail crosses a block");
            out.extend_from_slice(&self.bytes[tail..tail + size - full]);
        }
        out
    }

    fn xattr(&self, at: usize) -> (Vec<u8>, Vec<u8>, u32, usize) {
        let b = &self.bytes[at..];
        let (name_len, index, value_len) = (usize::from(b[0]), b[1], usize::from(u16_at(b, 2)));
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            _ => panic!("prefix {index}"),
        };
        let name = &b[4..4 + name_len];
        let bit = xxh32(name, 0x25BB_E08F + u32::from(index)) & 31;
        let value = b[4 + name_len..4 + name_len + value_len].to_vec();
        ([prefix, name].concat(), value, bit, (4 + name_len + value_len).next_multiple_of(4))
    }

    fn inode(&self, nid: u64) -> (Stat, u16, usize) {
        assert_ne!(nid, 0, "readdir(3) hides inode 0");
        let at = nid as usize * 32;
        let i = &self.bytes[at..at + 64];
        assert_eq!(u16_at(i, 0) & !0b1110, 1, "extended, nothing else");
        let icount = usize::from(u16_at(i, 2));
        let body = if icount == 0 { 0 } else { 12 + (icount - 1) * 4 };
        let mut xattrs = BTreeMap::new();
        if icount > 0 {
            let filter = u32_at(self.bytes, at + 64);
            let shared = usize::from(self.bytes[at + 68]);
            let mut bits = Vec::new();
            for k in 0..shared {
                let id = u32_at(self.bytes, at + 76 + 4 * k) as usize;
                let (name, value, bit, _) = self.xattr(self.xattr_at + id * 4);
                bits.push(bit);
                assert!(xattrs.insert(name, value).is_none());
            }
            let mut pos = 12 + 4 * shared;
            while pos < body {
                let (name, value, bit, len) = self.xattr(at + 64 + pos);
                bits.push(bit);
                assert!(xattrs.insert(name, value).is_none());
                pos += len;
            }
            assert_eq!(pos, body);
            let want = bits.iter().fold(u32::MAX, |filter, bit| filter & !(1 << bit));
            assert_eq!(filter, want, "bloom filter");
        }
        let stat = Stat {
            nid,
            mode: u16_at(i, 4),
            uid: u32_at(i, 24),
            gid: u32_at(i, 28),
            mtime: (u64_at(i, 32) as i64, u32_at(i, 40)),
            nlink: u32_at(i, 44),
            size: u64_at(i, 8),
            u: u32_at(i, 16),
            target: None,
            xattrs,
        };
        (stat, u16_at(i, 0) >> 1 & 7, 64 + body)
    }

    fn dir(&self, contents: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut out: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in contents.chunks(self.block) {
            let count = usize::from(u16_at(block, 8)) / 12;
            assert!(count > 0 && usize::from(u16_at(block, 8)) % 12 == 0);
            for k in 0..count {
                let from = usize::from(u16_at(block, 12 * k + 8));
                let to = if k + 1 < count { usize::from(u16_at(block, 12 * k + 20)) } else { block.len() };
                let name = block[from..to].split(|&b| b == 0).next().expect("one part").to_vec();
                assert!(!name.is_empty() && name.len() <= 255);
                if k + 1 == count {
                    assert!(block[from + name.len()..].iter().all(|&b| b == 0));
                }
                assert!(out.last().is_none_or(|(before, _, _)| *before < name), "names are not sorted");
                out.push((name, u64_at(block, 12 * k), block[12 * k + 10]));
            }
        }
        out
    }

    /// Every path below `nid`, with what it is.
    pub fn walk(&self, nid: u64, parent: u64, path: &str, out: &mut BTreeMap<String, Stat>) {
        let (mut stat, layout, header) = self.inode(nid);
        let size = stat.size as usize;
        let contents = || self.contents(nid as usize * 32, header, size, layout, stat.u);
        match stat.mode >> 12 {
            0o12 => stat.target = Some(contents()),
            0o4 => {
                let names = self.dir(&contents());
                for (name, child, file_type) in names {
                    match &*name {
                        b"." => assert_eq!(child, nid),
                        b".." => assert_eq!(child, parent),
                        _ => {
                            let (of_child, _, _) = self.inode(child);
                            let want = [0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7][usize::from(of_child.mode >> 12)];
                            assert_eq!(file_type, want);
                            let name = String::from_utf8(name).expect("UTF-8 in these tests");
                            self.walk(child, nid, &format!("{path}/{name}"), out);
                        }
                    }
                }
            }
            _ => assert_eq!(layout, 0),
        }
        out.insert(if path.is_empty() { "/".to_owned() } else { path.to_owned() }, stat);
    }
}
