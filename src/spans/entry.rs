//! Entries of a layer's table of contents.

use std::borrow::Cow;

use super::ModTime;
use crate::units::LayerRange;

/// PAX records with this prefix are extended attributes (star's convention, the only one that containerd and SOCI read).
pub const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What a tar entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Regular file.
    Reg,
    /// Directory.
    Dir,
    /// Symbolic link; target in `linkname`.
    Symlink,
    /// Hard link; `linkname` names an entry of the same layer.
    Hardlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

impl EntryKind {
    /// The word for it in a zTOC.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reg => "reg",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Hardlink => "hardlink",
            Self::Char => "char",
            Self::Block => "block",
            Self::Fifo => "fifo",
        }
    }

    /// The kind that a zTOC's word means, or `None` for a word that SOCI does not write.
    #[must_use]
    pub fn from_word(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"reg" => Self::Reg,
            b"dir" => Self::Dir,
            b"symlink" => Self::Symlink,
            b"hardlink" => Self::Hardlink,
            b"char" => Self::Char,
            b"block" => Self::Block,
            b"fifo" => Self::Fifo,
            _ => return None,
        })
    }
}

/// One entry of the table of contents. Names, owners and PAX records are raw tar bytes, not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TocEntry<'a> {
    /// Name exactly as in the tar (leading `./`, trailing `/` kept).
    pub name: Cow<'a, [u8]>,
    /// What it is.
    pub kind: EntryKind,
    /// Where the file's data lie in the layer; empty for anything but regular files (it then stands where data would
    /// begin: behind the entry's header).
    pub data: LayerRange,
    /// Target of a symbolic or hard link.
    pub linkname: Cow<'a, [u8]>,
    /// Permission bits with suid, sgid, sticky, as the tar has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, informative.
    pub uname: Cow<'a, [u8]>,
    /// Group's name, informative.
    pub gname: Cow<'a, [u8]>,
    /// Modification time.
    pub mtime: ModTime,
    /// Major number of a device.
    pub devmajor: u32,
    /// Minor number of a device.
    pub devminor: u32,
    /// All PAX records, sorted by key; those with the prefix `SCHILY.xattr.` are extended attributes.
    pub pax: Vec<PaxRecord<'a>>,
}

/// A PAX record: key and value.
pub type PaxRecord<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl TocEntry<'_> {
    /// The extended attributes among the PAX records: name without the prefix, value; sorted by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value.as_ref())))
    }

    /// The same entry with bytes of its own.
    #[must_use]
    pub fn into_owned(self) -> TocEntry<'static> {
        let owned = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        TocEntry {
            name: owned(self.name),
            kind: self.kind,
            data: self.data,
            linkname: owned(self.linkname),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            uname: owned(self.uname),
            gname: owned(self.gname),
            mtime: self.mtime,
            devmajor: self.devmajor,
            devminor: self.devminor,
            pax: self.pax.into_iter().map(|(key, value)| (owned(key), owned(value))).collect(),
        }
    }
}

/// Sorts by key; of equal keys the last one counts, as in the map that SOCI keeps records in.
pub(super) fn sort_records(records: &mut Vec<PaxRecord<'_>>) {
    if records.is_sorted_by(|(a, _), (b, _)| a < b) {
        return;
    }
    records.reverse();
    records.sort_by(|(a, _), (b, _)| a.cmp(b));
    records.dedup_by(|(earlier, _), (kept, _)| earlier == kept);
}

/// A name for people: lossy, and cut, since an error must not grow with its input.
pub(super) fn printable(name: &[u8]) -> String {
    const SHOWN_BYTES: usize = 200;
    let mut text = String::from_utf8_lossy(name.get(..SHOWN_BYTES).unwrap_or(name)).into_owned();
    if name.len() > SHOWN_BYTES {
        text.push('…');
    }
    text
}
