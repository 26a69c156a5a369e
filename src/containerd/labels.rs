//! Labels that containerd's garbage collector understands (containerd, `docs/garbage-collection.md`). A label's key and value
//! are at most 4096 bytes together.

use std::collections::BTreeMap;

use crate::units::Digest;

/// Labels of content, an image or a lease.
pub type Labels = BTreeMap<String, String>;

/// On a lease: when it may go, as RFC 3339 has times.
pub const EXPIRE: &str = "containerd.io/gc.expire";

/// On content or an image: the content in the value stays as long as this. What follows the prefix tells several such labels
/// apart.
const REFERENCE: &str = "containerd.io/gc.ref.content.";

/// The label's key for a reference with this name.
#[must_use]
pub fn reference(name: &str) -> String {
    format!("{REFERENCE}{name}")
}

/// References to content by their names.
#[must_use]
pub fn references<N: AsRef<str>>(to: impl IntoIterator<Item = (N, Digest)>) -> Labels {
    to.into_iter().map(|(name, digest)| (reference(name.as_ref()), digest.to_string())).collect()
}

/// What the reference with this name refers to.
#[must_use]
pub fn referenced(labels: &Labels, name: &str) -> Option<Digest> {
    labels.get(&reference(name))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_have_the_prefix_that_containerd_looks_for() {
        let digest = Digest::of(b"x");
        let labels = references([("m.0", digest)]);
        assert_eq!(labels.iter().next(), Some((&"containerd.io/gc.ref.content.m.0".to_owned(), &digest.to_string())));
        assert_eq!(referenced(&labels, "m.0"), Some(digest));
        assert_eq!(referenced(&labels, "m.1"), None);
        let bad = Labels::from([(reference("m.0"), "sha256:12".to_owned())]);
        assert_eq!(referenced(&bad, "m.0"), None);
    }
}
