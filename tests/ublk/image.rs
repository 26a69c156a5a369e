//! A made-up layer: a metadata file, a layer file, and the table between them, as the product lays them out. Parts of the
//! layer arrive only when asked for, from another thread; one part never does.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use sociblk::frontend::{Backend, Completion, ReadError, Readiness, Segment, Segments, SourceFile, ZERO_HOLE_BYTES};
use sociblk::units::{DeviceOffset, DeviceRange};

pub const METADATA_BYTES: u64 = 256 << 10;
/// Layer positions whose bytes are written to the layer file when somebody asks.
pub const LATE: Range<u64> = 1 << 20..3 << 20;
/// Layer positions that cannot be had.
pub const BROKEN: Range<u64> = 4 << 20..(4 << 20) + (512 << 10);
const LAYER_BYTES: u64 = 6 << 20;
const BLOCK: u64 = 4096;

/// Rows of the table: a file's bytes.
#[derive(Clone, Copy)]
struct Extent {
    device: u64,
    layer: u64,
    len: u64,
}

/// What the device must show, and how to make its files.
pub struct Image {
    seed: u64,
    extents: Vec<Extent>,
    size: u64,
}

fn byte(seed: u64, at: u64) -> u8 {
    let mut x = (at / 8).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    x.to_le_bytes()[(at % 8) as usize]
}

fn bytes(seed: u64, range: Range<u64>) -> Vec<u8> {
    range.map(|at| byte(seed, at)).collect()
}

impl Image {
    pub fn new(seed: u64) -> Self {
        let (mut device, mut layer, mut n) = (METADATA_BYTES, 512, seed);
        let mut extents = Vec::new();
        while layer < LAYER_BYTES {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // From a few bytes to some hundred KiB, as files are.
            let len = ((n >> 40) % (1 << (8 + (n >> 33) % 11)) + 1).min(LAYER_BYTES - layer);
            extents.push(Extent { device, layer, len });
            device = (device + len).next_multiple_of(BLOCK);
            layer += len.next_multiple_of(512) + 512;
        }
        Self { seed, extents, size: device + (1 << 20) }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes that the device shows at `range`.
    pub fn expected(&self, range: Range<u64>) -> Vec<u8> {
        let mut out = Vec::with_capacity((range.end - range.start) as usize);
        for (file, start, len) in self.cut(range) {
            match file {
                Part::Metadata => out.extend(bytes(!self.seed, start..start + len)),
                Part::Layer => out.extend(bytes(self.seed, start..start + len)),
                Part::Zeros => out.resize(out.len() + len as usize, 0),
            }
        }
        out
    }

    /// Device positions of the first extent that lies wholly in `layer`, block by block.
    pub fn device_range_of(&self, layer: &Range<u64>) -> Range<u64> {
        let extent = self
            .extents
            .iter()
            .find(|e| layer.start <= e.layer && e.layer + e.len <= layer.end && e.len >= BLOCK)
            .expect("an extent inside");
        extent.device..extent.device + extent.len / BLOCK * BLOCK
    }

    /// Device positions whose blocks touch layer positions in `layer`.
    pub fn device_range_around(&self, layer: &Range<u64>) -> Range<u64> {
        let touches = |e: &&Extent| e.layer < layer.end && layer.start < e.layer + e.len;
        let start = self.extents.iter().find(touches).map_or(0, |e| e.device);
        let end = self.extents.iter().rev().find(touches).map_or(0, |e| e.device + e.len);
        start / BLOCK * BLOCK..end.next_multiple_of(BLOCK)
    }

    fn cut(&self, range: Range<u64>) -> Vec<(Part, u64, u64)> {
        let mut out = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let left = range.end - at;
            if at < METADATA_BYTES {
                let len = left.min(METADATA_BYTES - at);
                out.push((Part::Metadata, at, len));
                at += len;
                continue;
            }
            let n = self.extents.partition_point(|e| e.device + e.len <= at);
            let len = match self.extents.get(n) {
                Some(e) if e.device <= at => {
                    let len = left.min(e.device + e.len - at);
                    out.push((Part::Layer, e.layer + at - e.device, len));
                    len
                }
                Some(e) => {
                    let len = left.min(e.device - at);
                    out.push((Part::Zeros, 0, len));
                    len
                }
                None => {
                    out.push((Part::Zeros, 0, left));
                    left
                }
            };
            at += len;
        }
        out
    }

    /// Makes both files in `dir`; late and broken layer bytes are left out.
    pub fn write_files(&self, dir: &Path) {
        let metadata = File::create(dir.join("metadata")).expect("metadata");
        metadata.write_all_at(&bytes(!self.seed, 0..METADATA_BYTES), 0).expect("metadata");
        metadata.set_len(METADATA_BYTES + ZERO_HOLE_BYTES).expect("metadata");
        let layer = File::create(dir.join("layer")).expect("layer");
        for part in [0..LATE.start, LATE.end..BROKEN.start, BROKEN.end..LAYER_BYTES] {
            layer.write_all_at(&bytes(self.seed, part.clone()), part.start).expect("layer");
        }
        layer.set_len(LAYER_BYTES + 512).expect("layer");
    }
}

#[derive(Clone, Copy)]
enum Part {
    Metadata,
    Layer,
    Zeros,
}

/// What happens to late bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// A thread writes them to the layer file, then completes.
    Arrive,
    /// They never come.
    Hang,
}

/// Serves an [`Image`] from its files.
pub struct Served {
    image: Image,
    metadata: File,
    layer: File,
    late: Late,
    work: Mutex<Sender<(Vec<Segment>, Completion)>>,
    held: Mutex<Vec<Completion>>,
}

impl Served {
    pub fn open(dir: &Path, seed: u64, late: Late) -> Self {
        let open = |name| OpenOptions::new().read(true).write(true).open(dir.join(name)).expect(name);
        let layer = open("layer");
        let (work, jobs) = channel::<(Vec<Segment>, Completion)>();
        let sink = layer.try_clone().expect("clone");
        std::thread::Builder::new()
            .name("test-fill".into())
            .spawn(move || {
                while let Ok((segments, done)) = jobs.recv() {
                    done(fill(&sink, seed, &segments));
                }
            })
            .expect("thread");
        let held = Mutex::default();
        Self { image: Image::new(seed), metadata: open("metadata"), layer, late, work: Mutex::new(work), held }
    }
}

fn overlaps(segment: &Segment, range: &Range<u64>) -> bool {
    let end = segment.offset + u64::from(segment.len_bytes);
    segment.file == SourceFile::Layer && segment.offset < range.end && range.start < end
}

fn fill(layer: &File, seed: u64, segments: &[Segment]) -> Result<(), ReadError> {
    for segment in segments.iter().filter(|s| overlaps(s, &LATE)) {
        let start = segment.offset.max(LATE.start);
        let end = (segment.offset + u64::from(segment.len_bytes)).min(LATE.end);
        layer.write_all_at(&bytes(seed, start..end), start).map_err(|_| ReadError::Unavailable)?;
    }
    if segments.iter().any(|s| overlaps(s, &BROKEN)) { Err(ReadError::Unavailable) } else { Ok(()) }
}

impl Backend for Served {
    fn size(&self) -> DeviceOffset {
        DeviceOffset::new(self.image.size)
    }

    fn file(&self, which: SourceFile) -> BorrowedFd<'_> {
        match which {
            SourceFile::Metadata => self.metadata.as_fd(),
            SourceFile::Layer => self.layer.as_fd(),
        }
    }

    fn segments(&self, range: DeviceRange, out: &mut Segments) -> Result<(), ReadError> {
        for (part, offset, len) in self.image.cut(range.start().get()..range.end().get()) {
            let (file, offset) = match part {
                Part::Metadata => (SourceFile::Metadata, offset),
                Part::Layer => (SourceFile::Layer, offset),
                Part::Zeros => (SourceFile::Metadata, METADATA_BYTES),
            };
            out.push(Segment { file, offset, len_bytes: len as u32 });
        }
        Ok(())
    }

    fn ensure(&self, segments: &Segments, done: Completion) -> Readiness {
        if !segments.iter().any(|s| overlaps(s, &LATE) || overlaps(s, &BROKEN)) {
            return Readiness::Ready;
        }
        match self.late {
            Late::Arrive => {
                self.work.lock().expect("lock").send((segments.to_vec(), done)).expect("the fill thread lives");
            }
            Late::Hang => self.held.lock().expect("lock").push(done),
        }
        Readiness::Pending
    }

    fn failed(&self, _: DeviceRange, _: &dyn std::error::Error) {}
}
