//! Layers in, image files and mounts out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sociblk::erofs::{BlockSize, Image, Piece, WriterOptions, image_uuid};
use sociblk::spans::ztoc::Ztoc;
use sociblk::tree::{Tree, TreeOptions};
use sociblk::units::{DeviceOffset, DeviceRange, Digest, LayerOffset};

/// Says on stderr that a test could not run.
#[allow(clippy::print_stderr)]
pub fn skipped(test: &str, what: &str) {
    eprintln!("SKIPPED: {test}: {what}");
}

/// What the machine lacks to mount this kind of file system.
pub fn missing(file_system: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    // A module that is not loaded yet is not listed; where there are no modules modprobe fails, which is fine.
    let _ = Command::new("modprobe").arg(file_system).output();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(file_system));
    (!found).then(|| format!("{file_system} in the kernel"))
}

pub fn shipped_corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// Every layer that the project ships, and those of the larger corpus beside the project where that exists.
pub fn corpus_layers() -> Vec<PathBuf> {
    let larger = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/layers");
    let mut out: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for dir in [shipped_corpus(), larger] {
        let paths = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|e| e == "gz" || e == "tar")) {
            out.entry(path.file_name().expect("a name").to_owned()).or_insert(path);
        }
    }
    assert!(!out.is_empty());
    out.into_values().collect()
}

pub fn beside(layer: &Path, suffix: &str) -> PathBuf {
    let mut name = layer.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub fn inflate(layer: &Path) -> Vec<u8> {
    let blob = fs::read(layer).expect("layer");
    if layer.extension().is_some_and(|e| e == "tar") {
        return blob;
    }
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).expect("gzip");
    tar
}

/// Writes the image of a layer; its metadata from the zTOC, the rest from the tar. Returns the length of the metadata.
pub fn write_image(layer: &Path, block_size: BlockSize, path: &Path) -> usize {
    let tar = inflate(layer);
    let ztoc = fs::read(beside(layer, ".ztoc")).expect("zTOC");
    let ztoc = Ztoc::parse(&ztoc).expect("zTOC parses");
    let layer_size = LayerOffset::new(tar.len() as u64);
    let tree = Tree::build(ztoc.entries(), TreeOptions::new(layer_size)).expect("tree");
    write_tree(&tree, &tar, block_size, path)
}

/// Writes the image of a tree over the bytes of its layer. Returns the length of the metadata.
pub fn write_tree(tree: &Tree, tar: &[u8], block_size: BlockSize, path: &Path) -> usize {
    let layer_size = LayerOffset::new(tar.len() as u64);
    let uuid = image_uuid(&Digest::of(tar), None, block_size);
    let image = Image::build(tree, &WriterOptions { block_size, uuid, layer_size }).expect("image");
    let mut out = File::create(path).expect("image file");
    let all = DeviceRange::new(DeviceOffset::ZERO, image.space.device_size()).expect("ordered");
    for piece in image.space.pieces(all).expect("in range") {
        match piece {
            Piece::Metadata { offset_bytes, len_bytes } => {
                let at = offset_bytes as usize;
                out.write_all(&image.metadata[at..at + len_bytes as usize])
            }
            Piece::Layer(range) => out.write_all(&tar[range.start().get() as usize..range.end().get() as usize]),
            Piece::Zeros { len_bytes } => out.write_all(&vec![0; len_bytes as usize]),
        }
        .expect("write");
    }
    image.metadata.len()
}

/// The sorted names that a directory lists.
pub fn names(dir: &Path) -> Vec<String> {
    let mut out: Vec<String> = fs::read_dir(dir)
        .expect("readdir")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    out.sort();
    out
}

/// A directory for one test.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("directory");
        dir
    }
}

/// A mount that ends with its value.
pub struct Mount(PathBuf);

impl Mount {
    /// Takes the image's name away: mount(8) uses a loop device again that still has the same file, with the pages that
    /// it had read of it, and a device is freed only a moment after its umount.
    pub fn erofs(image: &Path, dir: &Path) -> Self {
        let mount = Self::new(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image), dir);
        fs::remove_file(image).expect("the image has been mounted");
        mount
    }

    pub fn overlay(lowers: &[&Path], dir: &Path) -> Self {
        let lowers: Vec<String> = lowers.iter().map(|l| l.display().to_string()).collect();
        let options = format!("ro,lowerdir={}", lowers.join(":"));
        Self::new(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]), dir)
    }

    fn new(command: &mut Command, dir: &Path) -> Self {
        let out = command.arg(dir).output().expect("mount runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self(dir.to_owned())
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let umount =
            |flags: &[&str]| Command::new("umount").args(flags).arg(&self.0).status().is_ok_and(|s| s.success());
        if !umount(&[]) {
            // Nothing may be left over, whatever still holds it.
            let detached = umount(&["-l"]);
            assert!(std::thread::panicking(), "{} was busy (detached: {detached})", self.0.display());
        }
    }
}
