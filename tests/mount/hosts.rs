//! Mirrors, certificates' directories and passwords: what the command says reaches the daemon, and no file.

use std::fs;
use std::path::Path;

use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::layers::{as_image, assert_same, extract, three_layers};
use crate::support::{Host, utf8};

/// Files under `dir` that hold `text`.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn a_lying_mirror_is_passed_over_and_a_password_is_written_nowhere() {
    let Some(host) = Host::new("lying_mirror") else { return };
    let (mirror, origin, layers) = (TestRegistry::start(), TestRegistry::start(), three_layers());
    for registry in [&mirror, &origin] {
        registry.put_image("app", "1", &as_image(&layers));
    }
    origin.require_basic("me", "hunter2-secret");
    mirror.fail(Fault::ChangedBytes).on("/blobs/");
    let certs = host.dir("certs.d");
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        origin.host(),
        mirror.host()
    );
    fs::write(host.dir("certs.d/reg.example").join("hosts.toml"), text).expect("hosts.toml");
    let options = ["--hosts-dir", utf8(&certs), "--user", "me:hunter2-secret"];
    let (dir, _) = host.mount_with("reg.example/app:1", "a", &options);
    assert_same(&dir, &extract(&layers));
    let asked = |registry: &TestRegistry| registry.requests().iter().filter(|r| r.path.contains("/blobs/")).count();
    assert!(asked(&mirror) > 0 && asked(&origin) > 0);
    assert!(mirror.requests().iter().all(|r| r.authorization.is_none() && r.query == "ns=reg.example"));
    assert_eq!(files_with(host.root(), "hunter2-secret"), Vec::<String>::new());
    host.umount(&dir);
    // Without the password the registry itself is closed; the error does not repeat the one of before.
    let elsewhere = host.dir("b");
    let line = host.fails(&["mount", "reg.example/app:1", utf8(&elsewhere), "--hosts-dir", utf8(&certs)], &["--user"]);
    assert!(!line.contains("hunter2"), "{line}");
    let other = host.dir("other.d");
    fs::create_dir(other.join("reg.example")).expect("a directory");
    fs::write(other.join("reg.example/hosts.toml"), "server = 5").expect("hosts.toml");
    host.fails(
        &["mount", "reg.example/app:1", utf8(&elsewhere), "--hosts-dir", utf8(&other)],
        &["other.d/reg.example/hosts.toml", "line 1", "server"],
    );
    host.stop_daemon();
    host.assert_clean();
}
