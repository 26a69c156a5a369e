//! Ctrl-C at any moment, a daemon killed without a word, a daemon with nothing to do, a full disk, many cycles.

use std::fs;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::hostile::{put_indexed, small_layer, ztoc_of};
use crate::layers::{as_image, assert_same, extract, noise, three_layers};
use crate::support::{Host, Reading, Running, utf8, wait_until};

fn mount_args<'a>(image: &'a str, dir: &'a Path) -> Vec<&'a str> {
    vec!["mount", image, utf8(dir), "--frontend", crate::FRONTEND]
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing() {
    let Some(host) = Host::new("ctrl_c") else { return };
    let layers = three_layers();
    let want = extract(&layers);
    // Stalls while resolving, while looking for an index (an empty list of referrers has some 80 bytes), while streaming.
    for on in ["/manifests/1", "/referrers/", "/blobs/"] {
        let registry = TestRegistry::start();
        registry.put_image("app", "1", &as_image(&layers));
        registry.fail(Fault::StallAfter(10)).on(on);
        let image = format!("{}/app:1", registry.host());
        let dir = host.dir("a");
        let running = host.start(&mount_args(&image, &dir));
        wait_until("the request hangs", || registry.requests().iter().any(|r| r.path.contains(on)));
        running.signal(Signal::INT);
        assert!(!running.end().success);
        host.assert_clean();
        registry.heal();
        let (dir, _) = host.mount(&image, "a");
        assert_same(&dir, &want);
        host.umount(&dir);
        host.assert_clean();
        host.stop_daemon();
        fs::remove_dir_all(host.root()).expect("a new root");
    }
}

#[test]
fn ctrl_c_amid_the_local_part_leaves_a_mount_only_where_it_was_confirmed() {
    let Some(host) = Host::new("ctrl_c_local") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (dir, _) = host.mount(&image, "a");
    host.umount(&dir);
    // All is local now. The signal comes at ever later moments, by the number of requests that the registry has seen,
    // then by the mounts that can be seen.
    for moment in 0..8 {
        registry.clear_requests();
        let running = host.start(&mount_args(&image, &dir));
        match moment {
            0..4 => wait_until("requests", || registry.requests().len() >= moment.min(1)),
            _ => wait_until("mounts", || {
                fs::read_dir(host.root().join("mnt")).is_ok_and(|d| d.count() >= moment - 3)
                    || !host.mounts().is_empty()
            }),
        }
        running.signal(Signal::INT);
        let answer = running.end();
        if answer.success {
            host.umount(&dir);
        } else {
            assert_eq!(answer.code, None, "ended by the signal: {}", answer.stderr);
        }
        wait_until("everything is undone", || host.ls()["layers"].as_array().is_some_and(Vec::is_empty));
        host.assert_clean();
    }
    host.stop_daemon();
    assert_eq!(host.leftovers(), "\"none\"");
}

#[test]
fn a_mount_in_the_foreground_ends_with_its_command_however_that_ends() {
    let Some(host) = Host::new("foreground") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let dir = host.dir("a");
    for (signal, wants_success) in [(Signal::INT, true), (Signal::TERM, true), (Signal::KILL, false)] {
        let mut args = mount_args(&image, &dir);
        args.push("--foreground");
        let running = host.start(&args);
        wait_until("mounted", || dir.join("srv/top").exists() && host.ls()["mounts"][0].is_object());
        let file = fs::File::open(dir.join("srv/top")).expect("open");
        running.signal(signal);
        let answer = running.end();
        // A signal that comes before the command waits for it ends it like any other.
        assert!(answer.success || answer.code.is_none() || !wants_success, "{}", answer.stderr);
        wait_until("unmounted", || host.mounts().is_empty());
        drop(file);
        wait_until("the devices go", || host.ls()["layers"].as_array().is_some_and(Vec::is_empty));
        host.assert_clean();
    }
    // What another mount shows there meanwhile is left alone.
    let mut args = mount_args(&image, &dir);
    args.push("--foreground");
    let running = host.start(&args);
    wait_until("mounted", || host.ls()["mounts"][0].is_object());
    host.umount(&dir);
    host.mount(&image, "a");
    running.signal(Signal::INT);
    running.end();
    assert!(dir.join("srv/top").exists());
    assert_eq!(host.ls()["mounts"].as_array().map(Vec::len), Some(1));
}

#[test]
fn mounts_that_lost_daemon_and_holder_are_cleaned_up_by_the_next_one_or_by_doctor() {
    let Some(host) = Host::new("killed") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    let (a, _) = host.mount(&image, "a");
    let (b, _) = host.mount(&image, "b");
    host.kill_daemon();
    host.kill_holder();
    assert!(!host.mounts().is_empty());
    let told = host.fails(&["umount", utf8(&a)], &["doctor"]);
    assert!(told.contains("no sociblk daemon"), "{told}");
    assert_ne!(host.leftovers(), "\"none\"");
    // The next mount takes the dead ones away, and may use the same directory.
    let (a, _) = host.mount(&image, "a");
    assert_same(&a, &extract(&layers));
    assert!(!host.mounts().contains(&b), "{:?}", host.mounts());
    assert_eq!(host.ls()["mounts"].as_array().map(Vec::len), Some(1));
    host.kill_daemon();
    host.kill_holder();
    let before = host.leftovers();
    assert_ne!(before, "\"none\"");
    host.run(&["doctor", "--clean"]);
    assert_eq!(host.leftovers(), "\"none\"");
    assert!(host.mounts().is_empty(), "{:?}", host.mounts());
    let (a, _) = host.mount(&image, "a");
    assert_same(&a, &extract(&layers));
}

#[test]
fn stop_ends_a_mount_that_is_under_way() {
    let Some(host) = Host::new("stop_amid") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    registry.fail(Fault::StallAfter(100)).on("/blobs/");
    let image = format!("{}/app:1", registry.host());
    let dir = host.dir("a");
    let running = host.start(&mount_args(&image, &dir));
    wait_until("the request hangs", || registry.requests().iter().any(|r| r.path.contains("/blobs/")));
    host.stop_daemon();
    let answer = running.end();
    assert!(answer.code == Some(1) && answer.stderr.contains("daemon"), "{}", answer.stderr);
    assert!(host.mounts().is_empty());
    assert_eq!(host.leftovers(), "\"none\"");
}

#[test]
fn a_daemon_killed_amid_its_work_costs_nothing_but_a_refetch() {
    let Some(host) = Host::new("killed_amid") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    let want = extract(std::slice::from_ref(&layer));
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    registry.put_image("plain", "1", &[(&layer.blob, layer.diff_id())]);
    let on = layer.digest().to_string();
    // Amid reading.
    let image = format!("{}/app:1", registry.host());
    let (dir, _) = host.mount(&image, "a");
    fs::read(dir.join("last")).expect("read");
    registry.fail(Fault::StallAfter(100_000)).on(&on);
    let reading = Reading::of(dir.join("dir/first"));
    wait_until("a reader waits", || host.waiting_readers() > 0);
    host.kill_daemon();
    registry.heal();
    let next = host.next_daemon();
    reading.end().expect("the next daemon answers");
    assert_same(&dir, &want);
    host.umount(&dir);
    host.stop_daemon();
    assert!(next.end().success);
    // Amid streaming.
    let image = format!("{}/plain:1", registry.host());
    registry.clear_requests();
    registry.fail(Fault::StallAfter(1_000_000)).on(&on);
    let running = host.start(&mount_args(&image, &dir));
    wait_until("the request hangs", || registry.requests().iter().any(|r| r.path.contains(&on)));
    host.kill_daemon();
    let answer = running.end();
    assert!(answer.code == Some(1) && answer.stderr.contains("daemon"), "{}", answer.stderr);
    registry.heal();
    let (dir, report) = host.mount(&image, "a");
    assert_eq!(report["layers"][0]["index"], "streamed");
    assert_same(&dir, &want);
}

/// As by a package that is updated.
#[test]
fn a_daemon_whose_program_was_replaced_goes_on_mounting() {
    let Some(host) = Host::new("replaced") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    registry.put_image("app", "1", &[(&layer.blob, layer.diff_id())]);
    let program = host.path("sociblk");
    fs::copy(env!("CARGO_BIN_EXE_sociblk"), &program).expect("copy");
    let daemon = Running::start(host.command_of(&program, &["daemon", "run"]));
    wait_until("the daemon runs", || host.daemon().is_some());
    fs::remove_file(&program).expect("remove");
    fs::write(&program, "no program").expect("write");
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    host.umount(&dir);
    host.stop_daemon();
    assert!(daemon.end().success);
}

#[test]
fn an_idle_daemon_ends_and_one_that_is_read_from_does_not() {
    let Some(host) = Host::new("idle") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    registry.put_image("app", "1", &[(&layer.blob, layer.diff_id())]);
    let daemon = host.start(&["daemon", "run", "--idle-exit", "1"]);
    wait_until("the daemon runs", || host.daemon().is_some());
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let file = fs::File::open(dir.join("dir/first")).expect("open");
    host.ok(&["umount", "--lazy", utf8(&dir)]);
    // Long past the limit there is still somebody to answer, because the file is open.
    let open_since = std::time::Instant::now();
    wait_until("three times the limit", || open_since.elapsed().as_secs() >= 3);
    assert!(host.daemon().is_some(), "the daemon left a reader alone");
    drop(file);
    assert!(daemon.end().success);
    assert!(host.daemon().is_none());
    assert_eq!(host.leftovers(), "\"none\"");
    assert!(!host.root().join("run/control.sock").exists());
}

#[test]
fn a_full_disk_is_a_clear_error_and_heals() {
    let Some(mut host) = Host::new("full_disk") else { return };
    let disk = host.dir("small-disk");
    mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), Some(c"size=6m")).expect("tmpfs");
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    registry.put_image("plain", "1", &[(&noise_layer().blob, noise_layer().diff_id())]);
    host.set_root(disk.join("root"));
    host.config("[fill]\nhold_limit_s = 1\n");
    let (dir, report) = host.mount(&format!("{}/app:1", registry.host()), "a");
    assert_eq!(report["layers"][0]["index"], "v1");
    let fill = disk.join("fill");
    fill_up(&fill);
    let error = fs::read(dir.join("dir/second")).expect_err("no room");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let told = host.ls()["layers"][0]["last_error"].as_str().expect("told").to_owned();
    assert!(told.contains("space") || told.contains("full"), "{told}");
    // A second mount on the full disk: an error, and nothing left of it.
    let b = host.dir("b");
    host.fails(&mount_args(&format!("{}/plain:1", registry.host()), &b), &["space"]);
    assert_eq!(host.ls()["mounts"].as_array().map(Vec::len), Some(1));
    fs::remove_file(&fill).expect("room again");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    // An unmount needs no room.
    fill_up(&fill);
    host.umount(&dir);
    host.assert_clean();
    host.stop_daemon();
    unmount(&disk, UnmountFlags::empty()).expect("the small disk is free again");
    host.set_root(host.path("root"));
}

fn noise_layer() -> crate::layers::Layer {
    crate::layers::Maker::new().file("f", &noise(77, 3 << 20)).end()
}

fn fill_up(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).expect("create");
    let page = [1_u8; 4096];
    while file.write_all(&page).is_ok() {}
}

#[test]
fn fifty_cycles_leak_nothing() {
    let Some(host) = Host::new("cycles") else { return };
    let layers = three_layers();
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &as_image(&layers));
    let image = format!("{}/app:1", registry.host());
    // The daemon outlives the pauses of a slow machine.
    let daemon = host.start(&["daemon", "run"]);
    wait_until("the daemon runs", || host.daemon().is_some());
    let cycle = || {
        let (dir, _) = host.mount(&image, "a");
        fs::read(dir.join("srv/top")).expect("read");
        host.umount(&dir);
    };
    let totals = || -> Value { host.ok(&["stats", "--json"]).json()["totals"].clone() };
    let number = |value: &Value, key: &str| value[key].as_u64().expect("number");
    for _ in 0..5 {
        cycle();
    }
    let before = totals();
    for _ in 0..45 {
        cycle();
    }
    // Threads and connections that are on their way out may take a moment.
    let settled = || {
        let now = totals();
        number(&now, "threads") <= number(&before, "threads") + 4
            && number(&now, "descriptors") <= number(&before, "descriptors") + 4
    };
    wait_until("threads and descriptors are as before", settled);
    let after = totals();
    let grown = number(&after, "resident_bytes").saturating_sub(number(&before, "resident_bytes"));
    assert!(grown < 16 << 20, "memory grew by {grown} bytes: {before:#} {after:#}");
    assert!(number(&after, "resident_bytes") < 64 << 20, "{after:#}");
    host.assert_clean();
    host.stop_daemon();
    assert!(daemon.end().success);
}
