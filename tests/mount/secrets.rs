//! What the log must not say. The counterpart of SOCI's TestSnapshotterDoesNotLogSensitiveInformation, and more: the secrets
//! themselves.

use base64::Engine as _;
use sociblk::testkit::registry::{Fault, TestRegistry};

use crate::hostile::{put_indexed, small_layer, ztoc_of};
use crate::layers::{as_image, assert_same, extract, three_layers};
use crate::support::{Answer, Host, Running, utf8};

const PASSWORD: &str = "hunter2-9a8b7c";

/// Words that SOCI forbids in any line of its daemon's log, in whichever case: they would be about what nobody may see.
const FORBIDDEN: [&str; 20] = [
    "password",
    "passwd",
    "secret",
    "credential",
    "token",
    "api key",
    "api_key",
    "apikey",
    "akia",
    "access_key",
    "access key",
    "secret key",
    "begin rsa",
    "begin private",
    "begin certificate",
    "oauth",
    "bearer",
    "basic auth",
    "authorization:",
    "signature",
];

fn lines_with<'a>(log: &'a str, words: &[&str]) -> Vec<&'a str> {
    let says = |line: &&str| words.iter().any(|word| line.to_lowercase().contains(&word.to_lowercase()));
    log.lines().filter(says).collect()
}

/// Runs a command; a daemon that it starts logs everything that any library has to say at this level.
fn run_logging(host: &Host, level: &str, args: &[&str]) -> Answer {
    let mut command = host.command(args);
    command.env("SOCIBLK_LOG", level);
    Running::start(command).end()
}

#[test]
fn a_debug_log_has_no_word_of_secrets() {
    let Some(host) = Host::new("secrets_in_logs") else { return };
    let (registry, layers, small) = (TestRegistry::start(), three_layers(), small_layer());
    registry.put_image("plain", "1", &as_image(&layers));
    put_indexed(&registry, "app", &small.blob, &ztoc_of(&host, &small));
    // Rights that end after a few requests, and blobs at places that are signed.
    registry.require_bearer(Some(("me", PASSWORD)), 4);
    registry.redirect_blobs(true);
    registry.fail(Fault::Status { code: 503, retry_after: None }).on("/blobs/").times(1);
    let login = format!("me:{PASSWORD}");
    let image = format!("{}/app:1", registry.host());
    let dir = host.dir("a");
    let plain = host.dir("plain");
    let mut printed = String::new();
    for (image, dir) in [(&image, &dir), (&format!("{}/plain:1", registry.host()), &plain)] {
        let args = ["mount", image, utf8(dir), "--frontend", "fuse-image", "--json", "--user", &login];
        let mounted = run_logging(&host, "debug", &args);
        assert!(mounted.success, "{}\n{}", mounted.stderr, host.log());
        printed += &(mounted.stdout + &mounted.stderr);
    }
    assert_same(&dir, &extract(std::slice::from_ref(&small)));
    assert_same(&plain, &extract(&layers));
    assert!(registry.tokens_issued() > 1, "rights were renewed");
    let explained = host.ok(&["explain", utf8(&dir), "--json"]).json();
    host.umount(&dir);
    host.umount(&plain);
    let log = host.log();
    for told in ["request{number=", "transfer{layer="] {
        assert!(log.contains(told), "the log has no span {told}: {log}");
    }
    assert_eq!(lines_with(&log, &FORBIDDEN), Vec::<&str>::new());
    let basic = base64::engine::general_purpose::STANDARD.encode(&login);
    let secrets = [PASSWORD, &basic, "signature="];
    assert_eq!(lines_with(&log, &secrets), Vec::<&str>::new());
    let printed = format!("{printed}{explained}");
    assert_eq!(lines_with(&printed, &secrets), Vec::<&str>::new());
    // What is refused is told of; what was tried is not.
    let elsewhere = host.dir("b");
    let wrong = format!("me:not-{PASSWORD}");
    let args = ["mount", &image, utf8(&elsewhere), "--frontend", "fuse-image", "--user", &wrong];
    let refused = run_logging(&host, "debug", &args);
    assert!(!refused.success);
    let all = format!("{}{}{}", host.log(), refused.stdout, refused.stderr);
    assert_eq!(lines_with(&all, &secrets), Vec::<&str>::new());
    host.stop_daemon();
    host.assert_clean();
}

#[test]
fn explain_tells_of_layers_reasons_and_slow_reads() {
    let Some(host) = Host::new("explain") else { return };
    let (registry, layers, small) = (TestRegistry::start(), three_layers(), small_layer());
    registry.put_image("plain", "1", &as_image(&layers));
    put_indexed(&registry, "app", &small.blob, &ztoc_of(&host, &small));
    let (plain, lazy) = (format!("{}/plain:1", registry.host()), format!("{}/app:1", registry.host()));
    host.fails(&["explain", &lazy], &["no sociblk daemon runs"]);
    let (whole_dir, whole_report) = host.mount(&plain, "plain");
    let (lazy_dir, lazy_report) = host.mount(&lazy, "lazy");
    std::fs::read(lazy_dir.join("dir/first")).expect("a read");
    for (dir, report, image, state, reason) in
        [(&whole_dir, &whole_report, &plain, "whole", "no-index"), (&lazy_dir, &lazy_report, &lazy, "lazy", "indexed")]
    {
        let mounted = report["layers"].as_array().expect("layers");
        for name in [utf8(dir), image, report["manifest"].as_str().expect("a digest")] {
            let told = host.ok(&["explain", name, "--json"]).json();
            let explained = told["layers"].as_array().expect("layers");
            assert_eq!(explained.len(), mounted.len(), "{told:#}");
            for (layer, mounted) in explained.iter().zip(mounted) {
                assert_eq!(layer["digest"], mounted["digest"]);
                assert_eq!((&layer["state"], &layer["reason"]), (&state.into(), &reason.into()), "{told:#}");
                assert_eq!(layer["index"], mounted["way"]["index"]);
                assert_eq!(layer["served"]["ztoc"], mounted["way"]["ztoc"]);
                assert!(layer["served"]["spans"].as_u64().expect("a number") > 0, "{told:#}");
            }
        }
        let text = host.ok(&["explain", utf8(dir)]).stdout;
        let begins = format!("mount {} of {image}: {} layers", dir.display(), mounted.len());
        assert!(text.starts_with(&begins) && text.contains(reason), "{text}");
    }
    // What was read lazily had to be waited for: where, which file, and how long for what.
    let told = host.ok(&["explain", &lazy, "--json"]).json();
    let reads = told["layers"][0]["served"]["slowest"].as_array().expect("reads");
    assert!(!reads.is_empty() && told["layers"][0]["served"]["waits"].as_u64() > Some(0), "{told:#}");
    for read in reads {
        let number = |key: &str| read[key].as_u64().unwrap_or_else(|| panic!("{key}: {read}"));
        assert!(number("device_offset") > 0 && read["file"].is_string(), "{read}");
        let parts = ["queue_ms", "retry_ms", "network_ms", "inflate_ms"].map(number);
        assert!(parts.iter().sum::<u64>() <= number("took_ms"), "{read}");
    }
    assert!(reads.iter().any(|read| read["file"] == "dir/first"), "{told:#}");
    let socket = host.path("no-containerd");
    let words = ["no image and no mount called other", "containerd"];
    host.fails(&["explain", "other", "--containerd-address", utf8(&socket)], &words);
    host.umount(&whole_dir);
    host.umount(&lazy_dir);
    host.stop_daemon();
    host.assert_clean();
}
