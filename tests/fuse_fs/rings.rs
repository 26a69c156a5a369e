//! The same files with `fuse.io_uring = true`, where the kernel can be told to offer it: what is shown, readers side by side
//! and readers that wait, and the end of a daemon that nobody can follow.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::process::{Signal, kill_process};
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::corpus::corpus;
use crate::hostile::{put_indexed, small_layer, ztoc_of};
use crate::layers::{Maker, as_image, assert_same, extract, noise, three_layers};
use crate::same::{all_are_answered, all_names_come, compare, names_beside_files};
use crate::support::{Host, PATIENCE, Reading, skipped, wait_until};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// What the daemon's log says where it does use it, and where it cannot.
const USED: &str = "no other can take over its io_uring";
const UNUSED: &str = "no FUSE over io_uring, which the settings ask for";

/// The kernel's switch, put back at the end. One test at a time has it.
struct Switch {
    before: String,
    _alone: MutexGuard<'static, ()>,
}

impl Switch {
    /// `None`, after a word about it, where there is no such thing.
    fn turn(test: &str, to: &str) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let turned = fs::read_to_string(SWITCH).and_then(|before| fs::write(SWITCH, to).map(|()| before));
        match turned {
            Ok(before) => Some(Self { before, _alone: alone }),
            Err(error) => {
                skipped(test, &format!("{SWITCH}: {error}"));
                None
            }
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, &self.before) {
            skipped("the rest", &format!("{SWITCH} cannot be put back to {}: {error}", self.before.trim()));
        }
    }
}

/// A host whose daemon asks for it, in a kernel that offers it. The host goes first.
fn over_rings(test: &str) -> Option<(Host, Switch)> {
    let host = Host::new(test)?;
    let switch = Switch::turn(test, "Y")?;
    host.config("[fuse]\nio_uring = true\n");
    Some((host, switch))
}

#[test]
fn every_layer_looks_the_same_over_rings() {
    let Some((host, _switch)) = over_rings("every_layer_looks_the_same_over_rings") else { return };
    for layer in corpus() {
        compare(&host, &format!("layer:{}", layer.display()));
    }
    assert!(host.log().contains(USED), "{}", host.log());
    host.stop_daemon();
    host.assert_no_trace();
}

#[test]
fn merged_layers_look_the_same_over_rings() {
    let Some((host, _switch)) = over_rings("merged_layers_look_the_same_over_rings") else { return };
    let (registry, layers) = (TestRegistry::start(), three_layers());
    registry.put_image("app", "1", &as_image(&layers));
    compare(&host, &format!("{}/app:1", registry.host()));
    assert!(host.log().contains(USED), "{}", host.log());
}

#[test]
fn readers_side_by_side_get_their_bytes() {
    let Some((host, _switch)) = over_rings("readers_side_by_side") else { return };
    let bytes_of = |number: u64| noise(number, 200_000 + 150_000 * (number as usize % 7));
    let mut maker = Maker::new();
    for number in 0..24 {
        maker = maker.file(&format!("file-{number}"), &bytes_of(number));
    }
    let (registry, layer) = (TestRegistry::start(), maker.end());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    // Once with all bytes missing, once with all here and no page in the cache.
    for round in 0..2 {
        let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
        std::thread::scope(|scope| {
            for start in 0..8 {
                let dir = &dir;
                scope.spawn(move || {
                    for number in (0..24).map(|n| (n * 5 + start * 3) % 24) {
                        let read = fs::read(dir.join(format!("file-{number}"))).expect("read");
                        assert!(read == bytes_of(number), "file {number}, round {round}");
                    }
                });
            }
        });
        host.umount(&dir);
        host.assert_clean();
    }
    host.stop_daemon();
    host.assert_no_trace();
}

#[test]
fn names_come_while_readers_wait_and_a_killed_one_goes() {
    let Some((host, _switch)) = over_rings("names_while_readers_wait") else { return };
    let (registry, layer) = (TestRegistry::start(), names_beside_files());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    let mut victim =
        Command::new("cat").arg(dir.join("file-39")).stdout(std::process::Stdio::null()).spawn().expect("cat");
    wait_until("the first reader waits", || host.waiting_readers() >= 1);
    let waiting: Vec<Reading> = (0..39).map(|number| Reading::of(dir.join(format!("file-{number}")))).collect();
    wait_until("readers wait", || host.waiting_readers() >= 20);
    all_names_come(&dir);
    assert!(victim.try_wait().expect("cat").is_none());
    let before = Instant::now();
    victim.kill().expect("kill");
    victim.wait().expect("cat");
    assert!(before.elapsed() < PATIENCE / 4, "a killed reader stays for {:?}", before.elapsed());
    all_are_answered(&registry, waiting);
    host.umount(&dir);
    host.assert_clean();
    host.stop_daemon();
    host.assert_no_trace();
}

#[test]
fn a_killed_daemon_takes_its_mounts_along() {
    let Some((host, _switch)) = over_rings("rings_killed_daemon") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let image = format!("{}/app:1", registry.host());
    let (dir, _) = host.mount(&image, "a");
    assert_eq!(host.holder(), None, "nobody could go on with what it would keep");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    let reading = Reading::of(dir.join("dir/second"));
    wait_until("a reader waits", || host.waiting_readers() > 0);
    host.kill_daemon();
    reading.end().expect_err("nobody can answer any more");
    Reading::of(dir.join("dir/first")).end().expect_err("who comes later does not wait either");
    let next = host.next_daemon();
    assert!(host.mounts().is_empty() && host.log().contains("end with their daemon"), "{}", host.log());
    registry.heal();
    let (dir, _) = host.mount(&image, "a");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    host.umount(&dir);
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}

#[test]
fn a_daemon_that_is_asked_to_end_undoes_its_mounts() {
    let Some((host, _switch)) = over_rings("rings_ended_daemon") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    registry.fail(Fault::Stall).on(&layer.digest().to_string());
    let reading = Reading::of(dir.join("dir/second"));
    wait_until("a reader waits", || host.waiting_readers() > 0);
    kill_process(host.daemon().expect("a daemon"), Signal::TERM).expect("kill");
    reading.end().expect_err("nobody will answer");
    wait_until("the daemon ends", || host.daemon().is_none());
    wait_until("its mounts are gone", || host.mounts().is_empty());
    host.assert_no_trace();
}

#[test]
fn a_kernel_that_does_not_offer_it_is_asked_over_dev_fuse() {
    const TEST: &str = "rings_not_offered";
    let Some(host) = Host::new(TEST) else { return };
    let Some(_switch) = Switch::turn(TEST, "N") else { return };
    host.config("[fuse]\nio_uring = true\n");
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    assert_eq!(host.log().matches(UNUSED).count(), 1, "{}", host.log());
    // And is taken over as ever.
    host.kill_daemon();
    let next = host.next_daemon();
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    host.umount(&dir);
    host.stop_daemon();
    assert!(next.end().success);
    host.assert_no_trace();
}
