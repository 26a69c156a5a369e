//! Settings files, good and bad.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).expect("written");
    Config::load(Some(&path))
}

#[test]
fn the_empty_file_is_the_default_and_sizes_may_be_texts() {
    assert_eq!(load("").expect("empty"), Config::default());
    let config = load("[cache]\nmax_bytes = \"20GiB\"\n[fill]\nmemory_bytes = 33554432\n").expect("sizes");
    assert_eq!(config.cache.max_bytes, Size(20 << 30));
    assert_eq!(config.fill.memory_bytes, Size(32 << 20));
}

#[test]
fn the_local_store_comes_first_unless_told_otherwise() {
    let index = Config::default().index;
    assert!(index.prefer_local && index.local_mappings);
    let config = load("[index]\nprefer_local = false\nlocal_mappings = false\n").expect("settings");
    assert!(!config.index.prefer_local && !config.index.local_mappings);
}

#[test]
fn mirrors_as_soci_writes_them_and_directories_as_containerd_does() {
    let config = load(
        "[registry]\nconfig_path = \"/a/certs.d:/b\"\n[resolver.host.\"docker.io\"]\n\
         [[resolver.host.\"docker.io\".mirrors]]\nhost = \"mirror:5000\"\ninsecure = true\nrequest_timeout_sec = 3\n\
         [[resolver.host.\"docker.io\".mirrors]]\nhost = \"second\"\n",
    )
    .expect("mirrors");
    let mirrors = &config.resolver.host["docker.io"].mirrors;
    assert_eq!(
        (mirrors[0].host.as_str(), mirrors[0].insecure, mirrors[0].request_timeout_sec),
        ("mirror:5000", true, 3)
    );
    assert_eq!((mirrors[1].host.as_str(), mirrors[1].insecure), ("second", false));
    assert_eq!(config.registry.hosts_dirs(), ["/a/certs.d", "/b"].map(PathBuf::from));
    let defaults = Config::default().registry.hosts_dirs();
    assert_eq!(defaults, ["/etc/containerd/certs.d", "/etc/docker/certs.d"].map(PathBuf::from));
    assert!(Registry { config_path: String::new(), ..Registry::default() }.hosts_dirs().is_empty());
}

#[test]
fn wrong_keys_and_values_are_named() {
    for (text, want) in [
        ("[registry]\nconfig_path = \"certs.d\"", "registry.config_path"),
        ("[registry]\nca_files = [\"x.pem\"]", "registry.ca_files"),
        ("[registry]\nhttp2 = \"h2c\"", "h2c"),
        ("[registry]\nresolve_timeout_s = 0", "at least 1 second"),
        ("[[resolver.host.a.mirrors]]\nhost = \"\"", "must name its host"),
        ("[[resolver.host.a.mirrors]]\ninsecure = true", "host"),
        ("[cache]\nmax_byte = 1", "max_byte"),
        ("[cache]\nmax_bytes = \"20 apples\"", "20 apples"),
        ("[cache]\nmax_bytes = \"99999999TiB\"", "99999999TiB"),
        ("[fill]\nmax_requests = 0", "fill.max_requests"),
        ("[fill]\nmemory_bytes = 1", "fill.memory_bytes"),
        ("[ublk]\nrings = 9", "ublk.rings"),
        ("[snapshotter]\naddress = \"x.sock\"", "snapshotter.address"),
        ("[snapshotter]\ncontainerd_address = \"c.sock\"", "snapshotter.containerd_address"),
        ("[snapshotter]\nmetrics_address = \"localhost:1\"", "snapshotter.metrics_address"),
        ("[snapshotter]\nmetrics_address = \"unix:x\"", "snapshotter.metrics_address"),
        ("[snapshotter]\nwithout_index = \"maybe\"", "maybe"),
        ("[snapshotter]\nfrontend = \"fuse\"", "fuse-image"),
        ("[snapshotter]\nselinux_context = \"container_ro_file_t\"", "snapshotter.selinux_context"),
        ("[snapshotter]\nselinux_context = \"a:b:c,ro\"", "snapshotter.selinux_context"),
        ("[snapshotter]\nselinux_context = \"a:b:c:\"", "snapshotter.selinux_context"),
        ("[credentials]\ncri_image_service = \"c.sock\"", "credentials.cri_image_service"),
        ("[credentials]\ncri_image_service = \"/run/a:b\"", "without a colon"),
        ("[credentials]\nkubeconfig = \"config\"", "credentials.kubeconfig"),
        ("[builder]\njobs = 0", "builder.jobs"),
        ("[builder]\nindex = \"v3\"", "v3"),
        ("[builder]\nindex = \"v2\"\ntarget_tag = \"{tag}\"", "builder.target_tag"),
        ("[builder]\nindex = \"v2\"\nuntagged = true", "builder.untagged"),
        ("[builder]\ntoken_file = \"token\"", "builder.token_file"),
        ("[builder]\nspan_size = 1", "builder.span_size"),
        ("nonsense", "config.toml"),
    ] {
        let error = load(text).expect_err(text).to_string();
        assert!(error.contains(want), "{text:?}: {error}");
    }
    let absent = Config::load(Some(Path::new("/nonexistent/x.toml"))).expect_err("absent");
    assert!(absent.to_string().contains("/nonexistent/x.toml"));
}

#[test]
fn every_problem_is_named_with_its_line() {
    let text =
        "[cache]\nmax_byte = 1\nmax_bytes = \"x\"\n\n[fill]\nmax_requests = 0\nthreads = 2\n\n[nonsense]\na = 1\n";
    let Err(ConfigError::Wrong { problems, .. }) = load(text) else { panic!("taken") };
    let found: Vec<_> = problems.iter().map(|p| (p.line.unwrap_or_default(), p.key.as_str())).collect();
    assert_eq!(found, [(2, "cache.max_byte"), (3, "cache.max_bytes"), (6, "fill.max_requests"), (9, "nonsense")]);
    // Wrong only together: each by itself is fine.
    let Err(ConfigError::Wrong { problems, .. }) = load("[builder]\nuntagged = true\n\nindex = \"v2\"\n") else {
        panic!("taken")
    };
    assert_eq!((problems[0].line, problems[0].key.as_str(), problems.len()), (Some(2), "builder.untagged", 1));
    // No TOML at all: every place where it is none.
    let Err(ConfigError::Wrong { problems, .. }) = load("[cache\nmax_bytes = 1\n[fill]\nthreads = = 2\n") else {
        panic!("taken")
    };
    let lines: Vec<_> = problems.iter().filter_map(|p| p.line).collect();
    assert!(lines.contains(&1) && lines.contains(&4), "{problems:?}");
}

/// Takes the comment marks off settings.
fn uncommented(file: &str) -> String {
    let is_setting = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    file.lines()
        .map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line).to_owned() + "\n")
        .collect()
}

#[test]
fn the_file_of_defaults_explains_every_setting_and_changes_none() {
    let file = Config::default().commented().expect("a file");
    assert_eq!(load(&file).expect("as it is"), Config::default());
    let mut all = load(&uncommented(&file)).expect("every setting");
    assert_eq!(all.builder.token_file.take(), Some(PathBuf::from("/etc/sociblk/token")));
    assert_eq!(all.builder.registry.take().as_deref(), Some("registry.example:5000"));
    assert_eq!(all.resolver.host.remove("docker.io").map(|host| host.mirrors.len()), Some(1));
    assert_eq!(all, Config::default());
    // Each setting stands below a comment.
    let lines: Vec<&str> = file.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].strip_prefix('#').unwrap_or(pair[1]).contains(" = ")) {
        let explained = pair[0].starts_with("# ") || pair[0].starts_with("#[[");
        assert!(explained || pair[1].starts_with("# "), "{pair:?}");
    }
    let values = toml::Table::try_from(Config::default()).expect("values");
    for (section, values) in &values {
        assert!(file.contains(&format!("\n[{section}]\n")), "{section}");
        for key in values.as_table().into_iter().flatten().map(|(key, _)| key) {
            assert!(file.contains(&format!("\n#{key} = ")) || key == "host", "{section}.{key}");
        }
    }
}

#[test]
fn settings_survive_being_written() {
    let text = "[cache]\nmax_bytes = \"99999TiB\"\n[builder]\ntoken_file = \"/t\"\n[resolver.host.\"a.b:5\"]\n\
                [[resolver.host.\"a.b:5\".mirrors]]\nhost = \"m\"\ninsecure = true\n\
                [snapshotter]\nwithout_index = \"stream\"\nmin_layer_size = 1025\n\
                selinux_context = \"system_u:object_r:container_ro_file_t:s0:c1,c22\"\n";
    let config = load(text).expect("settings");
    for written in [config.commented(), config.dump()] {
        let written = written.expect("written");
        assert_eq!(load(&written).expect("read again"), config, "{written}");
    }
    let commented = config.commented().expect("written");
    assert!(commented.contains("\nwithout_index = \"stream\"\n") && commented.contains("\n#metrics_address = "));
}
