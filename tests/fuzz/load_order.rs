//! Load orders and prefetch artifacts from a registry: any bytes end in a document or an error; what was read is written and
//! read the same; an excerpt makes a table of its frames or none; a plan asks for each span once, and for none that a layer does not have.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use sociblk::order::{LayerShape, Limits, LoadOrder, plan};
use sociblk::soci::load_order;

/// Spans of the layers that are served.
const SPANS: usize = 100;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(ranges) = load_order::parse(bytes) {
        assert!(ranges.iter().all(|range| range.start_span <= range.end_span));
    }
    let Ok(order) = LoadOrder::parse(bytes) else { return };
    let written = order.to_bytes().expect("what was read can be written");
    assert_eq!(LoadOrder::parse(&written).ok().as_ref(), Some(&order));
    if let Some(excerpt) = &order.excerpt {
        let slices = u32::try_from(excerpt.slice_count()).expect("a bounded number");
        if let Ok(table) = sociblk::fill::excerpt_table(&excerpt.frames, excerpt.frame_slices, slices) {
            assert_eq!(table.len(), excerpt.frames.len());
            assert_eq!(table.blob_size().get(), excerpt.bytes);
        }
    }
    let shape = |layer: &sociblk::order::OrderLayer| LayerShape {
        layer: layer.layer,
        ztoc: layer.ztoc,
        span_bytes: vec![1 << 20; (layer.spans as usize).min(SPANS)],
    };
    let shapes: Vec<_> = order.layers.iter().take(8).map(shape).collect();
    let limits = Limits { total_bytes: 150 << 20, ..Limits::default() };
    let planned = plan(&order, &shapes, limits);
    assert!(planned.bytes <= limits.total_bytes);
    let mut asked = HashSet::new();
    for run in planned.runs {
        for span in run.spans {
            assert!((span as usize) < shapes[run.layer].span_bytes.len() && asked.insert((run.layer, span)));
        }
    }
    assert_eq!(asked.len() as u64, planned.spans);
});
