//! `sociblk serve-index` as operators run it: the real program, a registry on loopback, notifications as registries send
//! them, and SIGKILL.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use serde_json::{Value, json};
use sociblk::testkit::registry::{Fault, TestRegistry};
use support::{Pushed, Service, command, indexes, put, puts, shuffled, until};

#[test]
fn a_burst_of_100_pushes_and_a_sigkill_lose_nothing_and_build_nothing_twice() {
    let (registry, root) = (TestRegistry::start(), tempfile::tempdir().expect("a directory"));
    let images: Vec<Pushed> =
        (0..100).map(|n| put(&registry, &format!("team-{}/app", n % 10), &format!("v{}", n / 10), n)).collect();
    // Each is told three times, some of them in one envelope, in any order.
    let events: Vec<Value> = images.iter().map(|image| image.event(&registry)).collect();
    let events = shuffled([events.clone(), events.clone(), events].concat(), 7);
    let mut envelopes: Vec<Vec<Value>> = events.chunks(7).map(<[Value]>::to_vec).collect();
    let is_index_put = |r: &sociblk::testkit::registry::Request| r.method == "PUT" && r.path.contains("/manifests/");
    let index_puts = || registry.requests().iter().filter(|r| is_index_put(r)).count();

    let mut service = Service::start(root.path(), "jobs = 4\n");
    let later = envelopes.split_off(envelopes.len() / 2);
    let mut unanswered: Vec<Vec<Value>> = envelopes.into_iter().filter(|events| !service.notify(events)).collect();
    assert!(unanswered.is_empty(), "the service takes what it is told");
    until("some images have their index", || index_puts() >= 20);
    let killed = std::thread::scope(|scope| {
        // A registry goes on telling while the service dies, and keeps what was not answered.
        let telling = scope.spawn(|| later.into_iter().filter(|events| !service.notify(events)).collect::<Vec<_>>());
        until("more images have their index", || index_puts() >= 30);
        let pid = service.pid();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a process of ours");
        telling.join().expect("no panic")
    });
    unanswered.extend(killed);
    let at_kill = index_puts();
    assert!(!service.ends(), "it was killed");
    assert!(at_kill < 100, "the kill came in the middle");

    let mut service = Service::start(root.path(), "jobs = 4\n");
    assert!(unanswered.iter().all(|events| service.notify(events)), "the service takes what it is told");
    until("all images are done", || service.count("done") == 100);
    assert_eq!((service.count("queued"), service.count("running"), service.count("failed")), (0, 0, 0));
    for image in &images {
        let found = indexes(&registry, &image.repository);
        let own: Vec<_> = found.iter().filter(|(_, subject)| *subject == image.digest).collect();
        let [(index, _)] = own[..] else { panic!("{image:?} has the indexes {own:?}") };
        assert_eq!(puts(&registry, &image.repository, &index.to_string()), 1, "{image:?}: {index}");
    }
    // What is told once more is known.
    let all: Vec<Value> = images.iter().map(|image| image.event(&registry)).collect();
    let before = registry.requests().len();
    assert!(service.notify(&all) && service.count("queued") == 0);
    assert!(service.stop(), "SIGTERM is a good end");
    assert_eq!(registry.requests().len(), before);
}

#[test]
fn one_bad_image_is_tried_again_and_holds_up_nobody() {
    let (registry, root) = (TestRegistry::start(), tempfile::tempdir().expect("a directory"));
    let (bad, good) = (put(&registry, "bad", "1", 1), put(&registry, "good", "1", 2));
    registry.fail(Fault::Status { code: 503, retry_after: None }).on("/v2/bad/manifests/");
    let mut service =
        Service::start(root.path(), "jobs = 1\nmax_attempts = 2\nfirst_pause_s = 1\nlongest_pause_s = 1\n");
    assert!(service.notify(&[bad.event(&registry), good.event(&registry)]));
    until("the good one is done", || service.count("done") == 1);
    until("the bad one is given up", || service.count("failed") == 1);
    let failed = service.status("?state=failed");
    let job = &failed["jobs"][0];
    assert_eq!((&job["attempts"], job["image"].as_str().map(|i| i.contains("/bad@"))), (&json!(2), Some(true)));
    assert!(job["reason"].as_str().is_some_and(|reason| reason.contains("503")), "{job}");
    let (_, page) = service.ask("GET /metrics", "").expect("an answer");
    assert!(page.contains("sociblk_builder_retries_total 1\n"), "{page}");
    // The command line shows the same, beside the service and without it.
    for after in [false, true] {
        if after {
            assert!(service.stop(), "SIGTERM is a good end");
        }
        let shown =
            command(root.path()).args(["serve-index", "--status", "--state", "failed"]).output().expect("it runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("1 done") && shown.contains("1 failed") && shown.contains("503"), "{shown}");
    }
    // Told again, it begins anew.
    registry.heal();
    let service = Service::start(root.path(), "");
    assert!(service.notify(&[bad.event(&registry)]));
    until("it is done", || service.count("done") == 2);
    assert_eq!(indexes(&registry, "bad").len(), 1);
}

#[test]
fn small_images_artifacts_and_other_platforms_are_passed_over() {
    let (registry, root) = (TestRegistry::start(), tempfile::tempdir().expect("a directory"));
    let small = put(&registry, "small", "1", 1);
    let config = registry.put_blob(b"{}");
    let artifact = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.example.thing", "digest": config.to_string(), "size": 2}, "layers": [],
    });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let digest = registry.put_manifest("thing", Some("1"), kind, artifact.to_string());
    let artifact = Pushed { repository: "thing".into(), tag: "1".into(), digest };
    let mut service = Service::start(root.path(), "min_image_size = \"1MiB\"\n");
    assert!(service.notify(&[small.event(&registry), artifact.event(&registry)]));
    until("both are passed over", || service.count("skipped") == 2);
    let told = service.status("").to_string();
    assert!(told.contains("fewer than 1048576") && told.contains("it is no image"), "{told}");
    assert!(service.stop());
    let other = put(&registry, "other", "1", 3);
    let service = Service::start(root.path(), "platforms = [\"linux/arm64\"]\n");
    assert!(service.notify(&[other.event(&registry)]));
    until("it is passed over", || service.count("skipped") == 3);
    assert!(registry.requests().iter().all(|request| request.method != "PUT"));
}

#[test]
fn converted_images_go_under_their_tag_and_are_not_converted_again() {
    let (registry, root) = (TestRegistry::start(), tempfile::tempdir().expect("a directory"));
    let first = put(&registry, "app", "1", 1);
    let service = Service::start(root.path(), "index = \"v2\"\n");
    assert!(service.notify(&[first.event(&registry)]));
    until("it is converted", || service.count("done") == 1);
    let name = service.status("")["jobs"][0]["result"].as_str().expect("a digest").to_owned();
    let converted = Pushed { repository: "app".into(), tag: "1-soci".into(), digest: name.parse().expect("a digest") };
    assert_eq!(registry.manifest("app", "1-soci"), registry.manifest("app", &name));
    // The registry tells of it, too.
    let mut event = converted.event(&registry);
    event["target"]["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    assert!(service.notify(&[event]));
    until("it is passed over", || service.count("skipped") == 1);
    // The tag moves on; the late word of the old image changes nothing.
    let second = put(&registry, "app", "1", 2);
    assert!(service.notify(&[second.event(&registry), first.event(&registry)]));
    until("both are finished", || service.count("done") + service.count("skipped") == 3);
    let tells = service.status("").to_string();
    assert!(tells.contains("its tag is another image now"), "{tells}");
    let of_second = service.status("?state=done");
    let result = of_second["jobs"][0]["result"].as_str().expect("a digest").to_owned();
    assert_ne!(result, name);
    assert_eq!(registry.manifest("app", "1-soci"), registry.manifest("app", &result));
    assert!(registry.manifest("app", "1-soci-soci").is_none());
}

#[test]
fn two_services_cannot_share_a_root() {
    let root = tempfile::tempdir().expect("a directory");
    let _service = Service::start(root.path(), "");
    let second = command(root.path()).args(["serve-index", "--listen", "127.0.0.1:0"]).output().expect("it runs");
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && words.contains("another index builder runs"), "{words}");
}

#[test]
fn what_does_not_end_in_time_is_put_back_when_the_service_stops() {
    let (registry, root) = (TestRegistry::start(), tempfile::tempdir().expect("a directory"));
    let image = put(&registry, "app", "1", 1);
    registry.fail(Fault::Stall).on("/v2/app/blobs/");
    let mut service = Service::start(root.path(), "stop_grace_s = 0\n");
    assert!(service.notify(&[image.event(&registry)]));
    until("it waits for the registry", || registry.requests().iter().any(|r| r.path.contains("/blobs/")));
    assert!(service.stop(), "SIGTERM is a good end");
    let shown = command(root.path()).args(["serve-index", "--status", "--json"]).output().expect("it runs");
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!((&shown["counts"]["queued"], &shown["jobs"][0]["attempts"]), (&json!(1), &json!(0)), "{shown}");
    registry.heal();
    let service = Service::start(root.path(), "");
    until("it is done", || service.count("done") == 1);
}

#[test]
fn the_service_manager_is_told_and_a_socket_serves_as_well() {
    let root = tempfile::tempdir().expect("a directory");
    let manager = UnixDatagram::bind(root.path().join("notify")).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let token = root.path().join("token");
    std::fs::write(&token, "hunter2\n").expect("written");
    let config = root.path().join("config.toml");
    std::fs::write(&config, format!("[builder]\ntoken_file = {token:?}\n")).expect("written");
    let socket = root.path().join("http.sock");
    // What a dead process left.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let mut child = command(root.path())
        .args(["serve-index", "--config"])
        .arg(&config)
        .arg("--listen")
        .arg(format!("unix:{}", socket.display()))
        .env("NOTIFY_SOCKET", root.path().join("notify"))
        .spawn()
        .expect("the program starts");
    let hear = || {
        let mut words = [0; 64];
        let length = manager.recv(&mut words).expect("a word within a minute");
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1");
    for (header, want) in [("", "401"), ("Authorization: Bearer hunter2\r\n", "200")] {
        let mut stream = UnixStream::connect(&socket).expect("a connection");
        let request = format!("GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer.split(' ').nth(1), Some(want), "{answer}");
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a process of ours");
    assert_eq!(hear(), "STOPPING=1");
    assert!(child.wait().expect("its status").success());
}

#[test]
fn settings_that_cannot_work_are_named() {
    let root = tempfile::tempdir().expect("a directory");
    let empty = root.path().join("token");
    std::fs::write(&empty, "\n").expect("written");
    let config = root.path().join("config.toml");
    for (settings, want) in [
        (format!("token_file = {empty:?}"), "the token is empty"),
        ("token_file = \"/nonexistent/token\"".to_owned(), "/nonexistent/token"),
        ("platforms = [\"linux\"]".to_owned(), "builder.platforms"),
        ("listen = \"localhost\"".to_owned(), "builder.listen"),
        ("listen = \"unix:/nonexistent/socket\"".to_owned(), "cannot listen on unix:/nonexistent/socket"),
        ("jobs = 0".to_owned(), "builder.jobs"),
    ] {
        std::fs::write(&config, format!("[builder]\n{settings}\n")).expect("written");
        let ran = command(root.path()).args(["serve-index", "--config"]).arg(&config).output().expect("it runs");
        let words = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && words.contains(want), "{settings}: {words}");
    }
    let none = tempfile::tempdir().expect("a directory");
    let ran = command(none.path()).args(["serve-index", "--status"]).output().expect("it runs");
    assert!(!ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains("builder.db"));
}
