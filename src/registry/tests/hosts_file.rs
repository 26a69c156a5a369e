use super::*;

fn read(text: &str) -> Result<HostsFile, HostsError> {
    parse(Path::new("/certs.d/docker.io/hosts.toml"), text)
}

fn good(text: &str) -> Vec<HostEntry> {
    let file = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(file.warnings, Vec::<String>::new(), "{text}");
    file.hosts
}

fn bases(hosts: &[HostEntry]) -> Vec<Option<&str>> {
    hosts.iter().map(|host| host.base.as_ref().map(Url::as_str)).collect()
}

fn pair(certificate: &str, key: Option<&str>) -> ClientPair {
    ClientPair { certificate: certificate.into(), key: key.map(Into::into) }
}

/// The examples of containerd's page on hosts.
#[test]
fn containerds_examples() {
    let hosts = good(
        "server = \"https://docker.io\"\n\n[host.\"https://registry-1.docker.io\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
    );
    assert_eq!(bases(&hosts), [Some("https://registry-1.docker.io/v2"), Some("https://docker.io/v2")]);
    assert_eq!(
        format!("{:?} {:?}", hosts[0].capabilities, hosts[1].capabilities),
        "[pull, resolve] [pull, resolve, push, referrers]"
    );

    let hosts = good(
        r#"server = "https://registry-1.docker.io"    # Exclude this to not use upstream

[host."https://public-mirror.example.com"]
  capabilities = ["pull"]                  # Requires less trust, won't resolve tag to digest from this host
[host."https://docker-mirror.internal"]
  capabilities = ["pull", "resolve"]
  ca = "docker-mirror.crt"                 # Or absolute path
"#,
    );
    let want = [
        "https://public-mirror.example.com/v2",
        "https://docker-mirror.internal/v2",
        "https://registry-1.docker.io/v2",
    ];
    assert_eq!(bases(&hosts), want.map(Some));
    assert_eq!(hosts[1].ca_files, [PathBuf::from("/certs.d/docker.io/docker-mirror.crt")]);

    let hosts = good("[host.\"https://registry.example.com\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    assert_eq!(bases(&hosts), [Some("https://registry.example.com/v2"), None]);

    let hosts = good("server = \"https://registry.example.com\"\n");
    assert_eq!(bases(&hosts), [Some("https://registry.example.com/v2")]);

    let hosts = good(
        r#"server = "https://registry-1.docker.io"
[host."http://192.168.31.250:5000"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
"#,
    );
    assert_eq!(bases(&hosts)[0], Some("http://192.168.31.250:5000/v2"));
    assert_eq!((hosts[0].skip_verify, hosts[1].skip_verify), (Some(true), None));
}

/// The long example, in which the order of the tables is not that of their names.
#[test]
fn hosts_come_in_the_order_of_the_file_with_all_their_keys() {
    let hosts = good(
        r#"
[host."https://mirror.registry"]
  capabilities = ["pull"]
  ca = "/etc/certs/mirror.pem"
  skip_verify = false
  [host."https://mirror.registry".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.registry/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.registry"]
  capabilities = ["pull"]

[host."https://test-1.registry"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]

[host."https://test-2.registry"]
  client = "client.pem"

[host."https://test-3.registry"]
  client = ["/etc/certs/client-1.pem", "/etc/certs/client-2.pem"]
  dial_timeout = "1s"

[host."https://non-compliant-mirror.registry/v2/upstream"]
  capabilities = ["pull"]
  override_path = true

[host."https://compliant.registry/v2/upstream"]
"#,
    );
    let want = [
        Some("https://mirror.registry/v2"),
        Some("https://mirror-bak.registry/us/v2"),
        Some("http://mirror.registry/v2"),
        Some("https://test-1.registry/v2"),
        Some("https://test-2.registry/v2"),
        Some("https://test-3.registry/v2"),
        Some("https://non-compliant-mirror.registry/v2/upstream"),
        Some("https://compliant.registry/v2/upstream/v2"),
        None,
    ];
    assert_eq!(bases(&hosts), want);
    let values: Vec<_> = hosts[0].headers.get_all("x-custom-2").iter().map(|v| v.to_str().expect("text")).collect();
    assert_eq!(values, ["value1", "value2"]);
    assert_eq!(hosts[0].skip_verify, Some(false));
    assert_eq!(hosts[3].ca_files, ["/etc/certs/test-1-ca.pem", "/etc/certs/special.pem"].map(PathBuf::from));
    let pairs = [pair("/etc/certs/client.cert", Some("/etc/certs/client.key")), pair("/etc/certs/client.pem", None)];
    assert_eq!(hosts[3].client_pairs, pairs);
    assert_eq!(hosts[4].client_pairs, [pair("/certs.d/docker.io/client.pem", None)]);
    assert_eq!(hosts[5].client_pairs, [pair("/etc/certs/client-1.pem", None), pair("/etc/certs/client-2.pem", None)]);
    assert_eq!(hosts[5].dial_limit, Some(Duration::from_secs(1)));
}

#[test]
fn what_stands_at_the_top_is_about_the_registry_itself() {
    let hosts = good(
        "ca = \"own.crt\"\nskip_verify = true\ndial_timeout = \"2s\"\n[header]\n  x-custom-1 = \"custom header\"\n  x-custom-1-2 = \"another\"\n",
    );
    assert_eq!(bases(&hosts), [None]);
    assert_eq!(hosts[0].ca_files, [PathBuf::from("/certs.d/docker.io/own.crt")]);
    assert_eq!(hosts[0].headers.len(), 2);
    assert_eq!((hosts[0].skip_verify, hosts[0].dial_limit), (Some(true), Some(Duration::from_secs(2))));
    assert_eq!(bases(&good("# nothing\n")), [None]);
}

#[test]
fn urls_are_completed_as_containerd_does() {
    for (text, override_path, want) in [
        ("docker.io", false, "https://docker.io/v2"),
        ("https://docker.io/", false, "https://docker.io/v2"),
        ("http://10.0.0.1:5000", false, "http://10.0.0.1:5000/v2"),
        ("https://h/v2", false, "https://h/v2"),
        ("https://h/v2/", false, "https://h/v2"),
        ("https://h/a/b/", false, "https://h/a/b/v2"),
        ("https://h/a/b/", true, "https://h/a/b"),
        ("https://h", true, "https://h/"),
        ("[::1]:5000", false, "https://[::1]:5000/v2"),
    ] {
        assert_eq!(base_url(text, override_path).expect(text).as_str(), want, "{text}");
    }
    for text in ["", "ftp://h", "unix:///run/x", "https://", "https://u:p@h", "https://h?x=1", "https://h#x", "a b"] {
        let reason = base_url(text, false).expect_err(text);
        assert!(!reason.is_empty() && !reason.contains("u:p"), "{text}: {reason}");
    }
}

#[test]
fn errors_name_file_line_and_key_and_what_to_do() {
    for (text, line, wants) in [
        ("server = 5", 1, &["server", "a string", "a number"][..]),
        ("server = \"ftp://x\"", 1, &["server", "http or https"]),
        (
            "\n\n[host.\"https://m\"]\ncapabilities = [\"pull\", \"delete\"]",
            4,
            &["host.\"https://m\".capabilities", "delete", "referrers"],
        ),
        ("[host.\"https://m\"]\ncapabilities = \"pull\"", 2, &["capabilities", "must be a list"]),
        ("[host.\"https://m\"]\nca = 1", 2, &["host.\"https://m\".ca", "list of files"]),
        ("[host.\"https://m\"]\nca = [1]", 2, &[".ca", "a string"]),
        ("[host.\"https://m\"]\nca = \"\"", 2, &[".ca", "name a file"]),
        ("[host.\"https://m\"]\nclient = [[\"a\"]]", 2, &[".client", "[CERTIFICATE, KEY]"]),
        ("[host.\"https://m\"]\nclient = [[\"a\", \"b\", \"c\"]]", 2, &[".client", "[CERTIFICATE, KEY]"]),
        ("[host.\"https://m\"]\nclient = 7", 2, &[".client", "a number"]),
        ("[host.\"https://m\"]\nskip_verify = \"yes\"", 2, &[".skip_verify", "true or false"]),
        ("[host.\"https://m\"]\noverride_path = 1", 2, &[".override_path", "true or false"]),
        ("[host.\"https://m\"]\ndial_timeout = 1", 2, &[".dial_timeout", "a string"]),
        ("[host.\"https://m\"]\ndial_timeout = \"soon\"", 2, &[".dial_timeout", "\"1s\""]),
        ("[host.\"https://m\"]\nheader = \"x\"", 2, &[".header", "must be a table"]),
        ("[header]\n\"bad name\" = \"secret-value\"", 2, &["header.bad name", "no name"]),
        ("[header]\nx = 3", 2, &["header.x", "list of strings"]),
        ("[header]\nx = \"secret-value\\n\"", 2, &["header.x", "characters"]),
        ("[host.\"https://m\"]\n[host.\"https://m\".host.\"https://n\"]", 2, &["side by side"]),
        ("[host.\"https://m\"]\nserver = \"https://n\"", 2, &[".server", "top of the file"]),
        ("[host.\"ftp://m\"]", 1, &["host.\"ftp://m\"", "http or https"]),
        ("host = 1", 1, &["host", "must be a table"]),
        ("a = 1\nnonsense", 2, &["docs/REGISTRIES.md"]),
        ("a = 1\na = 2", 2, &["duplicate"]),
    ] {
        let error = read(text).expect_err(text).to_string();
        assert!(error.starts_with("/certs.d/docker.io/hosts.toml: "), "{error}");
        assert!(error.contains(&format!("line {line}: ")), "{text:?}: {error}");
        for want in wants {
            assert!(error.contains(want), "{text:?}: {error}");
        }
        assert!(!error.contains("secret-value"), "{error}");
    }
}

#[test]
fn keys_that_are_not_known_are_named_and_passed_over() {
    let file = read("[host.\"https://m\"]\ncapabilites = [\"pull\"]\n").expect("usable");
    assert_eq!(file.warnings.len(), 1);
    assert!(file.warnings[0].contains("line 2") && file.warnings[0].contains("capabilites"), "{:?}", file.warnings);
}

#[test]
fn headers_are_never_shown() {
    let hosts = good("[header]\nauthorization = \"Bearer secret-value\"\n");
    assert_eq!(hosts[0].headers["authorization"], "Bearer secret-value");
    assert!(!format!("{hosts:?}").contains("secret-value"));
}

proptest::proptest! {
    #[test]
    fn any_text_ends(text in "(\\[host\\.\"?[a-z:/]{0,9}\"?\\]|[a-z_.]{1,9} = [\\[\"a-z0-9\\], ]{0,12}|\\[header\\]|\n){0,12}") {
        if let Ok(file) = read(&text) {
            proptest::prop_assert!(!file.hosts.is_empty());
        }
    }
}
