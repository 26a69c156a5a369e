//! Layer files whose spans are all recorded as present, without the bytes: the file is a hole.

use std::fs::File;
use std::sync::Arc;

use sociblk::cache::{Cache, LayerFile, record};
use sociblk::spans::SpanTable;
use sociblk::units::Digest;

/// Lays down the record of a complete layer. Nothing of it is open afterwards.
pub fn lay_down(cache: &Cache, digest: Digest, table: &Arc<SpanTable>) {
    // Opened once, for all that lies beside the record.
    let data = cache.layer(digest, Arc::clone(table)).expect("a layer file").path();
    let end = table.iter().last().map_or(0, |(_, span)| span.layer.end().get());
    File::options().write(true).open(&data).and_then(|file| file.set_len(end)).expect("a hole");
    std::fs::write(data.with_file_name("present"), full_record(table)).expect("room");
}

/// Opens a layer that [`lay_down`] has prepared.
pub fn open(cache: &Cache, digest: Digest, table: &Arc<SpanTable>) -> Arc<LayerFile> {
    let file = cache.layer(digest, Arc::clone(table)).expect("a layer file");
    assert!(file.is_complete(), "the record was believed");
    file
}

/// The record that names every span.
pub fn full_record(table: &SpanTable) -> Vec<u8> {
    let geometry = record::geometry(table);
    let spans = u32::try_from(table.len()).expect("a table counts in 32 bits");
    let slots = (0..record::slots(spans)).map(|index| {
        let in_use = (spans - index * record::SPANS_PER_SLOT).min(record::SPANS_PER_SLOT);
        record::slot(geometry, index, u32::MAX >> (record::SPANS_PER_SLOT - in_use))
    });
    record::header(geometry, spans).into_iter().chain(slots.flatten()).collect()
}
