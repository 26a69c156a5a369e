//! Layers made on the spot, and what a plain extraction of them looks like.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use sociblk::units::Digest;

/// A layer: its tar and its blob.
#[derive(Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
}

impl Layer {
    /// The same layer as zstd: in frames of so many bytes, with skippable frames before and behind, as zstd:chunked has it.
    pub fn into_zstd(self, frame_bytes: usize) -> Self {
        let skippable = |text: &[u8]| [b"\x50\x2a\x4d\x18", &(text.len() as u32).to_le_bytes()[..], text].concat();
        let frames = self.tar.chunks(frame_bytes).flat_map(|part| zstd::encode_all(part, 1).expect("memory"));
        let blob = skippable(b"first").into_iter().chain(frames).chain(skippable(b"a manifest")).collect();
        Self { blob, tar: self.tar }
    }

    pub fn diff_id(&self) -> Digest {
        Digest::of(&self.tar)
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

/// What `put_image` wants.
pub fn as_image(layers: &[Layer]) -> Vec<(&[u8], Digest)> {
    layers.iter().map(|l| (&l.blob[..], l.diff_id())).collect()
}

/// Writes a tar entry by entry.
pub struct Maker(tar::Builder<Vec<u8>>);

impl Maker {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, body: &[u8], link: Option<&str>) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner + 1);
        header.set_mtime(1_600_000_000 + owner);
        header.set_size(body.len() as u64);
        match link {
            Some(link) => self.0.append_link(&mut header, path, link).expect("link"),
            None => self.0.append_data(&mut header, path, body).expect("entry"),
        }
        self
    }

    pub fn dir(self, path: &str, mode: u32, owner: u64) -> Self {
        self.add(tar::EntryType::Directory, path, mode, owner, b"", None)
    }

    pub fn file(self, path: &str, body: &[u8]) -> Self {
        self.file_of(path, body, 0o644, 0)
    }

    pub fn file_of(self, path: &str, body: &[u8], mode: u32, owner: u64) -> Self {
        self.add(tar::EntryType::Regular, path, mode, owner, body, None)
    }

    pub fn symlink(self, path: &str, to: &str) -> Self {
        self.add(tar::EntryType::Symlink, path, 0o777, 0, b"", Some(to))
    }

    pub fn hard_link(self, path: &str, to: &str) -> Self {
        self.add(tar::EntryType::Link, path, 0o644, 0, b"", Some(to))
    }

    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let marker = if dir.is_empty() { format!(".wh.{name}") } else { format!("{dir}/.wh.{name}") };
        self.file(&marker, b"")
    }

    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), b"")
    }

    pub fn end(self) -> Layer {
        let tar = self.0.into_inner().expect("tar");
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(6));
        gzip.write_all(&tar).expect("gzip");
        Layer { blob: gzip.finish().expect("gzip"), tar }
    }
}

/// Bytes that do not compress (xorshift64*), the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An image with everything that layers do to each other.
pub fn three_layers() -> Vec<Layer> {
    let base = Maker::new()
        .dir("etc", 0o755, 0)
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
        .file_of("etc/shadow", b"secret", 0o600, 0)
        .dir("srv", 0o2750, 33)
        .dir("srv/data", 0o700, 34)
        .file("srv/data/old", b"old")
        .file("srv/data/both", b"below")
        .dir("opt", 0o755, 0)
        .dir("opt/tree", 0o755, 0)
        .file("opt/tree/a", &noise(1, 70_000))
        .file("opt/tree/b", b"b")
        .file("opt/gone", b"gone")
        .file("opt/becomes-dir", b"file")
        .dir("opt/becomes-file", 0o755, 0)
        .file("opt/becomes-file/inner", b"inner")
        .file("big", &noise(2, 9 << 20))
        .hard_link("opt/link-to-big", "big")
        .symlink("etc/mtab", "../proc/mounts")
        .file_of("usr/bin/tool", &noise(3, 300_000), 0o4755, 0)
        .end();
    let middle = Maker::new()
        .whiteout("opt/gone")
        .opaque("srv/data")
        .file("srv/data/new", b"new")
        .file("srv/data/both", b"above")
        .dir("opt/becomes-dir", 0o711, 5)
        .file("opt/becomes-dir/x", b"x")
        .whiteout("opt/becomes-file")
        .file("usr/bin/second", &noise(4, 5 << 20))
        .end();
    let top = Maker::new()
        .file("opt/becomes-file", b"now a file")
        .file("srv/top", b"top")
        .whiteout("opt/tree")
        .file("opt/gone", b"back again")
        .dir("etc", 0o700, 7)
        .file("etc/passwd", b"")
        .end();
    vec![base, middle, top]
}

/// What lies at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    Dir,
    /// sha256 and length.
    File(Digest, usize),
    Symlink(String),
    Other(String),
}

/// A root file system by path, without its root directory.
pub type Tree = BTreeMap<String, Node>;

/// What unpacking the layers one over the other leaves, by the rules of the OCI image specification, section "Applying
/// changesets". Times of directories that a later layer changes within are left out, see [`look`].
pub fn extract(layers: &[Layer]) -> Tree {
    let mut tree = Tree::new();
    for layer in layers {
        let below = tree.clone();
        let mut fresh: Vec<String> = Vec::new();
        let mut archive = tar::Archive::new(&layer.tar[..]);
        for entry in archive.entries().expect("tar") {
            let mut entry = entry.expect("entry");
            let path = entry.path().expect("path").to_string_lossy().trim_end_matches('/').to_owned();
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == ".wh..wh..opq" {
                let under = format!("{dir}/");
                tree.retain(|p, _| !(p.starts_with(&under) && below.contains_key(p) && !fresh.contains(p)));
                parents(&mut tree, &path);
                continue;
            }
            if let Some(gone) = name.strip_prefix(".wh.") {
                remove(&mut tree, &if dir.is_empty() { gone.to_owned() } else { format!("{dir}/{gone}") });
                parents(&mut tree, &path);
                continue;
            }
            parents(&mut tree, &path);
            let header = entry.header().clone();
            let mut body = Vec::new();
            entry.read_to_end(&mut body).expect("body");
            let node = |kind| Node {
                kind,
                mode: header.mode().expect("mode"),
                uid: header.uid().expect("uid") as u32,
                gid: header.gid().expect("gid") as u32,
                mtime: header.mtime().expect("mtime") as i64,
            };
            let link = entry.link_name().expect("link").map(|l| l.to_string_lossy().into_owned());
            let made = match header.entry_type() {
                tar::EntryType::Directory => node(Kind::Dir),
                tar::EntryType::Symlink => node(Kind::Symlink(link.expect("target"))),
                tar::EntryType::Link => tree[&link.expect("target")].clone(),
                _ => node(Kind::File(Digest::of(&body), body.len())),
            };
            let stays = made.kind == Kind::Dir && tree.get(&path).is_some_and(|old| old.kind == Kind::Dir);
            if !stays {
                remove(&mut tree, &path);
            }
            fresh.push(path.clone());
            tree.insert(path, made);
        }
    }
    tree
}

fn remove(tree: &mut Tree, path: &str) {
    let under = format!("{path}/");
    tree.retain(|p, _| p != path && !p.starts_with(&under));
}

fn parents(tree: &mut Tree, path: &str) {
    for (at, _) in path.match_indices('/') {
        let implied = Node { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, mtime: 0 };
        tree.entry(path[..at].to_owned()).or_insert(implied);
    }
}

/// What a directory holds, every byte read. Times of directories are not compared: an unpack changes them, a mount does not.
pub fn look(root: &Path) -> Tree {
    let mut tree = Tree::new();
    look_into(root, "", &mut tree);
    tree
}

fn look_into(dir: &Path, prefix: &str, tree: &mut Tree) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let entry = entry.expect("entry");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let facts = std::fs::symlink_metadata(entry.path()).expect("lstat");
        let kind = if facts.is_dir() {
            look_into(&entry.path(), &format!("{path}/"), tree);
            Kind::Dir
        } else if facts.is_file() {
            let body = std::fs::read(entry.path()).unwrap_or_else(|e| panic!("{path}: {e}"));
            Kind::File(Digest::of(&body), body.len())
        } else if facts.is_symlink() {
            Kind::Symlink(std::fs::read_link(entry.path()).expect("readlink").to_string_lossy().into_owned())
        } else {
            Kind::Other(format!("{:?} {}", facts.file_type().is_char_device(), facts.rdev()))
        };
        let mode = facts.mode() & 0o7777;
        tree.insert(path, Node { kind, mode, uid: facts.uid(), gid: facts.gid(), mtime: facts.mtime() });
    }
}

/// Fails with the differences between a mount and an extraction.
pub fn assert_same(mount: &Path, want: &Tree) {
    let plain = |tree: &Tree| -> Tree {
        let timeless = |(path, node): (&String, &Node)| {
            let mut node = node.clone();
            if node.kind == Kind::Dir {
                node.mtime = 0;
            }
            (path.clone(), node)
        };
        tree.iter().map(timeless).collect()
    };
    let (got, want) = (plain(&look(mount)), plain(want));
    let mut differences = Vec::new();
    for path in got.keys().chain(want.keys()).collect::<std::collections::BTreeSet<_>>() {
        if got.get(path) != want.get(path) {
            differences.push(format!("{path}: got {:?}, want {:?}", got.get(path), want.get(path)));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
