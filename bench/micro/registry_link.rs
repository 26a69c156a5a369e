//! What a mount asks a registry for, over HTTP/1.1 and HTTP/2: the documents at its beginning, then a reader beside
//! background filling. For `bench/suites/registry_link.py`, which has the registry and the link.
//!
//! `registry_link CA_FILE`, then for each line `HOST:PORT off|documents|all` on standard input one line of JSON. The image is
//! `HOST:PORT/bench/http2:1`; its layers are taken as zTOCs but for the last one, which is a layer.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use sociblk::registry::{BlobSource, Client, ClientConfig, Http2, RegistryError};
use sociblk::units::{BlobOffset, BlobRange};

/// As many zTOCs are fetched at once as a mount does.
const ZTOCS_AT_ONCE: usize = 4;
/// A span, as it travels.
const SPAN_BYTES: u64 = 1 << 20;
/// What the background asks for at a time, twice at once, never pausing.
const PIECE_BYTES: u64 = 256 << 10;
const READS: u64 = 12;

type Failure = Box<dyn std::error::Error>;

async fn fetch(blob: &dyn BlobSource, start: u64, length: u64) -> Result<u64, RegistryError> {
    let end = BlobOffset::new((start + length).min(blob.size().get()));
    let Some(range) = BlobRange::new(BlobOffset::new(start), end) else { return Ok(0) };
    let pieces = blob.open(range).await?.bytes;
    pieces.try_fold(0, |sum, piece| async move { Ok(sum + piece.len() as u64) }).await
}

fn ms(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1e4).round() / 10.0
}

async fn measure(config: ClientConfig) -> Result<serde_json::Value, Failure> {
    let client = Client::new(config);
    let began = Instant::now();
    let image = client.resolve(&"reg.example/bench/http2:1".parse()?, &"linux/amd64".parse()?).await?;
    let resolved_ms = ms(began);
    let (layer, ztocs) = image.layers.split_last().ok_or("no layers")?;
    let jobs: Vec<_> = ztocs
        .iter()
        .map(|ztoc| async {
            let blob = client.artifact(&image.source, ztoc.digest, ztoc.size).await?;
            fetch(blob.as_ref(), 0, u64::MAX / 2).await
        })
        .collect();
    let sizes: Vec<u64> = stream::iter(jobs).buffer_unordered(ZTOCS_AT_ONCE).try_collect().await?;
    let documents_ms = ms(began);
    let blob: Arc<dyn BlobSource> = client.blob(&image.source, layer.digest, layer.size).await?;
    let asked = Instant::now();
    fetch(blob.as_ref(), 0, SPAN_BYTES).await?;
    let first_span_ms = ms(asked);

    // Each half of the layer has who goes through it.
    let over = Arc::new(AtomicBool::new(false));
    let half = layer.size.get() / 2;
    let background: Vec<_> = (0..2)
        .map(|half_number| {
            let (blob, over) = (Arc::clone(&blob), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut at, mut sum) = (half * half_number, 0);
                while !over.load(Ordering::Relaxed) {
                    sum += fetch(blob.as_ref(), at, PIECE_BYTES).await?;
                    at = half * half_number + (at + PIECE_BYTES) % half;
                }
                Ok::<_, RegistryError>(sum)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut waits, reading) = (Vec::new(), Instant::now());
    for number in 0..READS {
        let asked = Instant::now();
        fetch(blob.as_ref(), number * 7 * SPAN_BYTES % layer.size.get(), SPAN_BYTES).await?;
        waits.push(ms(asked));
    }
    let reads_ms = ms(reading);
    over.store(true, Ordering::Relaxed);
    let mut background_bytes = 0;
    for one in background {
        background_bytes += one.await??;
    }
    Ok(serde_json::json!({
        "resolved_ms": resolved_ms, "documents_ms": documents_ms, "ztoc_bytes": sizes.iter().sum::<u64>(),
        "first_span_ms": first_span_ms, "waits_ms": waits, "reads_ms": reads_ms, "background_bytes": background_bytes,
    }))
}

fn main() -> Result<(), Failure> {
    // `cargo bench` and `cargo test` run every program; this one is for its suite.
    let Some(ca) = std::env::args().nth(1).filter(|argument| Path::new(argument).is_file()) else { return Ok(()) };
    let ca = std::fs::canonicalize(ca)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (address, http2) = line.split_once(' ').ok_or("HOST:PORT MODE")?;
        let http2 = match http2 {
            "off" => Http2::Off,
            "documents" => Http2::Documents,
            _ => Http2::All,
        };
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("reg.example"))?;
        let hosts = format!("server = \"https://{address}\"\nca = \"{}\"\n", ca.display());
        std::fs::write(dir.path().join("reg.example/hosts.toml"), hosts)?;
        let hosts_dirs = vec![dir.path().to_owned()];
        let figures = runtime.block_on(measure(ClientConfig { http2, hosts_dirs, ..ClientConfig::default() }))?;
        writeln!(std::io::stdout(), "{figures}")?;
    }
    Ok(())
}
