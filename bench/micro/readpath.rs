//! Reads of a layer whose registry lies behind a slow link: how long readers wait and what is fetched for it.
//!
//! `readpath serve [SCENARIO...]` is called by bench/suites/readpath_link.py: it makes a layer, serves it on loopback, prints the
//! server's address, reads the address of the link in front of it from standard input, then runs one scenario after the
//! other, each with an empty cache and a new client, and prints a line of JSON for each. No kernel is involved: reads go to
//! the filler as a frontend's do.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use sociblk::cache::{Cache, CacheConfig};
use sociblk::fill::{FillConfig, FillLayer, Filler, LayerSpec, Priority};
use sociblk::registry::{Client, ClientConfig, ImageSource};
use sociblk::soci::build::{BuildOptions, ZtocBuilder};
use sociblk::spans::ztoc::Ztoc;
use sociblk::spans::{Compression, SpanTable};
use sociblk::testkit::registry::TestRegistry;
use sociblk::units::{BlobOffset, Digest, LayerOffset, LayerRange};

const MIB: u64 = 1 << 20;
/// Layer bytes; they compress to a third, as those of programs do.
const LAYER_BYTES: u64 = 192 * MIB;
const FILE_BYTES: usize = 1 << 20;
/// What a kernel reads at once from a file that is read on and on.
const READ_BYTES: u64 = 128 << 10;

/// A sequence that is the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What is read, one read after the other, with pauses in which a program would compute.
struct Scenario {
    name: &'static str,
    reads: Vec<LayerRange>,
    think: Duration,
    background: bool,
    /// Between the mount and the first read.
    before: Duration,
}

fn range(start: u64, len: u64) -> LayerRange {
    let start = start.min(LAYER_BYTES - len);
    LayerRange::from_len(LayerOffset::new(start), len).expect("within the layer")
}

/// A program that starts: it loads files in full, most of them near the last one, some far away.
fn start_up() -> Vec<LayerRange> {
    let mut numbers = Numbers(0x5eed);
    let (mut reads, mut at) = (Vec::new(), 0);
    for _ in 0..120 {
        at = match numbers.below(10) {
            0..6 => at + numbers.below(256 << 10),
            6..8 => at + numbers.below(6 * MIB),
            _ => numbers.below(LAYER_BYTES),
        };
        at = at.min(LAYER_BYTES - MIB);
        let len = (4 << 10) << numbers.below(7);
        let mut done = 0;
        while done < len {
            reads.push(range(at + done, READ_BYTES.min(len - done)));
            done += READ_BYTES;
        }
    }
    reads
}

fn scenarios() -> Vec<Scenario> {
    let sequential = |from: u64, to: u64| (from * MIB..to * MIB).step_by(128 << 10).map(|at| range(at, READ_BYTES));
    let mut numbers = Numbers(0xabc);
    let random = (0..40).map(|_| range(numbers.below(LAYER_BYTES), 4096)).collect();
    let think = Duration::from_millis(3);
    let before = Duration::from_millis(300);
    vec![
        Scenario { name: "start", reads: start_up(), think, background: false, before },
        Scenario { name: "start, background", reads: start_up(), think, background: true, before },
        Scenario {
            name: "sequential",
            reads: sequential(0, 96).collect(),
            think: Duration::ZERO,
            background: false,
            before,
        },
        Scenario { name: "random", reads: random, think, background: false, before },
    ]
}

/// The bytes of a layer: files that compress like programs. The fastest level would make a single block of all of it.
fn make_layer() -> (Vec<u8>, Vec<u8>) {
    struct Indexed(ZtocBuilder, Vec<u8>);
    impl Write for Indexed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes, &mut |_| Ok(())).map_err(io::Error::other)?;
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let builder = ZtocBuilder::new(BuildOptions::default(), Compression::Gzip).expect("a builder");
    let mut tar = tar::Builder::new(GzEncoder::new(Indexed(builder, Vec::new()), Level::new(4)));
    let mut numbers = Numbers(1);
    let mut file = vec![0_u8; FILE_BYTES];
    for number in 0..LAYER_BYTES / MIB {
        for line in file.chunks_mut(64) {
            let (random, text) = line.split_at_mut(18);
            random.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&numbers.next().to_le_bytes()[..chunk.len()]));
            text.fill(b'a');
        }
        let mut header = tar::Header::new_ustar();
        header.set_size(MIB);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, format!("file-{number}"), &*file).expect("in memory");
    }
    let Indexed(builder, blob) = tar.into_inner().and_then(GzEncoder::finish).expect("in memory");
    (blob, builder.finish(&mut |_| Ok(())).expect("a zTOC").ztoc)
}

/// Runs one scenario; its figures as JSON.
fn measure(scenario: &Scenario, registry: &TestRegistry, host: &str, blob: &[u8], ztoc: &[u8]) -> serde_json::Value {
    let root = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(root.path(), CacheConfig::default()).expect("a cache");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let digest = Digest::of(blob);
    let image: ImageSource = format!("{host}/bench:1").parse().expect("a reference");
    let client = Client::new(ClientConfig::default());
    let size = BlobOffset::new(blob.len() as u64);
    let source = runtime.block_on(client.blob(&image, digest, size)).expect("a source");
    let table: Arc<SpanTable> = Arc::new(Ztoc::parse(ztoc).expect("our own").spans().clone());
    let path = root.path().join("ztoc");
    std::fs::write(&path, ztoc).expect("room");
    let filler = Filler::new(FillConfig::default(), runtime.handle().clone()).expect("threads");
    let requests_before = registry.requests().len();
    let layer = filler.add_layer(LayerSpec {
        digest,
        table: table.clone(),
        windows: File::open(&path).expect("just written"),
        source,
        file: cache.layer(digest, table.clone()).expect("a layer file"),
        diff_id: None,
    });
    if scenario.background {
        layer.prefetch(range(0, LAYER_BYTES), Priority::Background);
    }
    std::thread::sleep(scenario.before);
    let began = Instant::now();
    let mut waits = Vec::new();
    let mut touched = std::collections::BTreeSet::new();
    for read in &scenario.reads {
        touched.extend(table.covering(*read));
        if let Some(waited) = wait_for(&layer, *read) {
            waits.push(waited.as_secs_f64() * 1e3);
        }
        std::thread::sleep(scenario.think);
    }
    let took = began.elapsed();
    let status = layer.status();
    let requests = registry.requests();
    let requests = requests.get(requests_before..).unwrap_or_default();
    let connections: std::collections::BTreeSet<_> = requests.iter().map(|r| r.connection).collect();
    let span_bytes = |span: u32| table.get(sociblk::units::SpanId(span)).map_or(0, |s| s.blob.len_bytes());
    let touched_bytes: u64 = touched.into_iter().map(span_bytes).sum();
    waits.sort_by(f64::total_cmp);
    let quantile = |q: f64| waits.get((waits.len() as f64 * q) as usize).or(waits.last()).copied().unwrap_or(0.0);
    serde_json::json!({
        "scenario": scenario.name,
        "s": took.as_secs_f64(),
        "reads": scenario.reads.len(),
        "waits": waits.len(),
        "wait_ms": { "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "max": quantile(1.0) },
        "fetched_bytes": status.fetched_bytes,
        "touched_span_bytes": touched_bytes,
        "requests": requests.len(),
        "connections": connections.len(),
    })
}

/// Reads as a frontend does; how long it waited, if it had to.
fn wait_for(layer: &FillLayer, read: LayerRange) -> Option<Duration> {
    let began = Instant::now();
    let mut waited = false;
    while !layer.hold(read) {
        waited = true;
        let (told, heard) = channel();
        layer.want(read, Box::new(move |result| drop(told.send(result))));
        heard.recv().expect("a waiter is always told").expect("the registry is well");
    }
    layer.release(read);
    waited.then(|| began.elapsed())
}

fn main() {
    // `cargo test --benches` and the like run every benchmark without its driver.
    if std::env::args().nth(1).as_deref() != Some("serve") {
        return;
    }
    let only: Vec<String> = std::env::args().skip(2).collect();
    let (blob, ztoc) = make_layer();
    let registry = TestRegistry::start();
    registry.put_blob(&blob);
    let mut out = io::stdout().lock();
    let mut say = |line: String| writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody listens");
    say(registry.host().to_owned());
    for line in io::stdin().lock().lines() {
        let host = line.expect("text");
        for scenario in scenarios() {
            if only.is_empty() || only.iter().any(|name| name == scenario.name) {
                say(measure(&scenario, &registry, host.trim(), &blob, &ztoc).to_string());
            }
        }
        say("end".to_owned());
    }
}
