//! Manifests, indexes, configs and SOCI indexes from a registry: any bytes end in a document or an error, and a SOCI
//! index that was read and written again reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sociblk::registry::ImageRef;
use sociblk::registry::document::{media_type, parse_config, parse_manifest};
use sociblk::soci::SociIndex;

fuzz_target!(|bytes: &[u8]| {
    for content_type in [None, Some(media_type::OCI_INDEX), Some(media_type::DOCKER_MANIFEST)] {
        drop(parse_manifest(bytes, content_type));
    }
    drop(parse_config(bytes));
    if let Ok(index) = SociIndex::parse(bytes)
        && let Ok(written) = index.to_bytes()
    {
        assert_eq!(SociIndex::parse(&written).ok(), Some(index));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(image) = text.parse::<ImageRef>()
    {
        assert_eq!(image.to_string().parse::<ImageRef>().ok(), Some(image));
    }
});
