//! What the benchmarks of inflate share: a layer, a clock that other processes cannot disturb, and the C peer.

#[allow(unsafe_code, reason = "the peer is a C library")]
pub mod czlib;
mod thread_time;

use std::path::Path;

pub use thread_time::ThreadTime;

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
