//! The decoder against zlib-rs and miniz_oxide: streams made by hand, and every span of many layers.

mod arriving;
mod bits;
mod damage;
mod judge;
mod layers;
mod streams;

use std::io::Write;
use std::path::PathBuf;

use super::span::Job;
use super::*;
use crate::spans::{Compression, Span, SpanTable};
use crate::units::{BlobRange, Digest, LayerRange, WINDOW_BYTES};

/// Reproducible chance (xorshift); the seed is not 0.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from((self.next() >> 11) % limit as u64).expect("below a usize")
    }
}

/// Reproducible bytes: text-like runs, binary-like noise and zeros, so that all kinds of blocks occur.
fn layer_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut next = move || random.next();
    let mut out = Vec::with_capacity(len + 4096);
    while out.len() < len {
        let n = usize::try_from(next() % 3000).unwrap_or(0) + 1;
        match next() % 5 {
            0 => out.extend((0..n).map(|_| next().to_le_bytes()[0])),
            1 => out.extend(std::iter::repeat_n(0, n)),
            2 if !out.is_empty() => {
                let from = usize::try_from(next()).unwrap_or(0) % out.len();
                let piece = out[from..(from + n).min(out.len())].to_vec();
                out.extend_from_slice(&piece);
            }
            _ => out.extend((0..n).map(|_| b"etaoin shrdlu\n"[usize::try_from(next() % 14).unwrap_or(0)])),
        }
    }
    out.truncate(len);
    out
}

fn gzip_member(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// The slow obvious way: all members, one after the other, by another implementation.
fn oracle(blob: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(header) = gzip::header_bytes(&blob[at.min(blob.len())..]) {
        at += header;
        let mut state = miniz_oxide::inflate::core::DecompressorOxide::new();
        let mut member = vec![0; 256 * 1024];
        let mut made = 0;
        loop {
            let flags = miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, n_in, n_out) =
                miniz_oxide::inflate::core::decompress(&mut state, &blob[at..], &mut member, made, flags);
            at += n_in;
            made += n_out;
            match status {
                miniz_oxide::inflate::TINFLStatus::Done => break,
                miniz_oxide::inflate::TINFLStatus::HasMoreOutput => member.resize(member.len() * 2, 0),
                other => panic!("oracle: {other:?} at {at}"),
            }
        }
        out.extend_from_slice(&member[..made]);
        at += gzip::TRAILER_BYTES;
    }
    out
}

/// A span with what inflating it needs, found by our own indexer.
struct Found {
    span: Span,
    window: Option<Box<[u8; WINDOW_BYTES]>>,
    is_last: bool,
}

impl Found {
    fn job<'a>(&'a self, blob: &'a [u8], index: usize) -> Job<'a> {
        let range = usize::try_from(self.span.blob.start().get()).expect("small")
            ..usize::try_from(self.span.blob.end().get()).expect("small");
        Job {
            id: SpanId(u32::try_from(index).expect("few")),
            span: &self.span,
            is_last: self.is_last,
            blob: &blob[range],
            window: self.window.as_deref(),
        }
    }

    fn layer(&self) -> std::ops::Range<usize> {
        usize::try_from(self.span.layer.start().get()).expect("small")
            ..usize::try_from(self.span.layer.end().get()).expect("small")
    }
}

fn index(blob: &[u8], span_size: u64, piece: usize) -> (Vec<Found>, Vec<u8>) {
    let mut layer = Vec::new();
    let mut sink = |b: &[u8]| {
        layer.extend_from_slice(b);
        Ok(())
    };
    let mut indexer = Indexer::new(span_size);
    for piece in blob.chunks(piece) {
        indexer.push(piece, &mut sink).expect("good blob");
    }
    let end = indexer.finish(&mut sink).expect("good blob");
    assert_eq!(end.blob_size.get(), blob.len() as u64);
    assert_eq!(end.layer_size.get(), layer.len() as u64);
    let checkpoints = indexer.take_checkpoints();
    let found = checkpoints.iter().enumerate().map(|(i, c)| {
        let next = checkpoints.get(i + 1);
        let start = BlobOffset::new(c.blob.get() - u64::from(c.bits != 0));
        Found {
            span: Span {
                blob: BlobRange::new(start, next.map_or(end.blob_size, |n| n.blob)).expect("ordered"),
                layer: LayerRange::new(c.layer, next.map_or(end.layer_size, |n| n.layer)).expect("ordered"),
                bits: c.bits,
                digest: Digest::of(b""),
                window_at: None,
            },
            window: c.window.clone().filter(|_| i != 0),
            is_last: next.is_none(),
        }
    });
    (found.collect(), layer)
}

fn whole(inflater: &mut SpanInflater, job: &Job<'_>, want: Want) -> Result<(Vec<u8>, Inflated), InflateError> {
    let mut out = Vec::new();
    let inflated = inflater.run(job, want, &mut |b| {
        out.extend_from_slice(b);
        Ok(())
    })?;
    assert_eq!(inflated.bytes, out.len() as u64);
    Ok((out, inflated))
}

/// Every span of `blob`, whole and in part, against the oracle and zlib-rs. Adds up which bit offsets occurred.
fn check_layer(name: &str, blob: &[u8], span_size: u64, seen_bits: &mut [u32; 8]) {
    let expected = oracle(blob);
    let (found, layer) = index(blob, span_size, 50_000);
    assert!(layer == expected, "{name}: the indexer's layer differs");
    let mut inflater = SpanInflater::new();
    for (i, f) in found.iter().enumerate() {
        let job = f.job(blob, i);
        let want = &expected[f.layer()];
        seen_bits[usize::from(f.span.bits)] += 1;
        let (out, inflated) = whole(&mut inflater, &job, Want::Whole).expect(name);
        assert!(out == want, "{name}: span {i} of size {span_size} differs");
        assert_eq!(inflated.end_of_layer, f.is_last, "{name}: span {i}");
        for first in [0, 1, 4096, want.len() / 2, want.len().saturating_sub(1), want.len()] {
            let first = first.min(want.len());
            let (out, _) = whole(&mut inflater, &job, Want::First(first as u64)).expect(name);
            assert!(out == want[..first], "{name}: the first {first} of span {i} differ");
        }
        let history = f.window.as_deref().map_or(&[][..], |w| &w[..]);
        let stream = judge::Stream { bytes: job.blob, bits: f.span.bits, history };
        let (theirs, end) = stream.zlib(want.len() + 1);
        let (ours, our_end) = stream.ours(usize::MAX / 2, want.len() + 1, want.len() + 1);
        assert!(ours == theirs && our_end == end, "{name}: span {i}: {our_end:?}, zlib-rs {end:?}");
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut layers: Vec<_> = std::fs::read_dir(root.join("tests/corpus"))
        .expect("the corpus is part of the project")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.extension().is_some_and(|e| e == "gz"))
        .map(|p| (p.display().to_string(), std::fs::read(&p).expect("readable")))
        .collect();
    layers.sort();
    layers
}
