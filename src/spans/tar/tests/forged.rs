//! Tars made by hand, wrong or odd.

use super::*;
use crate::spans::ModTime;

/// A ustar header with a right checksum; fields may be changed before it is sealed.
#[derive(Clone)]
struct Forged(Block);

impl Forged {
    fn new(name: &str, typeflag: u8, size: u64) -> Self {
        let mut header = Self([0; BLOCK_BYTES]);
        header.put(0, name.as_bytes());
        header.put(100, b"0000644\0");
        header.put(108, b"0000000\0");
        header.put(116, b"0000000\0");
        header.put(124, format!("{size:011o}\0").as_bytes());
        header.put(136, b"00000000000\0");
        header.put(156, &[typeflag]);
        header.put(257, b"ustar\x0000");
        header
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    fn sealed_with(mut self, value: impl Fn(u8) -> i64) -> Vec<u8> {
        self.put(148, b"        ");
        let sum: i64 = self.0.iter().map(|&byte| value(byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0.to_vec()
    }

    fn seal(self) -> Vec<u8> {
        self.sealed_with(i64::from)
    }

    /// With data and padding behind.
    fn holding(self, data: &[u8]) -> Vec<u8> {
        let mut bytes = self.seal();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut len = rest.len() + 1;
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        content.push_str(&format!("{len}{rest}"));
    }
    Forged::new("pax", b'x', content.len() as u64).holding(content.as_bytes())
}

const END: [u8; 1024] = [0; 1024];

fn tar(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = parts.concat();
    tar.extend_from_slice(&END);
    tar
}

fn only(parts: &[Vec<u8>]) -> TocEntry<'static> {
    let mut toc = index(&tar(parts)).expect("sound");
    assert_eq!(toc.entries.len(), 1);
    toc.entries.remove(0)
}

fn reg(name: &str) -> Forged {
    Forged::new(name, b'0', 0)
}

#[test]
fn kinds_follow_the_type_and_old_names() {
    for (name, typeflag, want) in [
        ("f", b'0', EntryKind::Reg),
        ("f", 0, EntryKind::Reg),
        ("f", b'7', EntryKind::Reg),
        ("d/", 0, EntryKind::Dir),
        ("f/", b'0', EntryKind::Reg),
        ("h", b'1', EntryKind::Hardlink),
        ("l", b'2', EntryKind::Symlink),
        ("c", b'3', EntryKind::Char),
        ("b", b'4', EntryKind::Block),
        ("d", b'5', EntryKind::Dir),
        ("p", b'6', EntryKind::Fifo),
    ] {
        assert_eq!(only(&[Forged::new(name, typeflag, 0).seal()]).kind, want, "{name} {typeflag}");
    }
}

#[test]
fn only_files_have_data() {
    for typeflag in b'1'..=b'6' {
        let parts = [Forged::new("e", typeflag, 700).seal(), reg("next").seal()];
        let toc = index(&tar(&parts)).expect("sound");
        let ranges: Vec<_> = toc.entries.iter().map(|e| (e.data.start().get(), e.data.len_bytes())).collect();
        assert_eq!(ranges, [(512, 0), (1024, 0)]);
    }
    let entry = only(&[Forged::new("f", b'0', 3).holding(b"abc")]);
    assert_eq!((entry.data.start().get(), entry.data.len_bytes()), (512, 3));
}

#[test]
fn names_come_from_all_formats() {
    let ustar = reg("name").with(345, b"prefix/of");
    assert_eq!(only(&[ustar.clone().seal()]).name.as_ref(), b"prefix/of/name");
    let star = ustar.clone().with(475, b"\0").with(508, b"tar\0");
    assert_eq!(only(&[star.seal()]).name.as_ref(), b"prefix/of/name");
    let gnu = reg("name").with(257, b"ustar  \0");
    assert_eq!(only(&[gnu.clone().with(345, b"14000000000\0").seal()]).name.as_ref(), b"name");
    assert_eq!(only(&[gnu.clone().with(345, b"prefix/of").seal()]).name.as_ref(), b"prefix/of/name");
    let v7 = ustar.with(257, &[0; 8]).with(265, b"owner");
    let v7 = only(&[v7.seal()]);
    assert_eq!((v7.name.as_ref(), v7.uname.as_ref()), (&b"name"[..], &b""[..]));

    let long = "n".repeat(300);
    let long_name = Forged::new("././@LongLink", b'L', 301).holding(format!("{long}\0").as_bytes());
    let long_link = Forged::new("././@LongLink", b'K', 301).holding(format!("{long}\0").as_bytes());
    let entry = only(&[long_link, pax(&[("path", "pax")]), long_name, Forged::new("short", b'2', 0).seal()]);
    assert_eq!((entry.name.as_ref(), entry.linkname.as_ref()), (long.as_bytes(), long.as_bytes()));
}

#[test]
fn pax_records_override_and_are_kept() {
    let records = [
        ("size", "5"),
        ("path", "näme"),
        ("uid", "-1"),
        ("gid", "4294967297"),
        ("mtime", "-1.5"),
        ("linkpath", ""),
        ("SCHILY.xattr.user.a", "1"),
    ];
    let entry = only(&[pax(&records), reg("short").with(157, b"target").holding(b"12345")]);
    assert_eq!(entry.name.as_ref(), "näme".as_bytes());
    assert_eq!((entry.uid, entry.gid), (u32::MAX, 1));
    assert_eq!(entry.mtime, ModTime { secs: -2, nanos: 500_000_000 });
    assert_eq!(entry.data.len_bytes(), 5);
    assert_eq!(entry.linkname.as_ref(), b"target");
    assert_eq!(entry.xattrs().collect::<Vec<_>>(), [(&b"user.a"[..], &b"1"[..])]);
    let keys: Vec<_> = entry.pax.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect();
    assert_eq!(keys, ["SCHILY.xattr.user.a", "gid", "linkpath", "mtime", "path", "size", "uid"]);
}

#[test]
fn extensions_are_for_the_next_entry_only() {
    let global = Forged::new("pax_global_header", b'g', 18).holding(b"18 comment=abcdef\n");
    let toc = index(&tar(&[
        pax(&[("path", "lost")]),
        global,
        reg("a").seal(),
        pax(&[("path", "replaced")]),
        pax(&[("uid", "7")]),
        reg("b").seal(),
        reg("c").seal(),
    ]));
    let entries = toc.expect("sound").entries;
    let found: Vec<_> = entries.iter().map(|e| (e.name.as_ref(), e.uid, e.pax.len())).collect();
    assert_eq!(found, [(&b"a"[..], 0, 0), (b"b", 7, 1), (b"c", 0, 0)]);
}

#[test]
fn checksums_of_signed_bytes_are_right_too() {
    let name = reg("ümlaut");
    assert_eq!(only(&[name.clone().sealed_with(|byte| i64::from(byte.cast_signed()))]).name, "ümlaut".as_bytes());
    assert_eq!(only(&[name.clone().seal()]).name, "ümlaut".as_bytes());
    assert_eq!(index(&name.sealed_with(|byte| i64::from(byte) + 1)), Err(TarError::Checksum { at: LayerOffset::ZERO }));
}

#[test]
fn tars_end_where_archive_tar_stops() {
    let file = Forged::new("f", b'0', 3).holding(b"abc");
    let with = |tail: usize| [file.clone(), vec![0; tail]].concat();
    for (bytes, want) in [
        (Vec::new(), Some(0)),
        (END.to_vec(), Some(1024)),
        (vec![0; 512], Some(512)),
        (vec![0; 10_240], Some(1024)),
        (vec![0; 511], None),
        (vec![0; 513], None),
        (file.clone(), Some(1024)),
        (file[..515].to_vec(), Some(515)),
        (file[..1023].to_vec(), Some(1023)),
        (file[..514].to_vec(), None),
        (file[..511].to_vec(), None),
        (with(512), Some(1536)),
        (with(1024), Some(2048)),
        (with(9000), Some(2048)),
        ([with(1024), vec![1; 700]].concat(), Some(2048)),
        (with(700), None),
    ] {
        let end = index(&bytes).map(|toc| toc.end.get());
        assert_eq!(end.clone().ok(), want, "{} bytes: {end:?}", bytes.len());
        if want.is_none() {
            assert!(matches!(end, Err(TarError::Truncated { .. })), "{end:?}");
        }
    }
}

#[test]
fn bad_tars_are_refused_by_name() {
    let sparse = |records: &[(&str, &str)]| tar(&[pax(records), reg("holes").seal()]);
    let too_large = Forged::new("pax", b'x', MAX_EXTENSION_BYTES + 1).seal();
    for (bytes, want) in [
        (vec![b'x'; 512], "no tar header at layer byte 0"),
        ([vec![0; 512], reg("f").seal()].concat(), "single zero block before layer byte 512"),
        (tar(&[reg("f").with(124, b"9").seal()]), "entry \"f\" at layer byte 0 with an impossible size"),
        (tar(&[reg("f").with(124, &[0xff; 12]).seal()]), "impossible size"),
        (tar(&[reg("f").with(100, b"rw-r--r-").seal()]), "impossible mode"),
        (tar(&[reg("f").with(100, &[0xff; 8]).seal()]), "impossible mode"),
        (tar(&[Forged::new("c", b'3', 0).with(329, b"\x80\0\0\x01\0\0\0\0").seal()]), "impossible device major number"),
        (tar(&[pax(&[("size", "-1")]), reg("f").seal()]), "size is negative"),
        (tar(&[pax(&[("size", "x")]), reg("f").seal()]), "size is no number"),
        (tar(&[pax(&[("mtime", "now")]), reg("f").seal()]), "mtime is no time"),
        (tar(&[Forged::new("pax", b'x', 3).holding(b"abc")]), "bad PAX header before layer byte 1024"),
        (too_large, "extension header of 1048577 bytes at layer byte 0"),
        (Forged::new("pax", b'x', 600).seal(), "600 bytes are missing from an extension header"),
        (Forged::new("f", b'0', 600).seal(), "600 bytes are missing from \"f\""),
        ([reg("f").seal(), Forged::new("g", b'g', 600).seal()].concat(), "600 bytes are missing from a global header"),
        (tar(&[pax(&[("size", "9223372036854775807")]), reg("f").seal()]), "missing from \"f\""),
        (tar(&[Forged::new("holes", b'S', 0).seal()]), "entry \"holes\" at layer byte 0 is a GNU sparse file"),
        (tar(&[Forged::new("v", b'V', 0).seal()]), "is of the unknown type 'V'"),
        (
            sparse(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]),
            "\"holes\" at layer byte 1024 is a sparse file",
        ),
        (sparse(&[("GNU.sparse.map", "0,1")]), "is a sparse file"),
        (sparse(&[("GNU.sparse.offset", "0"), ("GNU.sparse.numbytes", "1")]), "is a sparse file"),
    ] {
        let error = index(&bytes).expect_err(want).to_string();
        assert!(error.contains(want), "{error:?} does not say {want:?}");
    }
}

#[test]
fn an_error_stays() {
    let mut indexer = TarIndexer::new();
    let error = indexer.feed(&[b'x'; 512]).expect_err("no tar");
    assert_eq!(indexer.feed(&END), Err(error.clone()));
    assert_eq!(indexer.finish(), Err(error));
}
