use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use super::*;

const SIZES: RingSizes =
    RingSizes { submissions: 8, completions: 32, fixed_buffers: 0, pool_buffers: 2, buffer_bytes: 8192 };

fn ring() -> Option<DataRing> {
    match DataRing::new(&SIZES) {
        Ok(ring) => Some(ring),
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "SKIPPED: sys::ring: io_uring: {error}");
            None
        }
    }
}

fn wait(ring: &mut DataRing, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.len() < count {
        ring.submit_and_wait(None).expect("enter");
        ring.reap(&mut out);
    }
    out
}

#[test]
fn bytes_travel_from_file_through_pool_to_file() {
    let Some(mut ring) = ring() else { return };
    let mut source = tempfile::tempfile().expect("file");
    let mut sink = tempfile::tempfile().expect("file");
    let want: Vec<u8> = (0..6000_u32).map(|n| n as u8 ^ 0x5a).collect();
    source.write_all(&want).expect("write");
    let buffer = ring.take_buffer().expect("a buffer");
    // Two pieces, swapped, as two segments of a request would be.
    ring.read(source.as_fd(), 0, Target::Pool { buffer, at: 3000 }, 3000, 1);
    ring.read(source.as_fd(), 3000, Target::Pool { buffer, at: 0 }, 3000, 2);
    assert_eq!(ring.data_in_flight(), 2);
    assert!(wait(&mut ring, 2).iter().all(|c| c.result == 3000));
    ring.write(sink.as_fd(), 10, buffer, 0, 6000, 3);
    assert_eq!(wait(&mut ring, 1), [Completion { user_data: 3, result: 6000, more: false }]);
    assert_eq!(ring.data_in_flight(), 0);
    ring.give_back(buffer);
    ring.trim();
    assert!(!ring.is_dirty());

    let mut got = Vec::new();
    sink.seek(SeekFrom::Start(10)).expect("seek");
    sink.read_to_end(&mut got).expect("read");
    assert_eq!(got, [&want[3000..], &want[..3000]].concat());
}

#[test]
fn more_submissions_than_entries_all_complete() {
    let Some(mut ring) = ring() else { return };
    let mut source = tempfile::tempfile().expect("file");
    source.write_all(&[7; 512]).expect("write");
    let buffer = ring.take_buffer().expect("a buffer");
    for n in 0..100 {
        ring.read(source.as_fd(), 0, Target::Pool { buffer, at: 0 }, 512, n);
    }
    let mut seen: Vec<u64> = wait(&mut ring, 100).iter().map(|c| c.user_data).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn the_pool_is_bounded_and_checked() {
    let Some(mut ring) = ring() else { return };
    let (a, b) = (ring.take_buffer(), ring.take_buffer());
    assert!(a.is_some() && b.is_some() && a != b);
    assert_eq!(ring.take_buffer(), None);
    let pool = &ring.pool;
    for (buffer, at, len) in [(BufferId::new(2), 0, 1), (BufferId::new(0), 8192, 1), (BufferId::new(0), 1, u32::MAX)] {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.address(buffer, at, len))).is_err());
    }
}

#[test]
fn a_watch_fires_for_every_wake() {
    let Some(mut ring) = ring() else { return };
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
    ring.watch(event.as_fd(), 9);
    for _ in 0..3 {
        rustix::io::write(&event, &1_u64.to_ne_bytes()).expect("wake");
        assert_eq!(wait(&mut ring, 1), [Completion { user_data: 9, result: libc::POLLIN.into(), more: true }]);
        rustix::io::read(&event, &mut [0_u8; 8]).expect("clear");
    }
}
