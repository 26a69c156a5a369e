//! The label contract: what containerd and its clients say of a layer, and what we say of a snapshot. The keys are those
//! that SOCI's snapshotter reads and writes, so clients made for it work unchanged.

use super::info::Labels;
use crate::units::{BlobOffset, Digest, IdMap, IdRanges};

/// Chain ID under which an image layer will be committed; its presence says that this is an image layer.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Image reference.
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Digest of the image's manifest for its platform.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digests of this layer and those above it, separated by commas; cut where a label ends.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// Size of the layer in bytes.
pub const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// Digest of the SOCI index to use.
pub const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// Which load order the image's start follows: a label, or `off`. Ours alone.
pub const LOAD_ORDER: &str = "containerd.io/snapshot/remote/sociblk.load-order";
/// On a committed snapshot that is shown lazily.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// The namespace that a lazy snapshot was made in.
pub const REMOTE_NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";
/// Users of a container that has a user namespace of its own: see [`IdRanges`].
pub const USER_MAP: &str = "containerd.io/snapshot/uidmapping";
/// Its groups.
pub const GROUP_MAP: &str = "containerd.io/snapshot/gidmapping";
/// On snapshots of an image with an index: `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";

/// A layer of an image, as labels describe it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerWanted {
    /// The image, as whoever pulls it named it.
    pub image_ref: String,
    /// Its manifest.
    pub manifest: Digest,
    /// The layer.
    pub layer: Digest,
    /// The layer's size, where the client told it.
    pub layer_size: Option<BlobOffset>,
    /// The index to use, where the client named one.
    pub index: Option<Digest>,
    /// The load order to follow, where the client named one: a label, or `off`.
    pub load_order: Option<String>,
    /// containerd's namespace of the request.
    pub namespace: String,
}

/// Why labels name no layer that could be shown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// One that is needed is not there.
    #[error(
        "no label {label}; the client must pull with snapshot annotations (disable_snapshot_annotations = false in \
         containerd's CRI settings, or `sociblk rpull`)"
    )]
    Missing {
        /// Its key.
        label: &'static str,
    },
    /// One has a value that makes no sense.
    #[error("label {label}: {value:?}: {reason}")]
    Value {
        /// Its key.
        label: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl LayerWanted {
    /// Reads a layer's labels.
    ///
    /// # Errors
    /// [`LabelError`].
    pub fn from_labels(labels: &Labels, namespace: &str) -> Result<Self, LabelError> {
        let needed = |label| labels.get(label).ok_or(LabelError::Missing { label });
        let layer_size = match labels.get(LAYER_SIZE) {
            None => None,
            Some(value) => Some(BlobOffset::new(value.parse().map_err(|e| bad(LAYER_SIZE, value, &e))?)),
        };
        Ok(Self {
            image_ref: needed(IMAGE_REF)?.clone(),
            manifest: digest(MANIFEST_DIGEST, needed(MANIFEST_DIGEST)?)?,
            layer: digest(LAYER_DIGEST, needed(LAYER_DIGEST)?)?,
            layer_size,
            index: labels.get(INDEX_DIGEST).map(|value| digest(INDEX_DIGEST, value)).transpose()?,
            // A label cannot name a file of this machine.
            load_order: labels.get(LOAD_ORDER).filter(|name| !name.contains('/')).cloned(),
            namespace: namespace.to_owned(),
        })
    }
}

/// How the owners of a snapshot's files are to be mapped, if they are. One of the labels is as good as both: the others
/// are who they are.
///
/// # Errors
/// [`LabelError::Value`].
pub fn id_map(labels: &Labels) -> Result<Option<IdMap>, LabelError> {
    let ranges = |label| {
        let value = labels.get(label).filter(|value| !value.is_empty());
        value.map(|value| value.parse().map_err(|e| bad(label, value, &e))).transpose()
    };
    Ok(match (ranges(USER_MAP)?, ranges(GROUP_MAP)?) {
        (None, None) => None,
        (users, groups) => Some(IdMap {
            users: users.unwrap_or_else(IdRanges::identity),
            groups: groups.unwrap_or_else(IdRanges::identity),
        }),
    })
}

fn digest(label: &'static str, value: &str) -> Result<Digest, LabelError> {
    value.parse().map_err(|e| bad(label, value, &e))
}

fn bad(label: &'static str, value: &str, reason: &dyn std::fmt::Display) -> LabelError {
    LabelError::Value { label, value: value.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_layer_is_read_from_the_labels_that_clients_set() {
        let digest = Digest::of(b"x").to_string();
        let good = [
            (IMAGE_REF, "localhost:5000/app:1"),
            (MANIFEST_DIGEST, digest.as_str()),
            (LAYER_DIGEST, digest.as_str()),
            (LAYER_SIZE, "123"),
        ];
        let wanted = LayerWanted::from_labels(&labels(&good), "k8s.io").expect("complete");
        assert_eq!(wanted.layer_size, Some(BlobOffset::new(123)));
        assert_eq!((wanted.index, wanted.namespace.as_str()), (None, "k8s.io"));
        for missing in 0..3 {
            let mut some = good.to_vec();
            let (label, _) = some.remove(missing);
            assert_eq!(LayerWanted::from_labels(&labels(&some), "d"), Err(LabelError::Missing { label }));
        }
        for (label, value) in [(MANIFEST_DIGEST, "sha256:12"), (LAYER_SIZE, "-1"), (INDEX_DIGEST, "")] {
            let mut bad = labels(&good);
            bad.insert(label.to_owned(), value.to_owned());
            let error = LayerWanted::from_labels(&bad, "d").expect_err(label).to_string();
            assert!(error.contains(label), "{error}");
        }
    }
}
