//! What lives on when the daemon dies: mounts over FUSE, whose connection a holder keeps.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, kill_process};
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::hostile::{put_indexed, small_layer, ztoc_of};
use crate::layers::{Layer, Maker, assert_same, extract, noise};
use crate::support::{Host, Reading, wait_until};

const ROUNDS: usize = 10;

/// A file for each round, each longer than a span, so that in each round something is missing.
fn long_layer() -> Layer {
    let mut maker = Maker::new();
    for round in 0..=ROUNDS {
        maker = maker.file(&format!("file-{round:02}"), &content(round));
    }
    maker.end()
}

fn content(round: usize) -> Vec<u8> {
    noise(100 + round as u64, 2_500_000)
}

/// Reads what is there again and again, past the page cache, until told to stop. Returns the number of reads.
fn read_on(path: &Path, want: Vec<u8>, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    let (path, stop) = (path.to_owned(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut reads = 0;
        while !stop.load(Ordering::SeqCst) {
            let file = fs::File::open(&path).expect("open");
            fadvise(&file, 0, None, Advice::DontNeed).expect("fadvise");
            drop(file);
            assert!(fs::read(&path).expect("no reader sees an error") == want, "other bytes");
            reads += 1;
        }
        reads
    })
}

/// Readers read and wait while the daemon ends by `signal`, round after round.
fn live_through(name: &str, signal: Signal) {
    let Some(host) = Host::new(name) else { return };
    let (registry, layer) = (TestRegistry::start(), long_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let mut daemon = host.next_daemon();
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let file = |round: usize| dir.join(format!("file-{round:02}"));
    let last = file(ROUNDS);
    assert!(fs::read(&last).expect("read") == content(ROUNDS));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2).map(|_| read_on(&last, content(ROUNDS), &stop)).collect();
    // From the last file to the first: what is read ahead is there already.
    let holder = host.holder();
    assert!(holder.is_some());
    for round in (0..ROUNDS).rev() {
        registry.fail(Fault::Stall).on(&layer.digest().to_string());
        let waiting: Vec<Reading> = (0..3).map(|_| Reading::of(file(round))).collect();
        wait_until("readers wait", || host.waiting_readers() > 0);
        if signal == Signal::KILL {
            host.kill_daemon();
        } else {
            kill_process(host.daemon().expect("a daemon"), signal).expect("kill");
        }
        daemon.end();
        assert!(waiting.iter().all(Reading::is_waiting), "round {round}");
        registry.heal();
        daemon = host.next_daemon();
        for reading in waiting {
            assert!(reading.end().expect("no reader sees an error") == content(round), "other bytes in round {round}");
        }
        assert_eq!(host.holder(), holder, "one holder for all daemons");
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.join().expect("reader") > 0);
    }
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    host.umount(&dir);
    host.assert_clean();
    host.stop_daemon();
    assert!(daemon.end().success);
    host.assert_no_trace();
}

#[test]
fn no_reader_sees_that_the_daemon_is_killed() {
    live_through("no_reader_sees_that_the_daemon_is_killed", Signal::KILL);
}

#[test]
fn no_reader_sees_that_the_daemon_is_replaced() {
    live_through("no_reader_sees_that_the_daemon_is_replaced", Signal::TERM);
}

#[test]
fn the_next_mount_starts_a_daemon_that_takes_over() {
    let Some(host) = Host::new("the_next_mount") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    let want = extract(std::slice::from_ref(&layer));
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let image = format!("{}/app:1", registry.host());
    let (a, _) = host.mount(&image, "a");
    let open = fs::File::open(a.join("last")).expect("open");
    host.kill_daemon();
    // Not a byte of the registry is needed for what is mounted.
    let (b, _) = host.mount(&image, "b");
    assert_eq!(host.ls()["mounts"].as_array().map(Vec::len), Some(2));
    assert_eq!(host.ls()["layers"].as_array().map(Vec::len), Some(1));
    assert_same(&a, &want);
    assert_same(&b, &want);
    drop(open);
    host.umount(&a);
    host.umount(&b);
    host.assert_clean();
    host.stop_daemon();
    host.assert_no_trace();
}

#[test]
fn an_open_file_outlives_its_mount_and_its_daemon() {
    let Some(host) = Host::new("open_outlives") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let mut file = fs::File::open(dir.join("dir/second")).expect("open");
    host.ok(&["umount", "--lazy", crate::support::utf8(&dir)]);
    host.kill_daemon();
    let next = host.next_daemon();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
    assert!(bytes == noise(12, 2_000_000));
    drop(file);
    wait_until("the layer is given back", || host.ls()["layers"].as_array().is_some_and(Vec::is_empty));
    host.assert_clean();
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}

#[test]
fn without_daemon_and_holder_readers_get_errors() {
    let Some(host) = Host::new("without_both") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    let reading = Reading::of(dir.join("dir/second"));
    wait_until("a reader waits", || host.waiting_readers() > 0);
    host.kill_daemon();
    assert!(reading.is_waiting());
    host.kill_holder();
    reading.end().expect_err("nobody can answer any more");
    let next = host.next_daemon();
    assert!(host.mounts().is_empty() && host.log().contains("nobody kept"), "{}", host.log());
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}

#[test]
fn a_holder_that_was_killed_is_replaced() {
    let Some(host) = Host::new("holder_replaced") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    let want = extract(std::slice::from_ref(&layer));
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let image = format!("{}/app:1", registry.host());
    let (a, _) = host.mount(&image, "a");
    let first = host.holder();
    host.kill_holder();
    wait_until("another holder", || host.holder().is_some_and(|holder| Some(holder) != first));
    // A mount waits until the frontend is whole again.
    let (b, _) = host.mount(&image, "b");
    host.kill_daemon();
    let next = host.next_daemon();
    assert_same(&a, &want);
    assert_same(&b, &want);
    host.umount(&a);
    host.umount(&b);
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}

#[test]
fn doctor_finds_a_kept_connection_and_ends_it() {
    let Some(host) = Host::new("doctor_holder") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    let reading = Reading::of(dir.join("dir/second"));
    wait_until("a reader waits", || host.waiting_readers() > 0);
    host.kill_daemon();
    let holder = host.holder().expect("a holder").as_raw_nonzero().to_string();
    let found = host.run(&["doctor", "--json"]).json();
    let found = found.as_array().expect("findings").iter().find(|f| f["name"] == "leftover FUSE connection").cloned();
    assert!(found.as_ref().is_some_and(|f| f["detail"].as_str().is_some_and(|d| d.contains(&holder))), "{found:?}");
    assert!(reading.is_waiting());
    host.run(&["doctor", "--clean"]);
    reading.end().expect_err("nobody will answer");
    host.assert_no_trace();
}

#[test]
fn a_holder_goes_with_the_last_mount_even_without_a_daemon() {
    let Some(host) = Host::new("holder_goes") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    host.mount(&format!("{}/app:1", registry.host()), "a");
    host.kill_daemon();
    assert!(host.holder().is_some());
    for mount in host.mounts().iter().rev() {
        unmount(mount, UnmountFlags::empty()).expect("unmount");
    }
    wait_until("the holder goes", || host.holder().is_none());
    assert!(!host.root().join("run").join(crate::HOLDER_SOCKET).exists());
    // And with a daemon that is killed while it serves nothing.
    let next = host.next_daemon();
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    host.umount(&dir);
    assert!(host.holder().is_some());
    host.kill_daemon();
    next.end();
    wait_until("the holder goes", || host.holder().is_none());
}

#[test]
fn a_killed_holder_is_replaced() {
    let Some(host) = Host::new("killed_holder") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    host.kill_holder();
    wait_until("another holder", || host.holder().is_some());
    wait_until("it can be reached", || host.root().join("run").join(crate::HOLDER_SOCKET).exists());
    host.kill_daemon();
    let next = host.next_daemon();
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}

#[test]
fn a_holder_is_small_and_out_of_the_way() {
    let Some(host) = Host::new("small_holder") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    host.mount(&format!("{}/app:1", registry.host()), "a");
    let proc = format!("/proc/{}", host.holder().expect("a holder").as_raw_nonzero());
    let status = fs::read_to_string(format!("{proc}/status")).expect("status");
    let number = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {status}"));
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("number")
    };
    assert_eq!(number("Threads:"), 1);
    assert!(number("RssAnon:") < 2048, "{status}");
    let own = fs::read_link("/proc/thread-self/ns/mnt").expect("namespace");
    assert_eq!(fs::read_link(format!("{proc}/ns/mnt")).expect("namespace"), own, "not the daemon's");
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("{proc}/fd/{fd}")).expect("fd"), Path::new("/dev/null"));
    }
    // One that has nothing to do is not woken: requests are none of its business.
    let before = number_of_switches(&proc);
    let stop = Arc::new(AtomicBool::new(false));
    let reader = read_on(&host.path("a").join("dir/first"), noise(11, 1_500_000), &stop);
    let until = Instant::now() + Duration::from_millis(200);
    wait_until("some reads", || Instant::now() > until);
    stop.store(true, Ordering::SeqCst);
    assert!(reader.join().expect("reader") > 0);
    assert_eq!(number_of_switches(&proc), before);
}

fn number_of_switches(proc: &str) -> u64 {
    let status = fs::read_to_string(format!("{proc}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).expect("switches");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("number")
}
