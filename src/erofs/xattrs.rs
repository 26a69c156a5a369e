//! Extended attributes: what stands behind an inode, what is shared by many.

use xxhash_rust::xxh32::xxh32;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32};

use super::format::{XattrEntry, XattrHeader};
use crate::tree::{Tree, Xattr};
use crate::units::u64_from_usize;

/// `EROFS_XATTR_FILTER_SEED`.
const FILTER_SEED: u32 = 0x25BB_E08F;

/// `shared_count` of an inode is one byte.
const MAX_SHARED: usize = 255;

/// Name prefixes that EROFS writes as a number (`EROFS_XATTR_INDEX_*`). Those of access control lists are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The prefix with a number.
pub(super) fn prefix(number: u8) -> Option<&'static [u8]> {
    PREFIXES.iter().find(|(_, index)| *index == number).map(|(prefix, _)| *prefix)
}

/// Prefix number and rest of a name.
fn split_name(name: &[u8]) -> (u8, &[u8]) {
    // The tree holds names with these prefixes only.
    PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?))).unwrap_or((1, name))
}

/// The bit of the bloom filter that is *cleared* by this name.
pub(super) fn filter_bit(name: &[u8]) -> u32 {
    let (index, rest) = split_name(name);
    xxh32(rest, FILTER_SEED.wrapping_add(u32::from(index))) & 31
}

fn encode(xattr: &Xattr, out: &mut Vec<u8>) {
    let (name_index, rest) = split_name(&xattr.name);
    let header = XattrEntry {
        // The tree limits names to 255 bytes and values to 65535.
        name_len: u8::try_from(rest.len()).unwrap_or(u8::MAX),
        name_index,
        value_size: U16::new(u16::try_from(xattr.value.len()).unwrap_or(u16::MAX)),
    };
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(&xattr.value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// How the attributes of a tree are written.
#[derive(Debug)]
pub(super) struct XattrPlan {
    /// For each set: the bytes behind an inode that has it; empty for the empty set.
    bodies: Vec<Box<[u8]>>,
    /// The attributes that several inodes share.
    pub(super) shared: Vec<u8>,
}

impl XattrPlan {
    pub(super) fn new(tree: &Tree) -> Self {
        let mut set_uses = vec![0_u64; tree.xattr_sets().len()];
        for node in tree.inodes() {
            set_uses[node.xattr_set().index()] += 1;
        }
        let mut item_uses = vec![0_u64; tree.xattr_items().len()];
        for (set, uses) in tree.xattr_sets().zip(&set_uses) {
            for &item in set {
                item_uses[item as usize] += uses;
            }
        }
        let mut shared = Vec::new();
        // For each attribute: its place among the shared ones in units of 4 bytes, when it is worth one.
        let mut shared_at: Vec<Option<u32>> = Vec::with_capacity(item_uses.len());
        let mut encoded = Vec::with_capacity(item_uses.len());
        for (item, uses) in tree.xattr_items().zip(&item_uses) {
            let mut bytes = Vec::new();
            encode(item, &mut bytes);
            let apart = uses * u64_from_usize(bytes.len());
            let together = u64_from_usize(bytes.len()) + 4 * uses;
            let at = u32::try_from(shared.len() / 4).ok().filter(|_| together < apart);
            if at.is_some() {
                shared.extend_from_slice(&bytes);
            }
            shared_at.push(at);
            encoded.push(bytes);
        }
        let items: Vec<&Xattr> = tree.xattr_items().collect();
        let bodies = tree
            .xattr_sets()
            .map(|set| {
                if set.is_empty() {
                    return Box::default();
                }
                let mut name_filter = u32::MAX;
                let mut shared_ids = Vec::new();
                let mut inline = Vec::new();
                for &item in set {
                    let item = item as usize;
                    name_filter &= !(1 << filter_bit(&items[item].name));
                    match shared_at[item] {
                        Some(at) if shared_ids.len() < MAX_SHARED => shared_ids.push(at),
                        _ => inline.extend_from_slice(&encoded[item]),
                    }
                }
                let header = XattrHeader {
                    name_filter: U32::new(name_filter),
                    shared_count: u8::try_from(shared_ids.len()).unwrap_or(u8::MAX),
                    ..XattrHeader::default()
                };
                let mut body = header.as_bytes().to_vec();
                body.extend(shared_ids.iter().flat_map(|id| id.to_le_bytes()));
                body.extend_from_slice(&inline);
                body.into_boxed_slice()
            })
            .collect();
        Self { bodies, shared }
    }

    /// What follows an inode with this set.
    pub(super) fn body(&self, set: crate::tree::XattrSetId) -> &[u8] {
        &self.bodies[set.index()]
    }

    /// `i_xattr_icount` for such a body.
    pub(super) fn icount(body: &[u8]) -> u16 {
        match body.len().checked_sub(size_of::<XattrHeader>()) {
            // The tree limits the attributes of an inode so that this fits.
            Some(rest) => u16::try_from(rest / 4 + 1).unwrap_or(u16::MAX),
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn filter_bits_agree_with_the_kernels() {
        for (name, bit) in [
            ("trusted.overlay.opaque", 20),
            ("trusted.overlay.origin", 18),
            ("trusted.overlay.whiteout", 5),
            ("trusted.overlay.metacopy", 31),
            ("trusted.overlay.redirect", 17),
            ("user.overlay.opaque", 10),
            ("security.capability", 29),
            ("security.selinux", 11),
            ("system.posix_acl_access", 30),
            ("system.posix_acl_default", 21),
        ] {
            assert_eq!(super::filter_bit(name.as_bytes()), bit, "{name}");
        }
    }
}
