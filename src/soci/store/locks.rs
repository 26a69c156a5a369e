//! Who keeps a file locked: the kernel's list in `/proc/locks`, which names processes and inodes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The processes that hold locks on any of these files, for people: `process 4711 (sqlite3)`. Processes of other PID
/// namespaces cannot be named.
pub(super) fn holders(paths: &[&Path]) -> String {
    let list = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let inodes: Vec<u64> = paths.iter().filter_map(|path| std::fs::metadata(path).ok()).map(|m| m.ino()).collect();
    let mut pids: Vec<u32> = list.lines().filter_map(|line| holder(line, &inodes)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| *pid != std::process::id());
    if pids.is_empty() {
        return "another process".to_owned();
    }
    let name = |pid: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("process {pid} ({})", name.trim())
    };
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The process in a line such as `1: POSIX  ADVISORY  WRITE 4711 00:2c:1234 0 EOF` when it locks one of these inodes.
/// Device numbers are left out: btrfs and overlayfs show others than `stat` does.
fn holder(line: &str, inodes: &[u64]) -> Option<u32> {
    let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "READ" | "WRITE"));
    let pid = words.nth(1)?.parse().ok()?;
    let inode: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
    inodes.contains(&inode).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_s_list() {
        for (line, want) in [
            ("1: POSIX  ADVISORY  WRITE 4711 00:2c:1234 0 EOF", Some(4711)),
            ("2: FLOCK  ADVISORY  WRITE 12 fd:00:1234 0 EOF", Some(12)),
            ("3: POSIX  ADVISORY  READ 5 fd:00:99 124 124", None),
            ("3: -> POSIX  ADVISORY  READ 5 fd:00:1234 124 124", Some(5)),
            ("4: OFDLCK ADVISORY  READ -1 fd:00:1234 0 EOF", None),
            ("", None),
        ] {
            assert_eq!(holder(line, &[1, 1234]), want, "{line}");
        }
    }
}
