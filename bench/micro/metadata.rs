//! From a zTOC to the metadata of an EROFS image and the table of where its data lie: time, peak memory, and what stays in
//! memory (goals for 20,000 files: 30 ms, 150 bytes a file).
//!
//! `cargo bench --bench metadata` measures 20,000 files; scripts/bench calls the parts:
//! `make FILES MEAN_BYTES OUT.ztoc [OUT.tar.gz]` writes the zTOC (and the layer) of a layer of its own making, `measure FILE
//! ROUNDS` prints JSON. The making is a process of its own, so that it leaves no trace in the peak of the measuring.

#[path = "support/heap.rs"]
#[allow(unsafe_code, reason = "a counting allocator")]
mod heap;
#[path = "support/many_files.rs"]
mod many_files;

use std::hint::black_box;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sociblk::erofs::{BlockSize, Image, Space, WriterOptions, image_uuid};
use sociblk::spans::ztoc::Ztoc;
use sociblk::spans::{Compression, SpanTable};
use sociblk::tree::{Tree, TreeOptions};
use sociblk::units::Digest;

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

fn make(files: usize, mean_bytes: u64, ztoc: &Path, copy: Option<&Path>) -> io::Result<()> {
    std::fs::write(ztoc, many_files::make(files, mean_bytes, Compression::Gzip, copy)?)
}

/// What a served layer keeps in memory of all this.
struct AtRest {
    space: Space,
    spans: SpanTable,
    inodes: usize,
    metadata_bytes: usize,
}

/// One pass, as the daemon makes it. `phase` hears the name of each part when it is over.
fn pass(file: &Path, phase: &mut dyn FnMut(&'static str)) -> AtRest {
    let bytes = std::fs::read(file).expect("the zTOC");
    phase("read");
    let ztoc = Ztoc::parse(&bytes).expect("a good zTOC");
    phase("parse");
    let tree = Tree::build(ztoc.entries(), TreeOptions::new(ztoc.layer_size())).expect("a good tree");
    phase("tree");
    let options = WriterOptions {
        block_size: BlockSize::B4096,
        uuid: image_uuid(&Digest::of(b"benchmark"), None, BlockSize::B4096),
        layer_size: ztoc.layer_size(),
    };
    let image = Image::build(&tree, &options).expect("a tree that EROFS can hold");
    phase("image");
    black_box(Digest::of(&image.metadata));
    phase("digest");
    AtRest {
        spans: ztoc.spans().clone(),
        inodes: tree.inode_count(),
        metadata_bytes: image.metadata.len(),
        space: image.space,
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("below a second"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A line of `/proc/self/status`, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|l| l.strip_prefix(name)).expect("a known line");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn measure(file: &Path, rounds: usize) -> serde_json::Value {
    heap::reset_peak();
    let before = heap::live_bytes();
    let kept = pass(file, &mut |_| ());
    let (peak, at_rest) = (heap::peak_bytes() - before, heap::live_bytes() - before);
    let peak_rss = status_bytes("VmHWM");
    let mut passes = Vec::new();
    for _ in 0..rounds {
        let (mut wall, mut cpu) = (Instant::now(), cpu_time());
        let mut phases = serde_json::Map::new();
        let kept = pass(file, &mut |name| {
            phases.insert(format!("{name}_ms"), ms(wall.elapsed()).into());
            phases.insert(format!("{name}_cpu_ms"), ms(cpu_time() - cpu).into());
            (wall, cpu) = (Instant::now(), cpu_time());
        });
        black_box(&kept.space);
        passes.push(serde_json::Value::Object(phases));
    }
    serde_json::json!({
        "ztoc_bytes": std::fs::metadata(file).expect("the zTOC").len(),
        "inodes": kept.inodes,
        "spans": kept.spans.len(),
        "metadata_bytes": kept.metadata_bytes,
        "table_bytes": kept.space.memory_bytes(),
        "at_rest_bytes": at_rest,
        "peak_heap_bytes": peak,
        "peak_rss_bytes": peak_rss,
        "passes": passes,
    })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let measured = match args[..] {
        ["make", files, mean, ztoc] => {
            return make(number(files), number(mean) as u64, ztoc.as_ref(), None).expect("the zTOC");
        }
        ["make", files, mean, ztoc, layer] => {
            let made = make(number(files), number(mean) as u64, ztoc.as_ref(), Some(layer.as_ref()));
            return made.expect("zTOC and layer");
        }
        ["measure", file, rounds] => measure(file.as_ref(), number(rounds)),
        [] => {
            let dir = tempfile::tempdir().expect("a directory");
            let ztoc = dir.path().join("ztoc");
            make(20_000, 5000, &ztoc, None).expect("the zTOC");
            measure(&ztoc, 20)
        }
        _ => panic!("metadata [make FILES MEAN_BYTES OUT.ztoc [OUT.tar.gz] | measure FILE ROUNDS]"),
    };
    let text = serde_json::to_string_pretty(&measured).expect("plain values");
    writeln!(io::stdout(), "{text}").expect("standard output");
}
