//! Which mounts make up a snapshot. containerd does the mounting.

use std::path::{Path, PathBuf};

/// One mount, as containerd's `mount.Mount` has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// File system type, or `bind`.
    pub kind: &'static str,
    /// Device or directory.
    pub source: String,
    /// Options, in the words of mount(8).
    pub options: Vec<String>,
}

/// What a snapshot is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Parts {
    /// Its own files: where writes go. `None` for a view.
    pub upper: Option<PathBuf>,
    /// Work directory of overlayfs, beside `upper`.
    pub work: PathBuf,
    /// Its own files when it has no parent.
    pub own: PathBuf,
    /// Parents' files, topmost first, each once.
    pub lowers: Vec<PathBuf>,
}

/// The mounts of a snapshot.
pub(super) fn of(parts: &Parts, index_off: bool) -> Mount {
    let bind = |source: &PathBuf, mode: &str| Mount {
        kind: "bind",
        source: text(source),
        options: vec![mode.to_owned(), "rbind".to_owned()],
    };
    match (&parts.upper, parts.lowers.as_slice()) {
        (Some(upper), []) => bind(upper, "rw"),
        (None, []) => bind(&parts.own, "ro"),
        (None, [only]) => bind(only, "ro"),
        (upper, lowers) => {
            let mut options = Vec::new();
            if index_off {
                // Lower layers of one image may share an origin with those of another that is mounted now.
                options.push("index=off".to_owned());
            }
            if let Some(upper) = upper {
                options.push(format!("workdir={}", text(&parts.work)));
                options.push(format!("upperdir={}", text(upper)));
            }
            let lowers: Vec<String> = lowers.iter().map(|lower| text(lower)).collect();
            options.push(format!("lowerdir={}", lowers.join(":")));
            Mount { kind: "overlay", source: "overlay".to_owned(), options }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
