//! Every key of SOCI's settings, and what becomes of it.

use super::super::problems::examine;
use super::super::{Size, WithoutIndex};
use super::*;

/// The whole list of SOCI's keys, each with a value that is not its default, and with what becomes of it: a setting of
/// ours, `-` for what is not needed, `!` for what is missing.
const ALL: &str = r#"
http_cache_type = "memory"                                   # -
filesystem_cache_type = "memory"                             # -
resolve_result_entry = 5                                     # -
debug = true                                                 # -
disable_verification = true                                  # -
max_concurrency = 7                                          # -
mount_timeout_sec = 31                                       # registry.resolve_timeout_s
fuse_metrics_emit_wait_duration_sec = 5                      # -
no_prometheus = true                                         # snapshotter.metrics_address
metrics_address = "/run/m.sock"                              # snapshotter.metrics_address
metrics_network = "unix"                                     # snapshotter.metrics_address
debug_address = "localhost:6060"                             # !
metadata_store = "db-multi"                                  # -
metadata_db_no_sync = true                                   # -
metadata_insertion_chunk_size = 3                            # -
skip_check_snapshotter_supported = true                      # -
[http]
DialTimeoutMsec = 4001                                       # registry.connect_timeout_s
responseheadertimeoutmsec = 9000                             # registry.idle_timeout_s
RequestTimeoutMsec = 1                                       # -
MaxRetries = 1                                               # -
MinWaitMsec = 1                                              # -
MaxWaitMsec = 1                                              # -
[blob]
valid_interval = 1                                           # -
fetching_timeout_sec = 77                                    # fill.hold_limit_s
max_retries = 1                                              # -
min_wait_msec = 1                                            # -
max_wait_msec = 1                                            # -
check_always = true                                          # -
force_single_range_mode = true                               # -
max_span_verification_retries = 3                            # -
[directory_cache]
max_lru_cache_entry = 1                                      # -
max_cache_fds = 1                                            # -
sync_add = true                                              # -
direct = false                                               # -
[fuse]
attr_timeout = 2                                             # -
entry_timeout = 2                                            # -
negative_timeout = 2                                         # -
log_fuse_operations = true                                   # -
[background_fetch]
disable = true                                               # snapshotter.background
silence_period_msec = 1                                      # -
fetch_period_msec = 1                                        # -
max_queue_size = 1                                           # -
drop_policy = "oldest"                                       # -
emit_metric_period_sec = 1                                   # -
[content_store]
type = "containerd"                                          # -
containerd_address = "/run/c.sock"                           # snapshotter.containerd_address
namespace = "k8s.io"                                         # -
[prefetch]
enable = true                                                # load_order.policy
max_concurrency = 4                                          # -
[pull_modes.soci_v1]
enable = true                                                # -
[pull_modes.soci_v2]
enable = false                                               # !
[pull_modes.parallel_pull_unpack]
enable = true                                                # !
max_concurrent_downloads = 10                                # fill.max_requests
max_concurrent_downloads_per_image = 4                       # -
concurrent_download_chunk_size = "8mb"                       # -
max_concurrent_unpacks = 3                                   # fill.threads
max_concurrent_unpacks_per_image = 2                         # -
discard_unpacked_layers = true                               # -
experimental_parallel_pull_as_fallback = true                # snapshotter.without_index
[pull_modes.parallel_pull_unpack.decompress_streams."gzip"]
path = "/usr/bin/unpigz"                                     # -
args = ["-d", "-c"]                                          # -
[kubeconfig_keychain]
enable_keychain = true                                       # credentials.kubernetes
kubeconfig_path = "/k"                                       # credentials.kubeconfig
[cri_keychain]
enable_keychain = true                                       # credentials.cri
image_service_path = "/run/x.sock"                           # credentials.cri_image_service
[resolver]
auth_client_ttl_sec = 1                                      # -
enable_auth_client_sharing = true                            # -
[[resolver.host."docker.io".mirrors]]
host = "mirror:5000"                                         # resolver.host.docker.io.mirrors.host
insecure = true                                              # resolver.host.docker.io.mirrors.insecure
request_timeout_sec = 3                                      # resolver.host.docker.io.mirrors.request_timeout_sec
[snapshotter]
min_layer_size = 4096                                        # snapshotter.min_layer_size
allow_invalid_mounts_on_restart = true                       # -
"#;

fn convert(text: &str) -> (Config, Vec<Finding>) {
    let (config, findings) = examine(text).unwrap_or_else(|problems| panic!("{problems:?}"));
    (config, findings.expect("a file of SOCI's"))
}

#[test]
fn every_key_has_its_meaning() {
    let (_, findings) = convert(ALL);
    let mut tried = 0;
    for (number, line) in ALL.lines().enumerate() {
        let Some((_, want)) = line.split_once('#') else { continue };
        let found: Vec<_> = findings.iter().filter(|finding| finding.line == Some(number + 1)).collect();
        let [finding] = found.as_slice() else { panic!("line {}: {line}: {found:?}", number + 1) };
        let got = match &finding.meaning {
            Meaning::Mapped { to } => to.as_str(),
            Meaning::NotNeeded { default: false, .. } => "-",
            Meaning::Missing { .. } => "!",
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(got, want.trim(), "{line}");
        tried += 1;
    }
    assert_eq!((tried, findings.len()), (KEYS.len(), KEYS.len()), "a key stands in one list only");
}

#[test]
fn values_arrive() {
    let (config, _) = convert(&ALL.replace("no_prometheus = true", ""));
    assert_eq!(config.registry.resolve_timeout_s, 31);
    assert_eq!((config.registry.connect_timeout_s, config.registry.idle_timeout_s), (5, 9));
    assert_eq!(config.fill.hold_limit_s, 77);
    assert_eq!((config.fill.max_requests, config.fill.threads), (10, 3));
    assert_eq!(config.snapshotter.metrics_address, "unix:/run/m.sock");
    assert_eq!(config.snapshotter.without_index, WithoutIndex::Stream);
    assert_eq!(config.snapshotter.min_layer_size, Size(4096));
    assert!(!config.snapshotter.background);
    let credentials = &config.credentials;
    assert_eq!((credentials.kubernetes, credentials.kubeconfig.as_str()), (true, "/k"));
    assert_eq!((credentials.cri, credentials.cri_image_service.as_str()), (true, "/run/x.sock"));
    let mirror = &config.resolver.host["docker.io"].mirrors[0];
    assert_eq!((mirror.host.as_str(), mirror.insecure, mirror.request_timeout_sec), ("mirror:5000", true, 3));
    let (without, _) = convert(ALL);
    assert_eq!(without.snapshotter.metrics_address, "", "no_prometheus holds whatever else is said");
    for (theirs, ours) in
        [("localhost:1338", "127.0.0.1:1338"), (":1338", "[::]:1338"), ("10.0.0.1:1", "10.0.0.1:1"), ("", "")]
    {
        let (config, _) = convert(&format!("metrics_address = \"{theirs}\""));
        assert_eq!(config.snapshotter.metrics_address, ours);
    }
}

#[test]
fn what_soci_takes_by_itself_changes_nothing_and_is_not_worth_a_word() {
    let text = "debug = false\nmount_timeout_sec = 30\nresolve_result_entry = 0\nmetrics_network = \"tcp\"\n\
                [http]\nDialTimeoutMsec = 3000\nResponseHeaderTimeoutMsec = 0\n[background_fetch]\ndisable = false\n\
                [pull_modes.soci_v2]\nenable = true\n[pull_modes.parallel_pull_unpack]\nmax_concurrent_downloads = -1\n\
                [cri_keychain]\nenable_keychain = false\nimage_service_path = \"/run/containerd/containerd.sock\"\n";
    let (config, findings) = convert(text);
    assert_eq!(config, Config::default());
    let loud: Vec<_> = findings.iter().filter(|finding| finding.is_worth_a_warning()).collect();
    assert!(loud.is_empty(), "{loud:?}");
}

#[test]
fn unknown_keys_are_named_and_wrong_values_refused() {
    let (_, findings) = convert(
        "debug = true\nspan_manager = 1\n[resolver.host.a]\n[[resolver.host.a.mirrors]]\nhost = \"m\"\nheaders = 1\n",
    );
    let unknown: Vec<_> =
        findings.iter().filter(|f| f.meaning == Meaning::Unknown).map(|f| (f.line, f.key.as_str())).collect();
    assert_eq!(unknown, [(Some(2), "span_manager"), (Some(6), "resolver.host.a.mirrors.headers")]);
    for (text, line, key) in [
        ("mount_timeout_sec = \"x\"", 1, "mount_timeout_sec"),
        ("debug = false\nmetrics_network = \"udp\"", 2, "metrics_network"),
        ("[background_fetch]\n\ndisable = 1", 3, "background_fetch.disable"),
        ("debug = true\n[snapshotter]\nmin_layer_size = -1", 3, "snapshotter.min_layer_size"),
        ("debug = true\n[[resolver.host.a.mirrors]]\nhost = 3", 2, "resolver.host"),
    ] {
        let problems = examine(text).expect_err(text);
        assert_eq!((problems[0].line, problems[0].key.as_str()), (Some(line), key), "{text}");
    }
    let problems = examine("metrics_address = \"nowhere\"").expect_err("no address");
    assert_eq!(problems[0].key, "snapshotter.metrics_address");
}

#[test]
fn files_are_told_apart_by_what_only_one_of_the_two_has() {
    for text in ["", "[snapshotter]\nmin_layer_size = 1", "[[resolver.host.a.mirrors]]\nhost = \"x\""] {
        assert!(examine(text).expect("good").1.is_none(), "{text}");
    }
    for text in ["debug = true", "[resolver]\nauth_client_ttl_sec = 1", "[HTTP]\nmaxretries = 1"] {
        assert!(examine(text).expect("good").1.is_some(), "{text}");
    }
    let problems = examine("[cache]\nmax_bytes = 1\n[http]\nMaxRetries = 1").expect_err("both");
    assert_eq!((problems[0].line, problems[0].key.as_str()), (Some(4), "http.MaxRetries"));
    assert!(problems[0].reason.contains("cache.max_bytes"), "{problems:?}");
    // A key that is nobody's does not make it SOCI's.
    let problems = examine("[snapshotter]\nmin_layer_size = 1\nfoo = 1").expect_err("unknown");
    assert_eq!(problems[0].key, "snapshotter.foo");
}
