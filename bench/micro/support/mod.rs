//! What the micro benchmarks share: a layer, a clock that other processes cannot disturb, and the C peer.

#[allow(unsafe_code, reason = "the peer is a C library")]
pub mod czlib;

use std::path::Path;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of the measuring thread: "one core", whatever else the machine does.
pub struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("below a second"))
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A gzip layer and the zTOC that SOCI's builder made of it (4 MiB spans): files of a Python installation where the large
/// corpus is at hand, else the project's own mixed layer.
pub struct Layer {
    /// File name.
    pub name: &'static str,
    /// The compressed layer.
    pub blob: Vec<u8>,
    /// Its zTOC.
    pub ztoc: Vec<u8>,
}

/// Reads the layer.
pub fn layer() -> Layer {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let candidates = [("../shared/corpus/layers", "host-python.tar.gz"), ("tests/corpus", "mixed-zlib6.tar.gz")];
    let (folder, name) =
        candidates.into_iter().find(|(folder, name)| project.join(folder).join(name).exists()).expect("a test layer");
    let read = |name: &str| std::fs::read(project.join(folder).join(name)).expect("readable");
    Layer { name, blob: read(name), ztoc: read(&format!("{name}.ztoc")) }
}
