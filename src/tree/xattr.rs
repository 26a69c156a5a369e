//! Extended attributes: which can be shown, and each distinct one held once.

use std::collections::HashMap;
use std::sync::Arc;

use super::Omissions;
use crate::spans::XATTR_PREFIX;

/// XATTR_NAME_MAX of Linux, prefix included.
const MAX_XATTR_NAME_BYTES: usize = 255;

/// EROFS writes the size of a value as 16 bits.
const MAX_XATTR_VALUE_BYTES: usize = 65535;

/// XATTR_LIST_MAX of Linux: longer lists cannot be read. It also keeps all attributes of one inode within what EROFS
/// can count (65535 units of 4 bytes), together with [`MAX_SET_BYTES`].
const MAX_LIST_BYTES: usize = 65536;

/// Most bytes that the attributes of one inode take in EROFS: 65535 units of 4 bytes, less headers and roundings.
const MAX_SET_BYTES: usize = 65000 * 4;

/// One extended attribute.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Xattr {
    /// Full name, prefix included, for example `security.capability`.
    pub name: Box<[u8]>,
    /// Value; not necessarily text.
    pub value: Box<[u8]>,
}

impl Xattr {
    /// An attribute of these bytes.
    #[must_use]
    pub fn new(name: &[u8], value: &[u8]) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// The number of a set of attributes that one or more inodes share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct XattrSetId(pub(super) u32);

impl XattrSetId {
    /// The set without attributes.
    pub const EMPTY: Self = Self(0);

    /// As an index into per-set tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Every distinct attribute and every distinct set of attributes, once.
#[derive(Clone, Debug)]
pub(super) struct XattrStore {
    items: Vec<Arc<Xattr>>,
    sets: Vec<Arc<[u32]>>,
    item_numbers: HashMap<Arc<Xattr>, u32>,
    set_numbers: HashMap<Arc<[u32]>, u32>,
}

impl Default for XattrStore {
    fn default() -> Self {
        let none: Arc<[u32]> = Arc::new([]);
        Self {
            items: Vec::new(),
            sets: vec![none.clone()],
            item_numbers: HashMap::new(),
            set_numbers: HashMap::from([(none, 0)]),
        }
    }
}

impl XattrStore {
    pub(super) fn set(&self, id: XattrSetId) -> impl ExactSizeIterator<Item = &Xattr> + Clone {
        self.sets[id.index()].iter().map(|&item| &*self.items[item as usize])
    }

    pub(super) fn sets(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.sets.iter().map(|set| &**set)
    }

    pub(super) fn items(&self) -> impl ExactSizeIterator<Item = &Xattr> {
        self.items.iter().map(|item| &**item)
    }

    /// The set of these attributes; the last of equal names wins.
    pub(super) fn intern(&mut self, mut xattrs: Vec<Xattr>) -> XattrSetId {
        if xattrs.is_empty() {
            return XattrSetId::EMPTY;
        }
        // The sort is stable: of equal names the last one stays last, and is the one kept.
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        xattrs.reverse();
        xattrs.dedup_by(|a, b| a.name == b.name);
        xattrs.reverse();
        let numbers: Arc<[u32]> = xattrs.into_iter().map(|x| self.item(x)).collect();
        if let Some(&id) = self.set_numbers.get(&numbers) {
            return XattrSetId(id);
        }
        // One set at most per inode, and inodes are counted in 32 bits.
        let id = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(numbers.clone());
        self.set_numbers.insert(numbers, id);
        XattrSetId(id)
    }

    fn item(&mut self, xattr: Xattr) -> u32 {
        if let Some(&id) = self.item_numbers.get(&xattr) {
            return id;
        }
        // Each item took at least its name in the table of contents; 2^32 of them do not fit into one.
        let id = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        let xattr = Arc::new(xattr);
        self.items.push(xattr.clone());
        self.item_numbers.insert(xattr, id);
        id
    }

    /// Frees what is only needed to add attributes.
    pub(super) fn without_lookup(mut self) -> Self {
        self.item_numbers = HashMap::new();
        self.set_numbers = HashMap::new();
        self
    }

    /// Makes [`Self::intern`] work again after [`Self::without_lookup`].
    pub(super) fn rebuild_lookup(&mut self) {
        // Both lists were entered with numbers of 32 bits.
        self.item_numbers = self.items.iter().cloned().zip(0..).collect();
        self.set_numbers = self.sets.iter().cloned().zip(0..).collect();
    }
}

/// The extended attributes among an entry's PAX records, counting those that cannot be shown.
pub(super) fn from_pax<'a>(
    pax: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    omissions: &mut Omissions,
) -> Vec<Xattr> {
    let mut out = Vec::new();
    for (key, value) in pax {
        let Some(name) = key.strip_prefix(XATTR_PREFIX) else { continue };
        if is_overlay(name) {
            omissions.overlay_xattrs += 1;
        } else if is_expressible(name, value) {
            out.push(Xattr::new(name, value));
        } else {
            omissions.inexpressible_xattrs += 1;
        }
    }
    let (mut list_bytes, mut set_bytes) = (0, 0);
    let before = out.len();
    out.retain(|x| {
        list_bytes += x.name.len() + 1;
        set_bytes += 16 + x.name.len() + x.value.len();
        list_bytes <= MAX_LIST_BYTES && set_bytes <= MAX_SET_BYTES
    });
    omissions.inexpressible_xattrs += crate::units::u64_from_usize(before - out.len());
    out
}

/// Whether overlayfs would take this attribute as an order.
pub(super) fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether EROFS has a place for this attribute and the kernel would answer with it.
fn is_expressible(name: &[u8], value: &[u8]) -> bool {
    if name.len() > MAX_XATTR_NAME_BYTES || value.len() > MAX_XATTR_VALUE_BYTES || name.contains(&0) {
        return false;
    }
    match name {
        b"system.posix_acl_access" | b"system.posix_acl_default" => is_acl(value),
        _ => [&b"user."[..], b"trusted.", b"security."]
            .iter()
            .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix)),
    }
}

/// The kernel's form of an access control list: version 2, entries of 8 bytes (posix_acl_xattr.h).
fn is_acl(value: &[u8]) -> bool {
    value.split_first_chunk::<4>().is_some_and(|(version, entries)| {
        u32::from_le_bytes(*version) == 2 && !entries.is_empty() && entries.len().is_multiple_of(8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attributes_that_the_kernel_would_answer_with_are_kept() {
        let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255];
        for (name, value, kept) in [
            (&b"user.a"[..], &b"v"[..], true),
            (b"user.", b"v", false),
            (b"trusted.x", b"", true),
            (b"security.capability", b"\x01", true),
            (b"system.posix_acl_access", &acl, true),
            (b"system.posix_acl_access", b"u::rwx", false),
            (b"system.nfs4_acl", b"v", false),
            (b"com.apple.quarantine", b"v", false),
            (b"user.nul\0", b"v", false),
        ] {
            assert_eq!(is_expressible(name, value), kept, "{}", String::from_utf8_lossy(name));
        }
        assert!(!is_expressible(b"user.big", &vec![0; 65536]));
        let mut omissions = Omissions::default();
        let key = |n: &str| format!("SCHILY.xattr.{n}").into_bytes();
        let records = [
            (key("trusted.overlay.redirect"), b"/etc"),
            (key("user.overlay.opaque"), b"yyyy"),
            (key("user.kept"), b"kept"),
            (key("system.other"), b"nope"),
            (b"path".to_vec(), b"/etc"),
        ];
        let got = from_pax(records.iter().map(|(k, v)| (&**k, &v[..])), &mut omissions);
        assert_eq!(got, [Xattr::new(b"user.kept", b"kept")]);
        assert_eq!((omissions.overlay_xattrs, omissions.inexpressible_xattrs), (2, 1));
    }

    #[test]
    fn equal_sets_are_one_and_the_last_of_equal_names_wins() {
        let mut store = XattrStore::default();
        let (a, b, c) = (Xattr::new(b"user.a", b"1"), Xattr::new(b"user.b", b"2"), Xattr::new(b"user.a", b"3"));
        let ab = store.intern(vec![b.clone(), a.clone()]);
        assert_eq!(store.intern(vec![a.clone(), b.clone()]), ab);
        let cb = store.intern(vec![a, b.clone(), c.clone()]);
        assert_eq!(store.set(cb).cloned().collect::<Vec<_>>(), [c, b]);
        assert_eq!(store.intern(vec![]), XattrSetId::EMPTY);
    }
}
