//! Trouble with the registry while somebody reads: readers are held, or see EIO, and never a wrong byte.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::hostile::{put_indexed, small_layer, ztoc_of};
use crate::layers::{Layer, assert_same, extract, noise};
use crate::support::{Host, Reading, wait_until};

/// A lazily mounted layer of which nothing but metadata is here.
struct Stage {
    // Ended first: its daemon must not outlive what it talks to.
    host: Host,
    registry: TestRegistry,
    layer: Layer,
    dir: PathBuf,
}

impl Stage {
    fn new(test: &str, config: &str) -> Option<Self> {
        Self::behind(test, config, |registry| registry.host().to_owned())
    }

    fn behind(test: &str, config: &str, address: impl FnOnce(&TestRegistry) -> String) -> Option<Self> {
        let host = Host::new(test)?;
        host.config(config);
        let (registry, layer) = (TestRegistry::start(), small_layer());
        put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
        let (dir, report) = host.mount(&format!("{}/app:1", address(&registry)), "a");
        assert_eq!(report["layers"][0]["index"], "v1", "{report:#}");
        Some(Self { host, registry, layer, dir })
    }

    fn on(&self) -> String {
        self.layer.digest().to_string()
    }

    fn status(&self) -> Value {
        self.host.ls()["layers"][0].clone()
    }

    fn read(&self) -> Reading {
        Reading::of(self.dir.join("dir/first"))
    }

    fn assert_right(&self, reading: Reading) {
        let bytes = reading.end().unwrap_or_else(|e| panic!("{e}: {:#}", self.status()));
        assert!(bytes == noise(11, 1_500_000), "wrong bytes");
    }

    fn assert_eio(&self, reading: Reading) -> String {
        let error = reading.end().expect_err("an I/O error");
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
        let status = self.status();
        assert!(status["failed_reads"].as_u64().is_some_and(|n| n > 0), "{status:#}");
        status["last_error"].as_str().expect("an error is told").to_owned()
    }

    fn assert_all_right(&self) {
        assert_same(&self.dir, &extract(std::slice::from_ref(&self.layer)));
        assert_eq!(self.status()["waiting_readers"], 0);
    }
}

#[test]
fn passing_trouble_holds_the_reader() {
    let troubles: [(&str, Fault, u64); 7] = [
        ("busy", Fault::Status { code: 503, retry_after: None }, 4),
        ("too many requests", Fault::Status { code: 429, retry_after: Some(1) }, 1),
        ("cut", Fault::CutAfter(100_000), 3),
        ("ranges ignored", Fault::IgnoreRange, u64::MAX),
        ("stalled", Fault::Stall, 1),
        ("stalled amid", Fault::StallAfter(70_000), 1),
        ("dripping", Fault::Drip { bytes: 64 << 10, pause: Duration::from_millis(2) }, u64::MAX),
    ];
    for (what, fault, times) in troubles {
        let Some(stage) = Stage::new("passing_trouble", "[registry]\nidle_timeout_s = 1\n") else { return };
        stage.registry.fail(fault).on(&stage.on()).times(times);
        stage.assert_right(stage.read());
        stage.assert_all_right();
        let status = stage.status();
        assert_eq!(status["failed_reads"], 0, "{what}: {status:#}");
    }
}

#[test]
fn lasting_trouble_is_eio_and_healing_heals() {
    let lies: [(&str, Fault); 8] = [
        ("changed bytes", Fault::ChangedBytes),
        ("a page in HTML", Fault::Html),
        ("a redirect loop", Fault::RedirectLoop),
        ("forbidden", Fault::Status { code: 403, retry_after: None }),
        ("gone", Fault::Status { code: 404, retry_after: None }),
        ("out of range", Fault::Status { code: 416, retry_after: None }),
        ("another content range", Fault::ShiftedContentRange(512)),
        ("busy for ever", Fault::Status { code: 503, retry_after: None }),
    ];
    for (what, fault) in lies {
        let Some(stage) = Stage::new("lasting_trouble", "[fill]\nhold_limit_s = 1\n") else { return };
        stage.registry.fail(fault).on(&stage.on());
        let told = stage.assert_eio(stage.read());
        assert!(told.contains(&stage.layer.digest().short()) || told.contains("gave up"), "{what}: {told}");
        assert!(told.len() < 600, "{what}: {told}");
        stage.registry.heal();
        stage.assert_right(stage.read());
        stage.assert_all_right();
    }
}

#[test]
fn lies_about_sizes_never_show_wrong_bytes() {
    let lies: [(&str, Fault); 7] = [
        ("a larger total", Fault::ContentRangeTotal(1 << 40)),
        ("a smaller total", Fault::ContentRangeTotal(1)),
        ("no content range", Fault::NoContentRange),
        ("a longer length", Fault::ContentLength(1 << 40)),
        ("a shorter length", Fault::ContentLength(100)),
        ("rubbish behind", Fault::ChunkedExtra(5000)),
        ("an encoding", Fault::ContentEncoding),
    ];
    for (what, fault) in lies {
        let Some(stage) = Stage::new("lying_sizes", "[fill]\nhold_limit_s = 1\n[registry]\nidle_timeout_s = 1\n")
        else {
            return;
        };
        stage.registry.fail(fault).on(&stage.on());
        match stage.read().end() {
            Ok(bytes) => assert!(bytes == noise(11, 1_500_000), "{what}: wrong bytes"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(5), "{what}: {error}"),
        }
        stage.registry.heal();
        stage.assert_right(stage.read());
        stage.assert_all_right();
    }
}

#[test]
fn a_token_that_ends_amid_the_reading_is_renewed() {
    let Some(host) = Host::new("token") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    put_indexed(&registry, "app", &layer.blob, &ztoc_of(&host, &layer));
    registry.require_bearer(None, 3);
    let (dir, _) = host.mount(&format!("{}/app:1", registry.host()), "a");
    let before = registry.tokens_issued();
    registry.expire_tokens();
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
    assert!(registry.tokens_issued() > before);
}

#[test]
fn a_registry_that_is_down_holds_readers_until_it_is_back() {
    let mut gate = None;
    let stage = Stage::behind("down", "", |registry| {
        let made = Gate::open(registry.host());
        let address = made.address.to_string();
        gate = Some(made);
        address
    });
    let (Some(stage), Some(gate)) = (stage, gate) else { return };
    gate.shut();
    let reading = stage.read();
    wait_until("the reader waits and the trouble shows", || {
        let status = stage.status();
        status["waiting_readers"].as_u64().is_some_and(|n| n > 0) && status["last_error"].is_string()
    });
    assert!(reading.is_waiting());
    let text = stage.host.ok(&["ls"]).stdout;
    assert!(text.contains("readers held"), "{text}");
    gate.reopen();
    stage.assert_right(reading);
    stage.assert_all_right();
}

#[test]
fn a_registry_that_stays_down_is_eio_after_the_limit() {
    let mut gate = None;
    let stage = Stage::behind("stays_down", "[fill]\nhold_limit_s = 1\n", |registry| {
        let made = Gate::open(registry.host());
        let address = made.address.to_string();
        gate = Some(made);
        address
    });
    let (Some(stage), Some(gate)) = (stage, gate) else { return };
    gate.shut();
    stage.assert_eio(stage.read());
    gate.reopen();
    stage.assert_right(stage.read());
}

#[test]
fn streaming_without_an_index_survives_trouble_and_ends_on_lies() {
    let Some(host) = Host::new("streaming_trouble") else { return };
    host.config("[fill]\nhold_limit_s = 2\n[registry]\nidle_timeout_s = 1\n");
    let (registry, layer) = (TestRegistry::start(), small_layer());
    registry.put_image("app", "1", &[(&layer.blob, layer.diff_id())]);
    let image = format!("{}/app:1", registry.host());
    let dir = host.dir("a");
    let args = ["mount", &image, dir.to_str().expect("text"), "--frontend", crate::FRONTEND];
    let on = layer.digest().to_string();
    for fault in [
        Fault::ChangedBytes,
        Fault::Html,
        Fault::Status { code: 503, retry_after: None },
        Fault::Status { code: 404, retry_after: None },
        Fault::RedirectLoop,
    ] {
        registry.fail(fault.clone()).on(&on);
        let told = host.fails(&args, &[]);
        assert!(told.len() < 800, "{fault:?}: {told}");
        assert!(told.contains(&layer.digest().short()) || told.contains(&on), "{fault:?}: {told}");
        registry.heal();
        host.assert_clean();
    }
    registry.fail(Fault::CutAfter(300_000)).on(&on).times(3);
    registry.fail(Fault::Status { code: 503, retry_after: None }).on(&on).times(1);
    let (dir, _) = host.mount(&image, "a");
    assert_same(&dir, &extract(std::slice::from_ref(&layer)));
}

#[test]
fn an_image_that_is_not_what_it_says_is_refused() {
    let Some(host) = Host::new("inconsistent") else { return };
    let (registry, layer) = (TestRegistry::start(), small_layer());
    // The config promises another diffID.
    registry.put_image("app", "1", &[(&layer.blob, sociblk::units::Digest::of(b"other"))]);
    let dir = host.dir("a");
    let image = format!("{}/app:1", registry.host());
    host.fails(&["mount", &image, dir.to_str().expect("text"), "--frontend", crate::FRONTEND], &["diffID"]);
    // A layer that is no tar at all.
    let rubbish = noise(5, 10_000);
    registry.put_image("app", "2", &[(&rubbish, sociblk::units::Digest::of(&rubbish))]);
    let image = format!("{}/app:2", registry.host());
    host.fails(&["mount", &image, dir.to_str().expect("text"), "--frontend", crate::FRONTEND], &["layer"]);
    host.assert_clean();
}

/// A port that leads to a registry, and can be closed for a while.
struct Gate {
    address: SocketAddr,
    to: String,
    open: Arc<AtomicBool>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    fn open(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let gate = Self {
            address: listener.local_addr().expect("address"),
            to: to.to_owned(),
            open: Arc::default(),
            acceptor: Mutex::default(),
            connections: Arc::default(),
        };
        gate.serve(listener);
        gate
    }

    fn serve(&self, listener: TcpListener) {
        self.open.store(true, Ordering::SeqCst);
        let (open, connections, to) = (Arc::clone(&self.open), Arc::clone(&self.connections), self.to.clone());
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming() {
                if !open.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("dup"), to.try_clone().expect("dup"));
                    std::thread::spawn(move || pass(from, to));
                }
                connections.lock().expect("lock").extend([client, server]);
            }
        });
        *self.acceptor.lock().expect("lock") = Some(acceptor);
    }

    /// Closes the port and all connections.
    fn shut(&self) {
        self.open.store(false, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.lock().expect("lock").take() {
            acceptor.join().expect("acceptor");
        }
        for connection in self.connections.lock().expect("lock").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn reopen(&self) {
        self.serve(TcpListener::bind(self.address).expect("the same port"));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shut();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
