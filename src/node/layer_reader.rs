//! Reading a layer through its zTOC without the daemon: span by span, each checked first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};

use crate::inflate::{SpanInflater, Want};
use crate::spans::ztoc::Ztoc;
use crate::spans::{Span, SpanTable};
use crate::tree::{Tree, TreeOptions};
use crate::units::{BlobRange, Digest, LayerRange, SpanId, WINDOW_BYTES, usize_from_u64};

/// Where the bytes of a blob are.
pub(super) trait BlobBytes {
    /// All bytes of `range`.
    fn read(&mut self, range: BlobRange) -> anyhow::Result<Vec<u8>>;
}

impl BlobBytes for &File {
    fn read(&mut self, range: BlobRange) -> anyhow::Result<Vec<u8>> {
        let mut blob = vec![0; usize_from_u64(range.len_bytes()).context("span too large for this machine")?];
        self.read_exact_at(&mut blob, range.start().get()).context("the layer file is shorter than its zTOC says")?;
        Ok(blob)
    }
}

/// A layer opened through its zTOC, whose document is `Z`.
pub(super) struct LayerReader<B, Z> {
    blob: B,
    ztoc: Z,
    table: SpanTable,
    inflater: SpanInflater,
    /// Spans that were inflated last, the latest behind.
    recent: VecDeque<(SpanId, Vec<u8>)>,
    /// How many are kept.
    keeps: usize,
}

impl<B: BlobBytes, Z: AsRef<[u8]>> LayerReader<B, Z> {
    /// Keeps the last `keeps` spans in memory, at least one.
    pub(super) fn new(blob: B, ztoc: Z, table: SpanTable, keeps: usize) -> Self {
        Self { blob, ztoc, table, inflater: SpanInflater::new(), recent: VecDeque::new(), keeps: keeps.max(1) }
    }

    /// Its spans.
    pub(super) fn table(&self) -> &SpanTable {
        &self.table
    }

    /// Gives the spans that are kept back.
    pub(super) fn forget(&mut self) {
        self.recent = VecDeque::new();
    }

    /// The inflated bytes of a span, which may be longer than the zTOC counts.
    pub(super) fn span(&mut self, id: SpanId) -> anyhow::Result<&[u8]> {
        if let Some(at) = self.recent.iter().position(|(have, _)| *have == id) {
            let found = self.recent.remove(at);
            self.recent.extend(found);
        } else {
            let room = if self.recent.len() < self.keeps { None } else { self.recent.pop_front() };
            let mut bytes = room.map(|(_, buffer)| buffer).unwrap_or_default();
            self.inflate(id, &mut bytes)?;
            self.recent.push_back((id, bytes));
        }
        Ok(self.recent.back().map_or(&[][..], |(_, bytes)| bytes))
    }

    /// Writes the bytes of `range` to `out`, inflating only the spans that hold them.
    pub(super) fn copy(&mut self, range: LayerRange, out: &mut dyn Write) -> anyhow::Result<()> {
        for id in self.table.covering(range).map(SpanId) {
            let Some(span) = self.table.get(id).map(|span| span.layer) else { continue };
            let Some(part) = span.intersection(&range) else { continue };
            let from = part.start().get() - span.start().get();
            let bounds = usize_from_u64(from).zip(usize_from_u64(from + part.len_bytes()));
            let bytes = self.span(id)?;
            let part = bounds.and_then(|(from, to)| bytes.get(from..to)).context("a span that ends early")?;
            out.write_all(part)?;
        }
        Ok(())
    }

    fn inflate(&mut self, id: SpanId, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let span = self.table.get(id).context("no such span")?.clone();
        let blob = self.blob.read(span.blob)?;
        let found = Digest::of(&blob);
        if found != span.digest {
            bail!(
                "span {id}: the layer's bytes have {found}, the zTOC says {}: they do not belong together",
                span.digest
            );
        }
        let window = window_of(self.ztoc.as_ref(), &span);
        out.clear();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        self.inflater.inflate(&self.table, id, &blob, window, Want::Whole, &mut sink)?;
        Ok(())
    }
}

fn window_of<'a>(ztoc: &'a [u8], span: &Span) -> Option<&'a [u8; WINDOW_BYTES]> {
    let at = usize_from_u64(span.window_at?)?;
    ztoc.get(at..at.checked_add(WINDOW_BYTES)?)?.try_into().ok()
}

/// Opens a zTOC and builds its tree, of no more than so many inodes.
pub(super) fn open(ztoc: &[u8], max_inodes: u32) -> anyhow::Result<(SpanTable, Tree)> {
    let parsed = Ztoc::parse(ztoc)?;
    let tree = Tree::build(parsed.entries(), TreeOptions { max_inodes, ..TreeOptions::new(parsed.layer_size()) })?;
    Ok((parsed.spans().clone(), tree))
}
