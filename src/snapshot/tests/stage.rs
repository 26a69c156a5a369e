//! Real mounts, as containerd makes them of what the snapshotter says, and changes to trees.

use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_remount, unmount};

use super::{World, skipped};
use crate::snapshot::Mount;
use crate::sys::namespace::detach_own;

/// Runs a test that mounts, in a mount namespace of its thread: what it leaves behind vanishes with it.
pub fn with_mounts<F: Future<Output = ()>>(test: &str, body: impl FnOnce(World) -> F) {
    if !rustix::process::geteuid().is_root() {
        skipped(test, "root");
        return;
    }
    detach_own().expect("a mount namespace of our own");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { body(World::new()).await });
}

/// Something mounted, until it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if unmount(&self.0, UnmountFlags::empty()).is_err() {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

/// Mounts at `target`, which is made, by the rules of containerd's mount package.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Mounted {
    std::fs::create_dir_all(target).expect("mount point");
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    let what = &mounts[0];
    match what.kind {
        "bind" => {
            assert!(what.options.iter().any(|option| option == "rbind"), "{what:?}");
            mount_bind_recursive(&what.source, target).unwrap_or_else(|error| panic!("{what:?}: {error}"));
            let mounted = Mounted(target.to_owned());
            if what.options.iter().any(|option| option == "ro") {
                mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").expect("read-only");
            }
            mounted
        }
        "overlay" => {
            let data = overlay_data(&what.options);
            mount(&*what.source, target, what.kind, MountFlags::empty(), data.as_c_str())
                .unwrap_or_else(|error| panic!("{what:?}: {error}"));
            Mounted(target.to_owned())
        }
        kind => panic!("mount of kind {kind}"),
    }
}

/// Options of mount(2) in one page: the common part of the lower directories becomes the working directory of this
/// thread, which shares it with no other (its namespace is its own).
fn overlay_data(options: &[String]) -> CString {
    let page = rustix::param::page_size();
    let mut options = options.to_vec();
    if options.join(",").len() >= page {
        let at = options.iter().position(|option| option.starts_with("lowerdir=")).expect("lower directories");
        let lowers: Vec<PathBuf> = options[at].trim_start_matches("lowerdir=").split(':').map(PathBuf::from).collect();
        let mut common: Vec<Component<'_>> = lowers[0].components().collect();
        for lower in &lowers {
            let same = common.iter().zip(lower.components()).take_while(|(a, b)| **a == *b).count();
            common.truncate(same);
        }
        let common: PathBuf = common.iter().collect();
        let short: Vec<_> =
            lowers.iter().map(|l| l.strip_prefix(&common).expect("common").display().to_string()).collect();
        options[at] = format!("lowerdir={}", short.join(":"));
        rustix::process::chdir(&common).expect("chdir");
    }
    let data = options.join(",");
    assert!(data.len() < page, "containerd cannot mount this: {} bytes of options", data.len());
    CString::new(data).expect("no NUL")
}

/// A change to a tree, in the words of containerd's fstest.
#[derive(Clone, Debug)]
pub enum Change {
    File(String, String, u32),
    Dir(String, u32),
    Remove(&'static str),
    Chown(&'static str, u32),
    Rename(&'static str, &'static str),
    Link(&'static str, &'static str),
}

pub fn file(path: impl Into<String>, content: impl Into<String>, mode: u32) -> Change {
    Change::File(path.into(), content.into(), mode)
}

pub fn dir(path: impl Into<String>, mode: u32) -> Change {
    Change::Dir(path.into(), mode)
}

pub fn apply(root: &Path, changes: &[Change]) {
    for change in changes {
        let done = match change {
            Change::File(path, content, mode) => {
                std::fs::write(root.join(path), content).and_then(|()| chmod(&root.join(path), *mode))
            }
            Change::Dir(path, mode) => {
                std::fs::create_dir_all(root.join(path)).and_then(|()| chmod(&root.join(path), *mode))
            }
            Change::Remove(path) => match std::fs::symlink_metadata(root.join(path)).map(|meta| meta.is_dir()) {
                Ok(true) => std::fs::remove_dir_all(root.join(path)),
                Ok(false) => std::fs::remove_file(root.join(path)),
                Err(_) => Ok(()),
            },
            Change::Chown(path, id) => std::os::unix::fs::lchown(root.join(path), Some(*id), Some(*id)),
            Change::Rename(from, to) => std::fs::rename(root.join(from), root.join(to)),
            Change::Link(from, to) => std::fs::hard_link(root.join(from), root.join(to)),
        };
        done.unwrap_or_else(|error| panic!("{change:?} in {}: {error}", root.display()));
    }
}

fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// One line for each entry below `root`: path, mode, owner, content.
pub fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("readable") {
            let path = entry.expect("entry").path();
            let meta = std::fs::symlink_metadata(&path).expect("stat");
            let content = if meta.is_file() { std::fs::read(&path).expect("read") } else { Vec::new() };
            lines.push(format!(
                "{} {:o} {}:{} {}",
                path.strip_prefix(root).expect("below").display(),
                meta.mode(),
                meta.uid(),
                meta.gid(),
                String::from_utf8_lossy(&content).escape_debug()
            ));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}
