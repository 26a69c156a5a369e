//! The record of present spans: any bytes, any geometry, any number of spans.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sociblk::cache::record::{self, SPANS_PER_SLOT};
use sociblk::units::Digest;

fuzz_target!(|input: (u16, [u8; 32], Vec<u8>)| {
    let (spans, geometry, tail) = input;
    let (spans, geometry) = (u32::from(spans), Digest::from_bytes(geometry));

    // As the bytes come: nothing but what a checksum vouches for.
    let found = record::parse(&tail, geometry, spans);
    assert_eq!(found.len(), record::slots(spans) as usize);

    // Behind a good header, where the slots are looked at.
    let mut file = record::header(geometry, spans).to_vec();
    file.extend_from_slice(&tail);
    let found = record::parse(&file, geometry, spans);
    for (index, bits) in (0..).zip(found) {
        let in_use = (spans - index * SPANS_PER_SLOT).min(SPANS_PER_SLOT);
        assert_eq!(u64::from(bits) >> in_use, 0, "a span beyond the last");
        let at = usize::try_from(record::slot_position(index)).expect("small");
        let genuine = file.get(at..at + record::SLOT_BYTES) == Some(&record::slot(geometry, index, bits)[..]);
        assert!(bits == 0 || genuine, "slot {index} was believed without its checksum");
    }
});
