//! Real mounts, each test in a mount namespace of its own thread: what a failed test leaves behind vanishes with it.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::erofs::{self, OpenImage, Way};
use super::overlay::{Overlay, Stacking};
use super::*;
use crate::sys::namespace::detach_own;
use crate::units::IdMap;

mod helper_tests;

/// Says so on standard error, past the test runner's capture.
fn skipped(test: &str, missing: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {test}: {missing}").expect("stderr");
}

/// A temporary directory and a namespace to mount in; `None`, after a word about it, without root.
fn stage(test: &str) -> Option<tempfile::TempDir> {
    if !rustix::process::geteuid().is_root() {
        skipped(test, "root");
        return None;
    }
    detach_own().expect("a mount namespace of our own");
    Some(tempfile::tempdir().expect("temporary directory"))
}

/// An EROFS image with one file `name`, or `None` without mkfs.erofs.
fn image(dir: &Path, test: &str, name: &str) -> Option<PathBuf> {
    let tree = dir.join("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join(name), name).expect("write");
    let image = dir.join("image");
    let Ok(made) = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree).output() else {
        skipped(test, "mkfs.erofs (Debian: erofs-utils)");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(image)
}

fn make_dir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).expect("mkdir");
    path
}

fn erofs_op(image: &Path, target: &Path) -> MountOp {
    MountOp::Erofs { image: image.into(), target: target.into(), metadata_bytes: 4096, context: None }
}

fn overlay_op(lowers: &[PathBuf], target: &Path) -> MountOp {
    MountOp::Overlay {
        lowers: lowers.iter().map(MountPath::from).collect(),
        empty_lower: None,
        upper: None,
        target: target.into(),
        read_only: true,
    }
}

fn unmount_op(target: &Path) -> MountOp {
    MountOp::Unmount { target: target.into(), lazy: false }
}

/// Waits until no loop device holds `file`: the kernel frees them a moment after the last use.
fn await_no_loop_on(file: &Path) {
    let bound = || {
        fs::read_dir("/sys/block").expect("/sys").any(|entry| {
            let backing = entry.expect("entry").path().join("loop/backing_file");
            fs::read(backing).is_ok_and(|name| name.starts_with(file.as_os_str().as_bytes()))
        })
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while bound() {
        assert!(Instant::now() < deadline, "a loop device is left on {file:?}");
        std::thread::yield_now();
    }
}

#[test]
fn erofs_mounts_from_a_file_directly_and_through_a_loop_device() {
    const TEST: &str = "erofs_mounts_from_a_file_directly_and_through_a_loop_device";
    let Some(dir) = stage(TEST) else { return };
    let Some(image) = image(dir.path(), TEST, "hello") else { return };
    let target = make_dir(dir.path().join("mnt"));
    for way in [Way::Best, Way::Direct, Way::Loop] {
        let open = OpenImage::open(&image.as_path().into()).expect("open");
        let mount = match erofs::prepare(&open, None, way) {
            Err(MountError::System { source, .. }) if way == Way::Direct => {
                skipped(TEST, &format!("file-backed EROFS: {source}"));
                continue;
            }
            prepared => prepared.expect("mount"),
        };
        attach::attach(std::os::fd::AsFd::as_fd(&mount), &target).expect("attach");
        drop((mount, open));
        let entry = mounts_under(&target).expect("mountinfo").pop().expect("a mount");
        assert_eq!(entry.fs_type, "erofs");
        assert_eq!(entry.source.as_bytes().starts_with(b"/dev/loop"), way == Way::Loop, "{entry:?}");
        assert_eq!(fs::read(target.join("hello")).expect("read"), b"hello");
        execute(&[unmount_op(&target)]).expect("unmount");
        assert!(!is_mountpoint(&target).expect("mountinfo"));
    }
    await_no_loop_on(&image);
}

/// `count` directories, each with a file of its own and one that all have.
fn layers(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|number| {
            let layer = make_dir(dir.join(format!("layer-{number:03}")));
            fs::write(layer.join(format!("own-{number}")), "").expect("write");
            fs::write(layer.join("shared"), number.to_string()).expect("write");
            layer
        })
        .collect()
}

#[test]
fn overlays_of_few_and_many_layers_show_the_topmost_file() {
    let Some(dir) = stage("overlays_of_few_and_many_layers_show_the_topmost_file") else { return };
    let target = make_dir(dir.path().join("mnt"));
    for count in [2, 3, 200, 499] {
        let lowers = layers(&make_dir(dir.path().join(format!("{count}-{}", "long".repeat(20)))), count);
        execute(&[overlay_op(&lowers, &target)]).expect("mount");
        assert_eq!(fs::read_dir(&target).expect("list").count(), count + 1);
        assert_eq!(fs::read_to_string(target.join("shared")).expect("read"), "0");
        let error = fs::write(target.join("new"), "").expect_err("read-only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        execute(&[unmount_op(&target)]).expect("unmount");
    }
    let many = vec![target.clone(); 501];
    assert!(matches!(execute(&[overlay_op(&many, &target)]), Err(MountError::TooManyLowers { limit: 500, .. })));
    assert!(matches!(execute(&[overlay_op(&[], &target)]), Err(MountError::NoLowers { .. })));
}

#[test]
fn the_way_of_older_kernels_stacks_as_well() {
    let Some(dir) = stage("the_way_of_older_kernels_stacks_as_well") else { return };
    let target: MountPath = make_dir(dir.path().join("mnt")).into();
    let (upper, work) = (make_dir(dir.path().join("up,per")), make_dir(dir.path().join("wo:rk")));
    let lowers: Vec<MountPath> =
        layers(&make_dir(dir.path().join("a:b,c".repeat(10))), 150).into_iter().map(MountPath::from).collect();
    let overlay = Overlay {
        lowers: &lowers,
        empty_lower: None,
        upper: Some(&UpperDirs { upper: upper.clone().into(), work: work.into() }),
        target: &target,
        read_only: false,
    };
    let mut announced = Vec::new();
    let mut announce = |undo: &ops::Undo| {
        announced.push(undo.clone());
        Ok(())
    };
    overlay::mount_by(Stacking::OneString, &overlay, &target, &mut ops::Journal::new(&mut announce)).expect("mount");
    assert_eq!(announced, [ops::Undo::Unmount { target: target.clone() }]);
    assert_eq!(fs::read_dir(&target).expect("list").count(), 151);
    fs::write(target.join("shared"), "changed").expect("write");
    assert_eq!(fs::read(upper.join("shared")).expect("read"), b"changed");
    execute(&[unmount_op(&target)]).expect("unmount");
}

#[test]
fn without_the_capability_the_remedy_is_root() {
    const TEST: &str = "without_the_capability_the_remedy_is_root";
    let Some(dir) = stage(TEST) else { return };
    let lowers = layers(dir.path(), 2);
    let target = make_dir(dir.path().join("mnt"));
    let mut sets = rustix::thread::capabilities(None).expect("capabilities");
    sets.effective.remove(rustix::thread::CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, sets).expect("fewer capabilities, in this thread only");
    let error = execute(&[overlay_op(&lowers, &target)]).expect_err("not permitted");
    assert!(matches!(error, MountError::NotPermitted { .. }) && error.to_string().contains("root"), "{error}");
    let probes = probe_all(dir.path());
    assert!(
        probes.iter().any(|probe| probe.state == ProbeState::Unknown && probe.remedy.contains("root")),
        "{probes:?}"
    );
}

#[test]
fn a_lone_layer_needs_an_empty_one_and_hides_its_whiteouts() {
    let Some(dir) = stage("a_lone_layer_needs_an_empty_one_and_hides_its_whiteouts") else { return };
    let target = make_dir(dir.path().join("mnt"));
    let lowers = layers(dir.path(), 1);
    let whiteout = lowers[0].join("gone");
    rustix::fs::mknodat(rustix::fs::CWD, &whiteout, rustix::fs::FileType::CharacterDevice, 0o600.into(), 0)
        .expect("mknod");
    assert!(matches!(execute(&[overlay_op(&lowers, &target)]), Err(MountError::EmptyLowerNeeded { .. })));
    let with_empty = |empty: &Path| {
        let MountOp::Overlay { lowers, upper, target, read_only, .. } = overlay_op(&lowers, &target) else {
            unreachable!("made as an overlay")
        };
        execute(&[MountOp::Overlay { lowers, empty_lower: Some(empty.into()), upper, target, read_only }])
    };
    assert!(matches!(with_empty(&lowers[0]), Err(MountError::EmptyLowerFilled { .. })));
    assert!(matches!(with_empty(&dir.path().join("no")), Err(MountError::SourceMissing { .. })));
    with_empty(&make_dir(dir.path().join("empty"))).expect("mount");
    let mut names: Vec<_> = fs::read_dir(&target).expect("list").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["own-0", "shared"]);
    assert!(fs::symlink_metadata(target.join("gone")).is_err());
    execute(&[unmount_op(&target)]).expect("unmount");
}

#[test]
fn an_upper_takes_changes_and_odd_names_do_no_harm() {
    let Some(dir) = stage("an_upper_takes_changes_and_odd_names_do_no_harm") else { return };
    for (number, odd) in ["plain", "a:b,c", "back\\slash", "space and\nline", &"l".repeat(250)].into_iter().enumerate()
    {
        let base = make_dir(dir.path().join(odd));
        let lowers = layers(&base, 1);
        let target = make_dir(base.join("mnt"));
        let upper = UpperDirs { upper: make_dir(base.join("upper")).into(), work: make_dir(base.join("work")).into() };
        execute(&[MountOp::Overlay {
            lowers: lowers.iter().map(MountPath::from).collect(),
            empty_lower: None,
            upper: Some(upper),
            target: target.as_path().into(),
            read_only: false,
        }])
        .unwrap_or_else(|error| panic!("{odd:?}: {error}"));
        fs::write(target.join("shared"), "changed").expect("write");
        fs::remove_file(target.join("own-0")).expect("remove");
        assert!(is_mountpoint(&target).expect("mountinfo"), "case {number}");
        execute(&[unmount_op(&target)]).expect("unmount");
        assert_eq!(fs::read_to_string(base.join("upper/shared")).expect("read"), "changed");
        assert_eq!(fs::read_to_string(lowers[0].join("shared")).expect("read"), "0");
    }
}

#[test]
fn a_failing_step_undoes_those_before_it() {
    const TEST: &str = "a_failing_step_undoes_those_before_it";
    let Some(dir) = stage(TEST) else { return };
    let Some(image) = image(dir.path(), TEST, "hello") else { return };
    let base = dir.path().join("run");
    let (first, second) = (base.join("layers/1"), base.join("layers/2"));
    let missing = base.join("nowhere");
    let error = execute(&[
        MountOp::MakeDir { path: first.as_path().into(), mode: 0o700 },
        erofs_op(&image, &first),
        MountOp::MakeDir { path: second.as_path().into(), mode: 0o700 },
        overlay_op(&[first.clone(), dir.path().join("tree")], &second),
        erofs_op(&image, &missing),
    ]);
    assert_eq!(error, Err(MountError::TargetMissing { target: missing.into() }));
    assert!(mounts_under(dir.path()).expect("mountinfo").is_empty());
    assert!(!base.exists(), "made directories are gone");
}

#[test]
fn what_cannot_be_mounted_is_named() {
    const TEST: &str = "what_cannot_be_mounted_is_named";
    let Some(dir) = stage(TEST) else { return };
    let Some(image) = image(dir.path(), TEST, "hello") else { return };
    let target = make_dir(dir.path().join("mnt"));
    let (file, text, fifo) = (dir.path().join("file"), dir.path().join("text"), dir.path().join("fifo"));
    fs::write(&file, "").expect("write");
    fs::write(&text, vec![b'x'; 8192]).expect("write");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("mkfifo");
    let fails = |op: MountOp| execute(&[op]).expect_err("must fail");

    assert_eq!(fails(erofs_op(&file, &target)), MountError::NotErofs { image: file.as_path().into() });
    assert_eq!(fails(erofs_op(&text, &target)), MountError::NotErofs { image: text.as_path().into() });
    assert_eq!(fails(erofs_op(&fifo, &target)), MountError::ImageKind { image: fifo.as_path().into() });
    assert_eq!(fails(erofs_op(&target, &target)), MountError::ImageKind { image: target.as_path().into() });
    assert!(matches!(fails(erofs_op(&dir.path().join("no"), &target)), MountError::SourceMissing { .. }));
    assert!(matches!(fails(erofs_op(&image, &file)), MountError::TargetNotDirectory { .. }));
    assert!(matches!(fails(erofs_op(&image, &file.join("x"))), MountError::TargetNotDirectory { .. }));
    assert!(matches!(fails(unmount_op(&target)), MountError::NotMounted { .. }));
    assert!(matches!(fails(MountOp::MakeDir { path: file.join("x").into(), mode: 0o700 }), MountError::System { .. }));

    // A super block that claims a block size which no kernel mounts.
    let mut bytes = fs::read(&image).expect("read");
    bytes[1024 + 12] = 60;
    let broken = dir.path().join("broken");
    fs::write(&broken, bytes).expect("write");
    assert!(matches!(fails(erofs_op(&broken, &target)), MountError::System { .. }));
    await_no_loop_on(&broken);

    execute(&[erofs_op(&image, &target)]).expect("mount");
    let link = dir.path().join("link");
    symlink(&target, &link).expect("symlink");
    assert!(matches!(fails(erofs_op(&image, &link)), MountError::TargetBusy { .. }));
    let user = fs::File::open(target.join("hello")).expect("open");
    assert_eq!(fails(unmount_op(&target)), MountError::InUse { target: target.as_path().into() });
    execute(&[MountOp::Unmount { target: target.as_path().into(), lazy: true }]).expect("lazily");
    drop(user);
    assert!(mounts_under(dir.path()).expect("mountinfo").is_empty());
}

/// Where SELinux is off the kernel does not know the option: what was set is told, and nothing is mounted.
#[test]
fn a_label_that_cannot_be_given_is_named() {
    const TEST: &str = "a_label_that_cannot_be_given_is_named";
    let Some(dir) = stage(TEST) else { return };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return skipped(TEST, "a kernel with SELinux off");
    }
    let Some(image) = image(dir.path(), TEST, "hello") else { return };
    let target = make_dir(dir.path().join("mnt"));
    let context = Some("system_u:object_r:container_ro_file_t:s0".to_owned());
    let op = MountOp::Erofs { image: image.as_path().into(), target: target.into(), metadata_bytes: 0, context };
    let refused = execute(&[op]).expect_err("no SELinux").to_string();
    assert!(refused.contains("label the files of") && refused.contains("snapshotter.selinux_context"), "{refused}");
    assert!(mounts_under(dir.path()).expect("mountinfo").is_empty());
    await_no_loop_on(&image);
}

#[test]
fn owners_are_mapped_by_the_kernel() {
    use std::os::unix::fs::MetadataExt;
    const TEST: &str = "owners_are_mapped_by_the_kernel";
    let Some(dir) = stage(TEST) else { return };
    let Some(image) = image(dir.path(), TEST, "hello") else { return };
    let (plain, mapped) = (make_dir(dir.path().join("plain")), make_dir(dir.path().join("mapped")));
    let map = IdMap {
        users: "0:1000:1,1:100000:65535".parse().expect("users"),
        groups: "0:2000:65536".parse().expect("groups"),
    };
    let map_op =
        |source: &Path| MountOp::MapOwners { source: source.into(), target: mapped.clone().into(), map: map.clone() };
    // Behind a link, as snapshots have their layers.
    let link = dir.path().join("link");
    symlink(&plain, &link).expect("symlink");
    execute(&[erofs_op(&image, &plain), map_op(&link)]).expect("mounts");
    let owner = |dir: &Path| fs::metadata(dir.join("hello")).map(|meta| (meta.uid(), meta.gid())).expect("stat");
    assert_eq!((owner(&plain), owner(&mapped)), ((0, 0), (1000, 2000)));
    assert_eq!(fs::read_to_string(mapped.join("hello")).expect("read"), "hello");
    // It is the same file system, and lives on by itself.
    execute(&[unmount_op(&plain)]).expect("unmount");
    assert_eq!(owner(&mapped), (1000, 2000));
    execute(&[unmount_op(&mapped)]).expect("unmount");

    // A directory of any other file system that allows it; nothing can be written to it.
    let source = make_dir(dir.path().join("own"));
    fs::write(source.join("hello"), "x").expect("write");
    execute(&[map_op(&source)]).expect("mounts");
    assert_eq!(owner(&mapped), (1000, 2000));
    assert!(fs::remove_file(mapped.join("hello")).is_err());
    execute(&[unmount_op(&mapped)]).expect("unmount");

    let refused = execute(&[map_op(&dir.path().join("no"))]).expect_err("nothing there");
    assert!(matches!(refused, MountError::SourceMissing { .. }), "{refused}");
    // /proc cannot.
    let refused = execute(&[map_op(Path::new("/proc"))]).expect_err("cannot").to_string();
    assert!(refused.contains("map the owners of /proc"), "{refused}");
    assert!(mounts_under(dir.path()).expect("mountinfo").is_empty());
}

#[test]
fn probes_find_what_the_tests_use() {
    let Some(dir) = stage("probes_find_what_the_tests_use") else { return };
    let probes = probe_all(dir.path());
    assert_eq!(probes.len(), 8);
    for probe in &probes {
        assert!(!probe.detail.is_empty(), "{probe:?}");
        assert_eq!(probe.state == ProbeState::Ok, probe.remedy.is_empty(), "{probe:?}");
    }
    let known = fs::read_to_string("/proc/filesystems").expect("/proc");
    for name in ["erofs", "overlay"] {
        let state = probes.iter().find(|probe| probe.name == name).expect("a probe").state;
        let registered = known.lines().any(|line| line.ends_with(&format!("\t{name}")));
        assert_eq!(state == ProbeState::Ok, registered, "{name}");
    }
    assert!(mounts_under(dir.path()).expect("mountinfo").is_empty());
}
