//! A tree, its EROFS image, and a place to mount in.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sociblk::sys::namespace::detach_own;

/// A temporary directory with `tree`, its image, and a mount namespace in which this thread may do as it likes.
pub struct Stage {
    dir: tempfile::TempDir,
}

impl Stage {
    /// `None`, after a word about it, when the machine lacks something.
    pub fn new(test: &str) -> Option<Self> {
        let skip = |missing: &str| {
            skipped(test, missing);
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("root");
        }
        if !Path::new("/dev/fuse").exists() {
            return skip("/dev/fuse");
        }
        if Command::new("mkfs.erofs").arg("--help").output().is_err() {
            return skip("mkfs.erofs (Debian: erofs-utils)");
        }
        detach_own().expect("a mount namespace of our own");
        let stage = Self { dir: tempfile::tempdir().expect("temporary directory") };
        stage.make_tree();
        let made = Command::new("mkfs.erofs").arg("--quiet").arg(stage.image()).arg(stage.tree()).output();
        let made = made.expect("mkfs.erofs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(stage)
    }

    fn make_tree(&self) {
        let tree = self.tree();
        fs::create_dir(&tree).expect("mkdir");
        for number in 0..200_usize {
            let dir = tree.join(format!("dir-{}", number % 7));
            fs::create_dir_all(&dir).expect("mkdir");
            fs::write(dir.join(format!("file-{number}")), noise(number as u64, number * 97)).expect("write");
        }
        fs::write(tree.join("big"), noise(7, 24 << 20)).expect("write");
        symlink("dir-1/file-1", tree.join("link")).expect("symlink");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn tree(&self) -> PathBuf {
        self.path("tree")
    }

    pub fn image(&self) -> PathBuf {
        self.path("image")
    }

    pub fn image_bytes(&self) -> u64 {
        fs::metadata(self.image()).expect("stat").len()
    }

    /// Threads started from here share this thread's mount namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        std::thread::spawn(work)
    }
}

/// Says so on standard error, past the test runner's capture.
pub fn skipped(test: &str, missing: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}").expect("stderr");
}

/// Bytes without a pattern (xorshift64*), the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// All paths beneath `root`, relative, sorted.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("list") {
            let entry = entry.expect("entry");
            if entry.file_type().expect("type").is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).expect("beneath").to_owned());
        }
    }
    found.sort();
    found
}

fn compare_one(want: &Path, got: &Path) {
    let (want_facts, got_facts) = (fs::symlink_metadata(want).expect("stat"), fs::symlink_metadata(got).expect("stat"));
    let kind = want_facts.file_type();
    assert_eq!(kind, got_facts.file_type(), "{got:?}");
    assert_eq!((want_facts.mode(), want_facts.uid()), (got_facts.mode(), got_facts.uid()), "{got:?}");
    if kind.is_file() {
        assert!(fs::read(want).expect("read") == fs::read(got).expect("read"), "{got:?} differs");
    } else if kind.is_symlink() {
        assert_eq!(fs::read_link(want).expect("link"), fs::read_link(got).expect("link"));
    } else {
        assert!(kind.is_dir() && !kind.is_socket(), "{got:?}");
    }
}

pub fn compare_trees(want: &Path, got: &Path) {
    let paths = walk(want);
    assert_eq!(paths, walk(got));
    paths.iter().for_each(|path| compare_one(&want.join(path), &got.join(path)));
}

/// The same from several threads at once, each from another place on.
pub fn parallel_compare(want: &Path, got: &Path, threads: usize) {
    let paths = walk(want);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let paths = &paths;
            scope.spawn(move || {
                for number in 0..paths.len() {
                    let path = &paths[(number + thread * paths.len() / threads) % paths.len()];
                    compare_one(&want.join(path), &got.join(path));
                }
            });
        }
    });
}

/// Waits until `done` says so, at most a minute.
pub fn run(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}
