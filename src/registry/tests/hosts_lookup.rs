use super::*;

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    std::fs::write(path, text).expect("a file");
}

#[test]
fn directories_are_looked_for_in_containerds_order() {
    let roots = ["/a", "/b"].map(PathBuf::from);
    for (registry, want) in [
        ("docker.io", vec!["/a/docker.io", "/a/_default", "/b/docker.io", "/b/_default"]),
        (
            "my.io:5000",
            vec!["/a/my.io_5000_", "/a/my.io:5000", "/a/_default", "/b/my.io_5000_", "/b/my.io:5000", "/b/_default"],
        ),
        (
            "[::1]:5000",
            vec!["/a/[::1]_5000_", "/a/[::1]:5000", "/a/_default", "/b/[::1]_5000_", "/b/[::1]:5000", "/b/_default"],
        ),
    ] {
        assert_eq!(candidates(&roots, registry), want.into_iter().map(PathBuf::from).collect::<Vec<_>>(), "{registry}");
    }
}

#[test]
fn the_first_directory_that_exists_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let roots = [dir.path().join("none"), dir.path().to_owned()];
    let base = |registry: &str| {
        let found = find(&roots, registry).expect("readable");
        found.hosts.first().map(|host| host.base.as_ref().map(ToString::to_string))
    };
    assert_eq!(base("my.io:5000"), None);
    write(dir.path(), "_default/hosts.toml", "server = \"https://default\"");
    assert_eq!(base("my.io:5000"), Some(Some("https://default/v2".into())));
    write(dir.path(), "my.io:5000/hosts.toml", "server = \"https://colon\"");
    assert_eq!(base("my.io:5000"), Some(Some("https://colon/v2".into())));
    write(dir.path(), "my.io_5000_/hosts.toml", "server = \"https://underscore\"");
    assert_eq!(base("my.io:5000"), Some(Some("https://underscore/v2".into())));
    assert_eq!(base("my.io"), Some(Some("https://default/v2".into())));
}

#[test]
fn certificates_in_dockers_layout_count_where_there_is_no_hosts_toml() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["b.crt", "a.crt", "client.cert", "client.key", "whole.cert", "stray.key", "README"] {
        write(dir.path(), &format!("my.io/{name}"), "");
    }
    let at = |name: &str| dir.path().join("my.io").join(name);
    let roots = [dir.path().to_owned()];
    let check = || {
        let host = find(&roots, "my.io").expect("readable").hosts.remove(0);
        assert_eq!(host.base, None);
        assert_eq!(host.ca_files, [at("a.crt"), at("b.crt")]);
        let pairs = [
            ClientPair { certificate: at("client.cert"), key: Some(at("client.key")) },
            ClientPair { certificate: at("whole.cert"), key: None },
        ];
        assert_eq!(host.client_pairs, pairs);
    };
    check();
    // An empty file says nothing, as in containerd.
    write(dir.path(), "my.io/hosts.toml", "");
    check();
    write(dir.path(), "my.io/hosts.toml", "server = \"https://x\"");
    assert_eq!(find(&roots, "my.io").expect("readable").hosts[0].ca_files, Vec::<PathBuf>::new());
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let roots = [dir.path().to_owned()];
    std::fs::create_dir_all(dir.path().join("my.io/hosts.toml")).expect("a directory in place of the file");
    let error = find(&roots, "my.io").expect_err("no file").to_string();
    assert!(error.contains("my.io/hosts.toml") && error.contains("make it readable"), "{error}");
    write(dir.path(), "bytes.io/hosts.toml", "");
    std::fs::write(dir.path().join("bytes.io/hosts.toml"), b"\xff\xfe").expect("a file");
    let error = find(&roots, "bytes.io").expect_err("no text").to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn a_change_of_any_file_shows_in_the_stamp() {
    let dir = tempfile::tempdir().expect("a directory");
    let roots = [dir.path().to_owned()];
    write(dir.path(), "my.io/hosts.toml", "ca = \"x.pem\"");
    let stamp = || find(&roots, "my.io").expect("readable").stamp;
    let first = stamp();
    assert_eq!(first, stamp());
    write(dir.path(), "my.io/x.pem", "certificate");
    let second = stamp();
    assert_ne!(first, second);
    write(dir.path(), "my.io/hosts.toml", "ca = \"x.pem\" # more");
    assert_ne!(second, stamp());
}
