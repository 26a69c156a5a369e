//! The document, version 1: JSON with the image, its layers with their zTOCs, and the reads in their order over all layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ExcerptLayout, ORDER_TYPE, OrderError};
use crate::units::Digest;

/// Version that is written and read.
const VERSION: u32 = 1;
/// Longest document that is read: some 200,000 reads, which is 800 GiB of layers in spans of 4 MiB.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Longest label.
const MAX_LABEL: usize = 64;
/// Longest other text.
const MAX_TEXT: usize = 4096;
/// Most labels, and words of an entrypoint.
const MAX_WORDS: usize = 256;

/// A layer of the image, and by which zTOC its spans are numbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderLayer {
    /// Digest of the layer's blob.
    pub layer: Digest,
    /// Digest of the zTOC: under another one the same numbers mean other bytes.
    pub ztoc: Digest,
    /// Spans of the layer.
    pub spans: u32,
    /// Span size of the zTOC in bytes, for people: the longest span.
    pub span_bytes: u64,
}

/// Spans of one layer that were read one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32, u64)", into = "(u32, u32, u32, u64)")]
pub struct Read {
    /// Which of the document's layers, from 0.
    pub layer: u32,
    /// The first span.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
    /// When the first of them was read, in milliseconds since the recording began.
    pub at_ms: u64,
}

impl From<(u32, u32, u32, u64)> for Read {
    fn from((layer, first, count, at_ms): (u32, u32, u32, u64)) -> Self {
        Self { layer, first, count, at_ms }
    }
}

impl From<Read> for (u32, u32, u32, u64) {
    fn from(read: Read) -> Self {
        (read.layer, read.first, read.count, read.at_ms)
    }
}

/// One recorded start of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadOrder {
    /// Digest of the image's platform manifest.
    pub image: Digest,
    /// How the image was named, for people.
    pub reference: Option<String>,
    /// Which of the image's orders: the name of a workload.
    pub label: String,
    /// The command that ran.
    pub entrypoint: Vec<String>,
    /// What else its maker says of it.
    pub labels: BTreeMap<String, String>,
    /// When it was recorded, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// Blob bytes of all spans that it names.
    pub bytes: u64,
    /// The layers that were read, bottom first.
    pub layers: Vec<OrderLayer>,
    /// The reads, in order.
    pub reads: Vec<Read>,
    /// The excerpt that was made of them, if one was.
    pub excerpt: Option<ExcerptLayout>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    media_type: String,
    version: u32,
    image: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    label: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    created_at_ms: u64,
    bytes: u64,
    layers: Vec<OrderLayer>,
    /// `[layer, first span, spans, ms]`
    reads: Vec<Read>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    excerpt: Option<ExcerptLayout>,
}

/// What every version says first.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    media_type: String,
    version: u32,
}

impl LoadOrder {
    /// Reads a foreign document. It takes no more memory than a small multiple of `bytes`.
    ///
    /// # Errors
    /// [`OrderError`] for what is too large, no load order, of another version, or names spans that its layers do not have.
    pub fn parse(bytes: &[u8]) -> Result<Self, OrderError> {
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT_BYTES {
            return Err(OrderError::TooLarge { bytes: size, limit: MAX_DOCUMENT_BYTES });
        }
        let bad = |reason: String| OrderError::Document { reason };
        let head: Head = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if head.media_type != ORDER_TYPE {
            return Err(bad(format!("its media type is {:.100}", head.media_type)));
        }
        if head.version != VERSION {
            return Err(OrderError::Version { found: head.version, known: VERSION });
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        let Wire { image, reference, label, entrypoint, labels, created_at_ms, bytes, layers, reads, excerpt, .. } =
            wire;
        let order = Self { image, reference, label, entrypoint, labels, created_at_ms, bytes, layers, reads, excerpt };
        order.check()?;
        Ok(order)
    }

    /// The document.
    ///
    /// # Errors
    /// [`OrderError`] when it could not be read again: see [`LoadOrder::parse`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, OrderError> {
        self.check()?;
        let Self { image, reference, label, entrypoint, labels, created_at_ms, bytes, layers, reads, excerpt } =
            self.clone();
        let media_type = ORDER_TYPE.to_owned();
        let wire = Wire {
            media_type,
            version: VERSION,
            image,
            reference,
            label,
            entrypoint,
            labels,
            created_at_ms,
            bytes,
            layers,
            reads,
            excerpt,
        };
        let text = serde_json::to_vec(&wire).map_err(|e| OrderError::Document { reason: e.to_string() })?;
        match text.len() as u64 {
            bytes if bytes > MAX_DOCUMENT_BYTES => Err(OrderError::TooLarge { bytes, limit: MAX_DOCUMENT_BYTES }),
            _ => Ok(text),
        }
    }

    /// How many spans it names.
    #[must_use]
    pub fn spans(&self) -> u64 {
        self.reads.iter().map(|read| u64::from(read.count)).sum()
    }

    /// Requires that it is of this image.
    ///
    /// # Errors
    /// [`OrderError::OtherImage`].
    pub fn of_image(self, wanted: Digest) -> Result<Self, OrderError> {
        match self.image == wanted {
            true => Ok(self),
            false => Err(OrderError::OtherImage { found: self.image, wanted }),
        }
    }

    fn check(&self) -> Result<(), OrderError> {
        let bad = |reason: String| Err(OrderError::Document { reason });
        check_label(&self.label)?;
        let words = self.entrypoint.iter().chain(&self.reference);
        let mut texts = words.chain(self.labels.iter().flat_map(|(key, value)| [key, value]));
        if texts.any(|text| text.len() > MAX_TEXT) {
            return bad(format!("a text in it is longer than {MAX_TEXT} bytes"));
        }
        if self.entrypoint.len() > MAX_WORDS || self.labels.len() > MAX_WORDS {
            return bad(format!("it has more than {MAX_WORDS} labels, or words in its entrypoint"));
        }
        for (at, read) in self.reads.iter().enumerate() {
            let Some(layer) = self.layers.get(read.layer as usize) else {
                return bad(format!("read {at} is of layer {}, and there are {}", read.layer, self.layers.len()));
            };
            let fits = read.first.checked_add(read.count).is_some_and(|end| end <= layer.spans);
            if read.count == 0 || !fits {
                let (first, count, spans) = (read.first, read.count, layer.spans);
                return bad(format!("read {at} is of {count} spans from {first} on, and the layer has {spans}"));
            }
        }
        self.excerpt.as_ref().map_or(Ok(()), |excerpt| excerpt.check(self))
    }
}

/// Whether a text can be a label: it is part of a file's name and of annotations.
///
/// # Errors
/// [`OrderError::Label`].
pub fn check_label(label: &str) -> Result<(), OrderError> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=MAX_LABEL).contains(&label.len()) && label.chars().all(known) && !label.starts_with('.') {
        return Ok(());
    }
    let label = label.chars().take(MAX_LABEL).collect();
    Err(OrderError::Label { label, limit: MAX_LABEL })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn example() -> LoadOrder {
        let layer = |name: &[u8], spans| OrderLayer {
            layer: Digest::of(name),
            ztoc: Digest::of(&[name, b"z"].concat()),
            spans,
            span_bytes: 4 << 20,
        };
        LoadOrder {
            image: Digest::of(b"image"),
            reference: Some("docker.io/library/app:1".to_owned()),
            label: "web".to_owned(),
            entrypoint: vec!["/bin/app".to_owned(), "--serve".to_owned()],
            labels: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            created_at_ms: 1_700_000_000_000,
            bytes: 12_345,
            layers: vec![layer(b"one", 10), layer(b"two", 3)],
            reads: vec![
                Read { layer: 1, first: 0, count: 1, at_ms: 0 },
                Read { layer: 0, first: 4, count: 3, at_ms: 7 },
                Read { layer: 1, first: 2, count: 1, at_ms: 9 },
            ],
            excerpt: None,
        }
    }

    #[test]
    fn documents_are_read_as_they_were_written() {
        let order = example();
        let bytes = order.to_bytes().expect("a document");
        assert_eq!(LoadOrder::parse(&bytes).expect("a load order"), order);
        // What was written once must be read for ever, and two that record the same write the same.
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/load-order.json");
        assert_eq!(String::from_utf8_lossy(&bytes), std::fs::read_to_string(golden).expect("the golden file"));
        let value: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(value["mediaType"], ORDER_TYPE);
        assert_eq!(value["reads"], json!([[1, 0, 1, 0], [0, 4, 3, 7], [1, 2, 1, 9]]));
        assert_eq!(order.spans(), 5);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good: Value = serde_json::from_slice(&example().to_bytes().expect("a document")).expect("JSON");
        let with = |key: &str, value: Value| {
            let mut document = good.clone();
            document[key] = value;
            serde_json::to_vec(&document).expect("JSON")
        };
        let long = "x".repeat(5000);
        for (bytes, words) in [
            (b"{}".to_vec(), "mediaType"),
            (b"\xff".to_vec(), "no load order"),
            (with("mediaType", json!("text/plain")), "media type"),
            (with("version", json!(2)), "version 2"),
            (with("image", json!("sha256:12")), "no load order"),
            (with("label", json!("")), "cannot name"),
            (with("label", json!("../../etc/passwd")), "cannot name"),
            (with("label", json!(".hidden")), "cannot name"),
            (with("reference", json!(long)), "longer than"),
            (with("entrypoint", json!(vec!["a"; 300])), "more than"),
            (with("reads", json!([[2, 0, 1, 0]])), "of layer 2"),
            (with("reads", json!([[0, 0, 0, 0]])), "0 spans"),
            (with("reads", json!([[0, 8, 3, 0]])), "the layer has 10"),
            (with("reads", json!([[0, 4_294_967_295_u32, 2, 0]])), "the layer has 10"),
            (with("reads", json!([[0, -1, 2, 0]])), "no load order"),
            (vec![b' '; 5 << 20], "at most"),
        ] {
            let error = LoadOrder::parse(&bytes).expect_err(words).to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn an_order_is_of_one_image() {
        let order = example();
        assert!(order.clone().of_image(Digest::of(b"image")).is_ok());
        assert!(matches!(order.of_image(Digest::of(b"other")), Err(OrderError::OtherImage { .. })));
    }
}
