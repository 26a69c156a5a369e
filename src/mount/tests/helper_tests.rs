//! The helper process and the namespaces that it joins.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::super::*;
use super::{erofs_op, image, layers, make_dir, overlay_op, stage, unmount_op};
use crate::sys::namespace::{current, detach_own};

/// The environment variable that turns [`helper_process`] from a test into the helper.
const HELPER: &str = "SOCIBLK_TEST_MOUNT_HELPER";

/// The helper, when started by a test below; else a test that nonsense is refused.
#[test]
fn helper_process() {
    if std::env::var_os(HELPER).is_some() {
        // The test runner has begun a line of its own.
        let mut output = std::io::stdout().lock();
        output.write_all(b"\n").expect("stdout");
        let served = helper::run(std::io::stdin().lock(), output);
        std::process::exit(i32::from(served.is_err()));
    }
    let mut output = Vec::new();
    for nonsense in ["", "{}", "[1]", "{\"namespace\":null,\"task\":{\"execute\":[{\"op\":\"format\"}]}}"] {
        helper::run(nonsense.as_bytes(), &mut output).expect_err("nonsense");
    }
    assert!(output.is_empty());
}

fn test_helper(namespace: Option<std::os::fd::OwnedFd>) -> MountHelper {
    let exe = std::env::current_exe().expect("this program");
    let args = [
        &format!("{HELPER}=1"),
        exe.to_str().expect("utf-8"),
        "--exact",
        "mount::tests::helper_tests::helper_process",
        "--nocapture",
    ];
    MountHelper::new("/usr/bin/env", &args, namespace)
}

/// Bounds a test, not a mount: other tests may keep the machine busy.
const PATIENT: Duration = Duration::from_secs(60);

#[test]
fn the_helper_mounts_in_another_namespace_what_only_its_caller_sees() {
    const TEST: &str = "the_helper_mounts_in_another_namespace_what_only_its_caller_sees";
    let Some(dir) = stage(TEST) else { return };
    let target = make_dir(dir.path().join("mnt"));
    let outside = current().expect("namespace");
    detach_own().expect("a namespace below");
    // A tmpfs that only this namespace has, with the image on it.
    let private = make_dir(dir.path().join("private"));
    rustix::mount::mount("none", &private, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("tmpfs");
    let Some(image) = image(&private, TEST, "hello") else { return };

    let helper = test_helper(Some(outside.try_clone().expect("dup")));
    helper.run(&[erofs_op(&image, &target)], PATIENT).expect("mount");
    assert!(!is_mountpoint(&target).expect("mountinfo"), "not in our namespace");
    assert!(helper.mounts().expect("mountinfo").iter().any(|entry| entry.mount_point == target));
    let seen = std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            crate::sys::namespace::enter(&outside).expect("enter");
            fs::read(target.join("hello"))
        });
        look.join().expect("looker")
    });
    assert_eq!(seen.expect("read"), b"hello");
    let error = helper.run(&[erofs_op(&image, &target)], PATIENT).expect_err("mounted already");
    assert_eq!(error, MountError::TargetBusy { target: target.as_path().into() });
    helper.run(&[unmount_op(&target)], PATIENT).expect("unmount");
    assert!(matches!(helper.run(&[unmount_op(&target)], PATIENT), Err(MountError::NotMounted { .. })));
}

#[test]
fn a_helper_that_hangs_or_dies_is_an_error_and_is_undone() {
    const TEST: &str = "a_helper_that_hangs_or_dies_is_an_error_and_is_undone";
    let Some(dir) = stage(TEST) else { return };
    let target = make_dir(dir.path().join("mnt"));
    let op = unmount_op(&target);
    let many = vec![op.clone(); 20_000];
    let hangs = MountHelper::new("/bin/sleep", &["600"], None);
    let error = hangs.run(&many, Duration::from_millis(200)).expect_err("time is up");
    assert_eq!(error, MountError::TimedOut { limit_ms: 200, undone: true });

    let dies = MountHelper::new("/bin/sh", &["-c", "echo no such luck >&2; exit 3"], None);
    let error = dies.run(&many, PATIENT).expect_err("dead");
    assert!(error.to_string().contains("no such luck"), "{error}");
    let absent = MountHelper::new("/nonexistent/sociblk", &[], None);
    assert!(absent.run(&[op], PATIENT).expect_err("absent").to_string().contains("/nonexistent/sociblk"));

    // Killed after it announced a mount that took effect: the next helper undoes it.
    let tmpfs = "mount -t tmpfs none \"$0\"; exec sleep 600";
    let announced = serde_json::to_string(&helper::Event::Will(ops::Undo::Unmount { target: target.as_path().into() }));
    let script = format!(
        "if [ -e \"$0.second\" ]; then umount \"$0\"; echo '{{\"done\":{{\"Ok\":null}}}}'; exit; fi; \
         touch \"$0.second\"; echo '{}'; {tmpfs}",
        announced.expect("json")
    );
    let stuck = MountHelper::new("/bin/sh", &["-c", &script, target.to_str().expect("utf-8")], None);
    let error = stuck.run(&[unmount_op(&target)], Duration::from_secs(3)).expect_err("time is up");
    assert_eq!(error, MountError::TimedOut { limit_ms: 3000, undone: true });
    assert!(!is_mountpoint(&target).expect("mountinfo"));
}

#[test]
fn the_daemons_namespace_has_no_copies_of_layer_mounts() {
    const TEST: &str = "the_daemons_namespace_has_no_copies_of_layer_mounts";
    let Some(dir) = stage(TEST) else { return };
    let (kept, dropped) = (make_dir(dir.path().join("kept")), make_dir(dir.path().join("dropped")));
    let lowers = layers(dir.path(), 2);
    execute(&[overlay_op(&lowers, &kept), overlay_op(&lowers, &dropped)]).expect("mount");
    let outside = leave_host_namespace(&[&kept.join("cache")]).expect("leave");
    assert!(is_mountpoint(&kept).expect("mountinfo"));
    assert!(!is_mountpoint(&dropped).expect("mountinfo"));
    let helper = test_helper(Some(outside));
    helper.run(&[unmount_op(&dropped), unmount_op(&kept)], PATIENT).expect("both are still mounted outside");
}
