//! Names as they stand in tars, made into paths inside the layer.

use smallvec::SmallVec;

use super::error::{TreeError, shown};

/// Longest name in a directory (NAME_MAX).
pub const MAX_NAME_BYTES: usize = 255;

/// Most directories inside each other: what a path of PATH_MAX bytes can hold.
pub const MAX_DEPTH: usize = 2048;

/// Longest target of a symbolic link: PATH_MAX without the closing zero byte.
pub const MAX_TARGET_BYTES: usize = 4095;

/// The prefix that makes an entry a deletion (OCI image specification, layer.md).
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// The part after [`WHITEOUT`] that marks a directory as opaque.
pub(super) const OPAQUE_REST: &[u8] = b".wh..opq";

/// The components of a path, cleaned.
pub(super) type Components<'a> = SmallVec<[&'a [u8]; 16]>;

/// Cleans a name the way that containerd and SOCI do: rooted, without empty and `.` components, `..` resolved by the
/// text alone and unable to leave the root. Empty for the root itself.
pub(super) fn clean(name: &[u8]) -> Result<Components<'_>, TreeError> {
    if name.contains(&0) {
        return Err(TreeError::NulInName { path: shown(name) });
    }
    let mut out = Components::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                out.pop();
            }
            _ => out.push(part),
        }
    }
    if out.len() > MAX_DEPTH {
        return Err(TreeError::TooDeep { path: shown(name) });
    }
    for part in &out {
        let limit = if part.starts_with(WHITEOUT) { MAX_NAME_BYTES + WHITEOUT.len() } else { MAX_NAME_BYTES };
        if part.len() > limit {
            return Err(TreeError::NameTooLong { path: shown(name), len_bytes: part.len() });
        }
    }
    Ok(out)
}

/// What an entry's last name asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark<'a> {
    /// An ordinary name.
    None,
    /// `.wh.X`: hide X of the layers below.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: hide all that the layers below have in this directory.
    Opaque,
    /// A whiteout of nothing, or bookkeeping of aufs.
    Meaningless,
}

/// Reads the last name of a path.
pub(super) fn mark(name: &[u8]) -> Mark<'_> {
    match name.strip_prefix(WHITEOUT) {
        None => Mark::None,
        Some(rest) if rest == OPAQUE_REST => Mark::Opaque,
        Some(rest) if rest.starts_with(WHITEOUT) || matches!(rest, b"" | b"." | b"..") => Mark::Meaningless,
        Some(rest) => Mark::Whiteout(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_text_and_never_leave_the_root() {
        for (name, want) in [
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("..", ""),
            ("../../etc/passwd", "etc/passwd"),
            ("./dot/../dot/./path//double", "dot/path/double"),
            ("/a/b/", "a/b"),
            ("a/../../b", "b"),
            ("...", "..."),
        ] {
            let got = clean(name.as_bytes()).expect("clean").join(&b'/');
            assert_eq!(got, want.as_bytes(), "{name:?}");
        }
        assert!(matches!(clean(b"a\0b"), Err(TreeError::NulInName { .. })));
        assert!(clean(&[b'n'; 255]).is_ok());
        assert!(matches!(clean(&[b'n'; 256]), Err(TreeError::NameTooLong { len_bytes: 256, .. })));
        assert!(matches!(clean("d/".repeat(2049).as_bytes()), Err(TreeError::TooDeep { .. })));
    }

    #[test]
    fn whiteout_marks() {
        for (name, want) in [
            (&b"plain"[..], Mark::None),
            (b".wh-not", Mark::None),
            (b".wh.x", Mark::Whiteout(b"x")),
            (b".wh..wh..opq", Mark::Opaque),
            (b".wh..wh.plnk", Mark::Meaningless),
            (b".wh.", Mark::Meaningless),
            (b".wh..", Mark::Meaningless),
            (b".wh...", Mark::Meaningless),
            (b".wh..hidden", Mark::Whiteout(b".hidden")),
        ] {
            assert_eq!(mark(name), want, "{}", shown(name));
        }
    }
}
